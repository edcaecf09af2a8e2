//! What a control plane gives a node that becomes a further one. One joins at a time: each changes the members of etcd, and what they agree by.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Node as NodeObject, Secret as SecretObject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use layers::{Context as _, Error, Fault, Result};
use serde_json::json;

use super::founder::LIFE;
use super::{ControlPlane, Request, Wants};
use crate::cluster::api::gone;
use crate::cluster::etcd::{self, Member};
use crate::cluster::routes::CONTROL_PLANE;
use crate::cluster::{files, kubeadm};
use crate::host::Host;

const LEASE: &str = "chasi-bod-joining";
/// Where kubeadm puts the authorities' keys, enciphered.
const KEYS: &str = "kubeadm-certs";
/// Longest upload of them; below what a joining node waits for.
const UPLOAD: Duration = Duration::from_secs(40);
/// What works only once in a cluster.
const SINGLE: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// What a node becomes.
pub enum Part {
    Worker,
    ControlPlane(ControlPlane),
    /// It is to ask again.
    Later(String),
}

/// Decides on a node of a cluster that grows to so many control planes, and makes what one needs; `own` is the address of this one.
pub async fn part(client: &Client, host: &Host, own: IpAddr, request: &Request, replicas: u16) -> Result<Part> {
    if request.wants != Wants::ControlPlane || replicas < 2 {
        return Ok(Part::Worker);
    }
    let planes = names(client, &ListParams::default().labels(CONTROL_PLANE)).await?;
    if !planes.contains(&request.name) && planes.len() >= usize::from(replicas) {
        return Ok(Part::Worker);
    }
    if let Some(other) = take_turn(client, &request.name).await? {
        return Ok(Part::Later(format!("until {other} has become a control plane")));
    }
    if let Some(program) = not_electing(client, host).await? {
        return Ok(Part::Later(format!("until {program} of this cluster elects who works")));
    }
    let mut others = names(client, &ListParams::default()).await?;
    others.retain(|name| *name != request.name);
    for member in etcd::members(host).await?.iter().filter(|member| is_left_over(member, &others)) {
        etcd::remove(host, member).await?;
    }
    let key = hex::encode(host.random::<32>()?);
    let (host_of_task, key_of_task) = (host.clone(), key.clone());
    let uploaded = tokio::task::spawn_blocking(move || upload(&host_of_task, own, &key_of_task)).await;
    uploaded.map_err(|error| Error::internal(error.to_string()))??;
    Ok(Part::ControlPlane(ControlPlane { certificate_key: key, encryption: files::encryption_keys(host)? }))
}

async fn names(client: &Client, which: &ListParams) -> Result<Vec<String>> {
    let nodes = Api::<NodeObject>::all(client.clone()).list_metadata(which).await.fault(Fault::Environment, || "listing nodes".into())?;
    Ok(nodes.items.iter().map(|node| node.name_any()).collect())
}

/// A node that comes back without its disk, or whose join was cut off, is not the member that etcd remembers, nor is one that was deleted. One that
/// has never started has no name, and whose it was no longer matters: nobody else joins now.
fn is_left_over(member: &Member, others: &[String]) -> bool {
    !others.contains(&member.name)
}

/// A cluster that was founded for one control plane has nobody that elects: several would all work at once. What is changed here counts for those that
/// come, and from a program's next start; the name of one that has not elected within its lease's time.
async fn not_electing(client: &Client, host: &Host) -> Result<Option<&'static str>> {
    let naming = || "reading what further control planes are made by".into();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let map = maps.get("kubeadm-config").await.fault(Fault::Environment, naming)?;
    let kept = map.data.as_ref().and_then(|data| data.get(CONFIGURATION)).map_or("", String::as_str);
    if let Some(electing) = kubeadm::electing(kept)? {
        let patch = json!({"data": {CONFIGURATION: electing}});
        maps.patch("kubeadm-config", &PatchParams::default(), &Patch::Merge(patch)).await.fault(Fault::Environment, naming)?;
    }
    for program in SINGLE {
        files::elect(host, program)?;
        let lease = leases(client).get_opt(program).await.fault(Fault::Environment, naming)?;
        if !lease.is_some_and(|lease| is_held(&lease, Timestamp::now())) {
            return Ok(Some(program));
        }
    }
    Ok(None)
}

/// In the ConfigMap that kubeadm keeps for joining nodes.
const CONFIGURATION: &str = "ClusterConfiguration";

