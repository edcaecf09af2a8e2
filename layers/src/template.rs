//! Templates of layer files: Handlebars in strict mode, each value escaped once for the kind of file it lands in.

use handlebars::{Context as Data, Handlebars, Helper, HelperResult, JsonTruthy as _, Output, RenderContext, RenderErrorReason};
use serde_json::Value;

use crate::{Context as _, Error, Result};

/// Marks a value that cannot stand in a line; no template can hold it itself.
const REFUSED: char = '\0';

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

/// Renders a template once; `path` is the file's path in the image and decides how values are escaped.
pub fn render(path: &str, text: &str, data: &Value) -> Result<String> {
    let escape = Escape::of(path, text);
    let out = engine(escape).render_template(text, data).map_err(|e| explain(&e)).context(|| format!("rendering {path}"))?;
    match out.find(REFUSED) {
        None => Ok(out),
        Some(at) => {
            let line = out[..at].matches('\n').count() + 1;
            Err(Error::input(format!("rendering {path}: a value in line {line} holds a line break or another control character")))
        }
    }
}

/// True when a Handlebars expression, such as `(eq profile.boot.kernel "cloud")`, is true.
pub fn condition(expression: &str, data: &Value) -> Result<bool> {
    let context = || format!("evaluating condition `{expression}`");
    if expression.contains("{{") || expression.contains("}}") {
        return Err(Error::input("braces are not part of a condition")).context(context);
    }
    let out = engine(Escape::Line).render_template(&format!("{{{{truth {expression}}}}}"), data).map_err(|e| explain(&e)).context(context)?;
    Ok(out == "yes")
}

fn explain(error: &handlebars::RenderError) -> Error {
    let place = error.line_no.map(|line| format!(" (line {line}, column {})", error.column_no.unwrap_or(1))).unwrap_or_default();
    let text = match error.reason() {
        RenderErrorReason::MissingVariable(Some(name)) => format!("`{name}` is not known"),
        RenderErrorReason::TemplateError(e) => e.reason().to_string(),
        other => other.to_string(),
    };
    Error::input(format!("{text}{place}"))
}

fn engine(escape: Escape) -> Handlebars<'static> {
    let mut engine = Handlebars::new();
    engine.set_strict_mode(true);
    engine.register_escape_fn(move |value| escape.apply(value));
    engine.register_helper("yaml", Box::new(quote_yaml));
    engine.register_helper("shell", Box::new(quote_shell));
    engine.register_helper("truth", Box::new(truth));
    engine
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

/// One word for a POSIX shell.
fn shell(value: &str) -> String {
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
        let error = render("/etc/x.conf", "# one\nkey {{parameters.x}}\n", &data).unwrap_err().to_string();
        assert!(error.contains("/etc/x.conf") && error.contains("line 2") && !error.contains("PermitRoot"), "{error}");
        for value in NASTY {
            assert_eq!(render("/etc/x.conf", "k={{x}}", &json!({"x": value})).unwrap(), format!("k={value}"));
        }
    }

    #[test]
    fn a5_an_unknown_name_is_an_error_with_its_place() {
        for text in ["a\n{{parameters.nmae}}", "a\n{{yaml parameters.nmae}}", "a\n{{shell parameters.nmae}}"] {
            let error = render("x", text, &json!({"parameters": {"name": 1}})).unwrap_err().to_string();
            assert!(error.contains("nmae") && error.contains("line 2"), "{error}");
        }
        assert!(render("x", "{{#if}", &json!({})).is_err());
    }

    #[test]
    fn conditions_compare_and_refuse_unknown_names() {
        let data = json!({"profile": {"boot": {"kernel": "cloud"}}, "parameters": {"on": true}});
        assert!(condition(r#"(eq profile.boot.kernel "cloud")"#, &data).unwrap());
        assert!(!condition(r#"(ne profile.boot.kernel "cloud")"#, &data).unwrap());
        assert!(condition("parameters.on", &data).unwrap());
        assert!(condition("parameters.off", &data).is_err());
        assert!(condition("x}}{{y", &data).is_err());
    }
}
