//! Serving certificates of kubelets: a control plane approves a request (signer `kubernetes.io/kubelet-serving`) that asks for nothing
//! but what the API knows of the node. Others stay as they are, for a person to decide.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams, WatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio_stream::StreamExt as _;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::AssociatedOid as _;
use x509_cert::der::oid::db::rfc4519::{CN, O};
use x509_cert::der::{Decode as _, DecodePem as _};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::request::{CertReq, ExtensionReq};

use super::api;
use crate::host::Host;

const SIGNER: &str = "spec.signerName=kubernetes.io/kubelet-serving";
const USAGES: [&str; 3] = ["digital signature", "key encipherment", "server auth"];
const PAUSE: Duration = Duration::from_secs(1);
/// Seconds that a request which does not fit waits at most until it is looked at again: the node may have got an address meanwhile.
const LONGEST: u32 = 20;

/// Approves what fits as soon as it is there, on a control plane whose API may come and go; never returns.
pub fn approve_all(host: &Host) {
    let runtime = loop {
        match super::runtime() {
            Ok(runtime) => break runtime,
            Err(_) => std::thread::sleep(PAUSE),
        }
    };
    let mut said = BTreeSet::new();
    runtime.block_on(async {
        loop {
            // The API is away, or has not come yet: what is missing is what the cluster step says already.
            let _ = serve(host, &mut said).await;
            tokio::time::sleep(PAUSE).await;
        }
    });
}

async fn serve(host: &Host, said: &mut BTreeSet<String>) -> std::result::Result<(), String> {
    if !super::exists(host, api::ADMIN) {
        return Ok(());
    }
    let client = api::client(host, api::PATIENCE).await.map_err(|e| e.to_string())?;
    let mut wait = 1;
    loop {
        let (version, unfit) = pass(&client, said).await.map_err(|e| e.to_string())?;
        wait = if unfit { (wait * 2).min(LONGEST) } else { LONGEST };
        change(&client, &version, wait).await.map_err(|e| e.to_string())?;
    }
}

/// Looks at every request that nobody has decided on; the list's version, and whether one does not fit.
async fn pass(client: &Client, said: &mut BTreeSet<String>) -> std::result::Result<(String, bool), kube::Error> {
    let requests = Api::<CertificateSigningRequest>::all(client.clone());
    let list = requests.list(&ListParams::default().fields(SIGNER).match_any()).await?;
    let mut unfit = false;
    for request in list.items.iter().filter(|request| is_open(request)) {
        let name = request.name_any();
        match judge(client, request).await? {
            Ok(node) => {
                let condition =
                    json!({"type": "Approved", "status": "True", "reason": "ChasiBod", "message": "asks for what the API knows of its node"});
                requests.patch_approval(&name, &PatchParams::default(), &Patch::Merge(json!({"status": {"conditions": [condition]}}))).await?;
                println!("approved the serving certificate of {node}");
            }
            Err(why) => {
                unfit = true;
                let line = format!("warning: certificate request {name} is left for a person (kubectl certificate approve): {why}");
                if said.insert(line.clone()) {
                    println!("{line}");
                }
            }
        }
    }
    Ok((list.metadata.resource_version.unwrap_or_default(), unfit))
}

/// Returns at the first change after a version of the list, or after some seconds.
async fn change(client: &Client, version: &str, seconds: u32) -> std::result::Result<(), kube::Error> {
    let requests = Api::<CertificateSigningRequest>::all(client.clone());
    let events = requests.watch(&WatchParams::default().fields(SIGNER).timeout(seconds), version).await?;
    pin!(events).next().await.transpose().map(|_| ())
}

fn is_open(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().and_then(|status| status.conditions.as_ref()).is_none_or(Vec::is_empty)
}

/// The node whose request is right, or why it is not.
async fn judge(client: &Client, request: &CertificateSigningRequest) -> std::result::Result<std::result::Result<String, String>, kube::Error> {
    let Some(name) = request.spec.username.as_deref().and_then(|user| user.strip_prefix("system:node:")) else {
        return Ok(Err("it does not come from a node".into()));
    };
    let node = Api::<Node>::all(client.clone()).get_opt(name).await?;
    Ok(node.ok_or_else(|| "the API knows no such node".into()).and_then(|node| objection(request, name, &node)).map(|()| name.to_string()))
}

/// An error says what of a request is not a kubelet's serving certificate (Kubernetes documentation, "Kubernetes signers") of this node.
fn objection(request: &CertificateSigningRequest, name: &str, node: &Node) -> std::result::Result<(), String> {
    let spec = &request.spec;
    let has = |list: &Option<Vec<String>>, word: &str| list.iter().flatten().any(|item| item == word);
    if !has(&spec.groups, "system:nodes") {
        return Err("it does not come from the group system:nodes".into());
    }
    if !has(&spec.usages, "server auth") || spec.usages.iter().flatten().any(|usage| !USAGES.contains(&usage.as_str())) {
        return Err(format!("usages {}", spec.usages.iter().flatten().cloned().collect::<Vec<_>>().join(", ")));
    }
    let parsed = CertReq::from_pem(&spec.request.0).map_err(|e| format!("its PKCS#10 cannot be read: {e}"))?;
    subject_is(&parsed, name)?;
    let names = names(&parsed).map_err(|e| format!("its names cannot be read: {e}"))?;
    if names.is_empty() {
        return Err("it names no address".into());
    }
    let known = |types: &[&str]| -> Vec<String> {
        let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        all.filter(|address| types.contains(&address.type_.as_str())).map(|address| address.address.clone()).collect()
    };
    let (hosts, addresses) = (known(&["Hostname", "InternalDNS", "ExternalDNS"]), known(&["InternalIP", "ExternalIP"]));
    for asked in names {
        let fine = match &asked {
            Asked::Host(host) => hosts.contains(host),
            Asked::Address(ip) => addresses.iter().any(|known| known.parse() == Ok(*ip)),
            Asked::Other => false,
        };
        if !fine {
            return Err(format!("the Node object does not have {asked:?}"));
        }
    }
    Ok(())
}

