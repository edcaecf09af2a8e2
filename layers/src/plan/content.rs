//! What a layer or the profile holds: names under conditions, scripts, files with their final bytes.

use super::*;
use crate::layer::Script;

/// A layer or the profile under planning: what it is made of and the problems so far.
pub(super) struct Site<'a, 'p> {
    /// What problems point into.
    pub document: &'a Document,
    /// The folder that sources are read from, for messages; empty for the profile, whose sources have whole paths.
    pub folder: &'a str,
    /// What templates know.
    pub data: &'a Value,
    /// Reads a source.
    pub read: Read<'a>,
    /// Problems so far.
    pub problems: &'p mut Vec<Diagnostic>,
}

impl Site<'_, '_> {
    fn note(&mut self, path: &[&str], error: &Error) {
        self.problems.push(self.document.spot(path).problem(error.to_string(), error.hint().map(str::to_string)));
    }

    /// Names with their places; `held` gives the place of the n-th name that a list parameter holds.
    pub fn items(&mut self, list: &str, items: &[Item], held: &dyn Fn(&str, usize) -> Spot) -> BTreeMap<String, Spot> {
        let mut out = BTreeMap::new();
        for (n, item) in items.iter().enumerate() {
            let n = n.to_string();
            match item {
                Item::Name(name) => drop(out.insert(name.clone(), self.document.spot(&[list, &n]))),
                Item::When(item) => match template::condition(&item.when, self.data) {
                    Ok(true) => drop(out.insert(item.name.clone(), self.document.spot(&[list, &n, "name"]))),
                    Ok(false) => {}
                    Err(problem) => self.problems.push(self.document.spot(&[list, &n, "when"]).problem(problem.message, problem.hint)),
                },
                Item::From(item) => {
                    // That it is a list was checked with the layer and with the profile's values.
                    let names = self.data["parameters"][&item.parameter].as_array().into_iter().flatten().filter_map(Value::as_str);
                    out.extend(names.enumerate().map(|(n, name)| (name.to_string(), held(&item.parameter, n))));
                }
            }
        }
        out
    }

    /// Bytes of a file that stands at a path of keys; none when it cannot be read, which is a problem.
    pub fn bytes(&mut self, name: &str, at: &[&str]) -> Vec<u8> {
        (self.read)(name).unwrap_or_else(|error| {
            self.note(at, &error);
            Vec::new()
        })
    }

    pub fn scripts(&mut self, scripts: &[Script]) -> Vec<PlannedScript> {
        let mut out = Vec::new();
        for (n, script) in scripts.iter().enumerate() {
            match (self.read)(&script.file) {
                Ok(text) => out.push(PlannedScript { name: script.name.clone(), text }),
                Err(error) => self.note(&["scripts", &n.to_string(), "file"], &error),
            }
        }
        out
    }

    /// Whether a condition holds; without one it does.
    pub fn holds(&mut self, when: Option<&str>, path: &[&str]) -> bool {
        match when.map(|when| template::condition(when, self.data)).transpose() {
            Ok(answer) => answer.unwrap_or(true),
            Err(problem) => {
                self.problems.push(self.document.spot(path).problem(problem.message, problem.hint));
                false
            }
        }
    }

    /// The files of a list that stands at a path of keys, sorted by path.
    pub fn files(&mut self, list: &[&str], specs: &[FileSpec]) -> Vec<PlannedFile> {
        let mut out = Vec::new();
        for (n, spec) in specs.iter().enumerate() {
            let n = n.to_string();
            let at = [list, &[&n]].concat();
            if self.holds(spec.when.as_deref(), &[&at[..], &["when"]].concat()) {
                out.push(self.file(spec, &at));
            }
        }
        out.sort_by(|a, b| a.path.cmp(&b.path));
        for pair in out.windows(2).filter(|pair| pair[0].path == pair[1].path) {
            self.problems.push(pair[1].at.problem(format!("{} is there twice: both conditions hold", pair[1].path), None));
        }
        out
    }

    /// The file at a path of keys. That exactly one origin is given and path and mode are sound was checked with
    /// the document.
    fn file(&mut self, spec: &FileSpec, at: &[&str]) -> PlannedFile {
        if let Some(from) = &spec.from {
            let (source, member) = from.split_once('#').map_or((from.as_str(), None), |(source, member)| (source, Some(member)));
            let body = Body::From { source: source.into(), member: member.map(str::to_string) };
            return self.planned(spec, body, at);
        }
        let body = match (&spec.content, &spec.source, &spec.link) {
            (_, Some(name), _) if name == NODE_BINARY => Body::Node,
            (_, Some(name), _) => Body::Bytes(self.source(spec, name, at)),
            (_, _, Some(target)) => Body::Link(self.link(spec, target, at)),
            (text, ..) => {
                let (text, document) = (text.as_deref().unwrap_or_default(), self.document);
                Body::Bytes(self.rendered(spec, text, |place| document.spot_within(&[at, &["content"]].concat(), place)).into_bytes())
            }
        };
        self.planned(spec, body, at)
    }

    fn planned(&self, spec: &FileSpec, body: Body, at: &[&str]) -> PlannedFile {
        PlannedFile {
            path: spec.path.clone(),
            mode: u16::from_str_radix(&spec.mode, 8).unwrap_or(0o644),
            owner: spec.owner.clone(),
            group: spec.group.clone(),
            overrides: spec.overrides,
            body,
            at: self.document.spot(&[at, &["path"]].concat()),
        }
    }

    fn source(&mut self, spec: &FileSpec, name: &str, at: &[&str]) -> Vec<u8> {
        let at = [at, &["source"]].concat();
        let bytes = self.bytes(name, &at);
        if !spec.template {
            return bytes;
        }
        let Ok(text) = String::from_utf8(bytes) else {
            self.note(&at, &Error::input(format!("template {} is not UTF-8", quote(name))));
            return Vec::new();
        };
        let file = if self.folder.is_empty() { name.to_string() } else { format!("{}/{name}", self.folder) };
        self.rendered(spec, &text, |(line, column, width)| Spot::in_text(&file, &text, line, column, width)).into_bytes()
    }

    fn link(&mut self, spec: &FileSpec, target: &str, at: &[&str]) -> String {
        let (document, before) = (self.document, self.problems.len());
        let target = self.rendered(spec, target, |place| document.spot_within(&[at, &["link"]].concat(), place));
        if self.problems.len() == before && (target.is_empty() || target.contains('\0') || target.len() > 4095) {
            self.note(&[at, &["link"]].concat(), &Error::input(format!("{} cannot be the target of a link", quote(&target))));
        }
        target
    }

    /// The text of a file, rendered if it is a template; `spot` gives the place of a part of it.
    fn rendered(&mut self, spec: &FileSpec, text: &str, spot: impl Fn((usize, usize, usize)) -> Spot) -> String {
        if !spec.template {
            return text.into();
        }
        template::render(&spec.path, text, self.data).unwrap_or_else(|problems| {
            let named = |p: template::Problem| spot(p.place).problem(format!("rendering {}: {}", spec.path, p.message), p.hint);
            self.problems.extend(problems.into_iter().map(named));
            String::new()
        })
    }
}
