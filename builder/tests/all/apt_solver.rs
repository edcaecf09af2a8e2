//! Against the machine's own mirror: our package sets must be apt's, name by name and version by version. apt runs unprivileged, with a
//! configuration of its own, and reads the very index files that we fetched and verified.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Instant, SystemTime};

use builder::progress::Progress;
use builder::source::deb::index::Index;
use builder::source::deb::solve::{Base, Source, Universe, solve};
use builder::source::deb::{Archive, Mirrors, Offline, Request, Update, Updates, fetch, keyring, lock};
use builder::source::http::{Client, Limits};
use builder::store::Store;
use layers::lock::Lock;
use layers::profile::Debian;
use layers::units::Digest;

struct World {
    dir: tempfile::TempDir,
    store: Store,
    progress: Progress,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store, progress: Progress::stderr() }
    }

    fn archive(&self) -> Archive<'_> {
        let root = Path::new("/");
        Archive {
            store: &self.store,
            mirrors: Mirrors::find(root, &Debian::default()).unwrap(),
            keyring: keyring(root, None).unwrap(),
            http: Client::new(Limits::default()),
            offline: Offline::Allowed,
            progress: &self.progress,
            now: SystemTime::now(),
        }
    }
}

fn request(base: Base, packages: &str) -> Request {
    Request {
        suite: "trixie".into(),
        components: vec!["main".into()],
        updates: Updates::Taken,
        architecture: "amd64".into(),
        base,
        packages: packages.split_whitespace().map(|n| (n.to_string(), vec!["test".to_string()])).collect(),
        ..Request::default()
    }
}

/// One world for all comparisons: its store, and an apt that reads what the store fetched.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let world = World::new();
    let cold = Instant::now();
    lock(&world.archive(), &request(Base::Minbase, ""), None, &Update::None).unwrap();
    println!("lock with cold store: {:?}", cold.elapsed());
    prepare_apt(&world);
    world
});

/// Three local repositories out of the store's blobs, and an apt configuration that knows nothing else.
fn prepare_apt(world: &World) {
    let root = world.dir.path().join("apt");
    for dir in ["lists/partial", "etc/apt.conf.d", "etc/preferences.d", "cache/archives/partial", "etc"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let mut sources = String::new();
    for (n, blob) in fs::read_dir(world.store.root().join("blobs")).unwrap().map(|e| e.unwrap().path()).enumerate() {
        if !fs::read(&blob).unwrap().starts_with(b"\xfd7zXZ") {
            continue;
        }
        let repository = root.join(format!("repository-{n}"));
        fs::create_dir(&repository).unwrap();
        fs::copy(&blob, repository.join("Packages.xz")).unwrap();
        sources += &format!("deb [trusted=yes] file:{} ./\n", repository.display());
    }
    assert_eq!(sources.lines().count(), 3, "suite, updates and security");
    fs::write(root.join("sources.list"), sources).unwrap();
    fs::write(root.join("status"), "").unwrap();
    let at = |name: &str| root.join(name).display().to_string();
    let user = String::from_utf8(builder::exec::run(Command::new("id").arg("-un")).unwrap().stdout).unwrap();
    let config = format!(
        "Dir::Etc \"{}\";\nDir::Etc::SourceList \"{}\";\nDir::Etc::SourceParts \"/dev/null\";\nDir::State::Lists \"{}\";\nDir::State::Status \"{}\";\n\
         Dir::State::Extended_States \"{}\";\nDir::Cache \"{}\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
         APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"{}\";\nAcquire::Languages \"none\";\n",
        at("etc"),
        at("sources.list"),
        at("lists"),
        at("status"),
        at("extended"),
        at("cache"),
        user.trim()
    );
    fs::write(root.join("apt.conf"), config).unwrap();
    apt(world, &["update"]);
}

fn apt(world: &World, args: &[&str]) -> String {
    let mut command = Command::new("apt-get");
    command.env("APT_CONFIG", world.dir.path().join("apt/apt.conf")).env("LC_ALL", "C").args(args);
    String::from_utf8(builder::exec::run(&mut command).unwrap().stdout).unwrap()
}

/// What apt would install: name to version.
fn apt_set(base: Base, list: &str) -> BTreeMap<String, String> {
    let mut args = vec!["-s", "--no-install-recommends", "install"];
    if base == Base::Minbase {
        args.extend(REQUIRED.iter().map(String::as_str));
    }
    args.extend(list.split_whitespace());
    let line = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
        Some((name.to_string(), rest.split_whitespace().next()?.to_string()))
    };
    apt(&WORLD, &args).lines().filter_map(line).collect()
}

