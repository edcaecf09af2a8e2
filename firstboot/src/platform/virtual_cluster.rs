//! VirtualClusters: what is seen of one, what the state machine makes of that, and the work. Everything is looked at anew each time.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ListParams;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use layers::platform::check::{self, Others, Ranges};
use layers::platform::isolation::policies;
use layers::platform::machine::{self, Difference, Facts, Work};
use layers::platform::settings::{self, Exposure, PodSecurity};
use layers::platform::sleep::{self, Moment};
use layers::platform::virtual_cluster::DeletionPolicy;
use layers::platform::{Phase, Restore, Settings, Snapshot, VirtualCluster, VirtualClusterStatus, VirtualClusterTemplate, values, version};
use layers::seed::Release;
use layers::units::Digest;
use layers::{Context as _, Error, Fault, Result};
use serde_json::{Value, json};

use super::component;
use super::host::{DNS, Lack, Place, members, owner};
use super::report::{self, Voice};
use super::{certificates, copy, exposure, isolation};
use super::{finalize, fresh, unfinalize};
use crate::cluster::api::WATCH;
use crate::cluster::helm;
use crate::host::Host;

/// How often work that goes on is looked at; whatever starts or stops pods tells by itself.
const SOON: Duration = Duration::from_secs(3);
/// How often one is looked at whose pods must come first: their set tells when they are ready.
const PATIENT: Duration = Duration::from_secs(20);
/// How often one that rests is looked at: a look is twelve requests, and nobody shall ask more than once in a minute for it.
const LATER: Duration = Duration::from_secs(900);
/// Where the values have the number of replicas.
const REPLICAS: [&str; 2] =
    ["/controlPlane/statefulSet/highAvailability/replicas", "/controlPlane/backingStore/etcd/deploy/statefulSet/highAvailability/replicas"];

/// Where the values say that the store is an etcd.
const ETCD: &str = "/controlPlane/backingStore/etcd/deploy/enabled";

/// What the work is done with.
struct Site {
    host: Host,
    client: Client,
    voice: Voice,
    chart: Release,
    ranges: Ranges,
    /// Kubernetes versions that the image has control planes of.
    versions: Vec<String>,
    known: Store<VirtualCluster>,
}

/// What the image has for virtual clusters.
pub struct Image {
    pub chart: Release,
    /// Kubernetes versions that there are control planes of.
    pub versions: Vec<String>,
}

/// Follows all VirtualClusters until the watch ends for good; `patient` is a client for watches.
pub async fn run(host: Host, client: Client, patient: Client, voice: Voice, Image { chart, versions }: Image, ranges: Ranges) {
    let config = || watcher::Config::default().timeout(WATCH);
    let controller = Controller::new(Api::<VirtualCluster>::all(patient.clone()), config());
    let (known, told, teller) = (controller.store(), controller.store(), voice.clone());
    let site = Arc::new(Site { host, client, voice, chart, ranges, versions, known: known.clone() });
    let all = move |_: VirtualClusterTemplate| known.state().iter().map(|object| ObjectRef::from_obj(object.as_ref())).collect::<Vec<_>>();
    let of_place = |namespace: Option<String>| owner(&namespace?).map(ObjectRef::<VirtualCluster>::new);
    let events = controller
        .watches(Api::<StatefulSet>::all(patient.clone()), config().labels("app in (vcluster, vcluster-etcd)"), move |set| of_place(set.namespace()))
        .watches(Api::<Pod>::all(patient.clone()), config().labels(&format!("app={}", copy::APP)), move |pod| of_place(pod.namespace()))
        .watches(Api::<Pod>::all(patient.clone()), config().labels(DNS), move |pod| of_place(pod.namespace()))
        .watches(Api::<Snapshot>::all(patient.clone()), config(), |object| Some(ObjectRef::new(&object.spec.virtual_cluster)))
        .watches(Api::<Restore>::all(patient.clone()), config(), |object| Some(ObjectRef::new(&object.spec.virtual_cluster)))
        .watches(Api::<VirtualClusterTemplate>::all(patient), config(), all)
        .run(|object, site| async move { site.reconcile(&object).await }, |_, _, _| Action::requeue(SOON), site);
    teller.follow(told, events).await;
}

/// What the settings of one come to.
struct Wanted {
    settings: Settings,
    values: Value,
    replicas: i64,
    /// Digest of chart and values but for the number of replicas.
    digest: String,
    /// What its schedule says.
    moment: Option<Moment>,
}

impl Wanted {
    fn exposure(&self) -> Option<&Exposure> {
        self.settings.network.as_ref()?.exposure.as_ref()
    }

