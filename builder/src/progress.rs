//! Progress of long work: one bar on a terminal, a plain line every few seconds elsewhere, nothing when silent.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use layers::units::Bytes;

/// Time between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(3);

/// Where progress is shown.
#[derive(Debug)]
pub struct Progress {
    mode: Mode,
    state: Mutex<Option<State>>,
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Silent,
    Plain,
    Bar,
}

#[derive(Debug)]
struct State {
    what: String,
    files: (u64, u64),
    bytes: (u64, u64),
    started: Instant,
    printed: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shows on stderr, as a bar when that is a terminal.
    pub fn stderr() -> Self {
        Self::new(if std::io::stderr().is_terminal() { Mode::Bar } else { Mode::Plain })
    }

    /// Shows nothing.
    pub fn silent() -> Self {
        Self::new(Mode::Silent)
    }

    fn new(mode: Mode) -> Self {
        Self { mode, state: Mutex::new(None) }
    }

    /// Starts a piece of work of known size.
    pub fn start(&self, what: &str, files: u64, bytes: u64) {
        let bar = matches!(self.mode, Mode::Bar).then(|| bar(what, bytes));
        let now = Instant::now();
        *self.lock() = Some(State { what: what.into(), files: (0, files), bytes: (0, bytes), started: now, printed: now, bar });
    }

    /// Adds transferred bytes.
    pub fn advance(&self, bytes: u64) {
        let mut guard = self.lock();
        let Some(state) = guard.as_mut() else { return };
        state.bytes.0 += bytes;
        if let Some(bar) = &state.bar {
            bar.set_position(state.bytes.0);
        }
        if matches!(self.mode, Mode::Plain) && state.printed.elapsed() >= PLAIN_INTERVAL {
            state.printed = Instant::now();
            eprintln!("{}", state.line());
        }
    }

    /// Counts one finished file.
    pub fn finish_file(&self) {
        if let Some(state) = self.lock().as_mut() {
            state.files.0 += 1;
            if let Some(bar) = &state.bar {
                bar.set_message(format!("{}/{}", state.files.0, state.files.1));
            }
        }
    }

    /// Ends the work with one summary line, or quietly when it failed and the error speaks.
    pub fn finish(&self) {
        let Some(state) = self.lock().take() else { return };
        if let Some(bar) = &state.bar {
            bar.finish_and_clear();
        }
        if !matches!(self.mode, Mode::Silent) && state.files.0 == state.files.1 {
            eprintln!("{}", state.line());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl State {
    fn line(&self) -> String {
        let rate = self.bytes.0 as f64 / self.started.elapsed().as_secs_f64().max(0.001);
        let (done, total) = (Bytes(self.bytes.0.min(self.bytes.1)), Bytes(self.bytes.1));
        format!("{}: {}/{} files, {done} of {total}, {}/s", self.what, self.files.0, self.files.1, Bytes(rate as u64))
    }
}

fn bar(what: &str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{}/s", Bytes(state.per_sec() as u64));
    };
    if let Ok(style) = ProgressStyle::with_template("{prefix} {msg} {wide_bar} {binary_bytes} of {binary_total_bytes} {rate}") {
        bar.set_style(style.with_key("rate", rate));
    }
    bar.set_prefix(what.to_string());
    bar
}
