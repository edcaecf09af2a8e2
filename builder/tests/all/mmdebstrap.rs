//! The configured tree against mmdebstrap's, made from the very same packages; and against itself under another user, umask, zone and core
//! count. Takes the mirror from the machine's apt sources.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use builder::assemble::configure::{Script, configure};
use builder::assemble::scratch;
use builder::assemble::unpack::{self, Unpacked};
use builder::store::Store;
use builder::tree::{Kind, Node, Tree, TreePath};
use layers::lock::Package;
use layers::units::{Bytes, Digest};

const INCLUDE: &str = "systemd-sysv,dbus,openssh-server,ca-certificates,nftables,iproute2";
const EPOCH: i64 = 1_780_000_000;

/// Paths whose difference from mmdebstrap's tree is meant, and why. A trailing `/` means all below, a trailing `*` all that begin so.
const DIFFERENT: &[(&str, &str)] = &[
    ("/dev/", "device nodes come from devtmpfs; an image needs none"),
    ("/etc/.pwd.lock", "an empty lock file"),
    ("/etc/apt/apt.conf.d/99mmdebstrap", "written by mmdebstrap itself, from this test's --aptopt"),
    ("/etc/apt/sources.list", "written by mmdebstrap itself; in our image a layer decides it"),
    ("/etc/fstab", "written by mmdebstrap itself, a comment; our mounts are units"),
    ("/etc/hostname", "copied by mmdebstrap from the build machine"),
    ("/etc/resolv.conf", "copied by mmdebstrap from the build machine"),
    ("/etc/group-", "former state of the file"),
    ("/etc/gshadow-", "former state of the file"),
    ("/etc/passwd-", "former state of the file"),
    ("/etc/shadow-", "former state of the file"),
    ("/etc/ssh/ssh_host_*", "random keys must not be shared by all machines of an image (D7)"),
    ("/etc/machine-id", "empty in both; mmdebstrap makes it anew as 0644, ours keeps systemd's 0444"),
    ("/run/lock", "a leftover: /run is a tmpfs on the machine, and was one for our scripts"),
    ("/run/lock/", "as /run/lock"),
    ("/var/cache/apt/archives/lock", "an empty lock file of apt, which never runs here"),
    ("/var/cache/apt/archives/partial", "apt gives it to its user on its first run"),
    ("/var/cache/apt/pkgcache.bin", "cache of an apt run"),
    ("/var/cache/apt/srcpkgcache.bin", "cache of an apt run"),
    ("/var/cache/debconf/config.dat-old", "former state of the file"),
    ("/var/cache/debconf/templates.dat-old", "former state of the file"),
    ("/var/lib/apt/extended_states", "apt's note of what it chose itself; our lock says that"),
    ("/var/lib/apt/lists/lock", "an empty lock file of apt, which never runs here"),
    ("/var/lib/apt/lists/partial", "apt gives it to its user on its first run"),
    ("/var/lib/dpkg/arch", "written by mmdebstrap itself; dpkg needs it for foreign architectures only"),
    ("/var/lib/dpkg/diversions-old", "former state of the file"),
    ("/var/lib/dpkg/lock", "an empty lock file"),
    ("/var/lib/dpkg/lock-frontend", "an empty lock file"),
    ("/var/lib/dpkg/status-old", "former state of the file"),
    ("/var/lib/dpkg/triggers/Lock", "an empty lock file"),
];

/// Files compared as a set of lines, because their order (and the account numbers in it) is the order of configuring, which apt chooses.
const LINES: [&str; 5] = ["/etc/group", "/etc/gshadow", "/etc/passwd", "/etc/shadow", "/var/lib/dpkg/triggers/File"];

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// mmdebstrap's tar and the packages it used, made once per target directory.
fn reference() -> PathBuf {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mmdebstrap");
    if dir.join("root.tar").exists() {
        return dir;
    }
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| scratch.path().join(name).display().to_string();
    fs::create_dir(path("debs")).unwrap();
    let source = format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {} trixie main", mirror());
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", &format!("--include={INCLUDE}"), "--skip=essential/unlink,cleanup/apt/cache"]);
    command.arg("--aptopt=APT::Keep-Downloaded-Packages \"true\"");
    command.arg(format!("--customize-hook=copy-out /var/cache/apt/archives {}", path("debs")));
    command.arg("--customize-hook=rm -f \"$1\"/var/cache/apt/archives/*.deb");
    command.args(["trixie", &path("root.tar"), &source]).env("SOURCE_DATE_EPOCH", EPOCH.to_string());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(scratch.keep(), &dir).unwrap();
    dir
}

