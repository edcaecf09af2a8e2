//! Addresses and ports of the layer that brings Kubernetes: ranges that must not meet.

use std::fmt;

use super::*;
use crate::membership::JOIN_PORT;
use crate::pool::{Pool, Span};
use crate::range::Range;
use crate::seed::REGISTRY_PORT;

/// The role of the layer whose parameters these are; one without some of them has none to check.
const ROLE: &str = "kubernetes";

/// TCP ports of a node that the platform itself listens on, by who does.
const OWN: [(&str, u16, u16); 10] = [
    ("ssh", 22, 22),
    ("the resolver", 53, 53),
    ("the registry of the node's images", REGISTRY_PORT, REGISTRY_PORT),
    ("etcd", 2379, 2381),
    ("the API server", 6443, 6443),
    ("nodes that join", JOIN_PORT, JOIN_PORT),
    ("the kubelet and kube-proxy", 10248, 10250),
    ("kube-proxy", 10256, 10256),
    ("the controller manager", 10257, 10257),
    ("the scheduler", 10259, 10259),
];

/// Ports from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports(u16, u16);

impl Ports {
    /// Reads `8443` or `30000-32767`.
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse().ok().filter(|port| *port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()));
        Some(Self(number(first)?, number(last)?)).filter(|ports| ports.0 <= ports.1)
    }

    fn overlaps(self, other: Self) -> bool {
        self.0 <= other.1 && other.0 <= self.1
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.0 == self.1 { write!(f, "{}", self.0) } else { write!(f, "{}-{}", self.0, self.1) }
    }
}

/// Checks the parameters of a layer that brings Kubernetes; `spot` is where one stands, or an entry of one.
pub(super) fn check(
    definition: &Definition,
    values: &BTreeMap<String, Value>,
    spot: &dyn Fn(&str, Option<usize>) -> Spot,
    problems: &mut Vec<Diagnostic>,
) {
    if definition.provides.iter().any(|role| role == ROLE) {
        let mut site = Site { values, spot, problems };
        site.addresses();
        site.ports();
    }
}

struct Site<'a> {
    values: &'a BTreeMap<String, Value>,
    spot: &'a dyn Fn(&str, Option<usize>) -> Spot,
    problems: &'a mut Vec<Diagnostic>,
}

impl<'a> Site<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        self.values.get(key)?.as_str()
    }

    fn list(&self, key: &str) -> Vec<&'a str> {
        self.values.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    }

    fn note(&mut self, key: &str, n: Option<usize>, message: String) {
        self.problems.push((self.spot)(key, n).problem(message, None));
    }

    /// The entries of a list that can be read; the others are told.
    fn read<T>(&mut self, key: &str, form: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<(usize, &'a str, T)> {
        let mut out = Vec::new();
        for (n, text) in self.list(key).into_iter().enumerate() {
            match parse(text) {
                Some(entry) => out.push((n, text, entry)),
                None => self.note(key, Some(n), format!("{key}: {} {form}", quote(text))),
            }
        }
        out
    }

    /// The pool has addresses of its own, each once.
    fn addresses(&mut self) {
        let ranges: Vec<_> = [("pods", "podCidr"), ("services", "serviceCidr")]
            .iter()
            .filter_map(|(what, key)| Some((*what, *key, Range::parse(self.text(key)?)?)))
            .collect();
        if let [(_, _, pods), (_, key, services)] = ranges[..]
            && pods.overlaps(services)
        {
            self.note(key, None, format!("serviceCidr: {services} overlaps podCidr, {pods}"));
        }
        let pool = self.read("loadBalancerPool", Pool::FORM, Span::parse);
        for (at, (n, text, span)) in pool.iter().enumerate() {
            if !span.is_reachable() {
                self.note("loadBalancerPool", Some(*n), format!("loadBalancerPool: {text} has addresses that no machine can be reached by"));
            }
            if let Some((what, key, range)) = ranges.iter().find(|(.., range)| span.overlaps((*range).into())) {
                self.note("loadBalancerPool", Some(*n), format!("loadBalancerPool: {text} overlaps {range} of {what} ({key})"));
            }
            if let Some((_, other, _)) = pool[..at].iter().find(|(_, _, other)| span.overlaps(*other)) {
                self.note("loadBalancerPool", Some(*n), format!("loadBalancerPool: {text} overlaps {other}, another entry"));
            }
        }
    }

    /// What the profile keeps for others, what Services get and what the platform has itself are different ports.
    fn ports(&mut self) {
        const FORM: &str = "is no port such as 8443 and no range such as 30000-32767";
        let own: Vec<_> = OWN.iter().map(|(who, first, last)| (format!("{} of {who}", Ports(*first, *last)), Ports(*first, *last))).collect();
        let mut known = own;
        if let Some(text) = self.text("nodePorts") {
            match Ports::parse(text) {
                None => self.note("nodePorts", None, format!("nodePorts: {} {FORM}", quote(text))),
                Some(ports) => {
                    if let Some((other, _)) = known.iter().find(|(_, other)| other.overlaps(ports)) {
                        self.note("nodePorts", None, format!("nodePorts: {ports} overlaps {other}"));
                    }
                    known.push((format!("nodePorts, {ports}"), ports));
                }
            }
        }
        for (n, _, ports) in self.read("reservedPorts", FORM, Ports::parse) {
            if let Some((other, _)) = known.iter().find(|(_, other)| other.overlaps(ports)) {
                self.note("reservedPorts", Some(n), format!("reservedPorts: {ports} overlaps {other}"));
            }
            known.push((format!("{ports}, another entry"), ports));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_from_the_first_to_the_last() {
        for (text, ports) in [("1", Ports(1, 1)), ("30000-32767", Ports(30000, 32767)), ("65535", Ports(65535, 65535))] {
            assert_eq!(Ports::parse(text), Some(ports));
            assert_eq!(ports.to_string(), text);
        }
        for bad in ["", "0", "65536", "9-8", "80-", "-80", "+80", "80 - 81", "http"] {
            assert_eq!(Ports::parse(bad), None, "{bad}");
        }
    }
}
