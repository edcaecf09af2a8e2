//! Two images against each other through the command line: what each level tells, what cannot be read, and exit codes. The roots are written by
//! our own writer, so that owners, attributes and devices need no root here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use builder::disk::layout::Layout;
use builder::disk::{Disk, ReadAt, gpt};
use builder::emit::{OutputFormat, emit};
use builder::fs::erofs::{Erofs, Options};
use builder::fs::fat;
use builder::store::Store;
use builder::tree::{Content, Kind, Node, Tree, TreePath};
use layers::profile;
use layers::seed::{Chain, DOCUMENTS, INDEX, Image, ImageIndex, LAYERS, Release, SEED, Seed as Charts};
use layers::units::{Bytes, Digest, Seed};
use serde_json::{Value, json};

use crate::common::{BIN, good, machine};

const EPOCH: i64 = 1_700_000_000;
const DPKG: &str = "/usr/lib/sysimage/dpkg";

/// A root and the files of its boot partition.
#[derive(Clone)]
struct World {
    root: BTreeMap<String, (Node, Vec<u8>)>,
    boot: BTreeMap<String, Vec<u8>>,
}

fn node(kind: Kind, mode: u16) -> Node {
    Node::new(kind, mode, EPOCH)
}

impl World {
    fn file(&mut self, path: &str, mode: u16, bytes: impl Into<Vec<u8>>) {
        let content = Content { sha256: Digest([0; 32]), size: 0, pack: Digest([0; 32]), offset: 0 };
        self.root.insert(path.into(), (node(Kind::File(content), mode), bytes.into()));
    }

    fn node(&mut self, path: &str, kind: Kind, mode: u16) {
        self.root.insert(path.into(), (node(kind, mode), Vec::new()));
    }

    fn json(&mut self, path: &str, value: &impl serde::Serialize) {
        self.file(path, 0o644, serde_json::to_vec(value).unwrap());
    }

    fn packages(&mut self, packages: &[(&str, &str)]) {
        let stanza =
            |(name, version): &(&str, &str)| format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n");
        self.file(&format!("{DPKG}/status"), 0o644, packages.iter().map(stanza).collect::<String>());
    }

    /// Images of one layer each: name, and what the layer's file says.
    fn images(&mut self, images: &[(&str, &str)]) {
        let mut index = ImageIndex::default();
        for (name, text) in images {
            let diff_id = Digest::of(text.as_bytes());
            let document = serde_json::to_vec(&json!({"rootfs": {"diff_ids": [diff_id.to_string()]}})).unwrap();
            let config = Digest::of(&document);
            self.file(&format!("{DOCUMENTS}/{}", config.hex()), 0o644, document);
            self.file(&format!("{LAYERS}/{}/bin/program", &diff_id.hex()[..8]), 0o755, *text);
            index.chains.insert(diff_id, Chain { diff_id, parent: None, layer: diff_id.hex()[..8].into() });
            let media_type = "application/vnd.oci.image.manifest.v1+json".into();
            index.images.push(Image {
                name: (*name).into(),
                digest: config,
                media_type,
                size: Bytes(7),
                manifest: config,
                config,
                wanted_by: vec![],
            });
        }
        self.json(INDEX, &index);
    }

    fn charts(&mut self, charts: &[(&str, &str, &str)]) {
        let release = |(name, version, replicas): &(&str, &str, &str)| Release {
            name: (*name).into(),
            namespace: "apps".into(),
            chart: (*name).into(),
            version: (*version).into(),
            file: format!("{name}-{version}.tgz"),
            sha256: Digest::of(version.as_bytes()),
            size: Bytes(1000),
            form: Default::default(),
            values: [("replicas".to_string(), json!(replicas))].into(),
            install: true,
            wanted_by: "profile".into(),
        };
        self.json(SEED, &Charts { releases: charts.iter().map(release).collect(), ..Charts::default() });
    }

