//! Differences in one form for all levels: things with a name and facts, of which some are on one side only and others have other facts.

use std::collections::BTreeMap;
use std::fmt;

use layers::units::Digest;
use serde::Serialize;
use serde_json::Value;

use crate::inspect::files::visible;

/// How many facts of something that is on one side only are told to people.
const TOLD: usize = 3;

/// Facts by name, the most telling first.
pub type Facts = Vec<(String, String)>;

/// Something of one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is, in a word.
    pub what: &'static str,
    /// Its name, which tells it from others of its kind.
    pub name: String,
    /// What can differ.
    pub facts: Facts,
}

/// What became of something on the way from A to B.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Only B has it.
    Added,
    /// Only A has it.
    Removed,
    /// Both have it, differently.
    Changed,
}

impl How {
    /// All, in the order in which they are told.
    pub const ALL: [Self; 3] = [Self::Added, Self::Removed, Self::Changed];

    /// Its word for people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
        }
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What became of it.
    pub change: How,
    /// What it is, in a word.
    pub what: &'static str,
    /// Its name.
    pub name: String,
    /// The facts that differ, of something on one side only all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<Fact>,
    /// What differs and has no value on either side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The changed package or container image that it comes with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

/// A fact on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// Its name.
    pub name: String,
    /// Its value in A; none when A has no such fact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a: Option<String>,
    /// Its value in B.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<String>,
}

impl Change {
    /// The difference between two, of which one may be missing; none when there is none.
    pub fn between(a: Option<Item>, b: Option<Item>) -> Option<Self> {
        let change = match (&a, &b) {
            (None, None) => return None,
            (None, Some(_)) => How::Added,
            (Some(_), None) => How::Removed,
            (Some(_), Some(_)) => How::Changed,
        };
        let facts = facts(a.as_ref().map_or(&[], |i| &i.facts), b.as_ref().map_or(&[], |i| &i.facts));
        let Item { what, name, .. } = b.or(a)?;
        (change != How::Changed || !facts.is_empty()).then_some(Self { change, what, name, facts, note: None, of: None })
    }
}

/// Facts that are not the same on both sides, in the order of A, then of B.
fn facts(a: &[(String, String)], b: &[(String, String)]) -> Vec<Fact> {
    let of = |side: &[(String, String)], name: &String| side.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let only_b = b.iter().filter(|(name, _)| of(a, name).is_none());
    let pairs = a.iter().chain(only_b).map(|(name, _)| Fact { name: name.clone(), a: of(a, name), b: of(b, name) });
    pairs.filter(|fact| fact.a != fact.b).collect()
}

/// The differences between two sides in order of names, and how many things are the same.
pub fn between(a: Vec<Item>, b: Vec<Item>) -> (Vec<Change>, usize) {
    let mut pairs = BTreeMap::<(String, &'static str), (Option<Item>, Option<Item>)>::new();
    let keyed = |items: Vec<Item>| items.into_iter().map(|item| ((item.name.clone(), item.what), Some(item)));
    keyed(a).for_each(|(key, item)| pairs.entry(key).or_default().0 = item);
    keyed(b).for_each(|(key, item)| pairs.entry(key).or_default().1 = item);
    let all = pairs.len();
    let changes: Vec<_> = pairs.into_values().filter_map(|(a, b)| Change::between(a, b)).collect();
    let same = all - changes.len();
    (changes, same)
}

/// The leaves of a document as facts, `network.dns.0` for instance.
pub fn leaves(document: &Value) -> Facts {
    fn walk(value: &Value, at: &str, out: &mut Facts) {
        let below = |key: &str| if at.is_empty() { key.to_string() } else { format!("{at}.{key}") };
        match value {
            Value::Object(fields) if !fields.is_empty() => fields.iter().for_each(|(key, value)| walk(value, &below(key), out)),
            Value::Array(items) if !items.is_empty() => items.iter().enumerate().for_each(|(n, value)| walk(value, &below(&n.to_string()), out)),
            Value::String(text) => out.push((at.into(), text.clone())),
            other => out.push((at.into(), other.to_string())),
        }
    }
    let mut out = Facts::new();
    walk(document, "", &mut out);
    out
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.change {
            How::Added => '+',
            How::Removed => '-',
            How::Changed => '~',
        };
        write!(f, "{sign} {} {}", self.what, visible(&self.name))?;
        let facts: Vec<_> = match self.change {
            How::Changed => self.facts.iter().map(ToString::to_string).chain(self.note.clone()).collect(),
            _ => self.facts.iter().filter_map(|fact| Some(told(fact.a.as_ref().or(fact.b.as_ref())?))).take(TOLD).collect(),
        };
        let between = if self.change == How::Changed { ", " } else { " " };
        facts.iter().enumerate().try_for_each(|(n, fact)| write!(f, "{}{fact}", if n == 0 { " " } else { between }))
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A version and a lone value speak for themselves.
        if !matches!(self.name.as_str(), "version" | "") {
            write!(f, "{} ", visible(&self.name))?;
        }
        let side = |value: &Option<String>| value.as_ref().map_or("none".into(), |value| told(value));
        write!(f, "{} -> {}", side(&self.a), side(&self.b))
    }
}

/// A value in one line for people, of a digest the beginning.
fn told(value: &str) -> String {
    match value.strip_prefix("sha256:").and_then(|hex| hex.parse::<Digest>().ok()) {
        Some(digest) => digest.short(),
        None => visible(&value.trim_end().replace('\n', "; ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(name: &str, facts: &[(&str, &str)]) -> Item {
        Item { what: "package", name: name.into(), facts: facts.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect() }
    }

    #[test]
    fn only_what_differs_is_told_and_in_one_line() {
        let a = vec![item("bar", &[("version", "3")]), item("baz", &[("version", "1.0"), ("architecture", "all")]), item("same", &[])];
        let digest = Digest::of(b"").to_string();
        let b = vec![
            item("same", &[]),
            item("baz", &[("version", "1.1"), ("architecture", "all"), ("sum", &digest)]),
            item("foo", &[("version", "1\x1b[2J\n2")]),
        ];
        let (changes, same) = between(a, b);
        let lines: Vec<_> = changes.iter().map(ToString::to_string).collect();
        let sum = format!("~ package baz 1.0 -> 1.1, sum none -> {}", Digest::of(b"").short());
        assert_eq!(lines, ["- package bar 3", &sum, "+ package foo 1\u{fffd}[2J; 2"]);
        assert_eq!(same, 1);
    }

    #[test]
    fn a_documents_leaves_have_the_paths_that_people_write() {
        let found = leaves(&json!({"name": "x", "network": {"dns": ["a", "b"], "other": {}}, "n": 1}));
        let expected = [("name", "x"), ("network.dns.0", "a"), ("network.dns.1", "b"), ("network.other", "{}"), ("n", "1")];
        assert_eq!(found, expected.map(|(n, v)| (n.to_string(), v.to_string())));
    }
}
