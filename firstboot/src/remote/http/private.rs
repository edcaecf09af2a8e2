//! A server that no public authority vouches for and no name server knows, such as a cluster's registry behind a forwarded port.

use std::net::SocketAddr;
use std::sync::Arc;

use layers::{Error, Result};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::{Client, Limits, config};

/// What such a server is reached, known and convinced by; texts are PEM.
#[derive(Clone, Default)]
pub struct Private {
    /// Certificates of the authorities that may vouch for it; the machine's own when empty.
    pub authorities: String,
    /// Our certificate and its key, where it asks for one.
    pub identity: Option<(String, String)>,
    /// Where it is, whatever its name.
    pub at: Option<SocketAddr>,
}

impl std::fmt::Debug for Private {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Private").field("identity", &self.identity.is_some()).field("at", &self.at).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for one such server; proxies are no way to it.
    pub fn private(limits: Limits, server: &Private) -> Result<Self> {
        let mut tls = TlsConfig::builder();
        tls = match certificates(&server.authorities)? {
            known if known.is_empty() => tls.root_certs(RootCerts::PlatformVerifier),
            known => tls.root_certs(RootCerts::from(known)),
        };
        if let Some((certificate, key)) = &server.identity {
            let key = PrivateKey::from_pem(key.as_bytes()).map_err(|e| Error::input(format!("reading the key of the client's certificate: {e}")))?;
            tls = tls.client_cert(Some(ClientCert::new_with_certs(&certificates(certificate)?, key)));
        }
        let config = config(limits).proxy(None).tls_config(tls.build()).build();
        let agent = || ureq::Agent::with_parts(config.clone(), DefaultConnector::default(), At(server.at, Arc::default()));
        Ok(Self::of(agent(), agent(), limits))
    }
}

fn certificates(text: &str) -> Result<Vec<Certificate<'static>>> {
    let items: Vec<_> = parse_pem(text.as_bytes()).collect::<Result<_, _>>().map_err(|e| Error::input(format!("reading certificates: {e}")))?;
    Ok(items.into_iter().filter_map(|item| if let PemItem::Certificate(certificate) = item { Some(certificate) } else { None }).collect())
}

/// Gives one address for every name, or asks as usual.
#[derive(Debug)]
struct At(Option<SocketAddr>, Arc<DefaultResolver>);

impl Resolver for At {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let Some(address) = self.0 else { return self.1.resolve(uri, config, timeout) };
        let mut out = self.empty();
        out.push(address);
        Ok(out)
    }
}
