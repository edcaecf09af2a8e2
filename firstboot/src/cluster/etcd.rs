//! Members of the cluster's etcd, by the JSON form of its API (<https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/>).

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http_body_util::BodyExt as _;
use hyper::http::Request;
use kube::Client;
use kube::client::Body;
use kube::config::{AuthInfo, Cluster, Context, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext};
use layers::{Context as _, Error, Fault, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::api::{self, at_once, reason};
use crate::host::Host;

/// Port at which members reach each other.
pub const PEERS: u16 = 2380;

const FOLDER: &str = "etc/kubernetes/pki/etcd";
/// This node's own member.
const HERE: &str = "https://127.0.0.1:2379";
const STATUS: &str = "maintenance/status";
/// How long a member may take to say that it is well: a person waits for it.
const LOOK: Duration = Duration::from_secs(3);

/// A member as the API tells of it; 64-bit numbers are texts in JSON, and what is empty is left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// Its number.
    #[serde(rename = "ID")]
    pub id: String,
    /// Name of its node; empty until it has started for the first time.
    #[serde(default)]
    pub name: String,
}

/// A member as whoever counts votes sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct Seat {
    /// Which one it is.
    #[serde(flatten)]
    pub member: Member,
    /// It only follows and has no vote yet.
    #[serde(default, rename = "isLearner")]
    pub learner: bool,
    #[serde(default, rename = "clientURLs")]
    urls: Vec<String>,
    /// It answers, and knows the leader if anybody does.
    #[serde(skip)]
    pub answers: bool,
}

/// What this node's etcd says of all members.
#[derive(Debug)]
pub struct Standing {
    /// Number of this node's own member.
    pub own: String,
    /// Number of the leader; empty while there is none.
    pub leader: String,
    /// All members.
    pub seats: Vec<Seat>,
}

/// Whether a node has what etcd is asked with: control planes do.
pub fn is_here(host: &Host) -> bool {
    super::exists(host, &format!("{FOLDER}/healthcheck-client.crt"))
}

/// The members that this node's etcd knows.
pub async fn members(host: &Host) -> Result<Vec<Member>> {
    list(&client(host, HERE).await?).await
}

/// Takes a member out; etcd itself refuses what would cost it its majority.
pub async fn remove(host: &Host, member: &Member) -> Result<()> {
    call(&client(host, HERE).await?, "cluster/member/remove", "remove a member", json!({"ID": member.id})).await.map(drop)
}

/// Writes a snapshot of this node's member to a file, as `etcdctl snapshot save` does. The member answers also while etcd has no majority.
pub async fn snapshot(host: &Host, to: &mut File) -> Result<()> {
    let naming = || "taking a snapshot of etcd".to_string();
    let failed = |error: &kube::Error| Error::environment(format!("{}: {}", naming(), reason(error)));
    let request = Request::post("/v3/maintenance/snapshot").header("content-type", "application/json").body(Body::from(b"{}".to_vec()));
    let reply = client(host, HERE).await?.send(request.fault(Fault::Internal, naming)?).await.map_err(|error| failed(&error))?;
    let (status, mut body, mut held) = (reply.status(), reply.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| failed(&error))?;
        held.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        // A part of the file is a line.
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            to.write_all(&blob(&line)?).fault(Fault::Environment, naming)?;
        }
    }
    // A refusal is one object without a line's end.
    if !held.is_empty() {
        to.write_all(&blob(&held)?).fault(Fault::Environment, naming)?;
    }
    if status.is_success() { Ok(()) } else { Err(Error::environment(format!("{}: it answers {status}", naming()))) }
}

/// The bytes of one message of a snapshot.
fn blob(line: &[u8]) -> Result<Vec<u8>> {
    let naming = || "taking a snapshot of etcd".to_string();
    let said: Value = serde_json::from_slice(line).fault(Fault::Environment, naming)?;
    let why = said["error"]["message"].as_str().or(said["message"].as_str());
    match (said["result"]["blob"].as_str(), why) {
        (_, Some(why)) => Err(Error::environment(format!("{}: {why}", naming()))),
        (Some(text), None) => BASE64_STANDARD.decode(text).fault(Fault::Environment, naming),
        // The last message may have nothing but its header.
        (None, None) => Ok(Vec::new()),
    }
}

/// The members, each asked whether it is well; answers also while etcd has no majority.
pub async fn standing(host: &Host) -> Result<Standing> {
    let here = client(host, HERE).await?;
    let status = call(&here, STATUS, "tell its status", json!({})).await?;
    let mut seats: Vec<Seat> = list(&here).await?;
    let mut looks = JoinSet::new();
    for (number, seat) in seats.iter().enumerate() {
        for url in &seat.urls {
            let credentials = credentials(host, url);
            looks.spawn(async move { (number, leader_of(credentials).await) });
        }
    }
    let said = looks.join_all().await;
    let leaders = said.iter().filter_map(|(_, said)| said.as_deref());
    let leader = [leader(&status)].into_iter().chain(leaders).find(|leader| !leader.is_empty()).unwrap_or_default().to_string();
    for (number, seat) in seats.iter_mut().enumerate() {
        // One that is cut off from the others answers, but has lost their leader.
        let is_well = |said: &Option<String>| said.as_ref().is_some_and(|its| leader.is_empty() || !its.is_empty());
        seat.answers = said.iter().any(|(of, said)| *of == number && is_well(said));
    }
    Ok(Standing { own: status["header"]["member_id"].as_str().unwrap_or_default().into(), leader, seats })
}

