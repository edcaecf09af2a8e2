//! The releases that the image brings, installed with helm once the cluster is up, so that `helm list` tells the truth.
//!
//! What was installed is noted in the cluster by the digest of chart and values: a release whose digest is noted is left alone, whatever people
//! made of it since. A run that was killed is made again; one release that fails does not keep the others from coming.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use layers::seed::{Release, SEED, Seed};
use layers::{Context, Error, Fault, Result};

use super::{Reporter, api, helm, kustomize, registry};
use crate::exec;
use crate::host::{Host, RUN, STATE};
use crate::status::State;

/// Name of the step.
pub const STEP: &str = "seed";

/// Waits before each further try of one release.
const PAUSES: [u64; 4] = [5, 15, 45, 120];
/// How long helm waits for what a release starts.
const PATIENCE: &str = "10m";
/// The ConfigMap in kube-system that notes what was installed.
const RECORD: &str = "chasi-bod-seed";
/// Whether the image brings any release.
pub fn is_wanted(host: &Host) -> bool {
    super::exists(host, SEED)
}

/// What the image brings; nothing when it has no list.
pub fn read(host: &Host) -> Result<Seed> {
    let Some(text) = host.read(SEED)? else { return Ok(Seed::default()) };
    serde_json::from_str(&text).fault(Fault::Internal, || format!("reading {SEED}"))
}

/// Starts the thread that installs the releases as soon as the cluster is said to be up.
pub(super) fn start(reporter: Reporter) -> Sender<()> {
    let (up, waiting) = channel();
    std::thread::spawn(move || {
        let host = Host::new("/");
        if waiting.recv().is_ok() && is_wanted(&host) {
            follow(&host, &reporter);
        }
    });
    up
}

fn follow(host: &Host, reporter: &Reporter) {
    if !super::exists(host, api::ADMIN) {
        return reporter.say(STEP, State::Unchanged, "control planes install it", None);
    }
    match install(host, reporter) {
        Ok((state, detail)) => reporter.say(STEP, state, detail, None),
        Err(error) => reporter.say(STEP, State::Failed, error.to_string(), error.hint()),
    }
}

/// Installs what is not noted yet; the error names every release that could not be installed.
fn install(host: &Host, reporter: &Reporter) -> Result<(State, String)> {
    let seed = read(host)?;
    let cluster = Cluster::new(host)?;
    let (mut noted, mut failed, mut made) = (patiently(|| cluster.record())?, Vec::new(), 0);
    let releases: Vec<_> = seed.releases.iter().filter(|release| release.install).collect();
    let all = releases.len();
    for (n, release) in releases.iter().enumerate() {
        let spec = release.spec().to_string();
        if noted.get(&release.name) == Some(&spec) {
            continue;
        }
        reporter.say(STEP, State::Running, format!("installing {} ({} of {all})", release.name, n + 1), None);
        let done = patiently(|| one(host, &cluster, release).inspect_err(|error| retrying(reporter, release, error)));
        match done {
            Ok(()) => {
                made += 1;
                noted.insert(release.name.clone(), spec);
                patiently(|| cluster.note(&noted))?;
            }
            Err(error) => failed.push(format!("{}: {error}", release.name)),
        }
    }
    if !failed.is_empty() {
        let error = Error::environment(format!("installing {}", failed.join("; ")));
        return Err(error.with_hint("see `helm list -A` and `journalctl -u chasi-bod-agent.service`; the next start of the agent tries again"));
    }
    let names: Vec<_> = releases.iter().map(|release| release.name.as_str()).collect();
    Ok((if made > 0 { State::Done } else { State::Unchanged }, names.join(", ")))
}

fn retrying(reporter: &Reporter, release: &Release, error: &Error) {
    let why = error.to_string().lines().last().unwrap_or_default().trim().to_string();
    reporter.say(STEP, State::Waiting, format!("for another try of {}: {why}", release.name), Some("see `kubectl get pods -A`"));
}

/// Does something again after longer and longer pauses, until it works or the last try has failed.
fn patiently<T>(work: impl FnMut() -> Result<T>) -> Result<T> {
    with_pauses(&PAUSES.map(Duration::from_secs), work)
}

fn with_pauses<T>(pauses: &[Duration], mut work: impl FnMut() -> Result<T>) -> Result<T> {
    for pause in pauses {
        match work() {
            Ok(done) => return Ok(done),
            Err(_) => std::thread::sleep(*pause),
        }
    }
    work()
}

