//! VirtualClusters: what is seen of one, what the state machine makes of that, and the work. Everything is looked at anew each time.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use layers::platform::machine::{self, Difference, Facts, Work};
use layers::platform::settings::PodSecurity;
use layers::platform::virtual_cluster::DeletionPolicy;
use layers::platform::{Failure, Phase, Settings, VirtualCluster, VirtualClusterStatus, VirtualClusterTemplate, values};
use layers::seed::Release;
use layers::units::Digest;
use layers::{Context as _, Error, Fault, Result};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;

use super::MANAGER;
use super::host::{Place, owner};
use crate::cluster::api::WATCH;
use crate::cluster::helm;
use crate::host::Host;

const FINALIZER: &str = "chasi-bod.io/remove";
/// How often work that goes on is looked at; whatever starts or stops pods tells by itself.
const SOON: Duration = Duration::from_secs(3);
/// How often one that rests is looked at.
const LATER: Duration = Duration::from_secs(300);
/// The pause after the first failure; it doubles with each.
const PAUSE: u64 = 5;
const LONGEST_PAUSE: u64 = 300;
/// Where the values have the number of replicas.
const REPLICAS: [&str; 2] =
    ["/controlPlane/statefulSet/highAvailability/replicas", "/controlPlane/backingStore/etcd/deploy/statefulSet/highAvailability/replicas"];

/// What the work is done with.
pub struct Site {
    pub client: Client,
    pub chart: Release,
}

/// Follows all VirtualClusters until the watch ends for good.
pub async fn run(client: Client, site: Arc<Site>) {
    let config = || watcher::Config::default().timeout(WATCH);
    let controller = Controller::new(Api::<VirtualCluster>::all(client.clone()), config());
    let known = controller.store();
    let all = move |_: VirtualClusterTemplate| known.state().iter().map(|object| ObjectRef::from_obj(object.as_ref())).collect::<Vec<_>>();
    let of_set = |set: StatefulSet| set.namespace().and_then(|namespace| owner(&namespace).map(ObjectRef::<VirtualCluster>::new));
    let mut events = std::pin::pin!(
        controller
            .watches(Api::<StatefulSet>::all(client.clone()), config().labels("app in (vcluster, vcluster-etcd)"), of_set)
            .watches(Api::<VirtualClusterTemplate>::all(client), config(), all)
            .run(|object, site| async move { site.reconcile(&object).await }, |_, _, _| Action::requeue(SOON), site)
    );
    while let Some(event) = events.next().await {
        if let Err(error) = event {
            println!("platform: {error}");
        }
    }
}

/// What the settings of one come to.
struct Wanted {
    settings: Settings,
    values: Value,
    replicas: i64,
    /// Digest of chart and values but for the number of replicas.
    digest: String,
}

