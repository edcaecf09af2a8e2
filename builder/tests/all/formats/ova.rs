//! OVA against tar, sha256sum, qemu-img and the Common OVF Tool, and rows D6 of the fault list.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use builder::emit::ova::descriptor::{CLUSTER, NODE};
use builder::emit::{Machine, OutputFormat, emit, open};
use builder::signing::Signer;
use layers::node::ImageRecord;
use layers::settings::{Item, Settings};

use crate::common::{cache, identity, machine};

use super::{disk, run, same, small, write};

#[test]
fn d9_outside_tools_find_the_machine_and_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk();
    let (ova, raw) = (write(&disk, dir.path(), OutputFormat::Ova), write(&disk, dir.path(), OutputFormat::Raw));
    let (format, back) = open(&ova).unwrap();
    assert!(format == OutputFormat::Ova && same(&disk, back.as_ref()));
    let listed = run(Command::new("tar").args(["--full-time", "-tvf"]).arg(&ova).env("TZ", "UTC"));
    let names: Vec<_> = listed.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(names, ["site-1.2.3.ovf", "site-1.2.3-disk1.vmdk", "site-1.2.3.mf"], "the descriptor is first, the manifest last");
    assert!(listed.lines().all(|line| line.starts_with("-rw-r--r-- 0/0 ") && line.contains("2023-11-14 22:13:20")), "{listed}");
    run(Command::new("tar").args(["-C"]).arg(dir.path()).arg("-xf").arg(&ova));
    let check = "sed 's/SHA256(\\(.*\\))= \\(.*\\)/\\2  \\1/' site-1.2.3.mf | sha256sum --check --strict";
    let said = run(Command::new("sh").args(["-c", check]).current_dir(dir.path()));
    assert_eq!(said, "site-1.2.3.ovf: OK\nsite-1.2.3-disk1.vmdk: OK\n");
    let vmdk = dir.path().join("site-1.2.3-disk1.vmdk");
    run(Command::new("qemu-img").args(["check", "-f", "vmdk"]).arg(&vmdk));
    assert!(run(Command::new("qemu-img").args(["compare", "-f", "vmdk", "-F", "raw"]).args([&vmdk, &raw])).contains("identical"));
    // The Common OVF Tool knows SHA-1 alone in manifests of OVF 1: they have been compared above.
    std::fs::remove_file(dir.path().join("site-1.2.3.mf")).unwrap();
    let said = run(Command::new(cache().join("judges/bin/cot")).args(["info", "--verbose", "site-1.2.3.ovf"]).current_dir(dir.path()));
    for words in [
        "Product:  site",
        "Version:  1.2.3",
        "site-1.2.3-disk1.vmdk # harddisk @ SATA 0:0",
        "System types: vmx-14",
        "Ethernet device types: VmxNet3",
        "None (default) 2 4 GiB 1 0 1 /",
        "Transport types: iso com.vmware.guestInfo",
        "<chasi.cluster.secret> Secret \"\"",
    ] {
        let found = said.lines().any(|line| words.split(" # ").all(|part| one_spaced(line).contains(&one_spaced(part))));
        assert!(found, "{words}: {said}");
    }
}

