//! The Debian source against a small archive of our own on loopback, signed by a key made here, served by a server that misbehaves on request.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use builder::progress::Progress;
use builder::source::deb::index::Index;
use builder::source::deb::solve::Base;
use builder::source::deb::{Archive, Assumed, Fetched, Mirrors, Offline, Request, Update, Updates, fetch, lock};
use builder::source::http::{Client, Limits};
use builder::store::Store;
use layers::lock::Lock;
use layers::units::Digest;
use sequoia_openpgp::cert::{Cert, CertBuilder};
use sequoia_openpgp::policy::StandardPolicy;
use sequoia_openpgp::serialize::Serialize;
use sequoia_openpgp::serialize::stream::{Message, Signer};

/// Tue, 01 Sep 2026 12:00:00 UTC: all tests happen then.
const NOW: u64 = 1_788_264_000;
const TODAY: &str = "Tue, 01 Sep 2026 11:00:00 UTC";
const YESTERDAY: &str = "Mon, 31 Aug 2026 11:00:00 UTC";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// How the server answers one request.
#[derive(Clone, Debug)]
enum Fault {
    None,
    Status(u16),
    /// Ends the connection after so many bytes of the body.
    Cut(usize),
    /// Sends one byte every 20 ms.
    Drip,
    /// Answers 200 with everything although a range was asked for.
    IgnoreRange,
    /// Answers 206 with a range that is one off.
    WrongRange,
    /// Sends these bytes instead.
    Other(Vec<u8>),
}

type Choose = Box<dyn FnMut(&str, usize) -> Fault + Send>;

struct State {
    files: BTreeMap<String, Vec<u8>>,
    log: Vec<(String, Option<String>)>,
    choose: Choose,
}

/// A server of files on loopback.
struct Server {
    state: Arc<Mutex<State>>,
    url: String,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { files: BTreeMap::new(), log: Vec::new(), choose: Box::new(|_, _| Fault::None) }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                // A client that hangs up early is part of the game.
                std::thread::spawn(move || serve(stream, &state).ok());
            }
        });
        Self { state, url }
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        self.state.lock().unwrap().files.insert(path.into(), bytes.to_vec());
    }

    fn remove(&self, path: &str) {
        assert!(self.state.lock().unwrap().files.remove(path).is_some(), "{path}");
    }

    /// From now on `choose` decides by path and by how often that path was asked for since.
    fn misbehave(&self, choose: impl FnMut(&str, usize) -> Fault + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        state.log.clear();
        state.choose = Box::new(choose);
    }

    fn asked(&self, path: &str) -> Vec<Option<String>> {
        self.state.lock().unwrap().log.iter().filter(|(p, _)| p == path).map(|(_, r)| r.clone()).collect()
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut range) = (String::new(), None);
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_string();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("range: ") {
            range = Some(value.trim().to_string());
        }
    }
    let (fault, file) = {
        let mut state = state.lock().unwrap();
        let nth = state.log.iter().filter(|(p, _)| *p == path).count();
        state.log.push((path.clone(), range.clone()));
        ((state.choose)(&path, nth), state.files.get(&path).cloned())
    };
    answer(&mut stream, fault, file, range)
}