/// Whether somebody has renewed it in time.
fn is_held(lease: &Lease, now: Timestamp) -> bool {
    let spec = lease.spec.as_ref();
    let lasts = spec.and_then(|spec| spec.lease_duration_seconds).map_or(0, i64::from);
    spec.and_then(|spec| spec.renew_time.as_ref()).is_some_and(|renewed| now < renewed.0 + SignedDuration::from_secs(lasts))
}

/// Takes back what only a joining control plane needs, when it is through: it does so itself.
pub async fn end(client: &Client, name: &str) -> kube::Result<()> {
    let leases = leases(client);
    let holds = |lease: &Lease| lease.spec.as_ref().is_some_and(|spec| spec.holder_identity.as_deref() == Some(name));
    if leases.get_opt(LEASE).await?.as_ref().is_some_and(holds) {
        let secrets: Api<SecretObject> = Api::namespaced(client.clone(), "kube-system");
        gone(secrets.delete(KEYS, &DeleteParams::default()).await)?;
        gone(leases.delete(LEASE, &DeleteParams::default()).await)?;
    }
    Ok(())
}

fn leases(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), "kube-system")
}

/// Takes the turn of joining for a node; who has it, if that is another that may still be about it.
async fn take_turn(client: &Client, name: &str) -> Result<Option<String>> {
    let (leases, naming) = (leases(client), || format!("taking Lease {LEASE}"));
    let found = leases.get_opt(LEASE).await.fault(Fault::Environment, naming)?;
    let (now, options) = (Timestamp::now(), PostParams::default());
    if let Some(other) = found.as_ref().and_then(|lease| holder(lease, name, now)) {
        return Ok(Some(other));
    }
    let mut lease = found.clone().unwrap_or_default();
    lease.metadata.name = Some(LEASE.into());
    let lasts = i32::try_from(LIFE.as_secs()).ok();
    let spec =
        LeaseSpec { holder_identity: Some(name.into()), lease_duration_seconds: lasts, renew_time: Some(MicroTime(now)), ..LeaseSpec::default() };
    lease.spec = Some(spec);
    let written = match found {
        Some(_) => leases.replace(LEASE, &options, &lease).await,
        None => leases.create(&options, &lease).await,
    };
    match written {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Some("another node".into())),
        Err(error) => Err(error).fault(Fault::Environment, naming),
    }
}

/// Who else has the turn, as long as a join may take.
fn holder(lease: &Lease, name: &str, now: Timestamp) -> Option<String> {
    let spec = lease.spec.as_ref()?;
    let other = spec.holder_identity.clone().filter(|holder| holder != name)?;
    spec.renew_time.as_ref().is_some_and(|renewed| now < renewed.0 + LIFE).then_some(other)
}

/// Puts the authorities' keys into the cluster, enciphered with the key; kubeadm takes them away again after two hours.
fn upload(host: &Host, own: IpAddr, key: &str) -> Result<()> {
    let phase = ["init", "phase", "upload-certs", "--upload-certs", "--skip-certificate-key-print"];
    kubeadm::call(host, "keys.yaml", &phase, &kubeadm::Documents::read(host)?.for_keys(own, key)?, UPLOAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_somebody_elses_only_while_a_join_may_last() {
        let now = Timestamp::now();
        let lease = |holder: &str, renewed: Timestamp| Lease {
            spec: Some(LeaseSpec { holder_identity: Some(holder.into()), renew_time: Some(MicroTime(renewed)), ..LeaseSpec::default() }),
            ..Lease::default()
        };
        assert_eq!(holder(&lease("b", now), "a", now).as_deref(), Some("b"));
        assert_eq!(holder(&lease("a", now), "a", now), None);
        assert_eq!(holder(&lease("b", now - LIFE), "a", now), None);
        assert_eq!(holder(&Lease::default(), "a", now), None);
    }

    #[test]
    fn whoever_has_not_renewed_its_lease_does_not_elect() {
        let now = Timestamp::now();
        let lease = |ago: i64| Lease {
            spec: Some(LeaseSpec {
                lease_duration_seconds: Some(15),
                renew_time: Some(MicroTime(now - SignedDuration::from_secs(ago))),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        assert_eq!([is_held(&lease(14), now), is_held(&lease(15), now), is_held(&Lease::default(), now)], [true, false, false]);
    }

    #[test]
    fn g1_members_without_a_node_and_those_of_the_node_that_joins_are_left_over() {
        let others = ["a".to_string(), "b".into()];
        let left_over = |name: &str| is_left_over(&Member { id: "1".into(), name: name.into() }, &others);
        assert_eq!(["a", "b", "joins", "deleted", ""].map(left_over), [false, false, true, true, true]);
    }
}