impl Site {
    async fn reconcile(&self, object: &VirtualCluster) -> Result<Action> {
        let name = object.name_any();
        let place = Place::new(&self.client, &name);
        let deleted = object.metadata.deletion_timestamp.is_some();
        if !deleted && !object.finalizers().iter().any(|known| known == FINALIZER) {
            self.patch(&name, &json!({"metadata": {"finalizers": [FINALIZER]}})).await?;
        }
        let before = object.status.clone().unwrap_or_default();
        let mut status = before.clone();
        let worked = self.go_on(object, &place, &mut status).await;
        if let Ok(Done::Gone) = worked {
            let others: Vec<_> = object.finalizers().iter().filter(|known| *known != FINALIZER).collect();
            self.patch(&name, &json!({"metadata": {"finalizers": others, "resourceVersion": object.metadata.resource_version}})).await?;
            return Ok(Action::await_change());
        }
        if let Err(error) = &worked {
            fail(&mut status, error);
        }
        status.observed_generation = object.metadata.generation;
        if status.phase != before.phase {
            println!("platform: virtual cluster {name}: {:?} → {:?}", before.phase, status.phase);
            status.since = Some(now());
        }
        if status != before {
            // Applied, so that what is not said any more goes.
            let patch = json!({"apiVersion": VirtualCluster::api_version(&()), "kind": VirtualCluster::kind(&()), "status": status});
            let done = self.objects().patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch)).await;
            done.map(drop).fault(Fault::Environment, || format!("writing the status of virtual cluster {name}"))?;
        }
        Ok(if status == before || worked.is_err() || status.phase == Phase::Error { again(&status) } else { Action::requeue(SOON) })
    }

    /// One look and one piece of work; the phase that it leads to is in the status.
    async fn go_on(&self, object: &VirtualCluster, place: &Place<'_>, status: &mut VirtualClusterStatus) -> Result<Done> {
        let deleted = object.metadata.deletion_timestamp.is_some();
        let wanted = if deleted { None } else { Some(self.wanted(object).await?) };
        let sets = place.sets().await?;
        let missing = if deleted { None } else { place.missing(&sets).await? };
        let replicas = sets.iter().find(|set| set.name_any() == object.name_any()).and_then(|set| set.spec.as_ref()?.replicas).unwrap_or(0);
        let release = match &wanted {
            _ if sets.is_empty() => Difference::Absent,
            Some(wanted) if status.installed.as_ref() != Some(&wanted.digest) => Difference::Settings,
            Some(wanted) if replicas > 0 && i64::from(replicas) != wanted.replicas => Difference::Replicas,
            _ => Difference::None,
        };
        // What was refused is refused no more, else there would be nothing that is wanted.
        let due = status.failure.as_ref().and_then(|failure| failure.next_retry.as_ref()).is_none_or(|time| time.0 <= Timestamp::now());
        let changed = status.observed_generation != object.metadata.generation;
        let facts = Facts {
            deleted,
            suspended: object.spec.suspended,
            release,
            serves: missing.is_none(),
            stopped: !sets.is_empty() && replicas == 0 && place.is_empty().await?,
            again: status.failed_phase.filter(|failed| due || changed || *failed == Phase::Running),
        };
        let (before, (phase, work)) = (status.phase, machine::next(status.phase, facts));
        match phase {
            Phase::Error if before != Phase::Error => fail(status, &Error::environment(missing.unwrap_or("it does not serve"))),
            Phase::Error => {}
            Phase::Deleting if before == Phase::Deleting => {}
            Phase::Running | Phase::Suspended | Phase::Deleting => (status.failure, status.failed_phase) = (None, None),
            _ => status.failed_phase = None,
        }
        status.phase = phase;
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
        Ok(Done::Going)
    }

    async fn wanted(&self, object: &VirtualCluster) -> Result<Wanted> {
        let list = Api::<VirtualClusterTemplate>::all(self.client.clone()).list(&ListParams::default()).await;
        let list = list.fault(Fault::Environment, || "listing VirtualClusterTemplates".into())?;
        let settings = object.spec.effective(|name| list.items.iter().find(|template| template.name_any() == name).map(|found| &found.spec))?;
        let image = serde_json::to_value(&self.chart.values).fault(Fault::Internal, || "reading the image's values".into())?;
        let values = values::values(&image, &settings)?;
        let mut plain = values.clone();
        REPLICAS.iter().for_each(|path| drop(plain.pointer_mut(path).map(Value::take)));
        let digest = Digest::of_parts([&self.chart.sha256.0[..], plain.to_string().as_bytes()]).to_string();
        let replicas = values.pointer(REPLICAS[0]).and_then(Value::as_i64).unwrap_or(1);
        Ok(Wanted { settings, values, replicas, digest })
    }

    async fn install(&self, place: &Place<'_>, object: &VirtualCluster, wanted: &Wanted, status: &mut VirtualClusterStatus) -> Result<()> {
        place.make(wanted.settings.pod_security.unwrap_or(PodSecurity::Baseline)).await?;
        let (name, namespace) = (object.name_any(), place.namespace.clone());
        let (chart, values) = (self.chart.file.clone(), wanted.values.clone());
        helm::forget_pending(&self.client, &namespace, &name).await?;
        let done = tokio::task::spawn_blocking(move || helm::take(&Host::new("/"), &name, &namespace, &chart, &values)).await;
        done.fault(Fault::Internal, || "installing".into())??;
        (status.installed, status.version) = (Some(wanted.digest.clone()), wanted.settings.version.clone());
        Ok(())
    }

    /// Everything that there is on the host goes; with `Retain` the namespace with the volume claims stays.
    async fn remove(&self, object: &VirtualCluster, place: &Place<'_>) -> Result<Done> {
        let (name, namespace) = (object.name_any(), place.namespace.clone());
        if helm::knows(&self.client, &namespace, &name).await? {
            helm::forget_pending(&self.client, &namespace, &name).await?;
            let done = tokio::task::spawn_blocking(move || helm::uninstall(&Host::new("/"), &name, &namespace)).await;
            done.fault(Fault::Internal, || "uninstalling".into())??;
        }
        let gone = match object.spec.deletion_policy {
            DeletionPolicy::Delete => place.remove().await?,
            DeletionPolicy::Retain => place.sets().await?.is_empty() && place.is_empty().await?,
        };
        Ok(if gone { Done::Gone } else { Done::Going })
    }

    fn objects(&self) -> Api<VirtualCluster> {
        Api::all(self.client.clone())
    }

    async fn patch(&self, name: &str, patch: &Value) -> Result<()> {
        let done = self.objects().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        done.map(drop).fault(Fault::Environment, || format!("changing virtual cluster {name}"))
    }
}