    /// The exposure below a path, for which TLS ends before the API.
    fn below(&self) -> Option<&Exposure> {
        self.exposure().filter(|exposure| exposure.below().is_some())
    }

    /// Refuses another store than the one that has the data: the API server does not see what a template says of it.
    fn keeps_store(&self, sets: &[StatefulSet]) -> Result<()> {
        let is_etcd = sets.iter().any(|set| set.labels().get("app").is_some_and(|app| app == "vcluster-etcd"));
        let (is, wanted) = match (is_etcd, self.values.pointer(ETCD) == Some(&Value::Bool(true))) {
            (true, false) => ("etcd", "sqlite"),
            (false, true) => ("sqlite", "etcd"),
            _ => return Ok(()),
        };
        Err(Error::input(format!("spec.store: it is {is} and cannot become {wanted}; restore a snapshot into a new virtual cluster instead")))
    }

    /// Leaves an etcd the members that it was made with; control planes come and go.
    fn keep_members(&mut self, sets: &[StatefulSet]) {
        if let (Some(members), Some(value)) = (sets.iter().find_map(members), self.values.pointer_mut(REPLICAS[1])) {
            *value = members.into();
        }
    }

    /// The Kubernetes version, the image's when the settings name none.
    fn version(&self) -> Option<String> {
        self.values.pointer("/controlPlane/distro/k8s/image/tag").and_then(Value::as_str).map(Into::into)
    }
}

impl Site {
    async fn reconcile(&self, known: &VirtualCluster) -> Result<Action> {
        // What is known may be older than what was written last, and would have work done twice.
        let Some(object) = &fresh(&self.client, known).await? else { return Ok(Action::await_change()) };
        let name = object.name_any();
        let place = Place::new(&self.client, &name);
        if object.metadata.deletion_timestamp.is_none() {
            finalize(&self.client, object).await?;
        }
        let before = object.status.clone().unwrap_or_default();
        let mut status = before.clone();
        let worked = self.go_on(object, &place, &mut status).await;
        let failed = worked.is_err();
        let (until, lack) = match worked {
            Ok(Done::Gone) => {
                unfinalize(&self.client, object).await?;
                return Ok(Action::await_change());
            }
            Ok(Done::Going(until, lack)) => (until, lack),
            Err(error) => {
                fail(&mut status, &error);
                report::condition(&mut status.conditions, object.metadata.generation, "Ready", Some(false), ("Error", &error.to_string()));
                (None, None)
            }
        };
        status.observed_generation = object.metadata.generation;
        if status.phase != before.phase {
            status.since = Some(report::now());
            self.voice.tell(object, &status.phase, status.failure.as_ref()).await;
        }
        if status != before {
            self.voice.write::<VirtualCluster>(&name, &status).await?;
        }
        Ok(if status == before || failed || status.phase == Phase::Error { again(&status, until.as_ref(), lack) } else { Action::requeue(SOON) })
    }