    fn disk(&self, dir: &Path) -> Disk {
        let store = Arc::new(Store::open(&dir.join("store")).unwrap());
        let mut tree = Tree::default();
        tree.insert(TreePath::root(), node(Kind::Directory, 0o755));
        let key = Digest::of(format!("{:?}", self.root).as_bytes());
        let mut pack = store.new_pack(key).unwrap();
        for (path, (node, bytes)) in &self.root {
            let (path, mut node) = (TreePath::new(path).unwrap(), node.clone());
            if let Kind::File(content) = &mut node.kind {
                *content = pack.add(bytes).unwrap();
            }
            tree.ensure_parents(&path, EPOCH);
            tree.insert(path, node);
        }
        pack.finish().unwrap();
        let options = Options { uuid: Seed::new("compare").uuid("root"), volume_label: "root".into(), epoch: EPOCH };
        let root = Erofs::layout(&tree, store, options).unwrap();
        let rules = profile::Disk {
            size: Bytes::mib(120),
            esp_size: Bytes::mib(36),
            slot_size: Some(Bytes::mib(16)),
            state_size: Bytes::mib(16),
            ..profile::Disk::default()
        };
        let layout = Layout::new(&rules, Bytes(root.len()), Bytes(4096), &Seed::new("compare")).unwrap();
        let mut disk = Disk::new(layout.size);
        let mut code = [0; 440];
        code[100..105].copy_from_slice(b"GRUB ");
        gpt::put(&layout, Some(&code), &mut disk).unwrap();
        let files = self.boot.iter().map(|(name, bytes)| (name.clone(), Arc::new(bytes.clone()) as Arc<dyn ReadAt>)).collect();
        let esp = layout.partition("esp").unwrap();
        let options =
            fat::Options { kind: fat::FatKind::Fat32, size: Bytes(esp.size), label: "ESP".into(), serial: 7, epoch: EPOCH, offset: esp.offset };
        disk.put(esp.offset, Arc::new(fat::build(&options, &files, dir).unwrap())).unwrap();
        disk.put(layout.partition("root-a").unwrap().offset, Arc::new(root)).unwrap();
        disk
    }

    fn write(&self, dir: &Path, name: &str, format: OutputFormat) -> PathBuf {
        let path = dir.join(format!("{name}.{}", format.extension()));
        emit(format, &self.disk(dir), &machine(), &path).unwrap();
        path
    }
}

/// A kernel as far as its header tells its release.
fn kernel(release: &str) -> Vec<u8> {
    let mut out = vec![9; 100_000];
    out[..2].copy_from_slice(b"MZ");
    out[0x202..0x206].copy_from_slice(b"HdrS");
    out[0x20e..0x210].copy_from_slice(&0x3000_u16.to_le_bytes());
    let text = format!("{release} (builder) #1 SMP\0");
    out[0x3200..0x3200 + text.len()].copy_from_slice(text.as_bytes());
    out
}

fn world() -> World {
    let mut world = World { root: BTreeMap::new(), boot: BTreeMap::new() };
    world.packages(&[("bash", "5.2-1"), ("tool", "1.0-1")]);
    world.file(&format!("{DPKG}/info/tool.list"), 0o644, "/.\n/usr\n/bin/tool\n/usr/lib/modules/x.ko.xz\n");
    world.node("/bin", Kind::Symlink(b"usr/bin".to_vec()), 0o777);
    world.file("/usr/bin/tool", 0o755, vec![1; 3_000_000]);
    world.file("/usr/bin/other", 0o755, "other");
    world.file("/usr/lib/modules/x.ko", 0o644, "module");
    world.file("/etc/motd", 0o644, "welcome");
    world.file("/etc/shadow", 0o600, "root:*");
    world.images(&[("registry.example/pause:3.10", "pause"), ("registry.example/web:1", "web")]);
    world.charts(&[("metrics", "1.0.0", "1")]);
    world.json("/usr/lib/chasi-bod/image.json", &json!({"name": "site", "time": {"zone": "UTC"}}));
    world.boot.insert("EFI/BOOT/BOOTX64.EFI".into(), b"MZ......Welcome to GRUB!".to_vec());
    world.boot.insert("slot-a/vmlinuz".into(), kernel("6.12.1-amd64"));
    world.boot.insert("slot-a/boot.cfg".into(), b"set chasi_cmdline=\"quiet\"\n".to_vec());
    world
}

