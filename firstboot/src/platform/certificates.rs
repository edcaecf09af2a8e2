//! A virtual cluster's authorities, keys and certificates: the bundled kubeadm makes them before the control plane starts, which takes them from the Secret
//! and else makes RSA keys, half a minute's work for a slow machine, and certificates for one year, which it renews only when it starts.

use std::collections::BTreeMap;
use std::fs;

use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use layers::platform::settings::merge;
use layers::range::Range;
use layers::{Context as _, Fault, Result};
use serde_json::{Value, json};

use super::host::{Place, leading_to};
use crate::cluster::api::made;
use crate::cluster::kubeadm::Documents;
use crate::exec;
use crate::folder::{Links, collect};
use crate::host::{Host, RUN};

/// Where a control plane's programs find its API server.
const API: &str = "127.0.0.1:6443";
/// kubeadm wants an address that is not the machine itself; nobody has this one (RFC 5737).
const NOBODY: &str = "192.0.2.1";
/// As long as kubeadm's authorities: nothing in a control plane that runs renews certificates, and its operators' are made for as long (`pkg/certs` of vcluster).
const VALIDITY: &str = "87600h0m0s";

/// Makes the Secret; one that is there is left alone, as its keys have signed what the virtual cluster has.
pub async fn make(host: &Host, client: &Client, place: &Place<'_>, values: &Value, services: Range) -> Result<()> {
    let (name, namespace) = (format!("{}-certs", place.name), &place.namespace);
    let failed = || format!("making Secret {name} of namespace {namespace}");
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    if secrets.get_opt(&name).await.fault(Fault::Environment, failed)?.is_some() {
        return Ok(());
    }
    let domain = values.pointer("/networking/advanced/clusterDomain").and_then(Value::as_str).unwrap_or("cluster.local");
    let (host, documents) = (host.clone(), documents(host, place, domain, services)?);
    let files = tokio::task::spawn_blocking(move || issue(&host, documents)).await.fault(Fault::Internal, failed)?.context(failed)?;
    let labels = json!({"app": "vcluster", "vcluster-name": place.name});
    let secret = json!({"metadata": {"name": name, "labels": labels}, "stringData": files});
    let secret: Secret = serde_json::from_value(secret).fault(Fault::Internal, failed)?;
    made(secrets.create(&PostParams::default(), &secret).await).fault(Fault::Environment, failed)
}

/// kubeadm's configuration for what has this name and address, without its folder.
pub(super) fn configuration(host: &Host, name: &str, endpoint: &str) -> Result<[Value; 2]> {
    let version = "kubeadm.k8s.io/v1beta4";
    let own = json!({"advertiseAddress": NOBODY, "bindPort": 6443});
    let init = json!({"apiVersion": version, "kind": "InitConfiguration", "nodeRegistration": {"name": name}, "localAPIEndpoint": own});
    let cluster = json!({
        "apiVersion": version,
        "kind": "ClusterConfiguration",
        // No certificate has it; without one kubeadm asks the internet for the newest.
        "kubernetesVersion": Documents::read(host)?.version()?,
        "encryptionAlgorithm": "ECDSA-P256",
        "certificateValidityPeriod": VALIDITY,
        "controlPlaneEndpoint": endpoint,
    });
    Ok([init, cluster])
}

/// That of a virtual cluster.
fn documents(host: &Host, place: &Place<'_>, domain: &str, services: Range) -> Result<[Value; 2]> {
    let etcd = format!("{}-etcd", place.name);
    let hosts = [etcd.clone(), format!("{etcd}-headless"), format!("*.{etcd}-headless")];
    let suffixes = [String::new(), format!(".{}", place.namespace), format!(".{}.svc", place.namespace)];
    let names: Vec<_> = hosts.iter().flat_map(|host| suffixes.iter().map(move |suffix| format!("{host}{suffix}"))).collect();
    let [init, mut cluster] = configuration(host, place.name, API)?;
    let own = json!({
        "networking": {"serviceSubnet": services.to_string(), "dnsDomain": domain},
        "apiServer": {"certSANs": ["localhost", "127.0.0.1"]},
        "etcd": {"local": {"serverCertSANs": names, "peerCertSANs": names}},
    });
    merge(&mut cluster, own);
    Ok([init, cluster])
}

/// The Secret's files by their names.
fn issue(host: &Host, configuration: [Value; 2]) -> Result<BTreeMap<String, String>> {
    named(kubeadm(host, configuration, &[], &["certs all", "kubeconfig all"])?)
}

/// What kubeadm makes in phases of `init`, by its paths, beside the files that are given.
pub(super) fn kubeadm(host: &Host, [init, mut cluster]: [Value; 2], given: &[(&str, &str)], phases: &[&str]) -> Result<BTreeMap<String, Vec<u8>>> {
    let making = || "making certificates".to_string();
    let run = host.path(RUN);
    fs::create_dir_all(&run).context(making)?;
    let folder = tempfile::Builder::new().prefix("certificates-").tempdir_in(&run).context(making)?;
    let (pki, config) = (folder.path().join("pki"), folder.path().join("kubeadm.yaml"));
    cluster["certificatesDir"] = json!(pki);
    fs::write(&config, format!("{init}\n---\n{cluster}\n")).context(making)?;
    fs::create_dir(&pki).context(making)?;
    given.iter().try_for_each(|(name, text)| fs::write(pki.join(name), text)).context(making)?;
    for phase in phases {
        let mut kubeadm = host.program("kubeadm");
        kubeadm.args(["init", "phase"]).args(phase.split(' ')).arg("--config").arg(&config);
        if phase.starts_with("kubeconfig") {
            kubeadm.arg("--kubeconfig-dir").arg(&pki);
        }
        exec::run(&mut kubeadm)?;
    }
    let mut made = BTreeMap::new();
    collect(&pki, "", Links::Refused, &mut made)?;
    Ok(made)
}

/// The files under the Secret's names.
fn named(made: BTreeMap<String, Vec<u8>>) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for (name, bytes) in made {
        let text = String::from_utf8(bytes).fault(Fault::Internal, || format!("reading {name}"))?;
        match name.as_str() {
            "admin.conf" | "kubelet.conf" => {}
            // Its group needs no role, and there is none yet when the control plane starts.
            "super-admin.conf" => drop(files.insert("admin.conf".into(), text)),
            "controller-manager.conf" | "scheduler.conf" => drop(files.insert(name, nearby(&text)?)),
            _ => drop(files.insert(name.replace('/', "-"), text)),
        }
    }
    Ok(files)
}

/// The kubeconfig with the control plane's own API server.
fn nearby(text: &str) -> Result<String> {
    let kubeconfig = leading_to(text, API).fault(Fault::Internal, || "reading a kubeconfig".into())?;
    serde_json::to_string(&kubeconfig).fault(Fault::Internal, || "writing a kubeconfig".into())
}
