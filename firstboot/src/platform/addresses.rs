//! Addresses of Services of type LoadBalancer, out of the image's pool. The node that leads has them on a device of its own and answers for them on
//! every link (ARP); kube-proxy, which knows them from the Services' status, hands on what comes to them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use layers::pool::{Claim, POOL, Pool, Refusal};
use layers::{Context as _, Fault, Result};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::report::Voice;
use crate::cluster::api::gone;
use crate::cluster::mirror::{config, mirror};
use crate::cluster::routes::Troubles;
use crate::exec;
use crate::host::Host;

/// The device that has the addresses.
pub const DEVICE: &str = "pool0";
/// The class of Services that ask for an address of the pool and nobody else's; those without a class get one, too.
const CLASS: &str = "chasi-bod.io/pool";
/// Many Services change at once.
const GATHER: Duration = Duration::from_millis(100);
/// How often the device is looked at.
const CHECK: Duration = Duration::from_secs(30);

/// What the image gives out.
pub fn pool(host: &Host) -> Result<Pool> {
    let Some(text) = host.read(POOL)? else { return Ok(Pool::default()) };
    let entries: Vec<String> = serde_saphyr::from_str(&text).fault(Fault::Internal, || format!("reading /{POOL}"))?;
    Pool::parse(&entries).context(|| format!("reading /{POOL}"))
}

/// Gives out addresses and has them until the runtime ends; `patient` is a client for watches.
pub async fn run(host: &Host, client: &Client, patient: Client, voice: &Voice, pool: &Pool) {
    let (mut tasks, changed, troubles) = (JoinSet::new(), Arc::new(Notify::new()), Troubles::default());
    let wanted = config().fields("spec.type=LoadBalancer");
    let services = mirror::<Service>(Api::all(patient), wanted, &mut tasks, (&changed, &troubles, "Services"));
    if services.wait_until_ready().await.is_err() {
        return;
    }
    let mut told = BTreeMap::new();
    loop {
        let state: Vec<_> = services.state().iter().filter(|service| is_ours(service)).map(|service| Service::clone(service)).collect();
        if let Err(error) = settle(host, client, voice, pool, state, &mut told).await {
            troubles.set(vec![error.to_string()]);
        }
        troubles.list().iter().for_each(|trouble| println!("platform: {trouble}"));
        troubles.set(Vec::new());
        let _ = timeout(CHECK, changed.notified()).await;
        sleep(GATHER).await;
    }
}

/// Gives up all addresses: somebody else leads.
pub fn release(host: &Host) {
    if let Err(error) = have(host, &BTreeSet::new()) {
        println!("platform: {error}");
    }
}

fn is_ours(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref()).is_none_or(|class| class == CLASS)
}

/// One look at all Services; `told` are those that were refused, with what they were told.
async fn settle(
    host: &Host,
    client: &Client,
    voice: &Voice,
    pool: &Pool,
    mut services: Vec<Service>,
    told: &mut BTreeMap<String, Refusal>,
) -> Result<()> {
    services.sort_by_key(|service| (service.creation_timestamp(), service.namespace(), service.name_any()));
    let claims: Vec<_> = services.iter().map(claim).collect();
    let answers = pool.assign(&claims);
    have(host, &answers.iter().flatten().copied().collect())?;
    for ((service, claim), answer) in services.iter().zip(claims).zip(answers) {
        match &answer {
            Ok(_) => drop(told.remove(&claim.service)),
            Err(refusal) if told.get(&claim.service) == Some(refusal) => {}
            Err(refusal) => {
                let reason = if matches!(refusal, Refusal::Exhausted(_)) { "PoolExhausted" } else { "AddressRefused" };
                voice.warn(service, reason, &refusal.to_string()).await;
                told.insert(claim.service, refusal.clone());
            }
        }
        let ingress: Vec<_> = answer.iter().map(|address| json!({"ip": address, "ipMode": "VIP"})).collect();
        if told_of(service) != json!(ingress) {
            write(client, service, &json!(ingress)).await?;
        }
    }
    told.retain(|name, _| services.iter().any(|service| claim(service).service == *name));
    Ok(())
}