/// The first archive that the machine's apt knows.
fn mirror() -> String {
    let output = Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().next().expect("apt has sources").trim_end_matches('/').to_string()
}

/// Puts all packages of a folder into the store, as a lock would list them.
fn lock(store: &Store, debs: &Path) -> Vec<Package> {
    let files = fs::read_dir(debs).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "deb"));
    let mut packages: Vec<_> = files
        .map(|file| {
            let bytes = fs::read(&file).unwrap();
            let sha256 = store.put_blob(&bytes).unwrap();
            let mut deb = builder::assemble::deb::Deb::open(std::io::Cursor::new(&bytes)).unwrap();
            let files = unpack::read_control(deb.control().unwrap()).unwrap();
            let control = unpack::Control { files, list: Vec::new() };
            let field = |name: &str| control.field(name).unwrap();
            Package {
                name: field("Package"),
                version: field("Version"),
                architecture: field("Architecture"),
                sha256,
                size: Bytes(bytes.len() as u64),
                suite: "trixie".into(),
                path: String::new(),
                source: None,
                wanted_by: Vec::new(),
            }
        })
        .collect();
    packages.sort();
    packages
}

fn ours(store: &Store, debs: &Path, scripts: &[Script]) -> Tree {
    scratch::use_executable(Path::new(env!("CARGO_BIN_EXE_chasi-bod")));
    let packages = lock(store, debs);
    let start = Instant::now();
    let unpacked = unpack::unpack_all(store, &packages, &|_| ()).unwrap();
    eprintln!("unpacked {} packages, {} MB, in {:?}", packages.len(), packages.iter().map(|p| p.size.0).sum::<u64>() >> 20, start.elapsed());
    let start = Instant::now();
    let both: Vec<(Package, Unpacked)> = packages.into_iter().zip(unpacked).collect();
    let tree = configure(store, &both, &[], scripts, EPOCH).unwrap_or_else(|e| panic!("{e} {:?}", e.hint()));
    eprintln!("configured in {:?}, {} entries", start.elapsed(), tree.entries.len());
    tree
}

/// An image as this test sees it: nodes, digests of files, texts of the files in `LINES`.
struct Seen {
    nodes: BTreeMap<TreePath, (Node, Option<Digest>)>,
    texts: BTreeMap<String, String>,
}

impl Seen {
    fn of(store: &Store, tree: &Tree) -> Self {
        let content = |node: &Node| match &node.kind {
            Kind::File(c) => Some(c.clone()),
            Kind::HardLink(other) => match &tree.get(other).unwrap().kind {
                Kind::File(c) => Some(c.clone()),
                _ => None,
            },
            _ => None,
        };
        let nodes = tree.entries.iter().map(|(p, n)| (p.clone(), (n.clone(), content(n).map(|c| c.sha256)))).collect();
        let texts = LINES.iter().filter_map(|l| Some((l.to_string(), String::from_utf8(store.read(&content(tree.at(l)?)?).unwrap()).unwrap())));
        Self { nodes, texts: texts.collect() }
    }