/// Exit code, stdout, stderr.
fn compare(a: &Path, b: &Path, more: &[&str]) -> (i32, String, String) {
    let output = Command::new(BIN).arg("compare").args([a, b]).args(more).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The differences of a level as lines `change what name`.
fn changes(found: &Value, level: &str) -> Vec<String> {
    let level = found["levels"].as_array().unwrap().iter().find(|l| l["level"] == level).unwrap();
    let text = |c: &Value, key: &str| c[key].as_str().unwrap().to_string();
    level["changes"].as_array().unwrap().iter().map(|c| format!("{} {} {}", text(c, "change"), text(c, "what"), text(c, "name"))).collect()
}

/// Two images of which the second was edited; what the levels of the root tell in JSON, and the text.
fn edited(edit: impl FnOnce(&mut World)) -> (Value, String) {
    let dir = tempfile::tempdir().unwrap();
    let (a, mut other) = (world(), world());
    edit(&mut other);
    let (a, b) = (a.write(dir.path(), "a", OutputFormat::Raw), other.write(dir.path(), "b", OutputFormat::Raw));
    let (code, text, errors) = compare(&a, &b, &["--json"]);
    assert_eq!(code, 1, "{text}{errors}");
    let found = json_of(&text);
    assert_eq!(found["equal"], false);
    let (code, text, _) = compare(&a, &b, &[]);
    assert_eq!(code, 1, "{text}");
    // Both ways say the same.
    let (_, back, _) = compare(&b, &a, &["--json"]);
    let count = |found: &Value| found["levels"].as_array().unwrap().iter().map(|l| l["changes"].as_array().unwrap().len()).collect::<Vec<_>>();
    assert_eq!(count(&found), count(&json_of(&back)));
    (found, text)
}

#[test]
fn one_image_is_equal_to_itself_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let world = world();
    let [raw, others @ ..] = OutputFormat::ALL.map(|format| world.write(dir.path(), "image", format));
    for other in &others {
        let (code, text, errors) = compare(&raw, other, &[]);
        assert_eq!(code, 0, "{other:?}: {text}{errors}");
        assert!(!text.contains("changed") && !text.contains("added") && text.contains("files: the same"), "{text}");
        assert!(errors.contains("comparing partitions: 6/6 files"), "{errors}");
        let (code, text, errors) = compare(&raw, other, &["--only", "files,config,packages", "--json", "--quiet"]);
        let found = json_of(&text);
        let levels: Vec<_> =
            found["levels"].as_array().unwrap().iter().map(|l| (l["level"].as_str().unwrap(), l["same"].as_u64().unwrap())).collect();
        assert_eq!((code, &found["equal"], errors.as_str()), (0, &json!(true), ""), "{other:?}");
        assert!(matches!(levels[..], [("packages", 2), ("config", 5), ("files", 25..)]), "{levels:?}");
    }
}

#[test]
fn a_changed_package_is_told_and_its_files_are_counted() {
    let (found, text) = edited(|world| {
        world.packages(&[("bash", "5.2-1"), ("tool", "1.1-1"), ("new", "3")]);
        world.file("/usr/bin/tool", 0o755, vec![2; 3_000_000]);
        world.root.remove("/usr/lib/modules/x.ko");
        world.file("/usr/bin/other", 0o755, "OTHER");
    });
    assert_eq!(changes(&found, "packages"), ["added package new", "changed package tool"]);
    assert!(text.contains("packages: 1 added, 1 changed, 1 the same\n  + package new 3 amd64\n  ~ package tool 1.0-1 -> 1.1-1\n"), "{text}");
    let files = &changes(&found, "files");
    assert!(files.contains(&"changed file /usr/bin/tool".into()) && files.contains(&"removed file /usr/lib/modules/x.ko".into()), "{files:?}");
    assert!(text.contains("  files of package tool: 1 removed, 1 changed\n") && !text.contains("file /usr/bin/tool"), "{text}");
    let [old, new] = [b"other", b"OTHER"].map(|text| Digest::of(text).short());
    assert!(text.contains(&format!("  ~ file /usr/bin/other sha256 {old} -> {new}\n")), "files of no changed package are told one by one: {text}");
    assert_eq!([changes(&found, "images"), changes(&found, "charts"), changes(&found, "config")], [const { Vec::<String>::new() }; 3]);
}

