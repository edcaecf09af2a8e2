//! Addresses for Services of type LoadBalancer: what a profile gives, and which Service gets which. An address stays with its Service; a new one
//! gets the lowest that is free, the oldest first.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use crate::range::Range;
use crate::{Error, Result};

/// Path of the pool in a node's root, a list in YAML; an image without it gives out none.
pub const POOL: &str = "usr/lib/chasi-bod/kubernetes/pool.yaml";

/// Neighbouring addresses, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

impl Span {
    /// Reads `192.0.2.10`, `192.0.2.16/28` or `192.0.2.20-192.0.2.29`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(range) = Range::parse(text) {
            return Some(range.into());
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let span = Self { first: first.parse().ok()?, last: last.parse().ok()? };
        (span.first <= span.last).then_some(span)
    }

    /// Whether they have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether an address is one of them.
    pub fn has(self, address: Ipv4Addr) -> bool {
        self.first <= address && address <= self.last
    }

    /// Whether each is one that a host can have for others to reach (RFC 6890).
    pub fn is_reachable(self) -> bool {
        ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"].iter().filter_map(|text| Self::parse(text)).all(|span| !self.overlaps(span))
    }
}

impl From<Range> for Span {
    fn from(range: Range) -> Self {
        Self { first: range.first(), last: range.last() }
    }
}

/// What there is to give out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool(Vec<Span>);

/// A Service that asks for an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// `NAMESPACE/NAME`.
    pub service: String,
    /// The one that it asks for by itself.
    pub wanted: Option<Ipv4Addr>,
    /// The one that it has.
    pub held: Option<Ipv4Addr>,
}

/// Why a Service gets no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Others have all.
    Exhausted(usize),
    /// The one that it asks for is another Service's.
    Taken(Ipv4Addr, String),
    /// The one that it asks for is nobody's to give.
    Outside(Ipv4Addr),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Exhausted(count) => write!(f, "all {count} addresses of the pool are taken; it gets one as soon as a Service goes that has one"),
            Self::Taken(address, service) => write!(f, "spec.loadBalancerIP: {address} is that of Service {service}"),
            Self::Outside(address) => write!(f, "spec.loadBalancerIP: {address} is not in the pool"),
        }
    }
}

impl Pool {
    /// Reads the entries of a list.
    pub fn parse(entries: &[String]) -> Result<Self> {
        let read = |text: &String| Span::parse(text).ok_or_else(|| Error::input(format!("`{text}` {}", Self::FORM)));
        entries.iter().map(read).collect::<Result<_>>().map(Self)
    }

    /// What is wrong with an entry that cannot be read.
    pub const FORM: &str = "is no IPv4 address, range 192.0.2.16/28 or range 192.0.2.20-192.0.2.29";

