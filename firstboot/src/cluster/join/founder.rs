//! The founder's side: the cluster's secret, and what is made in the cluster for a node that joins.

use std::net::{IpAddr, SocketAddr};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node as NodeObject, Secret as SecretObject};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use layers::membership::{JOIN_PORT, Secret, base32};
use layers::settings::Settings;
use layers::units::Digest;
use layers::{Context, Error, Fault, Result};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::control_plane::{self, Part};
use super::{Answer, Grant, Request, serve};
use crate::cluster::{POLL, RETRY, api, files};
use crate::config;
use crate::host::{Host, STATE};
use crate::images::config::CLUSTER_CA as AUTHORITY;

const SECRET: &str = "cluster-secret";
const API_PORT: u16 = 6443;
/// How kubeadm's pins begin.
pub const PIN: &str = "sha256:";
/// Life of a token: longer than one run of `kubeadm join` waits for the kubelet on a slow machine.
pub const LIFE: SignedDuration = SignedDuration::from_mins(30);

/// The secret that the configuration gives, else the founder's own if it has made one.
pub fn known(host: &Host, settings: Option<&Settings>) -> Result<Option<Secret>> {
    if let Some(given) = settings.and_then(|settings| settings.secret.as_ref()) {
        return Ok(Some(given.value.clone()));
    }
    let path = format!("{STATE}/{SECRET}");
    let text = host.read(&path)?;
    text.map(|text| Secret::parse(&text).map_err(|why| Error::environment(format!("reading /{path}: {why}")))).transpose()
}

/// The secret that the configuration gives, else the founder's own, made on first use and kept.
pub fn open(host: &Host, settings: Option<&Settings>) -> Result<Secret> {
    if let Some(known) = known(host, settings)? {
        return Ok(known);
    }
    let made = Secret::of_random(&host.random()?);
    host.write(&format!("{STATE}/{SECRET}"), format!("{}\n", made.reveal()).as_bytes(), 0o600)?;
    host.sync();
    Ok(made)
}

/// The service that takes nodes in, on [`JOIN_PORT`].
#[derive(Default)]
pub struct Service {
    secret: Option<Secret>,
    tasks: JoinSet<()>,
}

impl Service {
    /// Starts it in the running runtime, again when the secret is another one; `own` is the founder's node, `address` what the cluster was founded with.
    pub async fn keep(&mut self, host: &Host, own: &str, address: IpAddr) -> Result<()> {
        let secret = open(host, config::published(host).as_ref())?;
        if self.secret.as_ref() == Some(&secret) {
            return Ok(());
        }
        self.tasks.shutdown().await;
        let pem = host.read_bytes(AUTHORITY)?.unwrap_or_default();
        let authorities = pins(&pem).ok_or_else(|| Error::environment(format!("reading /{AUTHORITY}: no certificate")))?;
        let everywhere = [SocketAddr::from(([0u16; 8], JOIN_PORT)), SocketAddr::from(([0u8; 4], JOIN_PORT))];
        // A machine without IPv6 has only the second.
        let listener =
            TcpListener::bind(&everywhere[..]).await.fault(Fault::Environment, || format!("listening on port {JOIN_PORT} for joining nodes"))?;
        let own = own.to_string();
        let make = move |request: Request, here: IpAddr| {
            let (own, authorities) = (own.clone(), authorities.clone());
            async move {
                let answer = answer(&request, &own, here, address, authorities).await;
                // It may be this very node whose etcd the API waits for.
                answer.unwrap_or_else(|why| Answer::Later(format!("for the cluster's API: {why}")))
            }
        };
        self.tasks.spawn(serve(listener, secret.clone(), make, |line| println!("{line}")));
        self.secret = Some(secret);
        Ok(())
    }
}

