//! Ranges of IPv4 addresses (RFC 4632).

use std::fmt;
use std::net::Ipv4Addr;

/// IPv4 addresses with a common start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    first: Ipv4Addr,
    length: u8,
}

impl Range {
    /// Reads `10.244.0.0/16`; `None` also when bits behind the prefix are set.
    pub fn parse(text: &str) -> Option<Self> {
        let (first, length) = text.split_once('/')?;
        let range = Self { first: first.parse().ok()?, length: length.parse().ok().filter(|length| *length <= 32)? };
        (u32::from(range.first) & range.mask() == u32::from(range.first)).then_some(range)
    }

    /// The lowest address.
    pub fn first(self) -> Ipv4Addr {
        self.first
    }

    /// The highest address.
    pub fn last(self) -> Ipv4Addr {
        (u32::from(self.first) | !self.mask()).into()
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0)
    }

    /// Whether all addresses of the other one are its own, too.
    pub fn holds(self, other: Self) -> bool {
        other.length >= self.length && u32::from(other.first) & self.mask() == u32::from(self.first)
    }

    /// Whether they have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.holds(other) || other.holds(self)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_kernel_takes_them() {
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.1/24", "fd00::/64", "10.0.0.0/-1"] {
            assert_eq!(Range::parse(bad), None, "{bad}");
        }
        let [all, one, other] = ["0.0.0.0/0", "1.2.3.4/32", "1.2.3.0/30"].map(|text| Range::parse(text).unwrap());
        assert!(all.holds(one) && !one.holds(all));
        assert!(one.overlaps(all) && !one.overlaps(other));
    }
}