fn answer(stream: &mut TcpStream, fault: Fault, file: Option<Vec<u8>>, range: Option<String>) -> std::io::Result<()> {
    let (Some(body), None) = (file, if let Fault::Status(code) = fault { Some(code) } else { None }) else {
        let code = if let Fault::Status(code) = fault { code } else { 404 };
        return write!(stream, "HTTP/1.1 {code} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let body = if let Fault::Other(other) = &fault { other.clone() } else { body };
    let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let from = from.filter(|_| !matches!(fault, Fault::IgnoreRange));
    let part = &body[from.unwrap_or(0)..];
    match from {
        Some(from) => {
            let shown = from + usize::from(matches!(fault, Fault::WrongRange));
            write!(stream, "HTTP/1.1 206 Partial\r\ncontent-range: bytes {shown}-{}/{}\r\n", body.len() - 1, body.len())?;
        }
        None => write!(stream, "HTTP/1.1 200 OK\r\n")?,
    }
    write!(stream, "content-length: {}\r\nconnection: close\r\n\r\n", part.len())?;
    match fault {
        Fault::Cut(n) => stream.write_all(&part[..n.min(part.len())]),
        Fault::Drip => part.iter().try_for_each(|byte| {
            stream.write_all(&[*byte])?;
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        }),
        _ => stream.write_all(part),
    }
}

/// An archive with one suite, `trixie`.
struct World {
    dir: tempfile::TempDir,
    server: Server,
    cert: Cert,
    store: Store,
    progress: Progress,
    debs: BTreeMap<String, Vec<u8>>,
    packages: String,
}

fn new_cert() -> Cert {
    let created = now() - Duration::from_secs(86_400 * 30);
    CertBuilder::new().add_userid("archive of the test").add_signing_subkey().set_creation_time(created).generate().unwrap().0
}

/// Signs in the clear, as InRelease is.
fn sign(cert: &Cert, text: &str) -> Vec<u8> {
    let policy = StandardPolicy::new();
    let key = cert.keys().with_policy(&policy, now()).for_signing().secret().next().unwrap().key().clone();
    let mut out = Vec::new();
    let signer = Signer::new(Message::new(&mut out), key.into_keypair().unwrap()).unwrap();
    let mut signer = signer.cleartext().creation_time(now() - Duration::from_secs(60)).build().unwrap();
    signer.write_all(text.as_bytes()).unwrap();
    signer.finalize().unwrap();
    out
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    liblzma::read::XzEncoder::new(bytes, 1).read_to_end(&mut out).unwrap();
    out
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cert = new_cert();
        let mut keyring = Vec::new();
        cert.serialize(&mut keyring).unwrap();
        std::fs::write(dir.path().join("keyring.gpg"), keyring).unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, server: Server::start(), cert, store, progress: Progress::silent(), debs: BTreeMap::new(), packages: String::new() }
    }

    /// Adds a package with a body of 100 kB to the index and the pool.
    fn add(&mut self, name: &str, version: &str, more: &str) {
        let noise = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8);
        let body: Vec<u8> = format!("{name} {version}").into_bytes().into_iter().chain(noise).collect();
        let path = format!("pool/main/{name}_{version}_amd64.deb");
        let sha256 = Digest::of(&body).hex();
        let size = body.len();
        let _ = writeln!(
            self.packages,
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: {path}\nSize: {size}\nSHA256: {sha256}\n{more}"
        );
        self.server.put(&path, &body);
        self.debs.insert(path, body);
    }

    fn release(&self, date: &str) -> String {
        let index = xz(self.packages.as_bytes());
        let entry = |bytes: &[u8], name: &str| format!(" {} {} main/binary-amd64/{name}\n", Digest::of(bytes).hex(), bytes.len());
        let files = entry(self.packages.as_bytes(), "Packages") + &entry(&index, "Packages.xz");
        format!("Suite: stable\nCodename: trixie\nDate: {date}\nAcquire-By-Hash: yes\nSHA256:\n{files}")
    }

    fn publish_text(&self, signed: &[u8]) {
        let index = xz(self.packages.as_bytes());
        self.server.put("dists/trixie/InRelease", signed);
        self.server.put(&format!("dists/trixie/main/binary-amd64/by-hash/SHA256/{}", Digest::of(&index).hex()), &index);
        self.server.put("dists/trixie/main/binary-amd64/Packages.xz", &index);
    }

    fn publish(&self, date: &str) {
        self.publish_text(&sign(&self.cert, &self.release(date)));
    }

    fn archive(&self) -> Archive<'_> {
        Archive {
            store: &self.store,
            mirrors: Mirrors { archive: self.server.url.clone(), ..Mirrors::default() },
            keyring: self.keyring(),
            http: Client::new(Limits { attempts: 16, pause: Duration::from_millis(1), stall: Duration::from_millis(300) }),
            offline: Offline::Allowed,
            progress: &self.progress,
            now: now(),
        }
    }

    fn keyring(&self) -> PathBuf {
        self.dir.path().join("keyring.gpg")
    }

    fn lock(&self, list: &str) -> layers::Result<Lock> {
        lock(&self.archive(), &request(list), None, &Update::None)
    }

    fn refused(&self, says: &str) {
        let error = self.lock("").unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("suite trixie at http://127.0.0.1"), "{error}");
        assert_eq!(std::fs::read_dir(self.store.root().join("blobs")).unwrap().count(), 0, "nothing of a refused suite is kept");
    }
}

