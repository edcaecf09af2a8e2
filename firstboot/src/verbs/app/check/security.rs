//! What the Pod Security level of a virtual cluster's namespace on the host forbids (<https://kubernetes.io/docs/concepts/security/pod-security-standards/>).

use layers::platform::settings::PodSecurity;
use serde_json::Value;

use super::objects::{Workload, place};
use super::report::{Finding, Grade};

/// Capabilities that `baseline` lets containers have.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Kernel settings that `baseline` lets pods have.
const SYSCTLS: [&str; 11] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_rmem",
];
/// Kinds of volumes that `restricted` lets pods have.
const VOLUMES: [&str; 8] = ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];

/// What of a workload its level forbids.
pub fn findings(workload: &Workload<'_>, level: PodSecurity) -> Vec<Finding> {
    let result = if level == PodSecurity::Privileged { Grade::Warn } else { Grade::Fail };
    let finding = |(object, what): (String, String)| Finding { result, object, message: format!("{what}: {}", verdict(level)) };
    let mut out: Vec<_> = baseline(workload).into_iter().map(finding).collect();
    if level == PodSecurity::Restricted {
        out.extend(restricted(workload).into_iter().map(finding));
    }
    out
}

fn verdict(level: PodSecurity) -> &'static str {
    match level {
        PodSecurity::Privileged => "it reaches the node",
        PodSecurity::Baseline => "Pod Security `baseline` refuses it",
        PodSecurity::Restricted => "Pod Security `restricted` refuses it",
    }
}

type Found = Vec<(String, String)>;

fn baseline(workload: &Workload<'_>) -> Found {
    let (pod, name) = (workload.pod, workload.name());
    let mut out = Found::new();
    let namespaces = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| pod[*field] == true);
    out.extend(namespaces.map(|field| (name.clone(), field.to_string())));
    for volume in pod["volumes"].as_array().into_iter().flatten().filter(|volume| !volume["hostPath"].is_null()) {
        out.push((name.clone(), format!("hostPath {} of the volume {}", word(&volume["hostPath"]["path"]), word(&volume["name"]))));
    }
    let sysctls = pod["securityContext"]["sysctls"].as_array().into_iter().flatten().map(|sysctl| word(&sysctl["name"]));
    out.extend(sysctls.filter(|sysctl| !SYSCTLS.contains(sysctl)).map(|sysctl| (name.clone(), format!("sysctl {sysctl}"))));
    out.extend(context(&pod["securityContext"]).into_iter().map(|what| (name.clone(), what)));
    for container in workload.containers() {
        let place = place(workload, container);
        out.extend(of_container(container).into_iter().map(|what| (place.clone(), what)));
    }
    out
}

fn of_container(container: &Value) -> Vec<String> {
    let context_of = &container["securityContext"];
    let mut out = Vec::new();
    out.extend((context_of["privileged"] == true).then(|| "privileged".to_string()));
    let added = context_of["capabilities"]["add"].as_array().into_iter().flatten().map(word);
    out.extend(added.filter(|capability| !CAPABILITIES.contains(capability)).map(|capability| format!("capability {capability}")));
    let ports = container["ports"].as_array().into_iter().flatten().filter_map(|port| port["hostPort"].as_u64()).filter(|port| *port > 0);
    out.extend(ports.map(|port| format!("hostPort {port}")));
    out.extend(context_of["procMount"].as_str().filter(|mount| *mount != "Default").map(|mount| format!("procMount {mount}")));
    for probe in ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"] {
        let host = |way: &str| container.pointer(&format!("{probe}/{way}/host")).and_then(Value::as_str).filter(|host| !host.is_empty());
        out.extend(["httpGet", "tcpSocket"].into_iter().find_map(host).map(|host| format!("host {host} in {}", &probe[1..])));
    }
    out.extend(context(context_of));
    out
}

/// What pods and containers can both have.
fn context(context: &Value) -> Vec<String> {
    let mut out = Vec::new();
    out.extend((context["seccompProfile"]["type"] == "Unconfined").then(|| "seccomp profile Unconfined".to_string()));
    out.extend((context["appArmorProfile"]["type"] == "Unconfined").then(|| "AppArmor profile Unconfined".to_string()));
    out.extend((context["windowsOptions"]["hostProcess"] == true).then(|| "hostProcess".to_string()));
    let linux = &context["seLinuxOptions"];
    let known = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let odd = !known.contains(&linux["type"].as_str().unwrap_or_default()) || ["user", "role"].iter().any(|field| !linux[*field].is_null());
    out.extend(odd.then(|| "seLinuxOptions".to_string()));
    out
}

fn restricted(workload: &Workload<'_>) -> Found {
    let (pod, name) = (workload.pod, workload.name());
    let mut out = Found::new();
    for volume in pod["volumes"].as_array().into_iter().flatten().filter_map(Value::as_object) {
        let kind = volume.keys().find(|key| *key != "name").map(String::as_str);
        // `baseline` has said it of a hostPath.
        let odd = kind.filter(|kind| !VOLUMES.contains(kind) && *kind != "hostPath");
        out.extend(odd.map(|kind| (name.clone(), format!("volume of the kind {kind}"))));
    }
    for container in workload.containers() {
        let (own, place) = (&container["securityContext"], place(workload, container));
        let either = |field: &str| if own[field].is_null() { &pod["securityContext"][field] } else { &own[field] };
        let mut say = |what: &str| out.push((place.clone(), what.to_string()));
        if own["allowPrivilegeEscalation"] != false {
            say("allowPrivilegeEscalation is not false");
        }
        if either("runAsNonRoot") != true {
            say("runAsNonRoot is not true");
        }
        if either("runAsUser") == 0 {
            say("runAsUser is 0");
        }
        if either("seccompProfile")["type"].is_null() {
            say("it has no seccompProfile");
        }
        let capabilities = &own["capabilities"];
        if !capabilities["drop"].as_array().is_some_and(|list| list.iter().any(|one| one == "ALL")) {
            say("capabilities do not drop ALL");
        }
        let added = capabilities["add"].as_array().into_iter().flatten().map(word);
        added.filter(|one| *one != "NET_BIND_SERVICE" && CAPABILITIES.contains(one)).for_each(|one| say(&format!("capability {one}")));
    }
    out
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