/// Decides on a node; `here` is the address that it has reached this one by.
async fn answer(request: &Request, own: &str, here: IpAddr, address: IpAddr, authorities: Vec<String>) -> std::result::Result<Answer, String> {
    if !is_node_name(&request.name) {
        return Ok(Answer::Refused("its name is no node name (RFC 1123 in lower case)".into()));
    }
    // The founder's own node may be yet to come.
    if request.name == own {
        return Ok(Answer::Refused(format!("another machine is node {own} already; give this node another `hostname`")));
    }
    if address == files::DUMMY {
        return Ok(Answer::Refused(format!("this cluster was founded without a network: its API has only the address {address}")));
    }
    let client = api::client(&Host::new("/"), api::PATIENCE).await.map_err(|error| error.to_string())?;
    let there = Api::<NodeObject>::all(client.clone()).get_opt(&request.name).await.map_err(|error| error.to_string())?;
    if let Some(why) = there.and_then(|there| is_another(&there, request)) {
        return Ok(Answer::Refused(why));
    }
    let host = Host::new("/");
    let replicas = config::published(&host).map_or(1, |settings| settings.control_planes());
    let control_plane = match control_plane::part(&client, &host, address, request, replicas).await.map_err(|error| error.to_string())? {
        Part::Worker => None,
        Part::ControlPlane(keys) => Some(keys),
        Part::Later(why) => return Ok(Answer::Later(why)),
    };
    let token = make_token(&client, &request.name).await.map_err(|error| error.to_string())?;
    tokio::spawn(when_ready(client.clone(), request.name.clone()));
    Ok(Answer::Granted(Grant { endpoint: (here, API_PORT).into(), authorities, token, control_plane }))
}

/// Makes a bootstrap token (Kubernetes documentation, "Authenticating with Bootstrap Tokens"). It ends when its node is Ready, when the node
/// asks for another one, or with its time.
async fn make_token(client: &Client, name: &str) -> std::result::Result<String, kube::Error> {
    forget_tokens(client, name).await?;
    let random: [u8; 16] = Host::new("/").random().map_err(|error| kube::Error::Service(error.into()))?;
    let text = base32(&random);
    let (id, secret) = (&text[..6], &text[6..22]);
    let token = json!({
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "type": TOKEN,
        "stringData": {
            "token-id": id,
            "token-secret": secret,
            "description": purpose(name),
            "expiration": format!("{:.0}", Timestamp::now() + LIFE),
            "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        },
    });
    let token: SecretObject = serde_json::from_value(token).map_err(kube::Error::SerdeError)?;
    tokens(client).create(&PostParams::default(), &token).await?;
    wait_for_signature(client, id).await;
    Ok(format!("{id}.{secret}"))
}

/// The controller manager signs `cluster-info` for each token; kubeadm, which asks once in five seconds, shall find it done.
async fn wait_for_signature(client: &Client, id: &str) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-public");
    let signature = format!("jws-kubeconfig-{id}");
    let signed = async {
        while !maps.get("cluster-info").await.is_ok_and(|map| map.data.is_some_and(|data| data.contains_key(&signature))) {
            sleep(POLL).await;
        }
    };
    // Without it the node only waits longer.
    let _ = timeout(RETRY, signed).await;
}

/// What is left to do for a node that has joined: a token that has done its work is of use only to somebody else, and one machine had one CoreDNS.
async fn when_ready(client: Client, name: String) {
    for _ in 0..LIFE.as_secs() / RETRY.as_secs() as i64 {
        sleep(RETRY).await;
        let node = Api::<NodeObject>::all(client.clone()).get_opt(&name).await;
        if !node.is_ok_and(|node| node.is_some_and(|node| api::not_ready(&node).is_none())) {
            continue;
        }
        let ended = async {
            forget_tokens(&client, &name).await?;
            second_coredns(&client).await
        };
        match ended.await {
            Ok(()) => return,
            Err(error) => println!("join: after {name} has joined: {error}"),
        }
    }
}

/// Names shall be found while one machine is away. Whoever has chosen another number than one is left alone.
async fn second_coredns(client: &Client) -> std::result::Result<(), kube::Error> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "kube-system");
    if deployments.get("coredns").await?.spec.and_then(|spec| spec.replicas) == Some(1) {
        deployments.patch_scale("coredns", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 2}}))).await?;
    }
    Ok(())
}

const TOKEN: &str = "bootstrap.kubernetes.io/token";

