//! YAML (1.2, core schema) as a tree in which every key and value knows its place. Bounded in size, depth and aliases.

use std::collections::BTreeMap;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span, options};

use super::diagnostic::{Place, Problem, quote};

/// Nesting that is accepted.
const DEPTH: usize = 64;
/// Bytes of one file that are accepted.
const BYTES: usize = 4 << 20;
/// What a document may cost with all its aliases followed: a node costs one, and one more for every 64 bytes of text.
const COST: usize = 200_000;

/// How nothing is written.
pub(super) const NULLS: [&str; 5] = ["", "~", "null", "Null", "NULL"];

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub place: Place,
    /// No line after this one holds any of the value's text.
    pub last_line: usize,
    pub kind: Kind,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Text; a plain one (without quotes) may also be read as a number, a truth value or nothing.
    Text(String, Style),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// How a scalar was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Quoted,
}

/// A key and its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    pub text: String,
    pub place: Place,
}

impl Node {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|(k, _)| k.text == key).map(|(_, v)| v)
    }

    /// Keys and values of a map; none for anything else.
    pub fn entries(&self) -> &[(Key, Self)] {
        if let Kind::Map(entries) = &self.kind { entries } else { &[] }
    }

    /// Items of a list; none for anything else.
    pub fn items(&self) -> &[Self] {
        if let Kind::List(items) = &self.kind { items } else { &[] }
    }

    /// Text of a scalar.
    pub fn text(&self) -> Option<&str> {
        if let Kind::Text(text, _) = &self.kind { Some(text) } else { None }
    }

    /// Whether this is YAML's nothing.
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Text(text, Style::Plain) if NULLS.contains(&text.as_str()))
    }

    /// Whether this is the truth value `true`.
    pub fn is_true(&self) -> bool {
        matches!(&self.kind, Kind::Text(text, Style::Plain) if matches!(text.as_str(), "true" | "True" | "TRUE"))
    }

    /// A JSON value as a tree without places.
    pub fn of(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        let key = |text: &String| Key { text: text.clone(), place: Place::default() };
        let kind = match value {
            Value::Array(items) => Kind::List(items.iter().map(Self::of).collect()),
            Value::Object(map) => Kind::Map(map.iter().map(|(k, v)| (key(k), Self::of(v))).collect()),
            Value::String(text) => Kind::Text(text.clone(), Style::Quoted),
            plain => Kind::Text(plain.to_string(), Style::Plain),
        };
        Self { place: Place::default(), last_line: 0, kind }
    }

    fn cost(&self) -> usize {
        match &self.kind {
            Kind::Text(text, _) => 1 + text.len() / 64,
            Kind::List(items) => 1 + items.iter().map(Self::cost).sum::<usize>(),
            Kind::Map(entries) => 1 + entries.iter().map(|(k, v)| 1 + k.text.len() / 64 + v.cost()).sum::<usize>(),
        }
    }

    fn depth(&self) -> usize {
        match &self.kind {
            Kind::Text(..) => 0,
            Kind::List(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Kind::Map(entries) => 1 + entries.iter().map(|(_, v)| v.depth()).max().unwrap_or(0),
        }
    }
}

/// A list or map that is still open.
struct Open {
    node: Node,
    anchor: usize,
    /// Keys of a map so far.
    keys: BTreeMap<String, usize>,
    /// The key that waits for its value; `None` inside for a key that was refused, with its value.
    key: Option<Option<Key>>,
}

struct Builder {
    file: usize,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    cost: usize,
    root: Option<Node>,
    problems: Vec<Problem>,
}

