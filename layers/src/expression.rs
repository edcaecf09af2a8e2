//! Conditions: expressions of the Common Expression Language (CEL, github.com/google/cel-spec) over what a thing says of itself; each field is a variable.

use cel::common::ast::{Expr, operators};
use cel::{Context, IdedExpr, Program, Value};
use serde::Serialize;

use crate::profile::suggest;

/// Names of units: `100 * GiB`.
const UNITS: [(&str, i64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Says what is wrong with an expression, as far as that can be seen without a thing: with its form, and with names that no `sample` has.
pub fn check(text: &str, sample: &impl Serialize) -> Result<(), String> {
    let program = compile(text)?;
    let sample = serde_json::to_value(sample).map_err(|e| e.to_string())?;
    let known = || sample.as_object().into_iter().flat_map(|map| map.keys().map(String::as_str)).chain(UNITS.map(|(name, _)| name));
    let mut names = Vec::new();
    variables(&program.expression().expr, &mut names);
    names.sort_unstable();
    if let Some(name) = names.iter().find(|name| !known().any(|known| known == **name)) {
        let known = known().collect::<Vec<_>>();
        let hint = suggest(name, known.iter().copied()).unwrap_or_else(|| format!("there are {}", known.join(", ")));
        return Err(format!("`{text}`: unknown variable `{name}`, {hint}"));
    }
    Ok(())
}

/// Whether it holds for a thing; one that cannot be evaluated for this one is an error.
pub fn holds(text: &str, thing: &impl Serialize) -> Result<bool, String> {
    part_holds(text, compile(text)?.expression(), &context(thing)?)
}

/// The first condition of a chain of `&&` that does not hold; `None` when all of it holds.
pub fn unmet<'a>(text: &'a str, thing: &impl Serialize) -> Result<Option<&'a str>, String> {
    let (program, context) = (compile(text)?, context(thing)?);
    let mut parts = Vec::new();
    chain(program.expression(), &mut parts);
    let texts = conditions(text);
    let named = texts.len() == parts.len();
    for (at, part) in parts.into_iter().enumerate() {
        if !part_holds(text, part, &context)? {
            return Ok(Some(if named { texts[at] } else { text }));
        }
    }
    Ok(None)
}

fn part_holds(text: &str, expression: &IdedExpr, context: &Context<'_, '_>) -> Result<bool, String> {
    match context.resolve(expression) {
        Ok(Value::Bool(holds)) => Ok(holds),
        Ok(_) => Err(format!("`{text}`: it is neither true nor false; compare something, as in `size > 100 * GiB` or `name == \"a\"`")),
        Err(error) => Err(format!("`{text}`: {error}")),
    }
}

fn compile(text: &str) -> Result<Program, String> {
    Program::compile(text).map_err(|e| format!("`{text}`: {}", e.to_string().lines().next().unwrap_or_default()))
}

fn context(thing: &impl Serialize) -> Result<Context<'static, 'static>, String> {
    let mut context = Context::default();
    UNITS.iter().for_each(|(name, value)| context.add_variable_from_value(*name, *value));
    if let Value::Map(fields) = cel::to_value(thing).map_err(|e| e.to_string())? {
        fields.map.iter().for_each(|(name, value)| context.add_variable_from_value(name.to_string(), value.clone()));
    }
    Ok(context)
}

/// Variables that are not an expression's own, as those of `exists` are.
fn variables<'a>(expression: &'a Expr, out: &mut Vec<&'a str>) {
    match expression {
        Expr::Ident(name) => out.push(name),
        Expr::Call(call) => call.target.iter().map(AsRef::as_ref).chain(&call.args).for_each(|part| variables(&part.expr, out)),
        Expr::List(list) => list.elements.iter().for_each(|part| variables(&part.expr, out)),
        Expr::Select(select) => variables(&select.operand.expr, out),
        Expr::Comprehension(over) => {
            variables(&over.iter_range.expr, out);
            let mut inner = Vec::new();
            [&over.accu_init, &over.loop_cond, &over.loop_step, &over.result].into_iter().for_each(|part| variables(&part.expr, &mut inner));
            out.extend(inner.into_iter().filter(|name| *name != over.iter_var && *name != over.accu_var));
        }
        _ => {}
    }
}

/// The parts of a chain of `&&`.
fn chain<'a>(expression: &'a IdedExpr, out: &mut Vec<&'a IdedExpr>) {
    match &expression.expr {
        Expr::Call(call) if call.func_name == operators::LOGICAL_AND => call.args.iter().for_each(|part| chain(part, out)),
        _ => out.push(expression),
    }
}

/// What stands between the `&&` outside of parentheses and quotes.
fn conditions(text: &str) -> Vec<&str> {
    let (mut depth, mut quote, mut start, mut out) = (0, None, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth -= 1,
            (None, '&') if depth == 0 && at >= start && text[at..].starts_with("&&") => {
                out.push(text[start..at].trim());
                start = at + 2;
            }
            _ => {}
        }
    }
    out.push(text[start..].trim());
    out
}
