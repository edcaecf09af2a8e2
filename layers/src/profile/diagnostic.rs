//! Problems of YAML files, each with its place, the offending line and a hint, printed all at once.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::Error;

use super::secret;

/// Names that a hint lists when none of them is near.
const LISTED: usize = 24;
/// Most problems that are printed; the rest is counted.
const MOST: usize = 100;
/// Characters of a source line that are printed.
const WIDTH: usize = 120;

/// Where something stands: number of the file, line and column from 1 (columns in characters), width in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub file: usize,
    pub line: usize,
    pub column: usize,
    pub width: usize,
}

/// A problem before it is rendered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Problem {
    pub place: Place,
    pub message: String,
    pub hint: Option<String>,
}

impl Problem {
    pub fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into(), hint: None }
    }

    pub fn hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

/// One problem of a YAML file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Path of the file, as it was asked for.
    pub file: String,
    /// Line, from 1; 0 when the problem is the whole file's.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The offending line, without any secret, and how many characters of it are meant.
    pub source: Option<(String, usize)>,
    /// What to do next.
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message)?,
            line => write!(f, "{}:{line}:{}: {}", self.file, self.column, self.message)?,
        }
        if let Some((text, width)) = &self.source {
            let (number, (shown, column)) = (self.line.to_string(), window(text, self.column));
            let pad: String = shown.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let room = shown.chars().count().saturating_sub(column - 1).max(1);
            let blank = " ".repeat(number.len());
            write!(f, "\n  {number} | {shown}\n  {blank} | {pad}{}", "^".repeat((*width).clamp(1, room)))?;
        }
        self.hint.iter().try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

/// The part of a long line around a column, and the column within it.
fn window(text: &str, column: usize) -> (String, usize) {
    let length = text.chars().count();
    let column = column.clamp(1, length + 1);
    if length <= WIDTH {
        return (text.to_string(), column);
    }
    let skip = if column > WIDTH * 3 / 4 { column - WIDTH / 2 } else { 0 };
    let (before, after) = (if skip > 0 { "…" } else { "" }, if skip + WIDTH < length { "…" } else { "" });
    let part: String = text.chars().skip(skip).take(WIDTH).collect();
    (format!("{before}{part}{after}"), column - skip + before.chars().count())
}

/// All problems of one file and of those it extends, in the order of their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    /// The file that was asked for.
    pub file: String,
    /// The problems; never empty.
    pub list: Vec<Diagnostic>,
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, diagnostic) in self.list.iter().take(MOST).enumerate() {
            write!(f, "{}{diagnostic}", if n == 0 { "" } else { "\n" })?;
        }
        match self.list.len().saturating_sub(MOST) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more problems"),
        }
    }
}

impl std::error::Error for Diagnostics {}

impl Diagnostics {
    /// All problems of several files as one error, those of `file` first; nothing when there is none.
    pub fn gather(file: &str, mut list: Vec<Diagnostic>) -> Result<(), Self> {
        let key = |d: &Diagnostic| (d.file != file, d.file.clone(), d.line, d.column, d.message.clone());
        list.sort_by_key(key);
        list.dedup();
        if list.is_empty() { Ok(()) } else { Err(Self { file: file.into(), list }) }
    }
}

/// Where something is written, with the line itself: what a later stage needs to tell a problem at its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    file: String,
    line: usize,
    column: usize,
    source: Option<(String, usize)>,
}

impl Spot {
    /// A place in the text of a file that is no YAML; line, column and width in characters, from 1.
    pub fn in_text(file: &str, text: &str, line: usize, column: usize, width: usize) -> Self {
        let mut sources = Sources::default();
        let file = sources.add(file, text);
        sources.spot(Place { file, line, column, width })
    }

    /// A problem at this place.
    pub fn problem(&self, message: impl Into<String>, hint: Option<String>) -> Diagnostic {
        let Self { file, line, column, source } = self.clone();
        Diagnostic { file, line, column, message: message.into(), source, hint }
    }
}

impl From<Diagnostics> for Error {
    fn from(all: Diagnostics) -> Self {
        let count = if all.list.len() == 1 { "1 problem".into() } else { format!("{} problems", all.list.len()) };
        Self::input(format!("checking {}: {count}\n{all}", all.file)).with_diagnostics(all.list)
    }
}

/// The texts that problems point into, and what of them must not be shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sources {
    files: Vec<Source>,
    /// Secret values, as a message would show them.
    secrets: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Source {
    path: String,
    lines: Vec<String>,
    /// Lines with secrets: index, and how many characters of it may be shown.
    hidden: BTreeMap<usize, usize>,
}

impl Sources {
    /// Adds a file and gives its number.
    pub fn add(&mut self, path: &str, text: &str) -> usize {
        let lines = split(text);
        let hidden = secret::lines(&lines).into_iter().collect();
        self.files.push(Source { path: path.into(), lines, hidden });
        self.files.len() - 1
    }

