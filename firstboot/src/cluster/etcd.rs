//! Members of the cluster's etcd, by the JSON form of its API (<https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/>).

use hyper::http::Request;
use kube::Client;
use kube::config::{AuthInfo, Cluster, Context, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext};
use layers::{Context as _, Fault, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api;
use crate::host::Host;

const FOLDER: &str = "etc/kubernetes/pki/etcd";

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

/// The members that this node's etcd knows.
pub async fn members(host: &Host) -> Result<Vec<Member>> {
    let said = call(host, "list", json!({})).await?;
    serde_json::from_value(said["members"].clone()).fault(Fault::Environment, || "reading etcd's members".into())
}

/// Takes a member out; etcd itself refuses what would cost it its majority.
pub async fn remove(host: &Host, member: &Member) -> Result<()> {
    call(host, "remove", json!({"ID": member.id})).await.map(drop)
}

async fn call(host: &Host, verb: &str, what: Value) -> Result<Value> {
    let naming = || format!("asking etcd of this node to {verb} members");
    let client = client(host).await?;
    let request = Request::post(format!("/v3/cluster/member/{verb}")).header("content-type", "application/json").body(what.to_string().into_bytes());
    let request = request.fault(Fault::Internal, naming)?;
    client.request(request).await.fault(Fault::Environment, naming)
}

/// With the certificate that etcd's own probe has.
async fn client(host: &Host) -> Result<Client> {
    let file = |name: &str| Some(host.path(&format!("{FOLDER}/{name}")).display().to_string());
    let cluster = Cluster { server: Some("https://127.0.0.1:2379".into()), certificate_authority: file("ca.crt"), ..Cluster::default() };
    let user = AuthInfo { client_certificate: file("healthcheck-client.crt"), client_key: file("healthcheck-client.key"), ..AuthInfo::default() };
    let context = Context { cluster: "etcd".into(), user: Some("etcd".into()), ..Context::default() };
    let kubeconfig = Kubeconfig {
        clusters: vec![NamedCluster { name: "etcd".into(), cluster: Some(cluster), ..NamedCluster::default() }],
        auth_infos: vec![NamedAuthInfo { name: "etcd".into(), auth_info: Some(user), ..NamedAuthInfo::default() }],
        contexts: vec![NamedContext { name: "etcd".into(), context: Some(context), ..NamedContext::default() }],
        current_context: Some("etcd".into()),
        ..Kubeconfig::default()
    };
    api::connect(kubeconfig, api::PATIENCE).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_etcd_tells_of_them() {
        let said = r#"[{"ID":"10276657743932975437","name":"a","peerURLs":["https://10.0.0.1:2380"]},{"ID":"7","peerURLs":["https://10.0.0.2:2380"],"isLearner":true}]"#;
        let members: Vec<Member> = serde_json::from_str(said).unwrap();
        assert_eq!((members[0].id.as_str(), members[0].name.as_str(), members[1].name.as_str()), ("10276657743932975437", "a", ""));
    }
}