/// Exactly one organisation, `system:nodes`, and one common name, the node's user.
fn subject_is(request: &CertReq, name: &str) -> std::result::Result<(), String> {
    let parts: Vec<_> = request.info.subject.0.iter().flat_map(|part| part.0.iter()).collect();
    let user = format!("system:node:{name}");
    let is = |part: &&&AttributeTypeAndValue, wanted: &str| text(part) == Some(wanted);
    let organisation = parts.iter().find(|part| part.oid == O).is_some_and(|part| is(&part, "system:nodes"));
    let common_name = parts.iter().find(|part| part.oid == CN).is_some_and(|part| is(&part, &user));
    match organisation && common_name && parts.len() == 2 {
        true => Ok(()),
        false => Err(format!("its subject is `{}`", request.info.subject)),
    }
}

fn text(part: &AttributeTypeAndValue) -> Option<&str> {
    let printable = part.value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str());
    printable.or_else(|_| part.value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str())).ok()
}

/// A name that a certificate is asked for.
#[derive(Debug, PartialEq)]
enum Asked {
    Host(String),
    Address(IpAddr),
    Other,
}

fn names(request: &CertReq) -> x509_cert::der::Result<Vec<Asked>> {
    let mut found = Vec::new();
    for value in request.info.attributes.iter().filter(|attribute| attribute.oid == ExtensionReq::OID).flat_map(|attribute| attribute.values.iter()) {
        for extension in value.decode_as::<Vec<x509_cert::ext::Extension>>()?.iter().filter(|extension| extension.extn_id == SubjectAltName::OID) {
            found.extend(SubjectAltName::from_der(extension.extn_value.as_bytes())?.0.iter().map(asked));
        }
    }
    Ok(found)
}

fn asked(name: &GeneralName) -> Asked {
    match name {
        GeneralName::DnsName(name) => Asked::Host(name.to_string()),
        GeneralName::IpAddress(bytes) => {
            let four = <[u8; 4]>::try_from(bytes.as_bytes()).map(|b| IpAddr::V4(Ipv4Addr::from(b)));
            let ip = four.or_else(|_| <[u8; 16]>::try_from(bytes.as_bytes()).map(|b| IpAddr::V6(Ipv6Addr::from(b))));
            ip.map_or(Asked::Other, Asked::Address)
        }
        _ => Asked::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [(&str, &str, Option<&str>); 7] = [
        ("good", include_str!("../../tests/certificates/good.csr"), None),
        ("foreign address", include_str!("../../tests/certificates/foreign-address.csr"), Some("10.0.0.6")),
        ("foreign name", include_str!("../../tests/certificates/foreign-name.csr"), Some("kubernetes.default")),
        ("mail", include_str!("../../tests/certificates/mail.csr"), Some("Other")),
        ("other node", include_str!("../../tests/certificates/other-node.csr"), Some("its subject is")),
        ("masters", include_str!("../../tests/certificates/masters.csr"), Some("its subject is")),
        ("nameless", include_str!("../../tests/certificates/nameless.csr"), Some("no address")),
    ];

    fn node() -> Node {
        let addresses = json!([{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.5"}]);
        serde_json::from_value(json!({"status": {"addresses": addresses}})).unwrap()
    }

    fn request(pem: &str, groups: &[&str], usages: &[&str]) -> CertificateSigningRequest {
        use base64::prelude::{BASE64_STANDARD, Engine as _};
        let spec = json!({
            "request": BASE64_STANDARD.encode(pem), "signerName": "kubernetes.io/kubelet-serving", "username": "system:node:n1", "groups": groups,
            "usages": usages,
        });
        serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": spec})).unwrap()
    }

    #[test]
    fn only_what_the_api_knows_of_the_node_is_approved() {
        for (what, pem, why) in ALL {
            let said = objection(&request(pem, &["system:nodes", "system:authenticated"], &["digital signature", "server auth"]), "n1", &node());
            match why {
                None => assert_eq!(said, Ok(()), "{what}"),
                Some(why) => assert!(said.as_ref().is_err_and(|said| said.contains(why)), "{what}: {said:?}"),
            }
        }
    }

    #[test]
    fn groups_usages_and_damaged_requests_are_looked_at() {
        let good = ALL[0].1;
        let said = |request| objection(&request, "n1", &node()).unwrap_err();
        assert!(said(request(good, &["system:authenticated"], &["server auth"])).contains("system:nodes"));
        assert!(said(request(good, &["system:nodes"], &["server auth", "client auth"])).contains("client auth"));
        assert!(said(request(good, &["system:nodes"], &["digital signature"])).contains("usages"));
        for length in (0..good.len()).step_by(7) {
            assert!(objection(&request(&good[..length], &["system:nodes"], &["server auth"]), "n1", &node()).is_err(), "{length}");
        }
    }

    #[test]
    fn a_request_that_was_decided_on_is_left_alone() {
        let mut open = request(ALL[0].1, &[], &[]);
        assert!(is_open(&open));
        open.status = serde_json::from_value(json!({"conditions": [{"type": "Denied", "status": "True"}]})).unwrap();
        assert!(!is_open(&open));
    }
}