/// Essential and required packages as apt lists them.
static REQUIRED: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut command = Command::new("apt-cache");
    command.env("APT_CONFIG", WORLD.dir.path().join("apt/apt.conf")).arg("dumpavail");
    let output = String::from_utf8(builder::exec::run(&mut command).unwrap().stdout).unwrap();
    let wanted = |s: &&str| s.lines().any(|l| l == "Essential: yes" || l == "Priority: required");
    let names = output.split("\n\n").filter(wanted).map(|s| s.lines().find_map(|l| l.strip_prefix("Package: ")).unwrap().to_string());
    names.collect()
});

fn our_set(lock: &Lock) -> BTreeMap<String, String> {
    lock.packages.iter().map(|p| (p.name.clone(), p.version.clone())).collect()
}

fn compare(base: Base, list: &str) {
    let theirs = apt_set(base, list);
    let start = Instant::now();
    let ours = our_set(&lock(&WORLD.archive(), &request(base, list), None, &Update::None).unwrap());
    println!("{} packages, locked in {:?} with warm store", ours.len(), start.elapsed());
    let only_ours: Vec<_> = ours.iter().filter(|(n, v)| theirs.get(*n) != Some(v)).collect();
    let only_theirs: Vec<_> = theirs.iter().filter(|(n, v)| ours.get(*n) != Some(v)).collect();
    assert!(only_ours.is_empty() && only_theirs.is_empty(), "for `{list}`\nonly ours: {only_ours:?}\nonly apt's: {only_theirs:?}");
    assert!(ours.len() > list.split_whitespace().count() / 2);
}

#[test]
fn a_machine_with_systemd_and_ssh_is_as_apt_has_it() {
    compare(
        Base::Minbase,
        "systemd systemd-sysv systemd-resolved dbus openssh-server iproute2 kmod udev sudo ca-certificates curl less nano procps e2fsprogs dosfstools gdisk cryptsetup-bin erofs-utils",
    );
}

#[test]
fn a_kubernetes_node_is_as_apt_has_it() {
    compare(
        Base::Minbase,
        "linux-image-cloud-amd64 systemd-sysv containerd runc nftables ca-certificates dbus conntrack ethtool socat iptables ipset",
    );
}

#[test]
fn alternatives_and_virtual_packages_are_as_apt_has_them() {
    compare(Base::Minbase, "default-mta python3 git mailutils debhelper cron logrotate man-db emacs-nox default-jre-headless postgresql nginx");
    compare(Base::Minbase, "exim4 mutt python3-pip build-essential network-manager apache2 php mariadb-server");
}

#[test]
fn b7_what_apt_refuses_we_refuse_and_name() {
    for (list, says) in [
        ("exim4 dma", vec!["exim4", "dma"]),
        ("awk", vec!["awk is a virtual package", "gawk", "mawk"]),
        ("systemd-syssv", vec!["no package systemd-syssv", "systemd-sysv"]),
        ("usrmerge usr-is-merged systemd-sysv sysvinit-core", vec!["systemd-sysv", "sysvinit-core"]),
    ] {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", WORLD.dir.path().join("apt/apt.conf")).args(["-s", "--no-install-recommends", "install"]);
        assert!(builder::exec::run(command.args(list.split_whitespace())).is_err(), "apt accepts {list}");
        let error = lock(&WORLD.archive(), &request(Base::Minbase, list), None, &Update::None).unwrap_err();
        println!("{error}\n");
        assert!(says.iter().all(|s| error.to_string().contains(s)), "{error}");
        assert_eq!(error.fault(), layers::Fault::Input);
    }
}

#[test]
fn a_tool_root_without_base_is_as_apt_has_it() {
    compare(Base::None, "grub-pc-bin grub-efi-amd64-bin grub-common mtools xorriso erofs-utils e2fsprogs dosfstools qemu-utils");
}

