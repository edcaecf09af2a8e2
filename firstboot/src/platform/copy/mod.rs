//! Snapshots and restores: copies of a virtual cluster's data, one at a time. The state machine of the virtual cluster says when; each look here does
//! one thing, and all that is remembered is the pod and the object's status.

mod oci;
mod pod;
mod transfer;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt as _};
use layers::platform::machine::Copying;
use layers::platform::snapshot::{CopyPhase, CopyStatus, Place};
use layers::platform::{Phase, Restore, Snapshot, VirtualCluster};
use layers::{Context as _, Error, Fault, Result};
use pod::State;
use serde::Serialize;
use serde::de::DeserializeOwned;
use transfer::Copied;

use super::report::{self, Voice};
use super::{fresh, host};
use crate::cluster::api::{WATCH, gone};
use crate::host::Host;

pub use pod::APP;

/// How often one is looked at whose virtual cluster may not be there.
const LATER: Duration = Duration::from_secs(60);

/// How old a pod's status may be; the kubelet looks at its containers each second.
const STALE: Duration = Duration::from_secs(5);

/// One Snapshot or Restore.
#[derive(Clone, Debug)]
pub struct Task {
    pub copying: Copying,
    pub name: String,
    pub cluster: String,
    pub place: Place,
    pub created: Option<Time>,
    pub status: CopyStatus,
    generation: Option<i64>,
    /// For its pod, which goes with it.
    owner: OwnerReference,
}

impl From<&Snapshot> for Task {
    fn from(object: &Snapshot) -> Self {
        Self {
            copying: Copying::Snapshot,
            name: object.name_any(),
            cluster: object.spec.virtual_cluster.clone(),
            place: object.spec.to.clone(),
            generation: object.metadata.generation,
            created: object.creation_timestamp(),
            status: object.status.clone().unwrap_or_default(),
            owner: object.owner_ref(&()).unwrap_or_default(),
        }
    }
}

impl From<&Restore> for Task {
    fn from(object: &Restore) -> Self {
        Self {
            copying: Copying::Restore,
            name: object.name_any(),
            cluster: object.spec.virtual_cluster.clone(),
            place: object.spec.from.clone(),
            generation: object.metadata.generation,
            created: object.creation_timestamp(),
            status: object.status.clone().unwrap_or_default(),
            owner: object.owner_ref(&()).unwrap_or_default(),
        }
    }
}

/// The copy of a virtual cluster's data that is due: the one that was begun, else the oldest.
pub async fn due(client: &Client, cluster: &str) -> Result<Option<Task>> {
    let snapshots =
        Api::<Snapshot>::all(client.clone()).list(&ListParams::default()).await.fault(Fault::Environment, || "listing Snapshots".into())?;
    let restores = Api::<Restore>::all(client.clone()).list(&ListParams::default()).await.fault(Fault::Environment, || "listing Restores".into())?;
    let snapshots = snapshots.iter().filter(|object| object.metadata.deletion_timestamp.is_none()).map(Task::from);
    let restores = restores.iter().filter(|object| object.metadata.deletion_timestamp.is_none()).map(Task::from);
    Ok(first(snapshots.chain(restores).filter(|task| task.cluster == cluster)))
}

fn first(tasks: impl Iterator<Item = Task>) -> Option<Task> {
    tasks.filter(Task::is_due).min_by_key(|task| (task.status.phase != CopyPhase::Running, task.created.clone(), task.name.clone()))
}

/// Follows all of them to tell of those that name no virtual cluster; the others are its controller's.
pub async fn astray(client: Client, patient: Client, voice: Voice) {
    tokio::join!(follow::<Snapshot>(client.clone(), patient.clone(), voice.clone()), follow::<Restore>(client, patient, voice));
}

async fn follow<K>(client: Client, patient: Client, voice: Voice)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static,
    for<'a> Task: From<&'a K>,
{
    let site = Arc::new((client, voice.clone()));
    let work = |object: Arc<K>, site: Arc<(Client, Voice)>| async move {
        let (client, voice) = site.as_ref();
        let Some(mut task) = fresh(client, object.as_ref()).await?.as_ref().map(Task::from).filter(Task::is_due) else {
            return Ok::<_, Error>(Action::await_change());
        };
        let found = Api::<VirtualCluster>::all(client.clone()).get_opt(&task.cluster).await;
        if found.fault(Fault::Environment, || format!("reading virtual cluster {}", task.cluster))?.is_none() {
            let why = Error::environment(format!("spec.virtualCluster: there is no virtual cluster {}", task.cluster));
            task.fails(voice, &why).await?;
        }
        // Its virtual cluster may come or go later.
        Ok(Action::requeue(LATER))
    };
    let controller = Controller::new(Api::<K>::all(patient), watcher::Config::default().timeout(WATCH));
    let known = controller.store();
    voice.follow(known, controller.run(work, |_, _, _| Action::requeue(LATER), site)).await;
}

