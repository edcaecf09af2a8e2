//! What a running node promises beyond being ready: certificates, secrets, swap, image volumes, an orderly shutdown.

use qemu_tests::node::Node;
use qemu_tests::vm::Vm;

use super::{FORMED, account, kube};

/// All that needs the first boot of a cluster.
pub fn first_boot(node: &Node) {
    kubelet_serves_with_a_certificate_of_the_cluster(node);
    a_foreign_request_is_left_for_a_person(node);
    f6_no_canary_is_found(node);
    image_volumes_show_images_of_the_root(node);
    the_kubelet_delays_a_shutdown(node);
    status_tells_of_state_clock_and_certificates(node);
    timers_of_the_system_are_late_and_those_of_pods_are_not(node);
    certificates_are_renewed_while_the_api_answers(node);
}

/// All that a later boot has more, or that only the last boot can bear.
pub fn last_boot(node: &Node, vm: &mut Vm) {
    let status = node.status().unwrap();
    let state = status["health"].as_array().unwrap().iter().find(|condition| condition["name"] == "state").unwrap();
    assert!(state["state"] == "done" && state["detail"].as_str().unwrap().contains("clean"), "{state}");
    pods_never_swap(node);
    g4_certificates_renew_themselves(node, vm);
}

/// With the authority that everyone checks by, no `--insecure-skip-tls-verify` anywhere.
fn kubelet_serves_with_a_certificate_of_the_cluster(node: &Node) {
    let address = kube(node, "kubectl get nodes -o jsonpath='{.items[0].status.addresses[?(@.type==\"InternalIP\")].address}'");
    let ask = format!("curl -s --cacert /etc/kubernetes/pki/ca.crt -o /dev/null -w '%{{http_code}}' https://{address}:10250/pods");
    assert_eq!(node.ssh(&ask).unwrap(), "401");
}

fn a_foreign_request_is_left_for_a_person(node: &Node) {
    use std::fmt::Write as _;
    let pem = include_str!("../../../firstboot/tests/certificates/foreign-name.csr");
    let mut object = "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {name: foreign}\nspec:\n".to_string();
    let _ = write!(object, "  signerName: kubernetes.io/kubelet-serving\n  usages: [digital signature, server auth]\n  request: ");
    let apply = format!("{{ printf '{}'; base64 -w 0; }} <<'END' > /run/foreign.yaml\n{pem}END\n", object.replace('\n', "\\n"));
    kube(node, &format!("{apply}kubectl create -f /run/foreign.yaml --as=system:node:n1 --as-group=system:nodes --as-group=system:authenticated"));
    kube(
        node,
        "for i in $(seq 60); do journalctl -u chasi-bod-agent -o cat | grep -q 'request foreign is left for a person' && exit 0; sleep 1; done; exit 1",
    );
    assert_eq!(kube(node, "kubectl get csr foreign -o jsonpath='{.status.conditions}'"), "");
    kube(node, "kubectl delete csr foreign");
}

/// The key of secrets at rest, the operator's key and every bootstrap token are in their files and nowhere else.
fn f6_no_canary_is_found(node: &Node) {
    let canaries = [
        "sed -n 's/.*\"secret\":\"\\([^\"]*\\)\".*/\\1/p' /etc/kubernetes/chasi-bod/encryption.yaml",
        "for f in admin super-admin; do sed -n 's/.*client-key-data: //p' /etc/kubernetes/$f.conf | cut -c 60-140; done",
        "sed -n 3p /etc/kubernetes/pki/ca.key",
        "kubectl -n kube-system get secrets --field-selector type=bootstrap.kubernetes.io/token -o jsonpath='{range .items[*]}{.data.token-secret}{\"\\n\"}{end}' | while read t; do echo $t | base64 -d; echo; done",
    ];
    kube(node, &format!("umask 077; {{ {}; }} | grep . > /run/canaries; test $(wc -l < /run/canaries) -ge 4", canaries.join("; ")));
    let places = "/proc/cmdline /proc/[0-9]*/cmdline /proc/[0-9]*/environ /etc /var /home /root /run/log /run/chasi-bod /run/systemd /tmp";
    let found = node
        .ssh(&format!("journalctl -o export | grep -caFf /run/canaries; grep -rlasFf /run/canaries {places} | sort -u; rm /run/canaries"))
        .unwrap();
    let (lines, files) = found.split_once('\n').unwrap();
    assert_eq!(lines, "0", "a secret is in the journal");
    let own = ["admin.conf", "super-admin.conf", "pki/ca.key", "chasi-bod/encryption.yaml"];
    let is_own = |path: &&str| {
        own.iter().any(|own| ["/etc/kubernetes/", "/run/chasi-bod/state/etc/upper/kubernetes/"].iter().any(|dir| *path == format!("{dir}{own}")))
    };
    assert_eq!(files.lines().filter(|path| !is_own(path)).collect::<Vec<_>>(), Vec::<&str>::new());
    let modes = node.ssh(&format!("stat -c '%a %U' {}", files.replace('\n', " "))).unwrap();
    assert!(modes.lines().all(|line| line == "600 root"), "{modes}");
    assert_eq!(node.ssh("cat /proc/sys/kernel/core_pattern").unwrap(), "|/bin/false", "memory of programs is written to files");
}

