//! Images that tests build for themselves.

use std::path::{Path, PathBuf};

use crate::exec;

/// The builder's command.
pub fn chasi_bod() -> PathBuf {
    std::env::var_os("CHASI_BOD_BIN").map_or_else(|| PathBuf::from("../target/release/chasi-bod"), PathBuf::from)
}

/// The folder of the shipped profiles.
///
/// # Panics
/// When it is not there.
pub fn profiles() -> PathBuf {
    Path::new("../profiles").canonicalize().unwrap()
}

/// The image of the profile `NAME.yaml`, version 0.1.0, in a folder, built there in a format.
///
/// # Panics
/// When that fails, which fails the test.
pub fn build(folder: &Path, name: &str, format: &str) -> PathBuf {
    let [path] = build_all(folder, name, [format], &[]);
    path
}

/// The same in some formats, with more options.
///
/// # Panics
/// When that fails, which fails the test.
pub fn build_all<const N: usize>(folder: &Path, name: &str, formats: [&str; N], more: &[&str]) -> [PathBuf; N] {
    let node = std::env::var("CHASI_BOD_NODE").expect("CHASI_BOD_NODE names the node's binary");
    let (profile, output) = (folder.join(format!("{name}.yaml")).display().to_string(), folder.join("out").display().to_string());
    let args = ["build", &profile, "--format", &formats.join(","), "--output", &output, "--node-binary", &node];
    exec::run(chasi_bod(), &[&args[..], more].concat()).unwrap();
    formats.map(|format| folder.join(format!("out/{name}/0.1.0/{name}-0.1.0.{format}")))
}
