//! A node without a machine: the image's own containerd and our images service, on folders and in a mount namespace of their own.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use layers::seed::{INDEX, ImageIndex, LAYERS};
use qemu_tests::exec;
use qemu_tests::node::{artifact, artifacts};
use serde_json::{Value, json};

use crate::seed::{PAUSE, Seed};

/// The folder with containerd, its shim, crictl, the node binary and pause: those of the built image, unless `CHASI_BOD_PROGRAMS` has them.
pub fn programs() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| std::env::var_os("CHASI_BOD_PROGRAMS").map_or_else(take_out, PathBuf::from))
}

fn take_out() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("containerd");
    let image = artifact(&artifacts("standalone").unwrap(), "qcow2").unwrap();
    let chasi_bod = std::env::var_os("CHASI_BOD_BIN").map_or_else(|| PathBuf::from("../target/release/chasi-bod"), PathBuf::from);
    let cat = |path: &str| exec::run(&chasi_bod, &["inspect", image.to_str().unwrap(), "--cat", path]).unwrap().stdout;
    let index: ImageIndex = serde_json::from_slice(&cat(INDEX)).unwrap();
    let pause = index.images.iter().find(|image| image.name == PAUSE).unwrap();
    let config: Value = serde_json::from_slice(&cat(&format!("{}/{}", layers::seed::DOCUMENTS, pause.config.hex()))).unwrap();
    let layer = &index.chains[&config["rootfs"]["diff_ids"][0].as_str().unwrap().parse().unwrap()].layer;
    fs::create_dir_all(&folder).unwrap();
    let paths = ["containerd", "containerd-shim-runc-v2", "crictl", "chasi-bod"].map(|name| (name, format!("/usr/bin/{name}")));
    for (name, path) in paths.into_iter().chain([("pause", format!("{LAYERS}/{layer}/pause"))]) {
        let new = folder.join(format!("{name}.new"));
        fs::write(&new, cat(&path)).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, folder.join(name)).unwrap();
    }
    folder
}

fn node_binary() -> PathBuf {
    std::env::var_os("CHASI_BOD_NODE").map_or_else(|| programs().join("chasi-bod"), PathBuf::from)
}

/// The node; its processes end with it.
pub struct Bench {
    folder: tempfile::TempDir,
    namespace: Child,
    images: Option<Child>,
    containerd: Option<Child>,
    /// Port of the images service.
    pub port: u16,
}

impl Bench {
    /// A node whose root has these images, and pause; everything runs.
    pub fn new(seed: &Seed) -> Self {
        let mut bench = Self::off(seed);
        bench.start();
        bench
    }

