//! Virtual clusters on a real node: the profile's one is there with its application, what becomes of one in its life, that they are apart, and that
//! nothing of it is left.

use std::path::{Path, PathBuf};
use std::time::Instant;

use qemu_tests::node::Node;
use qemu_tests::uml::Net;

use super::{account, applications, build_more, formed, kube, operations, profiles, seed};

/// What `other` says of its last failure.
const FAILURE: &str = "kubectl get vc other -o jsonpath='{.status.failure.reason} {.status.failure.message}' | sed 's/ *$//'";

/// `cluster` with a virtual cluster and a web page in it and, after that, one on the host.
const PROFILE: &str = "layers: [vcluster]
charts:
- {name: page, chart: ./page, install: false}
vclusters:
- {name: biz}
components:
- name: front
  source: {chart: {name: page}}
  target: {namespace: front}
  values: {title: On the host}
  dependsOn: [page]
- name: page
  source: {chart: {name: page}}
  target: {virtualCluster: biz, namespace: web}
  values: {title: In biz}
";

fn image(folder: &Path) -> PathBuf {
    qemu_tests::exec::run("cp", &["-r", profiles().join("charts/welcome").to_str().unwrap(), folder.join("page").to_str().unwrap()]).unwrap();
    build_more(folder, "vclusters", PROFILE)
}

/// Waits for a phase of an object; the seconds that it took.
pub fn phase(node: &Node, object: &str, phase: &str) -> u64 {
    let begun = Instant::now();
    let wait = format!("kubectl wait {object} --for=jsonpath='{{.status.phase}}'={phase} --timeout=600s");
    if let Err(error) = node.ssh(&format!("{} {wait}", super::ADMIN)) {
        let said = kube(
            node,
            &format!(
                "kubectl get {object} -o yaml; kubectl get vc,comp -o wide; for n in $(kubectl get ns -o name | grep vcluster-); do n=${{n#*/}}; \
                 kubectl -n $n get all,secret,pvc,networkpolicy,events; kubectl -n $n logs ${{n#vcluster-}}-0 --all-containers --tail=40 || true; done"
            ),
        );
        panic!("{error}\n{said}\n{}", account(node));
    }
    begun.elapsed().as_secs()
}

/// Changes an object's spec and waits until the controller has looked at that.
pub fn change(node: &Node, object: &str, spec: &str) {
    kube(node, &format!("kubectl patch {object} --type merge -p '{{\"spec\":{spec}}}'"));
    let seen =
        format!("[ $(kubectl get {object} -o jsonpath='{{.metadata.generation}}={{.status.observedGeneration}}' | tr = '\\n' | uniq | wc -l) = 1 ]");
    kube(node, &format!("for i in $(seq 60); do {seen} && exit 0; sleep 1; done; kubectl get {object} -o yaml; exit 1"));
}

/// Runs kubectl in the virtual cluster.
pub fn inside(node: &Node, name: &str, command: &str) -> String {
    node.ssh(&within(name, command)).unwrap_or_else(|error| panic!("{error}\n{}", account(node)))
}

/// The shell's words for kubectl in the virtual cluster.
pub fn within(name: &str, command: &str) -> String {
    let credentials = format!(
        "kubectl -n vcluster-{name} get secret vc-{name} -o jsonpath='{{.data.config}}' | base64 -d > /run/{name}.conf; \
         server=https://$(kubectl -n vcluster-{name} get service {name} -o jsonpath='{{.spec.clusterIP}}')"
    );
    format!("{} {credentials}; KUBECONFIG=/run/{name}.conf kubectl --server=$server {command}", super::ADMIN)
}

/// The virtual cluster that `standalone` ships.
pub fn the_shipped_one_runs(node: &Node) {
    phase(node, "vc/apps", "RUNNING");
}

/// The chart in it: a registry that a node of the host may ask. After a reboot objects and pods are there before what they tell of.
pub fn its_registry_serves(node: &Node) {
    phase(node, "comp/registry", "READY");
    let address = "kubectl -n vcluster-apps get pods -l vcluster.loft.sh/namespace=registry --field-selector status.phase=Running -o jsonpath='{.items[0].status.podIP}'";
    let ask = format!("for i in $(seq 100); do curl -sf -m 5 http://$({address}):5000/v2/ && exit 0; sleep 2; done; exit 1");
    assert_eq!(kube(node, &ask), "{}");
}