#[test]
fn a_changed_file_of_etc_and_a_setting_are_told_by_config() {
    let (found, text) = edited(|world| {
        world.file("/etc/motd", 0o644, "goodbye");
        world.file("/etc/shadow", 0o640, "root:*");
        world.json("/usr/lib/chasi-bod/image.json", &json!({"name": "site", "time": {"zone": "Europe/Berlin"}}));
    });
    assert_eq!(changes(&found, "config"), ["changed setting time.zone", "changed file /etc/motd", "changed file /etc/shadow"]);
    assert_eq!(changes(&found, "files"), ["changed file /usr/lib/chasi-bod/image.json"]);
    let motd = &found["levels"][4]["changes"][1]["facts"];
    let digest = |text: &[u8]| Digest::of(text).to_string();
    assert_eq!(*motd, json!([{"name": "sha256", "a": digest(b"welcome"), "b": digest(b"goodbye")}]));
    assert!(text.contains("~ setting time.zone UTC -> Europe/Berlin") && text.contains("~ file /etc/shadow mode 0600 -> 0640\n"), "{text}");
}

#[test]
fn everything_that_a_file_has_but_its_times_is_compared() {
    let (found, text) = edited(|world| {
        world.file("/usr/bin/added", 0o755, "new\n");
        world.root.remove("/usr/lib/modules/x.ko");
        world.node("/bin", Kind::Symlink(b"usr/sbin".to_vec()), 0o777);
        let (other, _) = world.root.get_mut("/usr/bin/other").unwrap();
        (other.mode, other.uid, other.mtime) = (0o4755, 7, EPOCH - 5);
        other.xattrs.insert(b"security.capability".to_vec(), vec![1, 2]);
        world.root.get_mut("/usr/bin/tool").unwrap().0.mtime = EPOCH - 9;
        world.node("/dev/\u{1b}null", Kind::CharDevice(1, 3), 0o666);
    });
    let expected = [
        "changed link /bin",
        "added folder /dev",
        "added character device /dev/\u{1b}null",
        "added file /usr/bin/added",
        "changed file /usr/bin/other",
        "removed file /usr/lib/modules/x.ko",
    ];
    assert_eq!(changes(&found, "files")[..5], expected[..5]);
    assert!(changes(&found, "files").contains(&expected[5].to_string()), "{found}");
    for line in [
        "~ link /bin target usr/bin -> usr/sbin\n",
        "+ character device /dev/\u{fffd}null 0666 0:0 1,3\n",
        "+ file /usr/bin/added 0755 0:0 4\n",
        "~ file /usr/bin/other mode 0755 -> 4755, owner 0:0 -> 7:0, xattr security.capability none -> 0102\n",
        "- file /usr/lib/modules/x.ko 0644 0:0 6\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("/usr/bin/tool"), "its time alone differs: {text}");
}

#[test]
fn changed_lists_of_images_and_charts_are_told_each_at_its_level() {
    let (found, text) = edited(|world| {
        world.images(&[("registry.example/pause:3.10", "pause"), ("registry.example/web:1", "web, rebuilt"), ("registry.example/db:9", "db")]);
        let gone = Digest::of(b"web").hex();
        world.root.remove(&format!("{LAYERS}/{}/bin/program", &gone[..8]));
        world.charts(&[("metrics", "1.1.0", "2"), ("db", "9.0.0", "1")]);
    });
    assert_eq!(changes(&found, "images"), ["added image registry.example/db:9", "changed image registry.example/web:1"]);
    assert_eq!(changes(&found, "charts"), ["added release apps/db", "changed release apps/metrics"]);
    assert_eq!([changes(&found, "packages"), changes(&found, "config")], [const { Vec::<String>::new() }; 2]);
    let [old, new] = [b"1.0.0", b"1.1.0"].map(|text| Digest::of(text).short());
    assert!(text.contains(&format!("~ release apps/metrics 1.0.0 -> 1.1.0, sha256 {old} -> {new}, values.replicas 1 -> 2\n")), "{text}");
    assert!(text.contains("+ release apps/db db 9.0.0 "), "{text}");
    // The layers' folders come with the images: `l/<id>`, `bin` and `program` of two new layers and of one that is gone.
    assert!(text.contains("files of image registry.example/db:9: 3 added\n"), "{text}");
    assert!(text.contains("files of image registry.example/web:1: 3 added, 3 removed\n"), "{text}");
}

#[test]
fn kernels_loaders_and_the_command_line_are_told_by_disk() {
    let (found, text) = edited(|world| {
        world.boot.insert("slot-a/vmlinuz".into(), kernel("6.12.2-amd64"));
        world.boot.insert("slot-a/boot.cfg".into(), b"set chasi_cmdline=\"quiet debug\"\n".to_vec());
        world.boot.remove("EFI/BOOT/BOOTX64.EFI");
        world.boot.insert("EFI/BOOT/BOOTAA64.EFI".into(), b"MZ#### LoaderInfo: systemd-boot 257.7-1 ####".to_vec());
    });
    let disk = changes(&found, "disk");
    let expected = [
        "added boot file esp:/EFI/BOOT/BOOTAA64.EFI",
        "removed boot file esp:/EFI/BOOT/BOOTX64.EFI",
        "changed boot file esp:/slot-a/boot.cfg",
        "changed boot file esp:/slot-a/vmlinuz",
        "changed partition esp",
        "changed slot a",
    ];
    assert_eq!(disk, expected);
    assert!(text.contains("~ boot file esp:/slot-a/vmlinuz 6.12.1-amd64 -> 6.12.2-amd64, sha256 "), "{text}");
    assert!(text.contains("+ boot file esp:/EFI/BOOT/BOOTAA64.EFI systemd-boot 257.7-1 "), "{text}");
    assert!(text.contains("- boot file esp:/EFI/BOOT/BOOTX64.EFI GRUB "), "{text}");
    assert!(text.contains("~ slot a boot.cfg set chasi_cmdline=\"quiet\" -> set chasi_cmdline=\"quiet debug\"\n"), "{text}");
    assert!(["packages: 2", "images: 2", "charts: 1", "config: 5"].iter().all(|level| text.contains(&format!("{level} the same"))), "{text}");
}

#[test]
fn a_byte_that_no_file_shows_is_a_difference_of_its_partition() {
    let dir = tempfile::tempdir().unwrap();
    let a = world().write(dir.path(), "a", OutputFormat::Raw);
    let b = dir.path().join("b.raw");
    good(Command::new("cp").arg("--sparse=always").args([&a, &b]));
    let (offset, size) = crate::common::partition(&b, "root-b");
    crate::common::flip(&b, offset + size - 1);
    let (code, text, _) = compare(&a, &b, &[]);
    assert!(code == 1 && text.contains("  ~ partition root-b 4KiB of 16MiB differ\n"), "{text}");
    assert!(text.contains("disk: 1 changed") && text.contains("files: ") && !text.contains("file /"), "{text}");
    assert_eq!(compare(&a, &b, &["--only", "files"]).0, 0, "files alone are the same");
}

/// A disk that others made: boot partition and, from 41 MiB on, a root for others to fill.
fn foreign(path: &Path) {
    File::create(path).unwrap().set_len(100 << 20).unwrap();
    good(
        Command::new("sgdisk")
            .args(["-U", "11111111-2222-3333-4444-555555555555", "-n15:2048:+40M", "-t15:ef00", "-c15:esp", "-n1:0:0", "-t1:8304", "-c1:root"])
            .arg(path),
    );
    let guids = ["-u15:11111111-2222-3333-4444-555555555556", "-u1:11111111-2222-3333-4444-555555555557"];
    good(Command::new("sgdisk").args(guids).arg(path));
    good(Command::new("mkfs.fat").args(["-F32", "-i", "12345678", "-n", "UEFI", "--invariant", "--offset", "2048"]).arg(path).arg("40960"));
}

/// Such a disk with an ext4 root that mke2fs fills from a folder beside it; the folder.
fn with_ext4(path: &Path, motd: &str, version: &str) -> PathBuf {
    foreign(path);
    let tree = path.with_extension("tree");
    let status = format!("Package: hello\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n");
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (name, text) in [("etc/motd", motd.as_bytes()), ("var/lib/dpkg/status", status.as_bytes()), ("usr/bin/large", &large), ("usr/empty", b"")] {
        fs::create_dir_all(tree.join(name).parent().unwrap()).unwrap();
        fs::write(tree.join(name), text).unwrap();
    }
    fs::set_permissions(tree.join("usr/bin/large"), fs::Permissions::from_mode(0o4755)).unwrap();
    let (long, target) = ("n".repeat(255), "t".repeat(100));
    std::os::unix::fs::symlink(&target, tree.join("etc").join(long)).unwrap();
    std::os::unix::fs::symlink("../etc/motd", tree.join("usr/motd")).unwrap();
    let options = format!("offset={},hash_seed=11111111-2222-3333-4444-555555555559", 41 << 20);
    let uuid = "11111111-2222-3333-4444-555555555558";
    good(Command::new("mke2fs").args(["-q", "-t", "ext4", "-L", "cloud", "-U", uuid, "-E", &options, "-d"]).args([&tree, path]).arg("20M"));
    tree
}

#[test]
fn ext4_roots_of_others_are_compared_file_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, copy] = ["a.img", "b.img", "copy.qcow2"].map(|name| dir.path().join(name));
    let tree = with_ext4(&a, "one\n", "1.0-1");
    with_ext4(&b, "two\n", "1.0-2");
    good(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args([&a, &copy]));
    let (code, text, errors) = compare(&a, &copy, &[]);
    assert!(code == 0 && !text.contains("not read"), "{text}{errors}");
    let (code, text, _) = compare(&a, &b, &[]);
    assert!(code == 1 && text.contains("~ package hello 1.0-1 -> 1.0-2") && text.contains("~ file /etc/motd"), "{text}");
    assert!(!text.contains("/usr/bin/large") && text.contains("~ partition root "), "{text}");

    let text = |command: &mut Command| String::from_utf8(good(command).stdout).unwrap();
    let inspect = |args: &[&str]| text(Command::new(BIN).arg("inspect").arg(&copy).args(args));
    assert_eq!(inspect(&["--cat", "/usr/motd"]), "one\n");
    assert_eq!(inspect(&["--packages"]).split_whitespace().collect::<Vec<_>>(), ["hello", "1.0-1", "amd64"]);
    let listed = inspect(&["--files", "**"]);
    let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let mut listed: Vec<_> = listed.lines().map(words).filter(|line| line[4] != "/lost+found").collect();
    listed.sort();
    let found = text(Command::new("find").arg(&tree).args(["-mindepth", "1", "-printf", "%y %m %U:%G %s %l /%P\n"]));
    let told = |line: &str| {
        let words = words(line);
        let [kind, mode, owner, size] = [0, 1, 2, 3].map(|n| words[n].clone());
        let (kind, size) = match kind.as_str() {
            "f" => ("-", size),
            other => (other, "-".into()),
        };
        let mut told = vec![kind.to_string(), format!("{mode:0>4}"), owner, size, words.last().unwrap().clone()];
        if words.len() == 6 {
            told.extend(["->".into(), words[4].clone()]);
        }
        told
    };
    let mut found: Vec<_> = found.lines().map(told).collect();
    found.sort();
    assert_eq!(listed, found);
}