fn one_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every field of the form is a setting that nodes know, and all of DSP0243's elements are where they belong.
#[test]
fn properties_are_settings() {
    let json = r#"{"name":"m","version":"1.0.0","epoch":0,"hostname":"a","network":{},"disk":{},"time":{},"console":{}}"#;
    let image: ImageRecord = serde_json::from_str(json).unwrap();
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8e1RkDLYBSVWxcLqJbPKB8YI9cI5WxdgVFYkA0kD0n me";
    let value = |name: &str| match name {
        "sshKeys" => key,
        "network.address" => "192.0.2.10/24",
        "network.gateway" | "network.dns" | "time.servers" | "cluster.endpoint" => "192.0.2.1",
        "url" => "https://example.org/site.yaml",
        "cluster.role" => "member",
        "cluster.secret" => "0123456789abcdef0123456789abcdef",
        _ => "edge-1",
    };
    for property in NODE.iter().chain(&CLUSTER) {
        Settings::of_image(&image).set(&Item::text(property.key, value(property.key), "OVF")).unwrap();
    }
    let descriptor = |machine: &Machine| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.ova");
        emit(OutputFormat::Ova, &small(), machine, &path).unwrap();
        run(Command::new("tar").arg("-xOf").arg(&path).arg(format!("{}-{}.ovf", machine.name, machine.version)))
    };
    let keys = |text: &str| text.matches("<Property ").count();
    let whole = descriptor(&machine());
    assert_eq!((keys(&whole), keys(&descriptor(&Machine { has_cluster: false, ..machine() }))), (10, 7));
    let document = roxmltree::Document::parse(&whole).unwrap();
    let text = |name: &str| document.descendants().filter(|n| n.has_tag_name(name)).map(|n| n.text().unwrap().to_string()).collect::<Vec<_>>();
    assert_eq!(text("VirtualQuantity"), ["2", "4096"]);
    assert_eq!(text("ResourceType"), ["3", "4", "20", "17", "15", "10"]);
    assert_eq!(text("Category"), ["Machine", "Network", "Cluster"]);
    let secret = document.descendants().filter(|n| n.attributes().any(|a| a.name() == "password")).count();
    let hidden = document.descendants().find(|n| n.attributes().any(|a| a.value() == "chasi.cluster.secret")).unwrap();
    assert!(secret == 1 && hidden.attributes().any(|a| a.name() == "password" && a.value() == "true"));
    let role = document.descendants().find(|n| n.attributes().any(|a| a.value() == "chasi.cluster.role")).unwrap();
    assert!(role.attributes().any(|a| a.value() == "ValueMap{ \"founder\", \"member\" }"));
}

/// The error of an appliance made of these files.
fn error(dir: &Path, files: &[(&str, &[u8])]) -> String {
    let path = dir.join("odd.ova");
    let mut archive = tar::Builder::new(std::fs::File::create(&path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        // `set_path` would refuse what is to be refused here.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append(&header, *bytes).unwrap();
    }
    archive.into_inner().unwrap();
    open(&path).unwrap_err().to_string()
}

#[test]
fn d6_an_appliance_is_signed_and_a_changed_manifest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pem = identity(dir.path(), "signer.pem", "rsa:2048");
    let machine = Machine { signer: Some(Arc::new(Signer::read(&pem, None).unwrap())), ..machine() };
    let ova = dir.path().join("site.ova");
    emit(OutputFormat::Ova, &small(), &machine, &ova).unwrap();
    let once = std::fs::read(&ova).unwrap();
    emit(OutputFormat::Ova, &small(), &machine, &ova).unwrap();
    assert!(once == std::fs::read(&ova).unwrap(), "signed twice, the bytes are not the same");
    assert!(same(&small(), open(&ova).unwrap().1.as_ref()));
    run(Command::new("tar").args(["-C"]).arg(dir.path()).arg("-xf").arg(&ova));
    let text = std::fs::read_to_string(dir.path().join("site-1.2.3.cert")).unwrap();
    let signature = text.lines().next().unwrap().strip_prefix("SHA256(site-1.2.3.mf)= ").unwrap();
    std::fs::write(dir.path().join("signature"), hex::decode(signature).unwrap()).unwrap();
    let judge = "openssl x509 -in site-1.2.3.cert -noout -pubkey > public &&
        openssl dgst -sha256 -verify public -signature signature site-1.2.3.mf && openssl x509 -in site-1.2.3.cert -noout -subject";
    let said = run(Command::new("sh").args(["-c", judge]).current_dir(dir.path()));
    assert!(said.contains("Verified OK") && said.contains("Example Publisher"), "{said}");

    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let (ovf, disk, cert) = (read("site-1.2.3.ovf"), read("site-1.2.3-disk1.vmdk"), read("site-1.2.3.cert"));
    let manifest = [&read("site-1.2.3.mf")[..], b"\n"].concat();
    let files = [("site-1.2.3.ovf", &ovf[..]), ("site-1.2.3-disk1.vmdk", &disk), ("site-1.2.3.mf", &manifest), ("site-1.2.3.cert", &cert)];
    assert!(error(dir.path(), &files).contains("its key has not signed `site-1.2.3.mf` as it is"));

    let refused = |path: &Path| Signer::read(path, None).unwrap_err().to_string();
    let (other, curve) = (identity(dir.path(), "other.pem", "rsa:2048"), identity(dir.path(), "curve.pem", "ec -pkeyopt ec_paramgen_curve:P-256"));
    let certificate = dir.path().join("crt");
    assert!(refused(&certificate).contains("it has no private key in PEM"));
    assert!(refused(&dir.path().join("key")).contains("its key is no RSA key that can sign"));
    assert!(refused(&curve).contains("curve.pem: its key is no RSA key that can sign"));
    let (ours, theirs) = (std::fs::read_to_string(&pem).unwrap(), std::fs::read_to_string(&other).unwrap());
    let begin = |text: &str| text.find("-----BEGIN CERTIFICATE").unwrap();
    std::fs::write(&other, [&ours[..begin(&ours)], &theirs[begin(&theirs)..]].concat()).unwrap();
    assert!(refused(&other).contains("its first certificate is that of another key"));
    std::fs::write(&other, &ours[..begin(&ours)]).unwrap();
    assert!(refused(&other).contains("it has no certificate in PEM"));
    assert!(refused(&dir.path().join("none")).contains("No such file"));
}

