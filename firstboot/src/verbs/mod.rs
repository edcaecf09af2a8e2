//! Day 2: what people do with a cluster that runs. Both commands have these verbs: the node's with the node's credentials, the workstation's with those
//! of a kubeconfig.

mod app;
mod component;
mod connect;
mod copy;
mod forward;
mod nodes;
mod objects;
mod table;
mod token;
mod vcluster;
mod wait;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use kube::Client;
use kube::config::Kubeconfig;
use layers::{Context as _, Error, Result};

pub(crate) use nodes::Quorum;
pub use table::table;

use crate::cluster::{self, api};
use crate::host::Host;

/// The verbs, by what they are about.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make, use, suspend, scale and delete virtual clusters.
    #[command(
        after_help = "Examples:\n  chasi-bod vcluster create biz-a --wait\n  chasi-bod vcluster connect biz-a -- kubectl get nodes\n  chasi-bod vcluster list"
    )]
    Vcluster(Of<vcluster::Verb>),
    /// Show the applications that the cluster keeps and what they wait for; try failed ones again.
    #[command(after_help = "Examples:\n  chasi-bod component list\n  chasi-bod component why web")]
    Component(Of<component::Verb>),
    /// Bring an application of your own: look what becomes of its chart in a virtual cluster, push its images and keep it there.
    #[command(
        after_help = "Examples:\n  chasi-bod app check ./chart -f values.yaml\n  chasi-bod app deploy shop --vcluster-name=biz --chart-path=./chart --images ./images.tar --wait"
    )]
    App(Of<app::Verb>),
    /// Show nodes and what etcd bears, take them out of use and back, empty and remove them.
    #[command(after_help = "Examples:\n  chasi-bod nodes list\n  chasi-bod nodes drain n3\n  chasi-bod nodes remove n3 --dry-run")]
    Nodes(Of<nodes::Verb>),
}

/// A verb, and the cluster that is meant.
#[derive(Debug, Args)]
pub struct Of<V: Subcommand> {
    /// What is done.
    #[command(subcommand)]
    pub verb: V,
    /// Kubeconfig of the cluster; when absent a node's own, elsewhere that of $KUBECONFIG or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Where a verb is called.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// On a node: it has credentials of its own and reaches the addresses of Services.
    Node(&'a Host),
    /// On any other machine.
    Workstation,
}

/// What a verb came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// For stdout.
    pub text: String,
    /// Exit code.
    pub code: u8,
}

impl From<String> for Outcome {
    fn from(text: String) -> Self {
        Self { text, code: 0 }
    }
}

/// What every verb is done with.
struct Session<'a> {
    place: Place<'a>,
    kubeconfig: Option<&'a Path>,
    say: &'a dyn Fn(&str),
}

/// Does what a verb asks for; `say` gets what people are told meanwhile, a line at a time.
pub fn run(command: &Command, place: Place<'_>, say: &dyn Fn(&str)) -> Result<Outcome> {
    cluster::runtime()?.block_on(async {
        match command {
            Command::Vcluster(Of { verb, kubeconfig }) => vcluster::run(verb, &Session { place, kubeconfig: kubeconfig.as_deref(), say }).await,
            Command::Component(Of { verb, kubeconfig }) => component::run(verb, &Session { place, kubeconfig: kubeconfig.as_deref(), say }).await,
            Command::App(Of { verb, kubeconfig }) => app::run(verb, &Session { place, kubeconfig: kubeconfig.as_deref(), say }).await,
            Command::Nodes(Of { verb, kubeconfig }) => nodes::run(verb, &Session { place, kubeconfig: kubeconfig.as_deref(), say }).await,
        }
    })
}

impl Session<'_> {
    async fn client(&self) -> Result<Client> {
        self.patient(api::PATIENCE).await
    }

    /// A client that bears a silence of this length.
    async fn patient(&self, patience: Duration) -> Result<Client> {
        api::connect(self.credentials()?, patience).await.context(|| "using the kubeconfig".into())
    }

    fn credentials(&self) -> Result<Kubeconfig> {
        match (self.kubeconfig, self.place) {
            (Some(file), _) => Kubeconfig::read_from(file).map_err(|e| Error::input(e.to_string())),
            (None, Place::Node(host)) => Kubeconfig::from_yaml(&cluster::kubeconfig(host, None)?).map_err(|e| Error::internal(e.to_string())),
            (None, Place::Workstation) => Kubeconfig::read().map_err(|e| {
                Error::environment(format!("looking for a kubeconfig (--kubeconfig, $KUBECONFIG, ~/.kube/config): {e}"))
                    .with_hint("`ssh root@NODE chasi-bod kubeconfig --server NODE >FILE` gets a control plane's")
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_credentials_the_place_is_named_that_was_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new(folder.path());
        let list = |kubeconfig: Option<&Path>| {
            let command = Command::Vcluster(Of { verb: vcluster::Verb::List { json: false }, kubeconfig: kubeconfig.map(Into::into) });
            run(&command, Place::Node(&host), &|_| {}).unwrap_err().to_string()
        };
        assert!(list(None).contains("this node is no control plane"), "{}", list(None));
        assert!(list(Some(Path::new("/nowhere/config"))).contains("/nowhere/config"));
    }
}
