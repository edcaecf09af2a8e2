//! Copies of a virtual cluster's data: asked for, followed and listed.

use clap::Args;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use layers::Result;
use layers::platform::snapshot::{CopyPhase, CopyStatus, Place};
use layers::platform::{Restore, Snapshot};
use serde_json::{Value, json};

use super::objects::{Kind, create, list, printed, summary};
use super::table::{age, failure, table, word};
use super::wait::{Seen, Target, until};
use super::{Outcome, Session};
use crate::platform::copy::Task;

/// A copy of a virtual cluster's data, or its way back.
#[derive(Debug, Args)]
pub struct Copy {
    #[command(flatten)]
    pub target: Target,
    /// Name of the object that stands for it; the virtual cluster's with the time when absent.
    #[arg(long = "as", value_name = "NAME")]
    pub object: Option<String>,
}

impl Copy {
    /// Asks for a snapshot.
    pub(super) async fn snapshot(&self, to: &Place, session: &Session<'_>) -> Result<Outcome> {
        let spec = json!({"virtualCluster": self.target.name, "to": to});
        self.make(session, &Api::<Snapshot>::all(session.client().await?), &spec, |object| object.status.clone()).await
    }

    /// Asks for a restore.
    pub(super) async fn restore(&self, from: &Place, session: &Session<'_>) -> Result<Outcome> {
        let spec = json!({"virtualCluster": self.target.name, "from": from});
        self.make(session, &Api::<Restore>::all(session.client().await?), &spec, |object| object.status.clone()).await
    }

    async fn make<K: Kind>(&self, session: &Session<'_>, api: &Api<K>, spec: &Value, status: impl Fn(&K) -> Option<CopyStatus>) -> Result<Outcome> {
        let moment = || format!("{}-{}", self.target.name, Timestamp::now().strftime("%Y%m%d-%H%M%S"));
        let name = self.object.clone().unwrap_or_else(moment);
        let (version, kind) = (K::api_version(&()), K::kind(&()));
        create(api, &name, &json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec})).await?;
        if self.target.patience.wait {
            let look = |object: Option<&K>| object.map(|object| seen(&status(object).unwrap_or_default()));
            let hint = "it goes on by itself; `chasi-bod vcluster snapshots` shows how far it is";
            until(api, (&name, hint), self.target.patience.timeout, look, session.say).await?;
        } else {
            (session.say)(&format!("{} {name} is being made; `chasi-bod vcluster snapshots` shows how far it is", K::WORD));
        }
        Ok(Outcome::default())
    }
}

fn seen(status: &CopyStatus) -> (Seen, String) {
    let seen = match (status.phase, &status.failure) {
        (CopyPhase::Done, _) => Seen::Done,
        (CopyPhase::Error, Some(failure)) if failure.next_retry.is_none() => Seen::Refused,
        _ => Seen::Going,
    };
    (seen, word(status.phase) + &said(status).map_or(String::new(), |said| format!(": {said}")))
}

/// What failed, else what the condition says.
fn said(status: &CopyStatus) -> Option<String> {
    let condition = status.conditions.iter().find(|condition| condition.type_ == "Complete").map(|condition| condition.message.clone());
    status.failure.as_ref().map(failure).or(condition).filter(|said| !said.is_empty())
}

/// All snapshots and restores, or those of one virtual cluster.
pub(super) async fn listed(session: &Session<'_>, cluster: Option<&str>, as_json: bool) -> Result<Outcome> {
    let client = session.client().await?;
    let (snapshots, restores) = (list(&Api::<Snapshot>::all(client.clone())).await?, list(&Api::<Restore>::all(client)).await?);
    let wanted = |name: &str| cluster.is_none_or(|cluster| cluster == name);
    let snapshots: Vec<_> = snapshots.into_iter().filter(|object| wanted(&object.spec.virtual_cluster)).collect();
    let restores: Vec<_> = restores.into_iter().filter(|object| wanted(&object.spec.virtual_cluster)).collect();
    if as_json {
        return printed(&snapshots.iter().map(summary).chain(restores.iter().map(summary)).collect::<Vec<_>>()).map(Outcome::from);
    }
    let mut tasks: Vec<_> = snapshots.iter().map(Task::from).chain(restores.iter().map(Task::from)).collect();
    tasks.sort_by_key(|task| (task.created.clone(), task.name.clone()));
    Ok(shown(&tasks, Timestamp::now()).into())
}

fn shown(tasks: &[Task], now: Timestamp) -> String {
    let rows = tasks.iter().map(|task| {
        let size = task.status.size.as_ref().map_or("-".into(), |size| size.0.clone());
        let (what, phase, age) = (format!("{:?}", task.copying).to_lowercase(), word(task.status.phase), age(task.created.as_ref(), now));
        [task.name.clone(), what, task.cluster.clone(), phase, task.place.to_string(), size, age, said(&task.status).unwrap_or_default()]
    });
    table(["NAME", "WHAT", "CLUSTER", "PHASE", "PLACE", "BYTES", "AGE", "DETAIL"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(status: &str) -> Task {
        let metadata = "{name: one, creationTimestamp: '2026-01-01T00:00:00Z'}";
        let spec = "{virtualCluster: biz, to: {file: biz.tar.gz}}";
        let text = format!("{{apiVersion: chasi-bod.io/v1alpha1, kind: Snapshot, metadata: {metadata}, spec: {spec}, status: {status}}}");
        Task::from(&serde_saphyr::from_str::<Snapshot>(&text).unwrap())
    }

    #[test]
    fn the_list_says_what_is_copied_where_and_how_far_it_is() {
        let failure = "{reason: Failed, message: 'no room', since: '2026-01-01T00:00:00Z', attempts: 1, nextRetry: '2026-01-01T00:00:05Z'}";
        let tasks = [snapshot("{phase: DONE, size: '1234'}"), snapshot(&format!("{{phase: ERROR, failure: {failure}}}"))];
        assert_eq!(
            shown(&tasks, "2026-01-01T00:00:50Z".parse().unwrap()),
            "NAME  WHAT      CLUSTER  PHASE  PLACE            BYTES  AGE  DETAIL\n\
             one   snapshot  biz      DONE   file:biz.tar.gz  1234   50s\n\
             one   snapshot  biz      ERROR  file:biz.tar.gz  -      50s  Failed: no room\n"
        );
    }

    #[test]
    fn waiting_ends_with_what_no_further_try_can_change() {
        let failure =
            |retry: &str| format!("{{phase: ERROR, failure: {{reason: Failed, message: no, since: '2026-01-01T00:00:00Z', attempts: 1{retry}}}}}");
        let of = |status: &str| seen(&snapshot(status).status);
        assert_eq!(of("{phase: DONE}"), (Seen::Done, "DONE".into()));
        assert_eq!(of(&failure("")), (Seen::Refused, "ERROR: Failed: no".into()));
        assert_eq!(of(&failure(", nextRetry: '2026-01-01T00:00:05Z'")).0, Seen::Going);
    }
}
