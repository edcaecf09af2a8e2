//! Templates of layer files: Handlebars in strict mode, each value escaped once for the kind of file it lands in.

use std::borrow::Cow;

use handlebars::{Context as Data, Handlebars, Helper, HelperResult, JsonTruthy as _, Output, RenderContext, RenderError, RenderErrorReason};
use serde_json::{Value, json};

use crate::profile::{quote, suggest};

/// Marks a value that cannot stand in a line; no template can hold it itself.
const REFUSED: char = '\0';

/// Most unknown names that are told of one template.
const MOST: usize = 100;

/// How `{{value}}` is written, by the kind of file. `{{{value}}}` writes any value as it is; `{{yaml value}}` and
/// `{{shell value}}` quote for that language whatever the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    /// As is; a value with a line break or another control character is refused, because it would become a line of its own.
    Line,
    /// Quoted as JSON text (which YAML reads alike), except numbers and truth values.
    Json,
    /// Quoted for a POSIX shell.
    Shell,
}

impl Escape {
    fn of(path: &str, text: &str) -> Self {
        let extension = path.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map(|(_, e)| e);
        match extension {
            Some("yaml" | "yml" | "json") => Self::Json,
            Some("sh") => Self::Shell,
            _ if text.starts_with("#!") => Self::Shell,
            _ => Self::Line,
        }
    }

    fn apply(self, value: &str) -> String {
        match self {
            Self::Line if value.contains(char::is_control) => REFUSED.into(),
            Self::Line => value.into(),
            Self::Json if value.parse::<i64>().is_ok() || value == "true" || value == "false" => value.into(),
            Self::Json => Value::from(value).to_string(),
            Self::Shell => shell(value),
        }
    }
}

/// What is wrong with a template, and where in its text: line, column and width in characters, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, column and width.
    pub place: (usize, usize, usize),
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// Renders a template once; `path` is the file's path in the image and decides how values are escaped. All unknown names are told at once.
pub fn render(path: &str, text: &str, data: &Value) -> Result<String, Vec<Problem>> {
    let engine = engine(Escape::of(path, text));
    let (mut filled, mut problems) = (Cow::Borrowed(data), Vec::new());
    loop {
        match engine.render_template(text, filled.as_ref()) {
            Ok(out) => {
                problems.extend(refused(&out));
                return if problems.is_empty() { Ok(out) } else { Err(problems) };
            }
            Err(error) => {
                // With the unknown name filled in, the next one shows; what else fails then may come from what was filled in.
                let filled_in = missing(&error).is_some_and(|name| fill(filled.to_mut(), name));
                if filled_in || problems.is_empty() {
                    problems.push(explain(&error, text, data));
                }
                if !filled_in || problems.len() >= MOST {
                    return Err(problems);
                }
            }
        }
    }
}

/// A value that no line can hold, in the line of the output where it stands.
fn refused(out: &str) -> Option<Problem> {
    let line = out[..out.find(REFUSED)?].matches('\n').count() + 1;
    Some(Problem { place: (line, 1, 1), message: format!("a value in line {line} holds a line break or another control character"), hint: None })
}

/// True when a Handlebars expression, such as `(eq profile.boot.kernel "cloud")`, is true.
pub fn condition(expression: &str, data: &Value) -> Result<bool, Problem> {
    if expression.contains("{{") || expression.contains("}}") {
        return Err(Problem { place: (1, 1, expression.chars().count()), message: "braces are not part of a condition".into(), hint: None });
    }
    // Helpers say less of a name that is not there.
    if let Some(name) = names(expression).find(|name| data.pointer(&format!("/{}", name.replace('.', "/"))).is_none()) {
        let at = expression.find(name).map_or(1, |at| expression[..at].chars().count() + 1);
        let place = (1, at, name.chars().count());
        return Err(Problem { place, message: format!("{} is not known", quote(name)), hint: nearest(name, data) });
    }
    let text = format!("{{{{truth {expression}}}}}");
    let out = engine(Escape::Line).render_template(&text, data).map_err(|e| Problem { place: (1, 1, 1), ..explain(&e, &text, data) })?;
    Ok(out == "yes")
}

/// Names of values in an expression, outside of quoted text.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(['"', '\'']).step_by(2).flat_map(|piece| piece.split([' ', '(', ')']));
    words.filter(|word| word.starts_with("profile.") || word.starts_with("parameters."))
}

/// The unknown name that stopped a template.
fn missing(error: &RenderError) -> Option<&str> {
    let RenderErrorReason::MissingVariable(Some(name)) = error.reason() else { return None };
    Some(name)
}

