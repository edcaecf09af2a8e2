//! How failures are told: for people on stderr, with `--json` also as one object on stdout, where results go.

use clap::CommandFactory;
use layers::{Error, Fault};
use serde_json::{Value, json};

use super::args::{COMPARE_INPUT, Cli, Global};

/// Tells an error and returns the exit code; `input` is that of the user's input. A message that starts with a place (`file:line:column`) is left as it is for editors.
pub fn report(error: &Error, input: u8, global: &Global) -> u8 {
    let code = if error.fault() == Fault::Input { input } else { error.fault() as u8 };
    eprintln!("error: {error}");
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
    if global.json {
        print(&object(error, code));
    }
    code
}

/// Tells what is wrong with the command line itself; help and version are no errors.
pub fn usage(error: &clap::Error) -> u8 {
    let code = match Cli::command().ignore_errors(true).try_get_matches() {
        Ok(matches) if matches.subcommand_name() == Some("compare") => COMPARE_INPUT,
        _ => Fault::Input as u8,
    };
    // Nothing is left to tell when the terminal is gone.
    let _ = error.print();
    if !error.use_stderr() {
        return 0;
    }
    // The command line could not be read, so that its `--json` is looked for by hand.
    if std::env::args().skip(1).take_while(|a| a != "--").any(|a| a == "--json") {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        print(&object(&Error::input(message).with_hint("`chasi-bod COMMAND --help` lists the options"), code));
    }
    code
}

fn print(value: &Value) {
    // A reader that went away hears nothing anyway.
    let _ = super::print_json(value);
}

fn object(error: &Error, code: u8) -> Value {
    let text = |message: &str| message.lines().next().unwrap_or_default().trim_end_matches(':').to_string();
    let located = !error.diagnostics().is_empty();
    // The problems come by themselves: the texts need not repeat them.
    let message = if located { text(&error.to_string()) } else { error.to_string() };
    let causes: Vec<_> = error.causes().iter().map(|c| if located { text(c) } else { c.clone() }).collect();
    let number = |n: usize| (n > 0).then_some(n);
    let diagnostics: Vec<_> = error
        .diagnostics()
        .iter()
        .map(|d| json!({"file": d.file, "line": number(d.line), "column": number(d.column), "message": d.message, "hint": d.hint}))
        .collect();
    json!({"error": {
        "message": message, "causes": causes, "hint": error.hint(), "exitCode": code, "diagnostics": diagnostics,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::Context;

    #[test]
    fn the_object_holds_the_chain_and_the_exit_code() {
        let io = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = Err::<(), _>(io).context(|| "opening x".into()).context(|| "building y".into()).unwrap_err().with_hint("look");
        let object = &object(&error, 3)["error"];
        assert_eq!(object["causes"], json!(["building y", "opening x", "no such file"]));
        assert_eq!((&object["message"], &object["exitCode"]), (&json!("building y: opening x: no such file"), &json!(3)));
        assert_eq!((&object["hint"], &object["diagnostics"]), (&json!("look"), &json!([])));
    }
}
