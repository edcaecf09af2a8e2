//! `chasi-bod vcluster`: the life of virtual clusters. The objects say what is wanted, the controller does it, and these verbs tell how far it is.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Resource as _, ResourceExt as _};
use layers::platform::settings::merge;
use layers::platform::sleep::AWAKE_SINCE;
use layers::platform::snapshot::Place;
use layers::platform::virtual_cluster::DeletionPolicy;
use layers::platform::{Phase, VirtualCluster};
use layers::{Context as _, Error, Fault, Result};
use serde_json::{Value, json};

use super::connect::Connect;
use super::copy::{self, Copy};
use super::objects::{change, create, delete, get, list, printed, summary};
use super::table::{age, failure, table, word};
use super::wait::{Target, follow};
use super::{Outcome, Session};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List virtual clusters: phase, version, template, age, and what failed.
    #[command(after_help = "Examples:\n  chasi-bod vcluster list\n  chasi-bod vcluster list --json")]
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a virtual cluster.
    #[command(
        // `--version` is Kubernetes' here.
        disable_version_flag = true,
        after_help = "Examples:\n  chasi-bod vcluster create biz-a --wait                       # exit code 0 only when it is RUNNING\n  \
        chasi-bod vcluster create biz-a --store etcd --replicas 3 --set 'quota.requests\\.cpu=2'\n  \
        chasi-bod vcluster create biz-a --file settings.yaml --dry-run"
    )]
    Create(Create),
    /// Print the kubeconfig of a virtual cluster, a secret, or run a command with it.
    #[command(
        after_help = "Examples:\n  chasi-bod vcluster connect biz-a > biz-a.kubeconfig\n  chasi-bod vcluster connect biz-a -- kubectl get pods -A    # its exit code is passed on"
    )]
    Connect(Connect),
    /// Stop control plane and workloads of a virtual cluster; its data is kept.
    #[command(after_help = "Example:\n  chasi-bod vcluster suspend biz-a --wait")]
    Suspend(Target),
    /// Start a suspended virtual cluster again.
    #[command(after_help = "Example:\n  chasi-bod vcluster resume biz-a --wait")]
    Resume(Target),
    /// Change the number of a control plane's replicas.
    #[command(after_help = "Example:\n  chasi-bod vcluster scale biz-a --replicas 3 --wait")]
    Scale {
        #[command(flatten)]
        target: Target,
        /// Replicas; more than one needs the store etcd.
        #[arg(long, value_name = "N")]
        replicas: i32,
    },
    /// Copy all that a virtual cluster's API holds, while it runs.
    #[command(after_help = "Examples:\n  chasi-bod vcluster snapshot biz-a --to file:biz-a.tar.gz --wait\n  \
        chasi-bod vcluster snapshot biz-a --to claim:backups/2026/biz-a.tar.gz")]
    Snapshot {
        #[command(flatten)]
        copy: Copy,
        /// `file:NAME` below /var/lib/chasi-bod/snapshots of the control plane that leads, `claim:NAME/PATH` on a volume claim in the virtual cluster's host
        /// namespace, or `oci:REGISTRY/REPOSITORY:TAG`.
        #[arg(long, value_name = "PLACE")]
        to: Place,
    },
    /// Replace all that a virtual cluster's API holds by a snapshot, its own or another one's; it is stopped meanwhile.
    #[command(after_help = "Example:\n  chasi-bod vcluster create biz-b --wait\n  chasi-bod vcluster restore biz-b --from file:biz-a.tar.gz --wait")]
    Restore {
        #[command(flatten)]
        copy: Copy,
        /// `file:NAME`, `claim:NAME/PATH` or `oci:REFERENCE`, as for a snapshot.
        #[arg(long, value_name = "PLACE")]
        from: Place,
    },
    /// List snapshots and restores.
    #[command(after_help = "Examples:\n  chasi-bod vcluster snapshots\n  chasi-bod vcluster snapshots biz-a --json")]
    Snapshots {
        /// Only those of one virtual cluster.
        name: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Delete a virtual cluster and, unless its `deletionPolicy` is `Retain`, its data.
    #[command(after_help = "Examples:\n  chasi-bod vcluster delete biz-a\n  chasi-bod vcluster delete biz-a --yes --wait")]
    Delete {
        #[command(flatten)]
        target: Target,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    target: Target,
    /// Template that the settings go over; `general` when absent.
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Kubernetes version, one that the image bundles, such as `v1.36.3`.
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Replicas of the control plane; more than one needs the store etcd.
    #[arg(long, value_name = "N")]
    replicas: Option<i32>,
    /// Where its objects are kept; it cannot change later.
    #[arg(long, value_parser = ["sqlite", "etcd"])]
    store: Option<String>,
    /// Settings in YAML: the keys of a VirtualCluster's `spec`. The other options go over them.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// One setting over all others, its value in YAML; `\.` is a dot within a key. Repeat it for more.
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Print the object in YAML and make nothing.
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(verb: &Verb, session: &Session<'_>) -> Result<Outcome> {
    if let Verb::Create(wanted @ Create { dry_run: true, .. }) = verb {
        return serde_saphyr::to_string(&wanted.object()?).map(Outcome::from).fault(Fault::Internal, || "printing the object".into());
    }
    let api = Api::<VirtualCluster>::all(session.client().await?);
    let (target, goals, becomes): (_, &[Phase], _) = match verb {
        Verb::List { json: true } => return printed(&list(&api).await?.iter().map(summary).collect::<Vec<_>>()).map(Outcome::from),
        Verb::List { json: false } => return Ok(listed(&list(&api).await?, Timestamp::now()).into()),
        Verb::Snapshots { name, json } => return copy::listed(session, name.as_deref(), *json).await,
        Verb::Snapshot { copy, to } => return copy.snapshot(to, session).await,
        Verb::Restore { copy, from } => return copy.restore(from, session).await,
        Verb::Connect(connect) => return connect.run(session, &get(&api, &connect.name).await?, api.into_client()).await,
        Verb::Create(wanted) => {
            create(&api, &wanted.target.name, &wanted.object()?).await?;
            (&wanted.target, &[Phase::Running], "made")
        }
        Verb::Suspend(target) => {
            change(&api, &target.name, &json!({"spec": {"suspended": true}})).await?;
            (target, &[Phase::Suspended], "suspended")
        }
        Verb::Resume(target) => {
            // Awake also when its schedule has it asleep now.
            let metadata = json!({"annotations": {AWAKE_SINCE: Timestamp::now().to_string()}});
            change(&api, &target.name, &json!({"metadata": metadata, "spec": {"suspended": false}})).await?;
            (target, &[Phase::Running], "resumed")
        }
        Verb::Scale { target, replicas } => {
            change(&api, &target.name, &json!({"spec": {"replicas": replicas}})).await?;
            // One that is suspended gets its replicas when it is resumed.
            (target, &[Phase::Running, Phase::Suspended], "scaled")
        }
        Verb::Delete { target, yes } => {
            let object = get(&api, &target.name).await?;
            if !yes {
                confirm(&object)?;
            }
            delete(&api, &target.name).await?;
            (target, &[], "deleted")
        }
    };
    if target.patience.wait {
        follow(&api, target, goals, session.say).await?;
    } else {
        (session.say)(&format!("virtual cluster {} is being {becomes}; `chasi-bod vcluster list` shows how far it is", target.name));
    }
    Ok(Outcome::default())
}

fn listed(list: &[VirtualCluster], now: Timestamp) -> String {
    let rows = list.iter().map(|object| {
        let status = object.status.clone().unwrap_or_default();
        let (version, age) = (status.version.unwrap_or("-".into()), age(object.creation_timestamp().as_ref(), now));
        let failed = status.failure.as_ref().map(failure).unwrap_or_default();
        [object.name_any(), word(status.phase), version, object.spec.template.clone(), age, failed]
    });
    table(["NAME", "PHASE", "VERSION", "TEMPLATE", "AGE", "FAILURE"], rows)
}

/// Asks whether it shall really go.
fn confirm(object: &VirtualCluster) -> Result<()> {
    let deleting = format!("deleting virtual cluster {}", object.name_any());
    if !std::io::stdin().is_terminal() {
        return Err(Error::input(deleting + ": standard input is no terminal to ask at").with_hint("--yes deletes without asking"));
    }
    let data = if object.spec.deletion_policy == DeletionPolicy::Delete { "with" } else { "but not" };
    eprint!("{deleting} {data} its data; go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context(|| "reading the answer".into())?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Error::input(deleting + ": the answer was not yes")) }
}

impl Create {
    /// The object as the API gets it: single settings over options over the file.
    fn object(&self) -> Result<Value> {
        let mut spec = json!({});
        if let Some(file) = &self.file {
            let reading = || format!("reading {}", file.display());
            let text = std::fs::read_to_string(file).fault(Fault::Input, reading)?;
            spec = serde_saphyr::from_str(&text).fault(Fault::Input, reading)?;
        }
        let options = json!({"template": self.template, "version": self.version, "replicas": self.replicas, "store": self.store});
        let given = options.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        given.for_each(|(key, value)| merge(&mut spec, json!({key: value})));
        for setting in &self.set {
            merge(&mut spec, single(setting)?);
        }
        let (version, kind) = (VirtualCluster::api_version(&()), VirtualCluster::kind(&()));
        Ok(json!({"apiVersion": version, "kind": kind, "metadata": {"name": self.target.name}, "spec": spec}))
    }
}

/// A document of one setting, `key.path=value`.
fn single(text: &str) -> Result<Value> {
    let (path, value) = text.split_once('=').ok_or_else(|| Error::input(format!("--set {text}: there is no `=`")))?;
    let value: Value = serde_saphyr::from_str(value).fault(Fault::Input, || format!("--set {path}"))?;
    // A character that no key has stands for the dots that divide nothing.
    let keys = path.replace("\\.", "\0");
    Ok(keys.rsplit('.').fold(value, |value, key| json!({key.replace('\0', "."): value})))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cluster::runtime;
    use crate::host::Host;
    use crate::verbs::Place;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn create(words: &[&str]) -> Create {
        Line::try_parse_from([&["create", "biz"], words].concat()).unwrap_or_else(|e| panic!("{e}")).create
    }

    #[test]
    fn the_list_has_what_runs_and_what_failed() {
        let object = |name: &str, status: &str| -> VirtualCluster {
            let metadata = format!("{{name: {name}, creationTimestamp: '2026-01-01T00:00:00Z'}}");
            let text = format!("{{apiVersion: chasi-bod.io/v1alpha1, kind: VirtualCluster, metadata: {metadata}, spec: {{}}{status}}}");
            serde_saphyr::from_str(&text).unwrap()
        };
        let list = [
            object("biz-a", ", status: {phase: RUNNING, version: v1.36.3}"),
            object("b", ", status: {phase: ERROR, failure: {reason: Refused, message: 'spec.x: no', since: '2026-01-01T00:00:00Z', attempts: 1}}"),
            object("c", ""),
        ];
        let expected = "NAME   PHASE    VERSION  TEMPLATE  AGE  FAILURE\nbiz-a  RUNNING  v1.36.3  general   50s\n\
            b      ERROR    -        general   50s  Refused: spec.x: no\nc      PENDING  -        general   50s\n";
        assert_eq!(listed(&list, "2026-01-01T00:00:50Z".parse().unwrap()), expected);
    }

    #[test]
    fn settings_of_the_file_go_below_options_and_options_below_single_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("settings.yaml");
        std::fs::write(&file, "template: edge\nreplicas: 1\nquota: {memory: 1Gi}\n").unwrap();
        let words = ["--file", file.to_str().unwrap(), "--replicas", "3", "--store", "etcd", "--set", "quota.memory=4Gi", "--set"];
        let made =
            create(&[&words[..], &["quota.requests\\.cpu=2", "--set", "featureGates.X=true", "--set", "admissionPlugins.enable=[A, B]"]].concat());
        let spec = json!({
            "template": "edge", "replicas": 3, "quota": {"memory": "4Gi", "requests.cpu": 2}, "store": "etcd", "featureGates": {"X": true},
            "admissionPlugins": {"enable": ["A", "B"]},
        });
        let expected = json!({"apiVersion": "chasi-bod.io/v1alpha1", "kind": "VirtualCluster", "metadata": {"name": "biz"}, "spec": spec});
        assert_eq!(made.object().unwrap(), expected);
    }

    #[test]
    fn a_dry_run_needs_no_cluster_and_prints_what_the_api_would_get() {
        let host = Host::new("/nowhere");
        let session = Session { place: Place::Node(&host), kubeconfig: None, say: &|_| {} };
        let verb = Verb::Create(create(&["--template", "edge", "--set", "network.domain=a.test", "--dry-run"]));
        let outcome = runtime().unwrap().block_on(run(&verb, &session)).unwrap();
        let made: VirtualCluster = serde_saphyr::from_str(&outcome.text).unwrap();
        assert_eq!((made.name_any().as_str(), made.spec.template.as_str(), outcome.code), ("biz", "edge", 0));
        assert_eq!(made.spec.settings.network.unwrap().domain.as_deref(), Some("a.test"));
    }

    #[test]
    fn bad_settings_and_files_are_named() {
        for (setting, said) in [("replicas", "there is no `=`"), ("a=[1", "--set a: ")] {
            let error = create(&["--set", setting]).object().unwrap_err();
            assert!(error.to_string().contains(said) && error.fault() == Fault::Input, "{error}");
        }
        let error = create(&["--file", "/nowhere.yaml"]).object().unwrap_err();
        assert!(error.to_string().starts_with("reading /nowhere.yaml: ") && error.fault() == Fault::Input, "{error}");
    }
}