/// Gives an unknown name an empty value; false when it has one or none can be given.
fn fill(data: &mut Value, name: &str) -> bool {
    let mut parts: Vec<_> = name.split('.').collect();
    let Some(last) = parts.pop() else { return false };
    let mut node = data;
    for part in parts {
        let Some(map) = node.as_object_mut() else { return false };
        node = map.entry(part).or_insert_with(|| json!({}));
    }
    node.as_object_mut().is_some_and(|map| map.insert(last.into(), "".into()).is_none())
}

/// The nearest of the names that stand where the known part of a name ends.
fn nearest(name: &str, data: &Value) -> Option<String> {
    let (mut node, mut known) = (data, String::new());
    for part in name.split('.') {
        let Some(next) = node.get(part) else {
            let beside: Vec<_> = node.as_object()?.keys().map(|key| format!("{known}{key}")).collect();
            return suggest(&format!("{known}{part}"), beside.iter().map(String::as_str));
        };
        node = next;
        known += &format!("{part}.");
    }
    None
}

fn explain(error: &RenderError, text: &str, data: &Value) -> Problem {
    let (mut line, mut column) = (error.line_no.unwrap_or(1), error.column_no.unwrap_or(1));
    let (message, hint) = match error.reason() {
        RenderErrorReason::MissingVariable(Some(name)) => (format!("{} is not known", quote(name)), nearest(name, data)),
        RenderErrorReason::TemplateError(e) => {
            (line, column) = e.pos().unwrap_or((line, column));
            (format!("not a valid template: {}", e.reason()), None)
        }
        other => (other.to_string(), None),
    };
    let rest: Vec<char> = text.lines().nth(line.saturating_sub(1)).unwrap_or_default().chars().skip(column.saturating_sub(1)).collect();
    let end = |start: usize| start + rest[start..].iter().take_while(|c| **c == '}').count();
    let width = rest.windows(2).position(|w| w == ['}', '}']).map_or(1, end);
    Problem { place: (line, column, width), message, hint }
}

fn engine(escape: Escape) -> Handlebars<'static> {
    let mut engine = Handlebars::new();
    engine.set_strict_mode(true);
    engine.register_escape_fn(move |value| escape.apply(value));
    engine.register_helper("yaml", Box::new(quote_yaml));
    engine.register_helper("shell", Box::new(quote_shell));
    engine.register_helper("truth", Box::new(truth));
    engine.register_helper("has", Box::new(has));
    engine
}

/// Whether a list has a value: a word or nothing, which conditions take for true and false.
fn has(helper: &Helper<'_>, _: &Handlebars<'_>, _: &Data, _: &mut RenderContext<'_, '_>, out: &mut dyn Output) -> HelperResult {
    let value = helper.param(1).ok_or_else(|| RenderErrorReason::ParamNotFoundForIndex("has", 1))?.value();
    let list = parameter(helper)?.as_array();
    out.write(if list.is_some_and(|list| list.contains(value)) { "yes" } else { "" })?;
    Ok(())
}

fn parameter<'a>(helper: &'a Helper<'_>) -> std::result::Result<&'a Value, RenderErrorReason> {
    let parameter = helper.param(0).ok_or_else(|| RenderErrorReason::ParamNotFoundForIndex("quote", 0))?;
    if parameter.is_value_missing() {
        return Err(RenderErrorReason::MissingVariable(parameter.relative_path().cloned()));
    }
    Ok(parameter.value())
}

fn quote_yaml(helper: &Helper<'_>, _: &Handlebars<'_>, _: &Data, _: &mut RenderContext<'_, '_>, out: &mut dyn Output) -> HelperResult {
    out.write(&parameter(helper)?.to_string())?;
    Ok(())
}

fn quote_shell(helper: &Helper<'_>, _: &Handlebars<'_>, _: &Data, _: &mut RenderContext<'_, '_>, out: &mut dyn Output) -> HelperResult {
    let value = parameter(helper)?;
    out.write(&shell(value.as_str().map_or_else(|| value.to_string(), str::to_string).as_str()))?;
    Ok(())
}

/// Like `if`, but an unknown name is an error.
fn truth(helper: &Helper<'_>, _: &Handlebars<'_>, _: &Data, _: &mut RenderContext<'_, '_>, out: &mut dyn Output) -> HelperResult {
    out.write(if parameter(helper)?.is_truthy(false) { "yes" } else { "no" })?;
    Ok(())
}

