//! What the API server cannot check of a virtual cluster's settings, as it needs to know the host and the effective values.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use super::settings::{Exposure, Network, Settings, Store};
use crate::range::Range;
use crate::{Error, Result};

/// Ranges of the host's cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// Pods.
    pub pods: Range,
    /// Services.
    pub services: Range,
}

/// What the other virtual clusters have that no second one can have, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Pod ranges.
    pub pods: Vec<(String, Range)>,
    /// Names for the outside.
    pub exposures: Vec<(String, Exposure)>,
}

impl Others {
    /// Takes in the settings of one.
    pub fn add(&mut self, name: &str, network: Option<&Network>) {
        let Some(network) = network else { return };
        self.pods.extend(network.pod_cidr.as_deref().and_then(Range::parse).map(|range| (name.to_string(), range)));
        self.exposures.extend(network.exposure.clone().map(|exposure| (name.to_string(), exposure)));
    }
}

/// Refuses settings that cannot work, by the field.
pub fn check(settings: &Settings, values: &Value, host: Ranges, others: &Others) -> Result<()> {
    // The API server sees no more than the object: one of the two may be the template's.
    if let Some(replicas) = settings.replicas.filter(|replicas| *replicas > 1 && settings.store != Some(Store::Etcd)) {
        return Err(Error::input(format!("spec.replicas: {replicas} need `store: etcd`: sqlite has one writer")));
    }
    if let Some(network) = &settings.network {
        check_ranges(network, host, &others.pods)?;
        check_exposure(network, &others.exposures)?;
    }
    check_quota(settings, values)
}

fn check_exposure(network: &Network, others: &[(String, Exposure)]) -> Result<()> {
    let Some(exposure) = &network.exposure else { return Ok(()) };
    let refuse = |field: &str, why: String| Err(Error::input(format!("spec.network.exposure.{field}: {why}")));
    let (host, path) = (&exposure.host, exposure.below());
    // It becomes a part of a pattern.
    if let Some(path) = path.filter(|path| !is_path(path)) {
        return refuse("path", format!("`{path}` is no path such as /biz or /teams/biz, of letters, digits, `-` and `_`"));
    }
    if path.is_none() && exposure.tls_secret.is_some() {
        return refuse("tlsSecret", "without a path TLS is led through to the API, which has a certificate of its own".into());
    }
    for (name, other) in others.iter().filter(|(_, other)| other.host == *host) {
        let (Some(path), Some(theirs)) = (path, other.below()) else {
            return refuse("host", format!("{host} is that of virtual cluster {name}; they can share it when both have a path"));
        };
        if is_within(path, theirs) || is_within(theirs, path) {
            return refuse(
                "path",
                format!("{path} and the path {theirs} of virtual cluster {name} at {host} are the same or one is below the other"),
            );
        }
        if exposure.tls_secret != other.tls_secret {
            return refuse("tlsSecret", format!("virtual cluster {name} has another one for {host}, and a host has one certificate"));
        }
    }
    Ok(())
}

fn is_path(path: &str) -> bool {
    let fits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(fits))
}

