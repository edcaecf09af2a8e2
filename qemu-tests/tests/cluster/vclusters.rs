//! Virtual clusters on a real node: the profile's one is there with its application, what becomes of one in its life, that they are apart, and that
//! nothing of it is left.

use std::path::{Path, PathBuf};
use std::time::Instant;

use qemu_tests::node::Node;
use qemu_tests::uml::Net;
use serde_json::json;

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

/// A page of its own in the second virtual cluster, whose word comes from a Secret there; and what it may see of its host by the names that it was given.
fn what_is_offered_is_there(node: &Node) {
    let container = json!({"name": "probe", "image": "chasi-bod.internal/busybox:1.37", "command": ["httpd", "-f", "-p", "8080", "-h", "/etc"],
        "envFrom": [{"secretRef": {"name": "word"}}]});
    let pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "labels": {"app": "probe"}}, "spec": {"containers": [container]}});
    inside(node, "other", "create secret generic word --from-literal=word=secret");
    inside(node, "other", &format!("apply -f - <<'END'\n{pod}\nEND"));
    inside(node, "other", "expose pod probe --port 80 --target-port 8080");
    inside(node, "other", "wait pod/probe --for=condition=Ready --timeout=300s");
    assert!(inside(node, "other", "exec probe -- cat /proc/1/environ").contains("word=secret"));
    let own = inside(node, "other", "exec probe -- busybox nslookup probe.default.svc.other.test");
    assert!(own.contains(&inside(node, "other", "get service probe -o jsonpath='{.spec.clusterIP}'")), "{own}");
    // The syncer makes it a moment after it has begun.
    let page = within("other", "exec probe -- wget -T 20 -qO- http://front.offered.svc.other.test/");
    let story = within("other", "-n offered get services,endpoints,endpointslices -o wide");
    let read = node.ssh(&format!("for i in $(seq 30); do ({page}) && exit 0; sleep 2; done; {story}; {page}"));
    assert!(read.unwrap().contains("On the host"), "a service of the host by the name that it was given");
}

/// What an application and its cluster must not reach: the host's pods, API and objects, and another virtual cluster. Whoever is let through gets an answer,
/// if only a refusal by the program there; others get none at all.
fn they_are_apart(node: &Node) {
    let service = |namespace: &str, name: &str| kube(node, &format!("kubectl -n {namespace} get service {name} -o jsonpath='{{.spec.clusterIP}}'"));
    let pod =
        |namespace: &str, which: &str| kube(node, &format!("kubectl -n {namespace} get pod -l {which} -o jsonpath='{{.items[0].status.podIP}}'"));
    let from = |whom: &str, url: &str| {
        let ask = format!("{} kubectl {whom} -- wget -T 5 --no-check-certificate -qO- {url} 2>&1 || true", super::ADMIN);
        let said = node.ssh(&ask).unwrap();
        println!("{whom}: {url}: {}", said.lines().next().unwrap_or_default());
        // Nothing else than these: a tool that fails by itself says nothing of the way.
        let is_shut = said.contains("download timed out");
        let is_answer = said.contains("server returned error: HTTP/") || !["wget: ", "error: ", "Error "].iter().any(|word| said.contains(word));
        assert!(is_shut || is_answer, "{whom}: {url}: {said}");
        !is_shut
    };
    let (page, front, probe) =
        (format!("-n vcluster-biz exec {}", page(node)), "-n front exec deployment/front", "-n vcluster-other exec probe-x-default-x-other");
    let (own, other) = (pod("vcluster-biz", "vcluster.loft.sh/managed-by=biz,vcluster.loft.sh/namespace=web"), pod("vcluster-other", "app=probe"));
    let (api, host_page) = (service("default", "kubernetes"), service("front", "front"));
    let (biz_api, other_api) = (service("vcluster-biz", "biz"), service("vcluster-other", "other"));
    let (biz_dns, other_dns) = (pod("vcluster-biz", "k8s-app=vcluster-kube-dns"), pod("vcluster-other", "k8s-app=vcluster-kube-dns"));
    let services = |name: &str| kube(node, &format!("kubectl -n vcluster-{name} get services -o name | grep -E '/(page|probe)-x-' | cut -d / -f 2"));
    let (page_service, probe_service) = (service("vcluster-biz", &services("biz")), service("vcluster-other", &services("other")));
    for (whom, url) in [
        (page.as_str(), format!("http://{own}:8080/")),
        (&page, format!("http://{page_service}/")),
        (&page, format!("https://{biz_api}/version")),
        (&page, format!("http://{biz_dns}:8080/health")),
        (probe, format!("http://{other}:8080/passwd")),
        (probe, format!("http://{probe_service}/passwd")),
        (probe, format!("https://{other_api}/version")),
        (front, format!("http://{host_page}/")),
        (front, format!("https://{api}/version")),
    ] {
        assert!(from(whom, &url), "{whom} does not reach {url}");
    }
    for (whom, url) in [
        (page.as_str(), format!("http://{host_page}/")),
        (&page, format!("https://{api}/version")),
        (&page, format!("https://{other_api}/version")),
        (&page, format!("http://{other_dns}:8080/health")),
        (&page, format!("http://{other}:8080/passwd")),
        (&page, format!("http://{probe_service}/passwd")),
        (probe, format!("https://{api}/version")),
        (probe, format!("https://{biz_api}/version")),
        (probe, format!("http://{biz_dns}:8080/health")),
        (probe, format!("http://{own}:8080/")),
        (probe, format!("http://{page_service}/")),
        (front, format!("http://{own}:8080/")),
        (front, format!("http://{page_service}/")),
        (front, format!("https://{biz_api}/version")),
        (front, format!("http://{biz_dns}:8080/health")),
    ] {
        assert!(!from(whom, &url), "{whom} reaches {url}");
    }
    accounts_have_few_rights(node);
    let host_path = r#"{"spec":{"containers":[{"name":"x","image":"registry.k8s.io/pause:3.10.2","volumeMounts":[{"name":"h","mountPath":"/h"}]}],"volumes":[{"name":"h","hostPath":{"path":"/"}}]}}"#;
    let refused =
        inside(node, "biz", &format!("run reaches-out --image=registry.k8s.io/pause:3.10.2 --overrides='{host_path}' 2>&1 && exit 1 || true"));
    assert!(refused.contains("violates PodSecurity \"baseline:latest\": hostPath volumes"), "{refused}");
}

