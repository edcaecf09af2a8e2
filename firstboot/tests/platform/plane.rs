//! One virtual control plane as real processes: the syncer of the layer `vcluster` with its store, API server and controller manager, in a root of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, ListParams};
use kube::{Client, Config, ResourceExt as _};
use layers::platform::component::ComponentPhase;
use layers::platform::{Component, Phase, VirtualCluster};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::apart::NODE;
use crate::bench::{Bench, end, http, spawn};
use crate::programs::programs;
use crate::rates::{self, is_ready};

/// The virtual cluster that is real.
const NAME: &str = "biz";
const SPACE: &str = "vcluster-biz";
const ACCOUNT: &str = "var/run/secrets/kubernetes.io/serviceaccount";

/// The pod's container.
struct Plane {
    root: PathBuf,
    process: Option<Child>,
}

impl Plane {
    /// Lays the container's files.
    async fn new(bench: &Bench) -> Self {
        let root = bench.path("plane");
        for folder in ["binaries", "data", "tmp", "dev", "etc", "pki", "proc", "var/lib/vcluster", ACCOUNT] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for (name, to) in [("vcluster", "vcluster"), ("kine", "binaries/kine"), ("kube", "binaries/kube")] {
            fs::copy(programs().join(name), root.join(to)).unwrap();
        }
        for name in ["kube-apiserver", "kube-controller-manager"] {
            symlink("kube", root.join("binaries").join(name)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
        let account = |name: &str| root.join(ACCOUNT).join(name);
        fs::copy(bench.path("pki/ca.crt"), account("ca.crt")).unwrap();
        fs::write(account("namespace"), SPACE).unwrap();
        let path = format!("/api/v1/namespaces/{SPACE}/serviceaccounts/vc-{NAME}/token");
        let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}});
        let asked = hyper::http::Request::post(path).header("content-type", "application/json").body(asked.to_string().into_bytes()).unwrap();
        let token: Value = bench.client.request(asked).await.unwrap();
        fs::write(account("token"), token["status"]["token"].as_str().unwrap()).unwrap();
        let config = Api::<Secret>::namespaced(bench.client.clone(), SPACE).get(&format!("vc-config-{NAME}")).await.unwrap();
        fs::write(root.join("var/lib/vcluster/config.yaml"), &config.data.unwrap()["config.yaml"].0).unwrap();
        Self { root, process: None }
    }

    /// Starts the syncer and waits until it calls itself ready, as the kubelet's probe does.
    async fn start(&mut self, bench: &Bench) -> f64 {
        let begun = Instant::now();
        let environment = [
            ("VCLUSTER_NAME", NAME),
            ("POD_NAME", "biz-0"),
            ("POD_IP", NODE),
            ("NODE_NAME", "node"),
            ("NODE_IP", NODE),
            ("LOFT_LOG_ENCODING", "console"),
            ("GOGC", "50"),
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
        ];
        let mounts = r#"mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" && exec "$@""#;
        let root = self.root.display().to_string();
        let args = ["--pid", "--fork", "--kill-child", "--mount", "sh", "-c", mounts, &root, "env", "--ignore-environment"];
        let mut args = args.map(String::from).to_vec();
        args.extend(environment.map(|(key, value)| format!("{key}={value}")));
        args.extend(["/usr/sbin/chroot".into(), root, "/vcluster".into(), "start".into()]);
        self.process = Some(spawn(&bench.path(""), Path::new("/usr/bin/unshare"), &args));
        let mut config = Config::new("https://127.0.0.1:8443".parse().unwrap());
        config.accept_invalid_certs = true;
        let stranger = Client::try_from(config).unwrap();
        while stranger.request_text(http("/readyz")).await.is_err() {
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < Duration::from_secs(240),
                "the virtual control plane does not become ready\n{}",
                bench.log("unshare")
            );
            sleep(Duration::from_millis(300)).await;
        }
        begun.elapsed().as_secs_f64()
    }

    fn kill(&mut self) {
        end(&mut self.process);
    }
}

