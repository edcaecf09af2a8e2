//! A virtual machine in QEMU. Emulated (TCG) unless CHASI_BOD_ACCEL names another accelerator: a /dev/kvm that exists may hang.

use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use layers::{Context, Error, Result};

use crate::exec;
use crate::serial::Serial;
use crate::uml::{self, Link};

/// What starts the machine.
#[derive(Clone, Debug, Default)]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF with fresh variables.
    Uefi,
    /// OVMF with Secure Boot on, and a copy of these variables, which hold the keys.
    SecureBoot(PathBuf),
    /// A kernel by QEMU itself: no boot loader.
    Direct {
        /// The kernel.
        kernel: PathBuf,
        /// The initramfs.
        initrd: PathBuf,
        /// The command line.
        command_line: String,
    },
    /// User-Mode Linux: no emulation, the image's initramfs on the lane's own kernel, one core.
    Uml {
        /// The kernel, a program; see [`crate::uml::kernel`].
        kernel: PathBuf,
        /// The initramfs.
        initrd: PathBuf,
        /// The command line.
        command_line: String,
        /// Its network.
        link: Link,
    },
}

/// A disk of the machine.
#[derive(Clone, Debug)]
pub struct Drive {
    /// The file.
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// What QEMU makes of it, with controllers before it: arguments in which `{}` takes the drive's own properties.
    pub device: &'static str,
}

impl Drive {
    /// A virtio disk of a raw file.
    pub fn raw(path: &Path) -> Self {
        Self { path: path.to_path_buf(), format: "raw", device: "-device virtio-blk-pci,{}" }
    }
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What starts it.
    pub firmware: Firmware,
    /// Its disks; the first one is booted from.
    pub drives: Vec<Drive>,
    /// Memory in MiB.
    pub memory: u32,
    /// Arguments for QEMU beyond ours; `-nic none` is ours unless one of these names a network.
    pub arguments: Vec<String>,
}

impl Machine {
    /// A machine with raw disks and 2 GiB of memory.
    pub fn new(firmware: Firmware, disks: &[&Path]) -> Self {
        let drives = disks.iter().map(|path| Drive::raw(path)).collect();
        Self { firmware, drives, memory: 2048, arguments: Vec::new() }
    }

    /// Starts the machine; its serial log and firmware variables go to `folder`.
    pub fn start(&self, folder: &Path) -> Result<Vm> {
        if let Firmware::Uml { kernel, initrd, command_line, link } = &self.firmware {
            let disks: Vec<_> = self.drives.iter().map(|drive| drive.path.as_path()).collect();
            let args = uml::arguments(kernel, initrd, &disks, self.memory, folder, link, command_line);
            return Vm::start("nsenter", &args, folder);
        }
        let mut args = words(BASE);
        let accel = match std::env::var("CHASI_BOD_ACCEL") {
            Ok(other) if other != "tcg" => words(&format!("-accel {other} -cpu host")),
            _ => words(TCG),
        };
        args.extend(accel);
        args.extend(["-m".into(), self.memory.to_string()]);
        args.extend(self.firmware_arguments(folder)?);
        for (index, drive) in self.drives.iter().enumerate() {
            let Drive { path, format, device } = drive;
            let (path, boot) = (path.display(), index + 1);
            args.extend(words(&format!("-drive id=d{index},if=none,format={format},cache=unsafe,discard=unmap,file={path}")));
            args.extend(words(&device.replace("{}", &format!("drive=d{index},serial=disk{index},bootindex={boot}"))));
        }
        if !self.arguments.iter().any(|a| a.starts_with("-nic") || a.starts_with("-netdev")) {
            args.extend(words("-nic none"));
        }
        args.extend(self.arguments.iter().cloned());
        Vm::start("qemu-system-x86_64", &args, folder)
    }

    fn firmware_arguments(&self, folder: &Path) -> Result<Vec<String>> {
        match &self.firmware {
            Firmware::Bios | Firmware::Uml { .. } => Ok(Vec::new()),
            Firmware::Uefi => ovmf("OVMF_CODE_4M.fd", Path::new("/usr/share/OVMF/OVMF_VARS_4M.fd"), folder),
            Firmware::SecureBoot(variables) => {
                // Only the firmware's own mode may write the variables.
                let guarded = words("-machine smm=on -global driver=cfi.pflash01,property=secure,value=on");
                Ok([guarded, ovmf("OVMF_CODE_4M.secboot.fd", variables, folder)?].concat())
            }
            Firmware::Direct { kernel, initrd, command_line } => {
                let mut args = words(&format!("-kernel {} -initrd {} -append", kernel.display(), initrd.display()));
                args.push(command_line.clone());
                Ok(args)
            }
        }
    }
}

fn ovmf(code: &str, variables: &Path, folder: &Path) -> Result<Vec<String>> {
    let own = folder.join("ovmf-vars.fd");
    std::fs::copy(variables, &own).context(|| format!("copying {}", variables.display()))?;
    let code = format!("-drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/{code}");
    Ok(words(&format!("{code} -drive if=pflash,format=raw,cache=unsafe,file={}", own.display())))
}

const BASE: &str = "-machine q35 -smp 2 -display none -monitor none -no-reboot -no-user-config -serial stdio \
                    -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng";
const TCG: &str = "-accel tcg,thread=multi,tb-size=1024 -cpu max,avx512f=off,avx2=off,avx=off,adx=off,bmi2=off";

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_string).collect()
}

/// A running machine; it ends with this value.
pub struct Vm {
    child: Child,
    /// Its first serial line.
    pub serial: Serial,
    started: Instant,
}

impl Vm {
    fn start(program: &str, args: &[String], folder: &Path) -> Result<Self> {
        let mut child = exec::start(program, args)?;
        let (Some(output), Some(input)) = (child.stdout.take(), child.stdin.take()) else {
            return Err(Error::internal("taking the machine's serial line: it is not piped"));
        };
        let serial = Serial::new(output, input, &folder.join("serial.log"))?;
        Ok(Self { child, serial, started: Instant::now() })
    }

    /// Waits for a line on the serial console; see [`Serial::wait`].
    pub fn wait(&mut self, needle: &str, seconds: u64) -> Result<String> {
        self.serial.wait(needle, Duration::from_secs(seconds))
    }

    /// Waits for power-off or, as reboots end the machine, for a reboot.
    pub fn wait_end(&mut self, seconds: u64) -> Result<ExitStatus> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(status) = self.child.try_wait().context(|| "waiting for QEMU".into())? {
                return Ok(status);
            }
            if Instant::now() > end {
                return Err(Error::environment(format!("waiting {seconds} s for the machine's end: it runs still\n{}", self.serial.text())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Pulls the plug: what the guest has not flushed may be lost, what reached QEMU is in the disk's file.
    pub fn kill(&mut self) {
        // Both fail only when the process is gone, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Time since the machine was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}