fn request(list: &str) -> Request {
    Request {
        suite: "trixie".into(),
        components: vec!["main".into()],
        updates: Updates::Ignored,
        architecture: "amd64".into(),
        base: Base::Minbase,
        packages: list.split_whitespace().map(|n| (n.to_string(), vec!["os".to_string()])).collect(),
        ..Request::default()
    }
}

fn names(lock: &Lock) -> String {
    lock.packages.iter().map(|p| format!("{}={}", p.name, p.version)).collect::<Vec<_>>().join(" ")
}

/// Base package `core`; `app` needs `lib`.
fn small() -> World {
    let mut world = World::new();
    world.add("core", "1", "Essential: yes\n");
    world.add("lib", "1.0", "");
    world.add("app", "2.0", "Depends: lib (>= 1)\n");
    world.publish(TODAY);
    world
}

#[test]
fn a_lock_says_what_was_chosen_and_the_store_fills_once() {
    let world = small();
    let lock = world.lock("app").unwrap();
    assert_eq!(names(&lock), "app=2.0 core=1 lib=1.0");
    assert_eq!((lock.epoch, lock.indices[0].signed_by.clone()), (1_788_260_400, vec![world.cert.fingerprint().to_hex()]));
    assert_eq!((lock.packages[0].wanted_by.clone(), lock.packages[2].wanted_by.len()), (vec!["os".to_string()], 0));
    assert_eq!(std::fs::read(world.store.blob(&lock.indices[0].sha256)).unwrap(), world.server.state.lock().unwrap().files["dists/trixie/InRelease"]);
    fetch(&world.archive(), &lock).unwrap();
    for package in &lock.packages {
        assert_eq!(std::fs::read(world.store.blob(&package.sha256)).unwrap(), world.debs[&package.path]);
    }
    std::fs::write(world.store.blob(&lock.packages[0].sha256), "").unwrap();
    fetch(&world.archive(), &lock).unwrap();
    assert_eq!(std::fs::read(world.store.blob(&lock.packages[0].sha256)).unwrap(), world.debs[&lock.packages[0].path], "a cut blob is healed");
    world.server.misbehave(|_, _| Fault::Status(500));
    fetch(&Archive { offline: Offline::Required, ..world.archive() }, &lock).unwrap();
    assert!(world.server.state.lock().unwrap().log.is_empty(), "a full store asks nobody");
}

#[test]
fn archives_are_read_from_a_folder_too() {
    let world = small();
    let root = world.dir.path().join("mirror");
    for (path, bytes) in &world.server.state.lock().unwrap().files {
        std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        std::fs::write(root.join(path), bytes).unwrap();
    }
    let mirrors = Mirrors { archive: format!("file://{}", root.display()), ..Mirrors::default() };
    let archive = Archive { mirrors, ..world.archive() };
    let lock = lock(&archive, &request("app"), None, &Update::None).unwrap();
    fetch(&archive, &lock).unwrap();
    assert!(world.server.state.lock().unwrap().log.is_empty());
}