    /// Read by the tar crate alone, not by the code under test.
    fn of_tar(file: &Path) -> Self {
        let mut archive = tar::Archive::new(fs::File::open(file).unwrap());
        let (mut nodes, mut texts) = (BTreeMap::<TreePath, (Node, Option<Digest>)>::new(), BTreeMap::new());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = TreePath::new(entry.path_bytes()).unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let link = entry.link_name_bytes().map(|b| b.into_owned()).unwrap_or_default();
            let content = builder::tree::Content { sha256: Digest::of(&bytes), size: 0, pack: Digest::of(b""), offset: 0 };
            let (kind, digest) = match entry.header().entry_type() {
                tar::EntryType::Directory => (Kind::Directory, None),
                tar::EntryType::Symlink => (Kind::Symlink(link), None),
                tar::EntryType::Link => (Kind::HardLink(TreePath::new(&link).unwrap()), nodes[&TreePath::new(&link).unwrap()].1),
                tar::EntryType::Char => (Kind::CharDevice(0, 0), None),
                tar::EntryType::Regular => (Kind::File(content.clone()), Some(content.sha256)),
                other => panic!("{path}: {other:?}"),
            };
            let header = entry.header();
            let mut node = Node::new(kind, header.mode().unwrap() as u16 & 0o7777, header.mtime().unwrap() as i64);
            (node.uid, node.gid) = (header.uid().unwrap() as u32, header.gid().unwrap() as u32);
            for record in entry.pax_extensions().unwrap().into_iter().flatten() {
                let record = record.unwrap();
                if let Some(name) = record.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                    node.xattrs.insert(name.to_vec(), record.value_bytes().to_vec());
                }
            }
            if LINES.contains(&path.to_string().as_str()) {
                texts.insert(path.to_string(), String::from_utf8(bytes).unwrap());
            }
            nodes.insert(path, (node, digest));
        }
        Self { nodes, texts }
    }

    /// The name of an account by its number; numbers that are not given while configuring stay numbers.
    fn account(&self, file: &str, id: u32) -> String {
        let line = self.texts[file].lines().find(|l| id >= 100 && l.split(':').nth(2) == Some(&id.to_string()));
        line.and_then(|l| l.split(':').next()).map_or(id.to_string(), Into::into)
    }

    /// One entry in words, for comparing and showing.
    fn words(&self, path: &TreePath) -> Option<String> {
        let (node, digest) = self.nodes.get(path)?;
        let mut out = match &node.kind {
            Kind::Directory => "directory".to_string(),
            Kind::File(_) | Kind::HardLink(_) => format!("file {} {}", self.content(path, *digest), node.mtime),
            // The same unit through the merged /usr: deb-systemd-helper writes the one or the other depending on what it finds first.
            Kind::Symlink(target) => {
                format!("link to {}", String::from_utf8_lossy(target).replace("/usr/lib/systemd/system/", "/lib/systemd/system/"))
            }
            other => format!("{other:?}"),
        };
        let _ = write!(out, " {:o} {}:{}", node.mode, self.account("/etc/passwd", node.uid), self.account("/etc/group", node.gid));
        for (name, value) in &node.xattrs {
            let _ = write!(out, " {}={}", String::from_utf8_lossy(name), Digest::of(value).short());
        }
        Some(out)
    }

    fn content(&self, path: &TreePath, digest: Option<Digest>) -> String {
        let Some(text) = self.texts.get(&path.to_string()) else { return digest.unwrap().short() };
        let without_numbers = |line: &str| match line.split(':').collect::<Vec<_>>()[..] {
            [name, password, _, _, ref rest @ ..] if rest.len() == 3 => format!("{name}:{password}:{}", rest.join(":")),
            [name, password, _, members] => format!("{name}:{password}:{members}"),
            _ => line.to_string(),
        };
        let mut lines: Vec<_> = text.lines().map(without_numbers).collect();
        lines.sort();
        lines.join("\n    ")
    }
}

fn reason(path: &TreePath) -> Option<&'static str> {
    let text = path.to_string();
    DIFFERENT
        .iter()
        .find(|(p, _)| *p == text || ((p.ends_with('/') || p.ends_with('*')) && text.starts_with(p.trim_end_matches('*'))))
        .map(|(_, r)| *r)
}

