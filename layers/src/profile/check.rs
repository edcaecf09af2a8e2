//! Checks a YAML tree against the JSON schema of a Rust type and turns it into that type's JSON value.
//!
//! The schema is the one that schemars generates (JSON Schema 2020-12); only the words that it uses are understood. The schema
//! also decides what a plain scalar is: `0644` is text where text is wanted, and a whole number where only that fits.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use crate::units::Bytes;

use super::diagnostic::{Place, Problem, Sources, quote, suggest};
use super::tree::{Key, Kind, NULLS, Node, Style};
use super::{schema, secret};

/// Steps that checking may take; alternatives within alternatives cannot run away.
const STEPS: usize = 5_000_000;

/// Checks a tree against the schema of `T` and makes a `T` of it when nothing is wrong.
pub(super) fn typed<T: JsonSchema + DeserializeOwned>(root: &Node, problems: &mut Vec<Problem>) -> Option<T> {
    let schema = schema::closed::<T>().to_value();
    let mut checker = Checker { schema: &schema, steps: 0, problems: Vec::new() };
    let value = checker.check(root, &schema, "the file");
    let sound = checker.problems.is_empty();
    problems.append(&mut checker.problems);
    if !sound {
        return None;
    }
    // A text that no schema can judge has no place here: whoever has told of one already has told it better.
    let told = !problems.is_empty();
    serde_json::from_value(value).inspect_err(|e| problems.extend((!told).then(|| Problem::new(root.place, e.to_string())))).ok()
}

/// The JSON value of a tree where any is accepted.
pub(super) fn value(node: &Node) -> Value {
    Checker { schema: &Value::Bool(true), steps: 0, problems: Vec::new() }.check(node, &Value::Bool(true), "")
}

/// Reports every secret in the tree's keys and values, and hides the lines that it stands in.
pub(super) fn refuse_secrets(root: &Node, sources: &mut Sources, problems: &mut Vec<Problem>) {
    let mut found = |what: &str, place: Place, last_line: usize, value: &str| {
        sources.hide(place, last_line, value);
        let hint = "hand secrets to the node by a config source".to_string();
        problems.push(Problem::new(place, format!("{what} must not be written here")).hint(Some(hint)));
    };
    walk(root, None, &mut |key, node| {
        if let Some(what) = key.and_then(|k| secret::kind(&k.text)) {
            key.iter().for_each(|k| found(what, k.place, k.place.line, &k.text));
        }
        let Kind::Text(text, style) = &node.kind else { return };
        // A plain number may be a secret too; `true`, `null` and templates are none.
        let named = key.is_some_and(|k| secret::is_secret_key(&k.text));
        let harmless =
            text.is_empty() || text.contains("{{") || node.is_null() || *style == Style::Plain && matches!(text.as_str(), "true" | "false");
        if let Some(what) = secret::kind(text).or((named && !harmless).then_some("a password or token")) {
            found(what, node.place, node.last_line, text);
        }
    });
}

fn walk(node: &Node, key: Option<&Key>, visit: &mut impl FnMut(Option<&Key>, &Node)) {
    visit(key, node);
    node.items().iter().for_each(|item| walk(item, key, visit));
    for (inner, value) in node.entries() {
        // There it is the name of a Secret.
        let is_reference = inner.text == "secret" && key.is_some_and(|key| key.text == "valuesFrom");
        walk(value, Some(inner).filter(|_| !is_reference), visit);
    }
}

struct Checker<'a> {
    schema: &'a Value,
    steps: usize,
    problems: Vec<Problem>,
}

impl<'a> Checker<'a> {
    /// The JSON value of a node under a schema; problems are noted and something near is returned.
    fn check(&mut self, node: &Node, schema: &'a Value, name: &str) -> Value {
        self.steps += 1;
        if self.steps > STEPS {
            if self.steps == STEPS + 1 {
                self.note(node.place, "the file is too intricate to check");
            }
            return Value::Null;
        }
        let schema = self.resolve(schema);
        if let Some(names) = self.names(schema) {
            return self.name(node, &names, name);
        }
        match alternatives(schema) {
            Some(list) => self.either(node, list, name),
            None => self.kind(node, schema, name),
        }
    }