fn tokens(client: &Client) -> Api<SecretObject> {
    Api::namespaced(client.clone(), "kube-system")
}

fn purpose(name: &str) -> String {
    format!("chasi-bod: for node {name} to join")
}

/// Removes the tokens of a node.
async fn forget_tokens(client: &Client, name: &str) -> std::result::Result<(), kube::Error> {
    let all = tokens(client).list(&ListParams::default().fields(&format!("type={TOKEN}"))).await?;
    let is_its =
        |token: &&SecretObject| token.data.as_ref().and_then(|data| data.get("description")).is_some_and(|text| text.0 == purpose(name).as_bytes());
    for token in all.items.iter().filter(is_its) {
        let name = token.metadata.name.as_deref().unwrap_or_default();
        tokens(client).delete(name, &DeleteParams::default()).await?;
    }
    Ok(())
}

/// Why a node that exists is not the one that asks: only a machine that lost its credentials or its whole disk, and so is not Ready, joins under its
/// old name.
fn is_another(there: &NodeObject, request: &Request) -> Option<String> {
    let name = there.metadata.name.as_deref().unwrap_or_default();
    let known = there.status.as_ref().and_then(|status| status.node_info.as_ref());
    let is_same = known.is_some_and(|known| {
        known.machine_id == request.machine || request.system.as_ref().is_some_and(|system| known.system_uuid.eq_ignore_ascii_case(system))
    });
    let next = format!("give this node another `hostname`, or remove the old one with `kubectl delete node {name}`");
    match api::not_ready(there) {
        _ if !is_same => Some(format!("another machine is node {name} already; {next}")),
        None => Some(format!("node {name} is in the cluster already and Ready; is this machine a copy of it? {next}")),
        Some(_) => None,
    }
}

/// A DNS subdomain in lower case (RFC 1123), as the name of a Node object is.
fn is_node_name(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |l: &str| l.starts_with(edge) && l.ends_with(edge) && l.chars().all(|c| edge(c) || c == '-');
    text.len() <= 253 && text.split('.').all(label)
}

/// What the cluster of this node is known by: the digest of its authority's public key.
pub fn authority(host: &Host) -> Result<Digest> {
    let pem = host.read_bytes(AUTHORITY)?.unwrap_or_default();
    let first = pins(&pem).and_then(|pins| pins.first()?.strip_prefix(PIN)?.parse().ok());
    first.ok_or_else(|| Error::environment(format!("reading /{AUTHORITY}: no certificate")))
}

/// The digest of each certificate's public key as kubeadm pins it: `sha256:` of its SubjectPublicKeyInfo (RFC 5280).
fn pins(pem: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(pem).ok()?;
    let bodies = text.split("-----BEGIN CERTIFICATE-----").skip(1).map(|rest| rest.split("-----END").next().unwrap_or_default());
    let pin = |body: &str| {
        let der = BASE64_STANDARD.decode(body.split_whitespace().collect::<String>()).ok()?;
        Some(format!("{PIN}{}", Digest::of(public_key(&der)?).hex()))
    };
    bodies.map(pin).collect::<Option<Vec<_>>>().filter(|pins| !pins.is_empty())
}

/// SubjectPublicKeyInfo of a certificate: what follows version, serial number, algorithm, issuer, validity and subject.
fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    let (_, _, inside) = element(certificate)?;
    let (_, _, mut rest) = element(inside)?;
    const VERSION: u8 = 0xa0;
    let skipped = if *rest.first()? == VERSION { 6 } else { 5 };
    for _ in 0..skipped {
        rest = element(rest)?.1;
    }
    Some(element(rest)?.0)
}

