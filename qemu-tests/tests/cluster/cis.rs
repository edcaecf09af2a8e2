//! Fault G9: a table of our own, by the ids of the CIS Kubernetes Benchmark 1.11 (control plane, etcd, configuration, worker node), read
//! from the running node. What a check cannot find as wanted is said here, with the reason.

use qemu_tests::node::Node;

use super::{account, kube};

/// What a value must be like.
enum Want {
    /// Exactly this.
    Is(&'static str),
    /// Empty, or exactly this: the program's default is right.
    DefaultOr(&'static str),
    /// Part of it.
    Has(&'static str),
    /// Something without this part.
    Lacks(&'static str),
    /// Nothing at all.
    Nothing,
    /// Anything.
    Something,
    /// File modes, in octal digits, none of them wider than this.
    Mode(u32),
    /// Not as the benchmark wants it, for a reason.
    Warn(&'static str),
}
use Want::{DefaultOr, Has, Is, Lacks, Mode, Nothing, Something, Warn};

impl Want {
    fn is_met(&self, value: &str) -> bool {
        let narrow = |widest: u32| move |mode: &str| u32::from_str_radix(mode, 8).is_ok_and(|mode| mode & !widest == 0);
        match self {
            Is(wanted) => value == *wanted,
            DefaultOr(wanted) => value.is_empty() || value == *wanted,
            Has(part) => value.contains(part),
            Lacks(part) => !value.is_empty() && !value.contains(part),
            Nothing => value.is_empty(),
            Something | Warn(_) => !value.is_empty(),
            Mode(widest) => !value.is_empty() && value.split(' ').all(narrow(*widest)),
        }
    }
}

/// Helpers of the shell: a flag of a running program, modes and owners of files, a field of the kubelet's effective configuration.
const SHELL: &str = r#"
export KUBECONFIG=/etc/kubernetes/admin.conf
line() { tr '\0' '\n' < "/proc/$(pgrep -of "^([^ ]*/)?$1( |\$)")/cmdline"; }
flag() { line "$1" | sed -n "s/^--$2=//p"; }
mode() { stat -L -c %a "$@"; }
owner() { stat -L -c %U:%G "$@" | sort -u; }
running=$(kubectl get --raw "/api/v1/nodes/$(cat /etc/hostname)/proxy/configz")
kubelet() { printf %s "$running" | grep -o "\"$1\":[^]},]*" | head -n 1 | cut -d : -f 2-; }
api=kube-apiserver manager=kube-controller-manager scheduler=kube-scheduler k=/etc/kubernetes
"#;

type Check = (&'static str, &'static str, &'static str, Want);

const CONTROL_PLANE_FILES: &[Check] = &[
    ("1.1.1", "API server's manifest: mode", "mode $k/manifests/kube-apiserver.yaml", Mode(0o600)),
    ("1.1.2", "API server's manifest: owner", "owner $k/manifests/kube-apiserver.yaml", Is("root:root")),
    ("1.1.3", "controller manager's manifest: mode", "mode $k/manifests/kube-controller-manager.yaml", Mode(0o600)),
    ("1.1.4", "controller manager's manifest: owner", "owner $k/manifests/kube-controller-manager.yaml", Is("root:root")),
    ("1.1.5", "scheduler's manifest: mode", "mode $k/manifests/kube-scheduler.yaml", Mode(0o600)),
    ("1.1.6", "scheduler's manifest: owner", "owner $k/manifests/kube-scheduler.yaml", Is("root:root")),
    ("1.1.7", "etcd's manifest: mode", "mode $k/manifests/etcd.yaml", Mode(0o600)),
    ("1.1.8", "etcd's manifest: owner", "owner $k/manifests/etcd.yaml", Is("root:root")),
    ("1.1.9", "pod network's configuration: mode", "mode /etc/cni/net.d/*", Mode(0o600)),
    ("1.1.10", "pod network's configuration: owner", "owner /etc/cni/net.d/*", Is("root:root")),
    ("1.1.11", "etcd's data: mode", "mode /var/lib/etcd", Mode(0o700)),
    (
        "1.1.12",
        "etcd's data: owner",
        "owner /var/lib/etcd",
        Warn("etcd runs as root in a static pod; the folder is root's alone, and there is no account etcd"),
    ),
    ("1.1.13", "operator's kubeconfigs: mode", "mode $k/admin.conf $k/super-admin.conf", Mode(0o600)),
    ("1.1.14", "operator's kubeconfigs: owner", "owner $k/admin.conf $k/super-admin.conf", Is("root:root")),
    ("1.1.15", "scheduler's kubeconfig: mode", "mode $k/scheduler.conf", Mode(0o600)),
    ("1.1.16", "scheduler's kubeconfig: owner", "owner $k/scheduler.conf", Is("root:root")),
    ("1.1.17", "controller manager's kubeconfig: mode", "mode $k/controller-manager.conf", Mode(0o600)),
    ("1.1.18", "controller manager's kubeconfig: owner", "owner $k/controller-manager.conf", Is("root:root")),
    ("1.1.19", "certificates and keys: owner", "find $k/pki -exec stat -c %U:%G {} + | sort -u", Is("root:root")),
    ("1.1.20", "certificates: mode", "find $k/pki -name '*.crt' -exec stat -c %a {} +", Mode(0o644)),
    ("1.1.21", "keys: mode", "find $k/pki -name '*.key' -exec stat -c %a {} +", Mode(0o600)),
];

const API_SERVER: &[Check] = &[
    ("1.2.1", "no access without credentials", "curl -sk -o /dev/null -w '%{http_code}' https://127.0.0.1:6443/api/v1/nodes", Is("401")),
    ("1.2.2", "no file of tokens", "flag $api token-auth-file", Nothing),
    ("1.2.3", "Services cannot claim foreign addresses", "flag $api enable-admission-plugins", Has("DenyServiceExternalIPs")),
    ("1.2.4", "credentials for kubelets", "flag $api kubelet-client-certificate; flag $api kubelet-client-key", Has("apiserver-kubelet-client.key")),
    ("1.2.5", "kubelets are verified", "flag $api kubelet-certificate-authority", Is("/etc/kubernetes/pki/ca.crt")),
    ("1.2.6", "authorization is never AlwaysAllow", "flag $api authorization-mode", Lacks("AlwaysAllow")),
    ("1.2.7", "nodes see only what is theirs", "flag $api authorization-mode", Has("Node")),
    ("1.2.8", "authorization by roles", "flag $api authorization-mode", Has("RBAC")),
    ("1.2.9", "floods of events are stopped", "flag $api enable-admission-plugins", Has("EventRateLimit")),
    ("1.2.10", "no AlwaysAdmit", "flag $api enable-admission-plugins", Lacks("AlwaysAdmit")),
    (
        "1.2.11",
        "AlwaysPullImages",
        "flag $api enable-admission-plugins",
        Warn("images come from the verified root, the same for all; asking a registry at each start would tie pods to it"),
    ),
    ("1.2.12", "ServiceAccount admission is on", "flag $api disable-admission-plugins", Nothing),
    ("1.2.13", "NamespaceLifecycle admission is on", "flag $api disable-admission-plugins", Nothing),
    ("1.2.14", "kubelets change only what is theirs", "flag $api enable-admission-plugins", Has("NodeRestriction")),
    ("1.2.15", "no profiling", "flag $api profiling", Is("false")),
    ("1.2.16", "audit log", "flag $api audit-log-path", Is("/var/log/kubernetes/audit.log")),
    ("1.2.17", "audit log: days kept", "flag $api audit-log-maxage", Is("30")),
    ("1.2.18", "audit log: files kept", "flag $api audit-log-maxbackup", Is("10")),
    ("1.2.19", "audit log: MB of a file", "flag $api audit-log-maxsize", Is("100")),
    ("1.2.20", "requests end in time", "flag $api request-timeout", DefaultOr("1m0s")),
    ("1.2.21", "tokens of deleted accounts end", "flag $api service-account-lookup", DefaultOr("true")),
    ("1.2.22", "own key for accounts' tokens", "flag $api service-account-key-file", Is("/etc/kubernetes/pki/sa.pub")),
    ("1.2.23", "credentials for etcd", "flag $api etcd-certfile; flag $api etcd-keyfile", Has("apiserver-etcd-client.key")),
    ("1.2.24", "serving certificate", "flag $api tls-cert-file; flag $api tls-private-key-file", Has("apiserver.key")),
    ("1.2.25", "clients' authority", "flag $api client-ca-file", Is("/etc/kubernetes/pki/ca.crt")),
    ("1.2.26", "etcd's authority", "flag $api etcd-cafile", Is("/etc/kubernetes/pki/etcd/ca.crt")),
    ("1.2.27", "secrets are enciphered at rest", "flag $api encryption-provider-config", Something),
    ("1.2.28", "with a provider that is fit for it", "grep -o secretbox \"$(flag $api encryption-provider-config)\"", Is("secretbox")),
    ("1.2.29", "strong ciphers", "flag $api tls-cipher-suites", Lacks("CBC")),
    ("1.2.30", "accounts' tokens live as long as they say", "flag $api service-account-extend-token-expiration", Is("false")),
];

const MANAGER_AND_SCHEDULER: &[Check] = &[
    ("1.3.1", "ended pods are collected", "flag $manager terminated-pod-gc-threshold", Is("500")),
    ("1.3.2", "no profiling", "flag $manager profiling", Is("false")),
    ("1.3.3", "each controller has its own account", "flag $manager use-service-account-credentials", Is("true")),
    ("1.3.4", "key for accounts' tokens", "flag $manager service-account-private-key-file", Is("/etc/kubernetes/pki/sa.key")),
    ("1.3.5", "pods know the authority", "flag $manager root-ca-file", Is("/etc/kubernetes/pki/ca.crt")),
    ("1.3.6", "kubelets' serving certificates rotate", "line $manager | grep -c RotateKubeletServerCertificate=false || true", Is("0")),
    ("1.3.7", "listens on loopback", "flag $manager bind-address", Is("127.0.0.1")),
    ("1.4.1", "no profiling", "flag $scheduler profiling", Is("false")),
    ("1.4.2", "listens on loopback", "flag $scheduler bind-address", Is("127.0.0.1")),
];

const ETCD: &[Check] = &[
    ("2.1", "serving certificate", "flag etcd cert-file; flag etcd key-file", Has("server.key")),
    ("2.2", "clients show a certificate", "flag etcd client-cert-auth", Is("true")),
    ("2.3", "no certificates of its own making", "flag etcd auto-tls", DefaultOr("false")),
    ("2.4", "certificate for peers", "flag etcd peer-cert-file; flag etcd peer-key-file", Has("peer.key")),
    ("2.5", "peers show a certificate", "flag etcd peer-client-cert-auth", Is("true")),
    ("2.6", "no peer certificates of its own making", "flag etcd peer-auto-tls", DefaultOr("false")),
    ("2.7", "an authority of its own", "cmp -s $k/pki/ca.crt $k/pki/etcd/ca.crt && echo same || echo own", Is("own")),
];

const CONFIGURATION: &[Check] = &[
    (
        "3.1.1",
        "people do not use client certificates",
        "kubectl config view -o jsonpath='{.users[0].name}'",
        Warn("the operator's kubeconfig is one, for root of a control plane; people get accounts of an OIDC provider where there is one"),
    ),
    ("3.1.2", "no lasting tokens of accounts", "kubectl get secrets -A -o name --field-selector type=kubernetes.io/service-account-token", Nothing),
    (
        "3.1.3",
        "bootstrap tokens end",
        "kubectl -n kube-system get secrets --field-selector type=bootstrap.kubernetes.io/token -o yaml | awk '/^ *kind: Secret$/ {n++} / expiration:/ {n--} END {print n + 0}'",
        Is("0"),
    ),
    ("3.2.1", "audit policy", "wc -c < \"$(flag $api audit-policy-file)\"", Something),
    (
        "3.2.2",
        "secrets are audited, and bodies of rights only",
        "grep -c '\"level\":\"Metadata\".*\"resource\":\"secrets\"' /var/log/kubernetes/audit.log > /dev/null && grep '\"requestObject\"' /var/log/kubernetes/audit.log | grep -vc rbac.authorization.k8s.io || true",
        Is("0"),
    ),
];

const NODE: &[Check] = &[
    ("4.1.1", "kubelet's unit: mode", "mode /usr/lib/systemd/system/kubelet.service", Mode(0o600)),
    ("4.1.2", "kubelet's unit: owner", "owner /usr/lib/systemd/system/kubelet.service", Is("root:root")),
    ("4.1.3", "kube-proxy's kubeconfig: no file of the node", "ls $k/*proxy* 2> /dev/null || true", Nothing),
    ("4.1.5", "kubelet's kubeconfig: mode", "mode $k/kubelet.conf", Mode(0o600)),
    ("4.1.6", "kubelet's kubeconfig: owner", "owner $k/kubelet.conf", Is("root:root")),
    ("4.1.7", "clients' authority: mode", "mode $k/pki/ca.crt", Mode(0o644)),
    ("4.1.8", "clients' authority: owner", "owner $k/pki/ca.crt", Is("root:root")),
    ("4.1.9", "kubelet's configuration: mode", "mode /var/lib/kubelet/config.yaml", Mode(0o600)),
    ("4.1.10", "kubelet's configuration: owner", "owner /var/lib/kubelet/config.yaml", Is("root:root")),
    ("4.2.1", "no access without credentials", "kubelet anonymous", Is("{\"enabled\":false")),
    ("4.2.2", "the API server decides on access", "printf %s \"$running\" | grep -o '\"authorization\":{\"mode\":\"[A-Za-z]*'", Has("Webhook")),
    ("4.2.3", "clients' authority", "kubelet clientCAFile", Is("\"/etc/kubernetes/pki/ca.crt\"")),
    ("4.2.4", "no read-only port", "kubelet readOnlyPort", DefaultOr("0")),
    ("4.2.5", "idle streams end", "kubelet streamingConnectionIdleTimeout", Is("\"5m0s\"")),
    ("4.2.6", "keeps its firewall chains", "kubelet makeIPTablesUtilChains", Is("true")),
    ("4.2.7", "no other name than the node's", "flag kubelet hostname-override", Nothing),
    ("4.2.8", "events are not lost", "kubelet eventRecordQPS", Is("50")),
    ("4.2.9", "serving certificate of the cluster's authority", "kubelet serverTLSBootstrap", Is("true")),
    ("4.2.10", "client certificate rotates", "kubelet rotateCertificates", Is("true")),
    ("4.2.11", "serving certificate rotates", "printf %s \"$running\" | grep -c RotateKubeletServerCertificate.:false || true", Is("0")),
    ("4.2.12", "strong ciphers", "printf %s \"$running\" | grep -o '\"tlsCipherSuites\":[^]]*'", Lacks("CBC")),
    ("4.2.13", "bounded processes of a pod", "kubelet podPidsLimit", Is("4096")),
    ("4.2.14", "seccomp's default profile", "kubelet seccompDefault", Is("true")),
    (
        "4.2.15",
        "the kubelet's unit refuses foreign addresses",
        "systemctl show -p IPAddressDeny kubelet.service",
        Warn("a unit of one image for every site cannot know the site's addresses; the kubelet takes only authenticated requests"),
    ),
    ("4.3.1", "kube-proxy's metrics stay on the node", "ss -ltnH 'sport = :10249' | awk '{print $4}'", Is("127.0.0.1:10249")),
];

/// Reads all of the table in one connection; nothing may fail.
pub fn g9_every_check_of_the_table_passes_or_says_why_not(node: &Node) {
    // Its reading is what 3.2.2 looks for.
    kube(node, "kubectl -n kube-system get secrets");
    let parts = [CONTROL_PLANE_FILES, API_SERVER, MANAGER_AND_SCHEDULER, ETCD, CONFIGURATION, NODE];
    let all: Vec<&Check> = parts.into_iter().flatten().collect();
    let reads: String = all.iter().map(|(id, _, read, _)| format!("printf '%s\\t%s\\n' {id} \"$({{ {read}; }} 2>&1 | tr '\\n' ' ')\"\n")).collect();
    let said = node.ssh(&format!("{SHELL}{reads}")).unwrap_or_else(|error| panic!("{error}\n{}", account(node)));
    let value = |id: &str| said.lines().find_map(|line| line.strip_prefix(id)?.strip_prefix('\t')).map_or("", str::trim);
    let mut failed = Vec::new();
    for (id, what, _, want) in &all {
        match want {
            _ if !want.is_met(value(id)) => failed.push(format!("FAIL {id} {what}: `{}`", value(id))),
            Warn(why) => println!("G9 WARN {id} {what}: `{}`: {why}", value(id)),
            _ => {}
        }
    }
    println!("G9: {} checks, {} failed", all.len(), failed.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
