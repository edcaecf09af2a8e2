//! Boots the built image with its kernel given to QEMU directly and prints, as JSON, the seconds from power-on to the agent's `ready` on the first
//! boot and on the boot after it. Part of `make bench`.

use std::process::ExitCode;

use layers::{Context, Result};
use qemu_tests::node::{Node, artifact, artifacts};
use qemu_tests::slots;

fn main() -> ExitCode {
    match measure() {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.fault() as u8)
        }
    }
}

fn measure() -> Result<String> {
    let scratch = tempfile::tempdir().context(|| "creating a scratch folder".into())?;
    let folder = artifacts("minimal")?;
    let firmware = slots::direct(&artifact(&folder, "raw")?, scratch.path())?;
    let node = Node::of_artifact(scratch.path(), &artifact(&folder, "qcow2")?)?;
    let mut rows = serde_json::Map::new();
    for name in ["boot to ready, first, direct kernel", "boot to ready, later, direct kernel"] {
        let (vm, own) = node.boot(firmware.clone())?;
        let seconds = (vm.age().as_secs_f64() * 100.0).round() / 100.0;
        rows.insert(name.into(), serde_json::json!({"seconds": seconds, "nodeSeconds": own}));
        node.shut_down(vm)?;
    }
    Ok(serde_json::Value::Object(rows).to_string())
}
