//! What `init` says: one line per change on every console, `chasi-bod: <uptime s> init <state> <detail>`, and the screen of a failure.

use std::fs;
use std::io::Write;

use layers::Error;

/// One line in the form that people and tests wait for; line breaks in the detail become spaces.
pub fn line(uptime: f64, state: &str, detail: &str) -> String {
    let detail = detail.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("chasi-bod: {uptime:.2} init {state} {detail}").trim_end().to_string()
}

/// Says a change on every console and, for the journal, in the kernel's log.
pub fn say(state: &str, detail: &str) {
    let line = line(uptime(), state, detail);
    // Level 7: kept in the log, not printed on the consoles a second time.
    let _ = fs::OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut k| write!(k, "<7>{line}"));
    print(&format!("{line}\r\n"));
}

/// Says a failure: a screen with cause and next step, then the line.
pub fn fail(error: &Error, next: &str) {
    print(&screen(&error.to_string(), error.hint(), next));
    say("failed", &error.to_string());
}

/// Shows that something was done and what to do next.
pub fn done(what: &str, next: &str) {
    let rule = "=".repeat(78);
    print(&format!("\r\n{rule}\r\n  {what}\r\n  Next:  {next}\r\n{rule}\r\n"));
}

/// The screen of a failure.
fn screen(cause: &str, hint: Option<&str>, next: &str) -> String {
    let rule = "=".repeat(78);
    let hint = hint.map_or(String::new(), |h| format!("  Hint:  {h}\r\n"));
    format!("\r\n{rule}\r\n  This machine could not start.\r\n\r\n  Cause: {cause}\r\n{hint}  Next:  {next}\r\n{rule}\r\n")
}

/// Writes to every console, each line's end with its `\r`; when none can be opened, to standard output, which `init` opened on the first one.
pub fn print(text: &str) {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let to = |name: &str| fs::OpenOptions::new().write(true).open(format!("/dev/{name}")).and_then(|mut c| c.write_all(text.as_bytes()));
    let written = active.split_whitespace().filter(|name| to(name).is_ok()).count();
    if written == 0 && to("console").is_err() {
        let _ = std::io::stdout().write_all(text.as_bytes());
    }
}

fn uptime() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split_whitespace().next().and_then(|t| t.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_line() {
        assert_eq!(line(1.234, "disk", "vda\n  16GiB"), "chasi-bod: 1.23 init disk vda 16GiB");
        assert_eq!(line(0.0, "start", ""), "chasi-bod: 0.00 init start");
    }

    #[test]
    fn a_failure_shows_cause_hint_and_next_step() {
        let text = screen("waiting for the disk", Some("check the cables"), "power off");
        for part in ["Cause: waiting for the disk", "Hint:  check the cables", "Next:  power off"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