#[test]
fn d2_a_damaged_ext4_root_is_an_error_or_reads_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.img");
    with_ext4(&path, "one\n", "1.0-1");
    let (file, mut start, mut refused) = (File::options().read(true).write(true).open(&path).unwrap(), vec![0; 1 << 20], 0);
    // Superblock, groups, tables of inodes and folders of a file system of this size.
    file.read_exact_at(&mut start, 41 << 20).unwrap();
    let used: Vec<_> = (0..start.len()).filter(|at| start[*at] != 0).collect();
    let flips: Vec<_> = used.iter().step_by(used.len().div_ceil(400)).collect();
    for at in &flips {
        let place = (41 << 20) + **at as u64;
        file.write_all_at(&[start[**at] ^ (1 << (**at % 8))], place).unwrap();
        match builder::inspect::files::Root::open(&path, None) {
            Ok(root) => _ = root.cat("/usr/bin/large", &mut std::io::sink()),
            Err(error) => {
                assert!(error.to_string().contains("a.img"), "{error}");
                refused += 1;
            }
        }
        file.write_all_at(&start[**at..=**at], place).unwrap();
    }
    println!("{refused} of {} refused", flips.len());
    assert!(refused > 0 && refused < flips.len());
}

#[test]
fn files_of_others_that_cannot_be_read_are_named_and_compared_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, copy] = ["a.img", "b.img", "copy.qcow2"].map(|name| dir.path().join(name));
    for (path, text) in [(&a, b"hsqs one"), (&b, b"hsqs two")] {
        foreign(path);
        File::options().write(true).open(path).unwrap().write_all_at(text, 41 << 20).unwrap();
    }
    good(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args([&a, &copy]));
    let (code, text, errors) = compare(&a, &copy, &[]);
    assert_eq!(code, 0, "{text}{errors}");
    let holds = "the files of partition 1 `root`: it holds squashfs";
    assert!(text.contains(&format!("A: not read, compared by bytes only: {holds}")) && text.contains("files: the same"), "{text}");

    let (code, text, _) = compare(&a, &b, &[]);
    assert!(code == 1 && text.contains("~ partition root ") && text.contains("differ\n"), "{text}");
    for level in ["packages", "images", "charts", "config", "files"] {
        assert!(text.lines().any(|line| line.starts_with(&format!("{level}: not compared: ")) && line.contains(holds)), "{level}: {text}");
    }
    // Nobody may take what was not compared for equal.
    let (code, text, errors) = compare(&a, &b, &["--only", "packages,files"]);
    assert!(code == 4 && text.is_empty() && errors.contains("comparing the packages of") && errors.contains(holds), "{text}{errors}");
    let ours = world().write(dir.path(), "ours", OutputFormat::Qcow2);
    let (code, text, _) = compare(&ours, &b, &[]);
    assert!(code == 1 && text.contains("B: not read") && text.contains("packages: not compared: ") && text.contains("- partition root-a"), "{text}");
}

