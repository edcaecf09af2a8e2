//! What containerd starts as its OCI runtime: decides how exact a container's timers are, then becomes crun.
//!
//! The programs of a control plane wake up thousands of times per second for their own bookkeeping. containerd's unit and the kubelet's let all of
//! theirs come late (`TimerSlackNSec=`), so that the processor serves many at once; children inherit that. Only control planes, the node's and virtual clusters',
//! and the system's own containers keep it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::thread::set_current_timer_slack;
use serde::Deserialize;

use crate::exec;
use crate::platform::host::owner;

/// The node binary's name when it is this.
pub const NAME: &str = "oci-runtime";
const CRUN: &str = "/usr/bin/crun";
/// Nanoseconds that the kernel lets timers be late by (PR_SET_TIMERSLACK of prctl(2)), where nobody says otherwise.
const USUAL: NonZeroU64 = NonZeroU64::new(50_000).unwrap();

/// Runs the runtime with this process's arguments.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if !is_systems(&arguments)
        && let Err(error) = set_current_timer_slack(Some(USUAL))
    {
        eprintln!("{NAME}: setting the timer slack: {error}");
    }
    eprintln!("{NAME}: {}", exec::replace(Command::new(CRUN).args(arguments)));
    ExitCode::FAILURE
}

/// Whether these are the arguments that create a container of the system or a virtual cluster's control plane.
fn is_systems(arguments: &[OsString]) -> bool {
    let bundle = arguments.iter().skip_while(|argument| *argument != "--bundle").nth(1);
    let annotations = bundle.and_then(|bundle| annotations(Path::new(bundle))).unwrap_or_default();
    let told = |key: &str| annotations.get(&format!("io.kubernetes.cri.{key}")).map_or("", String::as_str);
    let namespace = told("sandbox-namespace");
    namespace == "kube-system" || owner(namespace).is_some() && told("container-name") == "syncer"
}

/// What containerd's CRI plugin notes in a bundle's configuration (config.md of the OCI runtime specification).
fn annotations(bundle: &Path) -> Option<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Configuration {
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let configuration: Configuration = serde_json::from_slice(&std::fs::read(bundle.join("config.json")).ok()?).ok()?;
    Some(configuration.annotations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_containers_of_the_system_are_the_systems() {
        let folder = tempfile::tempdir().unwrap();
        let told = |configuration: &str| {
            std::fs::write(folder.path().join("config.json"), configuration).unwrap();
            let bundle = folder.path().as_os_str();
            is_systems(&["--root".as_ref(), "/run/r".as_ref(), "create".as_ref(), "--bundle".as_ref(), bundle, "name".as_ref()].map(OsString::from))
        };
        let of = |namespace: &str| format!(r#"{{"ociVersion": "1.2.0", "annotations": {{"io.kubernetes.cri.sandbox-namespace": "{namespace}"}}}}"#);
        let container =
            |namespace: &str, name: &str| of(namespace).replace("\"}", &format!("\", \"io.kubernetes.cri.container-name\": \"{name}\"}}"));
        assert!(told(&of("kube-system")) && told(&container("vcluster-biz", "syncer")));
        assert!(!told(&of("vcluster-biz")) && !told(&container("vcluster-biz", "web")) && !told(&container("shop", "syncer")));
        assert!(!told(&of("default")) && !told(&of("kube-system-2")));
        assert!(!told("{}") && !told("kube-system"), "a bundle that says nothing is anybody's");
        assert!(!is_systems(&["state".into(), "kube-system".into()]) && !is_systems(&["create".into(), "--bundle".into()]));
    }
}