/// What a member says of its leader; nothing is nobody.
fn leader(status: &Value) -> &str {
    status["leader"].as_str().filter(|leader| *leader != "0").unwrap_or_default()
}

/// What a member, asked at its own address, says of its leader; nothing when it does not answer.
async fn leader_of(credentials: Kubeconfig) -> Option<String> {
    let asked = async { call(&at_once(credentials, LOOK).await?, STATUS, "tell its status", json!({})).await };
    timeout(LOOK, asked).await.ok()?.ok().map(|status| leader(&status).to_string())
}

async fn list<T: serde::de::DeserializeOwned>(client: &Client) -> Result<Vec<T>> {
    let said = call(client, "cluster/member/list", "list members", json!({})).await?;
    serde_json::from_value(said["members"].clone()).fault(Fault::Environment, || "reading etcd's members".into())
}

async fn call(client: &Client, path: &str, doing: &str, what: Value) -> Result<Value> {
    let naming = || format!("asking etcd to {doing}");
    let request = Request::post(format!("/v3/{path}")).header("content-type", "application/json").body(what.to_string().into_bytes());
    let request = request.fault(Fault::Internal, naming)?;
    client.request(request).await.map_err(|error| Error::environment(format!("{}: {}", naming(), reason(&error))))
}

fn client(host: &Host, server: &str) -> impl Future<Output = Result<Client>> + use<> {
    at_once(credentials(host, server), api::PATIENCE)
}

/// The certificate that etcd's own probe has.
fn credentials(host: &Host, server: &str) -> Kubeconfig {
    let file = |name: &str| Some(host.path(&format!("{FOLDER}/{name}")).display().to_string());
    let cluster = Cluster { server: Some(server.into()), certificate_authority: file("ca.crt"), ..Cluster::default() };
    let user = AuthInfo { client_certificate: file("healthcheck-client.crt"), client_key: file("healthcheck-client.key"), ..AuthInfo::default() };
    let context = Context { cluster: "etcd".into(), user: Some("etcd".into()), ..Context::default() };
    Kubeconfig {
        clusters: vec![NamedCluster { name: "etcd".into(), cluster: Some(cluster), ..NamedCluster::default() }],
        auth_infos: vec![NamedAuthInfo { name: "etcd".into(), auth_info: Some(user), ..NamedAuthInfo::default() }],
        contexts: vec![NamedContext { name: "etcd".into(), context: Some(context), ..NamedContext::default() }],
        current_context: Some("etcd".into()),
        ..Kubeconfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_etcd_tells_of_them() {
        let said = r#"[{"ID":"10276657743932975437","name":"a","peerURLs":["https://10.0.0.1:2380"]},{"ID":"7","peerURLs":["https://10.0.0.2:2380"],"isLearner":true}]"#;
        let members: Vec<Member> = serde_json::from_str(said).unwrap();
        assert_eq!((members[0].id.as_str(), members[0].name.as_str(), members[1].name.as_str()), ("10276657743932975437", "a", ""));
        let seats: Vec<Seat> = serde_json::from_str(said).unwrap();
        assert_eq!(seats.iter().map(|seat| &seat.member).collect::<Vec<_>>(), members.iter().collect::<Vec<_>>());
        assert_eq!([(seats[0].learner, seats[0].answers), (seats[1].learner, seats[1].answers)], [(false, false), (true, false)]);
    }

    #[test]
    fn parts_of_a_snapshot_are_its_bytes_and_a_refusal_is_said() {
        assert_eq!(blob(br#"{"result":{"header":{},"remaining_bytes":"3","blob":"AQID"}}"#).unwrap(), [1, 2, 3]);
        assert!(blob(br#"{"result":{"header":{}}}"#).unwrap().is_empty());
        let refused = blob(br#"{"error":{"code":14,"message":"etcdserver: no space"}}"#).unwrap_err().to_string();
        assert_eq!(refused, "taking a snapshot of etcd: etcdserver: no space");
        assert!(blob(b"{\"result\":").is_err());
    }

    #[test]
    fn whoever_names_no_leader_knows_none() {
        let said = |text: &str| leader(&serde_json::from_str(text).unwrap()).to_string();
        assert_eq!([r#"{"leader":"7"}"#, r#"{"leader":"0"}"#, r#"{"header":{},"errors":["etcdserver: no leader"]}"#].map(said), ["7", "", ""]);
    }
}