#[test]
fn b1_a_flipped_byte_is_fetched_once_more_and_then_named() {
    let world = small();
    let lock = world.lock("app").unwrap();
    let path = lock.packages[0].path.clone();
    let mut flipped = world.debs[&path].clone();
    flipped[5000] ^= 1;
    let (bad, target) = (flipped.clone(), path.clone());
    world.server.misbehave(move |p, nth| if p == target && nth == 0 { Fault::Other(bad.clone()) } else { Fault::None });
    fetch(&world.archive(), &lock).unwrap();
    assert_eq!(world.server.asked(&path).len(), 2);

    std::fs::remove_file(world.store.blob(&lock.packages[0].sha256)).unwrap();
    let (bad, target) = (flipped.clone(), path.clone());
    world.server.misbehave(move |p, _| if p == target { Fault::Other(bad.clone()) } else { Fault::None });
    let error = fetch(&world.archive(), &lock).unwrap_err();
    for part in ["app 2.0", &lock.packages[0].sha256.to_string(), &Digest::of(&flipped).to_string()] {
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
    assert_eq!((world.server.asked(&path).len(), error.fault()), (2, layers::Fault::Environment));
    assert!(!world.store.blob(&lock.packages[0].sha256).exists());
    assert_eq!(std::fs::read(world.store.quarantine(&lock.packages[0].sha256)).unwrap(), flipped);
}

#[test]
fn b2_an_archive_that_is_not_trusted_is_refused_by_name() {
    let world = small();
    let good = world.release(TODAY);
    let publish = |text: &str| world.publish_text(&sign(&world.cert, text));
    publish(&good.replace("Acquire", "Valid-Until: Tue, 01 Sep 2026 11:59:59 UTC\nAcquire"));
    world.refused("expired at Tue, 01 Sep 2026 11:59:59 UTC");
    publish(&good.replace("SHA256", "SHA1"));
    world.refused("no SHA256");
    publish(&good.replace("Codename: trixie", "Codename: sid"));
    world.refused("signed for stable / sid, not for trixie");
    world.publish_text(&sign(&new_cert(), &good));
    world.refused("the keyring has no key");
    world.publish_text(good.as_bytes());
    world.refused("checking the signature");
    let signed = String::from_utf8(sign(&world.cert, &good)).unwrap();
    world.publish_text(signed.replace("Suite: stable", "Suite: stabel").as_bytes());
    world.refused("checking the signature");
    world.server.remove("dists/trixie/InRelease");
    world.refused("there is no InRelease");
}

#[test]
fn b2_only_what_was_signed_is_read() {
    let world = small();
    let signed = String::from_utf8(sign(&world.cert, &world.release(TODAY))).unwrap();
    let evil = world.release(TODAY).replace("Codename: trixie", "Codename: trixie\nEvil: yes").replace(TODAY, YESTERDAY);
    for text in [format!("{evil}\n{signed}"), format!("{signed}\n{evil}")] {
        world.publish_text(text.as_bytes());
        let epoch = world.lock("").map(|l| l.epoch);
        assert!(epoch.is_err() || epoch.is_ok_and(|e| e == 1_788_260_400), "the unsigned date was read");
    }
}

#[test]
fn b2_a_keyring_that_is_missing_or_empty_is_an_error_with_a_hint() {
    let world = small();
    let error = builder::source::deb::keyring(world.dir.path(), None).unwrap_err();
    assert!(error.hint().unwrap().contains("debian.keyring"), "{error}");
    std::fs::write(world.keyring(), "").unwrap();
    let error = world.lock("").unwrap_err().to_string();
    assert!(error.contains("keyring.gpg") && error.contains("no certificate"), "{error}");
}

#[test]
fn b3_an_older_release_is_a_replay() {
    let world = small();
    let previous = world.lock("app").unwrap();
    world.publish(YESTERDAY);
    let error = lock(&world.archive(), &request("app"), Some(&previous), &Update::All).unwrap_err().to_string();
    assert!(error.contains("older than the one that the lock was made from (86400 seconds)") && error.contains("suite trixie"), "{error}");
}

#[test]
fn b7_packages_that_the_archive_dropped_are_all_named_or_found_elsewhere() {
    let mut world = small();
    let before = world.lock("app").unwrap();
    let (app, lib) = (before.packages[0].clone(), before.packages[2].clone());
    world.packages.clear();
    world.add("core", "1", "Essential: yes\n");
    world.add("lib", "1.1", "");
    world.publish(TODAY);
    world.server.remove(&app.path);
    world.server.remove(&lib.path);
    let Fetched::Gone(error) = fetch(&world.archive(), &before).unwrap() else { panic!("packages that are gone were found") };
    assert!(error.to_string().contains("app 2.0 -> no longer in the archive\n  lib 1.0 -> 1.1"), "{error}");
    assert!(error.hint().unwrap().contains("chasi-bod lock PROFILE --update"));
    let error = fetch(&Archive { offline: Offline::Required, ..world.archive() }, &before).unwrap_err().to_string();
    assert!(error.contains("app 2.0\n  lib 1.0") && !error.contains("core"), "{error}");
    let error = lock(&world.archive(), &request("app"), Some(&before), &Update::None).unwrap_err().to_string();
    assert!(error.contains("app is not in the archive any more (it was locked as 2.0)"), "{error}");

    let others = Server::start();
    others.put(&format!("snapshot/{}", app.path), &world.debs[&app.path]);
    others.put(&format!("cache/blobs/{}", lib.sha256.hex()), &world.debs[&lib.path]);
    let (snapshot, cache) = (Some(format!("{}/snapshot", others.url)), Some(format!("{}/cache", others.url)));
    let mirrors = Mirrors { snapshot, cache, ..world.archive().mirrors };
    fetch(&Archive { mirrors, ..world.archive() }, &before).unwrap();
    fetch(&Archive { offline: Offline::Required, ..world.archive() }, &before).unwrap();
}

#[test]
fn b7_wishes_that_cannot_be_met_are_explained() {
    let mut world = small();
    world.add("other", "1", "Conflicts: lib (<< 2)\n");
    world.add("broken", "1", "Depends: nowhere (>= 3) | nothing\n");
    world.add("mta-a", "1", "Provides: mta (= 2)\n");
    world.add("mta-b", "1", "Provides: mta\n");
    world.add("only", "1", "Provides: single\n");
    world.add("odd", "1", "Depends: x ((\n");
    world.publish(TODAY);
    let table = [
        ("app other", vec!["app 2.0", "lib", "other 1"]),
        ("broken", vec!["broken 1", "nowhere", "nothing"]),
        ("mta", vec!["mta is a virtual package", "mta-a, mta-b"]),
        ("appp ohter", vec!["no package appp; did you mean `app`?", "no package ohter; did you mean `other`?"]),
        ("odd", vec!["reading dependencies of odd 1", "`x ((` is unreadable"]),
    ];
    for (list, says) in table {
        let error = world.lock(list).unwrap_err();
        assert!(says.iter().all(|s| error.to_string().contains(s)), "{list}: {error}");
        assert_eq!(error.fault(), layers::Fault::Input);
    }
    let lock = world.lock("single").unwrap();
    assert_eq!((names(&lock).as_str(), lock.packages[1].wanted_by.clone()), ("core=1 only=1", vec!["os".to_string()]));
}

#[test]
fn b7_a1_unknown_packages_are_told_at_once_where_profile_and_layers_ask_for_them() {
    let mut world = small();
    world.add("mta-a", "1", "Provides: mta\n");
    world.add("mta-b", "1", "Provides: mta\n");
    world.publish(TODAY);
    let profile = "name: x\nversion: 1.0.0\nlayers: [{name: own, parameters: {more: [oen]}}]\npackages:\n- app\n- appp\n- mta\n";
    let loaded = layers::profile::load("site.yaml", &mut |_| Ok(profile.into())).unwrap();
    let layer = "name: own\nsummary: s\nparameters: {more: {type: list, description: d}}\npackages: [lbi, {parameter: more}]\n";
    let layer = layers::layer::LoadedLayer::new("own", layer, BTreeMap::new()).unwrap();
    let plan = layers::plan::plan(&loaded, &[layer], &Default::default(), &|_| unreachable!(), Vec::new()).unwrap();
    let asked = Request { packages: plan.packages(), profile: "site.yaml".into(), asked_at: plan.asked_at(), ..request("") };
    let error = lock(&world.archive(), &asked, None, &Update::None).unwrap_err();
    let expected = "\
checking site.yaml: 4 problems
site.yaml:3:42: there is no package oen
  3 | layers: [{name: own, parameters: {more: [oen]}}]
    |                                          ^^^
site.yaml:6:3: there is no package appp
  6 | - appp
    |   ^^^^
hint: did you mean `app`?
site.yaml:7:3: mta is a virtual package
  7 | - mta
    |   ^^^
hint: choose one that provides it: mta-a, mta-b
own/layer.yaml:4:12: there is no package lbi
  4 | packages: [lbi, {parameter: more}]
    |            ^^^
hint: did you mean `lib`?";
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.fault(), layers::Fault::Input);
    let same = Request { profile: String::new(), asked_at: BTreeMap::new(), ..asked.clone() };
    assert_eq!(asked.digest().unwrap(), same.digest().unwrap(), "places are no part of what is asked");
}

