//! A real registry (distribution) on loopback, built once from Go modules with the project's own source and kept in the shared store.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::{fs, thread};

use builder::assemble::scratch;
use builder::progress::Progress;
use builder::source::auth::DockerConfig;
use builder::source::deb::Archive;
use builder::source::go::{self, Proxies};
use builder::source::http::{Client, Limits};
use builder::source::oci::{self, Registries};
use builder::store::Store;
use layers::Result;
use layers::image::LockedImage;
use layers::source::{GoSource, LockedGo, PlannedSource, Source};
use layers::units::Digest;

use super::oci::Image;

const MODULE: &str = "github.com/distribution/distribution/v3";

/// `me` with password `geheim`, as `htpasswd -B` writes it.
pub const HTPASSWD: &str = "me:$2b$05$Ele143dJ8sjcN5N5VSKOHOEqUmSaRFA/Y9RqhE8KXkUCg6qBtMQyi\n";

/// The registry's program.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        scratch::use_executable(Path::new(super::BIN));
        let (store, progress) = (Store::open(&super::cache()).unwrap(), Progress::silent());
        let declared = GoSource {
            package: Some(format!("{MODULE}/cmd/registry")),
            main: None,
            require: BTreeMap::from([(MODULE.to_string(), "v3.1.2".to_string())]),
            replace: BTreeMap::new(),
            variables: BTreeMap::new(),
            tags: Vec::new(),
            toolchain: "1.26.8".into(),
        };
        let source = Source { go: Some(declared.clone()), url: None };
        let planned = PlannedSource { name: "registry".into(), layer: "test".into(), source, files: BTreeMap::new() };
        let site = site(&store, &progress, patient());
        let locked = locked(&site, &planned, &declared);
        go::fetch(&site, &Proxies::find().unwrap(), "registry", &locked).unwrap();
        let content = go::build(&store, &planned, &declared, &locked).unwrap();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("registry-{}-{}", content.sha256.short(), std::process::id()));
        fs::write(&path, store.read(&content).unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    })
}

/// Locking asks proxies for a minute: what it found is kept.
fn locked(site: &Archive<'_>, planned: &PlannedSource, declared: &GoSource) -> LockedGo {
    let key = planned.request();
    if let Some(text) = site.store.load::<String>("test-locks", &key).unwrap() {
        return serde_json::from_str(&text).unwrap();
    }
    let locked = go::lock(site, &Proxies::find().unwrap(), planned, declared).unwrap();
    site.store.save("test-locks", &key, &serde_json::to_string(&locked).unwrap()).unwrap();
    locked
}

/// A registry that was just started may not answer at once.
pub fn patient() -> Limits {
    Limits { attempts: 6, ..Limits::default() }
}

fn site<'a>(store: &'a Store, progress: &'a Progress, limits: Limits) -> Archive<'a> {
    Archive { http: Client::new(limits), ..super::archive(store, progress) }
}

/// A store of its own, and the registries that it is filled from.
pub struct Bench {
    _dir: tempfile::TempDir,
    pub store: Store,
    pub progress: Progress,
    pub registries: Registries,
    limits: Limits,
}

impl Bench {
    pub fn new(mirrors: &[String], docker: DockerConfig, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { _dir: dir, store, progress: Progress::silent(), registries: Registries::new(mirrors, docker).unwrap(), limits }
    }

    pub fn site(&self) -> Archive<'_> {
        site(&self.store, &self.progress, self.limits)
    }

    pub fn lock(&self, name: &str) -> Result<LockedImage> {
        self.lock_from(name, name)
    }

    pub fn lock_from(&self, name: &str, pull: &str) -> Result<LockedImage> {
        oci::lock(&self.site(), &self.registries, name, pull, "amd64")
    }

    pub fn fetch(&self, image: &LockedImage) -> Result<()> {
        oci::fetch(&self.site(), &self.registries, image)
    }
}

/// A running registry; it ends with this value.
pub struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    /// `127.0.0.1:port`.
    pub host: String,
    scheme: &'static str,
}

impl Registry {
    /// A registry that anyone may use.
    pub fn open() -> Self {
        Self::start("", "", "http", |_| ())
    }

