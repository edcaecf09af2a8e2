//! Where registries are asked: at their own hosts, or where the site says.

use std::collections::BTreeMap;

use layers::reference::Reference;
use layers::{Error, Result};

use crate::remote::auth::{Credentials, DockerConfig};
use crate::remote::redirect::is_loopback;

/// Mirrors of registries, and who we are for each.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    mirrors: BTreeMap<String, String>,
    docker: DockerConfig,
}

/// Where a repository is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// `https://host:port`.
    pub base: String,
    /// Its host and port.
    pub host: String,
    /// The repository there.
    pub repository: String,
}

impl Registries {
    /// Reads `HOST=URL` words, and docker's `config.json`. The URL's path comes before the repository's name, as proxy caches want it.
    pub fn find(mirrors: &[String]) -> Result<Self> {
        Self::new(mirrors, DockerConfig::find()?)
    }

    /// The same with a given configuration of docker.
    pub fn new(mirrors: &[String], docker: DockerConfig) -> Result<Self> {
        let mut out = Self { mirrors: BTreeMap::new(), docker };
        for word in mirrors.iter().filter(|word| !word.is_empty()) {
            let wrong = |why: &str| Error::input(format!("reading --registry `{word}`: {why}")).with_hint("such as docker.io=https://mirror.example");
            let (host, url) = word.split_once('=').ok_or_else(|| wrong("it is not HOST=URL"))?;
            let url = url.trim_end_matches('/');
            if format!("{host}/x:1").parse::<Reference>().is_err() {
                return Err(wrong("it does not begin with a registry's host"));
            }
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
            if rest.is_empty() || rest.contains(['@', '?', '#']) || rest.contains(char::is_whitespace) {
                return Err(wrong("its URL is not http:// or https:// with a host and perhaps a path"));
            }
            if out.mirrors.insert(host.into(), url.into()).is_some() {
                return Err(wrong("this host has a mirror already"));
            }
        }
        Ok(out)
    }

    /// Where a reference's repository is asked for.
    pub(super) fn place(&self, reference: &Reference) -> Place {
        let Reference { registry, repository, .. } = reference;
        let own = || match registry.as_str() {
            "docker.io" => "https://registry-1.docker.io".to_string(),
            host if is_loopback(host.split(':').next().unwrap_or_default()) => format!("http://{host}"),
            host => format!("https://{host}"),
        };
        let url = self.mirrors.get(registry).cloned().unwrap_or_else(own);
        let (scheme, rest) = url.split_once("://").unwrap_or(("https", &url));
        let (host, prefix) = rest.split_once('/').map_or((rest, String::new()), |(host, prefix)| (host, format!("{prefix}/")));
        Place { base: format!("{scheme}://{host}"), host: host.into(), repository: format!("{prefix}{repository}") }
    }

    /// The credentials for a place.
    pub(super) fn credentials(&self, place: &Place) -> Result<Credentials> {
        match place.host.as_str() {
            "registry-1.docker.io" => self.docker.credentials(&["index.docker.io", "docker.io", "registry-1.docker.io"]),
            host => self.docker.credentials(&[host]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(mirrors: &[&str], reference: &str) -> (String, String) {
        let mirrors: Vec<_> = mirrors.iter().map(ToString::to_string).collect();
        let Place { base, repository, .. } = Registries::new(&mirrors, DockerConfig::default()).unwrap().place(&reference.parse().unwrap());
        (base, repository)
    }

    #[test]
    fn registries_are_asked_over_tls_but_for_this_machine_and_mirrors_that_say_otherwise() {
        let pair = |base: &str, repository: &str| (base.to_string(), repository.to_string());
        assert_eq!(place(&[], "docker.io/library/nginx:1"), pair("https://registry-1.docker.io", "library/nginx"));
        assert_eq!(place(&[], "quay.io:8443/a:1"), pair("https://quay.io:8443", "a"));
        assert_eq!(place(&[], "localhost:5000/a:1"), pair("http://localhost:5000", "a"));
        assert_eq!(place(&[], "127.0.0.1:5000/a:1"), pair("http://127.0.0.1:5000", "a"));
        assert_eq!(place(&[], "127.0.0.1.nip.test/a:1"), pair("https://127.0.0.1.nip.test", "a"));
        let mirrors = ["docker.io=https://harbor.test/proxy/", "quay.io=http://10.0.0.1:5000"];
        assert_eq!(place(&mirrors, "docker.io/library/nginx:1"), pair("https://harbor.test", "proxy/library/nginx"));
        assert_eq!(place(&mirrors, "quay.io/a:1"), pair("http://10.0.0.1:5000", "a"));
    }

    #[test]
    fn mistakes_in_mirrors_are_named() {
        for (words, why) in [
            (&["x"][..], "not HOST=URL"),
            (&["=https://a.test"], "registry's host"),
            (&["docker.io=ftp://a.test"], "its URL"),
            (&["docker.io=https://me:pw@a.test"], "its URL"),
            (&["docker.io=https://a.test", "docker.io=https://b.test"], "already"),
        ] {
            let words: Vec<_> = words.iter().map(ToString::to_string).collect();
            let error = Registries::new(&words, DockerConfig::default()).unwrap_err();
            assert!(error.to_string().contains(why) && error.hint().is_some(), "{error}");
        }
    }
}
