//! The serial line of a machine: a log that can be waited on, and keys to type. Terminal control sequences are taken out.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use layers::{Context, Error, Result};

#[derive(Default)]
struct Log {
    text: String,
    closed: bool,
}

type Shared = Arc<(Mutex<Log>, Condvar)>;

/// A serial line.
pub struct Serial {
    shared: Shared,
    seen: usize,
    input: Box<dyn Write + Send>,
}

impl Serial {
    /// Reads `output` in a thread of its own until it ends, and copies it unchanged to the file `copy`.
    pub fn new(mut output: impl Read + Send + 'static, input: impl Write + Send + 'static, copy: &Path) -> Result<Self> {
        let mut file = std::fs::File::create(copy).context(|| format!("creating {}", copy.display()))?;
        let shared = Shared::default();
        let log = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut filter = Filter::default();
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                let _ = file.write_all(&buffer[..n]);
                lock(&log).text.extend(buffer[..n].iter().filter_map(|b| filter.next(*b)));
                log.1.notify_all();
            }
            lock(&log).closed = true;
            log.1.notify_all();
        });
        Ok(Self { shared, seen: 0, input: Box::new(input) })
    }

    /// Waits for a whole line that contains `needle`, from where the last wait ended; returns the line.
    pub fn wait(&mut self, needle: &str, limit: Duration) -> Result<String> {
        self.wait_any(&[needle], limit).map(|(_, line)| line)
    }

    /// Waits for the first whole line that contains one of `needles`; returns the index of the needle and the line.
    pub fn wait_any(&mut self, needles: &[&str], limit: Duration) -> Result<(usize, String)> {
        let end = Instant::now() + limit;
        let mut log = lock(&self.shared);
        loop {
            while let Some(length) = log.text[self.seen..].find('\n') {
                let line = log.text[self.seen..self.seen + length].trim_end_matches('\r').to_string();
                self.seen += length + 1;
                if let Some(index) = needles.iter().position(|n| line.contains(n)) {
                    return Ok((index, line));
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if log.closed || left.is_zero() {
                let why = if log.closed { "the machine ended".into() } else { format!("nothing for {} s", limit.as_secs()) };
                return Err(Error::environment(format!("waiting for {needles:?} on the serial line: {why}; it said last:\n{}", tail(&log.text))));
            }
            log = self.shared.1.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything said so far.
    pub fn text(&self) -> String {
        lock(&self.shared).text.clone()
    }

    /// Types text.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush()).context(|| format!("typing {text:?}"))
    }
}

/// A thread that panicked while it held the log has left it readable.
fn lock(shared: &Shared) -> MutexGuard<'_, Log> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last lines of a text.
pub fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Takes out control sequences (ECMA-48) and what is not printable.
#[derive(Default)]
enum Filter {
    #[default]
    Text,
    Escape,
    Sequence,
}

impl Filter {
    fn next(&mut self, byte: u8) -> Option<char> {
        match (&self, byte) {
            (Self::Text, 0x1b) => *self = Self::Escape,
            (Self::Text, b'\n' | b' '..=b'~') => return Some(byte as char),
            (Self::Escape, b'[') => *self = Self::Sequence,
            (Self::Escape, _) | (Self::Sequence, b'@'..=b'~') => *self = Self::Text,
            _ => {}
        }
        None
    }
}