#[test]
fn b9_the_same_archive_gives_the_same_lock() {
    let list = request(Base::Minbase, "linux-image-cloud-amd64 systemd-sysv containerd default-mta python3 git");
    let first = lock(&WORLD.archive(), &list, None, &Update::None).unwrap().to_yaml().unwrap();
    for _ in 0..3 {
        assert_eq!(lock(&WORLD.archive(), &list, None, &Update::None).unwrap().to_yaml().unwrap(), first);
    }
    assert_eq!(lock(&WORLD.archive(), &list, Some(&Lock::from_yaml(&first, "x").unwrap()), &Update::None).unwrap().to_yaml().unwrap(), first);
}

#[test]
fn a_node_is_fetched_whole_from_the_machines_mirror() {
    let world = World::new();
    let mut list = request(Base::Minbase, "linux-image-cloud-amd64 systemd-sysv containerd runc nftables ca-certificates dbus");
    list.tools = vec!["grub-pc-bin".into(), "grub-efi-amd64-bin".into()];
    let start = Instant::now();
    let lock = lock(&world.archive(), &list, None, &Update::None).unwrap();
    let locked = start.elapsed();
    fetch(&world.archive(), &lock).unwrap();
    let bytes: u64 = lock.packages.iter().chain(&lock.tools).map(|p| p.size.0).sum();
    println!(
        "{} packages and {} tools, {bytes} bytes: locked in {locked:?}, fetched in {:?}",
        lock.packages.len(),
        lock.tools.len(),
        start.elapsed() - locked
    );
    for package in lock.packages.iter().chain(&lock.tools) {
        let file = world.store.blob(&package.sha256);
        assert_eq!(Digest::of(&fs::read(&file).unwrap()), package.sha256, "{}", package.name);
    }
    let sample = lock.packages.iter().find(|p| p.name == "containerd").unwrap();
    let field = |name: &str| {
        let output = builder::exec::run(Command::new("dpkg-deb").arg("-f").arg(world.store.blob(&sample.sha256)).arg(name)).unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    };
    assert_eq!((field("Package"), field("Version")), ("containerd".into(), sample.version.clone()));
    fetch(&Archive { offline: Offline::Required, ..world.archive() }, &lock).unwrap();
}

#[test]
fn choosing_is_quick() {
    let dir = WORLD.dir.path().join("apt");
    let repositories = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path().join("Packages.xz")).filter(|p| p.exists());
    let read = |p| Index::read(builder::exec::run(Command::new("xzcat").arg(p)).unwrap().stdout.as_slice(), "amd64").unwrap();
    let indices: Vec<_> = repositories.map(read).collect();
    let sources: Vec<_> = indices.iter().map(|index| Source { suite: "trixie", index }).collect();
    let (nothing, keep) = (Index::default(), BTreeMap::new());
    let start = Instant::now();
    let universe = Universe::new(&sources, &nothing, &keep).unwrap();
    let collected = start.elapsed();
    let found = solve(&universe, Base::Minbase, &["linux-image-cloud-amd64", "systemd-sysv", "containerd", "default-mta", "python3", "git"]).unwrap();
    println!("collected in {collected:?}, {} packages chosen in {:?}", found.len(), start.elapsed() - collected);
    assert!(found.len() > 100);
}

#[test]
fn the_parsed_index_agrees_with_an_independent_reading() {
    let dir = WORLD.dir.path().join("apt");
    let repositories = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path().join("Packages.xz")).filter(|p| p.exists());
    for file in repositories {
        let output = builder::exec::run(Command::new("xzcat").arg(&file)).unwrap().stdout;
        let index = Index::read(output.as_slice(), "amd64").unwrap();
        let text = String::from_utf8(output).unwrap();
        let names: Vec<_> = text.lines().filter_map(|l| l.strip_prefix("Package: ")).collect();
        let sizes: Vec<u64> = text.lines().filter_map(|l| l.strip_prefix("Size: ")).map(|s| s.parse().unwrap()).collect();
        assert_eq!(index.packages().map(|p| p.name()).collect::<Vec<_>>(), names);
        assert_eq!(index.packages().map(|p| p.size()).collect::<Vec<_>>(), sizes);
    }
}
