//! `chasi-bod component`: which applications the cluster keeps, what they wait for, and another try.

use clap::Subcommand;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt as _};
use layers::Result;
use layers::platform::Component;
use layers::platform::component::RETRY;
use serde_json::json;

use super::objects::{change, get, list, printed, summary};
use super::table::{age, failure, table, word};
use super::{Outcome, Session};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List components: phase, virtual cluster, revision, age, and what they wait for or what failed.
    #[command(after_help = "Examples:\n  chasi-bod component list\n  chasi-bod component list --json")]
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say why a component is not ready: what it waits for, what failed, when it is tried again.
    #[command(after_help = "Example:\n  chasi-bod component why web")]
    Why {
        /// Name of the component.
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Try a failed component again at once.
    #[command(after_help = "Example:\n  chasi-bod component retry web")]
    Retry {
        /// Name of the component.
        name: String,
    },
}

pub async fn run(verb: &Verb, session: &Session<'_>) -> Result<Outcome> {
    let api = Api::<Component>::all(session.client().await?);
    let text = match verb {
        Verb::List { json: true } => printed(&list(&api).await?.iter().map(summary).collect::<Vec<_>>())?,
        Verb::List { json: false } => listed(&list(&api).await?, Timestamp::now()),
        Verb::Why { name, json: true } => printed(&summary(&get(&api, name).await?))?,
        Verb::Why { name, json: false } => why(&get(&api, name).await?, Timestamp::now()),
        Verb::Retry { name } => {
            change(&api, name, &json!({"metadata": {"annotations": {RETRY: Timestamp::now().to_string()}}})).await?;
            (session.say)(&format!("component {name} is tried again; `chasi-bod component why {name}` shows how far it is"));
            String::new()
        }
    };
    Ok(text.into())
}

fn listed(list: &[Component], now: Timestamp) -> String {
    let rows = list.iter().map(|component| {
        let status = component.status.clone().unwrap_or_default();
        let cluster = component.spec.target.virtual_cluster.clone().unwrap_or("-".into());
        let revision = status.revision.map_or("-".into(), |revision| revision.to_string());
        let waits = (!status.waiting_for.is_empty()).then(|| format!("waits for {}", status.waiting_for.join(", ")));
        let why = status.failure.as_ref().map(failure).or(waits).unwrap_or_default();
        [component.name_any(), word(status.phase), cluster, revision, age(component.creation_timestamp().as_ref(), now), why]
    });
    table(["NAME", "PHASE", "CLUSTER", "REVISION", "AGE", "WHY"], rows)
}

/// All that the status says, in sentences.
fn why(component: &Component, now: Timestamp) -> String {
    let (name, status) = (component.name_any(), component.status.clone().unwrap_or_default());
    let since = status.since.as_ref().map(|since| format!(" for {}", age(Some(since), now)));
    let mut lines = vec![format!("{name} is {}{}.", word(status.phase), since.unwrap_or_default())];
    if status.observed_generation != component.metadata.generation {
        lines.push("The controller has not looked at its last change yet.".into());
    }
    if !status.waiting_for.is_empty() {
        lines.push(format!("It waits for {}.", status.waiting_for.join(", ")));
    }
    if let Some(failed) = &status.failure {
        let next = match &failed.next_retry {
            // The time until then is the age that now has then.
            Some(then) => format!("the next try is in {}", age(Some(&Time(now)), then.0)),
            None => format!("it waits for a change or for `chasi-bod component retry {name}`"),
        };
        lines.push(format!("{}. Tried {}×, first {} ago; {next}.", failure(failed), failed.attempts, age(Some(&failed.since), now)));
    }
    lines.extend(
        status
            .conditions
            .iter()
            .map(|condition| format!("{} is {} ({}). {}", condition.type_, condition.status, condition.reason, condition.message)),
    );
    lines.iter().map(|line| line.trim_end().to_string() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(status: &str) -> Component {
        let head =
            "{apiVersion: chasi-bod.io/v1alpha1, kind: Component, metadata: {name: web, generation: 2, creationTimestamp: '2026-01-01T00:00:00Z'},
            spec: {source: {manifests: web}, target: {virtualCluster: biz, namespace: a}}";
        serde_saphyr::from_str(&format!("{head}{status}}}")).unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_component_says_in_sentences_why_it_is_not_ready() {
        let failed = component(
            ", status: {phase: ERROR, since: '2026-01-01T00:59:00Z', observedGeneration: 2, waitingFor: [db, cache],
            failure: {reason: Failed, message: 'no image', since: '2026-01-01T00:50:00Z', nextRetry: '2026-01-01T01:00:20Z', attempts: 3},
            conditions: [{type: Ready, status: 'False', reason: Installing, message: '', lastTransitionTime: '2026-01-01T00:59:00Z'}]}",
        );
        let expected = "web is ERROR for 60s.\nIt waits for db, cache.\nFailed: no image. Tried 3×, first 10m ago; the next try is in 20s.\n\
            Ready is False (Installing).\n";
        assert_eq!(why(&failed, now()), expected);
        assert_eq!(why(&component(""), now()), "web is WAITING.\nThe controller has not looked at its last change yet.\n");
    }

    #[test]
    fn the_list_shows_what_each_waits_for_or_what_failed() {
        let waits = component(", status: {phase: WAITING, waitingFor: [db]}");
        let expected = "NAME  PHASE    CLUSTER  REVISION  AGE  WHY\nweb   WAITING  biz      -         60m  waits for db\n";
        assert_eq!(listed(std::slice::from_ref(&waits), now()), expected);
        let found = summary(&waits);
        assert_eq!(
            (&found["name"], &found["status"]["phase"], &found["created"]),
            (&json!("web"), &json!("WAITING"), &json!("2026-01-01T00:00:00Z"))
        );
    }
}