    /// One look and one piece of work; the phase that it leads to is in the status.
    async fn go_on(&self, object: &VirtualCluster, place: &Place<'_>, status: &mut VirtualClusterStatus) -> Result<Done> {
        let deleted = object.metadata.deletion_timestamp.is_some();
        let mut wanted = if deleted { None } else { Some(self.wanted(object).await?) };
        let moment = wanted.as_ref().and_then(|wanted| wanted.moment.clone());
        let sets = place.sets().await?;
        wanted.iter_mut().for_each(|wanted| wanted.keep_members(&sets));
        // Before helm was done once a part of the sets may be missing.
        if let Some(wanted) = wanted.as_ref().filter(|_| status.installed.is_some() && !sets.is_empty()) {
            wanted.keeps_store(&sets)?;
        }
        if let (Some(version), Some(former)) = (wanted.as_ref().and_then(Wanted::version), &status.version) {
            version::follows(&version, former)?;
        }
        let lack = if deleted { None } else { place.lack(&sets).await? };
        let own = sets.iter().find(|set| set.name_any() == object.name_any());
        let replicas = own.and_then(|set| set.spec.as_ref()?.replicas).unwrap_or(0);
        status.replicas = own.map(|set| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0));
        let release = match &wanted {
            _ if sets.is_empty() => Difference::Absent,
            Some(wanted) if status.installed.as_ref() != Some(&wanted.digest) => Difference::Settings,
            Some(wanted) if replicas > 0 && i64::from(replicas) != wanted.replicas => Difference::Replicas,
            _ => Difference::None,
        };
        let copy = if deleted { None } else { copy::due(&self.client, place.name).await? };
        // What was refused is refused no more, else there would be nothing that is wanted.
        let due = report::is_due(status.failure.as_ref());
        let changed = status.observed_generation != object.metadata.generation;
        let facts = Facts {
            deleted,
            suspended: object.spec.suspended || moment.as_ref().is_some_and(|moment| moment.asleep),
            release,
            serves: lack.is_none(),
            stopped: !sets.is_empty() && replicas == 0 && place.is_empty().await?,
            copy: copy.as_ref().map(|task| task.copying),
            again: status.failed_phase.filter(|failed| due || changed || *failed == Phase::Running),
        };
        let (before, (phase, work)) = (status.phase, machine::next(status.phase, facts));
        match phase {
            Phase::Error if before != Phase::Error => fail(status, &Error::environment(lack.map_or("it does not serve", Lack::text))),
            Phase::Error => {}
            Phase::Deleting if before == Phase::Deleting => {}
            Phase::Running | Phase::Suspended | Phase::Deleting => (status.failure, status.failed_phase) = (None, None),
            _ => status.failed_phase = None,
        }
        status.phase = phase;
        tell_conditions(status, object.metadata.generation, lack, moment.as_ref());
        // The host's addresses may have changed since.
        if let Some(wanted) = wanted.as_ref().filter(|_| matches!(work, Work::Wait) || phase == Phase::Running) {
            self.isolate(place, object, wanted, status).await?;
            if let Some(exposure) = wanted.below() {
                exposure::keep(&self.host, &self.client, object, exposure).await?;
            }
        }
        let site = copy::Site { client: &self.client, host: &self.host, voice: &self.voice };
        match copy {
            Some(task) if work == Work::Copy => task.go_on(&site, &sets).await?,
            Some(task) => task.waits(&site, phase).await?,
            None => {}
        }
        match (work, wanted) {
            (Work::Install, Some(wanted)) => self.install(place, object, &wanted, status).await?,
            (Work::Start, Some(wanted)) => place.scale(&sets, wanted.replicas).await?,
            (Work::Stop, _) => {
                place.scale(&sets, 0).await?;
                place.clear(&sets).await?;
            }
            // The status that tells of a failed removal is a change, too, and shall not begin the next one.
            (Work::Remove, _) if before == Phase::Deleting && !due => {}
            (Work::Remove, _) => return self.remove(object, place).await,
            _ => {}
        }
        Ok(Done::Going(moment.and_then(|moment| moment.until), lack))
    }

    async fn wanted(&self, object: &VirtualCluster) -> Result<Wanted> {
        let list = Api::<VirtualClusterTemplate>::all(self.client.clone()).list(&ListParams::default()).await;
        let list = list.fault(Fault::Environment, || "listing VirtualClusterTemplates".into())?;
        let settings = object.spec.effective(|name| list.items.iter().find(|template| template.name_any() == name).map(|found| &found.spec))?;
        settings.version.iter().try_for_each(|version| version::is_bundled(version, &self.versions))?;
        let mut image = serde_json::to_value(&self.chart.values).fault(Fault::Internal, || "reading the image's values".into())?;
        // What the syncer notes there itself, once it has found it out by making and deleting Services.
        let known = json!({"vcluster.loft.sh/service-cidr": self.ranges.services.to_string()});
        settings::merge(&mut image, json!({"controlPlane": {"service": {"annotations": known}}}));
        let values = values::values(&image, &object.name_any(), &settings)?;
        check::check(&settings, &values, self.ranges, &self.others(object))?;
        let mut plain = values.clone();
        REPLICAS.iter().for_each(|path| drop(plain.pointer_mut(path).map(Value::take)));
        let digest = Digest::of_parts([&self.chart.sha256.0[..], plain.to_string().as_bytes()]).to_string();
        let replicas = values.pointer(REPLICAS[0]).and_then(Value::as_i64).unwrap_or(1);
        let moment = settings.sleep.as_ref().map(|schedule| sleep::at(schedule, &awake_since(object)?, &report::now())).transpose()?;
        Ok(Wanted { settings, values, replicas, digest, moment })
    }

    async fn install(&self, place: &Place<'_>, object: &VirtualCluster, wanted: &Wanted, status: &mut VirtualClusterStatus) -> Result<()> {
        place.make(wanted.settings.pod_security.unwrap_or(PodSecurity::Baseline)).await?;
        self.isolate(place, object, wanted, status).await?;
        certificates::make(&self.host, &self.client, place, &wanted.values, self.ranges.services).await?;
        let (name, namespace) = (object.name_any(), place.namespace.clone());
        let (host, chart, values) = (self.host.clone(), helm::bundled(&self.chart.file), wanted.values.clone());
        helm::forget_pending(&self.client, &namespace, &name).await?;
        let done = tokio::task::spawn_blocking(move || helm::Target::on_host(&namespace, &name).take(&host, &chart, &values, &[])).await;
        done.fault(Fault::Internal, || "installing".into())??;
        (status.installed, status.version) = (Some(wanted.digest.clone()), wanted.version());
        match wanted.below() {
            Some(exposure) => exposure::keep(&self.host, &self.client, object, exposure).await?,
            None => exposure::remove(&self.client, object).await?,
        }
        status.endpoint = wanted.exposure().map(Exposure::url);
        Ok(())
    }

    /// What the older ones have: of two that want the same, the later one is refused.
    fn others(&self, object: &VirtualCluster) -> Others {
        let age = |object: &VirtualCluster| (object.metadata.creation_timestamp.clone(), object.name_any());
        let mut out = Others::default();
        let older = self.known.state().into_iter().filter(|other| age(other) < age(object));
        older.for_each(|other| out.add(&other.name_any(), other.spec.settings.network.as_ref()));
        out
    }

    /// The policies of its namespace, and whether anybody enforces them.
    async fn isolate(&self, place: &Place<'_>, object: &VirtualCluster, wanted: &Wanted, status: &mut VirtualClusterStatus) -> Result<()> {
        let surroundings = isolation::surroundings(&self.client, self.ranges).await?;
        let policies = policies(&object.name_any(), wanted.settings.network.as_ref(), &surroundings);
        place.isolate(&policies).await?;
        let (holds, reason, message) = match isolation::foreign_network(&self.host) {
            _ if policies.is_empty() => (Some(false), "Shared", "network.plane is `shared`".into()),
            Some(name) => (None, "ForeignPodNetwork", format!("the pod network is {name}; nobody knows whether it enforces NetworkPolicies")),
            None => (Some(true), "Enforced", String::new()),
        };
        report::condition(&mut status.conditions, object.metadata.generation, "Isolated", holds, (reason, &message));
        Ok(())
    }

    /// Everything that there is on the host goes; with `Retain` the namespace with the volume claims stays.
    async fn remove(&self, object: &VirtualCluster, place: &Place<'_>) -> Result<Done> {
        let (name, namespace) = (object.name_any(), place.namespace.clone());
        if helm::knows(&self.client, &namespace, &name).await? {
            helm::forget_pending(&self.client, &namespace, &name).await?;
            let host = self.host.clone();
            let done = tokio::task::spawn_blocking(move || helm::Target::on_host(&namespace, &name).uninstall(&host)).await;
            done.fault(Fault::Internal, || "uninstalling".into())??;
        }
        let gone = match object.spec.deletion_policy {
            DeletionPolicy::Delete => place.remove().await?,
            DeletionPolicy::Retain => place.sets().await?.is_empty() && place.is_empty().await?,
        };
        if !gone {
            return Ok(Done::Going(None, None));
        }
        self.host.remove(&component::credentials_file(&object.name_any()))?;
        Ok(Done::Gone)
    }
}