#[test]
fn the_configured_tree_equals_mmdebstraps_but_for_listed_differences() {
    let reference = reference();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let tree = ours(&store, &reference.join("debs/archives"), &[]);
    let (ours, theirs) = (Seen::of(&store, &tree), Seen::of_tar(&reference.join("root.tar")));
    let mut unlisted = String::new();
    let paths: std::collections::BTreeSet<_> = ours.nodes.keys().chain(theirs.nodes.keys()).collect();
    for path in paths {
        let (a, b) = (ours.words(path), theirs.words(path));
        if a != b && reason(path).is_none() {
            let shown = |s: Option<String>| s.unwrap_or("nothing".into());
            let _ = writeln!(unlisted, "{path}\n  ours   {}\n  theirs {}", shown(a), shown(b));
        }
    }
    if let Ok(keep) = std::env::var("CHASI_BOD_KEEP") {
        for (path, node) in &tree.entries {
            if let Kind::File(c) = &node.kind {
                let to = Path::new(&keep).join(&path.to_string()[1..]);
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::write(to, store.read(c).unwrap()).unwrap();
            }
        }
    }
    assert!(unlisted.is_empty(), "unlisted differences:\n{unlisted}");
}

/// What a layer's script may do that is hard to read back: other owners, closed folders, capabilities, links, pipes, sockets' absence.
fn hard_script() -> Vec<Script> {
    let text = "mkdir -m 0700 /srv/closed; echo secret > /srv/closed/file; chown -R 33:65534 /srv/closed; chmod 0600 /srv/closed/file
        cp /bin/true /srv/capable; chown 7:8 /srv/capable; setcap cap_net_raw+ep /srv/capable
        echo one > /srv/b; ln /srv/b /srv/a; mkfifo -m 0640 /srv/pipe; ln -s /nowhere /srv/link; chmod 4755 /srv/a
        date > /tmp/gone; date > /run/gone; echo \"$SOURCE_DATE_EPOCH $TZ $(umask) $(hostname) $(id -u) $(nproc >/dev/null; echo x)\" > /srv/surroundings
        test ! -e /sys/kernel; test -z \"$(ls /sys)\"; ! grep -v -e lo: -e '|' /proc/net/dev";
    vec![Script { name: "hard".into(), text: text.into() }]
}

/// Not a test by itself: the other one runs it as another user.
#[test]
#[ignore = "run by the test below as another user"]
fn child_configures() {
    let var = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    scratch::use_executable(&var("CHASI_BOD_EXE"));
    let store = Store::open(&var("CHASI_BOD_TEST_STORE")).unwrap();
    let tree = ours(&store, &var("CHASI_BOD_TEST_DEBS"), &hard_script());
    fs::write(var("CHASI_BOD_TEST_STORE").join("answer"), fingerprint(&store, &tree)).unwrap();
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0, "scratch is gone although other ids owned files");
}

/// Everything about a tree: every entry, and the bytes of the packs that hold what scripts wrote.
fn fingerprint(store: &Store, tree: &Tree) -> String {
    let packs: std::collections::BTreeSet<_> =
        tree.entries.values().filter_map(|n| if let Kind::File(c) = &n.kind { Some(c.pack) } else { None }).collect();
    let mut out = String::new();
    for (path, node) in &tree.entries {
        let _ = writeln!(out, "{path} {node:?}");
    }
    for pack in packs {
        let _ = writeln!(out, "pack {} {}", pack.short(), Digest::of(&fs::read(store.pack(&pack)).unwrap()).short());
    }
    out
}

