//! GRUB's core images as the builder makes them, with further modules where a test needs them.

use std::path::{Path, PathBuf};

use layers::Result;

use crate::{debs, exec};

fn modules(platform: &str) -> Vec<&'static str> {
    let list = include_str!("../../layers/defs/boot/grub-modules.txt");
    let lines = list.lines().filter_map(|l| l.split_once(": "));
    lines.filter(|(p, _)| *p == "all" || *p == platform).flat_map(|(_, m)| m.split_whitespace()).collect()
}

/// A core image in a folder, for a platform as grub-mkimage calls it.
pub fn core_image(folder: &Path, platform: &str, prefix: &str, more: &[&str]) -> Result<PathBuf> {
    let root = debs::unpacked(&["libc6", "libdevmapper1.02.1", "liblzma5", "libselinux1", "libudev1", "libpcre2-8-0", "libcap2"])?;
    debs::unpacked(&["grub-common", "grub-pc-bin", "grub-efi-amd64-bin", "grub-efi-amd64-unsigned"])?;
    let out = folder.join(format!("core-{platform}"));
    let (loader, mut args) = debs::program(&root, "usr/bin/grub-mkimage");
    let (directory, output) = (root.join("usr/lib/grub").join(platform), out.display().to_string());
    args.extend(["-O", platform, "-d", &directory.display().to_string(), "-p", prefix, "-o", &output].map(String::from));
    args.extend(modules(platform).into_iter().chain(more.iter().copied()).map(String::from));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    exec::run(loader, &args)?;
    Ok(out)
}
