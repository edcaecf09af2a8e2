//! A test in user, network, mount and process namespaces of its own: all service addresses are this machine there, and nothing outlives the test.

use std::process::Command;

use crate::bench::Bench;
use crate::programs::programs;

const INSIDE: &str = "CHASI_BOD_TEST_APART";
/// The node's address.
pub const NODE: &str = "10.77.0.11";
/// Every address of a service reaches a socket of this namespace.
const NETWORK: &str = "set -e; ip link set lo up; ip route add local 10.96.0.0/16 dev lo; ip addr add 10.77.0.11/32 dev lo; ip route add default dev lo; exec \"$0\" \"$@\"";

/// Whether this process runs in the namespaces.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs a test, by its full name, on a host of its own.
pub fn apart<F: Future<Output = ()>>(test: &str, work: impl FnOnce(Bench) -> F) {
    programs();
    if is_inside() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(async { work(Bench::new().await).await });
    }
    let mut again = Command::new("unshare");
    again.args(["--user", "--map-root-user", "--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child", "sh", "-c", NETWORK]);
    again.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--include-ignored", "--nocapture"]).env(INSIDE, "1");
    let output = again.output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