/// The profile's virtual cluster comes by itself, then the application in it, then the one that waited for that.
fn the_seed_comes_by_itself(node: &Node) {
    let begun = Instant::now();
    phase(node, "vc/biz", "RUNNING");
    println!("biz RUNNING {} s after the host's releases", begun.elapsed().as_secs());
    phase(node, "comp/page", "READY");
    println!("its chart READY after {} s", begun.elapsed().as_secs());
    phase(node, "comp/front", "READY");
    let conditions = "kubectl get vc biz -o jsonpath='{range .status.conditions[*]}{.type}={.status} {end}'";
    assert_eq!(kube(node, conditions), "ControlPlaneReady=True DNSReady=True Isolated=True Ready=True SyncerReady=True");
    assert_eq!(kube(node, "kubectl get vc biz -o jsonpath='{.status.version} {.status.replicas}'"), "v1.36.3 1");
    assert!(
        kube(node, "kubectl get events --field-selector involvedObject.kind=VirtualCluster -o jsonpath='{.items[*].reason}'").contains("Running")
    );
    let listed = kube(node, "chasi-bod vcluster connect biz -- helm list --all-namespaces --no-headers");
    assert!(listed.contains("page") && listed.contains("web") && listed.contains("deployed"), "{listed}");
    let read = "-n web exec deployment/page -- wget -qO- http://page.web.svc.cluster.local/";
    assert!(inside(node, "biz", read).contains("In biz"));
}

/// What an application and its cluster must not reach: the host's pods, API and objects, and another virtual cluster.
fn they_are_apart(node: &Node) {
    let service = |namespace: &str, name: &str| kube(node, &format!("kubectl -n {namespace} get service {name} -o jsonpath='{{.spec.clusterIP}}'"));
    let pod =
        |namespace: &str, which: &str| kube(node, &format!("kubectl -n {namespace} get pod -l {which} -o jsonpath='{{.items[0].status.podIP}}'"));
    let from_page =
        |url: &str| node.ssh(&format!("{} kubectl -n vcluster-biz exec {} -- wget -T 5 --no-check-certificate -qO- {url}", super::ADMIN, page(node)));
    let from_host = |url: &str| node.ssh(&format!("{} kubectl -n front exec deployment/front -- wget -T 5 -qO- {url}", super::ADMIN));
    // What is open shows that the tools work.
    let (own, front) = (pod("vcluster-biz", "vcluster.loft.sh/managed-by=biz,vcluster.loft.sh/namespace=web"), service("front", "front"));
    assert!(from_page(&format!("http://{own}:8080/")).unwrap().contains("In biz"));
    assert!(from_host(&format!("http://{front}/")).unwrap().contains("On the host"));
    let api = service("default", "kubernetes");
    let (other_api, other_pod) = (service("vcluster-other", "other"), pod("vcluster-other", "vcluster.loft.sh/managed-by=other"));
    for url in [
        format!("http://{front}/"),
        format!("https://{api}/version"),
        format!("https://{other_api}/version"),
        format!("http://{other_pod}:8080/health"),
    ] {
        assert!(from_page(&url).is_err(), "an application of biz reaches {url}");
    }
    let biz_api = pod("vcluster-biz", "app=vcluster");
    for url in [format!("http://{own}:8080/"), format!("https://{biz_api}:8443/version")] {
        assert!(from_host(&url).is_err(), "a pod of the host reaches {url}");
    }
    for (account, verb, what) in [
        ("vc-biz", "get", "secrets -n kube-system"),
        ("vc-biz", "get", "secrets -n vcluster-other"),
        ("vc-biz", "create", "pods -n vcluster-other"),
        ("vc-biz", "list", "nodes"),
        ("vc-workload-biz", "get", "secrets -n vcluster-biz"),
        ("vc-workload-biz", "list", "pods -n vcluster-biz"),
    ] {
        let asked = kube(node, &format!("kubectl auth can-i {verb} {what} --as=system:serviceaccount:vcluster-biz:{account} || true"));
        assert_eq!(asked.lines().last(), Some("no"), "{account} may {verb} {what}");
    }
    let host_path = r#"{"spec":{"containers":[{"name":"x","image":"registry.k8s.io/pause:3.10.2","volumeMounts":[{"name":"h","mountPath":"/h"}]}],"volumes":[{"name":"h","hostPath":{"path":"/"}}]}}"#;
    let refused =
        inside(node, "biz", &format!("run reaches-out --image=registry.k8s.io/pause:3.10.2 --overrides='{host_path}' 2>&1 && exit 1 || true"));
    assert!(refused.contains("violates PodSecurity \"baseline:latest\": hostPath volumes"), "{refused}");
}

