//! `/run/chasi-bod/status.json`: what the node says of itself, and the lines that go with each change.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::IpAddr;

use layers::node::ImageRecord;
use layers::{Error, Fault, Result};
use serde::{Deserialize, Serialize};

use crate::agent::health;
use crate::cluster;
use crate::host::{Host, RUN};
use crate::metrics;
use crate::steps::NAMES;

/// Condition of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not reached yet.
    Pending,
    /// At work.
    Running,
    /// Did something and is done.
    Done,
    /// Waits for something outside.
    Waiting,
    /// Could not be done.
    Failed,
    /// Had nothing to do.
    Unchanged,
}

impl State {
    /// The word for people and tests.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
            Self::Unchanged => "unchanged",
        }
    }
}

/// One step's condition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepStatus {
    /// Name.
    pub name: String,
    /// Condition.
    pub state: State,
    /// Seconds of uptime when it became so.
    pub since: f64,
    /// What was done, or what went wrong.
    pub detail: String,
    /// What a person can do next.
    pub hint: Option<String>,
}

/// When a step was at work for the first time in this boot, in seconds of uptime.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Its first sign of life.
    pub began: f64,
    /// When it was through.
    pub done: Option<f64>,
}

/// An address of the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Address {
    /// Network device.
    pub interface: String,
    /// Address with prefix length.
    pub address: String,
}

impl Address {
    /// The address without its prefix length.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address.split('/').next()?.parse().ok()
    }
}

/// Everything `chasi-bod status` shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Profile name.
    pub name: String,
    /// Image version.
    pub version: String,
    /// Root hash of the verified root, in hex; empty when the root is not verified.
    pub content_id: String,
    /// Slot that was booted, `a` or `b`.
    pub slot: String,
    /// Host name.
    pub hostname: String,
    /// Addresses, without loopback and link-local ones.
    pub addresses: Vec<Address>,
    /// Steps in their order.
    pub steps: Vec<StepStatus>,
    /// Conditions that do not decide on `ready`; see [`health`].
    #[serde(default)]
    pub health: Vec<StepStatus>,
    /// Whether all steps are through.
    pub ready: bool,
    /// How the steps went by in this boot, by name; a later start of the agent changes nothing of it.
    #[serde(default)]
    pub times: BTreeMap<String, Times>,
    /// Seconds of uptime when all steps were through for the first time in this boot.
    #[serde(default)]
    pub ready_after: Option<f64>,
}

impl Status {
    fn new(host: &Host, image: &ImageRecord) -> Self {
        let word = |keys: [&str; 2]| keys.iter().find_map(|key| host.word(key)).unwrap_or_default();
        let pending = |name: &&str| StepStatus { name: (*name).into(), state: State::Pending, since: 0.0, detail: String::new(), hint: None };
        let (times, ready_after) = Self::load(host).map(|before| (before.times, before.ready_after)).unwrap_or_default();
        Self {
            name: image.name.clone(),
            version: image.version.clone(),
            content_id: word(["chasi.roothash", "roothash"]),
            slot: word(["chasi.slot", "slot"]),
            hostname: String::new(),
            addresses: Vec::new(),
            steps: NAMES.iter().chain(&cluster::names(host)).map(pending).collect(),
            health: health::NAMES.iter().map(pending).collect(),
            ready: false,
            times,
            ready_after,
        }
    }

    /// Notes when a step began, and when it was through; only the first time counts.
    fn clock(&mut self, name: &str, state: State, now: f64) {
        if state == State::Pending || !self.steps.iter().any(|step| step.name == name) {
            return;
        }
        let times = self.times.entry(name.into()).or_insert(Times { began: now, done: None });
        if matches!(state, State::Done | State::Unchanged) {
            times.done.get_or_insert(now);
        }
    }

    /// What the agent wrote last.
    pub fn load(host: &Host) -> Result<Self> {
        let text = host.read(&path())?.ok_or_else(|| {
            Error::environment(format!("reading /{}: the agent has not started", path())).with_hint("see `systemctl status chasi-bod-agent.service`")
        })?;
        layers::Context::fault(serde_json::from_str(&text), Fault::Internal, || format!("reading /{}", path()))
    }

    /// Plain lines for a screen of 80 columns.
    pub fn lines(&self) -> Vec<String> {
        let id: String = self.content_id.chars().take(12).collect();
        let or_dash = |text: &str| if text.is_empty() { "-".to_string() } else { text.into() };
        let mut out = vec![
            format!("{} {}   content {}   slot {}", self.name, self.version, or_dash(&id), or_dash(&self.slot)),
            format!("host {}   {}", or_dash(&self.hostname), if self.ready { "ready" } else { "not ready" }),
            String::new(),
        ];
        out.extend(self.addresses.iter().map(|a| format!("  {:<12} {}", a.interface, a.address)));
        if self.addresses.is_empty() {
            out.push("  no address yet".into());
        }
        out.push(String::new());
        for step in self.steps.iter().chain(self.health.iter().filter(|condition| condition.state != State::Pending)) {
            out.push(format!("  {:<12} {:<9} {}", step.name, step.state.word(), step.detail.lines().next().unwrap_or_default()));
            out.extend(step.hint.iter().map(|hint| format!("{:>23} next: {hint}", "")));
        }
        out
    }
}

fn path() -> String {
    format!("{RUN}/status.json")
}

/// Keeps the status and says every change once: on /dev/console for people and tests, on stdout for the journal.
#[derive(Debug)]
pub struct Reporter {
    /// The status as it is now.
    pub status: Status,
}

impl Reporter {
    /// A status with every step pending.
    pub fn new(host: &Host, image: &ImageRecord) -> Self {
        Self { status: Status::new(host, image) }
    }

    /// Notes a step's or a further condition; nothing is said when it is the one it had.
    pub fn set(&mut self, host: &Host, name: &str, state: State, detail: &str, hint: Option<&str>) {
        let Some(step) = self.status.steps.iter_mut().chain(&mut self.status.health).find(|step| step.name == name) else { return };
        if (step.state, step.detail.as_str()) == (state, detail) {
            return;
        }
        *step = StepStatus { name: name.into(), state, since: host.uptime(), detail: detail.into(), hint: hint.map(Into::into) };
        self.status.clock(name, state, host.uptime());
        say(host, format!("{name} {} {}", state.word(), detail.lines().map(str::trim).collect::<Vec<_>>().join(" | ")).trim_end());
        self.save(host);
    }

    /// Notes whether the node is ready; the line `ready` is the last of a boot.
    pub fn set_ready(&mut self, host: &Host, ready: bool) {
        if std::mem::replace(&mut self.status.ready, ready) != ready {
            if ready {
                self.status.ready_after.get_or_insert(host.uptime());
            }
            self.save(host);
            say(host, if ready { "ready" } else { "not ready" });
        }
    }

    /// Writes the status; a full /run must not stop the steps.
    pub fn save(&self, host: &Host) {
        if let Ok(text) = serde_json::to_string_pretty(&self.status) {
            let _ = host.write(&path(), format!("{text}\n").as_bytes(), 0o644);
            metrics::node::write(host, &self.status);
        }
    }
}

fn say(host: &Host, text: &str) {
    let line = format!("chasi-bod: {:.1} {text}", host.uptime());
    println!("{line}");
    if host.is_live()
        && let Ok(mut console) = std::fs::OpenOptions::new().write(true).open("/dev/console")
    {
        let _ = console.write_all(format!("{line}\n").as_bytes());
    }
}