/// Waits until a pod is there, or is not.
async fn pod(bench: &Bench, name: &str, there: bool) {
    let pods = Api::<Pod>::namespaced(bench.client.clone(), SPACE);
    for _ in 0..600 {
        if pods.get_opt(name).await.unwrap().is_some() == there {
            return;
        }
        sleep(Duration::from_millis(200)).await;
    }
    panic!("pod {name}: there should be {there}\n{}", bench.story());
}

/// Waits for a condition.
async fn says(bench: &Bench, condition: &str, status: &str) {
    let says = |object: &VirtualCluster| {
        object.status.as_ref().is_some_and(|all| all.conditions.iter().any(|one| one.type_ == condition && one.status == status))
    };
    bench.until::<VirtualCluster>(NAME, &format!("{condition}={status}"), says).await;
}

/// The Secret of the control plane's certificates as it was last written, with a key that costs little.
async fn certificates(bench: &Bench) -> Option<String> {
    let secret = Api::<Secret>::namespaced(bench.client.clone(), SPACE).get("biz-certs").await.unwrap();
    assert!(secret.data.unwrap()["ca.key"].0.starts_with(b"-----BEGIN EC PRIVATE KEY-----"));
    secret.metadata.resource_version
}

/// The first control plane: the cluster is RUNNING neither before its API answers nor before its DNS serves.
async fn comes_up(bench: &mut Bench) -> Plane {
    bench.script.change(|parts| (parts.real, parts.virtual_api) = (Some(NAME.into()), "127.0.0.1:8443".into()));
    bench.script.hold("vcluster-biz/");
    bench.start();
    bench.until_defined().await;
    bench.create::<VirtualCluster>(NAME, json!({"template": "edge"})).await.unwrap();
    pod(bench, "biz-0", true).await;
    says(bench, "ControlPlaneReady", "False").await;
    let (mut plane, made) = (Plane::new(bench).await, certificates(bench).await);
    println!("the virtual control plane is ready after {:.1} s", plane.start(bench).await);
    assert_eq!(certificates(bench).await, made, "it has taken the certificates that were there");
    // From now on only its DNS does not.
    bench.script.hold("vcluster-biz/coredns");
    bench.script.release("vcluster-biz/");
    says(bench, "SyncerReady", "True").await;
    says(bench, "DNSReady", "False").await;
    bench.reaches(NAME, Phase::Creating).await;
    bench.script.release("vcluster-biz/coredns");
    println!("RUNNING {:.1} s after its DNS pod", bench.rests(NAME, Phase::Running).await);
    plane
}

/// Its control plane dies by itself and comes back with its data.
async fn dies_and_comes_back(bench: &mut Bench, plane: &mut Plane) {
    plane.kill();
    bench.script.hold("vcluster-biz/biz-0");
    bench.reaches(NAME, Phase::Error).await;
    plane.start(bench).await;
    bench.script.release("vcluster-biz/biz-0");
    println!("RUNNING again after {:.1} s", bench.rests(NAME, Phase::Running).await);
}

/// A component in it, with the controllers killed while helm works.
async fn takes_a_component(bench: &mut Bench) {
    let spec = json!({"source": {"chart": {"name": "note", "version": "1.0.0"}}, "target": {"virtualCluster": NAME, "namespace": "web"}});
    bench.create::<Component>("note", spec).await.unwrap();
    let installing = |object: &Component| object.status.as_ref().is_some_and(|status| status.phase == ComponentPhase::Installing);
    bench.until::<Component>("note", "INSTALLING", installing).await;
    bench.kill();
    bench.start();
    bench.until::<Component>("note", "READY", is_ready).await;
    let config = Api::<Secret>::namespaced(bench.client.clone(), SPACE).get("vc-biz").await.unwrap();
    fs::write(bench.path("inside.conf"), &config.data.unwrap()["config"].0).unwrap();
    let mut kubectl = Command::new(programs().join("kubectl"));
    let path = format!("--kubeconfig={}", bench.path("inside.conf").display());
    kubectl.args([&path, "--server=https://localhost:8443", "-n", "web", "get", "configmap", "note", "-o", "jsonpath={.data.text}"]);
    assert_eq!(String::from_utf8(crate::programs::run(&mut kubectl)).unwrap(), "hello");
    let mut helm = Command::new(programs().join("helm"));
    helm.args([&path, "--kube-apiserver=https://localhost:8443", "list", "-n", "web", "--no-headers"]);
    let listed = String::from_utf8(crate::programs::run(&mut helm)).unwrap();
    assert!(listed.contains("note") && listed.contains("deployed"), "{listed}");
}

