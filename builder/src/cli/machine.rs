//! The QEMU command that boots an image for a person.

use std::path::{Path, PathBuf};
use std::process::Command;

use layers::settings::check_ssh_key;
use layers::{Context, Error, Fault, Result};

use super::args::{Accel, Firmware, RunArgs};

/// Names under which distributions install OVMF's code and variables.
const OVMF: [(&str, &str); 2] =
    [("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"), ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd")];

/// The command; `scratch` takes what the machine may write and is not to be kept.
pub fn command(args: &RunArgs, disk: &Path, scratch: &Path) -> Result<Command> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "q35", "-no-reboot", "-nographic", "-m"]).arg(args.memory.to_string());
    accelerator(&mut qemu, args.accel);
    if args.firmware == Firmware::Uefi {
        firmware(&mut qemu, scratch)?;
    }
    let snapshot = if args.disk.is_some() { "off" } else { "on" };
    qemu.arg("-drive").arg(format!("file={},format=qcow2,if=virtio,cache=unsafe,snapshot={snapshot}", escape(disk)));
    qemu.args(["-device", "virtio-rng-pci", "-device", "virtio-net-pci,netdev=n0", "-netdev"]);
    qemu.arg(format!("user,id=n0,hostfwd=tcp:127.0.0.1:{}-:22", args.ssh_port));
    if let Some(key) = &args.ssh_key {
        let text = std::fs::read_to_string(key).fault(Fault::Input, || format!("reading ssh key {}", key.display()))?;
        let public = text.trim();
        // A private key given by mistake must not reach a command line.
        check_ssh_key(public).map_err(|_| {
            Error::input(format!("reading ssh key {}: it is not a public key", key.display())).with_hint("give the file that ends in .pub")
        })?;
        qemu.arg("-smbios").arg(format!("type=11,value=chasi-bod:sshKeys={}", escape(Path::new(public))));
    }
    Ok(qemu)
}

/// Says what is missing on this machine before QEMU says less.
pub fn check(args: &RunArgs, qemu: &Command) -> Result<()> {
    let program = qemu.get_program();
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
        return Err(Error::environment(format!("looking for QEMU: no `{}` in PATH", program.to_string_lossy()))
            .with_hint("install the Debian package `qemu-system-x86`, or add --print to get the command for a machine that has it"));
    }
    std::net::TcpListener::bind(("127.0.0.1", args.ssh_port))
        .fault(Fault::Environment, || format!("taking port {} for ssh", args.ssh_port))
        .map_err(|e| e.with_hint("choose another one with --ssh-port"))?;
    let kvm = || std::fs::File::options().read(true).write(true).open("/dev/kvm").context(|| "opening /dev/kvm".into());
    if args.accel == Accel::Kvm {
        kvm().map_err(|e| e.with_hint("join the group `kvm`, load the module kvm_intel or kvm_amd, or leave --accel at `tcg`"))?;
    }
    Ok(())
}

/// KVM only when asked for: a /dev/kvm that exists may still hang.
fn accelerator(qemu: &mut Command, accel: Accel) {
    match accel {
        Accel::Kvm => qemu.args(["-accel", "kvm", "-cpu", "host"]),
        // Without AVX the emulator is 8 to 10 % faster for most programs.
        Accel::Tcg => {
            qemu.args(["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,avx512f=off,avx2=off,avx=off,adx=off,bmi2=off", "-smp", "2"])
        }
    };
}

fn firmware(qemu: &mut Command, scratch: &Path) -> Result<()> {
    let found = OVMF.iter().find(|(code, vars)| Path::new(code).exists() && Path::new(vars).exists());
    let Some((code, vars)) = found else {
        return Err(Error::environment("finding OVMF: no firmware image below /usr/share/OVMF")
            .with_hint("install the package `ovmf`, or use --firmware bios"));
    };
    let own: PathBuf = scratch.join("vars.fd");
    std::fs::copy(vars, &own).context(|| format!("copying {vars}"))?;
    qemu.arg("-drive").arg(format!("if=pflash,format=raw,unit=0,readonly=on,file={code}"));
    qemu.arg("-drive").arg(format!("if=pflash,format=raw,unit=1,file={}", escape(&own)));
    Ok(())
}

/// QEMU separates options by commas; a comma inside a value is doubled.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
