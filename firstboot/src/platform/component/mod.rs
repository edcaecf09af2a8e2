//! Components: charts, manifests and kustomizations that helm installs on the host or in virtual clusters, each after those that it depends on.

mod wanted;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::config::Kubeconfig;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use layers::graph::circles;
use layers::platform::component::{ComponentPhase as Phase, Drift, RETRY};
use layers::platform::{Component, ComponentStatus, VirtualCluster};
use layers::seed::Release;
use layers::units::Digest;
use layers::{Context as _, Error, Fault, Result};
use wanted::Wanted;

use super::host::Place;
use super::report::{self, Voice};
use super::{NAMESPACE, blocking, finalize, fresh, unfinalize};
use crate::cluster::api::{ADMIN, PATIENCE, WATCH, connect};
use crate::cluster::{helm, kustomize};
use crate::host::{Host, RUN};
use crate::images::config::registries;

/// How many are worked at side by side.
const AT_ONCE: u16 = 8;
/// How often a removal that waits is looked at.
const SOON: Duration = Duration::from_secs(3);
/// How often the objects of a release are compared with what it made.
const COMPARE: Duration = Duration::from_secs(900);
/// How many drifted objects are named.
const NAMED: usize = 5;

/// Where helm finds the credentials of a virtual cluster.
pub fn credentials_file(cluster: &str) -> String {
    format!("{RUN}/helm/vcluster-{cluster}.conf")
}

/// What the work is done with.
struct Site {
    host: Host,
    client: Client,
    voice: Voice,
    releases: Vec<Release>,
    known: Store<Component>,
    /// When the objects of each were compared last.
    compared: Mutex<HashMap<String, Instant>>,
}

/// Follows all Components until the watch ends for good; `patient` is a client for watches.
pub async fn run(host: Host, client: Client, patient: Client, voice: Voice, releases: Vec<Release>) {
    let config = || watcher::Config::default().timeout(WATCH);
    let controller = Controller::new(Api::<Component>::all(patient.clone()), config()).with_config(Config::default().concurrency(AT_ONCE));
    let (known, teller) = (controller.store(), voice.clone());
    let site = Arc::new(Site { host, client, voice, releases, known: known.clone(), compared: Mutex::default() });
    let all = |uses: fn(&Component, &str) -> bool| {
        let known = known.clone();
        move |name: &str| -> Vec<_> { known.state().iter().filter(|one| uses(one, name)).map(|one| ObjectRef::from_obj(one.as_ref())).collect() }
    };
    let (of_cluster, of_map, of_secret) = (
        all(|one, name| one.spec.target.virtual_cluster.as_deref() == Some(name)),
        all(|one, name| one.spec.values_from.iter().any(|from| from.config_map.as_deref() == Some(name))),
        all(|one, name| one.spec.values_from.iter().any(|from| from.secret.as_deref() == Some(name))),
    );
    let dependents = all(|one, name| one.spec.depends_on.iter().any(|other| other == name));
    // Those that it depends on, too: they wait for its removal with theirs.
    let neighbours = move |one: Component| {
        let needs = one.spec.depends_on.iter().map(|name| ObjectRef::new(name));
        dependents(&one.name_any()).into_iter().chain(needs).collect::<Vec<_>>()
    };
    let maps = Api::<ConfigMap>::namespaced(patient.clone(), NAMESPACE);
    let secrets = Api::<Secret>::namespaced(patient.clone(), NAMESPACE);
    let events = controller
        .watches(Api::<Component>::all(patient.clone()), config(), neighbours)
        .watches(Api::<VirtualCluster>::all(patient.clone()), config(), move |one| of_cluster(&one.name_any()))
        .watches(maps, config(), move |one| of_map(&one.name_any()))
        .watches(secrets, config(), move |one| of_secret(&one.name_any()))
        .run(|object, site| async move { site.reconcile(&object).await }, |_, _, _| Action::requeue(SOON), site);
    teller.follow(known, events).await;
}