/// B9 for the tree: as whoever runs the tests, and as an ordinary user with another umask, zone, language and one core.
#[test]
fn b9_the_same_tree_comes_from_root_and_from_an_ordinary_user() {
    let debs = reference().join("debs/archives");
    let dir = tempfile::tempdir().unwrap();
    let is_root = rustix::process::getuid().is_root();
    let place = |name: &str| dir.path().join(name);
    fs::copy(env!("CARGO_BIN_EXE_chasi-bod"), place("chasi-bod")).unwrap();
    fs::copy(std::env::current_exe().unwrap(), place("test")).unwrap();
    fs::create_dir(place("debs")).unwrap();
    for entry in fs::read_dir(&debs).unwrap().map(|e| e.unwrap()).filter(|e| e.path().extension().is_some_and(|e| e == "deb")) {
        fs::copy(entry.path(), place("debs").join(entry.file_name())).unwrap();
    }
    fs::create_dir(place("store")).unwrap();
    let mut command = if is_root {
        let user = "chasi-bod-test";
        let _ = Command::new("useradd").args(["--create-home", user]).output().unwrap();
        assert!(Command::new("chown").args(["-R", user]).arg(dir.path()).status().unwrap().success());
        let mut command = Command::new("runuser");
        command.args(["-u", user, "--"]);
        command
    } else {
        Command::new("env")
    };
    let line = format!("umask 077; exec taskset -c 0 {} --exact mmdebstrap::child_configures --ignored --nocapture", place("test").display());
    command.args(["sh", "-c", &line]).current_dir(dir.path());
    command.envs([("TZ", "Asia/Tokyo"), ("LANG", "de_DE.UTF-8"), ("RAYON_NUM_THREADS", "1")]);
    command.envs([("CHASI_BOD_EXE", place("chasi-bod")), ("CHASI_BOD_TEST_STORE", place("store")), ("CHASI_BOD_TEST_DEBS", place("debs"))]);
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();

    let own = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::open(own.path()).unwrap();
    let tree = ours(&store, &debs, &hard_script());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let (a, b) = (fingerprint(&store, &tree), fs::read_to_string(place("store/answer")).unwrap());
    let different: Vec<_> = a.lines().zip(b.lines()).filter(|(a, b)| a != b).take(20).collect();
    assert!(different.is_empty() && a.len() == b.len(), "{different:#?}");
    assert_hard(&store, &tree);
}

fn assert_hard(store: &Store, tree: &Tree) {
    let node = |path: &str| tree.at(path).unwrap_or_else(|| panic!("{path} is missing"));
    let owner = |path: &str| (node(path).mode, node(path).uid, node(path).gid);
    assert_eq!(owner("srv/closed"), (0o700, 33, 65534));
    assert_eq!(owner("srv/closed/file"), (0o600, 33, 65534));
    assert_eq!(owner("srv/capable"), (0o755, 7, 8));
    assert_eq!(node("srv/capable").xattrs[b"security.capability".as_slice()][..4], [1, 0, 0, 2], "version 2, effective");
    assert_eq!(node("srv/b").kind, Kind::HardLink(TreePath::new("srv/a").unwrap()));
    assert_eq!((owner("srv/a"), node("srv/a").mtime), ((0o4755, 0, 0), EPOCH));
    assert_eq!((&node("srv/pipe").kind, node("srv/pipe").mode), (&Kind::Fifo, 0o640));
    assert_eq!(node("srv/link").kind, Kind::Symlink(b"/nowhere".to_vec()));
    let Kind::File(content) = &node("srv/surroundings").kind else { panic!() };
    assert_eq!(store.read(content).unwrap(), format!("{EPOCH} UTC 0022 chasi-bod 0 x\n").into_bytes());
    assert!(tree.at("tmp/gone").is_none() && tree.at("run/gone").is_none() && tree.at("usr/sbin/policy-rc.d").is_none());
}

/// B5 for what is real: every entry of the archive's packages, as dpkg-deb hands it to GNU tar.
#[test]
fn b5_listings_and_contents_equal_dpkg_deb_and_gnu_tar() {
    let debs = reference().join("debs/archives");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut packages = lock(&store, &debs);
    packages.sort_by_key(|p| p.size);
    let packages: Vec<_> = packages.into_iter().rev().step_by(5).collect();
    assert!(packages.len() >= 20);
    for (package, unpacked) in packages.iter().zip(unpack::unpack_all(&store, &packages, &|_| ()).unwrap()) {
        let deb = store.blob(&package.sha256);
        let pipe = |tar: &str| {
            Command::new("sh").args(["-c", &format!("dpkg-deb --fsys-tarfile {} | TZ=UTC tar {tar} -f -", deb.display())]).output().unwrap().stdout
        };
        let list: Vec<TreePath> = unpacked.control.list.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| TreePath::new(l).unwrap()).collect();
        let ours: Vec<String> = list.iter().map(|p| line(p, unpacked.tree.get(p).unwrap())).collect();
        let theirs = String::from_utf8(pipe("--numeric-owner --quoting-style=literal -tv")).unwrap();
        let theirs: Vec<String> = theirs.lines().map(without_time).collect();
        assert_eq!(ours, theirs, "{}", package.name);
        let mut contents = Vec::new();
        for path in &list {
            if let Kind::File(c) = &unpacked.tree.get(path).unwrap().kind {
                contents.extend(store.read(c).unwrap());
            }
        }
        assert!(contents == pipe("-xO"), "{}: contents differ", package.name);
    }
}

