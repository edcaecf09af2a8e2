//! Relations between packages, as control fields write them (Debian Policy 7.1), and versions (deb-version(7)).

use std::cmp::Ordering;
use std::fmt;

use layers::{Error, Result};

/// `name (op version)`; an architecture qualifier other than `:any` and the native one makes it unsatisfiable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation<'a> {
    /// Package, real or virtual.
    pub name: &'a str,
    /// Comparison and version.
    pub version: Option<(Op, &'a str)>,
}

/// Comparison of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `<<`
    Earlier,
    /// `<=`
    EarlierOrEqual,
    /// `=`
    Equal,
    /// `>=`
    LaterOrEqual,
    /// `>>`
    Later,
}

/// Words that stand for an operator; `<` and `>` are the obsolete forms of `<=` and `>=`.
const OPS: [(&str, Op); 7] = [
    ("<<", Op::Earlier),
    ("<=", Op::EarlierOrEqual),
    (">=", Op::LaterOrEqual),
    (">>", Op::Later),
    ("=", Op::Equal),
    ("<", Op::EarlierOrEqual),
    (">", Op::LaterOrEqual),
];

impl Relation<'_> {
    /// Whether a version of the named package satisfies the relation.
    pub fn holds(&self, version: &str) -> bool {
        self.version.is_none_or(|(op, wanted)| op.holds(compare(version, wanted)))
    }
}

impl Op {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Earlier => order.is_lt(),
            Self::EarlierOrEqual => order.is_le(),
            Self::Equal => order.is_eq(),
            Self::LaterOrEqual => order.is_ge(),
            Self::Later => order.is_gt(),
        }
    }
}

impl fmt::Display for Relation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        let Some((op, version)) = self.version else { return Ok(()) };
        let word = OPS.iter().find(|(_, o)| *o == op).map_or("", |(w, _)| *w);
        write!(f, " ({word} {version})")
    }
}

/// Order of two versions. Indices are checked when they are read; text that is no version sorts before every version.
pub fn compare(a: &str, b: &str) -> Ordering {
    if a == b {
        return Ordering::Equal;
    }
    match (parts(a), parts(b)) {
        (Some((epoch, upstream, revision)), Some((other, up, rev))) => {
            epoch.cmp(&other).then_with(|| compare_part(upstream, up)).then_with(|| compare_part(revision, rev))
        }
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

/// Epoch, upstream version and revision; none when the text is no version.
pub fn parts(text: &str) -> Option<(u32, &str, &str)> {
    let (epoch, rest) = text.split_once(':').unwrap_or(("0", text));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
    let made_of = |part: &str, more: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    let whole = epoch.bytes().all(|b| b.is_ascii_digit()) && upstream.starts_with(|c: char| c.is_ascii_digit());
    (whole && made_of(upstream, ".+-~:") && made_of(revision, ".+~")).then_some((epoch.parse().ok()?, upstream, revision))
}

/// Text and numbers by turns, as dpkg compares them: `~` sorts before the end, letters before other characters, leading zeros count nothing.
/// (Own code: the crate for it takes `2a` and `2a0` for different versions.)
fn compare_part(mut a: &str, mut b: &str) -> Ordering {
    while !(a.is_empty() && b.is_empty()) {
        let (text_a, text_b) = (take(&mut a, |c| !c.is_ascii_digit()), take(&mut b, |c| !c.is_ascii_digit()));
        let weights = |text: &str| text.bytes().map(weight).chain([0]).collect::<Vec<_>>();
        let (number_a, number_b) = (take(&mut a, |c| c.is_ascii_digit()), take(&mut b, |c| c.is_ascii_digit()));
        let number = |text: &str| (text.trim_start_matches('0').len(), text.trim_start_matches('0').to_string());
        let order = weights(text_a).cmp(&weights(text_b)).then_with(|| number(number_a).cmp(&number(number_b)));
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

/// Takes the characters that fit off the front.
fn take<'a>(text: &mut &'a str, fits: impl Fn(char) -> bool) -> &'a str {
    let (front, rest) = text.split_at(text.find(|c| !fits(c)).unwrap_or(text.len()));
    *text = rest;
    front
}

fn weight(byte: u8) -> i32 {
    match byte {
        b'~' => -1,
        letter if letter.is_ascii_alphabetic() => letter.into(),
        other => i32::from(other) + 256,
    }
}

/// The groups of a field such as Depends: each group's alternatives in order.
pub fn groups(field: &str) -> Result<Vec<Vec<Relation<'_>>>> {
    let groups = field.split(',').map(str::trim).filter(|g| !g.is_empty());
    groups.map(|group| group.split('|').map(relation).collect()).collect()
}

/// The relations of a field without alternatives, such as Conflicts or Provides.
pub fn list(field: &str) -> Result<Vec<Relation<'_>>> {
    field.split(',').map(str::trim).filter(|r| !r.is_empty()).map(relation).collect()
}

