//! Row F1 on the real image: the plug is pulled at lines of the first boot, and the node that comes of it is the one that an undisturbed boot makes.

use std::time::Duration;

use qemu_tests::node::{Node, READY, artifact, artifacts};
use qemu_tests::uml::Net;
use qemu_tests::vm::Firmware;

/// What a first boot says, in order.
const LINES: [&str; 16] = [
    "init start",
    "init disk",
    "init root",
    "init state",
    "init switch",
    "config running",
    "config done",
    "disk running",
    "disk done",
    "identity running",
    "identity done",
    "network running",
    "network done",
    "time running",
    "time done",
    " ready",
];

/// Files that the first boot lays, with kind, mode and owner, without what systemd's daemons keep for themselves.
const LAID: &str = "cd /run/chasi-bod/state && find etc/upper var/lib/chasi-bod home root srv -printf '%y %m %u %g %p\\n' | sort";

struct Site {
    scratch: tempfile::TempDir,
    net: Net,
}

impl Site {
    fn new() -> Self {
        Self { scratch: tempfile::tempdir().unwrap(), net: Net::new(1).unwrap() }
    }

    /// A machine that has never run. All of them have one place on the network: they run one after another.
    fn machine(&self, name: &str) -> (Node, Firmware) {
        let folder = self.scratch.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        Node::in_uml(&folder, &artifact(&artifacts("minimal").unwrap(), "raw").unwrap(), &self.net, 1).unwrap()
    }
}

/// Pulls the plug this long after the line.
fn cut((node, firmware): &(Node, Firmware), line: &str, pause: Duration) {
    let mut vm = node.start(firmware.clone()).unwrap();
    vm.wait(line, READY).unwrap();
    std::thread::sleep(pause);
    vm.kill();
}

/// Boots to the end; what has been laid and whether all is well.
fn end_state((node, firmware): &(Node, Firmware)) -> String {
    let (vm, _) = node.boot(firmware.clone()).unwrap();
    let status = node.status().unwrap();
    let steps = status["steps"].as_array().unwrap();
    assert!(steps.iter().all(|s| s["state"] == "done" || s["state"] == "unchanged"), "{status:#}");
    assert_eq!(node.ssh("systemctl --failed --no-legend --plain").unwrap(), "", "failed units");
    // One machine id, whole; private and public host keys that belong together.
    assert_eq!(node.ssh("grep -cxE '[0-9a-f]{32}' /etc/machine-id").unwrap(), "1");
    let pairs = "for k in /etc/ssh/ssh_host_*_key; do [ \"$(ssh-keygen -y -f $k | cut -d' ' -f2)\" = \"$(cut -d' ' -f2 $k.pub)\" ] || echo $k; done";
    assert_eq!(node.ssh(pairs).unwrap(), "", "host keys that do not fit");
    let laid = node.ssh(LAID).unwrap();
    node.shut_down(vm).unwrap();
    laid
}

#[test]
fn uml_f1_power_cuts_in_init_and_in_steps_converge() {
    let site = Site::new();
    let (whole, torn) = (site.machine("whole"), site.machine("torn"));
    let expected = end_state(&whole);
    for (line, pause) in [("init root", 60), ("config running", 0), ("identity running", 20), ("network running", 0)] {
        cut(&torn, line, Duration::from_millis(pause));
    }
    assert_eq!(end_state(&torn), expected);
}

#[test]
#[ignore = "soak: a machine for every line"]
fn soak_uml_f1_a_power_cut_at_every_line_of_the_first_boot_converges() {
    let site = Site::new();
    let expected = end_state(&site.machine("whole"));
    for (index, line) in LINES.iter().enumerate() {
        let machine = site.machine(&index.to_string());
        cut(&machine, line, Duration::from_millis([0, 20, 80][index % 3]));
        assert_eq!(end_state(&machine), expected, "after a power cut at `{line}`");
    }
}