/// Reads one document. Gives what could be read up to the first syntax error, and all problems met.
pub(super) fn parse(file: usize, text: &str) -> (Option<Node>, Vec<Problem>) {
    let mut builder = Builder { file, open: Vec::new(), anchors: BTreeMap::new(), cost: 0, root: None, problems: Vec::new() };
    if text.len() > BYTES {
        builder.problems.push(Problem::new(Place { file, ..Place::default() }, format!("the file is larger than {} MiB", BYTES >> 20)));
        return (None, builder.problems);
    }
    if let Err(problem) = builder.run(text) {
        builder.problems.push(problem);
        return (None, builder.problems);
    }
    if builder.root.is_none() && builder.problems.is_empty() {
        builder.problems.push(Problem::new(Place { file, ..Place::default() }, "the file is empty"));
    }
    (builder.root, builder.problems)
}

impl Builder {
    fn run(&mut self, text: &str) -> Result<(), Problem> {
        let limits = options! { flow_nesting_limit: DEPTH, block_nesting_limit: DEPTH, emit_comments: false, emit_unresolved_aliases: true };
        for next in Parser::new_from_str_with_options(text, limits) {
            let (event, span) = next.map_err(|e| {
                let place = Place { file: self.file, line: e.marker().line(), column: e.marker().col() + 1, width: 1 };
                Problem::new(place, format!("not valid YAML: {}", e.info()))
            })?;
            self.event(event, span)?;
        }
        Ok(())
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let place = self.place(&span);
        self.refuse_tag(&event, &span);
        match event {
            Event::DocumentStart(..) if self.root.is_some() => return Err(Problem::new(place, "a second document begins; only one is read")),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none_or(|t| t.core_suffix() != Some("str"));
                let style = if plain { Style::Plain } else { Style::Quoted };
                let node = Node { place, last_line: span.end.line(), kind: Kind::Text(text.into_owned(), style) };
                self.complete(node, anchor)?;
            }
            Event::SequenceStart(_, anchor, _) => self.begin(Kind::List(Vec::new()), place, anchor)?,
            Event::MappingStart(_, anchor, _) => self.begin(Kind::Map(Vec::new()), place, anchor)?,
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    self.complete(Node { last_line: span.end.line(), ..open.node }, open.anchor)?;
                }
            }
            Event::Alias(id) => self.alias(id, place)?,
            Event::UnresolvedAlias(name) => {
                self.problems.push(Problem::new(place, format!("no anchor {} comes before this", quote(&format!("&{name}")))));
                self.complete(nothing(place), 0)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn place(&self, span: &Span) -> Place {
        let one_line = span.start.line() == span.end.line();
        let width = if one_line { span.end.col().saturating_sub(span.start.col()) } else { 1 };
        Place { file: self.file, line: span.start.line(), column: span.start.col() + 1, width: width.max(1) }
    }

    /// Tags other than those of the core schema (`!!str`) mean nothing here.
    fn refuse_tag(&mut self, event: &Event<'_>, span: &Span) {
        if event.tag().is_some_and(|t| t.core_suffix().is_none()) {
            let mark = span.tag_start().unwrap_or(span.start);
            let place = Place { file: self.file, line: mark.line(), column: mark.col() + 1, width: 1 };
            self.problems.push(Problem::new(place, "tags are not used here"));
        }
    }

    fn begin(&mut self, kind: Kind, place: Place, anchor: usize) -> Result<(), Problem> {
        if self.open.len() >= DEPTH {
            return Err(Problem::new(place, format!("nested deeper than {DEPTH} levels")));
        }
        let node = Node { place: Place { width: 1, ..place }, last_line: place.line, kind };
        self.open.push(Open { node, anchor, keys: BTreeMap::new(), key: None });
        Ok(())
    }

    fn alias(&mut self, id: usize, place: Place) -> Result<(), Problem> {
        let Some(node) = self.anchors.get(&id) else {
            return Err(Problem::new(place, "an alias inside the value that it stands for"));
        };
        if self.open.len() + node.depth() > DEPTH {
            return Err(Problem::new(place, format!("nested deeper than {DEPTH} levels, with aliases followed")));
        }
        // Checked before the copy, so that aliases of aliases cannot fill the memory.
        self.spend(node.cost(), place)?;
        let node = self.anchors.get(&id).cloned().unwrap_or_else(|| nothing(place));
        self.complete(node, 0)
    }

    fn spend(&mut self, cost: usize, place: Place) -> Result<(), Problem> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > COST { Err(Problem::new(place, "the file is too large with its aliases followed")) } else { Ok(()) }
    }

    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), Problem> {
        if matches!(node.kind, Kind::Text(..)) {
            self.spend(node.cost(), node.place)?;
        }
        if anchor != 0 {
            self.spend(node.cost(), node.place)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut open.node.kind, open.key.take()) {
            (Kind::Map(entries), Some(key)) => entries.extend(key.map(|k| (k, node))),
            (Kind::Map(_), None) => open.key = Some(key_of(node, &mut open.keys, &mut self.problems)),
            (Kind::List(items), _) => items.push(node),
            (Kind::Text(..), _) => {}
        }
        Ok(())
    }
}