/// With the tokens of the syncer and of the workloads, as whoever has broken out of one would.
fn accounts_have_few_rights(node: &Node) {
    for (account, what, may) in [
        ("vc-biz", "get pods -n vcluster-biz", true),
        ("vc-biz", "get secrets -n vcluster-biz", true),
        ("vc-biz", "get secrets -n kube-system", false),
        ("vc-biz", "get secrets -n vcluster-other", false),
        ("vc-biz", "get pods -n vcluster-other", false),
        ("vc-biz", "run taken --image=registry.k8s.io/pause:3.10.2 -n vcluster-other", false),
        ("vc-biz", "get nodes", false),
        ("vc-biz", "get namespaces", false),
        ("vc-workload-biz", "get secrets -n vcluster-biz", false),
        ("vc-workload-biz", "get pods -n vcluster-biz", false),
    ] {
        let token = format!("$(kubectl -n vcluster-biz create token {account})");
        let ask = format!(
            "kubectl --kubeconfig /dev/null --server https://10.96.0.1 --certificate-authority /etc/kubernetes/pki/ca.crt --token {token} {what}"
        );
        let said = kube(node, &format!("{ask} 2>&1 || true"));
        assert_eq!(said.contains("(Forbidden)"), !may, "{account}: {what}: {said}");
        assert!(!may || said.contains("NAME"), "{account}: {what}: {said}");
    }
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
    let spec = "template: cpy\n  quota: {requests.memory: 64Mi}\n  network: {podCIDR: 10.244.0.0/24, domain: other.test}";
    let manifest = format!("apiVersion: chasi-bod.io/v1alpha1\nkind: VirtualCluster\nmetadata: {{name: other}}\nspec:\n  {spec}\n");
    kube(node, &format!("kubectl apply -f - <<'END'\n{manifest}END"));
    phase(node, "vc/other", "ERROR");
    let mend = |patch: &str, before: &str| {
        assert!(kube(node, FAILURE).starts_with(before), "{}", kube(node, FAILURE));
        change(node, "vc/other", patch);
    };
    mend(r#"{"template":"general"}"#, "Refused spec.template: there is no VirtualClusterTemplate `cpy`");
    mend(r#"{"network":{"podCIDR":null}}"#, "Refused spec.network.podCIDR: 10.244.0.0/24 overlaps 10.244.0.0/16 of the host's pods");
    mend(r#"{"quota":null}"#, "Refused spec.quota.requests.memory: 64Mi is less than the ");
    println!("other RUNNING after {} s, {} MiB less available", phase(node, "vc/other", "RUNNING"), before - available());
    // An idle one has done with its start, and Go, which looks every two minutes, has collected what that left behind.
    std::thread::sleep(std::time::Duration::from_secs(150));
    println!("and {} MiB less two and a half minutes later", before - available());
    let more = used() - full;
    println!("{:.1} MB more on the disk", more as f64 / 1e6);
    assert!(more <= 20_000_000, "an idle virtual cluster takes {more} bytes of the disk");
    change(node, "vc/other", r#"{"network":{"hostServices":[{"from":"front/front","to":"offered/front"}]}}"#);
    println!("UPDATED after {} s", phase(node, "vc/other", "RUNNING"));
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
    // At once: RUNNING means that it serves.
    let serves =
        "kubectl -n vcluster-biz get pods -l k8s-app=vcluster-kube-dns -o jsonpath='{.items[0].status.conditions[?(@.type==\"Ready\")].status}'";
    assert_eq!(kube(node, serves), "True");
    inside(node, "biz", "-n web rollout status deployment/page --timeout=300s");
    assert!(inside(node, "biz", "-n web exec deployment/page -- busybox nslookup page.web.svc.cluster.local").contains(&inside(
        node,
        "biz",
        "-n web get service page -o jsonpath='{.spec.clusterIP}'"
    )));
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

/// A virtual cluster of the template for disks: its store and a pod that says nothing of itself have what the template gives.
fn a_template_for_disks(node: &Node) {
    kube(node, "chasi-bod vcluster create quick --template io --wait");
    let claim = "kubectl -n vcluster-quick get pvc data-quick-0 -o jsonpath='{.spec.storageClassName} {.status.phase}'";
    assert_eq!(kube(node, claim), "local-path-io Bound");
    assert!(!kube(node, "ls -d /var/lib/chasi-bod/volumes-io/*vcluster-quick_data-quick-0").is_empty());
    inside(node, "quick", "run probe --image=chasi-bod.internal/busybox:1.37 --command -- sleep 9999");
    inside(node, "quick", "wait pod/probe --for=condition=Ready --timeout=300s");
    let limits = "kubectl -n vcluster-quick get pod probe-x-default-x-quick -o jsonpath='{.spec.containers[0].resources.limits.ephemeral-storage} {.status.phase}'";
    assert_eq!(kube(node, limits), "4Gi Running");
    kube(node, "chasi-bod vcluster delete quick --yes --wait");
    nothing_is_left(node, "quick");
}

/// vcluster's own chart by itself, as a component: without the image volume its init container takes the same programs from the same image.
fn upstreams_chart_alone_works_with_the_same_images(node: &Node, version: &str) {
    let values = "{controlPlane: {statefulSet: {persistence: {binariesVolume: [{name: binaries, emptyDir: {}}]}}}}";
    let spec = format!("source: {{chart: {{name: vcluster, version: {version}}}}}\n  target: {{namespace: plain}}\n  values: {values}");
    let manifest = format!("apiVersion: chasi-bod.io/v1alpha1\nkind: Component\nmetadata: {{name: plain}}\nspec:\n  {spec}\n");
    kube(node, &format!("kubectl apply -f - <<'END'\n{manifest}END"));
    phase(node, "comp/plain", "READY");
    // Its API answers before its syncer runs.
    kube(node, "for i in $(seq 100); do kubectl -n plain get secret vc-plain 2>/dev/null && exit 0; sleep 2; done; exit 1");
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

/// Neither on the API nor on the node is anything of a virtual cluster that was deleted.
pub fn nothing_is_left(node: &Node, name: &str) {
    let objects = format!(
        "kubectl get namespaces,clusterroles,clusterrolebindings -o name | grep -E '(vc|vcluster)-(.*-)?{name}(-|$)'; \
         kubectl get pv -o jsonpath='{{range .items[*]}}{{.metadata.name}} {{.spec.claimRef.namespace}}{{\"\\n\"}}{{end}}' | grep vcluster-{name}; \
         helm list -A --no-headers | grep -w {name}"
    );
    let node_has = format!("ls -d /var/lib/chasi-bod/volumes*/*vcluster-{name}_* /run/chasi-bod/helm/vcluster-{name}.conf");
    // Chains of policies are named by the address of their pod.
    let strays = "for a in $(nft list ruleset | grep -oE 'chain (to|from)-[0-9.]+' | sed 's/.*-//' | sort -u); do \
         kubectl get pods -A -o jsonpath='{.items[*].status.podIP}' | grep -qwF \"$a\" || echo \"a policy for $a\"; done";
    // The provisioner removes folders after their volumes.
    let left = format!("left() {{ {{ {objects}; {node_has}; {strays}; }} 2>/dev/null; }}");
    let said = kube(node, &format!("{left}; for i in $(seq 60); do [ -z \"$(left)\" ] && exit 0; sleep 1; done; left"));
    assert_eq!(said, "", "{name} is gone");
}

fn all_go(node: &Node) {
    // That there is something to look for.
    let volumes =
        kube(node, "ls -d /var/lib/chasi-bod/volumes*/*vcluster-biz_*; ls /run/chasi-bod/helm/vcluster-biz.conf; kubectl get pv | grep vcluster-biz");
    assert!(volumes.lines().count() >= 3, "{volumes}");
    kube(node, "chasi-bod vcluster delete biz --yes --wait");
    kube(node, "kubectl delete vc other --timeout=300s");
    operations::metrics_of_what_is_gone_go(node, "other");
    nothing_is_left(node, "biz");
    nothing_is_left(node, "other");
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
    what_is_offered_is_there(&node);
    they_are_apart(&node);
    a_template_reaches_pods(&node);
    suspended_and_resumed(&node);
    copied_and_put_back(&node);
    asleep_by_its_schedule(&node);
    an_application_changes_and_goes(&node);
    // Afterwards there is none that says which version the image's chart has.
    let version = kube(&node, "helm list -A --no-headers | grep -o 'vcluster-[0-9][0-9.]*' | head -n 1 | cut -d - -f 2");
    all_go(&node);
    a_template_for_disks(&node);
    upstreams_chart_alone_works_with_the_same_images(&node, &version);
    node.shut_down(vm).unwrap();
}
