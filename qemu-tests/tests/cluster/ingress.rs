//! What is outside of the node reaches applications in virtual clusters, and an API of one, by one address of the pool.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qemu_tests::exec;
use qemu_tests::node::Node;
use qemu_tests::uml::Net;

use super::vclusters::{inside, nothing_is_left, phase};
use super::{account, build_more, chasi_bod, formed, kube, profiles, program, seed};

/// The first of the pool.
const ADDRESS: &str = "10.77.0.200";

/// `standalone` with a pool, the ingress controller, and the same application in two virtual clusters.
const PROFILE: &str = "layers:
- {name: orchestration, parameters: {loadBalancerPool: [10.77.0.200-10.77.0.201], nodePorts: 31000-31999, reservedPorts: [9000-9099]}}
- vcluster
- ingress
charts:
- {name: page, chart: ./page, install: false}
vclusters:
- {name: one, template: network, network: {exposure: {host: one.example.org}}}
- {name: two, template: network, network: {exposure: {host: apis.example.org, path: /teams/two}}}
components:
- name: traefik
  source: {chart: {name: traefik}}
  target: {namespace: ingress}
- name: page-one
  source: {chart: {name: page}}
  target: {virtualCluster: one, namespace: web}
  values: {title: In one, host: one.apps.example.org}
  dependsOn: [traefik]
- name: page-two
  source: {chart: {name: page}}
  target: {virtualCluster: two, namespace: web}
  values: {title: In two, host: two.apps.example.org}
  dependsOn: [traefik]
";

const INGRESS: &str = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  ingressClassName: traefik
  rules:
  - host: {{ .Values.host }}
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}
";

/// The shipped page, which is called `web` wherever it is, with an Ingress.
fn page(folder: &Path, shipped: &Path) {
    let page = folder.join("page");
    exec::run("cp", &["-r", shipped.join("charts/welcome").to_str().unwrap(), page.to_str().unwrap()]).unwrap();
    for file in std::fs::read_dir(page.join("templates")).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("name: {{ .Release.Name }}", "name: web").replace("app: {{ .Release.Name }}", "app: web")).unwrap();
    }
    std::fs::write(page.join("templates/ingress.yaml"), INGRESS).unwrap();
    let values = std::fs::read_to_string(page.join("values.yaml")).unwrap();
    std::fs::write(page.join("values.yaml"), format!("{values}host: page.example.org\n")).unwrap();
}

fn image(folder: &Path) -> PathBuf {
    page(folder, &profiles());
    build_more(folder, "ingress", PROFILE)
}

/// What a request from outside of the node gets: the status, and the page.
fn ask(node: &Node, url: &str, more: &[&str]) -> (String, String) {
    let fixed = ["--silent", "--max-time", "10", "--write-out", "\n%{http_code}", url];
    let said = node.beside("curl", &[&fixed[..], more].concat()).map_or_else(|_| "\n000".into(), |output| String::from_utf8(output.stdout).unwrap());
    let (page, status) = said.rsplit_once('\n').unwrap();
    (status.into(), page.into())
}