    /// Path of a file.
    pub fn path(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |f| &f.path)
    }

    /// Keeps a secret that begins at a place from ever being shown.
    pub fn hide(&mut self, place: Place, last_line: usize, value: &str) {
        self.secrets.push(quote(value));
        // A short value could be part of any word; quoted it is recognised all the same.
        if value.len() >= 6 {
            self.secrets.push(value.into());
        }
        let Some(source) = self.files.get_mut(place.file) else { return };
        for line in place.line..=last_line {
            let keep = if line == place.line { place.column.saturating_sub(1) } else { 0 };
            let kept = source.hidden.entry(line.saturating_sub(1)).or_insert(keep);
            *kept = keep.min(*kept);
        }
    }

    /// Renders problems; the first file is the one that was asked for.
    pub fn render(&self, mut problems: Vec<Problem>) -> Diagnostics {
        problems.sort();
        problems.dedup();
        Diagnostics { file: self.path(0).into(), list: problems.into_iter().map(|p| self.diagnostic(p)).collect() }
    }

    fn diagnostic(&self, Problem { place, message, hint }: Problem) -> Diagnostic {
        let clean = |text: String| self.secrets.iter().fold(text, |text, secret| text.replace(secret, "…"));
        self.spot(place).problem(clean(message), hint.map(clean))
    }

    /// A place with its line.
    pub fn spot(&self, place: Place) -> Spot {
        let source = self.line(place).map(|text| (text, place.width));
        Spot { file: self.path(place.file).into(), line: place.line, column: place.column, source }
    }

    /// The line of a place, as far as it may be shown.
    pub fn line(&self, place: Place) -> Option<String> {
        let source = self.files.get(place.file)?;
        let index = place.line.checked_sub(1)?;
        let text = source.lines.get(index)?;
        let shown = match source.hidden.get(&index) {
            Some(keep) => text.chars().take(*keep).chain(['…']).collect(),
            None => text.clone(),
        };
        // Nothing of a file may steer the terminal.
        Some(shown.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect())
    }
}

/// Lines as YAML counts them: ended by LF, CR LF or CR.
fn split(text: &str) -> Vec<String> {
    text.replace("\r\n", "\n").split(['\n', '\r']).map(str::to_string).collect()
}

/// A value for a message: in backquotes, short, without control characters, and never a secret.
pub fn quote(value: &str) -> String {
    if secret::kind(value).is_some() {
        return "`…`".into();
    }
    let clean: String = value.chars().take(60).flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect();
    if value.chars().nth(60).is_some() { format!("`{clean}…`") } else { format!("`{clean}`") }
}

/// `did you mean …?` for the nearest of the valid names, else the valid names themselves unless they are too many to read.
pub fn suggest<'a>(wrong: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let valid: Vec<&str> = valid.into_iter().collect();
    let short: String = wrong.chars().take(64).collect::<String>().to_lowercase();
    let distance = |name: &str| strsim::damerau_levenshtein(&short, &name.to_lowercase());
    let nearest = valid.iter().map(|name| (distance(name), *name)).min();
    match nearest? {
        (d, name) if d <= (name.len().max(short.len()) / 3).max(1) && d < name.len() => Some(format!("did you mean `{name}`?")),
        _ => (valid.len() <= LISTED).then(|| format!("valid here: {}", valid.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_wins_and_far_ones_list_all() {
        assert_eq!(suggest("pakages", ["packages", "users"]), Some("did you mean `packages`?".into()));
        assert_eq!(suggest("sshkeys", ["sshKeys", "sudo"]), Some("did you mean `sshKeys`?".into()));
        assert_eq!(suggest("zzz", ["packages", "users"]), Some("valid here: packages, users".into()));
        assert_eq!(suggest("x", []), None);
        let many: Vec<String> = (0..100).map(|n| format!("package-{n}")).collect();
        assert_eq!(suggest("zzz", many.iter().map(String::as_str)), None, "nobody reads a hundred names");
    }

    #[test]
    fn long_lines_are_cut_around_the_place_and_control_characters_removed() {
        let mut sources = Sources::default();
        let file = sources.add("f", &format!("{}X{}\u{1b}[2J", "a".repeat(300), "b".repeat(300)));
        let text = sources.render(vec![Problem::new(Place { file, line: 1, column: 301, width: 1 }, "m")]).to_string();
        let lines: Vec<&str> = text.lines().collect();
        let caret = lines[2].chars().position(|c| c == '^').unwrap();
        assert_eq!(lines[1].chars().nth(caret), Some('X'));
        assert!(lines[1].chars().count() < 140 && !text.contains('\u{1b}'));
    }

    #[test]
    fn lines_split_as_yaml_counts_them() {
        assert_eq!(split("a\r\nb\rc\nd"), ["a", "b", "c", "d"]);
    }
}
