//! A token for a virtual cluster's API where TLS ends on the way to it, so that client certificates do not arrive: that of a ServiceAccount in the virtual
//! cluster, which may do everything there, as those with the certificate may.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::PostParams;
use kube::{Api, Client};
use layers::{Context as _, Error, Fault, Result};
use serde_json::json;

use super::{Place, Session, forward};
use crate::cluster::api::{PATIENCE, connect, made};
use crate::platform::{self, exposure, host};

/// The account and its binding, and the namespace of the account.
const ACCOUNT: &str = "chasi-bod-connect";
const NAMESPACE: &str = "kube-system";
/// How long a token is valid.
const SECONDS: i64 = 24 * 3600;
/// The port of the control plane's pods.
const PORT: u16 = 8443;
/// For as long as a forwarded connection may say nothing.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// What a kubeconfig has in place of a client certificate.
#[derive(Debug, PartialEq, Eq)]
pub struct Access {
    pub token: String,
    /// The authority of the ingress controller's certificate, encoded as kubeconfigs have it; that of the machine when absent.
    pub authority: Option<String>,
}

/// Has the virtual cluster make a token; `kubeconfig` is its operator's, `inside` the address of its Service.
pub async fn access(session: &Session<'_>, client: &Client, name: &str, kubeconfig: &str, inside: Option<&str>) -> Result<Access> {
    let making = || format!("making a token for virtual cluster {name}");
    let place = host::Place::new(client, name);
    let mut forward = None;
    let address = match (session.place, inside) {
        (Place::Node(_), Some(inside)) => host::url_host(inside),
        _ => {
            let opened = forward::open(&session.patient(SILENCE).await?, &place.namespace, &place.pods(), PORT).await.context(making)?;
            forward.insert(opened).at.to_string()
        }
    };
    let config = host::leading_to(kubeconfig, &address).fault(Fault::Environment, making)?;
    let inner = connect(config, PATIENCE).await.context(making)?;
    let token = token(&inner).await.fault(Fault::Environment, making)?;
    let given = token.status.and_then(|status| Some((status.token?, status.expiration_timestamp?)));
    let (token, until) = given.ok_or_else(|| Error::environment(making() + ": it gave none"))?;
    (session.say)(&format!("the token is valid until {}; connect again for a new one", until.0));
    Ok(Access { token, authority: authority(client, name).await? })
}

async fn token(inner: &Client) -> kube::Result<TokenRequest> {
    let (accounts, how) = (Api::<ServiceAccount>::namespaced(inner.clone(), NAMESPACE), PostParams::default());
    let account = json!({"metadata": {"name": ACCOUNT}});
    made(accounts.create(&how, &serde_json::from_value(account).map_err(kube::Error::SerdeError)?).await)?;
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"});
    let subject = json!({"kind": "ServiceAccount", "namespace": NAMESPACE, "name": ACCOUNT});
    let binding = json!({"metadata": {"name": ACCOUNT}, "roleRef": role, "subjects": [subject]});
    let bindings = Api::<ClusterRoleBinding>::all(inner.clone());
    made(bindings.create(&how, &serde_json::from_value(binding).map_err(kube::Error::SerdeError)?).await)?;
    let spec = TokenRequestSpec { expiration_seconds: Some(SECONDS), ..TokenRequestSpec::default() };
    accounts.create_token_request(ACCOUNT, &how, &TokenRequest { spec: Some(spec), ..TokenRequest::default() }).await
}

/// The authority of the certificate that the ingress controller has for the host, where its Secret tells.
async fn authority(client: &Client, name: &str) -> Result<Option<String>> {
    let (called, reading) = (exposure::called(name), || format!("reading the certificate of virtual cluster {name}'s host"));
    let ingress = Api::<Ingress>::namespaced(client.clone(), platform::NAMESPACE).get(&called).await.fault(Fault::Environment, reading)?;
    let secret = ingress.spec.into_iter().flat_map(|spec| spec.tls.unwrap_or_default()).find_map(|tls| tls.secret_name);
    let secret = secret.ok_or_else(|| Error::environment(reading() + ": its Ingress names no Secret"))?;
    let found = Api::<Secret>::namespaced(client.clone(), platform::NAMESPACE).get(&secret).await.fault(Fault::Environment, reading)?;
    Ok(found.data.unwrap_or_default().remove("ca.crt").map(|ByteString(bytes)| STANDARD.encode(bytes)))
}
