//! The node's programs that go into the image: where they are looked for, and whether they can run there.

use std::fs;
use std::path::Path;

use layers::units::Digest;
use layers::{Context, Error, Fault, Result};

/// What `make tools` makes for the node.
#[derive(Debug)]
pub struct Programs {
    /// Agent and command.
    pub agent: Vec<u8>,
    /// `init` of the initramfs, apart because firmware loads that whole.
    pub init: Vec<u8>,
}

impl Programs {
    /// One digest of both.
    pub fn digest(&self) -> Digest {
        Digest::of_parts([self.agent.as_slice(), &self.init])
    }
}

/// The node's programs: the file named, else the one beside this program, and the one beside that.
pub fn programs(explicit: Option<&Path>) -> Result<Programs> {
    let exe = std::env::current_exe().context(|| "finding this program".into())?;
    let dir = exe.parent().unwrap_or(Path::new("/"));
    // In a source tree cargo also puts an unsuitable, dynamically linked build beside this program: ours comes first.
    let beside = [dir.join("../node/x86_64-unknown-linux-gnu/node/chasi-bod-node"), dir.join("chasi-bod-node")];
    let found = explicit.map(Path::to_path_buf).or_else(|| beside.into_iter().find(|p| p.exists()));
    let Some(path) = found else {
        return Err(Error::environment(format!("finding the node binary `chasi-bod-node`: it is not beside this program in {}", dir.display()))
            .with_hint(
                "run `make tools` in the source tree and copy chasi-bod-node and chasi-bod-init from target/node/x86_64-unknown-linux-gnu/node there, \
                 or name the former with --node-binary or CHASI_BOD_NODE",
            ));
    };
    Ok(Programs { agent: read(&path)?, init: read(&path.with_file_name("chasi-bod-init"))? })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).fault(Fault::Input, || format!("reading node binary {}", path.display()))?;
    if !is_static(&bytes) {
        let what = format!("using node binary {}: it is not a static x86-64 program, so no initramfs can start it", path.display());
        return Err(Error::input(what).with_hint("run `make tools`"));
    }
    Ok(bytes)
}

/// Whether this is a 64-bit little-endian ELF program for x86-64 without an interpreter (System V ABI, chapters 4 and 5).
fn is_static(program: &[u8]) -> bool {
    const X86_64: u64 = 62;
    const PT_INTERP: u64 = 3;
    let number = |at: usize, length: usize| {
        let bytes = program.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    let headers = || {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count).map(|n| number(usize::try_from(start.checked_add(n * size)?).ok()?, 4)).collect::<Option<Vec<_>>>()
    };
    let head = program.starts_with(b"\x7fELF\x02\x01") && number(18, 2) == Some(X86_64);
    head && headers().is_some_and(|kinds| !kinds.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_static_program_can_be_the_node_binary() {
        let own = fs::read("/proc/self/exe").unwrap();
        assert!(!is_static(&own), "this test is linked dynamically");
        let mut without = own.clone();
        let (start, size) = (u64::from_le_bytes(own[32..40].try_into().unwrap()) as usize, usize::from(own[54]));
        let interpreter = (0..usize::from(own[56])).map(|n| start + n * size).find(|at| own[*at] == 3).unwrap();
        without[interpreter] = 0;
        assert!(is_static(&without));
        assert!(!is_static(b"#!/bin/sh\n") && !is_static(&own[..100]));
    }
}