fn relation(text: &str) -> Result<Relation<'_>> {
    let broken = || Error::input(format!("relation `{}` is unreadable", text.trim()));
    let text = text.trim();
    let (name, rest) = text.split_at(text.find([' ', '(', '[', '<']).unwrap_or(text.len()));
    let rest = rest.trim();
    let version = match rest.strip_prefix('(') {
        None if rest.is_empty() => None,
        None => return Err(broken()),
        Some(inner) => Some(comparison(inner.strip_suffix(')').ok_or_else(broken)?.trim()).ok_or_else(broken)?),
    };
    let name = name.strip_suffix(":any").or_else(|| name.strip_suffix(":native")).unwrap_or(name);
    if name.is_empty() {
        return Err(broken());
    }
    Ok(Relation { name, version })
}

fn comparison(text: &str) -> Option<(Op, &str)> {
    let (op, version) = OPS.iter().find_map(|(word, op)| Some((*op, text.strip_prefix(word)?.trim())))?;
    (!version.is_empty() && !version.contains(char::is_whitespace)).then_some((op, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_read_and_print_as_written() {
        let field = "libc6 (>= 2.36), default-mta | mail-transport-agent, python3:any (<<3.14)";
        let groups = groups(field).unwrap();
        let print = groups.iter().map(|g| g.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")).collect::<Vec<_>>().join(", ");
        assert_eq!(print, "libc6 (>= 2.36), default-mta | mail-transport-agent, python3 (<< 3.14)");
        assert!(list("").unwrap().is_empty());
        for wrong in ["a (", "a (= )", "a (?? 1)", "(= 1)", "a b", "a | | b", "a (= 1 2)"] {
            assert!(super::groups(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn versions_compare_as_dpkg_does() {
        let table = [
            ("1.0~rc1", "1.0", "lt"),
            ("1:0.1", "2.0", "gt"),
            ("1.0-1+b1", "1.0-1", "gt"),
            ("1.0", "1.0-0", "eq"),
            ("1.09", "1.9", "eq"),
            ("2a", "2a0", "eq"),
            ("1.0+dfsg", "1.0.1", "lt"),
            ("2a", "2", "gt"),
            ("0:1", "1", "eq"),
        ];
        for (a, b, order) in table {
            assert!(ask_dpkg(a, order, b), "dpkg disagrees with the table: {a} {b}");
            let ours = match compare(a, b) {
                Ordering::Less => "lt",
                Ordering::Equal => "eq",
                Ordering::Greater => "gt",
            };
            assert_eq!(ours, order, "{a} {b}");
        }
    }

    fn ask_dpkg(a: &str, order: &str, b: &str) -> bool {
        crate::exec::run(std::process::Command::new("dpkg").args(["--compare-versions", a, order, b])).is_ok()
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(200))]
        #[test]
        fn any_versions_compare_as_dpkg_does(a in "([0-3]:)?[0-2][0-2a.+~]{0,3}(-[0-2][0-2a.+~]{0,2})?", b in "([0-3]:)?[0-2][0-2a.+~]{0,3}(-[0-2][0-2a.+~]{0,2})?") {
            let order = match compare(&a, &b) {
                Ordering::Less => "lt",
                Ordering::Equal => "eq",
                Ordering::Greater => "gt",
            };
            proptest::prop_assert!(ask_dpkg(&a, order, &b), "{} {} {}", a, order, b);
        }

        #[test]
        fn any_field_is_read_or_refused(text in "[a-z0-9 ,|():<>=.~+-]{0,60}") {
            if let Ok(groups) = groups(&text) {
                let print = groups.iter().map(|g| g.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")).collect::<Vec<_>>().join(", ");
                proptest::prop_assert_eq!(super::groups(&print).unwrap(), groups);
            }
        }
    }
}
