//! First-boot steps: named, idempotent, recorded. A step is done when its inputs are the recorded ones and the files it made are as it
//! left them; a kill at any point leaves a step that simply runs again.

mod disk;
mod identity;
mod network;
mod time;

pub use identity::set_further_names;

use std::collections::BTreeMap;

use layers::node::ImageRecord;
use layers::settings::Settings;
use layers::units::Digest;
use layers::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::host::{Change, Host, STATE};
use crate::status::{Reporter, State};

/// Names of all steps in their order.
pub const NAMES: [&str; 5] = ["config", "disk", "identity", "network", "time"];

/// What a step works with.
pub struct Site<'a> {
    /// The machine.
    pub host: &'a Host,
    /// The image.
    pub image: &'a ImageRecord,
    /// The effective settings.
    pub settings: &'a Settings,
}

/// What a step did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// For people, in a few words.
    pub detail: String,
    /// Files that the step owns; one that it owned before and no longer names is removed.
    pub files: Vec<String>,
}

/// One step.
pub trait Step {
    /// Name, as in `NAMES`.
    fn name(&self) -> &'static str;
    /// Everything that the result depends on, as text.
    fn inputs(&self, site: &Site) -> String;
    /// Whether the parts that no file shows are as wanted, such as the clock.
    fn is_done(&self, site: &Site) -> bool;
    /// Does it; may be called on a machine in any state.
    fn run(&self, site: &Site) -> Result<Outcome>;
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    inputs: String,
    detail: String,
    files: BTreeMap<String, String>,
}

type Records = BTreeMap<String, Record>;

fn records_path() -> String {
    format!("{STATE}/steps.json")
}

/// Runs every step after `config` that is not done; a failed one does not stop the next, so that the node stays reachable.
pub fn run_all(site: &Site, reporter: &mut Reporter) {
    let text = site.host.read(&records_path()).ok().flatten().unwrap_or_default();
    let mut records: Records = serde_json::from_str(&text).unwrap_or_default();
    let steps: [&dyn Step; 4] = [&disk::DiskStep, &identity::IdentityStep, &network::NetworkStep, &time::TimeStep];
    for step in steps {
        match run_one(site, step, &mut records, reporter) {
            Ok((state, detail)) => reporter.set(site.host, step.name(), state, &detail, None),
            Err(error) => reporter.set(site.host, step.name(), State::Failed, &error.to_string(), error.hint()),
        }
    }
}

fn run_one(site: &Site, step: &dyn Step, records: &mut Records, reporter: &mut Reporter) -> Result<(State, String)> {
    let inputs = Digest::of(step.inputs(site).as_bytes()).hex();
    let old = records.get(step.name()).cloned().unwrap_or_default();
    let as_left = old.inputs == inputs && old.files.iter().all(|(path, sum)| fingerprint(site.host, path) == *sum);
    if as_left && step.is_done(site) {
        return Ok((State::Unchanged, old.detail));
    }
    reporter.set(site.host, step.name(), State::Running, "", None);
    let outcome = step.run(site)?;
    for stale in old.files.keys().filter(|path| !outcome.files.contains(path)) {
        site.host.remove(stale)?;
    }
    let files = outcome.files.into_iter().map(|path| (fingerprint(site.host, &path), path)).map(|(sum, path)| (path, sum)).collect();
    site.host.sync();
    records.insert(step.name().into(), Record { inputs, detail: outcome.detail.clone(), files });
    save(site.host, records)?;
    Ok((State::Done, outcome.detail))
}

fn save(host: &Host, records: &Records) -> Result<()> {
    let text = serde_json::to_string_pretty(records).map_err(|e| Error::internal(format!("encoding steps: {e}")))?;
    if host.write(&records_path(), format!("{text}\n").as_bytes(), 0o600)? == Change::Made {
        host.sync();
    }
    Ok(())
}

/// Digest of a file or of a link's target; empty when there is none. Of a private key it tells nothing.
fn fingerprint(host: &Host, path: &str) -> String {
    let target = std::fs::read_link(host.path(path)).map(|to| to.to_string_lossy().into_owned().into_bytes());
    let bytes = target.ok().or_else(|| host.read_bytes(path).ok().flatten());
    bytes.map(|bytes| Digest::of(&bytes).hex()).unwrap_or_default()
}

/// Text of a value for `inputs`.
fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Tells systemd something when it runs here; a folder has no systemd.
pub(crate) fn systemctl(host: &Host, args: &[&str]) -> Result<()> {
    if host.path("run/systemd/system").is_dir() {
        crate::exec::run(host.program("systemctl").args(args))?;
    }
    Ok(())
}
