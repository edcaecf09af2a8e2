//! Which disk: an expression of the Common Expression Language (CEL, github.com/google/cel-spec) over what a disk says of itself, such as
//! `size >= 100 * GiB && bus == "nvme" && !removable`.

use cel::common::ast::{Expr, operators};
use cel::{Context, IdedExpr, Program, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::profile::suggest;

/// What a disk says of itself; each field is a variable of selectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traits {
    /// Kernel name, such as `vda`.
    pub name: String,
    /// Device, such as `/dev/vda`.
    pub path: String,
    /// The device and all links to it below /dev/disk/.
    pub paths: Vec<String>,
    /// Size in bytes.
    pub size: i64,
    /// Bytes of a logical sector: 512 or 4096.
    pub sector: i64,
    /// It turns.
    pub rotational: bool,
    /// It, or what is in it, can be taken out.
    pub removable: bool,
    /// `nvme`, `sata`, `scsi`, `usb`, `virtio` or `mmc`; empty when it is none of these.
    pub bus: String,
    /// Model; empty when it has none, as virtio disks.
    pub model: String,
    /// Serial number; empty when it has none.
    pub serial: String,
    /// World-wide identifier; empty when it has none.
    pub wwid: String,
}

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

/// An expression that says of a disk whether it is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Selector(String);

impl TryFrom<String> for Selector {
    type Error = String;

    /// Takes an expression that can be evaluated for a disk; else says what is wrong with it.
    fn try_from(text: String) -> Result<Self, String> {
        let program = compile(&text)?;
        let sample = serde_json::to_value(Traits::default()).map_err(|e| e.to_string())?;
        let known = || sample.as_object().into_iter().flat_map(|map| map.keys().map(String::as_str)).chain(UNITS.map(|(name, _)| name));
        let mut names = Vec::new();
        variables(&program.expression().expr, &mut names);
        names.sort_unstable();
        if let Some(name) = names.iter().find(|name| !known().any(|known| known == **name)) {
            let known = known().collect::<Vec<_>>();
            let hint = suggest(name, known.iter().copied()).unwrap_or_else(|| format!("there are {}", known.join(", ")));
            return Err(format!("`{text}`: unknown variable `{name}`, {hint}"));
        }
        let selector = Self(text);
        selector.picks(&Traits::default()).map(|_| selector)
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.0
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Selector {
    /// Whether the disk is meant; an expression that cannot be evaluated for this one is an error.
    pub fn picks(&self, disk: &Traits) -> Result<bool, String> {
        let program = compile(&self.0)?;
        self.holds(program.expression(), &context(disk)?)
    }

    /// The first condition of the expression that the disk does not meet; `None` when it is meant.
    pub fn unmet(&self, disk: &Traits) -> Result<Option<String>, String> {
        let (program, context) = (compile(&self.0)?, context(disk)?);
        let mut parts = Vec::new();
        chain(program.expression(), &mut parts);
        let texts = conditions(&self.0);
        let named = texts.len() == parts.len();
        for (at, part) in parts.into_iter().enumerate() {
            if !self.holds(part, &context)? {
                return Ok(Some(if named { texts[at] } else { &self.0 }.to_string()));
            }
        }
        Ok(None)
    }

    fn holds(&self, expression: &IdedExpr, context: &Context<'_, '_>) -> Result<bool, String> {
        match context.resolve(expression) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(_) => Err(format!("`{self}`: it is neither true nor false; compare something, as in `size > 100 * GiB`")),
            Err(error) => Err(format!("`{self}`: {error}")),
        }
    }
}

fn compile(text: &str) -> Result<Program, String> {
    Program::compile(text).map_err(|e| format!("`{text}`: {}", e.to_string().lines().next().unwrap_or_default()))
}

fn context(disk: &Traits) -> Result<Context<'static, 'static>, String> {
    let mut context = Context::default();
    UNITS.iter().for_each(|(name, value)| context.add_variable_from_value(*name, *value));
    if let Value::Map(fields) = cel::to_value(disk).map_err(|e| e.to_string())? {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(text: &str) -> Result<Selector, String> {
        Selector::try_from(text.to_string())
    }

    fn disk() -> Traits {
        Traits {
            name: "sda".into(),
            path: "/dev/sda".into(),
            paths: vec!["/dev/sda".into(), "/dev/disk/by-id/ata-QEMU_HARDDISK_QM1".into()],
            size: 250 << 30,
            sector: 512,
            rotational: true,
            bus: "sata".into(),
            model: "QEMU HARDDISK".into(),
            serial: "QM1".into(),
            ..Traits::default()
        }
    }

    #[test]
    fn a_disk_is_picked_by_all_that_it_says_of_itself() {
        for text in [
            "size >= 100 * GiB",
            "size > 200 * GB && size <= 1 * TB && sector == 512",
            "rotational && !removable",
            "bus == 'sata' && model.startsWith(\"QEMU\")",
            "serial in ['QM0', 'QM1']",
            "model.matches('^QEMU .*DISK$') && wwid == ''",
            "'/dev/disk/by-id/ata-QEMU_HARDDISK_QM1' in paths && name == 'sda'",
            "paths.exists(link, link.endsWith('_QM1'))",
            "bus == 'nvme' || path == '/dev/sda'",
        ] {
            assert_eq!(selector(text).unwrap().picks(&disk()), Ok(true), "{text}");
            assert_eq!(selector(text).unwrap().unmet(&disk()), Ok(None), "{text}");
        }
    }

    #[test]
    fn the_condition_that_a_disk_does_not_meet_is_told() {
        for (text, unmet) in [
            ("size > 1 * GiB && bus == 'nvme' && removable", "bus == 'nvme'"),
            ("!rotational", "!rotational"),
            ("model == 'a && b' && rotational", "model == 'a && b'"),
            ("(rotational && removable) && size > 0", "(rotational && removable) && size > 0"),
            ("removable || bus == 'usb' && rotational", "removable || bus == 'usb' && rotational"),
        ] {
            assert_eq!(selector(text).unwrap().unmet(&disk()), Ok(Some(unmet.into())), "{text}");
        }
    }

    #[test]
    fn a_wrong_expression_is_named_before_there_is_a_disk() {
        for (text, why) in [
            ("siz > 100 * GiB", "unknown variable `siz`, did you mean `size`?"),
            ("false && colour == 'red'", "unknown variable `colour`, "),
            ("size", "it is neither true nor false"),
            ("size > '100GiB'", "`size > '100GiB'`: "),
            ("size >", "`size >`: "),
            ("", "``: "),
        ] {
            let error = selector(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