#[test]
fn d6_what_is_wrong_with_an_appliance_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ova = write(&small(), dir.path(), OutputFormat::Ova);
    run(Command::new("tar").args(["-C"]).arg(dir.path()).arg("-xf").arg(&ova));
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let (ovf, disk, manifest) = (read("site-1.2.3.ovf"), read("site-1.2.3-disk1.vmdk"), read("site-1.2.3.mf"));
    let text = String::from_utf8(ovf.clone()).unwrap();
    let with = |files: &[(&str, &[u8])]| error(dir.path(), &[&[("m.ovf", &ovf[..])], files].concat());
    let (vmdk, mf) = ("site-1.2.3-disk1.vmdk", "site-1.2.3.mf");
    assert!(with(&[]).contains("`site-1.2.3-disk1.vmdk`, which its descriptor names, is missing"));
    assert!(with(&[(vmdk, &disk), (mf, &manifest)]).contains("`site-1.2.3.ovf`, which its manifest names, is missing"));
    let mut bad = disk.clone();
    bad[disk.len() / 2] ^= 1;
    let said = error(dir.path(), &[("site-1.2.3.ovf", &ovf), (vmdk, &bad), (mf, &manifest)]);
    assert!(said.contains("`site-1.2.3-disk1.vmdk` has SHA-256 ") && said.contains(", its manifest says "), "{said}");
    assert!(with(&[(vmdk, &disk), ("m.mf", b"SHA256(m.ovf)= 12\n")]).contains("the manifest's digest of `m.ovf` is none"));
    for name in ["../m.vmdk", "/etc/passwd", "a/b", "..", "a\\b"] {
        assert!(with(&[(name, &disk)]).contains("is not the name of a file beside the others"), "{name}");
    }
    assert!(with(&[(vmdk, &disk), (vmdk, &disk)]).contains("is there twice"));
    let odd = |from: &str, to: &str| error(dir.path(), &[("m.ovf", text.replace(from, to).as_bytes()), (vmdk, &disk)]);
    assert!(odd("<File ", "<Fail ").contains("its disk is in the file `file1`, which `References` does not list"));
    assert!(odd("<Disk ", "<Disc ").contains("it has no disk"));
    assert!(odd("ovf:size=", "ovf:compression=\"gzip\" ovf:size=").contains("is packed by gzip"));
    assert!(odd("ovf:size=", "ovf:chunkSize=\"5\" ovf:size=").contains("is in several parts"));
    assert!(odd("vmdk.html", "vhd.html").contains("is no VMDK"));
    assert!(odd("</Envelope>", "").contains("reading the OVF descriptor: "));
    let cut = std::fs::read(&ova).unwrap();
    std::fs::write(&ova, &cut[..cut.len() / 2]).unwrap();
    assert!(open(&ova).unwrap_err().to_string().contains("`site-1.2.3-disk1.vmdk` is cut"));
}