/// The first DER element (X.690): all of it, what follows it, what is in it.
fn element(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let short = usize::from(*bytes.get(1)?);
    let (header, length) = match short {
        0..0x80 => (2, short),
        _ => {
            let digits = bytes.get(2..2 + (short & 0x7f)).filter(|digits| digits.len() <= 4)?;
            (2 + digits.len(), digits.iter().fold(0, |value, digit| value << 8 | usize::from(*digit)))
        }
    };
    let end = header.checked_add(length)?;
    Some((bytes.get(..end)?, bytes.get(end..)?, bytes.get(header..end)?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::super::Wants;
    use super::*;

    #[test]
    fn a_founder_makes_its_secret_once_and_a_given_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let made = open(&host, None).unwrap();
        assert_eq!(open(&host, None).unwrap(), made);
        let path = host.path("var/lib/chasi-bod/cluster-secret");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "cut").unwrap();
        let error = open(&host, None).unwrap_err().to_string();
        assert!(error.contains("reading /var/lib/chasi-bod/cluster-secret: is 3 characters long"), "{error}");
    }

    #[test]
    fn the_pin_of_an_authority_is_what_openssl_computes() {
        let dir = tempfile::tempdir().unwrap();
        let (key, certificate) = (dir.path().join("key"), dir.path().join("crt"));
        for algorithm in ["rsa:2048", "ec:P-256", "ed25519"] {
            let (kind, option) = algorithm.split_once(':').unwrap_or((algorithm, ""));
            let mut command = Command::new("openssl");
            command.args(["req", "-x509", "-nodes", "-subj", "/CN=ca", "-days", "1", "-newkey", if kind == "rsa" { algorithm } else { kind }]);
            if kind == "ec" {
                command.arg("-pkeyopt").arg(format!("ec_paramgen_curve:{option}"));
            }
            assert!(command.arg("-keyout").arg(&key).arg("-out").arg(&certificate).output().unwrap().status.success(), "{algorithm}");
            let public = Command::new("openssl").args(["pkey", "-pubout", "-outform", "DER", "-in"]).arg(&key).output().unwrap().stdout;
            let pem = std::fs::read(&certificate).unwrap();
            let expected = format!("sha256:{}", Digest::of(&public).hex());
            assert_eq!(pins(&pem).unwrap(), std::slice::from_ref(&expected));
            assert_eq!(pins(&[pem.clone(), pem.clone()].concat()).unwrap().len(), 2);
            assert!((0..pem.len() - 40).all(|end| pins(&pem[..end]).is_none_or(|pins| pins == std::slice::from_ref(&expected))));
        }
        assert_eq!(pins(b""), None);
    }

    #[test]
    fn f5_a_second_machine_of_one_name_is_refused() {
        let asks = |machine: &str, system: Option<&str>| Request {
            version: 1,
            name: "n".into(),
            machine: machine.into(),
            system: system.map(Into::into),
            wants: Wants::Worker,
        };
        let node = |ready: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"n"}},"status":{{"nodeInfo":{{"machineID":"one"}},"conditions":[{{"type":"Ready","status":"{ready}"}}]}}}}"#
            );
            let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
            for field in [
                "architecture",
                "bootID",
                "containerRuntimeVersion",
                "kernelVersion",
                "kubeProxyVersion",
                "kubeletVersion",
                "operatingSystem",
                "osImage",
                "systemUUID",
            ] {
                value["status"]["nodeInfo"][field] = "".into();
            }
            value["status"]["nodeInfo"]["systemUUID"] = "ABCD".into();
            serde_json::from_value::<NodeObject>(value).unwrap()
        };
        let why = |ready: &str, machine: &str, system: Option<&str>| is_another(&node(ready), &asks(machine, system));
        assert!(why("True", "two", None).unwrap().starts_with("another machine is node n already; give this node another `hostname`"));
        assert!(why("False", "two", None).is_some() && why("False", "two", Some("ef01")).is_some());
        assert!(why("True", "one", None).unwrap().contains("is this machine a copy of it?"));
        assert_eq!(why("Unknown", "one", None), None);
        // A machine whose disk is another one.
        assert_eq!(why("Unknown", "two", Some("abcd")), None);
        assert!(why("True", "two", Some("abcd")).is_some());
    }

    #[test]
    fn names_that_no_node_can_have_are_told_apart() {
        assert!(["a", "node-1", "a.b", "0"].iter().all(|name| is_node_name(name)));
        assert!(["", "A", "-a", "a-", "a..b", "a/b", "a\n", &"a".repeat(254)].iter().all(|name| !is_node_name(name)));
    }
}