/// `mode owner size path` of a `tar -tv` line, one space each.
fn without_time(line: &str) -> String {
    let words: Vec<_> = line.split_whitespace().collect();
    format!("{} {} {} {}", words[0], words[1], words[2], words[5..].join(" "))
}

fn line(path: &TreePath, node: &Node) -> String {
    let (kind, size, end) = match &node.kind {
        Kind::Directory => ('d', 0, String::from("/")),
        Kind::File(c) => ('-', c.size, String::new()),
        Kind::Symlink(target) => ('l', 0, format!(" -> {}", String::from_utf8_lossy(target))),
        Kind::HardLink(other) => ('h', 0, format!(" link to .{other}")),
        other => panic!("{other:?}"),
    };
    let mut mode: Vec<char> = (0..9).map(|i| if node.mode & (0o400 >> i) == 0 { '-' } else { ['r', 'w', 'x'][i % 3] }).collect();
    for (bit, at, letter) in [(0o4000, 2, 's'), (0o2000, 5, 's'), (0o1000, 8, 't')] {
        if node.mode & bit != 0 {
            mode[at] = if mode[at] == 'x' { letter } else { letter.to_ascii_uppercase() };
        }
    }
    let path = if path.is_root() { "./".to_string() } else { format!(".{path}{end}") };
    let path = path.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{kind}{} {}/{} {size} {path}", mode.iter().collect::<String>(), node.uid, node.gid)
}

#[test]
fn a_failed_postinst_names_package_and_script_and_keeps_its_log() {
    let debs = reference().join("debs/archives");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (more, built) = (dir.path().join("debs"), dir.path().join("broken"));
    fs::create_dir(&more).unwrap();
    fs::create_dir_all(built.join("DEBIAN")).unwrap();
    fs::write(built.join("DEBIAN/control"), "Package: broken\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: x\n").unwrap();
    fs::write(built.join("DEBIAN/postinst"), "#!/bin/sh\necho the reason is here\nexit 3\n").unwrap();
    Command::new("chmod").arg("755").arg(built.join("DEBIAN/postinst")).status().unwrap();
    let made = Command::new("dpkg-deb").args(["--root-owner-group", "-b"]).arg(&built).arg(more.join("broken.deb")).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    scratch::use_executable(Path::new(env!("CARGO_BIN_EXE_chasi-bod")));
    let store = Store::open(&dir.path().join("store")).unwrap();
    let mut packages = lock(&store, &debs);
    packages.extend(lock(&store, &more));
    let unpacked = unpack::unpack_all(&store, &packages, &|_| ()).unwrap();
    let both: Vec<_> = packages.into_iter().zip(unpacked).collect();
    let error = configure(&store, &both, &[], &[], EPOCH).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("package broken, script postinst") && text.contains("the reason is here"), "{text}");
    let log = error.hint().unwrap().rsplit(' ').next().unwrap().to_string();
    assert!(fs::read_to_string(log).unwrap().contains("the reason is here"));
}