impl Site {
    async fn reconcile(&self, known: &Component) -> Result<Action> {
        // What is known may be older than what was written last, and would have work done twice.
        let Some(object) = fresh(&self.client, known).await? else { return Ok(Action::await_change()) };
        let mut status = object.status.clone().unwrap_or_default();
        let mut told = status.clone();
        if object.metadata.deletion_timestamp.is_some() {
            return self.remove(&object, &mut told, status).await;
        }
        finalize(&self.client, &object).await?;
        if let Err(error) = self.go_on(&object, &mut told, &mut status).await {
            fail(&mut status, &error, object.spec.retries);
        }
        self.say(&object, &mut told, &mut status).await?;
        Ok(again(&status, object.spec.drift))
    }

    /// Writes a status that is another one than what was told last.
    async fn say(&self, object: &Component, told: &mut ComponentStatus, status: &mut ComponentStatus) -> Result<()> {
        status.observed_generation = object.metadata.generation;
        if status.phase != told.phase {
            status.since = Some(report::now());
            self.voice.tell(object, &status.phase, status.failure.as_ref()).await;
        }
        let why = status.failure.as_ref().map(|failure| failure.message.clone()).unwrap_or_else(|| status.waiting_for.join(", "));
        let (ready, reason) = (status.phase == Phase::Ready, report::pascal(&status.phase));
        report::condition(&mut status.conditions, object.metadata.generation, "Ready", Some(ready), (&reason, &why));
        if status != told {
            self.voice.write::<Component>(&object.name_any(), status).await?;
            told.clone_from(status);
        }
        Ok(())
    }

    async fn go_on(&self, object: &Component, told: &mut ComponentStatus, status: &mut ComponentStatus) -> Result<()> {
        let cluster = self.cluster(object).await?;
        let wanted = self.wanted(object, cluster.as_ref()).await?;
        let installed = status.installed.as_ref() == Some(&wanted.digest);
        status.waiting_for = waits_for_cluster(object, cluster.as_ref()).into_iter().collect();
        if !installed {
            status.waiting_for.extend(self.needs(object)?);
        }
        if !status.waiting_for.is_empty() {
            (status.phase, status.failure) = (Phase::Waiting, None);
            return Ok(());
        }
        if installed {
            (status.phase, status.failure) = (Phase::Ready, None);
            return self.compare(object, &wanted, status).await;
        }
        let mark = object.annotations().get(RETRY).map(String::as_str).unwrap_or_default();
        let tried = Digest::of_parts([wanted.digest.as_bytes(), mark.as_bytes()]).to_string();
        if status.tried.as_ref() != Some(&tried) {
            (status.failure, status.tried) = (None, Some(tried));
        } else if status.phase == Phase::Failed || !report::is_due(status.failure.as_ref()) {
            return Ok(());
        }
        // What is there from now on is nobody's wish until helm is done.
        (status.phase, status.installed) = (Phase::Installing, None);
        self.say(object, told, status).await?;
        status.revision = Some(self.install(object, &wanted, status.revision.is_some()).await?);
        (status.phase, status.installed, status.failure) = (Phase::Ready, Some(wanted.digest), None);
        self.looked(object);
        report::condition(&mut status.conditions, object.metadata.generation, "Drifted", Some(false), ("Installed", ""));
        Ok(())
    }

    /// The virtual cluster that it goes to, if it is there.
    async fn cluster(&self, object: &Component) -> Result<Option<VirtualCluster>> {
        let Some(name) = &object.spec.target.virtual_cluster else { return Ok(None) };
        let found = Api::<VirtualCluster>::all(self.client.clone()).get_opt(name).await;
        found.fault(Fault::Environment, || format!("reading virtual cluster {name}"))
    }

    /// Those that are not ready of what it depends on.
    fn needs(&self, object: &Component) -> Result<Vec<String>> {
        let (all, name) = (self.known.state(), object.name_any());
        let find = |name: &str| all.iter().find(|other| other.name_any() == name);
        let depends = |name: &str| find(name).into_iter().flat_map(|other| &other.spec.depends_on).map(|next| (next.as_str(), ())).collect();
        let mut own = None;
        circles([name.as_str()], depends, |circle, ()| own = own.take().or(circle.contains(&name.as_str()).then(|| circle.join(" → "))));
        if let Some(circle) = own {
            return Err(Error::input(format!("spec.dependsOn: {circle} wait for each other")));
        }
        let state = |other: &str| match find(other) {
            None => Some("not there".to_string()),
            Some(other) => {
                let status = other.status.clone().unwrap_or_default();
                let ready = status.phase == Phase::Ready && status.observed_generation == other.metadata.generation;
                (!ready).then(|| report::pascal(&status.phase).to_lowercase())
            }
        };
        Ok(object.spec.depends_on.iter().filter_map(|other| Some(format!("component {other} ({})", state(other)?))).collect())
    }

