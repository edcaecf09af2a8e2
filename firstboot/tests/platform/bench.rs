//! A control plane without nodes: etcd, API server and controller manager of the image, and the platform's controllers as a process that can be killed.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use layers::platform::VirtualClusterTemplate;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::apart::NODE;
use crate::kubelet::{self, Script};
use crate::programs::{programs, run};
use crate::root;

/// Longest time for one step, in seconds: other tests run beside.
const PATIENCE: u64 = 120;
/// Whoever is put into an audit log.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, users: [platform, virtual]}
- {level: None}
";
/// The user that the controllers and their helm are.
pub const PLATFORM: &str = "platform";

/// What tests may ask of an object of any kind.
pub trait Kind: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize + Send + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize + Send + 'static> Kind for K {}

pub struct Bench {
    folder: tempfile::TempDir,
    api: Option<Child>,
    controllers: Option<Child>,
    /// How often they had led before they were started last; killed soon enough, they never do.
    led: usize,
    /// As nobody whose requests are counted.
    pub client: Client,
    pub script: Script,
    manager: Option<Child>,
    // It ends with the namespace.
    etcd: Option<Child>,
}

impl Bench {
    /// A control plane that answers; the controllers do not run yet.
    pub async fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("platform").tempdir().unwrap();
        certificates(folder.path());
        root::lay(&folder.path().join("root"), folder.path());
        fs::write(folder.path().join("audit.yaml"), AUDIT).unwrap();
        let etcd = etcd(folder.path());
        let client = client(&folder.path().join("test.conf")).await;
        let script = Script::default();
        let mut bench = Self { folder, api: None, controllers: None, led: 0, client, script, manager: None, etcd: Some(etcd) };
        bench.start_api().await;
        bench.populate().await;
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spawn(&self, program: &str, args: &[String]) -> Child {
        spawn(self.folder.path(), &programs().join(program), args)
    }

