//! The writable registry inside the cluster: where nodes look for what their root lacks, under the repository of any registry's name.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};
use layers::reference::Reference;
use layers::{Context as _, Error, Fault, Result};

use super::known::Known;
use crate::remote::http::{Client, Limits, Private};
use crate::remote::oci::{Registries, Repository};
use crate::verbs::forward::{self, Forward};
use crate::verbs::{Place, Session};

/// Namespace and label of the layer `seed`'s registry, its port, and a name that its certificate has.
const NAMESPACE: &str = "registry";
const LABEL: &str = "app=registry";
const PORT: u16 = 5000;
const NAME: &str = "registry.registry.svc";
/// What references stand below here; it is asked wherever the registry is.
const ALIAS: &str = "registry.cluster:5000";
/// The longest time in which a forwarded connection may be silent.
const SILENCE: Duration = Duration::from_secs(3600);

/// Where the registry is, when not where the cluster says.
#[derive(Debug, Args)]
pub struct Reach {
    /// Where this machine reaches the registry inside the cluster; by default a node reaches its address, others a port that the API server forwards.
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
}

/// The registry, reached.
#[derive(Clone, Debug)]
pub struct Target {
    http: Client,
    registries: Registries,
    /// Its host and port as nodes ask it.
    pub address: String,
    _forward: Option<Arc<Forward>>,
}

impl Target {
    /// Finds a way to it.
    pub async fn open(session: &Session<'_>, reach: &Reach, known: &Known) -> Result<Self> {
        let stock = known.stock.as_ref().ok_or_else(|| Error::environment("looking for the cluster's registry: the cluster does not tell of any"))?;
        let Some((scheme, address)) = stock.registry.trim_end_matches('/').split_once("://") else {
            let error = Error::environment("looking for the cluster's registry: it has none");
            return Err(error.with_hint("set `registry` of the layer `seed` and `clusterRegistry` of `runtime`, as the profile `standalone` does"));
        };
        let mut server = private(session.credentials()?).await?;
        let mut forward = None;
        let url = match (&reach.registry, session.place) {
            (Some(url), _) => url.trim_end_matches('/').to_string(),
            (None, Place::Node(_)) => stock.registry.trim_end_matches('/').to_string(),
            (None, Place::Workstation) => {
                let opened = forward::open(&session.patient(SILENCE).await?, NAMESPACE, LABEL, PORT).await;
                let opened = opened.map_err(|error| error.with_hint("--registry URL names another way to it"))?;
                server.at = Some(opened.at);
                forward = Some(Arc::new(opened));
                format!("{scheme}://{NAME}:{PORT}")
            }
        };
        if url.starts_with("https://") && server.identity.is_none() {
            let error =
                Error::environment("using the cluster's registry: the kubeconfig has no client certificate, which is what it knows people by");
            return Err(error.with_hint("`ssh root@NODE chasi-bod kubeconfig --server NODE` prints one that has"));
        }
        Self::new(&url, address, &server, forward)
    }

    /// One that asks for nobody.
    #[cfg(test)]
    pub fn at(url: &str, address: &str) -> Result<Self> {
        Self::new(url, address, &Private::default(), None)
    }

    fn new(url: &str, address: &str, server: &Private, forward: Option<Arc<Forward>>) -> Result<Self> {
        let limits = Limits { stall: Duration::from_secs(120), ..Limits::default() };
        let registries = Registries::find(&[format!("{ALIAS}={url}")])?;
        Ok(Self { http: Client::private(limits, server)?, registries, address: address.into(), _forward: forward })
    }

    /// A repository of it.
    pub fn repository(&self, path: &str) -> Result<Repository> {
        let place = Reference { registry: ALIAS.into(), repository: path.into(), tag: None, digest: None };
        Repository::open(&self.http, &self.registries, &place)
    }

    /// Whether it has what nodes ask it for when a pod names the image.
    pub fn has(&self, image: &Reference) -> Result<bool> {
        let found = self.repository(&image.repository)?.find(&image.wanted());
        found.map(|found| found.is_some()).context(|| format!("looking for {image} in the cluster's registry"))
    }
}

/// The cluster's authority and our certificate, as the kubeconfig has them.
async fn private(kubeconfig: Kubeconfig) -> Result<Private> {
    let reading = || "reading the kubeconfig's certificates".to_string();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.fault(Fault::Input, reading)?;
    let authorities = config.root_cert.iter().flatten().map(|der| pem("CERTIFICATE", der)).collect();
    let user = serde_json::to_value(&config.auth_info).fault(Fault::Internal, reading)?;
    let text = |what: &str| match (user[format!("{what}-data")].as_str(), user[what].as_str()) {
        (Some(data), _) => STANDARD.decode(data).ok().and_then(|bytes| String::from_utf8(bytes).ok()),
        (None, Some(file)) => std::fs::read_to_string(file).ok(),
        (None, None) => None,
    };
    Ok(Private { authorities, identity: text("client-certificate").zip(text("client-key")), at: None })
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned() + "\n");
    format!("-----BEGIN {kind}-----\n{}-----END {kind}-----\n", lines.collect::<String>())
}