#[test]
fn a_tool_runs_in_an_unpacked_root_with_a_work_folder_and_a_time_limit() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    scratch::use_executable(Path::new(env!("CARGO_BIN_EXE_chasi-bod")));
    let store = Store::open(&dir.path().join("store")).unwrap();
    let mut packages = lock(&store, &reference().join("debs/archives"));
    packages.retain(|p| {
        [
            "base-files",
            "dash",
            "coreutils",
            "libc6",
            "libselinux1",
            "libacl1",
            "libattr1",
            "libpcre2-8-0",
            "libgmp10",
            "libssl3t64",
            "zlib1g",
            "libzstd1",
            "libcap2",
            "libsystemd0",
        ]
        .contains(&&*p.name)
    });
    let unpacked = unpack::unpack_all(&store, &packages, &|_| ()).unwrap();
    let both: Vec<_> = packages.into_iter().zip(unpacked).collect();
    let root = scratch::Root::materialize(&store, &builder::assemble::merge::merge(&both).unwrap().tree).unwrap();
    let work = dir.path().join("work");
    fs::create_dir(&work).unwrap();
    fs::write(work.join("in"), "bytes").unwrap();
    let options = scratch::Options::new(EPOCH);
    let output = root.run_with_work(&["sh", "-c", "cat /work/in /work/in > /work/out; echo said; exit 7"], &work, &options).unwrap();
    assert_eq!((output.status, output.log.as_str()), (7, "said\n"));
    assert_eq!(fs::read_to_string(work.join("out")).unwrap(), "bytesbytes");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(work.join("out")).unwrap()), rustix::process::getuid().as_raw());
    // Killed meanwhile, its scratch folder would be found by its owner.
    let said = std::thread::scope(|threads| {
        let wait = "> /work/begun; until test -e /work/seen; do sleep 0.1; done";
        let running = threads.spawn(|| root.run_with_work(&["sh", "-c", wait], &root.work(), &options));
        let work = root.work();
        while !work.join("begun").exists() && !running.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(work.parent().unwrap()).unwrap());
        fs::write(work.join("seen"), "").unwrap();
        (owner, running.join().unwrap().unwrap().status)
    });
    assert_eq!(said, (rustix::process::getuid().as_raw(), 0));
    let short = scratch::Options { limit: std::time::Duration::from_millis(300), ..options.clone() };
    let error = root.run(&["sh", "-c", "echo begun; sleep 1000"], &short).unwrap_err().to_string();
    assert!(error.contains("no end after") && error.contains("begun"), "{error}");
    let error = root.run(&["no-such-tool"], &options).unwrap_err().to_string();
    assert!(error.contains("no-such-tool"), "{error}");
}

/// Figures for a folder of packages (`CHASI_BOD_TEST_DEBS`), a kernel without initramfs tools among them.
#[test]
#[ignore = "a measurement, run by hand"]
fn measure() {
    scratch::use_executable(Path::new(env!("CARGO_BIN_EXE_chasi-bod")));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let packages = lock(&store, &PathBuf::from(std::env::var_os("CHASI_BOD_TEST_DEBS").unwrap()));
    let time = |what: &str, start: Instant| eprintln!("{what}: {:?}", start.elapsed());
    let start = Instant::now();
    let unpacked = unpack::unpack_all(&store, &packages, &|_| ()).unwrap();
    time("unpack", start);
    let start = Instant::now();
    unpack::unpack_all(&store, &packages, &|_| ()).unwrap();
    time("unpack again", start);
    let both: Vec<_> = packages.into_iter().zip(unpacked).collect();
    let tree = builder::assemble::merge::merge(&both).unwrap().tree;
    let start = Instant::now();
    let root = scratch::Root::materialize(&store, &tree).unwrap();
    time("materialise", start);
    let start = Instant::now();
    let mut pack = store.new_pack(Digest::of(b"measure")).unwrap();
    let back = root.read_back(&tree, EPOCH, &|_, _| builder::assemble::readback::Fate::Keep, &mut pack).unwrap();
    time("read back", start);
    assert_eq!(back.entries.len(), tree.entries.len());
    let start = Instant::now();
    drop(root);
    time("remove", start);
    let start = Instant::now();
    let initramfs = builder::assemble::configure::Assumed { name: "chasi-bod-init".into(), provides: vec!["linux-initramfs-tool".into()] };
    let tree = configure(&store, &both, &[initramfs], &[], EPOCH).unwrap_or_else(|e| panic!("{e} {:?}", e.hint()));
    time("configure", start);
    eprintln!("{} packages, {} entries", both.len(), tree.entries.len());
}