#[test]
fn alternatives_are_taken_in_order_and_assumed_packages_satisfy() {
    let mut world = small();
    world.add("first", "1", "");
    world.add("second", "1", "Provides: virtual (= 2)\n");
    world.add("wants", "1", "Depends: first | second\n");
    world.add("kernel", "6", "Depends: virtual (>= 2), tools (>= 3) | first\n");
    world.publish(TODAY);
    assert_eq!(names(&world.lock("wants").unwrap()), "core=1 first=1 wants=1");
    assert_eq!(names(&world.lock("wants second").unwrap()), "core=1 second=1 wants=1");
    assert_eq!(names(&world.lock("kernel").unwrap()), "core=1 first=1 kernel=6 second=1");
    let assumed = |version: &str| Assumed { name: "tools".into(), version: version.into(), provides: vec!["virtual (= 5)".into()] };
    let with = |version| Request { assumed: vec![assumed(version)], tools: vec!["kernel".into()], ..request("kernel") };
    let made = lock(&world.archive(), &with("4"), None, &Update::None).unwrap();
    assert_eq!(names(&made), "core=1 kernel=6");
    assert_eq!(made.tools.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["first", "kernel", "second"]);
    assert_eq!(names(&lock(&world.archive(), &with("2"), None, &Update::None).unwrap()), "core=1 first=1 kernel=6");
    assert_ne!(made.request, lock(&world.archive(), &with("2"), None, &Update::None).unwrap().request);
}