/// What a copy is made with.
pub struct Site<'a> {
    pub client: &'a Client,
    pub host: &'a Host,
    pub voice: &'a Voice,
}

impl Task {
    fn is_due(&self) -> bool {
        match (self.status.phase, &self.status.failure) {
            (CopyPhase::Done, _) => false,
            (CopyPhase::Error, Some(failure)) => failure.next_retry.is_some() && report::is_due(Some(failure)),
            _ => true,
        }
    }

    /// A field of the place, as people write it.
    fn field(&self, name: &str) -> String {
        format!("spec.{}.{name}", if self.copying == Copying::Snapshot { "to" } else { "from" })
    }

    /// Tells that the virtual cluster is at something else.
    pub async fn waits(mut self, site: &Site<'_>, phase: Phase) -> Result<()> {
        let message = format!("virtual cluster {} is {}", self.cluster, report::pascal(&phase).to_lowercase());
        self.say(site.voice, CopyPhase::Pending, ("Waiting", &message)).await
    }

    /// One look and one piece of work. What fails because of the copy itself is told by its object, all else is an error.
    pub async fn go_on(mut self, site: &Site<'_>, sets: &[StatefulSet]) -> Result<()> {
        match self.step(site, sets).await {
            Ok(Step::Going(what)) => self.say(site.voice, CopyPhase::Running, ("Copying", &what)).await,
            Ok(Step::Done(copied)) => self.done(site, copied).await,
            Err(Failed::Copy(error)) => self.failed(site, &error).await,
            Err(Failed::Look(error)) => Err(error),
        }
    }

    async fn step(&self, site: &Site<'_>, sets: &[StatefulSet]) -> Result<Step, Failed> {
        let place = host::Place::new(site.client, &self.cluster);
        let api = Api::<Pod>::namespaced(site.client.clone(), &place.namespace);
        let found = api.get_opt(pod::NAME).await.fault(Fault::Environment, || format!("reading pod {} of {}", pod::NAME, place.namespace))?;
        let own = sets.iter().find(|set| set.name_any() == self.cluster);
        let own = own.ok_or_else(|| Error::environment(format!("StatefulSet {} of {} is not there", self.cluster, place.namespace)))?;
        let Some(found) = found else {
            self.check(site, &place.namespace).await.map_err(Failed::Copy)?;
            if self.copying == Copying::Restore && !place.halted(own).await? {
                return Ok(Step::Going("stopping the control plane".into()));
            }
            return self.begin(&api, own).await;
        };
        if found.owner_references().iter().all(|owner| owner.uid != self.owner.uid) {
            remove(&api).await?;
            return Ok(Step::Going("another copy's pod goes".into()));
        }
        let keeps = self.place.volume_claim.is_some();
        match (pod::state(&found), self.copying) {
            (State::Failed(why), _) => Err(Failed::Copy(Error::environment(format!("{}: {why}", self.place)))),
            (State::Keeping, _) if !keeps => match self.transfer(site.host, &place.namespace).await {
                Err(failed) => if_it_still_keeps(&api, failed).await,
                gone_on => gone_on,
            },
            (State::Going(why), _) => Ok(Step::Going(why)),
            (State::Keeping, _) => Ok(Step::Going(String::new())),
            (State::Done(line), Copying::Snapshot) => Ok(Step::Done(Some(Copied::read(&line)?))),
            (State::Done(_), Copying::Restore) => Ok(Step::Done(None)),
        }
    }

    /// Refuses what cannot become anything, before something is stopped for it.
    async fn check(&self, site: &Site<'_>, namespace: &str) -> Result<()> {
        if let Some(text) = &self.place.oci {
            oci::reference(&self.field("oci"), text)?;
        }
        if let (Copying::Restore, Some(name)) = (self.copying, &self.place.file) {
            transfer::check(site.host, &self.field("file"), name)?;
        }
        if let Some(claim) = &self.place.volume_claim {
            let api = Api::<PersistentVolumeClaim>::namespaced(site.client.clone(), namespace);
            let found = api.get_opt(&claim.name).await.fault(Fault::Environment, || format!("reading volume claim {}", claim.name))?;
            let field = self.field("volumeClaim.name");
            found.ok_or_else(|| Error::environment(format!("{field}: there is no volume claim {} in {namespace}", claim.name)))?;
        }
        Ok(())
    }

    async fn begin(&self, api: &Api<Pod>, set: &StatefulSet) -> Result<Step, Failed> {
        let made = pod::pod(&self.owner, self.copying, &self.place, set)?;
        let object: Pod = serde_json::from_value(made).fault(Fault::Internal, || format!("making pod {}", pod::NAME))?;
        match api.create(&PostParams::default(), &object).await {
            // Such as a quota that has no room for it.
            Err(kube::Error::Api(status)) if status.code != 409 => {
                Err(Failed::Copy(Error::environment(format!("making its pod: {}", status.message))))
            }
            Err(error @ kube::Error::Api(_)) => Ok(Step::Going(error.to_string())),
            made => Ok(made.map(|_| Step::Going(String::new())).fault(Fault::Environment, || format!("making pod {}", pod::NAME))?),
        }
    }