    fn note(&mut self, place: Place, message: impl Into<String>) {
        self.problems.push(Problem::new(place, message));
    }

    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        // A chain of references is short; a cycle of bare references cannot come from a Rust type.
        for _ in 0..8 {
            let Some(path) = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#')) else { break };
            schema = self.schema.pointer(path).unwrap_or(&Value::Bool(true));
        }
        schema
    }

    /// The names of an enumeration, however schemars wrote it; `None` when the schema is something else.
    fn names(&self, schema: &'a Value) -> Option<Vec<&'a str>> {
        if let Some(name) = schema.get("const").and_then(Value::as_str) {
            return Some(vec![name]);
        }
        if let Some(list) = schema.get("enum").and_then(Value::as_array) {
            return list.iter().map(Value::as_str).collect();
        }
        let list = schema.get("oneOf").and_then(Value::as_array)?;
        Some(list.iter().map(|s| self.names(self.resolve(s))).collect::<Option<Vec<_>>>()?.concat())
    }

    fn name(&mut self, node: &Node, names: &[&str], name: &str) -> Value {
        match node.text() {
            Some(text) if names.contains(&text) => {}
            Some(text) => {
                let problem = Problem::new(node.place, format!("{name} cannot be {}", quote(text)));
                self.problems.push(problem.hint(suggest(text, names.iter().copied())));
            }
            None => self.note(node.place, format!("{name} must be one of {}, not {}", names.join(", "), describe(node))),
        }
        node.text().map_or(Value::Null, Value::from)
    }

    /// The first alternative without problems, those that fit best before others; else the one with the fewest problems.
    fn either(&mut self, node: &Node, list: &'a [Value], name: &str) -> Value {
        let mut order: Vec<(Fit, &'a Value)> = list.iter().map(|s| (self.fit(node, self.resolve(s)), s)).collect();
        order.sort_by_key(|(fit, _)| *fit);
        order.retain(|(fit, _)| *fit != Fit::Not);
        if order.is_empty() {
            let kinds: Vec<String> = list.iter().map(|s| self.expectation(self.resolve(s))).filter(|k| !k.is_empty()).collect();
            self.note(node.place, format!("{name} must be {}, not {}", kinds.join(" or "), describe(node)));
            return Value::Null;
        }
        if let ([(key, _), ..], true) = (node.entries(), order.len() > 1 && order[0].0 == Fit::Near) {
            let keys: Vec<&str> = order.iter().flat_map(|(_, s)| required(self.resolve(s))).collect();
            let problem = Problem::new(key.place, format!("{name} cannot be {}", quote(&key.text)));
            self.problems.push(problem.hint(suggest(&key.text, keys)));
            return Value::Null;
        }
        self.best(node, &order, name)
    }

    fn best(&mut self, node: &Node, order: &[(Fit, &'a Value)], name: &str) -> Value {
        let mut best: Option<(Value, Vec<Problem>)> = None;
        for (_, schema) in order {
            let before = std::mem::take(&mut self.problems);
            let value = self.check(node, schema, name);
            let mine = std::mem::replace(&mut self.problems, before);
            if mine.is_empty() {
                return value;
            }
            if best.as_ref().is_none_or(|(_, least)| mine.len() < least.len()) {
                best = Some((value, mine));
            }
        }
        best.map_or(Value::Null, |(value, problems)| {
            self.problems.extend(problems);
            value
        })
    }

    /// How well a node fits one of several alternatives, without looking into it.
    fn fit(&self, node: &Node, schema: &'a Value) -> Fit {
        let good = |yes: bool| if yes { Fit::Exact } else { Fit::Not };
        if let Some(names) = self.names(schema) {
            return node.text().map_or(Fit::Not, |text| if names.contains(&text) { Fit::Exact } else { Fit::Near });
        }
        if let Some(list) = alternatives(schema) {
            return list.iter().map(|s| self.fit(node, self.resolve(s))).min().unwrap_or(Fit::Not);
        }
        let wanted = types(schema);
        match &node.kind {
            _ if wanted.is_empty() => Fit::Exact,
            Kind::List(_) => good(wanted.contains(&"array")),
            Kind::Map(_) if !wanted.contains(&"object") => Fit::Not,
            Kind::Map(_) => self.fit_map(node, schema),
            Kind::Text(text, style) => match plain(text, *style, &wanted) {
                Value::Null => good(wanted.contains(&"null")),
                Value::String(_) if wanted.contains(&"string") => Fit::Near,
                Value::String(_) => Fit::Not,
                _ => Fit::Exact,
            },
        }
    }

    /// A map fits when it has the required keys, and those that tell alternatives apart have the right names.
    fn fit_map(&self, node: &Node, schema: &'a Value) -> Fit {
        let properties = schema.get("properties").and_then(Value::as_object);
        let tagged = properties.into_iter().flatten().all(|(key, s)| match s.get("const").and_then(Value::as_str) {
            Some(name) => node.get(key).and_then(Node::text).is_none_or(|text| text == name),
            None => true,
        });
        if tagged && required(schema).all(|key| node.get(key).is_some()) { Fit::Exact } else { Fit::Near }
    }

    fn kind(&mut self, node: &Node, schema: &'a Value, name: &str) -> Value {
        let wanted = types(schema);
        let open = wanted.is_empty();
        match &node.kind {
            Kind::List(items) if open || wanted.contains(&"array") => self.list(items, schema, name),
            Kind::Map(entries) if open || wanted.contains(&"object") => self.map(node, entries, schema, name),
            Kind::Text(text, style) => self.scalar(node, text, *style, schema, name),
            _ => {
                self.note(node.place, format!("{name} must be {}, not {}", self.expectation(schema), describe(node)));
                Value::Null
            }
        }
    }

    fn list(&mut self, items: &[Node], schema: &'a Value, name: &str) -> Value {
        let each = schema.get("items").unwrap_or(&Value::Bool(true));
        let name = if name.starts_with("an item of") { name.to_string() } else { format!("an item of {name}") };
        items.iter().map(|item| self.check(item, each, &name)).collect()
    }

    fn map(&mut self, node: &Node, entries: &[(Key, Node)], schema: &'a Value, name: &str) -> Value {
        let known = schema.get("properties").and_then(Value::as_object);
        let other = schema.get("additionalProperties").unwrap_or(&Value::Bool(true));
        let mut out = Map::new();
        for (key, value) in entries {
            match known.and_then(|k| k.get(&key.text)) {
                None if *other == Value::Bool(false) => {
                    let valid = known.into_iter().flatten().map(|(k, _)| k.as_str());
                    self.problems.push(Problem::new(key.place, format!("unknown key {}", quote(&key.text))).hint(suggest(&key.text, valid)));
                }
                found => {
                    let value = self.check(value, found.unwrap_or(other), &quote(&key.text));
                    out.insert(key.text.clone(), value);
                }
            }
        }
        for missing in required(schema).filter(|k| !entries.iter().any(|(key, _)| key.text == *k)) {
            self.note(node.place, format!("{name} lacks the key `{missing}`"));
        }
        Value::Object(out)
    }

    fn scalar(&mut self, node: &Node, text: &str, style: Style, schema: &'a Value, name: &str) -> Value {
        let wanted = types(schema);
        let value = plain(text, style, &wanted);
        let fits = match &value {
            _ if wanted.is_empty() => true,
            Value::Null => wanted.contains(&"null"),
            Value::Bool(_) => wanted.contains(&"boolean"),
            Value::Number(n) => wanted.contains(&"number") || wanted.contains(&"integer") && !n.is_f64(),
            _ => wanted.contains(&"string"),
        };
        if !fits {
            self.note(node.place, format!("{name} must be {}, not {}", self.expectation(schema), describe(node)));
        } else if let Some(message) = value.as_i64().map(i128::from).or(value.as_u64().map(i128::from)).and_then(|n| beyond(n, schema)) {
            self.note(node.place, format!("{name} must be {message}, not {}", quote(text)));
        } else if let (Some(Value::String(format)), Value::String(text)) = (schema.get("format"), &value)
            && format == BYTES_FORMAT
        {
            text.parse::<Bytes>().map_err(|message| self.note(node.place, format!("{name}: {message}"))).ok();
        }
        value
    }

    /// What a schema wants, in words.
    fn expectation(&self, schema: &'a Value) -> String {
        if let Some(names) = self.names(schema) {
            return format!("one of {}", names.join(", "));
        }
        if let Some(list) = alternatives(schema) {
            return list.iter().map(|s| self.expectation(self.resolve(s))).collect::<Vec<_>>().join(" or ");
        }
        if schema.get("format").is_some_and(|f| f == BYTES_FORMAT) {
            return "a size such as 512MiB".into();
        }
        let words = types(schema).into_iter().filter(|t| *t != "null").map(|t| match t {
            "string" => "text",
            "integer" => "a whole number",
            "number" => "a number",
            "boolean" => "true or false",
            "array" => "a list",
            _ => "a map of keys and values",
        });
        words.collect::<Vec<_>>().join(" or ")
    }
}

/// The schema format of [`Bytes`].
pub(crate) const BYTES_FORMAT: &str = "bytes";

/// How well a node fits an alternative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Exact,
    Near,
    Not,
}

fn alternatives(schema: &Value) -> Option<&Vec<Value>> {
    schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array)
}

fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn required(schema: &Value) -> impl Iterator<Item = &str> {
    schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// What a scalar is where `wanted` types are accepted (any, when empty): the type it looks like if wanted, else text.
fn plain(text: &str, style: Style, wanted: &[&str]) -> Value {
    let may = |t: &str| wanted.is_empty() || wanted.contains(&t);
    if style == Style::Quoted {
        return Value::from(text);
    }
    match text {
        _ if NULLS.contains(&text) => return Value::Null,
        "true" | "True" | "TRUE" if may("boolean") => return Value::Bool(true),
        "false" | "False" | "FALSE" if may("boolean") => return Value::Bool(false),
        _ => {}
    }
    let number = if may("integer") || may("number") { integer(text) } else { None };
    let number = number.or_else(|| may("number").then(|| float(text)).flatten());
    number.map_or_else(|| Value::from(text), Value::Number)
}

/// A whole number; one with leading zeros is text, because some readers take it as octal.
fn integer(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+')).map(Number::from);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return u64::from_str_radix(octal, 8).ok().filter(|_| !octal.starts_with('+')).map(Number::from);
    }
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || digits.len() > 1 && digits.starts_with('0') {
        return None;
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    text.parse::<i64>().map(Number::from).or_else(|_| text.parse::<u64>().map(Number::from)).ok()
}

fn float(text: &str) -> Option<Number> {
    let digit = text.bytes().any(|b| b.is_ascii_digit());
    let shape = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) && text.contains(['.', 'e', 'E']);
    (digit && shape).then(|| text.parse().ok().and_then(Number::from_f64)).flatten()
}

/// Says which bounds a number breaks: those written, else those of the integer type.
fn beyond(n: i128, schema: &Value) -> Option<String> {
    let (low, high) = match schema.get("format").and_then(Value::as_str) {
        Some("uint8") => (0, u8::MAX.into()),
        Some("uint16") => (0, u16::MAX.into()),
        Some("uint32") => (0, u32::MAX.into()),
        Some("uint64" | "uint") => (0, u64::MAX.into()),
        Some("int8") => (i8::MIN.into(), i8::MAX.into()),
        Some("int16") => (i16::MIN.into(), i16::MAX.into()),
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        Some("int64" | "int") => (i64::MIN.into(), i64::MAX.into()),
        _ => (i128::MIN, i128::MAX),
    };
    let bound = |key: &str| schema.get(key).and_then(Value::as_i64).map(i128::from);
    let (low, high) = (bound("minimum").unwrap_or(low), bound("maximum").unwrap_or(high));
    let words = if high == i128::MAX { format!("at least {low}") } else { format!("from {low} to {high}") };
    (n < low || n > high).then_some(words)
}

fn describe(node: &Node) -> String {
    match &node.kind {
        Kind::List(_) => "a list".into(),
        Kind::Map(_) => "a map".into(),
        Kind::Text(text, style) => match plain(text, *style, &[]) {
            Value::Null => "nothing".into(),
            Value::String(text) => format!("the text {}", quote(&text)),
            _ => quote(text),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::profile::diagnostic::Diagnostics;
    use crate::profile::{Disk, Scalar, document};

    fn parse_checked<T: JsonSchema + DeserializeOwned>(file: &str, text: &str) -> Result<T, Diagnostics> {
        document::read(file, text, |_, _| {}).map(|(value, _)| value)
    }

    #[derive(Debug, PartialEq, Deserialize, JsonSchema)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Sample {
        name: String,
        #[serde(default)]
        mode: String,
        #[serde(default)]
        level: u8,
        #[serde(default)]
        colour: Option<Colour>,
        #[serde(default)]
        any: Value,
        #[serde(default)]
        scalars: Vec<Scalar>,
        #[serde(default)]
        sources: Vec<Source>,
        #[serde(default)]
        disk: Disk,
    }

    #[derive(Debug, PartialEq, Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    enum Colour {
        Red,
        /// With a description schemars writes `oneOf` and `const`.
        Green,
    }

    #[derive(Debug, PartialEq, Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase", deny_unknown_fields)]
    enum Source {
        Deb { suite: String },
        Url { address: String, sha256: String },
        None,
    }

    fn wrong(text: &str) -> String {
        let all = parse_checked::<Sample>("s.yaml", text).unwrap_err();
        all.list.iter().map(|d| format!("{}:{} {} {}", d.line, d.column, d.message, d.hint.as_deref().unwrap_or("-"))).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn plain_scalars_become_what_the_type_wants() {
        let text = "name: no\nmode: 0644\nlevel: 7\ncolour: green\nany: [1, 01, 1.5, yes, true, null, 'x', {a: 2}]\nscalars: [1, true, 0644, '1', 1.5]\n\
                    sources: [none, deb: {suite: trixie}]\ndisk: {size: 8GiB, espSize: 1048576}\n";
        let sample: Sample = parse_checked("s.yaml", text).unwrap();
        assert_eq!((sample.name.as_str(), sample.mode.as_str(), sample.level, sample.colour), ("no", "0644", 7, Some(Colour::Green)));
        assert_eq!(sample.any, serde_json::json!([1, "01", 1.5, "yes", true, null, "x", {"a": 2}]));
        let text = |t: &str| Scalar::Text(t.into());
        assert_eq!(sample.scalars, [Scalar::Number(1), Scalar::Bool(true), text("0644"), text("1"), text("1.5")]);
        assert_eq!(sample.sources, [Source::None, Source::Deb { suite: "trixie".into() }]);
        assert_eq!((sample.disk.size, sample.disk.esp_size), (Bytes(8 << 30), Bytes(1 << 20)));
    }

    #[test]
    fn a1_all_problems_are_told_at_once_with_their_places() {
        let text = "nmae: x\nlevel: 300\ncolour: gren\nmode: [a]\nsources:\n  - url: {adress: a, sha256: b}\n  - dbe: {}\n  - 12\ndisk: {size: 4GB, espSize: -1}\nscalars: [{}]\n";
        let expected = "\
1:1 the file lacks the key `name` -
1:1 unknown key `nmae` did you mean `name`?
2:8 `level` must be from 0 to 255, not `300` -
3:9 `colour` cannot be `gren` did you mean `green`?
4:7 `mode` must be text, not a list -
6:10 `url` lacks the key `address` -
6:11 unknown key `adress` did you mean `address`?
7:5 an item of `sources` cannot be `dbe` did you mean `deb`?
8:5 an item of `sources` cannot be `12` valid here: none
9:14 `size`: `4GB` is not a size such as 512MiB or 4GiB -
9:28 `espSize` must be at least 0, not `-1` -
10:11 an item of `scalars` must be true or false or a whole number or text, not a map -";
        assert_eq!(wrong(text), expected);
    }

    #[test]
    fn a1_a_wrong_whole_file_is_named() {
        assert_eq!(wrong("- a\n"), "1:1 the file must be a map of keys and values, not a list -");
        assert_eq!(wrong("name:\n"), "1:5 `name` must be text, not nothing -");
    }

    #[test]
    fn a7_a_secret_is_refused_and_never_printed() {
        for secret in ["$6$salty$0123456789abcdef", "abcdef.0123456789abcdef", "AKIAIOSFODNN7EXAMPLE"] {
            for text in [
                format!("name: {secret}\nlevel: x"),
                format!("name: a\n{secret}: b"),
                format!("name: [\n  {secret}, }}"),
                format!("mode: [{secret}]"),
            ] {
                let shown = parse_checked::<Sample>("s.yaml", &text).unwrap_err().to_string();
                assert!(!shown.contains(secret), "{shown}");
            }
        }
        let shown =
            parse_checked::<Sample>("s.yaml", "name: {token: hunter2}\nany: 1\nlevel: &x hunter2\ncolour: {secret: *x}\n").unwrap_err().to_string();
        assert!(!shown.contains("hunter2"), "{shown}");
        let shown = parse_checked::<Sample>("s.yaml", "name: a\nany: {password: hunter2, n: 1}\n").unwrap_err().to_string();
        assert!(shown.contains("s.yaml:2:17: a password or token must not") && !shown.contains("hunter2"), "{shown}");
    }
}