fn key_of(node: Node, keys: &mut BTreeMap<String, usize>, problems: &mut Vec<Problem>) -> Option<Key> {
    let Kind::Text(text, _) = node.kind else {
        problems.push(Problem::new(node.place, "a key must be text"));
        return None;
    };
    if let Some(line) = keys.insert(text.clone(), node.place.line) {
        problems.push(Problem::new(node.place, format!("duplicate key {}, first given in line {line}", quote(&text))));
        return None;
    }
    Some(Key { text, place: node.place })
}

fn nothing(place: Place) -> Node {
    Node { place, last_line: place.line, kind: Kind::Text(String::new(), Style::Plain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        parse(0, text).1.into_iter().map(|p| format!("{}:{} {}", p.place.line, p.place.column, p.message)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn places_count_from_one_in_characters() {
        let (root, problems) = parse(0, "ä: ö\nlist:\n  - é: |\n      text\n      more\n  - x\n");
        assert_eq!(problems, []);
        let root = root.unwrap();
        let place = |n: &Node| (n.place.line, n.place.column, n.place.width);
        assert_eq!(place(root.get("ä").unwrap()), (1, 4, 1));
        let items = root.get("list").unwrap().items();
        let text = items[0].get("é").unwrap();
        assert_eq!((place(&items[0]), place(&items[1])), ((3, 5, 1), (6, 5, 1)));
        assert_eq!((text.place.line, text.text()), (4, Some("text\nmore\n")));
        assert!(text.last_line >= 5);
    }

    #[test]
    fn bad_yaml_is_named_with_its_place() {
        assert_eq!(problem("a: 1\nb: 2\na: 3\n"), "3:1 duplicate key `a`, first given in line 1");
        assert_eq!(problem("? [a]\n: b\n"), "1:3 a key must be text");
        assert_eq!(problem("a: 1\n---\nb: 2\n"), "2:1 a second document begins; only one is read");
        assert_eq!(problem("a: *b\n"), "1:4 no anchor `&b` comes before this");
        assert_eq!(problem("a: &b [*b]\n"), "1:8 an alias inside the value that it stands for");
        assert_eq!(problem("a: !x 1\n"), "1:4 tags are not used here");
        assert_eq!(problem(""), "0:0 the file is empty");
        assert!(problem("a: [1\n").contains("not valid YAML"));
    }

    #[test]
    fn nesting_and_aliases_are_bounded() {
        assert!(problem(&"[".repeat(100_000)).contains("not valid YAML"));
        assert!(problem(&"- ".repeat(100_000)).contains("not valid YAML"));
        let mut laughs = String::from("l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n");
        (1..30).for_each(|n| laughs += &format!("l{n}: &l{n} [*l{0}, *l{0}, *l{0}, *l{0}, *l{0}, *l{0}]\n", n - 1));
        assert!(problem(&laughs).contains("too large with its aliases"));
        let mut deep = String::from("l0: &l0 [x]\n");
        (1..1000).for_each(|n| deep += &format!("l{n}: &l{n} [[[*l{}]]]\n", n - 1));
        assert!(problem(&deep).contains("nested deeper than 64"));
    }
}
