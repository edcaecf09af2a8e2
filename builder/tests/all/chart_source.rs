//! Charts of a repository in a folder: versions, digests, content and provenance.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::SystemTime;

use builder::progress::Progress;
use builder::source::chart;
use builder::source::deb::{Archive, Mirrors, Offline};
use builder::source::http::{Client, Limits};
use builder::source::oci::Registries;
use builder::store::Store;
use layers::Result;
use layers::chart::{ChartFiles, ChartSpec, LockedChart, PlannedChart};
use layers::profile::Spot;
use layers::units::Digest;
use sequoia_openpgp::cert::{Cert, CertBuilder};
use sequoia_openpgp::policy::StandardPolicy;
use sequoia_openpgp::serialize::Serialize as _;
use sequoia_openpgp::serialize::stream::{Message, Signer};

const NAME: &str = "web-1.0.0.tgz";

/// A repository with one chart, a store, and a key.
struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    key: Cert,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let key = CertBuilder::new().add_userid("charts of the test").add_signing_subkey().generate().unwrap().0;
        let bench = Self { dir, store, key };
        bench.put(NAME, &archive("web", "1.0.0"));
        bench.index(&format!("{{version: 1.0.0, urls: [{NAME}], digest: {}}}", Digest::of(&archive("web", "1.0.0")).hex()));
        bench
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.dir.path().join(name), bytes).unwrap();
    }

    fn index(&self, entry: &str) {
        self.put("index.yaml", format!("apiVersion: v1\nentries:\n  web: [{entry}]\n").as_bytes());
    }

    fn sign(&self, by: &Cert, text: &str) {
        let policy = StandardPolicy::new();
        let key = by.keys().with_policy(&policy, None).for_signing().secret().next().unwrap().key().clone();
        let mut out = Vec::new();
        let mut signer = Signer::new(Message::new(&mut out), key.into_keypair().unwrap()).unwrap().cleartext().build().unwrap();
        signer.write_all(text.as_bytes()).unwrap();
        signer.finalize().unwrap();
        self.put(&format!("{NAME}.prov"), &out);
    }

    fn planned(&self, keyring: Option<&Cert>, chart: &str, version: &str) -> PlannedChart {
        let mut certificates = Vec::new();
        keyring.into_iter().for_each(|cert| cert.serialize(&mut certificates).unwrap());
        let spec = ChartSpec {
            name: "shop".into(),
            chart: chart.into(),
            repo: Some(format!("file://{}", self.dir.path().display())),
            version: Some(version.into()),
            keyring: keyring.map(|_| "keys.pgp".into()),
            ..ChartSpec::default()
        };
        PlannedChart { layer: "profile".into(), spec, files: ChartFiles::new(), keyring: certificates, at: Spot::default() }
    }

    fn with_site<T>(&self, offline: Offline, work: impl FnOnce(&Archive<'_>) -> T) -> T {
        let progress = Progress::silent();
        let http = Client::new(Limits { attempts: 2, ..Limits::default() });
        let now = SystemTime::now();
        work(&Archive { store: &self.store, mirrors: Mirrors::default(), keyring: PathBuf::new(), http, offline, progress: &progress, now })
    }

    fn lock(&self, keyring: Option<&Cert>) -> Result<LockedChart> {
        self.with_site(Offline::Allowed, |site| chart::lock(site, &Registries::default(), &self.planned(keyring, "web", "1.0.0")))
    }

    fn refused(&self, keyring: Option<&Cert>, says: &str) {
        let error = self.lock(keyring).unwrap_err();
        assert!(error.to_string().contains(says) && error.to_string().contains("release shop"), "{says}: {error}");
        assert_eq!(error.fault(), layers::Fault::Input);
    }
}

fn archive(name: &str, version: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let text = format!("apiVersion: v2\nname: {name}\nversion: {version}\n");
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, format!("{name}/Chart.yaml"), text.as_bytes()).unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

fn provenance(sha256: Digest) -> String {
    format!("apiVersion: v2\nname: web\nversion: 1.0.0\n\n...\nfiles:\n  {NAME}: {sha256}\n")
}

#[test]
fn a_chart_is_locked_by_digest_and_fetched_again_from_there() {
    let bench = Bench::new();
    let locked = bench.lock(None).unwrap();
    assert_eq!((locked.chart.as_str(), locked.version.as_str(), locked.sha256), ("web", "1.0.0", Digest::of(&archive("web", "1.0.0"))));
    fs::remove_file(bench.store.blob(&locked.sha256)).unwrap();
    let error = bench.with_site(Offline::Required, |site| chart::fetch(site, &Registries::default(), &locked)).unwrap_err().to_string();
    assert!(error.contains("the store lacks the chart of release shop"), "{error}");
    bench.with_site(Offline::Allowed, |site| chart::fetch(site, &Registries::default(), &locked)).unwrap();
    assert_eq!(chart::bytes(&bench.store, &bench.planned(None, "web", "1.0.0"), &locked).unwrap(), archive("web", "1.0.0"));
    bench.put(NAME, &archive("web", "6.6.6"));
    fs::remove_file(bench.store.blob(&locked.sha256)).unwrap();
    bench.with_site(Offline::Allowed, |site| chart::fetch(site, &Registries::default(), &locked)).unwrap_err();
}

#[test]
fn c7_what_a_repository_gives_must_be_what_was_asked_for() {
    let bench = Bench::new();
    let missing =
        bench.with_site(Offline::Allowed, |site| chart::lock(site, &Registries::default(), &bench.planned(None, "wbe", "1.0.0"))).unwrap_err();
    assert!(missing.hint() == Some("did you mean `web`?"), "{missing}");
    bench.put(NAME, &archive("other", "1.0.0"));
    bench.refused(None, "other bytes came: the index has");
    bench.index(&format!("{{version: 1.0.0, urls: [{NAME}]}}"));
    bench.refused(None, "it is chart other 1.0.0, not web 1.0.0");
    bench.index("{version: 1.0.0}");
    bench.refused(None, "has no address");
    bench.index(&format!("{{version: 1.0.0, urls: [{NAME}], digest: 'md5:1'}}"));
    bench.refused(None, "no sha256 digest but `md5:1`");
}

#[test]
fn c7_a_keyring_wants_a_good_signature_of_this_very_archive() {
    let bench = Bench::new();
    bench.refused(Some(&bench.key), "the chart is not signed");
    bench.sign(&bench.key, &provenance(Digest::of(&archive("web", "1.0.0"))));
    assert_eq!(bench.lock(Some(&bench.key)).unwrap().signed_by, Some(bench.key.fingerprint().to_hex()));
    let stranger = CertBuilder::new().add_userid("somebody else").add_signing_subkey().generate().unwrap().0;
    bench.sign(&stranger, &provenance(Digest::of(&archive("web", "1.0.0"))));
    bench.refused(Some(&bench.key), "the keyring has no key");
    bench.sign(&bench.key, &provenance(Digest::of(b"another archive")));
    bench.refused(Some(&bench.key), "does not name");
    bench.put(&format!("{NAME}.prov"), provenance(Digest::of(&archive("web", "1.0.0"))).as_bytes());
    bench.refused(Some(&bench.key), "checking the signature");
}
