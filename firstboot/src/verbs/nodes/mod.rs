//! `chasi-bod nodes`: which nodes there are and how many control planes may be lost; nodes taken out of use, emptied and removed.

mod drain;
mod list;
mod quorum;
mod remove;

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use layers::Result;
use serde_json::json;

use super::objects::{change, get, list, printed};
use super::wait::duration;
use super::{Outcome, Place, Session};
use crate::cluster::api::{at_once, not_ready};
use crate::cluster::etcd::{self, Standing};
use crate::host::Host;
use drain::Drain;
pub use quorum::Quorum;

/// How long an API is waited for that hardly can answer.
const SHORT: Duration = Duration::from_secs(5);

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List nodes: role, state, part in etcd, address, version, age; and how many control planes may be lost.
    #[command(after_help = "Examples:\n  chasi-bod nodes list    # on a control plane with each one's part in etcd\n  chasi-bod nodes list --json")]
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Keep new pods from a node; those that run there stay.
    #[command(after_help = "Example:\n  chasi-bod nodes cordon n3")]
    Cordon {
        /// Name of the node.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Take a node into use again.
    #[command(after_help = "Example:\n  chasi-bod nodes uncordon n3")]
    Uncordon {
        /// Name of the node.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Cordon a node and evict its pods, but for static ones and those of DaemonSets; disruption budgets are respected.
    #[command(after_help = "Examples:\n  chasi-bod nodes drain n3 --dry-run    # what becomes of each pod\n  chasi-bod nodes drain n3 --timeout 15m")]
    Drain(Emptying),
    /// Remove a node: drained when it is Ready, taken out of etcd, and deleted; refused where etcd would lose its majority.
    #[command(after_help = "Examples:\n  chasi-bod nodes remove n3 --dry-run\n  chasi-bod nodes remove n3\n\n\
        A control plane is removed on another one. What is gone already is no mistake.")]
    Remove(Remove),
}

/// A node that loses its pods.
#[derive(Debug, Args)]
pub struct Emptying {
    /// Name of the node.
    // A member of etcd that has not started has an empty one.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// How long pods are waited for, such as `90s` or `1h`; a number alone is seconds.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time)]
    timeout: Duration,
    /// Print what would be done and change nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Remove {
    #[command(flatten)]
    node: Emptying,
    /// Go on when the node cannot be drained; etcd's majority is guarded all the same.
    #[arg(long)]
    force: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).or_else(|_| duration(text))
}

/// Whether pods may come to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Stops,
    Begins,
}

pub async fn run(verb: &Verb, session: &Session<'_>) -> Result<Outcome> {
    let nodes = || async { Ok::<_, layers::Error>(Api::<Node>::all(session.client().await?)) };
    match verb {
        Verb::List { json } => listed(*json, session).await.map(Outcome::from),
        Verb::Cordon { name } => cordon(&nodes().await?, name, Use::Stops, session.say).await.map(|()| Outcome::default()),
        Verb::Uncordon { name } => cordon(&nodes().await?, name, Use::Begins, session.say).await.map(|()| Outcome::default()),
        Verb::Drain(emptying) => emptying.run(session, &get(&nodes().await?, &emptying.name).await?).await,
        Verb::Remove(remove) => remove.run(session).await,
    }
}

async fn listed(json: bool, session: &Session<'_>) -> Result<String> {
    let standing = match session.plane() {
        None => None,
        // Nodes can still be told of.
        Some(host) => etcd::standing(host).await.map_err(|error| (session.say)(&error.to_string())).ok(),
    };
    let nodes = session.nodes(standing.as_ref()).await?;
    if json { printed(&list::summary(&nodes, standing.as_ref())) } else { Ok(list::listed(&nodes, standing.as_ref(), Timestamp::now())) }
}

/// Keeps new pods from a node, or lets them come again.
async fn cordon(api: &Api<Node>, name: &str, wanted: Use, say: &dyn Fn(&str)) -> Result<()> {
    let (is_so, becomes) = (list::is_cordoned(&get(api, name).await?), if wanted == Use::Stops { "cordoned" } else { "in use" });
    if is_so == (wanted == Use::Stops) {
        say(&format!("node {name} is {becomes} already"));
        return Ok(());
    }
    // As kubectl does it: what is not so is not said.
    let unschedulable = (wanted == Use::Stops).then_some(true);
    change(api, name, &json!({"spec": {"unschedulable": unschedulable}})).await?;
    say(&format!("node {name} is {becomes}"));
    Ok(())
}

impl Emptying {
    async fn run(&self, session: &Session<'_>, node: &Node) -> Result<Outcome> {
        let drain = Drain::new(&self.name, session).await?;
        if let Some(why) = not_ready(node) {
            (session.say)(&format!("node {} is NotReady ({why}): nobody there ends its pods", self.name));
        }
        if self.dry_run {
            return drain.planned().await.map(Outcome::from);
        }
        drain.run(self.timeout).await.map(|()| Outcome::default())
    }
}

impl Session<'_> {
    /// This machine, when it is a control plane of the cluster that is meant.
    fn plane(&self) -> Option<&Host> {
        match (self.place, self.kubeconfig) {
            (Place::Node(host), None) if etcd::is_here(host) => Some(host),
            _ => None,
        }
    }

    /// All nodes. The API, which needs etcd's majority, may not answer without it: then that is why.
    async fn nodes(&self, standing: Option<&Standing>) -> Result<Vec<Node>> {
        let lost = standing.and_then(Quorum::trouble);
        let client = if lost.is_some() { at_once(self.credentials()?, SHORT).await? } else { self.client().await? };
        list(&Api::all(client)).await.map_err(|error| lost.into_iter().fold(error, layers::Error::with_hint))
    }

    /// What etcd is, where it can be asked.
    async fn standing(&self) -> Result<Option<Standing>> {
        match self.plane() {
            Some(host) => etcd::standing(host).await.map(Some),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_a_unit_is_seconds() {
        assert_eq!(["300", "5m"].map(time), [Ok(Duration::from_secs(300)), Ok(Duration::from_secs(300))]);
        assert!(time("-1").is_err() && time("soon").is_err());
    }

    #[test]
    fn etcd_is_asked_only_on_a_control_plane_of_the_cluster_that_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let (host, other) = (Host::new(dir.path()), std::path::PathBuf::from("/root/other.conf"));
        let session = |place, kubeconfig| Session { place, kubeconfig, say: &|_| {} };
        assert!(session(Place::Node(&host), None).plane().is_none(), "a worker");
        std::fs::create_dir_all(dir.path().join("etc/kubernetes/pki/etcd")).unwrap();
        std::fs::write(dir.path().join("etc/kubernetes/pki/etcd/healthcheck-client.crt"), "").unwrap();
        assert!(session(Place::Node(&host), None).plane().is_some());
        assert!(session(Place::Node(&host), Some(other.as_path())).plane().is_none(), "another cluster");
        assert!(session(Place::Workstation, None).plane().is_none());
    }
}