#[test]
fn an_update_moves_what_was_asked_and_no_more() {
    let mut world = small();
    world.add("choice", "1", "Depends: new | lib\n");
    world.publish(TODAY);
    let before = world.lock("app choice lib").unwrap();
    world.add("lib", "1.5", "");
    world.add("app", "3.0", "Depends: lib (>= 1.2)\n");
    world.add("core", "2", "Essential: yes\n");
    world.add("new", "1", "");
    world.publish(TODAY);
    let wish = request("app choice lib");
    let update = |update: Update| names(&lock(&world.archive(), &wish, Some(&before), &update).unwrap());
    assert_eq!(update(Update::None), "app=2.0 choice=1 core=1 lib=1.0");
    assert_eq!(update(Update::Packages(vec!["core".into()])), "app=2.0 choice=1 core=2 lib=1.0");
    assert_eq!(update(Update::Packages(vec!["app".into()])), "app=3.0 choice=1 core=1 lib=1.5", "app forces lib");
    assert_eq!(update(Update::All), "app=3.0 choice=1 core=2 lib=1.5");
    let error = lock(&world.archive(), &wish, Some(&before), &Update::Packages(vec!["x".into()])).unwrap_err();
    assert!(error.to_string().contains("the lock holds no such package"));
}

#[test]
fn b8_half_of_all_answers_are_503() {
    let mut world = small();
    for n in 0..40 {
        world.add(&format!("p{n}"), "1", "");
    }
    world.publish(TODAY);
    let mut random = 12345_u32;
    world.server.misbehave(move |_, _| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if random >> 31 == 0 { Fault::Status(503) } else { Fault::None }
    });
    let list: Vec<_> = (0..40).map(|n| format!("p{n}")).collect();
    let lock = world.lock(&list.join(" ")).unwrap();
    fetch(&world.archive(), &lock).unwrap();
    assert!(lock.packages.iter().all(|p| world.store.blob(&p.sha256).exists()));
}

#[test]
fn b8_broken_transfers_go_on_where_they_stopped() {
    let world = small();
    let lock = world.lock("lib").unwrap();
    let package = lock.packages.iter().find(|p| p.name == "lib").unwrap();
    let run = |choose: fn(usize) -> Fault| {
        let _ = std::fs::remove_file(world.store.blob(&package.sha256));
        let path = package.path.clone();
        world.server.misbehave(move |p, nth| if p == path { choose(nth) } else { Fault::None });
        fetch(&world.archive(), &lock).unwrap();
        assert_eq!(Digest::of(&std::fs::read(world.store.blob(&package.sha256)).unwrap()), package.sha256);
        assert!(!world.store.partial(&package.sha256).exists());
        world.server.asked(&package.path)
    };
    let range = |n: usize| Some(format!("bytes={n}-"));
    assert_eq!(run(|nth| if nth < 3 { Fault::Cut(20_000) } else { Fault::None }), [None, range(20_000), range(40_000), range(60_000)]);
    assert_eq!(run(|nth| [Fault::Cut(10), Fault::IgnoreRange][nth].clone()), [None, range(10)]);
    assert_eq!(run(|nth| [Fault::Cut(10), Fault::WrongRange, Fault::None][nth].clone()), [None, range(10), None]);
    assert_eq!(run(|nth| [Fault::Cut(10), Fault::Status(416), Fault::None][nth].clone()), [None, range(10), None]);
    let slow = run(|nth| if nth == 0 { Fault::Drip } else { Fault::None });
    assert!(slow.len() == 2 && slow[1].is_some(), "{slow:?}");
}