enum Done {
    /// It is there; until its schedule changes something, and what it lacks to serve.
    Going(Option<Time>, Option<Lack>),
    Gone,
}

/// Since when people want it awake, at the latest since they made it.
fn awake_since(object: &VirtualCluster) -> Result<Time> {
    match object.annotations().get(sleep::AWAKE_SINCE) {
        Some(text) => {
            let bad = |_| Error::input(format!("metadata.annotations.{}: `{text}` is no time such as 2026-06-01T06:30:00Z", sleep::AWAKE_SINCE));
            text.parse().map(Time).map_err(bad)
        }
        None => Ok(object.creation_timestamp().unwrap_or_else(report::now)),
    }
}

/// When one in which nothing changed is looked at again.
fn again(status: &VirtualClusterStatus, until: Option<&Time>, lack: Option<Lack>) -> Action {
    match (status.phase, status.failure.as_ref().and_then(|failure| failure.next_retry.as_ref())) {
        (Phase::Running | Phase::Suspended, _) => Action::requeue(until.map_or(LATER, |time| report::until(time).min(LATER))),
        (Phase::Error, None) => Action::await_change(),
        (Phase::Error | Phase::Deleting, Some(time)) => Action::requeue(report::until(time).max(SOON)),
        (Phase::Creating | Phase::Updating | Phase::Resuming, _) if lack == Some(Lack::ControlPlane) => Action::requeue(PATIENT),
        _ => Action::requeue(SOON),
    }
}

