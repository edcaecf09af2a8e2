//! Where a program of the node listens.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::profile::quote;

/// Where something listens: `PORT` on the node's first address, or `ADDRESS:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen {
    /// The address; the node's first one when absent.
    pub address: Option<IpAddr>,
    /// The TCP port.
    pub port: u16,
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bare = text.parse().map(|port| Self { address: None, port });
        let whole = bare.or_else(|_| text.parse::<SocketAddr>().map(|at| Self { address: Some(at.ip()), port: at.port() }));
        let bad = || format!("{} is no port such as 9955 and no address with one, such as 10.0.0.5:9955 or [fd00::5]:9955", quote(&text));
        whole.ok().filter(|listen| listen.port != 0).ok_or_else(bad)
    }
}

impl From<Listen> for String {
    fn from(Listen { address, port }: Listen) -> Self {
        address.map_or_else(|| port.to_string(), |address| SocketAddr::new(address, port).to_string())
    }
}