enum Done {
    Going,
    Gone,
}

/// When one in which nothing changed is looked at again.
fn again(status: &VirtualClusterStatus) -> Action {
    match (status.phase, status.failure.as_ref().and_then(|failure| failure.next_retry.as_ref())) {
        (Phase::Running | Phase::Suspended, _) => Action::requeue(LATER),
        (Phase::Error, None) => Action::await_change(),
        (Phase::Error | Phase::Deleting, Some(time)) => {
            Action::requeue(Duration::try_from(time.0.duration_since(Timestamp::now())).unwrap_or(SOON).max(SOON))
        }
        _ => Action::requeue(SOON),
    }
}

/// Notes a failure: what failed, since when, and when it is tried again; a mistake in the object only when that changes.
fn fail(status: &mut VirtualClusterStatus, error: &Error) {
    let known = status.failure.take();
    let attempts = known.as_ref().map_or(0, |failure| failure.attempts) + 1;
    let pause = PAUSE.saturating_mul(1 << attempts.clamp(1, 10) >> 1).min(LONGEST_PAUSE);
    let later = Timestamp::now() + Duration::from_secs(pause);
    let (reason, next_retry) = match error.fault() {
        Fault::Input => ("Refused", None),
        _ => ("Failed", Some(Time(later))),
    };
    let since = known.map_or_else(now, |failure| failure.since);
    status.failed_phase = match status.phase {
        Phase::Error => status.failed_phase,
        Phase::Deleting => None,
        // Nothing was begun.
        Phase::Pending => Some(Phase::Creating),
        phase => Some(phase),
    };
    status.failure = Some(Failure { reason: reason.into(), message: error.to_string(), since, next_retry, attempts });
    status.phase = machine::failed(status.phase);
}

fn now() -> Time {
    Time(Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_tried_again_later_and_later_and_a_removal_stays_one() {
        let mut status = VirtualClusterStatus::default();
        let waits: Vec<_> = (0..9)
            .map(|_| {
                fail(&mut status, &Error::environment("the API is away"));
                status.failure.as_ref().unwrap().next_retry.as_ref().unwrap().0.duration_since(Timestamp::now()).as_secs_f64().round()
            })
            .collect();
        assert_eq!(waits, [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]);
        assert_eq!((status.phase, status.failed_phase), (Phase::Error, Some(Phase::Creating)));
        let mut deleted = VirtualClusterStatus { phase: Phase::Deleting, ..Default::default() };
        fail(&mut deleted, &Error::environment("the API is away"));
        assert_eq!((deleted.phase, deleted.failed_phase, deleted.failure.unwrap().attempts), (Phase::Deleting, None, 1));
    }

    #[test]
    fn a_mistake_in_the_object_waits_for_a_change() {
        let mut status = VirtualClusterStatus::default();
        fail(&mut status, &Error::input("spec.template: there is no VirtualClusterTemplate `x`"));
        let failure = status.failure.as_ref().unwrap();
        assert_eq!((failure.reason.as_str(), &failure.next_retry), ("Refused", &None));
        assert_eq!(again(&status), Action::await_change());
    }
}
