//! What a control plane gives a node that becomes a further one. One joins at a time: each changes the members of etcd, and what they agree by.

use std::net::IpAddr;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node as NodeObject, Secret as SecretObject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use layers::{Context as _, Error, Fault, Result};

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
    let labelled = ListParams::default().labels(CONTROL_PLANE);
    let planes = Api::<NodeObject>::all(client.clone()).list(&labelled).await.fault(Fault::Environment, || "counting control planes".into())?;
    let is_one = planes.items.iter().any(|node| node.name_any() == request.name);
    if !is_one && planes.items.len() >= usize::from(replicas) {
        return Ok(Part::Worker);
    }
    if let Some(other) = take_turn(client, &request.name, &planes.items).await? {
        return Ok(Part::Later(format!("until {other} has become a control plane")));
    }
    for member in etcd::members(host).await?.iter().filter(|member| is_left_over(member, &request.name)) {
        etcd::remove(host, member).await?;
    }
    let key = hex::encode(host.random::<32>()?);
    let (host_of_task, key_of_task) = (host.clone(), key.clone());
    let uploaded = tokio::task::spawn_blocking(move || upload(&host_of_task, own, &key_of_task)).await;
    uploaded.map_err(|error| Error::internal(error.to_string()))??;
    Ok(Part::ControlPlane(ControlPlane { certificate_key: key, encryption: files::encryption_keys(host)? }))
}

/// A node that comes back without its disk, or whose join was cut off, is not the member that etcd remembers. One that has never started has no
/// name, and whose it was no longer matters: nobody else joins now.
fn is_left_over(member: &Member, name: &str) -> bool {
    member.name == name || member.name.is_empty()
}

/// Whether a node is a whole control plane: kubeadm gives it the label in its last phase.
pub fn is_whole(node: &NodeObject) -> bool {
    node.labels().contains_key(CONTROL_PLANE)
}

/// Takes back what only a joining control plane needs.
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

/// Takes the turn of joining for a node; who has it, if that is another that is still about it.
async fn take_turn(client: &Client, name: &str, planes: &[NodeObject]) -> Result<Option<String>> {
    let (leases, naming) = (leases(client), || format!("taking Lease {LEASE}"));
    let found = leases.get_opt(LEASE).await.fault(Fault::Environment, naming)?;
    let (now, options) = (Timestamp::now(), PostParams::default());
    if let Some(other) = found.as_ref().and_then(|lease| holder(lease, name, now)).filter(|other| planes.iter().all(|node| node.name_any() != *other))
    {
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
    kubeadm::call(host, "keys.yaml", &phase, &kubeadm::Documents::read(host)?.for_keys(own, key)?)
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
}
