//! Where an answer may send us on to: web addresses only, never from TLS to plain text, never to a machine's own services or a cloud's metadata.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use layers::{Error, Result};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::http::show;
use super::names::Remembered;

/// The address that an answer from `from` names, which may be relative to that.
pub fn next(from: &str, location: &str) -> Result<String> {
    let refused = |why: &str| Error::environment(format!("it sends on to {}, {why}", show(location.split('?').next().unwrap_or_default())));
    let (scheme, rest) = from.split_once("://").ok_or_else(|| refused("from no web address"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let location = location.split('#').next().unwrap_or_default();
    let folder = path.split('?').next().unwrap_or_default().rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let target = match location {
        _ if has_scheme(location) => location.to_string(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => format!("{scheme}://{authority}/{folder}{location}"),
    };
    match (scheme, target.split(':').next().unwrap_or_default().to_lowercase().as_str()) {
        (_, "https") | ("http", "http") => {}
        (_, "http") => return Err(refused("from TLS to plain text")),
        _ => return Err(refused("which is no web address")),
    }
    let uri: Uri = target.parse().map_err(|_| refused("which is no address"))?;
    let host = host(&uri).ok_or_else(|| refused("which names no host"))?;
    if is_loopback(&host) && !from.parse::<Uri>().is_ok_and(|uri| self::host(&uri).is_some_and(|host| is_loopback(&host))) {
        return Err(refused("which is this very machine"));
    }
    match host.parse::<IpAddr>() {
        Ok(address) if is_private_to_the_machine(address) => Err(refused("an address that no server is told from outside")),
        _ => Ok(target),
    }
}

/// Whether two addresses are of one server: what may see the same credentials.
pub fn is_same_server(a: &str, b: &str) -> bool {
    let server = |url: &str| url.parse::<Uri>().ok().map(|uri| (uri.scheme_str().map(str::to_string), uri.authority().map(ToString::to_string)));
    server(a).is_some_and(|a| server(b) == Some(a))
}

/// Whether a host is this machine.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost") || host.parse().is_ok_and(|address| unmapped(address).is_loopback())
}

fn host(uri: &Uri) -> Option<String> {
    uri.host().map(|host| host.trim_matches(['[', ']']).to_lowercase())
}

fn has_scheme(text: &str) -> bool {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    !scheme.is_empty()
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// IPv4 addresses in IPv6 form as what they are.
fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// Link-local, unspecified and multicast addresses, and the two addresses outside these ranges at which clouds serve metadata.
fn is_private_to_the_machine(address: IpAddr) -> bool {
    const ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
    const AMAZON: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match unmapped(address) {
        IpAddr::V4(four) => four.is_link_local() || four.is_unspecified() || four.is_multicast() || four.is_broadcast() || four == ALIBABA,
        IpAddr::V6(six) => six.is_unicast_link_local() || six.is_unspecified() || six.is_multicast() || six == AMAZON,
    }
}

/// Looks names up for addresses that servers told us: a name may stand for a refused address, too.
#[derive(Debug, Default)]
pub struct Guarded(Remembered);

impl Resolver for Guarded {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.0.resolve(uri, config, timeout)?;
        match found.iter().find(|address| is_private_to_the_machine(address.ip())) {
            Some(address) => Err(std::io::Error::new(
                std::io::ErrorKind::PermissionDenied,
                format!("the name stands for {}, an address that no server is told from outside", address.ip()),
            )
            .into()),
            None => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_and_absolute_locations_lead_on() {
        for (from, location, to) in [
            ("https://a.test/v2/x/y?z=/w", "b", "https://a.test/v2/x/b"),
            ("https://a.test/v2/x", "/b?c=d#e", "https://a.test/b?c=d"),
            ("http://a.test", "b", "http://a.test/b"),
            ("https://a.test/x", "//b.test/y", "https://b.test/y"),
            ("http://a.test/x", "https://b.test/y:z", "https://b.test/y:z"),
            ("http://127.0.0.1:5000/x", "http://localhost:6000/y", "http://localhost:6000/y"),
        ] {
            assert_eq!(next(from, location).unwrap(), to);
        }
    }

    #[test]
    fn c6_other_schemes_metadata_and_own_services_are_refused() {
        for (from, location, why) in [
            ("https://a.test/x", "file:///etc/passwd", "no web address"),
            ("https://a.test/x", "gopher://b.test/", "no web address"),
            ("https://a.test/x", "http://b.test/", "from TLS to plain text"),
            ("http://a.test/x", "http://169.254.169.254/latest/meta-data", "told from outside"),
            ("http://a.test/x", "http://[::ffff:169.254.169.254]/", "told from outside"),
            ("http://a.test/x", "http://[fe80::1]/", "told from outside"),
            ("http://a.test/x", "http://[fd00:ec2::254]/", "told from outside"),
            ("http://a.test/x", "http://100.100.100.200/", "told from outside"),
            ("http://a.test/x", "http://0.0.0.0/", "told from outside"),
            ("http://a.test/x", "http://127.0.0.1/", "this very machine"),
            ("http://a.test/x", "http://LOCALHOST:8080/", "this very machine"),
            ("http://a.test/x", "http://[::1]/", "this very machine"),
            ("http://a.test/x", "https://me:secret@[/", "no address"),
        ] {
            let error = next(from, location).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{location}: {error}");
        }
    }

    #[test]
    fn credentials_stay_with_scheme_host_and_port() {
        assert!(is_same_server("https://a.test/x", "https://a.test/y"));
        assert!(!is_same_server("https://a.test/x", "https://a.test:444/x") && !is_same_server("https://a.test/x", "http://a.test/x"));
    }
}
