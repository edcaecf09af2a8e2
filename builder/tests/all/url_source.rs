//! Downloads known by their digest: mirrors, wrong bytes, archives.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use std::{fs, thread};

use builder::progress::Progress;
use builder::source::deb::{Archive, Mirrors, Offline};
use builder::source::http::{Client, Limits};
use builder::source::url;
use builder::store::Store;
use layers::Result;
use layers::source::{LockedFile, UrlSource};
use layers::units::{Bytes, Digest};

use crate::common;

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    fn address(&self, name: &str) -> String {
        format!("file://{}", self.dir.path().join(name).display())
    }

    fn lock(&self, from: &[String], sha256: Digest) -> Result<LockedFile> {
        let progress = Progress::silent();
        let site = Archive {
            store: &self.store,
            mirrors: Mirrors::default(),
            keyring: PathBuf::new(),
            http: Client::new(Limits { attempts: 4, ..Limits::default() }),
            offline: Offline::Allowed,
            progress: &progress,
            now: SystemTime::now(),
        };
        url::lock(&site, "tool", &UrlSource { from: from.to_vec(), sha256, file: None })
    }

    fn member(&self, archive: &Path, member: &str) -> Result<Vec<u8>> {
        let sha256 = self.store.put_blob(&fs::read(archive).unwrap())?;
        let locked = LockedFile { from: Vec::new(), sha256, size: Bytes(0) };
        let key = Digest::of_parts([sha256.0.as_slice(), member.as_bytes()]);
        let mut pack = self.store.new_pack(key)?;
        let content = url::member(&self.store, "tool", &locked, member, &mut pack)?;
        pack.finish()?;
        self.store.read(&content)
    }
}

#[test]
fn the_first_address_that_has_the_file_gives_it() {
    let bench = Bench::new();
    fs::write(bench.dir.path().join("tool"), b"a tool").unwrap();
    let from = [bench.address("gone"), bench.address("tool")];
    let locked = bench.lock(&from, Digest::of(b"a tool")).unwrap();
    assert_eq!((locked.size, locked.from.as_slice()), (Bytes(6), from.as_slice()));
    assert_eq!(fs::read(bench.store.blob(&locked.sha256)).unwrap(), b"a tool");
    let error = bench.lock(&from[..1], Digest::of(b"other")).unwrap_err();
    assert!(error.to_string().contains("no address has it") && error.fault() == layers::Fault::Input, "{error}");
}

#[test]
fn c1_other_bytes_are_named_by_both_digests_and_kept_aside() {
    let bench = Bench::new();
    fs::write(bench.dir.path().join("tool"), b"a tool").unwrap();
    let wanted = Digest::of(b"another tool");
    let error = bench.lock(&[bench.address("tool"), bench.address("tool")], wanted).unwrap_err().to_string();
    assert!(error.contains(&wanted.to_string()) && error.contains(&Digest::of(b"a tool").to_string()), "{error}");
    assert!(bench.store.quarantine(&wanted).exists() && !bench.store.blob(&wanted).exists());
}

/// A server that breaks off after each 64 KiB and goes on where it is asked to.
#[test]
fn b8_a_download_that_breaks_off_is_resumed() {
    let bench = Bench::new();
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| ((n * 7) >> 3) as u8).collect();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/tool", server.local_addr().unwrap());
    let body = bytes.clone();
    thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 2048];
            let n = std::io::Read::read(&mut stream, &mut request).unwrap();
            let text = String::from_utf8_lossy(&request[..n]).to_lowercase();
            let from = text.split("range: bytes=").nth(1).and_then(|r| r.split('-').next()).and_then(|n| n.parse().ok()).unwrap_or(0);
            let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n",
                body.len() - from,
                if from > 0 { &range } else { "" }
            );
            let piece = &body[from..(from + 65536).min(body.len())];
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(piece));
        }
    });
    let locked = bench.lock(&[address], Digest::of(&bytes)).unwrap();
    assert_eq!(fs::read(bench.store.blob(&locked.sha256)).unwrap(), bytes);
}

#[test]
fn a_member_comes_out_of_archives_that_gnu_tar_made() {
    let bench = Bench::new();
    let dir = bench.dir.path();
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::write(dir.join("bin/tool"), b"the tool").unwrap();
    std::os::unix::fs::symlink("tool", dir.join("bin/link")).unwrap();
    for (name, option) in [("a.tar", "--create"), ("a.tar.gz", "-zc"), ("a.tar.xz", "-Jc"), ("a.tar.zst", "--zstd")] {
        let mut tar = Command::new("tar");
        tar.arg(option).args(if option == "--zstd" { &["--create"][..] } else { &[] });
        common::good(tar.arg("-f").arg(dir.join(name)).arg("-C").arg(dir).arg("./bin"));
        assert_eq!(bench.member(&dir.join(name), "bin/tool").unwrap(), b"the tool", "{name}");
    }
    let error = bench.member(&dir.join("a.tar"), "bin/tol").unwrap_err();
    assert!(error.to_string().contains("bin/tol of source tool") && error.hint().unwrap().contains("bin/tool"), "{error}");
    let error = bench.member(&dir.join("a.tar"), "bin/link").unwrap_err().to_string();
    assert!(error.contains("no regular file"), "{error}");
    fs::write(dir.join("cut.tar.gz"), &fs::read(dir.join("a.tar.gz")).unwrap()[..60]).unwrap();
    assert!(bench.member(&dir.join("cut.tar.gz"), "bin/tool").unwrap_err().to_string().contains("reading bin/tool of source tool"));
}

#[test]
fn c3_a_member_that_claims_too_much_is_refused_before_it_is_read() {
    let bench = Bench::new();
    let mut header = tar::Header::new_ustar();
    header.set_path("tool").unwrap();
    header.set_size(6 << 30);
    header.set_mode(0o755);
    header.set_cksum();
    let path = bench.dir.path().join("bomb.tar");
    fs::write(&path, header.as_bytes()).unwrap();
    let error = bench.member(&path, "tool").unwrap_err().to_string();
    assert!(error.contains("6442450944 bytes, more than"), "{error}");
}