async fn sleeps_and_wakes(bench: &mut Bench, plane: &mut Plane) {
    bench.change::<VirtualCluster>(NAME, json!({"suspended": true})).await.unwrap();
    bench.reaches(NAME, Phase::Suspending).await;
    bench.kill();
    plane.kill();
    bench.script.hold("vcluster-biz/biz-0");
    bench.start();
    println!("SUSPENDED after {:.1} s", bench.rests(NAME, Phase::Suspended).await);
    let pods: Value = bench.client.request(http(&format!("/api/v1/namespaces/{SPACE}/pods"))).await.unwrap();
    assert_eq!(pods["items"], json!([]));
    bench.script.hold("vcluster-biz/coredns");
    bench.change::<VirtualCluster>(NAME, json!({"suspended": false})).await.unwrap();
    pod(bench, "biz-0", true).await;
    plane.start(bench).await;
    bench.script.release("vcluster-biz/biz-0");
    // What the virtual cluster says of its DNS is from before it slept.
    says(bench, "DNSReady", "False").await;
    bench.reaches(NAME, Phase::Resuming).await;
    bench.script.release("vcluster-biz/coredns");
    println!("RUNNING again after {:.1} s", bench.rests(NAME, Phase::Running).await);
    bench.until::<Component>("note", "READY", is_ready).await;
}

pub async fn lives(mut bench: Bench) {
    let mut plane = comes_up(&mut bench).await;
    dies_and_comes_back(&mut bench, &mut plane).await;
    takes_a_component(&mut bench).await;
    sleeps_and_wakes(&mut bench, &mut plane).await;
    bench.delete::<VirtualCluster>(NAME).await;
    bench.gone::<VirtualCluster>(NAME).await;
    bench.gone::<k8s_openapi::api::core::v1::Namespace>(SPACE).await;
    bench.delete::<Component>("note").await;
    bench.gone::<Component>("note").await;
    bench.kill();
    plane.kill();
}

/// So many objects at rest; the real virtual control plane answers for all the others.
pub async fn at_rest(mut bench: Bench) {
    let (clusters, components) = (20, 50);
    let mut plane = comes_up(&mut bench).await;
    let config = Api::<Secret>::namespaced(bench.client.clone(), SPACE).get("vc-biz").await.unwrap();
    let mut credentials: Value = serde_saphyr::from_str(std::str::from_utf8(&config.data.unwrap()["config"].0).unwrap()).unwrap();
    // Each has an address of its own, which the one certificate does not name.
    credentials["clusters"][0]["cluster"]["tls-server-name"] = "localhost".into();
    // The pod of the one DNS that there is stands for that of each.
    let dns = Api::<Pod>::namespaced(bench.client.clone(), SPACE).list(&ListParams::default().labels("k8s-app=vcluster-kube-dns")).await.unwrap();
    let dns = dns.items[0].annotations()["vcluster.loft.sh/object-name"].clone();
    bench.script.change(|parts| (parts.credentials, parts.dns) = (credentials.to_string(), dns));
    rates::fill(&bench, clusters - 1, components).await;
    rates::rest(&mut bench, clusters + components, 120).await;
    plane.kill();
}