    /// Whether there is nothing to give out.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, address: Ipv4Addr) -> bool {
        self.0.iter().any(|span| span.has(address))
    }

    fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.0.iter().flat_map(|span| (u32::from(span.first)..=u32::from(span.last)).map(Ipv4Addr::from))
    }

    /// An address for each of the claims, of which the oldest come first.
    pub fn assign(&self, claims: &[Claim]) -> Vec<Result<Ipv4Addr, Refusal>> {
        let mut taken = BTreeMap::<Ipv4Addr, &str>::new();
        // Who has one keeps it, whoever asks for it now.
        let mut given: Vec<_> = claims
            .iter()
            .map(|claim| {
                let held =
                    claim.held.filter(|held| self.has(*held) && claim.wanted.is_none_or(|wanted| wanted == *held) && !taken.contains_key(held));
                taken.extend(held.map(|held| (held, claim.service.as_str())));
                held.map(Ok)
            })
            .collect();
        for (claim, answer) in claims.iter().zip(&mut given).filter(|(_, answer)| answer.is_none()) {
            let found = match claim.wanted {
                Some(wanted) if !self.has(wanted) => Err(Refusal::Outside(wanted)),
                Some(wanted) => taken.get(&wanted).map_or(Ok(wanted), |service| Err(Refusal::Taken(wanted, (*service).into()))),
                None => self.addresses().find(|address| !taken.contains_key(address)).ok_or(Refusal::Exhausted(taken.len())),
            };
            taken.extend(found.as_ref().ok().map(|address| (*address, claim.service.as_str())));
            *answer = Some(found);
        }
        given.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(entries: &[&str]) -> Pool {
        Pool::parse(&entries.iter().map(|text| (*text).to_string()).collect::<Vec<_>>()).unwrap()
    }

    fn claim(service: &str, wanted: &str, held: &str) -> Claim {
        Claim { service: service.into(), wanted: wanted.parse().ok(), held: held.parse().ok() }
    }

    fn said(pool: &Pool, claims: &[Claim]) -> Vec<String> {
        pool.assign(claims).into_iter().map(|answer| answer.map_or_else(|why| why.to_string(), |address| address.to_string())).collect()
    }

    #[test]
    fn entries_are_addresses_and_ranges_of_both_forms() {
        for (text, first, last) in [
            ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
            ("192.0.2.16/28", "192.0.2.16", "192.0.2.31"),
            ("192.0.2.250-192.0.3.5", "192.0.2.250", "192.0.3.5"),
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
        ] {
            assert_eq!(Span::parse(text), Some(Span { first: first.parse().unwrap(), last: last.parse().unwrap() }), "{text}");
        }
        for bad in ["", "192.0.2", "192.0.2.9-192.0.2.1", "192.0.2.1/28", "192.0.2.1 - 192.0.2.3", "fd00::1", "192.0.2.1-"] {
            assert_eq!(Span::parse(bad), None, "{bad}");
        }
        for (text, reachable) in [("10.0.0.5", true), ("127.0.0.1", false), ("169.254.20.10", false), ("223.0.0.1-224.0.0.1", false)] {
            assert_eq!(Span::parse(text).unwrap().is_reachable(), reachable, "{text}");
        }
    }

    #[test]
    fn the_oldest_get_the_lowest_and_everybody_keeps_what_they_have() {
        let two = pool(&["10.0.0.8", "10.0.0.4-10.0.0.5"]);
        let first = [claim("a/x", "", ""), claim("b/x", "", "")];
        assert_eq!(said(&two, &first), ["10.0.0.8", "10.0.0.4"], "in the order of the list");
        // One that came before it, by its age, takes nothing from who has one.
        assert_eq!(said(&two, &[claim("c/x", "", ""), claim("b/x", "", "10.0.0.8")]), ["10.0.0.4", "10.0.0.8"]);
        // Of two that say the same, the older one is right; what is outside of the pool is exchanged.
        assert_eq!(said(&two, &[claim("a/x", "", "10.0.0.5"), claim("b/x", "", "10.0.0.5")]), ["10.0.0.5", "10.0.0.8"]);
        assert_eq!(said(&two, &[claim("a/x", "", "192.0.2.1")]), ["10.0.0.8"]);
    }

    #[test]
    fn an_address_that_is_asked_for_is_given_unless_it_is_somebody_elses() {
        let all = pool(&["10.0.0.4/30"]);
        assert_eq!(said(&all, &[claim("a/x", "10.0.0.6", ""), claim("b/x", "", "")]), ["10.0.0.6", "10.0.0.4"]);
        assert_eq!(said(&all, &[claim("a/x", "10.0.0.6", "10.0.0.4")]), ["10.0.0.6"], "it asks for another one than it has");
        assert_eq!(
            said(&all, &[claim("a/x", "10.0.0.6", ""), claim("b/x", "", "10.0.0.6"), claim("c/x", "10.9.9.9", "")]),
            ["spec.loadBalancerIP: 10.0.0.6 is that of Service b/x", "10.0.0.6", "spec.loadBalancerIP: 10.9.9.9 is not in the pool"]
        );
    }

    #[test]
    fn an_empty_pool_refuses_the_youngest_until_one_goes() {
        let one = pool(&["10.0.0.4"]);
        let full = said(&one, &[claim("a/x", "", "10.0.0.4"), claim("b/x", "", "")]);
        assert_eq!(full[0], "10.0.0.4");
        assert!(full[1].starts_with("all 1 addresses of the pool are taken"), "{full:?}");
        assert_eq!(said(&one, &[claim("b/x", "", "")]), ["10.0.0.4"]);
    }

    /// Whatever the claims: no address twice, none from outside, nobody refused while one is free, and the same again with what was given.
    #[test]
    fn no_address_is_given_twice_and_what_was_given_stays_for_any_claims() {
        let all = pool(&["10.0.0.0/29", "10.0.1.1-10.0.1.3"]);
        let mut seed = 7_u32;
        let mut next = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        for _ in 0..2000 {
            let count = next(16) as usize;
            let mut some = || (next(3) == 0).then(|| Ipv4Addr::from([10, 0, next(3) as u8, next(9) as u8]));
            let claims: Vec<_> = (0..count).map(|n| Claim { service: format!("n/{n}"), wanted: some(), held: some() }).collect();
            let answers = all.assign(&claims);
            assert_eq!(answers.len(), claims.len());
            let mut given: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
            let count = given.len();
            given.sort_unstable();
            given.dedup();
            assert_eq!(given.len(), count, "{claims:?} {answers:?}");
            assert!(given.iter().all(|address| all.has(**address)));
            let exhausted = answers.iter().any(|answer| matches!(answer, Err(Refusal::Exhausted(_))));
            assert!(!exhausted || count == 11, "{claims:?} {answers:?}");
            let again: Vec<_> =
                claims.iter().zip(&answers).map(|(claim, answer)| Claim { held: answer.as_ref().ok().copied(), ..claim.clone() }).collect();
            let kept = all.assign(&again);
            assert!(answers.iter().zip(&kept).all(|(before, after)| before.is_err() || before == after), "{again:?} {kept:?}");
        }
    }
}