fn is_within(path: &str, other: &str) -> bool {
    path.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn check_ranges(network: &Network, host: Ranges, others: &[(String, Range)]) -> Result<()> {
    let read = |field: &str, text: &str| {
        Range::parse(text).ok_or_else(|| Error::input(format!("spec.network.{field}: `{text}` is no IPv4 range such as 10.244.0.0/16")))
    };
    if let Some(text) = &network.service_cidr
        && read("serviceCIDR", text)? != host.services
    {
        let why = format!(
            "spec.network.serviceCIDR: {text} is not the host's {}, which services of virtual clusters get their addresses from",
            host.services
        );
        return Err(Error::input(why).with_hint("leave it out"));
    }
    if let Some(text) = &network.pod_cidr {
        let own = read("podCIDR", text)?;
        let of_host = [("the host's pods", host.pods), ("the host's services", host.services)].map(|(what, range)| (what.to_string(), range));
        let of_others = others.iter().map(|(name, range)| (format!("virtual cluster {name}"), *range));
        if let Some((what, range)) = of_host.into_iter().chain(of_others).find(|(_, range)| range.overlaps(own)) {
            return Err(Error::input(format!("spec.network.podCIDR: {text} overlaps {range} of {what}")));
        }
    }
    Ok(())
}

/// The control plane with its DNS must have room in the quota, else nothing of it would ever start.
fn check_quota(settings: &Settings, values: &Value) -> Result<()> {
    let replicas = values.pointer("/controlPlane/statefulSet/highAvailability/replicas").and_then(Value::as_f64).unwrap_or(1.0);
    let etcd = values.pointer("/controlPlane/backingStore/etcd/deploy/enabled") == Some(&Value::Bool(true));
    let mut pods = vec![("/controlPlane/statefulSet/resources", replicas), ("/controlPlane/coredns/deployment/resources", 1.0)];
    pods.extend(etcd.then_some(("/controlPlane/backingStore/etcd/deploy/statefulSet/resources", replicas)));
    for (key, Quantity(limit)) in settings.quota.iter().flatten() {
        let field = || format!("spec.quota.{key}");
        let have = number(limit).ok_or_else(|| Error::input(format!("{}: `{limit}` is no quantity such as 500m or 2Gi", field())))?;
        let (kind, resource) = match key.as_str() {
            "pods" | "count/pods" => ("", ""),
            "cpu" | "memory" => ("requests", key.as_str()),
            _ => match key.split_once('.') {
                Some((kind @ ("requests" | "limits"), resource @ ("cpu" | "memory"))) => (kind, resource),
                _ => continue,
            },
        };
        let of_pod = |path: &str| match kind {
            "" => Some(1.0),
            _ => match values.pointer(&format!("{path}/{kind}/{resource}"))? {
                Value::String(text) => number(text),
                other => other.as_f64(),
            },
        };
        let need: f64 = pods.iter().map(|(path, count)| of_pod(path).unwrap_or(0.0) * count).sum();
        // Sums of tenths are never quite what they look like.
        if need > have * (1.0 + 1e-9) {
            let need =
                if resource == "memory" { format!("{}Mi", (need / 1_048_576.0).ceil()) } else { ((need * 1000.0).round() / 1000.0).to_string() };
            return Err(Error::input(format!("{}: {limit} is less than the {need} that the control plane and its DNS need", field())));
        }
    }
    Ok(())
}

/// A quantity's number (Kubernetes API, `resource.Quantity`).
pub fn number(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 13] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let (digits, factor) = SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor))).unwrap_or((text, 1.0));
    Some(digits.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0)? * factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(settings: &str) -> Option<String> {
        let values = json!({"controlPlane": {
            "statefulSet": {"highAvailability": {"replicas": 1}, "resources": {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}},
            "coredns": {"deployment": {"resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"cpu": "1000m", "memory": "170Mi"}}}},
        }});
        let range = |text: &str| Range::parse(text).unwrap();
        let host = Ranges { pods: range("10.244.0.0/16"), services: range("10.96.0.0/12") };
        let mut others = Others::default();
        let network = serde_saphyr::from_str("{podCIDR: 172.20.0.0/16, exposure: {host: other.example.org}}").unwrap();
        others.add("other", Some(&network));
        let network = serde_saphyr::from_str("{exposure: {host: apis.example.org, path: /teams/a}}").unwrap();
        others.add("below", Some(&network));
        check(&serde_saphyr::from_str(settings).unwrap(), &values, host, &others).err().map(|error| error.to_string())
    }

    #[test]
    fn ranges_that_overlap_the_hosts_or_another_clusters_are_named() {
        for (settings, said) in [
            ("{network: {podCIDR: 10.244.8.0/21}}", "spec.network.podCIDR: 10.244.8.0/21 overlaps 10.244.0.0/16 of the host's pods"),
            ("{network: {podCIDR: 10.0.0.0/8}}", "spec.network.podCIDR: 10.0.0.0/8 overlaps 10.244.0.0/16 of the host's pods"),
            ("{network: {podCIDR: 172.20.1.0/24}}", "spec.network.podCIDR: 172.20.1.0/24 overlaps 172.20.0.0/16 of virtual cluster other"),
            ("{network: {podCIDR: 10.1.2.3/8}}", "spec.network.podCIDR: `10.1.2.3/8` is no IPv4 range such as 10.244.0.0/16"),
            (
                "{network: {serviceCIDR: 10.97.0.0/16}}",
                "spec.network.serviceCIDR: 10.97.0.0/16 is not the host's 10.96.0.0/12, which services of virtual clusters get their addresses from",
            ),
        ] {
            assert_eq!(refused(settings).as_deref(), Some(said), "{settings}");
        }
        assert_eq!(refused("{network: {podCIDR: 172.21.0.0/16, serviceCIDR: 10.96.0.0/12}}"), None);
    }

    #[test]
    fn f8_a_name_for_the_outside_is_one_clusters_and_paths_tell_those_apart_that_share_it() {
        for (exposure, said) in [
            ("other.example.org", "host: other.example.org is that of virtual cluster other; they can share it when both have a path"),
            ("'other.example.org', path: /biz", "host: other.example.org is that of virtual cluster other; they can share it when both have a path"),
            ("apis.example.org", "host: apis.example.org is that of virtual cluster below; they can share it when both have a path"),
            (
                "apis.example.org, path: /teams/a",
                "path: /teams/a and the path /teams/a of virtual cluster below at apis.example.org are the same or one is below the other",
            ),
            (
                "apis.example.org, path: /teams",
                "path: /teams and the path /teams/a of virtual cluster below at apis.example.org are the same or one is below the other",
            ),
            (
                "apis.example.org, path: /teams/a/b",
                "path: /teams/a/b and the path /teams/a of virtual cluster below at apis.example.org are the same or one is below the other",
            ),
            (
                "apis.example.org, path: /b, tlsSecret: own",
                "tlsSecret: virtual cluster below has another one for apis.example.org, and a host has one certificate",
            ),
            ("a.example.org, tlsSecret: own", "tlsSecret: without a path TLS is led through to the API, which has a certificate of its own"),
            ("a.example.org, path: /biz/", "path: `/biz/` is no path such as /biz or /teams/biz, of letters, digits, `-` and `_`"),
        ] {
            let refused = refused(&format!("{{network: {{exposure: {{host: {exposure}}}}}}}"));
            assert_eq!(refused, Some(format!("spec.network.exposure.{said}")), "{exposure}");
        }
        for exposure in [
            "a.example.org, path: /",
            "a.example.org, path: ''",
            "a.example.org, class: nginx",
            "a.example.org, path: /biz, tlsSecret: own",
            "apis.example.org, path: /teams/ab",
            "apis.example.org, path: /teams/b",
        ] {
            assert_eq!(refused(&format!("{{network: {{exposure: {{host: {exposure}}}}}}}")), None, "{exposure}");
        }
        for path in ["biz", "/a//b", "/a.b", "/a(b", "/ü", "/a b", "//"] {
            assert!(!is_path(path), "{path}");
        }
    }

    #[test]
    fn replicas_without_a_store_that_they_can_share_are_refused() {
        let said = "spec.replicas: 3 need `store: etcd`: sqlite has one writer";
        assert_eq!(refused("{replicas: 3}").as_deref(), Some(said));
        assert_eq!(refused("{replicas: 3, store: sqlite}").as_deref(), Some(said));
        assert_eq!((refused("{replicas: 3, store: etcd}"), refused("{replicas: 1, store: sqlite}")), (None, None));
    }

    #[test]
    fn a_quota_below_the_control_planes_need_is_named() {
        for (settings, said) in [
            ("{quota: {requests.memory: 256Mi}}", "spec.quota.requests.memory: 256Mi is less than the 320Mi that the control plane and its DNS need"),
            ("{quota: {cpu: 0.1}}", "spec.quota.cpu: 0.1 is less than the 0.22 that the control plane and its DNS need"),
            ("{quota: {limits.memory: 2G}}", "spec.quota.limits.memory: 2G is less than the 2218Mi that the control plane and its DNS need"),
            ("{quota: {pods: '1'}}", "spec.quota.pods: 1 is less than the 2 that the control plane and its DNS need"),
            ("{quota: {requests.cpu: lots}}", "spec.quota.requests.cpu: `lots` is no quantity such as 500m or 2Gi"),
        ] {
            assert_eq!(refused(settings).as_deref(), Some(said), "{settings}");
        }
        assert_eq!(refused("{quota: {requests.memory: 320Mi, requests.cpu: 220m, pods: '2', requests.storage: 1Gi}}"), None);
    }
}