    /// The agent's own part, between the pod and a file.
    async fn transfer(&self, host: &Host, namespace: &str) -> Result<Step, Failed> {
        let (host, namespace, copying) = (host.clone(), namespace.to_string(), self.copying);
        let (file, oci, field) = (self.place.file.clone().unwrap_or_default(), self.place.oci.clone(), self.field("oci"));
        let work = move || match (copying, oci) {
            (Copying::Snapshot, None) => transfer::to_file(&host, &namespace, &file).map(|copied| Step::Done(Some(copied))),
            (Copying::Snapshot, Some(text)) => {
                transfer::to_registry(&host, &namespace, &oci::reference(&field, &text)?).map(|copied| Step::Done(Some(copied)))
            }
            (Copying::Restore, None) => transfer::from_file(&host, &namespace, &file).map(|()| Step::Going(String::new())),
            (Copying::Restore, Some(text)) => {
                transfer::from_registry(&host, &namespace, &oci::reference(&field, &text)?).map(|()| Step::Going(String::new()))
            }
        };
        // Such as a disk that is full.
        super::blocking(work).await.map_err(Failed::Copy)
    }

    /// Without the pod first: were this the other way round and cut off between, the pod would stay.
    async fn done(&mut self, site: &Site<'_>, copied: Option<Copied>) -> Result<()> {
        self.remove_pod(site).await?;
        self.status.failure = None;
        self.status.size = copied.as_ref().map(|copied| Quantity(copied.size.to_string()));
        self.status.digest = copied.map(|copied| copied.digest.to_string());
        let message = match &self.place.file {
            Some(name) => format!("/{} on node {}", transfer::path(name), site.host.line("etc/hostname")),
            None => self.place.to_string(),
        };
        self.say(site.voice, CopyPhase::Done, ("Copied", &message)).await
    }

    /// A snapshot is tried again; a restore is not, as the virtual cluster is stopped for it each time.
    async fn failed(&mut self, site: &Site<'_>, error: &Error) -> Result<()> {
        self.remove_pod(site).await?;
        self.fails(site.voice, error).await
    }

    async fn fails(&mut self, voice: &Voice, error: &Error) -> Result<()> {
        let mut failure = report::failure(self.status.failure.take(), error);
        if self.copying == Copying::Restore {
            failure.next_retry = None;
        }
        let message = failure.message.clone();
        self.status.failure = Some(failure);
        self.say(voice, CopyPhase::Error, ("Failed", &message)).await
    }

    async fn remove_pod(&self, site: &Site<'_>) -> Result<()> {
        let place = host::Place::new(site.client, &self.cluster);
        remove(&Api::namespaced(site.client.clone(), &place.namespace)).await
    }

    /// Writes the status unless it is told already.
    async fn say(&mut self, voice: &Voice, phase: CopyPhase, (reason, message): (&str, &str)) -> Result<()> {
        let before = self.status.clone();
        if before.phase != phase {
            self.status.since = Some(report::now());
        }
        self.status.phase = phase;
        self.status.observed_generation = self.generation;
        report::condition(&mut self.status.conditions, self.generation, "Complete", Some(phase == CopyPhase::Done), (reason, message));
        if self.status == before {
            return Ok(());
        }
        if before.phase != phase {
            println!("platform: {} {} of {}: {}: {message}", self.owner.kind, self.name, self.cluster, report::pascal(&phase));
        }
        match self.copying {
            Copying::Snapshot => voice.write::<Snapshot>(&self.name, &self.status).await,
            Copying::Restore => voice.write::<Restore>(&self.name, &self.status).await,
        }
    }
}

/// How far a copy is after a look.
enum Step {
    /// It goes on, and what it waits for.
    Going(String),
    /// It is there; a restore leaves nothing to tell.
    Done(Option<Copied>),
}

/// Why a copy does not go on.
enum Failed {
    /// The copy itself failed.
    Copy(Error),
    /// Nobody knows how far it is.
    Look(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Look(error)
    }
}

/// A transfer fails, too, when the keeper has what it waited for and ended before its pod's status says so.
async fn if_it_still_keeps(api: &Api<Pod>, failed: Failed) -> Result<Step, Failed> {
    tokio::time::sleep(STALE).await;
    let found = api.get_opt(pod::NAME).await.fault(Fault::Environment, || format!("reading pod {}", pod::NAME))?;
    match found.as_ref().map(pod::state) {
        Some(State::Keeping) | None => Err(failed),
        Some(_) => Ok(Step::Going(String::new())),
    }
}

async fn remove(api: &Api<Pod>) -> Result<()> {
    let deleted = api.delete(pod::NAME, &DeleteParams::default().grace_period(0)).await;
    gone(deleted).fault(Fault::Environment, || format!("deleting pod {}", pod::NAME))
}