    /// Installs or upgrades, and gives the revision.
    async fn install(&self, object: &Component, wanted: &Wanted, again: bool) -> Result<i32> {
        let (kubeconfig, client) = self.credentials(object).await?;
        let (name, namespace) = (object.name_any(), object.spec.target.namespace.clone());
        helm::forget_pending(&client, &namespace, &name).await?;
        let mut arguments = vec!["--create-namespace".to_string(), "--wait".into(), "--timeout".into(), format!("{}s", object.spec.timeout_seconds)];
        arguments.extend(wanted.version.iter().flat_map(|version| ["--version".into(), version.clone()]));
        arguments.extend(helm::access(&registries(&self.host)?.cluster, &wanted.chart));
        // The first one stays as it is, for people to see what it lacks.
        arguments.extend(again.then(|| "--rollback-on-failure".into()));
        let (host, chart, form, values) = (self.host.clone(), wanted.chart.clone(), wanted.form.clone(), wanted.values.clone());
        blocking(move || {
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            let target = helm::Target { kubeconfig: &kubeconfig, namespace: &namespace, name: &name };
            kustomize::with_chart(&host, &target, &chart, &form, |chart| target.take(&host, chart, &values, &arguments))
        })
        .await
    }

    /// Path of the target's credentials, and a client with them.
    async fn credentials(&self, object: &Component) -> Result<(String, Client)> {
        let Some(cluster) = &object.spec.target.virtual_cluster else { return Ok((ADMIN.into(), self.client.clone())) };
        let kubeconfig: Option<Kubeconfig> = Place::new(&self.client, cluster).kubeconfig().await?;
        let kubeconfig =
            kubeconfig.ok_or_else(|| Error::environment(format!("reading the credentials of virtual cluster {cluster}: there are none yet")))?;
        let path = credentials_file(cluster);
        let text = serde_json::to_string(&kubeconfig).fault(Fault::Internal, || format!("writing /{path}"))?;
        self.host.write(&path, text.as_bytes(), 0o600)?;
        Ok((path, connect(kubeconfig, PATIENCE).await?))
    }

    /// Now and then compares the objects with what the release made; what drifted is told of or taken back.
    async fn compare(&self, object: &Component, wanted: &Wanted, status: &mut ComponentStatus) -> Result<()> {
        let drift = object.spec.drift;
        let last = self.compared.lock().unwrap_or_else(PoisonError::into_inner).get(&object.name_any()).copied();
        if drift == Drift::Ignore || last.is_some_and(|last| last.elapsed() < COMPARE) {
            return Ok(());
        }
        let (kubeconfig, _) = self.credentials(object).await?;
        let (name, namespace) = (object.name_any(), object.spec.target.namespace.clone());
        let host = self.host.clone();
        let names = blocking(move || helm::Target { kubeconfig: &kubeconfig, namespace: &namespace, name: &name }.drifted(&host)).await?;
        self.looked(object);
        let list = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        if !names.is_empty() && drift == Drift::Heal {
            println!("platform: Component {}: takes back what others changed: {list}", object.name_any());
            status.revision = Some(self.install(object, wanted, true).await?);
        }
        let (holds, reason) = match (names.is_empty(), drift) {
            (true, _) => (false, "AsInstalled"),
            (false, Drift::Heal) => (false, "Healed"),
            (false, _) => (true, "ChangedByOthers"),
        };
        report::condition(&mut status.conditions, object.metadata.generation, "Drifted", Some(holds), (reason, &list));
        Ok(())
    }

    fn looked(&self, object: &Component) {
        self.compared.lock().unwrap_or_else(PoisonError::into_inner).insert(object.name_any(), Instant::now());
    }