#[test]
fn a_database_of_packages_that_is_not_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, mut other) = (world(), world());
    other.root.retain(|path, _| !path.starts_with(DPKG));
    other.file("/usr/lib/sysimage/rpm/rpmdb.sqlite", 0o644, "SQLite format 3");
    let (a, b) = (ours.write(dir.path(), "a", OutputFormat::Raw), other.write(dir.path(), "b", OutputFormat::Raw));
    let (code, text, _) = compare(&a, &b, &[]);
    assert!(
        code == 1 && text.contains("packages: not compared: ") && text.contains("an RPM database") && text.contains("images: 2 the same"),
        "{text}"
    );
    let (code, _, errors) = compare(&a, &b, &["--only", "packages"]);
    assert!(code == 4 && errors.contains("b.raw: packages are in an RPM database, /usr/lib/sysimage/rpm"), "{errors}");
    let output = Command::new(BIN).arg("inspect").arg(&b).arg("--packages").output().unwrap();
    assert!(output.status.code() == Some(1) && output.stdout.is_empty(), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("an RPM database"));
}

#[test]
fn d2_a_file_that_is_cut_off_is_an_error_that_names_it_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let world = world();
    let good = world.write(dir.path(), "good", OutputFormat::Raw);
    for format in OutputFormat::ALL {
        let path = world.write(dir.path(), "cut", format);
        let length = fs::metadata(&path).unwrap().len();
        for rest in [length - 1, length - length / 20, length / 2] {
            File::options().write(true).open(&path).unwrap().set_len(rest).unwrap();
            let (code, text, errors) = compare(&good, &path, &[]);
            assert!(!matches!(code, 1 | 2), "{format:?} cut to {rest} of {length}: {code}: {text}{errors}");
            // Padding behind the disk may be missing: all of the disk was read then.
            if code == 0 && format != OutputFormat::Raw && rest > length / 2 {
                continue;
            }
            assert!(code != 0 && text.is_empty(), "{format:?} cut to {rest} of {length}: {text}");
            assert!(errors.contains(path.to_str().unwrap()), "{format:?}: {errors}");
        }
    }
}