#[test]
fn b8_an_endless_release_is_cut_off() {
    let world = small();
    world.server.misbehave(|p, _| if p.ends_with("InRelease") { Fault::Other(vec![b'a'; 17 << 20]) } else { Fault::None });
    world.refused("InRelease: more than 16777216 bytes");
}

#[test]
fn two_at_once_share_each_download() {
    let world = small();
    let lock = world.lock("app").unwrap();
    world.server.misbehave(|_, _| Fault::None);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| fetch(&world.archive(), &lock).unwrap());
        }
    });
    assert!(lock.packages.iter().all(|p| world.server.asked(&p.path).len() == 1), "the second waits for the first");
    assert_eq!(std::fs::read_dir(world.store.root().join("partial")).unwrap().count(), 0);
}

#[test]
fn b8_a_dead_server_is_named() {
    let world = small();
    let lock = world.lock("lib").unwrap();
    world.server.misbehave(|_, _| Fault::Cut(0));
    let error = fetch(&world.archive(), &lock).unwrap_err().to_string();
    assert!(error.contains("fetching package") && error.contains("pool/main/") && error.contains("also after trying again"), "{error}");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mirrors = Mirrors { archive: format!("http://{closed}"), ..Mirrors::default() };
    let error = fetch(&Archive { mirrors, ..world.archive() }, &lock).unwrap_err();
    assert_eq!(error.fault(), layers::Fault::Environment);
}

#[test]
fn b8_an_archive_that_changes_under_our_hands_is_read_again() {
    let mut world = small();
    let old = world.server.state.lock().unwrap().files["dists/trixie/InRelease"].clone();
    let old_index = xz(world.packages.as_bytes());
    world.add("late", "1", "");
    world.publish(TODAY);
    world.server.remove(&format!("dists/trixie/main/binary-amd64/by-hash/SHA256/{}", Digest::of(&old_index).hex()));
    let stale = old.clone();
    world.server.misbehave(move |p, nth| if p.ends_with("InRelease") && nth == 0 { Fault::Other(stale.clone()) } else { Fault::None });
    assert_eq!(names(&world.lock("late").unwrap()), "core=1 late=1");
    world.server.misbehave(move |p, _| if p.ends_with("InRelease") { Fault::Other(old.clone()) } else { Fault::None });
    let other = World { store: Store::open(&world.dir.path().join("other")).unwrap(), ..world };
    let error = other.lock("late").unwrap_err().to_string();
    assert!(error.contains("suite trixie") && error.contains("do not match"), "{error}");
}

#[test]
fn b8_an_index_that_unpacks_to_more_than_declared_is_refused() {
    let world = small();
    let plain = world.packages.len().to_string();
    let text = world.release(TODAY).replace(&format!(" {plain} main"), " 100 main");
    world.publish_text(&sign(&world.cert, &text));
    let error = world.lock("").unwrap_err().to_string();
    assert!(error.contains("unpacks to more bytes than declared") && error.contains("component main"), "{error}");
}

#[test]
fn fuzz_corpus_of_deb822_replays() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/deb822");
    let mut seen = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        // Any answer will do, a panic will not.
        let _ = Index::read(bytes.as_slice(), "amd64").map(|i| i.packages().map(|p| p.depends().concat().len()).sum::<usize>());
        seen += 1;
    }
    assert!(seen >= 5, "the corpus is there");
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::sample::select(b"Package: \n\r\tVersion.1-~,|()<>=#\xff".to_vec()), 0..400)) {
        let _ = Index::read(bytes.as_slice(), "amd64");
    }
}