    /// Starts the API server, waits until it is ready, and starts the controller manager.
    pub async fn start_api(&mut self) {
        let file = |name: &str| self.path(name).display().to_string();
        let args = [
            format!("--etcd-servers=http://{NODE}:2379"),
            "--secure-port=6444".into(),
            format!("--advertise-address={NODE}"),
            format!("--client-ca-file={}", file("pki/ca.crt")),
            format!("--tls-cert-file={}", file("pki/apiserver.crt")),
            format!("--tls-private-key-file={}", file("pki/apiserver.key")),
            format!("--service-account-key-file={}", file("pki/sa.pub")),
            format!("--service-account-signing-key-file={}", file("pki/sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--authorization-mode=Node,RBAC".into(),
            format!("--audit-policy-file={}", file("audit.yaml")),
            format!("--audit-log-path={}", file("audit.log")),
        ];
        self.api = Some(self.spawn("kube-apiserver", &args));
        let end = Instant::now() + Duration::from_secs(PATIENCE);
        while self.client.request_text(http("/readyz")).await.is_err() {
            let ended = self.api.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "the API server does not answer\n{}", self.log("kube-apiserver"));
            sleep(Duration::from_millis(100)).await;
        }
        self.manager = Some(self.manager());
    }

    /// Ends the API server as a power cut would, and the controller manager, which ends by itself on nodes when it cannot renew its lease.
    pub fn stop_api(&mut self) {
        end(&mut self.api);
        end(&mut self.manager);
    }

    /// Ends etcd as a power cut would.
    pub fn stop_etcd(&mut self) {
        end(&mut self.etcd);
    }

    /// Has another etcd be the node's.
    pub fn use_etcd(&mut self, child: Child) {
        self.etcd = Some(child);
    }

    fn manager(&self) -> Child {
        let args = [
            format!("--kubeconfig={}", self.path("test.conf").display()),
            "--secure-port=0".into(),
            "--leader-elect=false".into(),
            format!("--service-account-private-key-file={}", self.path("pki/sa.key").display()),
            format!("--root-ca-file={}", self.path("pki/ca.crt").display()),
            // There is no kubelet that a node could lose.
            "--controllers=*,-node-lifecycle-controller".into(),
        ];
        self.spawn("kube-controller-manager", &args)
    }

    /// The node, the DNS of every virtual cluster, and what stands for kubelets.
    async fn populate(&self) {
        let node = json!({"metadata": {"name": "node"}, "status": {"addresses": [{"type": "InternalIP", "address": NODE}]}});
        let node: k8s_openapi::api::core::v1::Node = serde_json::from_value(node).unwrap();
        let nodes = Api::all(self.client.clone());
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let addresses = json!({"status": node.status});
        nodes.patch_status("node", &PatchParams::default(), &Patch::Merge(addresses)).await.map(|_: k8s_openapi::api::core::v1::Node| ()).unwrap();
        // All virtual APIs are this one, as their control planes are pods that nobody runs.
        let (pods, dns) = (Api::namespaced(self.client.clone(), "kube-system"), kubelet::dns("coredns", "coredns", &json!({})));
        // Pods are refused until the namespace has its account.
        while pods.create(&PostParams::default(), &dns).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
        let mut virtual_api: Value = serde_saphyr::from_str(&fs::read_to_string(self.path("virtual.conf")).unwrap()).unwrap();
        virtual_api["clusters"][0]["cluster"]["tls-server-name"] = "kubernetes".into();
        self.script.change(|parts| {
            (parts.credentials, parts.virtual_api, parts.dns) = (virtual_api.to_string(), format!("{NODE}:6444"), "coredns".into());
        });
        tokio::spawn(kubelet::keep(self.client.clone(), self.script.clone()));
        tokio::spawn(kubelet::services(self.script.clone()));
    }

    /// Starts the controllers.
    pub fn start(&mut self) {
        self.led = self.times_led();
        let root = self.path("root").display().to_string();
        let args = ["--root".into(), root, "platform".into()];
        self.controllers = Some(spawn(self.folder.path(), Path::new(env!("CARGO_BIN_EXE_chasi-bod-node")), &args));
    }

    /// Waits until those that were started last work.
    pub async fn until_leading(&self) {
        let end = Instant::now() + Duration::from_secs(PATIENCE);
        while self.times_led() <= self.led {
            assert!(Instant::now() < end, "the controllers do not lead\n{}", self.story());
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn times_led(&self) -> usize {
        fs::read_to_string(self.path("chasi-bod-node.log")).unwrap_or_default().matches("this node leads").count()
    }

    /// Has the controllers and their helm go on step by step until something is so, and holds them there until they are killed or let go: whoever only
    /// watches may be told so late that it is past.
    pub async fn hold_when(&self, what: &str, so: impl AsyncFn() -> bool) {
        let end = Instant::now() + Duration::from_secs(PATIENCE);
        loop {
            self.signal(Signal::STOP);
            let begun = Instant::now();
            if so().await {
                return;
            }
            // No step is longer than one request for a single object, and nothing that tests wait for is over after so little.
            let look = begun.elapsed();
            assert!(begun < end, "there is no moment with {what}\n{}", self.story());
            self.let_go();
            sleep(look).await;
        }
    }

    /// The same until an object, whose kind need not be defined yet, is at something.
    pub async fn hold_at<K: Kind>(&self, name: &str, what: &str, done: impl Fn(&K) -> bool) {
        let so = async || self.all::<K>().get_opt(name).await.ok().flatten().is_some_and(|object| done(&object));
        self.hold_when(&format!("{name} {what}"), so).await;
    }

    /// Lets those go on that are held.
    pub fn let_go(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process_group(Pid::from_child(self.controllers.as_ref().unwrap()), signal).unwrap();
    }

    /// Ends the controllers with the helm that they run, as a power cut would.
    pub fn kill(&mut self) {
        assert!(self.controllers.as_mut().unwrap().try_wait().unwrap().is_none(), "the controllers ended by themselves\n{}", self.story());
        end(&mut self.controllers);
    }

    /// The end of what a program said.
    pub fn log(&self, program: &str) -> String {
        let text = fs::read_to_string(self.path(&format!("{program}.log"))).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub fn story(&self) -> String {
        self.log("chasi-bod-node")
    }

    /// Whether the controllers ever said something.
    pub fn said(&self, what: &str) -> bool {
        fs::read_to_string(self.path("chasi-bod-node.log")).unwrap().contains(what)
    }

    pub fn all<K: Kind>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Waits until the controllers have defined their kinds and brought the image's templates.
    pub async fn until_defined(&self) {
        let end = Instant::now() + Duration::from_secs(PATIENCE);
        while self.all::<VirtualClusterTemplate>().list(&ListParams::default()).await.map_or(0, |list| list.items.len()) < 6 {
            assert!(Instant::now() < end, "the controllers define nothing\n{}", self.story());
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the API shows it, each version that there is; the seconds that it took.
    pub async fn until<K: Kind>(&self, name: &str, what: &str, done: impl Fn(&K) -> bool) -> f64 {
        let begun = Instant::now();
        let seen = await_condition(self.all::<K>(), name, |object: Option<&K>| object.is_some_and(&done));
        match tokio::time::timeout(Duration::from_secs(PATIENCE), seen).await {
            Ok(Ok(_)) => begun.elapsed().as_secs_f64(),
            other => {
                let object = self.all::<K>().get_opt(name).await.map(|object| serde_json::to_string_pretty(&object).unwrap());
                panic!("{name} does not become {what}: {other:?}\n{}\n{}", object.unwrap_or_default(), self.story())
            }
        }
    }

    /// Waits until an object is gone.
    pub async fn gone<K: Kind>(&self, name: &str) {
        let end = Instant::now() + Duration::from_secs(PATIENCE);
        while let Some(object) = self.all::<K>().get_opt(name).await.unwrap() {
            assert!(Instant::now() < end, "{name} does not go\n{}\n{}", serde_json::to_string_pretty(&object).unwrap(), self.story());
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Makes an object; the API server's refusal when it refuses.
    pub async fn create<K: Kind>(&self, name: &str, spec: Value) -> Result<K, String> {
        let object = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec});
        // As kubectl does: fields that the type gives by itself are not sent.
        let request =
            hyper::http::Request::post(K::url_path(&(), None)).header("content-type", "application/json").body(object.to_string().into_bytes());
        self.client.request::<K>(request.unwrap()).await.map_err(|error| error.to_string())
    }

    /// Changes an object's spec.
    pub async fn change<K: Kind>(&self, name: &str, spec: Value) -> Result<K, String> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.all::<K>().patch(name, &PatchParams::default(), &patch).await.map_err(|error| error.to_string())
    }

    pub async fn delete<K: Kind>(&self, name: &str) {
        self.all::<K>().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// States of the revisions of a release, oldest first.
    pub async fn revisions(&self, namespace: &str, name: &str) -> Vec<String> {
        let which = ListParams::default().labels(&format!("owner=helm,name={name}"));
        let mut list = Api::<Secret>::namespaced(self.client.clone(), namespace).list(&which).await.unwrap().items;
        list.sort_by_key(|secret| secret.labels()["version"].parse::<u32>().unwrap());
        list.iter().map(|secret| secret.labels()["status"].clone()).collect()
    }
}

/// A request without a body.
pub fn http(path: &str) -> hyper::http::Request<Vec<u8>> {
    hyper::http::Request::get(path).body(Vec::new()).unwrap()
}

async fn client(path: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap()).unwrap()
}

/// Starts a program that leads a group of its own and writes a log.
pub fn spawn(folder: &Path, program: &Path, args: &[String]) -> Child {
    let log = folder.join(program.file_name().unwrap()).with_extension("log");
    let log = File::options().create(true).append(true).open(log).unwrap();
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).process_group(0).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

pub fn end(child: &mut Option<Child>) {
    let mut child = child.take().unwrap();
    kill_process_group(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
}

/// The node's member, without certificates for the API server and, as on nodes, with them at the port of the loopback.
fn etcd(folder: &Path) -> Child {
    let plain = format!("http://{NODE}:2379");
    member(folder, "node", 2379, &format!(",{plain}"), &["--initial-cluster=node=http://127.0.0.1:2380"])
}

/// A member of etcd, at a port of the loopback; the next one is for its peers.
pub fn member(folder: &Path, name: &str, port: u16, more: &str, args: &[&str]) -> Child {
    let (clients, peers) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", port + 1));
    let file = |name| folder.join("pki/etcd").join(name);
    let own = [
        format!("--name={name}"),
        format!("--data-dir=etcd-{name}"),
        "--unsafe-no-fsync".into(),
        format!("--listen-client-urls={clients}{more}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--cert-file={}", file("server.crt").display()),
        format!("--key-file={}", file("server.key").display()),
        format!("--trusted-ca-file={}", file("ca.crt").display()),
        "--client-cert-auth".into(),
    ];
    spawn(folder, &programs().join("etcd"), &own.into_iter().chain(args.iter().map(|arg| (*arg).to_string())).collect::<Vec<_>>())
}

/// Authority, certificates and kubeconfigs, made by kubeadm: the test's, the controllers', and one for all virtual clusters.
fn certificates(folder: &Path) {
    let pki = folder.join("pki").display().to_string();
    let config = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {{advertiseAddress: {NODE}, bindPort: 6444}}\n---\n\
         apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.36.3\nencryptionAlgorithm: ECDSA-P256\n\
         certificatesDir: {pki}\nnetworking: {{podSubnet: 10.244.0.0/16, serviceSubnet: 10.96.0.0/16}}\n"
    );
    let file = folder.join("kubeadm.yaml");
    fs::write(&file, config).unwrap();
    let kubeadm = || Command::new(programs().join("kubeadm"));
    run(kubeadm().args(["init", "phase", "certs", "all", "--config"]).arg(&file));
    for user in ["test", PLATFORM, "virtual"] {
        let config = run(kubeadm().args(["kubeconfig", "user", "--org", "system:masters", "--client-name", user, "--config"]).arg(&file));
        fs::write(folder.join(format!("{user}.conf")), config).unwrap();
    }
}
