//! Certificates of hosts below which virtual clusters are exposed by a path: TLS ends at the ingress controller there. They lie in the platform's own namespace:
//! several virtual clusters may share a host, and the syncer of one reads the Secrets of its own namespace. An Ingress without routes tells the controller of them.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use layers::platform::VirtualCluster;
use layers::platform::settings::Exposure;
use layers::{Context as _, Error, Fault, Result};
use serde_json::{Value, json};

use super::certificates::{configuration, kubeadm};
use super::host::{LABEL, PREFIX};
use super::{NAMESPACE, apply, blocking};
use crate::cluster::api::{gone, made};
use crate::host::Host;

/// The Secret of the authority that signs all of them and nothing else.
const AUTHORITY: &str = "chasi-bod-exposure-ca";
/// The policy of the ingress class.
const GUARD: &str = "chasi-bod-virtual-apis";
/// The annotation with the host that a certificate is for.
const HOST: &str = "chasi-bod.io/host";
/// Files as kubeadm and as Secrets for TLS call them.
const CA: [(&str, &str); 2] = [("ca.crt", "tls.crt"), ("ca.key", "tls.key")];
const SERVER: [(&str, &str); 3] = [("apiserver.crt", "tls.crt"), ("apiserver.key", "tls.key"), ("ca.crt", "ca.crt")];

/// The name of Ingress and Secret of a virtual cluster.
pub fn called(name: &str) -> String {
    format!("exposure-{name}")
}

/// Keeps the class to what it is for: requests of it carry tokens, and its routes come before those of other classes. In a virtual cluster's namespace only the
/// Ingress of its API is called as the virtual cluster is; the copies of its users' objects have longer names.
pub async fn guard(client: &Client) -> Result<()> {
    let class = Exposure::BELOW;
    let rule = json!({"apiGroups": ["networking.k8s.io"], "apiVersions": ["v1"], "resources": ["ingresses"], "operations": ["CREATE", "UPDATE"]});
    let named = "object.spec.?ingressClassName.orValue('')";
    let annotated = "object.metadata.?annotations[?'kubernetes.io/ingress.class'].orValue('')";
    let of_api = format!("({named} != '{class}' && {annotated} != '{class}') || object.metadata.namespace == '{PREFIX}' + object.metadata.name");
    let spec = json!({
        "matchConstraints": {"namespaceSelector": {"matchExpressions": [{"key": LABEL, "operator": "Exists"}]}, "resourceRules": [rule]},
        "validations": [{"expression": of_api, "message": format!("ingress class {class} is for the APIs of virtual clusters alone")}],
    });
    let object =
        |kind: &str, spec: Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": GUARD}, "spec": spec});
    let policy = object("ValidatingAdmissionPolicy", spec);
    apply(&Api::<ValidatingAdmissionPolicy>::all(client.clone()), GUARD, &policy).await?;
    let binding = object("ValidatingAdmissionPolicyBinding", json!({"policyName": GUARD, "validationActions": ["Deny"]}));
    apply(&Api::<ValidatingAdmissionPolicyBinding>::all(client.clone()), GUARD, &binding).await
}

/// Sees to it that the ingress controller has a certificate for the host; both go with the virtual cluster.
pub async fn keep(host: &Host, client: &Client, object: &VirtualCluster, exposure: &Exposure) -> Result<()> {
    let (name, own) = (called(&object.name_any()), exposure.tls_secret.clone());
    if own.is_none() {
        certify(host, client, object, &exposure.host).await.context(|| format!("making a certificate for {}", exposure.host))?;
    }
    let spec = json!({
        "ingressClassName": exposure.class(),
        "tls": [{"hosts": [exposure.host], "secretName": own.unwrap_or_else(|| name.clone())}],
        "rules": [{"host": exposure.host}],
    });
    let metadata = json!({"name": name, "namespace": NAMESPACE, "ownerReferences": [object.owner_ref(&())]});
    let ingress = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec});
    apply(&Api::<Ingress>::namespaced(client.clone(), NAMESPACE), &name, &ingress).await
}

/// Takes both away from one that has no path any more.
pub async fn remove(client: &Client, object: &VirtualCluster) -> Result<()> {
    let (name, how) = (called(&object.name_any()), DeleteParams::default());
    let removing = || format!("deleting {name} of namespace {NAMESPACE}");
    gone(Api::<Ingress>::namespaced(client.clone(), NAMESPACE).delete(&name, &how).await).fault(Fault::Environment, removing)?;
    gone(Api::<Secret>::namespaced(client.clone(), NAMESPACE).delete(&name, &how).await).fault(Fault::Environment, removing)
}

/// Makes the Secret; one for the same host is left alone.
async fn certify(host: &Host, client: &Client, object: &VirtualCluster, server: &str) -> Result<()> {
    let (name, secrets) = (called(&object.name_any()), Api::<Secret>::namespaced(client.clone(), NAMESPACE));
    let found = secrets.get_opt(&name).await.fault(Fault::Environment, || format!("reading Secret {name}"))?;
    if found.is_some_and(|found| found.annotations().get(HOST).is_some_and(|known| known == server)) {
        return Ok(());
    }
    let authority = authority(host, &secrets).await?;
    let (host, named) = (host.clone(), server.to_string());
    let files = blocking(move || {
        // It also names what the API server of a cluster is called: nobody trusts this authority for that.
        let mut configuration = configuration(&host, &named, &format!("{named}:443"))?;
        configuration[1]["apiServer"] = json!({"certSANs": [named]});
        let given = CA.map(|(file, key)| (file, authority[key].as_str()));
        texts(kubeadm(&host, configuration, &given, &["certs apiserver"])?, &SERVER)
    });
    let metadata = json!({"name": name, "annotations": {HOST: server}, "ownerReferences": [object.owner_ref(&())]});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "kubernetes.io/tls", "stringData": files.await?});
    apply(&secrets, &name, &secret).await
}

/// Certificate and key of the authority, which is made with the first certificate.
async fn authority(host: &Host, secrets: &Api<Secret>) -> Result<BTreeMap<String, String>> {
    let reading = || format!("reading Secret {AUTHORITY}");
    if secrets.get_opt(AUTHORITY).await.fault(Fault::Environment, reading)?.is_none() {
        let host = host.clone();
        let made_now = move || texts(kubeadm(&host, configuration(&host, AUTHORITY, AUTHORITY)?, &[], &["certs ca"])?, &CA);
        let secret = json!({"metadata": {"name": AUTHORITY}, "type": "kubernetes.io/tls", "stringData": blocking(made_now).await?});
        let secret = serde_json::from_value(secret).fault(Fault::Internal, || format!("making Secret {AUTHORITY}"))?;
        made(secrets.create(&PostParams::default(), &secret).await).fault(Fault::Environment, || format!("making Secret {AUTHORITY}"))?;
    }
    let found = secrets.get(AUTHORITY).await.fault(Fault::Environment, reading)?.data.unwrap_or_default();
    let files = found.into_iter().map(|(key, ByteString(bytes))| (key, bytes)).collect();
    texts(files, &CA.map(|(_, key)| (key, key))).context(reading)
}

/// Files as texts under other names; each must be there.
fn texts(mut files: BTreeMap<String, Vec<u8>>, names: &[(&str, &str)]) -> Result<BTreeMap<String, String>> {
    let text = |(file, key): &(&str, &str)| {
        let text = files.remove(*file).and_then(|bytes| String::from_utf8(bytes).ok());
        Ok((key.to_string(), text.ok_or_else(|| Error::environment(format!("there is no {file}")))?))
    };
    names.iter().map(text).collect()
}