/// One word for a POSIX shell, quoted where it must be.
pub fn shell(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:@%+=,-".contains(c);
    if !value.is_empty() && value.chars().all(plain) { value.into() } else { format!("'{}'", value.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NASTY: [&str; 6] = ["a: b # c", "{{profile.name}}", "$(rm -rf /); `id` 'q' \"d\"", "- x", "", "&anchor *alias !tag"];

    #[test]
    fn a5_values_are_escaped_once_and_never_rendered_twice() {
        for value in NASTY.into_iter().chain(["two\nlines", "tab\t"]) {
            let data = json!({"profile": {"name": "SECOND"}, "parameters": {"x": value}});
            for (path, text) in [("a.yaml", "k: {{parameters.x}}\n"), ("a.conf", "k: {{yaml parameters.x}}\n")] {
                let out = render(path, text, &data).unwrap();
                let back: std::collections::BTreeMap<String, String> = serde_saphyr::from_str(&out).unwrap();
                assert_eq!(back["k"], value, "{out}");
            }
            for (path, text) in
                [("a.sh", "printf %s {{parameters.x}}"), ("a", "#!/bin/sh\nprintf %s {{parameters.x}}"), ("a", "printf %s {{shell parameters.x}}")]
            {
                let out = render(path, text, &data).unwrap();
                assert!(out.ends_with(&shell(value)), "{out}");
            }
        }
        assert_eq!(shell("it's $x"), r"'it'\''s $x'");
        assert_eq!((shell(""), shell("/a-b")), ("''".into(), "/a-b".into()));
    }

    #[test]
    fn a5_a_line_based_file_takes_no_value_with_a_line_break() {
        let data = json!({"parameters": {"x": "a\nPermitRootLogin yes"}});
        let problems = render("/etc/x.conf", "# one\nkey {{parameters.x}}\n", &data).unwrap_err();
        assert_eq!((problems.len(), problems[0].place.0), (1, 2));
        assert!(problems[0].message.contains("line 2") && !problems[0].message.contains("PermitRoot"), "{problems:?}");
        for value in NASTY {
            assert_eq!(render("/etc/x.conf", "k={{x}}", &json!({"x": value})).unwrap(), format!("k={value}"));
        }
    }

    #[test]
    fn a1_a5_all_unknown_names_are_told_with_place_and_nearest_name() {
        let data = json!({"parameters": {"name": 1}, "profile": {"time": {"zone": "UTC"}}});
        for tag in ["{{parameters.nmae}}", "{{yaml parameters.nmae}}", "{{shell parameters.nmae}}", "{{{parameters.nmae}}}"] {
            let problems =
                render("x", &format!("é {{{{parameters.name}}}}\nä {tag} {{{{profile.tmie.zone}}}}\n{{{{profile.time.zoen}}}}"), &data).unwrap_err();
            let told: Vec<_> = problems.iter().map(|p| (p.place, p.message.as_str(), p.hint.as_deref().unwrap())).collect();
            assert_eq!(told[0], ((2, 3, tag.len()), "`parameters.nmae` is not known", "did you mean `parameters.name`?"), "{tag}");
            assert_eq!(told[1], ((2, 4 + tag.len(), 21), "`profile.tmie.zone` is not known", "did you mean `profile.time`?"));
            assert_eq!(told[2], ((3, 1, 21), "`profile.time.zoen` is not known", "did you mean `profile.time.zone`?"));
        }
        let broken = &render("x", "a\n  {{#if x}}", &json!({})).unwrap_err()[0];
        assert!(broken.message.contains("not a valid template") && broken.place.0 == 2, "{broken:?}");
        let list = render("x", "{{#each parameters}}{{this.x}}{{/each}}", &data).unwrap_err();
        assert_eq!(list.len(), 1, "a name that cannot be filled in ends the search: {list:?}");
    }

    #[test]
    fn conditions_compare_and_refuse_unknown_names() {
        let data = json!({"profile": {"boot": {"kernel": "cloud"}, "list": ["a"]}, "parameters": {"on": true}});
        assert!(condition(r#"(has profile.list "a")"#, &data).unwrap() && !condition(r#"(has profile.list "b")"#, &data).unwrap());
        assert!(condition(r#"(eq profile.boot.kernel "cloud")"#, &data).unwrap());
        assert!(!condition(r#"(ne profile.boot.kernel "cloud")"#, &data).unwrap());
        assert!(condition("parameters.on", &data).unwrap());
        assert!(condition("parameters.off", &data).is_err());
        assert!(condition(r#"(eq "profile.nowhere" "x")"#, &data).is_ok(), "quoted text names nothing");
        let problem = condition(r#"(eq profile.boot.kernl "cloud")"#, &data).unwrap_err();
        assert_eq!((problem.place, problem.message.as_str()), ((1, 5, 18), "`profile.boot.kernl` is not known"));
        assert!(problem.hint.unwrap().contains("profile.boot.kernel"));
        assert!(condition("x}}{{y", &data).is_err());
    }
}