    /// A registry that wants user `me` with password `geheim`.
    pub fn with_password() -> Self {
        let auth = "auth: {htpasswd: {realm: test, path: DIR/htpasswd}}\n";
        Self::start("", auth, "http", |dir| fs::write(dir.join("htpasswd"), HTPASSWD).unwrap())
    }

    /// A registry with a certificate of a CA of its own, `DIR/ca.pem`.
    pub fn with_tls() -> Self {
        Self::start(", tls: {certificate: DIR/cert.pem, key: DIR/key.pem}", "", "https", certificates)
    }

    /// The same, for those only who have a certificate of that CA, such as `DIR/client.pem`.
    pub fn with_client_certificates() -> Self {
        let prepare = |dir: &Path| {
            certificates(dir);
            issue(dir, "client", "extendedKeyUsage=clientAuth\n");
        };
        Self::start(", tls: {certificate: DIR/cert.pem, key: DIR/key.pem, clientcas: [DIR/ca.pem]}", "", "https", prepare)
    }

    fn start(http: &str, more: &str, scheme: &'static str, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let text = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: DIR/data}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '127.0.0.1:0', secret: x{http}}}\n{more}"
        );
        let config = dir.path().join("config.yml");
        fs::write(&config, text.replace("DIR", dir.path().to_str().unwrap())).unwrap();
        let mut command = Command::new(program());
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = Vec::new();
        let host = lines.find_map(|line| {
            said.push(line.clone());
            Some(line.split_once("listening on ")?.1.split([',', '"']).next().unwrap().to_string())
        });
        thread::spawn(move || lines.for_each(drop));
        Self { child, dir, host: host.unwrap_or_else(|| panic!("{said:#?}")), scheme }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A reference to something in it.
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }

    /// Pushes an image with its blobs; further tags move.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        for (digest, bytes) in &image.blobs {
            self.put_blob(repository, digest, bytes);
        }
        for (media_type, bytes) in &image.manifests {
            let wanted = if *bytes == image.target { tag.to_string() } else { Digest::of(bytes).to_string() };
            self.put_manifest(repository, &wanted, media_type, bytes);
        }
    }

    fn put_blob(&self, repository: &str, digest: &Digest, bytes: &[u8]) {
        let answer = agent().post(self.url(repository, "blobs/uploads/")).header("Authorization", BASIC).send_empty().unwrap();
        let place = answer.headers()["location"].to_str().unwrap().to_string();
        let url = format!("{place}{}digest={digest}", if place.contains('?') { '&' } else { '?' });
        let answer = agent().put(url).header("Authorization", BASIC).send(bytes).unwrap();
        assert_eq!(answer.status(), 201);
    }

    pub fn put_manifest(&self, repository: &str, wanted: &str, media_type: &str, bytes: &[u8]) {
        let put = agent().put(self.url(repository, &format!("manifests/{wanted}")));
        assert_eq!(put.header("Authorization", BASIC).header("Content-Type", media_type).send(bytes).unwrap().status(), 201);
    }

    fn url(&self, repository: &str, rest: &str) -> String {
        format!("{}://{}/v2/{repository}/{rest}", self.scheme, self.host)
    }
}

/// `me:geheim`.
const BASIC: &str = "Basic bWU6Z2VoZWlt";

/// Pushing trusts what it pushes to: what is tested is pulling.
fn agent() -> ureq::Agent {
    let tls = ureq::tls::TlsConfig::builder().disable_verification(true).build();
    ureq::Agent::config_builder().tls_config(tls).proxy(None).build().new_agent()
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn certificates(dir: &Path) {
    openssl(dir, "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=test-ca -days 30");
    issue(dir, "cert", "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.registry.svc\nextendedKeyUsage=serverAuth\n");
    fs::rename(dir.join("cert.key"), dir.join("key.pem")).unwrap();
}

/// `NAME.pem` and `NAME.key` of the CA.
fn issue(dir: &Path, name: &str, extensions: &str) {
    openssl(dir, &format!("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out request.pem -subj /CN={name}"));
    fs::write(dir.join("extensions"), format!("basicConstraints=CA:FALSE\n{extensions}")).unwrap();
    openssl(dir, &format!("x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 30 -extfile extensions"));
}

fn openssl(dir: &Path, words: &str) {
    super::good(Command::new("openssl").current_dir(dir).args(words.split(' ')));
}