/// As soon as the controller knows of the Ingress.
fn answers(node: &Node, url: &str, more: &[&str], expected: &str) {
    let begun = Instant::now();
    loop {
        let (status, page) = ask(node, url, more);
        if status == "200" && page.contains(expected) {
            return println!("{url} {more:?} answers after {} s", begun.elapsed().as_secs());
        }
        let logs =
            || kube(node, "kubectl -n ingress logs deployment/traefik --tail=30; kubectl get ingress,service -A -o wide; ip address show pool0");
        assert!(begun.elapsed() < Duration::from_secs(120), "{url} {more:?}: {status} {page}\n{}\n{}", logs(), account(node));
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// By the address of the pool and the name in the request, plain and enciphered.
fn both_applications_answer(node: &Node) {
    for name in ["one", "two"] {
        let (host, expected) = (format!("{name}.apps.example.org"), format!("In {name}"));
        answers(node, &format!("http://{ADDRESS}/"), &["--header", &format!("Host: {host}")], &expected);
        answers(node, &format!("https://{host}/"), &["--insecure", "--resolve", &format!("{host}:443:{ADDRESS}")], &expected);
        let own = "-n web get ingress web -o jsonpath='{.spec.rules[0].host} {.status.loadBalancer.ingress[0].ip}'";
        assert_eq!(inside(node, name, own), format!("{host} {ADDRESS}"));
        assert_eq!(kube(node, &format!("kubectl -n vcluster-{name} get service web-x-web-x-{name} -o name")), format!("service/web-x-web-x-{name}"));
    }
    assert_eq!(ask(node, &format!("http://{ADDRESS}/"), &[]).0, "404", "a name that nobody has");
}

/// The way to a virtual API below a path, as from a workstation that knows the host's name.
struct Below<'a> {
    node: &'a Node,
    kubectl: String,
    hosts: String,
    /// Of the operator in the virtual cluster.
    config: String,
}

impl<'a> Below<'a> {
    /// With the workstation's command and the operator's kubeconfig of the host.
    fn connect(node: &'a Node) -> Self {
        let file = |name: &str| node.folder.join(name).to_str().unwrap().to_string();
        let (host, config, hosts) = (file("host.conf"), file("two.conf"), file("hosts"));
        std::fs::write(&host, node.ssh("chasi-bod kubeconfig --server 10.77.0.11").unwrap()).unwrap();
        std::fs::write(&hosts, format!("{ADDRESS} apis.example.org\n")).unwrap();
        let said = node.beside(chasi_bod().to_str().unwrap(), &["vcluster", "connect", "two", "--kubeconfig", &host]).unwrap();
        println!("{}", String::from_utf8_lossy(&said.stderr).trim());
        std::fs::write(&config, said.stdout).unwrap();
        let kubectl = program(&node.folder, "kubectl", "/usr/lib/chasi-bod/bin/kube").to_str().unwrap().to_string();
        Self { node, kubectl, hosts, config }
    }

    /// What a shell line says on stdout and stderr; `$kubectl` is kubectl with the kubeconfig.
    fn says(&self, line: &str) -> String {
        let kubectl = format!("{} --kubeconfig {}", self.kubectl, self.config);
        let script = format!("exec 2>&1; mount --bind {} /etc/hosts; kubectl='{kubectl}'; {line}; true", self.hosts);
        String::from_utf8(self.node.beside("unshare", &["--mount", "sh", "-c", &script]).unwrap().stdout).unwrap()
    }
}

/// By a token, as TLS ends at the ingress controller: what kubectl does in one answer, in a long one and in both directions.
fn an_operator_reaches_a_virtual_api_below_a_path(node: &Node) {
    assert_eq!(kube(node, "kubectl get vc two -o jsonpath='{.status.endpoint}'"), "https://apis.example.org/teams/two");
    let below = Below::connect(node);
    let config = std::fs::read_to_string(&below.config).unwrap();
    assert!(config.contains("https://apis.example.org/teams/two") && !config.contains("client-key"), "{config}");
    let begun = Instant::now();
    while !below.says("$kubectl get namespaces -o name").contains("namespace/web") {
        let said = || below.says("$kubectl get namespaces -v6");
        let logs = || kube(node, "kubectl -n ingress logs deployment/traefik --tail=30; kubectl get ingress -A -o yaml");
        assert!(begun.elapsed() < Duration::from_secs(120), "{}\n{}", said(), logs());
        std::thread::sleep(Duration::from_secs(1));
    }
    println!("below a path it answers after {} s", begun.elapsed().as_secs());
    let who = below.says("$kubectl auth whoami -o jsonpath='{.status.userInfo.username}'");
    assert_eq!(who, "system:serviceaccount:kube-system:chasi-bod-connect");
    let pods = below.says("$kubectl get pods -A -o name");
    assert!(pods.contains("pod/web-") && !pods.contains("traefik"), "the virtual cluster's own: {pods}");
    let made = below.says("$kubectl run noise --image=chasi-bod.internal/busybox:1.37 -- sh -c 'while sleep 1; do echo noise; done'");
    assert!(made.contains("pod/noise created"), "{made}");
    below.says("$kubectl wait --for=condition=Ready pod/noise --timeout=120s");
    for (line, expected) in [
        ("$kubectl exec noise -- sh -c 'echo it is $HOSTNAME'", "it is noise"),
        ("echo word | $kubectl exec -i noise -- sh -c 'read it; echo got $it'", "got word"),
        ("$kubectl logs noise", "noise"),
        ("$kubectl logs --follow --tail=0 noise & sleep 5; kill $!", "noise"),
        ("$kubectl -n web port-forward deployment/web 18080:8080 >/dev/null & sleep 5; curl -s http://127.0.0.1:18080/; kill $!", "In two"),
    ] {
        let said = below.says(line);
        assert!(said.contains(expected), "{line}: {said}");
    }
    // Over a minute, the time that traefik gives a request to arrive.
    let watch = "$kubectl -n web get configmaps --watch -o name & sleep 70; $kubectl -n web create configmap late >&2; sleep 3; kill $!";
    let watched = below.says(watch);
    // The one who makes it says so, too.
    assert!(watched.lines().any(|line| line == "configmap/late"), "{watched}");
}

/// No token, a wrong one, another path, and an Ingress of somebody who would like to have the tokens.
fn nobody_else_gets_through_or_in_between(node: &Node) {
    let below = Below::connect(node);
    let said = below.says("$kubectl --token wrong get namespaces");
    assert!(said.contains("Unauthorized"), "{said}");
    let url = |path: &str| format!("https://apis.example.org{path}");
    let address = format!("apis.example.org:443:{ADDRESS}");
    let more = ["--insecure", "--resolve", &address];
    for path in ["/teams/twofold/version", "/teams"] {
        assert_eq!(ask(node, &url(path), &more).0, "404", "{path}");
    }
    // The virtual API's own words, also when others would like to answer.
    let stranger = || ask(node, &url("/teams/two/api/v1/namespaces"), &more);
    let refused = stranger();
    assert!(["401", "403"].contains(&refused.0.as_str()) && refused.1.contains("\"kind\""), "{refused:?}");
    let plain = ask(node, &format!("http://{ADDRESS}/teams/two/version"), &["--header", "Host: apis.example.org"]);
    assert_eq!(plain.0, "404", "a token would be readable on the way: {plain:?}");
    let route = |class: &str| format!("create ingress thief-{class} --class={class} --rule='apis.example.org/teams/two/api/v1/namespaces*=web:http'");
    inside(node, "one", &format!("-n web {}", route("traefik")));
    kube(node, "for i in $(seq 60); do kubectl -n vcluster-one get ingress -o name | grep thief-traefik && exit 0; sleep 1; done; exit 1");
    let denied = node.ssh(&format!("{} kubectl -n vcluster-one {} 2>&1 || true", super::ADMIN, route("virtual-apis"))).unwrap();
    assert!(denied.contains("for the APIs of virtual clusters alone"), "{denied}");
    std::thread::sleep(Duration::from_secs(5));
    assert!(below.says("$kubectl get namespaces -o name").contains("namespace/kube-system"), "another route has the request");
    assert_eq!(stranger(), refused, "another route has the request");
    inside(node, "one", "-n web delete ingress thief-traefik");
}

/// With the client's own certificate, which only the API itself can check.
fn an_operator_reaches_the_virtual_api(node: &Node) {
    assert_eq!(kube(node, "kubectl get vc one -o jsonpath='{.status.endpoint}'"), "https://one.example.org");
    let (program, config) = (program(&node.folder, "kubectl", "/usr/lib/chasi-bod/bin/kube"), node.folder.join("one.conf"));
    std::fs::write(&config, kube(node, &format!("chasi-bod vcluster connect one --server {ADDRESS}"))).unwrap();
    let kubectl = |words: &[&str]| node.beside(program.to_str().unwrap(), &[&["--kubeconfig", config.to_str().unwrap()], words].concat());
    let listed = String::from_utf8(kubectl(&["get", "namespaces", "-o", "name"]).unwrap().stdout).unwrap();
    assert!(listed.contains("namespace/web") && !listed.contains("vcluster-"), "{listed}");
    let who = String::from_utf8(kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.groups}"]).unwrap().stdout).unwrap();
    assert!(who.contains("system:masters"), "{who}");
}

/// The node's own programs are not there by the addresses of Services, and are by its own.
fn the_address_is_for_services_alone(node: &Node) {
    assert_eq!(ask(node, "https://10.77.0.11:6443/livez", &["--insecure"]), ("200".into(), "ok".into()));
    for port in [22, 6443, 10250] {
        assert_eq!(ask(node, &format!("https://{ADDRESS}:{port}/livez"), &["--insecure", "--connect-timeout", "2"]).0, "000", "port {port}");
    }
    assert_eq!(node.ssh(&format!("curl -s -o /dev/null -w '%{{http_code}}' http://{ADDRESS}/")).unwrap(), "404", "the node itself uses the Service");
    let status = node.status().unwrap();
    assert!(!status["addresses"].to_string().contains(ADDRESS), "{status}");
}

/// The pool has two; the ports are those of the profile.
fn the_pool_ends_and_ports_are_the_profiles(node: &Node) {
    for name in ["second", "third"] {
        kube(node, &format!("kubectl create service loadbalancer {name} --tcp=80:8080"));
    }
    let address = "kubectl get service second -o jsonpath='{.status.loadBalancer.ingress[0].ip}'";
    kube(node, &format!("for i in $(seq 60); do [ \"$({address})\" = 10.77.0.201 ] && exit 0; sleep 1; done; kubectl get services; exit 1"));
    let event = "kubectl get events --field-selector reason=PoolExhausted -o jsonpath='{.items[0].involvedObject.name} {.items[0].message}'";
    let told = kube(node, &format!("for i in $(seq 60); do {event} 2>/dev/null | grep . && exit 0; sleep 1; done; exit 1"));
    assert!(told.starts_with("third all 2 addresses of the pool are taken"), "{told}");
    let port = kube(node, "kubectl get service second -o jsonpath='{.spec.ports[0].nodePort}'");
    assert!((31000..=31999).contains(&port.parse::<u16>().unwrap()), "{port}");
    assert_eq!(node.ssh("cat /proc/sys/net/ipv4/ip_local_reserved_ports").unwrap(), "9000-9099,31000-31999");
    kube(node, "kubectl delete service second third");
}

#[test]
#[ignore = "soak: builds another image"]
fn soak_uml_applications_of_two_virtual_clusters_answer_by_an_ingress_from_outside() {
    let (folder, net) = (tempfile::tempdir().unwrap(), Net::new(1).unwrap());
    let (mut node, firmware) = Node::in_uml(folder.path(), &image(folder.path()), &net, 1).unwrap();
    node.memory = 2560;
    let mut vm = node.start(firmware.clone()).unwrap();
    formed(&node, &mut vm);
    seed::seeded(&node, &mut vm, "done");
    phase(&node, "comp/traefik", "READY");
    for name in ["one", "two"] {
        println!("{name} RUNNING after {} s", phase(&node, &format!("vc/{name}"), "RUNNING"));
        phase(&node, &format!("comp/page-{name}"), "READY");
    }
    both_applications_answer(&node);
    an_operator_reaches_the_virtual_api(&node);
    an_operator_reaches_a_virtual_api_below_a_path(&node);
    nobody_else_gets_through_or_in_between(&node);
    the_address_is_for_services_alone(&node);
    the_pool_ends_and_ports_are_the_profiles(&node);
    node.shut_down(vm).unwrap();
    let mut vm = node.start(firmware).unwrap();
    formed(&node, &mut vm);
    answers(&node, &format!("http://{ADDRESS}/"), &["--header", "Host: two.apps.example.org"], "In two");
    // The template `network` has rights beyond its namespace.
    assert!(kube(&node, "kubectl get clusterroles -o name").contains("-one"));
    kube(&node, "chasi-bod vcluster delete one --yes --wait");
    nothing_is_left(&node, "one");
    kube(&node, "chasi-bod vcluster delete two --yes --wait");
    let left = "kubectl -n chasi-bod-system get ingress,secret -o name";
    kube(&node, &format!("for i in $(seq 60); do {left} | grep exposure-two || exit 0; sleep 1; done; exit 1"));
    node.shut_down(vm).unwrap();
}