/// A program runs out of another image that is mounted as a volume.
fn image_volumes_show_images_of_the_root(node: &Node) {
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "volume"}, "spec": {"restartPolicy": "Never",
        "volumes": [{"name": "v", "image": {"reference": "registry.k8s.io/etcd:3.6.8-0", "pullPolicy": "IfNotPresent"}}],
        "containers": [{"name": "c", "image": "registry.k8s.io/coredns/coredns:v1.14.2", "command": ["/v/usr/local/bin/etcd", "--version"],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}}"#;
    kube(node, &format!("kubectl create -f - <<'END'\n{pod}\nEND"));
    kube(node, "kubectl wait pod/volume --for=jsonpath='{.status.phase}'=Succeeded --timeout=120s");
    let said = kube(node, "kubectl logs volume; kubectl delete pod volume --wait=false");
    assert!(said.contains("etcd Version: 3.6.8"), "{said}");
}

fn the_kubelet_delays_a_shutdown(node: &Node) {
    let held = node.ssh("systemd-inhibit --list --no-legend --no-pager").unwrap();
    assert!(held.lines().any(|line| line.contains("kubelet") && line.contains("shutdown") && line.contains("delay")), "{held}");
}

fn status_tells_of_state_clock_and_certificates(node: &Node) {
    // 3: the node is not ready, as its seed may be on its way still.
    let shown = node.ssh("chasi-bod status || test $? = 3").unwrap();
    for part in [
        "clock        waiting   no time server",
        "certificates done      valid until 20",
        "address      done      known to the cluster as 10.77.0.11",
    ] {
        assert!(shown.contains(part), "no `{part}` in\n{shown}");
    }
}

/// When the certificates that are served end, as a client sees it: the API server's and etcd's.
fn ends(node: &Node) -> [String; 2] {
    let pki = "/etc/kubernetes/pki";
    let client = format!("--cert {pki}/apiserver-etcd-client.crt --key {pki}/apiserver-etcd-client.key");
    ["https://127.0.0.1:6443/livez", "https://127.0.0.1:2379/health"]
        .map(|url| node.ssh(&format!("curl -vsk {client} {url} 2>&1 | sed -n 's/.*expire date: //p'")).unwrap())
}

fn certificates_are_renewed_while_the_api_answers(node: &Node) {
    let before = ends(node);
    assert!(before.iter().all(|end| !end.is_empty()), "{before:?}");
    let ask = "while test -e /run/asking; do curl -sf --max-time 20 --cacert /etc/kubernetes/pki/ca.crt https://localhost:6443/readyz > /dev/null || echo missed; sleep 0.5; done";
    let said = kube(
        node,
        &format!("touch /run/asking; ( {ask} ) > /run/missed & chasi-bod cluster renew-certificates; rm /run/asking; wait; cat /run/missed"),
    );
    assert!(!said.contains("missed"), "the API was away:\n{said}");
    assert!(said.lines().filter(|line| line.contains("/etc/kubernetes/")).count() >= 14, "{said}");
    for file in ["admin.conf", "super-admin.conf", "pki/apiserver.crt", "pki/etcd/server.crt"] {
        assert!(said.contains(&format!("/etc/kubernetes/{file}")), "{said}");
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while ends(node).iter().zip(&before).any(|(now, old)| now == old) {
        assert!(std::time::Instant::now() < deadline, "still served: {before:?}, {:?}", ends(node));
        std::thread::sleep(std::time::Duration::from_secs(5));
    }
    kube(node, "kubectl --kubeconfig /etc/kubernetes/super-admin.conf get nodes; kubectl wait nodes --all --for=condition=Ready --timeout=60s");
}

/// Nanoseconds that timers may be late by.
fn timers_of_the_system_are_late_and_those_of_pods_are_not(node: &Node) {
    for program in ["kubelet", "containerd", "kube-apiserver", "etcd", "coredns"] {
        assert_eq!(node.ssh(&format!("cat /proc/$(pgrep -ox {program})/timerslack_ns")).unwrap(), "4000000", "{program}");
    }
    kube(node, "kubectl run timers --image=registry.k8s.io/pause:3.10.2 && kubectl wait pod/timers --for=condition=Ready --timeout=180s");
    let process = "$(crictl inspect --output go-template --template '{{.info.pid}}' $(crictl ps -q --name '^timers$'))";
    assert_eq!(kube(node, &format!("cat /proc/{process}/timerslack_ns; kubectl delete pod timers >&2")), "50000");
}

/// The machine has swap; the kubelet runs with it, and its pods get none of it.
fn pods_never_swap(node: &Node) {
    node.ssh("dd if=/dev/zero of=/var/swap bs=1M count=32 status=none && chmod 600 /var/swap && mkswap -q /var/swap && swapon /var/swap && systemctl restart kubelet").unwrap();
    kube(
        node,
        "kubectl create deployment swap --image=registry.k8s.io/pause:3.10.2 && kubectl wait deployment/swap --for=condition=Available --timeout=180s",
    );
    let script = "id=$(crictl ps -q --label io.kubernetes.pod.namespace=default --name pause); cat /sys/fs/cgroup/kubepods.slice/*/*/cri-containerd-$id.scope/memory.swap.max";
    assert_eq!(kube(node, script), "0");
    kube(node, "kubectl delete deployment swap; swapoff /var/swap && rm /var/swap");
}

/// G4: the clock says that 65 days are left; nobody does anything.
fn g4_certificates_renew_themselves(node: &Node, vm: &mut Vm) {
    node.ssh("date -s '+300 days' && systemctl restart --no-block chasi-bod-agent").unwrap();
    if let Err(error) = vm.wait("certificates done renewed, valid until", FORMED) {
        panic!("{error}\n{}", account(node));
    }
    let year = node.ssh("date -d '+364 days' +%Y-%m-%d").unwrap();
    let ends = node.ssh("chasi-bod cluster renew-certificates | grep -v ca.crt | grep -v /var/lib/kubelet").unwrap();
    assert!(ends.lines().all(|line| line >= year.as_str()), "{ends}");
    kube(node, "kubectl get nodes");
}