#[test]
fn what_is_wrong_with_the_call_is_never_taken_for_a_difference() {
    let dir = tempfile::tempdir().unwrap();
    let (image, absent) = (world().write(dir.path(), "a", OutputFormat::Raw), dir.path().join("absent"));
    let text = dir.path().join("text");
    fs::write(&text, "no disk").unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    let empty = dir.path().join("empty");
    for (other, more, expected) in [
        (&absent, &[][..], "absent"),
        (&text, &[], "not a disk image"),
        (&empty, &[], "no artifact lies there"),
        (&image, &["--only", "colours"], "colours"),
        (&image, &["--no-such-option"], "--no-such-option"),
        (&image, &[image.to_str().unwrap()], "unexpected"),
    ] {
        let (code, out, errors) = compare(&image, other, more);
        assert!(code == 4 && out.is_empty() && errors.contains(expected), "{expected}: {code}: {out}{errors}");
        let (code, out, _) = compare(&image, other, &[more, &["--json"]].concat());
        assert_eq!((code, &json_of(&out)["error"]["exitCode"]), (4, &json!(4)), "{out}");
    }
    let alone = Command::new(BIN).args(["compare", image.to_str().unwrap()]).output().unwrap();
    assert_eq!(alone.status.code(), Some(4));
}

#[test]
fn result_folders_are_compared_by_their_artifacts_and_profiles() {
    let dir = tempfile::tempdir().unwrap();
    let world = world();
    let [a, b] = ["1.0.0", "1.1.0"].map(|version| dir.path().join(version));
    for (folder, format, zone) in [(&a, OutputFormat::Qcow2, "UTC"), (&b, OutputFormat::Iso, "Europe/Berlin")] {
        fs::create_dir(folder).unwrap();
        fs::rename(world.write(dir.path(), "site", format), folder.join(format!("site.{}", format.extension()))).unwrap();
        fs::write(folder.join("profile.resolved.yaml"), format!("name: site\ntime: {{zone: {zone}}}\npackages: [htop]\n")).unwrap();
    }
    let (code, text, errors) = compare(&a, &b, &["--json"]);
    let found = json_of(&text);
    assert_eq!((code, changes(&found, "config")), (1, vec!["changed setting time.zone".to_string()]), "{errors}");
    assert_eq!((&found["a"]["format"], &found["b"]["format"]), (&json!("qcow2"), &json!("iso")));
    assert_eq!(changes(&found, "disk"), Vec::<String>::new());
    let (code, text, _) = compare(&a, &b.join("site.iso"), &[]);
    assert_eq!(code, 0, "an artifact alone has no profile of its own beside the image's: {text}");
    assert_eq!(compare(&a, &a, &[]).0, 0);
}