/// Notes a failure and the phase in which it came.
fn fail(status: &mut VirtualClusterStatus, error: &Error) {
    status.failed_phase = match status.phase {
        Phase::Error => status.failed_phase,
        Phase::Deleting => None,
        // Nothing was begun.
        Phase::Pending => Some(Phase::Creating),
        phase => Some(phase),
    };
    status.failure = Some(report::failure(status.failure.take(), error));
    status.phase = machine::failed(status.phase);
}

/// What is seen of it, and their sum.
fn tell_conditions(status: &mut VirtualClusterStatus, generation: Option<i64>, lack: Option<Lack>, moment: Option<&Moment>) {
    let (phase, conditions) = (status.phase, &mut status.conditions);
    for (part, name) in Lack::CONDITIONS {
        let holds = match lack {
            Some(lack) if lack < part => None,
            lack => Some(lack != Some(part)),
        };
        let reason = holds.map_or("Unknown", |holds| if holds { "Ready" } else { "NotReady" });
        report::condition(conditions, generation, name, holds, (reason, if holds == Some(false) { part.text() } else { "" }));
    }
    let asleep = moment
        .filter(|moment| moment.asleep && phase == Phase::Suspended)
        .map(|moment| "asleep by its schedule".to_string() + &moment.until.as_ref().map_or(String::new(), |time| format!(" until {}", time.0)));
    let failed = status.failure.as_ref().map(|failure| failure.message.clone());
    let why = failed.or(asleep).or(lack.map(|lack| lack.text().into())).unwrap_or_default();
    let ready = phase == Phase::Running;
    report::condition(conditions, generation, "Ready", Some(ready), (&report::pascal(&phase), if ready { "" } else { &why }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_leads_back_to_its_work_and_a_removal_stays_one() {
        let mut status = VirtualClusterStatus::default();
        for attempts in 1..4 {
            fail(&mut status, &Error::environment("the API is away"));
            let now = (status.phase, status.failed_phase, status.failure.as_ref().unwrap().attempts);
            assert_eq!(now, (Phase::Error, Some(Phase::Creating), attempts));
        }
        let mut deleted = VirtualClusterStatus { phase: Phase::Deleting, ..Default::default() };
        fail(&mut deleted, &Error::environment("the API is away"));
        assert_eq!((deleted.phase, deleted.failed_phase, deleted.failure.unwrap().attempts), (Phase::Deleting, None, 1));
    }

    #[test]
    fn a_mistake_in_the_object_waits_for_a_change() {
        let mut status = VirtualClusterStatus::default();
        fail(&mut status, &Error::input("spec.template: there is no VirtualClusterTemplate `x`"));
        assert_eq!(again(&status, None, None), Action::await_change());
    }

    #[test]
    fn who_waits_for_pods_asks_less_often_than_who_waits_for_what_nobody_tells() {
        let status = VirtualClusterStatus { phase: Phase::Creating, ..Default::default() };
        assert_eq!(again(&status, None, Some(Lack::ControlPlane)), Action::requeue(PATIENT));
        assert_eq!(again(&status, None, Some(Lack::Syncer)), Action::requeue(SOON));
    }

    #[test]
    fn conditions_say_which_part_is_missing_and_what_nobody_can_know_before_it() {
        let mut status = VirtualClusterStatus { phase: Phase::Creating, ..Default::default() };
        let said = |status: &VirtualClusterStatus| -> Vec<_> {
            status.conditions.iter().map(|condition| format!("{}={} {}", condition.type_, condition.status, condition.message)).collect()
        };
        tell_conditions(&mut status, Some(1), Some(Lack::Syncer), None);
        assert_eq!(
            said(&status),
            [
                "ControlPlaneReady=True ",
                "DNSReady=Unknown ",
                "Ready=False its syncer does not run yet",
                "SyncerReady=False its syncer does not run yet"
            ]
        );
        status.phase = Phase::Running;
        tell_conditions(&mut status, Some(1), None, None);
        assert!(status.conditions.iter().all(|condition| condition.status == "True" && condition.message.is_empty()));
        status.phase = Phase::Suspended;
        let moment = Moment { asleep: true, until: Some(Time("2026-06-02T04:30:00Z".parse().unwrap())) };
        tell_conditions(&mut status, Some(1), Some(Lack::ControlPlane), Some(&moment));
        assert_eq!(said(&status)[2], "Ready=False asleep by its schedule until 2026-06-02T04:30:00Z");
    }
}