/// The host's name of the page's pod.
fn page(node: &Node) -> String {
    kube(node, "kubectl -n vcluster-biz get pods -o name | grep '/page-'")
}

/// A second one, at first with a mistake.
fn a_mistake_is_told_and_mended(node: &Node) {
    let available = || node.ssh("awk '/MemAvailable/ {print int($2/1024)}' /proc/meminfo").unwrap().parse::<i64>().unwrap();
    // What the node writes for itself all the time, journal and etcd's log ahead of need, is no virtual cluster's.
    let used = "sync; df --output=used -B1 /var | tail -1; du -sxB1 /var/lib/etcd /var/log/journal | cut -f1";
    let used = || node.ssh(used).unwrap().lines().map(|n| n.trim().parse::<i64>().unwrap()).reduce(|all, own| all - own).unwrap();
    let (before, full) = (available(), used());
    let spec = "template: cpy\n  quota: {requests.memory: 64Mi}\n  network: {podCIDR: 10.244.0.0/24}";
    let manifest = format!("apiVersion: chasi-bod.io/v1alpha1\nkind: VirtualCluster\nmetadata: {{name: other}}\nspec:\n  {spec}\n");
    kube(node, &format!("kubectl apply -f - <<'END'\n{manifest}END"));
    phase(node, "vc/other", "ERROR");
    let mend = |patch: &str, before: &str| {
        assert!(kube(node, FAILURE).starts_with(before), "{}", kube(node, FAILURE));
        change(node, "vc/other", patch);
    };
    mend(r#"{"template":"general"}"#, "Refused spec.template: there is no VirtualClusterTemplate `cpy`");
    mend(r#"{"network":null}"#, "Refused spec.network.podCIDR: 10.244.0.0/24 overlaps 10.244.0.0/16 of the host's pods");
    mend(r#"{"quota":null}"#, "Refused spec.quota.requests.memory: 64Mi is less than the ");
    println!("other RUNNING after {} s, {} MiB less available", phase(node, "vc/other", "RUNNING"), before - available());
    let more = used() - full;
    println!("{:.1} MB more on the disk", more as f64 / 1e6);
    assert!(more <= 20_000_000, "an idle virtual cluster takes {more} bytes of the disk");
    assert_eq!(kube(node, FAILURE), "");
}

/// Under another template the same pod is of another class; the control plane is not touched. Nothing runs: the API server says what it would make.
fn a_template_reaches_pods(node: &Node) {
    let class = "kubectl -n vcluster-other run probe --image=registry.k8s.io/pause:3.10.2 --dry-run=server -o jsonpath='{.status.qosClass}'";
    assert_eq!(kube(node, class), "Burstable");
    change(node, "vc/other", r#"{"template":"memory"}"#);
    phase(node, "vc/other", "RUNNING");
    assert_eq!(kube(node, class), "Guaranteed");
    change(node, "vc/other", r#"{"template":"general"}"#);
    phase(node, "vc/other", "RUNNING");
}

fn suspended_and_resumed(node: &Node) {
    kube(node, "chasi-bod vcluster suspend biz");
    println!("SUSPENDED after {} s", phase(node, "vc/biz", "SUSPENDED"));
    assert_eq!(kube(node, "kubectl -n vcluster-biz get pods --no-headers 2>/dev/null | wc -l"), "0");
    phase(node, "comp/page", "WAITING");
    kube(node, "chasi-bod vcluster resume biz");
    println!("RUNNING again after {} s", phase(node, "vc/biz", "RUNNING"));
    inside(node, "biz", "-n web rollout status deployment/page --timeout=300s");
    phase(node, "comp/page", "READY");
    assert!(kube(node, "chasi-bod vcluster connect biz -- helm -n web history page --max 9 -o json").matches("\"revision\"").count() == 1);
}

/// Data goes by a file of the node into another virtual cluster, and by a volume back into its own.
fn copied_and_put_back(node: &Node) {
    let claim = "{\"apiVersion\":\"v1\",\"kind\":\"PersistentVolumeClaim\",\"metadata\":{\"name\":\"backups\"},\"spec\":{\"accessModes\":[\"ReadWriteOnce\"],\"resources\":{\"requests\":{\"storage\":\"100Mi\"}}}}";
    kube(node, &format!("kubectl -n vcluster-biz apply -f - <<'END'\n{claim}\nEND"));
    inside(node, "biz", "create configmap kept --from-literal=word=kept");
    let begun = Instant::now();
    kube(node, "chasi-bod vcluster snapshot biz --to file:biz.tar.gz --as to-file --wait");
    println!("snapshot to a file after {} s", begun.elapsed().as_secs());
    kube(node, "chasi-bod vcluster snapshot biz --to claim:backups/2026/biz.tar.gz --as to-claim --wait");
    inside(node, "biz", "delete configmap kept");
    let missing = node.ssh(&format!("{} chasi-bod vcluster restore other --from file:none.tar.gz --as mistaken --wait", super::ADMIN));
    assert!(missing.unwrap_err().to_string().contains("spec.from.file: this node, which leads, has no /var/lib/chasi-bod/snapshots/none.tar.gz"));
    let begun = Instant::now();
    kube(node, "chasi-bod vcluster restore other --from file:biz.tar.gz --as into-other --wait");
    println!("restored after {} s, RUNNING {} s later", begun.elapsed().as_secs(), phase(node, "vc/other", "RUNNING"));
    assert_eq!(inside(node, "other", "get configmap kept -o jsonpath='{.data.word}'"), "kept");
    inside(node, "other", "-n web rollout status deployment/page --timeout=300s");
    kube(node, "chasi-bod vcluster snapshot other --to oci:10.96.0.5:5000/snapshots/other:1 --as to-registry --wait");
    inside(node, "other", "delete configmap kept");
    kube(node, "chasi-bod vcluster restore other --from oci:10.96.0.5:5000/snapshots/other:1 --as from-registry --wait");
    phase(node, "vc/other", "RUNNING");
    assert_eq!(inside(node, "other", "get configmap kept -o jsonpath='{.data.word}'"), "kept");
    kube(node, "chasi-bod vcluster restore biz --from claim:backups/2026/biz.tar.gz --as back --wait");
    phase(node, "vc/biz", "RUNNING");
    assert_eq!(inside(node, "biz", "get configmap kept -o jsonpath='{.data.word}'"), "kept");
    let list = kube(node, "chasi-bod vcluster snapshots biz");
    assert!(list.lines().filter(|line| line.contains(" DONE ")).count() == 3 && list.contains("to-claim"), "{list}");
    let events = kube(node, "kubectl get events --field-selector involvedObject.kind=VirtualCluster -o jsonpath='{.items[*].reason}'");
    assert!(events.contains("Snapshotting") && events.contains("Restoring"), "{events}");
    assert_eq!(kube(node, "kubectl get pods -A -l app=vcluster-copy --no-headers 2>/dev/null | wc -l"), "0");
}

/// By its schedule it sleeps from this minute on, until somebody wants it awake.
fn asleep_by_its_schedule(node: &Node) {
    let now = node.ssh("date -u '+%-M %-H'").unwrap();
    change(node, "vc/other", &format!(r#"{{"sleep":{{"suspend":"{now} * * *","timeZone":"UTC"}}}}"#));
    phase(node, "vc/other", "SUSPENDED");
    let why = "kubectl get vc other -o jsonpath='{.status.conditions[?(@.type==\"Ready\")].message}'";
    assert_eq!(kube(node, why), "asleep by its schedule");
    kube(node, "chasi-bod vcluster resume other --wait");
    assert_eq!(kube(node, "kubectl get vc other -o jsonpath='{.spec.suspended}'"), "false");
}

fn an_application_changes_and_goes(node: &Node) {
    change(node, "comp/front", r#"{"values":{"title":"Changed"}}"#);
    phase(node, "comp/front", "READY");
    let read =
        "for i in $(seq 60); do kubectl -n front exec deployment/front -- wget -qO- http://front/ | grep Changed && exit 0; sleep 2; done; exit 1";
    assert!(kube(node, read).contains("Changed"));
    assert_eq!(kube(node, "kubectl get comp front -o jsonpath='{.status.revision}'"), "2");
    change(node, "comp/front", r#"{"source":{"chart":{"version":"9.9.9"}}}"#);
    phase(node, "comp/front", "ERROR");
    let why = kube(node, "chasi-bod component why front");
    assert!(why.contains("spec.source.chart.version: the image brings no version 9.9.9 of chart page"), "{why}");
    kube(node, "kubectl delete comp front page --timeout=300s");
    assert_eq!(kube(node, "helm list -n front --no-headers; chasi-bod vcluster connect biz -- helm list -n web --no-headers"), "");
}

/// vcluster's own chart by itself, as a component: without the image volume its init container takes the same programs from the same image.
fn upstreams_chart_alone_works_with_the_same_images(node: &Node) {
    let values = "{controlPlane: {statefulSet: {persistence: {binariesVolume: [{name: binaries, emptyDir: {}}]}}}}";
    let version = kube(node, "helm list -A --no-headers | grep -o 'vcluster-[0-9][0-9.]*' | head -n 1 | cut -d - -f 2");
    let spec = format!("source: {{chart: {{name: vcluster, version: {version}}}}}\n  target: {{namespace: plain}}\n  values: {values}");
    let manifest = format!("apiVersion: chasi-bod.io/v1alpha1\nkind: Component\nmetadata: {{name: plain}}\nspec:\n  {spec}\n");
    kube(node, &format!("kubectl apply -f - <<'END'\n{manifest}END"));
    phase(node, "comp/plain", "READY");
    let init = kube(node, "kubectl -n plain get pod plain-0 -o jsonpath='{.spec.initContainers[*].image} {.status.containerStatuses[*].ready}'");
    assert_eq!(init, "chasi-bod.internal/vcluster-binaries:v1.36.3 true");
    let config = "kubectl -n plain get secret vc-plain -o jsonpath='{.data.config}' | base64 -d > /run/plain.conf";
    let server = "https://$(kubectl -n plain get service plain -o jsonpath='{.spec.clusterIP}')";
    let asked = kube(
        node,
        &format!("{config}; kubectl --kubeconfig /run/plain.conf --server {server} --tls-server-name localhost version -o json; rm /run/plain.conf"),
    );
    assert!(asked.matches("\"gitVersion\": \"v1.36.3\"").count() == 2, "{asked}");
    kube(node, "kubectl delete comp plain --timeout=300s; kubectl delete namespace plain --timeout=300s");
}

fn nothing_is_left(node: &Node) {
    kube(node, "chasi-bod vcluster delete biz --yes --wait");
    kube(node, "kubectl delete vc other --timeout=300s");
    operations::metrics_of_what_is_gone_go(node, "other");
    let left = "kubectl get namespaces,clusterroles,clusterrolebindings,pv -o name | grep -E 'biz|other' || true; helm list -A --no-headers | grep -E 'biz|other' || true";
    assert_eq!(kube(node, left), "");
}

#[test]
#[ignore = "soak: builds another image"]
fn soak_uml_virtual_clusters_come_with_their_applications_are_apart_sleep_and_go() {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let (node, firmware) = Node::in_uml(folder.path(), &image(folder.path()), &net, 1).unwrap();
    let mut vm = node.start(firmware).unwrap();
    formed(&node, &mut vm);
    seed::seeded(&node, &mut vm, "done");
    the_seed_comes_by_itself(&node);
    operations::metrics_tell_of_steps_and_objects(&node);
    operations::f6_a_bundle_has_no_secrets(&node);
    applications::deployed_and_changed(&node);
    applications::deployed_from_a_workstation(&node);
    a_mistake_is_told_and_mended(&node);
    they_are_apart(&node);
    a_template_reaches_pods(&node);
    suspended_and_resumed(&node);
    copied_and_put_back(&node);
    asleep_by_its_schedule(&node);
    an_application_changes_and_goes(&node);
    upstreams_chart_alone_works_with_the_same_images(&node);
    nothing_is_left(&node);
    node.shut_down(vm).unwrap();
}