fn claim(service: &Service) -> Claim {
    let read = |text: Option<&str>| text.and_then(|text| text.parse().ok());
    Claim {
        service: format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any()),
        wanted: read(service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_deref())),
        held: read(told_of(service)[0]["ip"].as_str()),
    }
}

/// What the status has of the addresses.
fn told_of(service: &Service) -> Value {
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    // The API leaves out what is empty.
    ingress.map_or_else(|| json!([]), |ingress| json!(ingress))
}

async fn write(client: &Client, service: &Service, ingress: &Value) -> Result<()> {
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
    let written = Api::<Service>::namespaced(client.clone(), &namespace).patch_status(&name, &PatchParams::default(), &patch).await;
    gone(written).fault(Fault::Environment, || format!("writing the status of Service {namespace}/{name}"))
}

/// Makes the device have these addresses and no others; without any it need not be there.
fn have(host: &Host, wanted: &BTreeSet<Ipv4Addr>) -> Result<()> {
    let present = present(host)?;
    let ip = |args: &[&str]| exec::run(host.program("ip").args(args)).map(drop);
    if present.is_none() && !wanted.is_empty() {
        ip(&["link", "add", DEVICE, "type", "dummy"])?;
        // Without an address of its own, which the link would give it.
        ip(&["link", "set", DEVICE, "addrgenmode", "none", "up"])?;
    }
    let present = present.unwrap_or_default();
    for address in present.difference(wanted) {
        ip(&["-4", "address", "del", &format!("{address}/32"), "dev", DEVICE])?;
    }
    for address in wanted.difference(&present) {
        ip(&["-4", "address", "add", &format!("{address}/32"), "dev", DEVICE])?;
    }
    Ok(())
}

/// The addresses of the device; none when it is not there.
fn present(host: &Host) -> Result<Option<BTreeSet<Ipv4Addr>>> {
    let output = exec::run(host.program("ip").args(["-json", "address", "show"]))?;
    let links: Vec<Value> = serde_json::from_slice(&output.stdout).fault(Fault::Environment, || "reading the addresses that ip shows".into())?;
    let own = links.iter().find(|link| link["ifname"] == DEVICE);
    let addresses = |link: &Value| link["addr_info"].as_array().into_iter().flatten().filter_map(|one| one["local"].as_str()?.parse().ok()).collect();
    Ok(own.map(addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_pool_gives_out_nothing_and_a_bad_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new(folder.path());
        assert!(pool(&host).unwrap().is_empty());
        host.write(POOL, b"- 192.0.2.7\n- \"192.0.2.16/28\"\n", 0o644).unwrap();
        assert!(!pool(&host).unwrap().is_empty());
        host.write(POOL, b"- 192.0.2\n", 0o644).unwrap();
        let error = pool(&host).unwrap_err().to_string();
        assert!(error.contains(POOL) && error.contains("`192.0.2` is no IPv4 address"), "{error}");
    }

    #[test]
    fn a_service_asks_by_its_spec_and_its_status() {
        let service = |text: &str| serde_saphyr::from_str::<Service>(text).unwrap();
        let asking = service(
            "{metadata: {namespace: a, name: x}, spec: {loadBalancerIP: 192.0.2.7}, status: {loadBalancer: {ingress: [{ip: 192.0.2.9, ipMode: VIP}]}}}",
        );
        let expected = Claim { service: "a/x".into(), wanted: "192.0.2.7".parse().ok(), held: "192.0.2.9".parse().ok() };
        assert_eq!(claim(&asking), expected);
        assert_eq!(told_of(&asking), json!([{"ip": "192.0.2.9", "ipMode": "VIP"}]));
        for (text, ours) in
            [("{spec: {}}", true), ("{spec: {loadBalancerClass: chasi-bod.io/pool}}", true), ("{spec: {loadBalancerClass: metallb}}", false)]
        {
            assert_eq!(is_ours(&service(text)), ours, "{text}");
        }
    }
}