    /// Uninstalls it after those that depend on it and go, too; what was in a virtual cluster that goes, goes with that.
    async fn remove(&self, object: &Component, told: &mut ComponentStatus, mut status: ComponentStatus) -> Result<Action> {
        status.phase = Phase::Deleting;
        if !report::is_due(status.failure.as_ref()) {
            return Ok(again(&status, object.spec.drift));
        }
        let name = object.name_any();
        let goes = |other: &Component| other.metadata.deletion_timestamp.is_some() && other.spec.depends_on.contains(&name);
        status.waiting_for =
            self.known.state().iter().filter(|other| goes(other)).map(|other| format!("component {} (deleting)", other.name_any())).collect();
        let cluster = self.cluster(object).await?;
        let with_cluster =
            object.spec.target.virtual_cluster.is_some() && cluster.as_ref().is_none_or(|cluster| cluster.metadata.deletion_timestamp.is_some());
        if !with_cluster {
            status.waiting_for.extend(waits_for_cluster(object, cluster.as_ref()));
        }
        let done = match (status.waiting_for.is_empty(), with_cluster) {
            (false, _) => Ok(false),
            (true, true) => Ok(true),
            (true, false) => self.uninstall(object).await.map(|()| true),
        };
        match done {
            Ok(true) => return unfinalize(&self.client, object).await.map(|()| Action::await_change()),
            Ok(false) => status.failure = None,
            Err(error) => status.failure = Some(report::failure(status.failure.take(), &error)),
        }
        self.say(object, told, &mut status).await?;
        Ok(again(&status, object.spec.drift))
    }

    async fn uninstall(&self, object: &Component) -> Result<()> {
        if self.check_name(object).is_err() {
            return Ok(());
        }
        let (kubeconfig, client) = self.credentials(object).await?;
        let (name, namespace) = (object.name_any(), object.spec.target.namespace.clone());
        helm::forget_pending(&client, &namespace, &name).await?;
        let host = self.host.clone();
        blocking(move || helm::Target { kubeconfig: &kubeconfig, namespace: &namespace, name: &name }.uninstall(&host)).await
    }
}

/// What is said of a virtual cluster that nothing can be installed in now.
fn waits_for_cluster(object: &Component, cluster: Option<&VirtualCluster>) -> Option<String> {
    let name = object.spec.target.virtual_cluster.as_ref()?;
    let phase = cluster.map(|cluster| cluster.status.as_ref().map(|status| status.phase).unwrap_or_default());
    match phase {
        None => Some(format!("virtual cluster {name} (not there)")),
        Some(layers::platform::Phase::Running) => None,
        Some(phase) => Some(format!("virtual cluster {name} ({})", report::pascal(&phase).to_lowercase())),
    }
}

/// Notes a failure; one that was tried often enough waits for a change.
fn fail(status: &mut ComponentStatus, error: &Error, retries: i32) {
    let mut failure = report::failure(status.failure.take(), error);
    status.phase = if failure.next_retry.is_some() && failure.attempts > retries { Phase::Failed } else { Phase::Error };
    if status.phase == Phase::Failed {
        failure.next_retry = None;
    }
    status.failure = Some(failure);
}

/// When one that nothing changes is looked at again.
fn again(status: &ComponentStatus, drift: Drift) -> Action {
    match (status.phase, status.failure.as_ref().and_then(|failure| failure.next_retry.as_ref())) {
        (Phase::Error | Phase::Deleting, Some(time)) => Action::requeue(report::until(time)),
        (Phase::Ready, _) if drift != Drift::Ignore => Action::requeue(COMPARE),
        (Phase::Deleting, None) => Action::requeue(SOON),
        _ => Action::await_change(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f8_what_fails_is_tried_as_often_as_asked_and_then_waits_for_a_change() {
        let mut status = ComponentStatus::default();
        for _ in 0..3 {
            fail(&mut status, &Error::environment("timed out"), 3);
            assert!(status.phase == Phase::Error && again(&status, Drift::Heal) != Action::await_change());
        }
        fail(&mut status, &Error::environment("timed out"), 3);
        let failure = status.failure.as_ref().unwrap();
        assert_eq!((status.phase, failure.attempts, &failure.next_retry), (Phase::Failed, 4, &None));
        assert_eq!(again(&status, Drift::Heal), Action::await_change());
        let mut refused = ComponentStatus::default();
        fail(&mut refused, &Error::input("spec.source.chart.name: …"), 3);
        assert_eq!((refused.phase, again(&refused, Drift::Heal)), (Phase::Error, Action::await_change()));
    }
}
