//! Signatures of what firmware and GRUB start: sbverify, osslsigncode, objdump, OpenSSL and Sequoia judge. `qemu-tests` has the firmware itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use builder::disk::file::Window;
use builder::efi::Pe;
use builder::efi::uki::{self, Parts};
use builder::fs::fat;
use builder::inspect;
use builder::signing::{Signer, authenticode, openpgp};
use layers::node::partition;
use sequoia_openpgp::Packet;
use sequoia_openpgp::packet::{Key, Signature};
use sequoia_openpgp::parse::{PacketParser, Parse as _};

use crate::common::{built, identity};

fn run(command: &mut Command) -> String {
    String::from_utf8(builder::exec::run(command).unwrap().stdout).unwrap()
}

/// GRUB as it lies in the ESP of an image: a UEFI program without a signature.
fn loader() -> Vec<u8> {
    let image = fs::read_dir(built()).unwrap().flatten().map(|e| e.path()).find(|path| path.extension().is_some_and(|e| e == "raw")).unwrap();
    let opened = inspect::open(&image).unwrap();
    let esp = opened.report.partitions.iter().find(|part| part.name == partition::ESP).unwrap();
    let window = Window::new(opened.disk.as_ref(), esp.offset, esp.size.0);
    fat::read(&window, "EFI/BOOT/BOOTX64.EFI").unwrap()
}

/// What sbverify says of a program.
fn judged(program: &Path, certificate: &Path) -> bool {
    Command::new("sbverify").arg("--cert").arg(certificate).arg(program).output().unwrap().status.success()
}

#[test]
fn a_signed_program_is_the_same_twice_and_every_changed_byte_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::read(&identity(dir.path(), "db.pem", "rsa:2048"), None).unwrap();
    let (certificate, path) = (dir.path().join("crt"), dir.path().join("grub.efi"));
    let signed = authenticode::sign(Pe::read(loader()).unwrap(), &signer).unwrap();
    assert!(signed == authenticode::sign(Pe::read(loader()).unwrap(), &signer).unwrap());
    fs::write(&path, &signed).unwrap();
    assert!(judged(&path, &certificate));
    let said = run(Command::new("osslsigncode").args(["verify", "-CAfile"]).arg(&certificate).arg("-in").arg(&path));
    assert!(said.contains("Signature verification: ok") && said.contains("Example Publisher"), "{said}");
    // In the headers, the code and the last section; not in the checksum.
    for at in [0x40 + 8, signed.len() / 3, loader().len() - 1] {
        let mut changed = signed.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).unwrap();
        assert!(!judged(&path, &certificate), "byte {at}");
    }
    let twice = authenticode::sign(Pe::read(signed).unwrap(), &signer).unwrap_err().to_string();
    assert!(twice.contains("it is signed already"), "{twice}");
}

#[test]
fn a_command_signs_as_the_key_does_and_what_is_no_signature_of_that_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pem = identity(dir.path(), "db.pem", "rsa:3072");
    let (key, certificate) = (dir.path().join("key"), dir.path().join("crt"));
    let command = format!("openssl pkeyutl -sign -inkey {} -pkeyopt digest:sha256", key.display());
    let asked = |command: &str| Signer::read(&certificate, Some(command)).unwrap().sign(b"message");
    assert_eq!(asked(&command).unwrap(), Signer::read(&pem, None).unwrap().sign(b"message").unwrap());
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    identity(&other, "db.pem", "rsa:3072");
    let others = command.replace(dir.path().to_str().unwrap(), other.to_str().unwrap());
    for (command, wanted) in [
        (others.as_str(), "what it wrote (384 bytes) is not a signature by the certificate's key"),
        ("cat", "what it wrote (32 bytes) is not a signature by the certificate's key"),
        ("exit 7", "signing with `exit 7`: exit status 7"),
    ] {
        let error = asked(command).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    identity(&other, "curve.pem", "ec -pkeyopt ec_paramgen_curve:P-256");
    let curve = Signer::read(&other.join("crt"), Some("cat")).unwrap_err().to_string();
    assert!(curve.contains("the certificate's key is not RSA"), "{curve}");
}

#[test]
fn grubs_signature_is_one_by_the_key_that_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::read(&identity(dir.path(), "db.pem", "rsa:2048"), None).unwrap();
    let packet = |bytes: &[u8]| PacketParser::from_bytes(bytes).unwrap().unwrap().recurse().unwrap().0;
    let Packet::PublicKey(key) = packet(&openpgp::public_key(&signer, 1_700_000_000).unwrap()) else { panic!("no public key") };
    let key: Key<_, _> = key;
    let verdict = |file: &[u8], signed: &[u8]| {
        let Packet::Signature(signature) = packet(&openpgp::detached(signed, &signer, 1_700_000_000).unwrap()) else { panic!("no signature") };
        let signature: Signature = signature;
        assert!(signature.issuers().all(|id| *id == key.keyid()) && signature.issuer_fingerprints().all(|id| *id == key.fingerprint()));
        signature.verify_message(&key, file).is_ok()
    };
    assert!(verdict(b"", b"") && verdict(b"file", b"file") && !verdict(b"fil3", b"file"));
}

#[test]
fn a_unified_kernel_image_has_its_parts_as_sections() {
    let dir = tempfile::tempdir().unwrap();
    let profiles: Vec<_> = ["a", "b"].map(|slot| (format!("slot-{slot}"), format!("roothash=ab chasi.slot={slot}"))).into();
    let parts = Parts { stub: loader(), os_release: "ID=site\n".into(), kernel: &[7; 70_001], initrd: &[9; 5000], profiles: profiles.clone() };
    let pe = uki::compose(parts).unwrap();
    assert_eq!(uki::profiles(&pe.bytes).unwrap(), profiles);
    let path = dir.path().join("uki.efi");
    fs::write(&path, &pe.bytes).unwrap();
    let said = run(Command::new("objdump").args(["-h", "-w"]).arg(&path));
    let sections: Vec<_> = said.lines().filter_map(|line| line.split_whitespace().nth(1).filter(|name| name.starts_with('.'))).collect();
    assert!(sections.ends_with(&[".osrel", ".initrd", ".linux", ".profile", ".cmdline", ".profile", ".cmdline"]), "{said}");
    run(Command::new("objcopy").args(["-O", "binary", "--only-section=.linux"]).arg(&path).arg(dir.path().join("linux")));
    assert!(fs::read(dir.path().join("linux")).unwrap() == [7; 70_001]);
}