/// Installs or upgrades one release. The mark tells a later run that this one may have been killed at it.
fn one(host: &Host, cluster: &Cluster, release: &Release) -> Result<()> {
    let mark = format!("{STATE}/installing");
    if host.read(&mark)?.is_some_and(|name| name == release.name) {
        cluster.runtime.block_on(helm::forget_pending(&cluster.client, &release.namespace, &release.name))?;
    }
    cluster.runtime.block_on(registry::vouch(host, &cluster.client, release))?;
    let values = format!("{RUN}/values.json");
    let text = serde_json::to_string(&release.values).fault(Fault::Internal, || format!("writing /{values}"))?;
    host.write(&values, text.as_bytes(), 0o600)?;
    host.write(&mark, release.name.as_bytes(), 0o600)?;
    host.sync();
    let target = helm::Target::on_host(&release.namespace, &release.name);
    let install = |chart: &str| exec::follow(&mut upgrade(host, &target, chart, &values), |_| {});
    let done = kustomize::with_chart(host, &target, &helm::bundled(&release.file), &release.form, install);
    // helm has ended by itself: what it left is no pending state, unless it was killed alone.
    if done.is_ok() {
        host.remove(&mark)?;
    }
    done
}

/// `helm upgrade --install` that waits for what the release starts.
fn upgrade(host: &Host, target: &helm::Target<'_>, chart: &str, values: &str) -> Command {
    let mut command = target.upgrade(host, chart);
    command.args(["--create-namespace", "--values"]).arg(host.path(values)).args(["--wait", "--timeout", PATIENCE]);
    command
}

/// The API, asked from a thread of its own.
struct Cluster {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Cluster {
    fn new(host: &Host) -> Result<Self> {
        let runtime = super::runtime()?;
        let client = runtime.block_on(api::client(host, api::PATIENCE))?;
        Ok(Self { runtime, client })
    }

    /// Digests of what was installed, by release.
    fn record(&self) -> Result<BTreeMap<String, String>> {
        let found = self.runtime.block_on(Api::<ConfigMap>::namespaced(self.client.clone(), "kube-system").get_opt(RECORD));
        let object = found.fault(Fault::Environment, || format!("reading ConfigMap {RECORD}"))?;
        Ok(object.and_then(|object| object.data).unwrap_or_default())
    }

    fn note(&self, data: &BTreeMap<String, String>) -> Result<()> {
        let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": RECORD}, "data": data});
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), "kube-system");
        let written = self.runtime.block_on(maps.patch(RECORD, &PatchParams::apply("chasi-bod").force(), &Patch::Apply(object)));
        written.map(drop).fault(Fault::Environment, || format!("writing ConfigMap {RECORD}"))
    }
}

#[cfg(test)]
mod tests {
    use layers::chart::bundle::Form;
    use layers::units::{Bytes, Digest};

    use super::*;

    fn release() -> Release {
        Release {
            name: "web".into(),
            namespace: "shop".into(),
            chart: "web".into(),
            version: "1.0.0".into(),
            file: "web-1.0.0.tgz".into(),
            sha256: Digest::of(b"chart"),
            size: Bytes(1),
            form: Form::Chart,
            values: BTreeMap::from([("replicas".to_string(), 2.into())]),
            install: true,
            wanted_by: "profile".into(),
        }
    }

    #[test]
    fn helm_waits_bounded_and_touches_no_home() {
        let dir = tempfile::tempdir().unwrap();
        let target = helm::Target::on_host("shop", "web");
        let command = upgrade(&Host::new(dir.path()), &target, &helm::bundled(&release().file), "run/values.json");
        let line = command.get_args().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let root = dir.path().display();
        let expected = format!(
            "--namespace=shop --history-max 5 upgrade --install --server-side=true --disable-openapi-validation web {root}/usr/lib/chasi-bod/charts/web-1.0.0.tgz --create-namespace \
             --values {root}/run/values.json --wait --timeout 10m"
        );
        assert!(line.ends_with(&expected), "{line}");
        let home = dir.path().join("run/chasi-bod/helm");
        assert!(command.get_envs().all(|(_, value)| value.is_some_and(|folder| std::path::Path::new(folder).starts_with(&home))));
    }

    #[test]
    fn f8_what_fails_is_tried_a_bounded_number_of_times_and_says_why() {
        let (mut tries, pauses) = (0, PAUSES.map(|_| Duration::ZERO));
        let failed: Result<()> = with_pauses(&pauses, || {
            tries += 1;
            Err(Error::environment(format!("try {tries}")))
        });
        assert_eq!((tries, failed.unwrap_err().to_string().as_str()), (5, "try 5"));
        let mut left = 2;
        let done = with_pauses(&pauses, || {
            left -= 1;
            if left > 0 { Err(Error::environment("not yet")) } else { Ok("done") }
        });
        assert_eq!((left, done.unwrap()), (0, "done"));
    }

    #[test]
    fn a_changed_value_or_chart_is_another_specification() {
        let (a, mut b, mut c) = (release(), release(), release());
        b.values.insert("replicas".into(), 3.into());
        c.sha256 = Digest::of(b"other");
        assert_eq!(a.spec(), release().spec());
        assert!(a.spec() != b.spec() && a.spec() != c.spec());
    }
}