    /// The same, switched off.
    pub fn off(seed: &Seed) -> Self {
        // In a short path, as a node's is.
        let folder = tempfile::Builder::new().prefix("cb").tempdir_in("/tmp").unwrap();
        let namespace = exec::start("unshare", &["--mount", "--propagation", "private", "cat"].map(String::from)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let bench = Self { folder, namespace, images: None, containerd: None, port };
        bench.lay(seed);
        bench.configure();
        // The namespace is there when its first program runs.
        while fs::read_link(format!("/proc/{}/ns/mnt", bench.namespace.id())).unwrap() == fs::read_link("/proc/self/ns/mnt").unwrap() {
            std::thread::sleep(Duration::from_millis(1));
        }
        bench
    }

    /// Lays other images into the root, as an update does.
    pub fn lay(&self, seed: &Seed) {
        let _ = fs::remove_dir_all(self.root("usr/lib/chasi-bod/l"));
        let _ = fs::remove_dir_all(self.root("usr/lib/chasi-bod/images"));
        seed.write(&self.root(""));
    }

    /// The shipped configuration with this node's folders; cgroups are those of a machine without systemd, and the runtime is this machine's runc,
    /// as crun of older Debian does not know containerd's configurations.
    fn configure(&self) {
        let shipped = fs::read_to_string("../layers/defs/runtime/files/containerd.toml").unwrap();
        let text = ["/var/lib/", "/run/chasi-bod/", "/run/containerd", "/etc/"]
            .into_iter()
            .fold(shipped, |text, path| text.replace(&format!("\"{path}"), &format!("\"{}", self.root(path).display())));
        let sockets = ["grpc", "ttrpc"].map(|name| {
            let socket = self.root(&format!("run/containerd/containerd.sock{}", if name == "ttrpc" { ".ttrpc" } else { "" }));
            format!("[plugins.\"io.containerd.server.v1.{name}\"]\naddress = \"{}\"\n", socket.display())
        });
        fs::write(
            self.root("config.toml"),
            text.replace("SystemdCgroup = true", "SystemdCgroup = false").replace("/usr/lib/chasi-bod/bin/oci-runtime", "runc") + &sockets.concat(),
        )
        .unwrap();
        fs::create_dir_all(self.root("etc/containerd/certs.d")).unwrap();
        fs::create_dir_all(self.root("etc/containerd/conf.d")).unwrap();
        // Not every machine lets its root protect processes from running out of memory.
        let allowed = "version = 4\n[plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\n";
        fs::write(self.root("etc/containerd/conf.d/test.toml"), allowed).unwrap();
        std::os::unix::fs::symlink(self.root("run/chasi-bod/registries"), self.root("etc/containerd/certs.d/_default")).unwrap();
    }

    /// A path of the node.
    pub fn root(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    /// Says which registries the node may ask.
    pub fn registries(&self, text: &str) {
        fs::create_dir_all(self.root("usr/lib/chasi-bod")).unwrap();
        fs::write(self.root("usr/lib/chasi-bod/registries.yaml"), text).unwrap();
    }

    /// Runs a program in the node's mount namespace.
    pub fn inside(&self, program: &str, args: &[&str]) -> layers::Result<String> {
        let pid = self.namespace.id().to_string();
        let words = [&["-t", &pid, "-m", "--wdns=/", program][..], args].concat();
        exec::run("nsenter", &words).map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string())
    }

    fn spawn(&self, program: &Path, args: &[&str], log: &str) -> Child {
        let mut words: Vec<String> = ["-t", &self.namespace.id().to_string(), "-m", "--wdns=/"].map(String::from).to_vec();
        words.extend(["setpriv", "--pdeathsig", "KILL", "sh", "-c"].map(String::from));
        let line = format!("PATH={}:$PATH exec \"$0\" \"$@\" >>{} 2>&1", programs().display(), self.root(log).display());
        words.extend([line, program.display().to_string()]);
        words.extend(args.iter().map(|arg| (*arg).to_string()));
        exec::start("nsenter", &words).unwrap()
    }

    /// Starts what does not run, in the order of the units.
    pub fn start(&mut self) {
        if self.images.is_none() {
            self.start_images();
        }
        if self.containerd.is_none() {
            let config = self.root("config.toml");
            self.containerd = Some(self.spawn(&programs().join("containerd"), &["--config", config.to_str().unwrap()], "containerd.log"));
            self.wait("containerd", |bench| bench.crictl(&["version"]).is_ok());
        }
    }

    /// Starts the images service and waits until it listens.
    pub fn start_images(&mut self) {
        let (root, port) = (self.root(""), self.port.to_string());
        self.images =
            Some(self.spawn(&node_binary(), &["--root", root.to_str().unwrap(), "images", "serve", "--port", &port, "--log"], "images.log"));
        self.wait("the images service", |bench| {
            UnixStream::connect(bench.root("run/chasi-bod/images.sock")).is_ok() && std::net::TcpStream::connect(("127.0.0.1", bench.port)).is_ok()
        });
    }

    /// Runs the images service's command for a changed root, if the service asked for it; what it said.
    pub fn reconcile(&self) -> Option<String> {
        let wanted = self.root("run/chasi-bod/reconcile").exists();
        wanted.then(|| exec::run(node_binary(), &["--root", self.root("").to_str().unwrap(), "images", "reconcile"]).unwrap()).map(|output| {
            assert!(!self.root("run/chasi-bod/reconcile").exists(), "reconciling was not noted as done");
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// Ends the images service as a power cut would.
    pub fn kill_images(&mut self) {
        kill(&mut self.images);
    }

    /// Ends containerd as a power cut would; containers run on.
    pub fn kill_containerd(&mut self) {
        kill(&mut self.containerd);
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < end, "{what} does not answer\n{}{}", self.log("images.log"), self.log("containerd.log"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What a service said.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.root(name)).unwrap_or_default()
    }

    /// Lines of requests to the images service since the last call.
    pub fn requests(&self) -> Vec<String> {
        let lines = self.log("images.log").lines().filter_map(|line| Some(line.strip_prefix("registry: ")?.to_string())).collect();
        fs::File::options().write(true).truncate(true).open(self.root("images.log")).unwrap();
        lines
    }

    /// Asks containerd as the kubelet does.
    pub fn crictl(&self, args: &[&str]) -> layers::Result<String> {
        let socket = format!("unix://{}", self.root("run/containerd/containerd.sock").display());
        let words = [&["--runtime-endpoint", &socket, "--image-endpoint", &socket, "--timeout", "120s"][..], args].concat();
        let output = exec::run(programs().join("crictl"), &words)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
    }

    /// Asks containerd; it must say yes.
    pub fn ask(&self, args: &[&str]) -> String {
        self.crictl(args).unwrap_or_else(|error| panic!("{error}\n{}\n{}", tail(&self.log("containerd.log")), tail(&self.log("images.log"))))
    }

    fn file(&self, name: &str, value: &Value) -> String {
        let path = self.root(name);
        fs::File::create(&path).unwrap().write_all(value.to_string().as_bytes()).unwrap();
        path.display().to_string()
    }

    /// Starts a pod on the network of the host; returns its id.
    pub fn pod(&self, name: &str) -> layers::Result<String> {
        self.crictl(&["runp", &self.file("pod.json", &pod(name))])
    }

    /// Starts a container in a pod; its id.
    pub fn container(&self, pod_id: &str, pod_name: &str, name: &str, image: &str) -> layers::Result<String> {
        let config = json!({"metadata": {"name": name}, "image": {"image": image}, "linux": {}});
        let (config, pod) = (self.file("container.json", &config), self.file("pod.json", &pod(pod_name)));
        let id = self.crictl(&["create", pod_id, &config, &pod])?;
        self.crictl(&["start", &id])?;
        Ok(id)
    }

    /// Starts a container of an image in a pod of its own; what it sees as its root, its id and its pod's.
    pub fn run(&self, name: &str, image: &str) -> Running {
        let pod = self.pod(name).unwrap_or_else(|error| panic!("{error}\n{}", tail(&self.log("containerd.log"))));
        let id = self.container(&pod, name, name, image);
        let id = id.unwrap_or_else(|error| panic!("{error}\n{}\n{}", tail(&self.log("containerd.log")), tail(&self.log("images.log"))));
        let told: Value = serde_json::from_str(&self.ask(&["inspect", &id])).unwrap();
        Running { root: PathBuf::from(format!("/proc/{}/root", told["info"]["pid"])), id, pod }
    }

    /// Files and folders that snapshots have in the state.
    pub fn snapshots(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(self.root("var/lib/chasi-bod/s")).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Waits until containerd, which collects in the background, has left no snapshot.
    pub fn collected(&self) {
        self.wait("garbage collection", |bench| bench.snapshots().is_empty());
    }

    /// Everything below the root's images, as one digest.
    pub fn tree_digest(&self) -> String {
        let root = self.root("usr/lib/chasi-bod").display().to_string();
        let line =
            format!("cd {root} && find . -printf '%p %y %m %U %G %s %l\\n' | sort | sha256sum; find . -type f | sort | xargs sha256sum | sha256sum");
        String::from_utf8(exec::run("sh", &["-c", &line]).unwrap().stdout).unwrap()
    }
}

/// A container that runs.
pub struct Running {
    /// Its file system as the test can read it.
    pub root: PathBuf,
    /// Its id.
    pub id: String,
    /// Its pod's id.
    pub pod: String,
}

impl Running {
    /// A file's text as the container sees it.
    pub fn read(&self, path: &str) -> String {
        let file = self.root.join(path);
        fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
    }
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": name, "attempt": 0},
        "linux": {"security_context": {"namespace_options": {"network": 2}}}})
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn kill(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.images.is_some() && self.containerd.is_some() {
            let _ = self.crictl(&["rmp", "--all", "--force"]);
        }
        self.kill_containerd();
        self.kill_images();
        // What outlives containerd: shims, told by the only folder that they know.
        let line = format!(
            "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q -- '-address {}/' && kill -9 ${{p#/proc/}}; done; true",
            self.root("run/containerd").display()
        );
        let _ = exec::run("sh", &["-c", &line]);
        let _ = self.namespace.kill();
        let _ = self.namespace.wait();
    }
}