#[test]
fn inspect_tells_loaders_kernels_packages_images_and_charts_of_all_formats() {
    let dir = tempfile::tempdir().unwrap();
    let world = world();
    for format in OutputFormat::ALL {
        let path = world.write(dir.path(), "image", format);
        let said = |more: &[&str]| String::from_utf8(good(Command::new(BIN).arg("inspect").arg(&path).args(more)).stdout).unwrap();
        let text = said(&[]);
        for line in [
            "loader: GRUB in MBR\n",
            "loader: GRUB in EFI/BOOT/BOOTX64.EFI\n",
            "kernel: 6.12.1-amd64 in slot-a/vmlinuz\n",
            "packages: 2, which --packages lists\n",
            "container images: 2\n    registry.example/pause:3.10\n    registry.example/web:1\n",
            "charts: 1\n    apps/metrics metrics 1.0.0\n",
            "largest files of the root:\n       2.9MiB  /usr/bin/tool\n",
        ] {
            assert!(text.contains(line), "{format:?}: {line}: {text}");
        }
        assert_eq!(said(&["--packages"]), "bash 5.2-1 amd64\ntool 1.0-1 amd64\n");
        assert_eq!(json_of(&said(&["--packages", "--json"]))[0], json!({"name": "bash", "architecture": "amd64", "version": "5.2-1"}));
    }
}
