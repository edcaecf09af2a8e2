//! Each point on small rendered manifests, and what a whole report looks like.

use std::collections::{BTreeMap, BTreeSet};

use layers::platform::Settings;
use layers::platform::settings::PodSecurity;
use layers::reference::Reference;
use serde_json::{Value, json};

use super::*;

fn chart(rendered: &str) -> Chart {
    Chart::new("web", "1.0.0", rendered, Vec::new()).unwrap()
}

/// What a point says of manifests: `fail Deployment web: …`.
fn said(point: &str, ground: &Ground, rendered: &str) -> Vec<String> {
    let report = check(&chart(rendered), ground, &BTreeMap::new());
    let point = report.points.into_iter().find(|known| known.point == point).unwrap_or_else(|| panic!("there is no point {point}"));
    point.findings.iter().map(|found| format!("{} {}: {}", found.result.word(), found.object, found.message)).collect()
}

/// A Deployment of one container, with further fields of the pod and of the container.
fn deployment(pod: &str, container: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec: {{replicas: 2, template: {{spec: {{{pod} containers: [{{name: app, image: 'r.test/a:1', \
         {container}}}]}}}}}}\n"
    )
}

#[track_caller]
fn says(point: &str, ground: &Ground, rendered: &str, expected: &[&str]) {
    assert_eq!(said(point, ground, rendered), expected, "{rendered}");
}

#[test]
fn what_baseline_forbids_fails_each_by_its_name() {
    let (general, free) = (Ground::default(), Ground { security: PodSecurity::Privileged, ..Ground::default() });
    let (of_pod, of_container) = ("Deployment web", "Deployment web, container app");
    for (pod, container, place, what) in [
        ("hostNetwork: true,", "", of_pod, "hostNetwork"),
        ("hostPID: true,", "", of_pod, "hostPID"),
        ("hostIPC: true,", "", of_pod, "hostIPC"),
        ("volumes: [{name: d, hostPath: {path: /dev}}],", "", of_pod, "hostPath /dev of the volume d"),
        ("securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]},", "", of_pod, "sysctl kernel.msgmax"),
        ("securityContext: {seccompProfile: {type: Unconfined}},", "", of_pod, "seccomp profile Unconfined"),
        ("", "securityContext: {privileged: true}", of_container, "privileged"),
        ("", "securityContext: {capabilities: {add: [NET_ADMIN, CHOWN]}}", of_container, "capability NET_ADMIN"),
        ("", "securityContext: {procMount: Unmasked}", of_container, "procMount Unmasked"),
        ("", "securityContext: {seLinuxOptions: {type: spc_t}}", of_container, "seLinuxOptions"),
        ("", "ports: [{containerPort: 80, hostPort: 80}]", of_container, "hostPort 80"),
        ("", "livenessProbe: {httpGet: {host: 10.0.0.1, port: 80}}", of_container, "host 10.0.0.1 in livenessProbe"),
    ] {
        let rendered = deployment(pod, container);
        says("security", &general, &rendered, &[&format!("fail {place}: {what}: Pod Security `baseline` refuses it")]);
        says("security", &free, &rendered, &[&format!("warn {place}: {what}: it reaches the node")]);
    }
    let harmless = deployment("securityContext: {sysctls: [{name: net.ipv4.tcp_syncookies, value: '1'}]},", "ports: [{containerPort: 80}]");
    says("security", &general, &harmless, &[]);
    let job = "kind: CronJob\nmetadata: {name: j}\nspec: {jobTemplate: {spec: {template: {spec: {initContainers: [{name: i, securityContext: {privileged: true}}], \
               containers: []}}}}}";
    says("security", &general, job, &["fail CronJob j, container i: privileged: Pod Security `baseline` refuses it"]);
}

#[test]
fn restricted_asks_for_more() {
    let ground = Ground { security: PodSecurity::Restricted, ..Ground::default() };
    let all = said("security", &ground, &deployment("volumes: [{name: n, nfs: {}}],", "securityContext: {runAsUser: 0}"));
    for what in [
        "volume of the kind nfs",
        "allowPrivilegeEscalation is not false",
        "runAsNonRoot is not",
        "runAsUser is 0",
        "no seccompProfile",
        "do not drop ALL",
    ] {
        assert!(all.iter().any(|line| line.contains(what)), "{what}: {all:#?}");
    }
    let good = "securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}";
    says("security", &ground, &deployment("securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}},", good), &[]);
}

#[test]
fn volumes_need_a_class_that_can_do_what_they_ask_for() {
    let known = |class: &str, provisioner: &str, default: bool| Class { name: class.into(), provisioner: provisioner.into(), default };
    let local = || Ground { classes: Some(vec![known("local-path", storage::LOCAL, true), known("nfs", "nfs.test", false)]), ..Ground::default() };
    let claim =
        |rest: &str| format!("kind: PersistentVolumeClaim\nmetadata: {{name: d}}\nspec: {{resources: {{requests: {{storage: 1Gi}}}}, {rest}}}");
    let one_node = "fail PersistentVolumeClaim d: access mode ReadWriteMany: a volume of the class local-path is one node's, ReadWriteOnce works";
    for (ground, rest, expected) in [
        (local(), "accessModes: [ReadWriteOnce]", "pass PersistentVolumeClaim d: ReadWriteOnce of the class local-path"),
        (local(), "accessModes: [ReadWriteMany]", one_node),
        (Ground::default(), "accessModes: [ReadWriteMany]", one_node),
        (local(), "accessModes: [ReadWriteMany], storageClassName: nfs", "pass PersistentVolumeClaim d: ReadWriteMany of the class nfs"),
        (
            local(),
            "accessModes: [ReadWriteOnce], volumeMode: Block",
            "fail PersistentVolumeClaim d: volumeMode Block: a volume of the class local-path is a folder",
        ),
        (
            local(),
            "accessModes: [ReadWriteOnce], storageClassName: fast",
            "fail PersistentVolumeClaim d: storage class fast is not there; there is local-path, nfs",
        ),
        (
            Ground::default(),
            "accessModes: [ReadWriteOnce], storageClassName: fast",
            "warn PersistentVolumeClaim d: whether the cluster has storage class fast is not known",
        ),
        (
            Ground { classes: Some(Vec::new()), ..Ground::default() },
            "accessModes: [ReadWriteOnce]",
            "fail PersistentVolumeClaim d: no storage class is the default one: name one in storageClassName",
        ),
    ] {
        says("storage", &ground, &claim(rest), &[expected]);
    }
    let set = "kind: StatefulSet\nmetadata: {name: db}\nspec: {template: {spec: {containers: []}}, volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: \
               [ReadWriteMany]}}]}";
    says("storage", &local(), set, &[&one_node.replace("PersistentVolumeClaim d", "StatefulSet db, volume data")]);
}

#[test]
fn services_and_ingresses_are_told_by_what_reaches_the_host() {
    let service = |rest: &str| format!("kind: Service\nmetadata: {{name: s}}\nspec: {{ports: [{{port: 80}}], {rest}}}");
    let general = Ground::default();
    let ports = "takes 1 node ports, the virtual cluster's quota services.nodeports has 0";
    says("network", &general, &service("type: ClusterIP"), &[]);
    says("network", &general, &service("type: NodePort"), &[&format!("fail Service s: NodePort {ports}")]);
    says("network", &general, &service("type: LoadBalancer"), &[&format!("fail Service s: LoadBalancer {ports}")]);
    let without = service("type: LoadBalancer, allocateLoadBalancerNodePorts: false");
    says("network", &general, &without, &["warn Service s: LoadBalancer: it gets an address only where the cluster gives any"]);
    says("network", &general, &service("externalIPs: [192.0.2.1]"), &["fail Service s: externalIPs: the host refuses them (DenyServiceExternalIPs)"]);
    let open = Ground { quota: [("services.nodeports".into(), 5.0)].into(), ..Ground::default() };
    says("network", &open, &service("type: NodePort"), &["warn Service s: NodePort: it is open on every node of the host"]);
    let ingress = |rest: &str| format!("kind: Ingress\nmetadata: {{name: i}}\nspec: {{{rest}}}");
    let off = "warn Ingress i: no ingress controller sees it: sync.toHost.ingresses is off (template `network` has it on)";
    says("network", &general, &ingress("ingressClassName: nginx"), &[off]);
    let network: Settings = serde_saphyr::from_str("{sync: {toHost: {ingresses: true, networkPolicies: true, pods: false}}}").unwrap();
    let ground = || Ground { ingress_classes: Some(vec!["traefik".into()]), ..Ground::of(&network) };
    says("network", &ground(), &ingress("ingressClassName: nginx"), &["fail Ingress i: ingress class nginx is not there; there is traefik"]);
    says("network", &ground(), &ingress("ingressClassName: traefik"), &["pass Ingress i: ingress class traefik"]);
    says("network", &ground(), &ingress(""), &["warn Ingress i: no ingressClassName: only a default class takes it"]);
    let policy = "kind: NetworkPolicy\nmetadata: {name: p}\nspec: {}";
    says("network", &ground(), policy, &[]);
    assert_eq!(said("network", &general, policy).len(), 1);
}

#[test]
fn what_pods_ask_for_is_added_up_and_held_against_the_quota() {
    let whole = "resources: {requests: {cpu: 500m, memory: 3Gi}, limits: {memory: 4Gi}}";
    says("resources", &Ground::default(), &deployment("", whole), &[]);
    let none = "warn Deployment web, container app: no requests.cpu, requests.memory, limits.memory: it gets the virtual cluster's default";
    says("resources", &Ground::default(), &deployment("", ""), &[none]);
    says("resources", &Ground::default(), &deployment("", "resources: {limits: {cpu: 1, memory: 1Gi}}"), &[]);
    let settings: Settings = serde_saphyr::from_str("{quota: {requests.memory: 4Gi, cpu: 2, count/pods: '1', limits.memory: 8Gi}}").unwrap();
    let expected =
        ["fail quota requests.memory: all together ask for 6Gi, more than 4Gi", "fail quota count/pods: all together ask for 2, more than 1"];
    says("resources", &Ground::of(&settings), &deployment("", whole), &expected);
}

#[test]
fn what_serves_without_probes_is_named_and_what_ends_is_not() {
    let ground = Ground::default();
    says("probes", &ground, &deployment("", ""), &["warn Deployment web, container app: no readinessProbe, livenessProbe"]);
    let ready = deployment("initContainers: [{name: i}],", "readinessProbe: {}");
    says("probes", &ground, &ready, &["pass Deployment web, container app: no livenessProbe: it is restarted only when it ends"]);
    says("probes", &ground, &ready.replace("Deployment", "Job"), &[]);
}

#[test]
fn secrets_in_plain_text_are_named_and_never_shown() {
    let secret = "kind: Secret\nmetadata: {name: s}\ndata: {a: Z2VoZWlt, b: ''}\nstringData: {c: geheim}\n---\nkind: ConfigMap\nmetadata: {name: m}\ndata: {dbPassword: geheim, x: y}";
    let plain = "in plain text in the chart or its values";
    says("secrets", &Ground::default(), secret, &[&format!("warn Secret s: a, c {plain}"), &format!("warn ConfigMap m: dbPassword {plain}")]);
    let variables = "env: [{name: DB_PASSWORD, value: geheim}, {name: TOKEN, valueFrom: {}}, {name: A_TOKEN, value: $(TOKEN)}, {name: TOKEN_FILE, value: /x}], args: ['--api-key=geheim', x]";
    let expected = [
        "warn Deployment web, container app: variable DB_PASSWORD has a literal value: take it from a Secret",
        "warn Deployment web, container app: argument --api-key has a literal value: everybody who sees the process reads it",
    ];
    says("secrets", &Ground::default(), &deployment("", variables), &expected);
    let values = json!({"db": {"password": "geheim", "existingSecret": "x"}, "users": [{"token": "geheim"}, {"token": ""}]});
    let chart = Chart::new("web", "1.0.0", "", vec![("site.yaml".into(), values)]).unwrap();
    let report = check(&chart, &Ground::default(), &BTreeMap::new());
    let text = report.text();
    assert!(text.contains("db.password is there in plain text") && text.contains("users[0].token is there") && !text.contains("users[1]"), "{text}");
    assert!(!text.contains("geheim") && !text.contains("existingSecret"), "{text}");
}

#[test]
fn versions_that_nobody_serves_any_more_fail_with_what_took_their_place() {
    let object = |version: &str, kind: &str| format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}");
    let ground = Ground::default();
    says("apis", &ground, &object("policy/v1", "PodDisruptionBudget"), &[]);
    let gone = "fail PodDisruptionBudget x: policy/v1beta1 is gone since Kubernetes 1.25: use policy/v1";
    says("apis", &ground, &object("policy/v1beta1", "PodDisruptionBudget"), &[gone]);
    says("apis", &ground, &object("apps/v3", "Deployment"), &["fail Deployment x: Kubernetes 1.36 does not serve apps/v3 by itself"]);
    let foreign = "warn ServiceMonitor x: monitoring.coreos.com/v1 is no group of Kubernetes': its definition must be there before";
    says("apis", &ground, &object("monitoring.coreos.com/v1", "ServiceMonitor"), &[foreign]);
    let definition = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: foos.a.test}\nspec: {group: a.test, names: {kind: Foo}, \
                      versions: [{name: v1}]}\n---\n";
    says("apis", &ground, &(definition.to_string() + &object("a.test/v1", "Foo")), &[]);
    let served = BTreeSet::from(["apps/v1 Deployment".to_string(), "monitoring.coreos.com/v1 ServiceMonitor".into()]);
    let ground = Ground { served: Some(served), ..Ground::default() };
    says("apis", &ground, &object("monitoring.coreos.com/v1", "ServiceMonitor"), &[]);
    says("apis", &ground, &object("apps/v1", "Foo"), &["fail Foo x: the cluster serves no Foo of apps/v1"]);
    says("apis", &ground, &object("batch/v1beta1", "CronJob"), &["fail CronJob x: the cluster serves no batch/v1beta1: use batch/v1"]);
}

#[test]
fn what_is_the_whole_clusters_is_told_as_what_it_is_inside() {
    let ground = Ground::default();
    let role = "kind: ClusterRole\nmetadata: {name: r}\nrules: [{resources: [pods, nodes]}]";
    let expected = [
        "pass ClusterRole r: it gives rights inside of the virtual cluster only",
        "warn ClusterRole r: it reads nodes: inside they are stand-ins of those that its pods run on, without the kubelets' metrics",
    ];
    says("scope", &ground, role, &expected);
    let class = "kind: PriorityClass\nmetadata: {name: p}";
    says("scope", &ground, class, &["warn PriorityClass p: pods have no priority on the host: sync.toHost.priorityClasses is off"]);
    let settings: Settings = serde_saphyr::from_str("{sync: {toHost: {priorityClasses: true}}}").unwrap();
    says("scope", &Ground::of(&settings), class, &["pass PriorityClass p: the host gets a copy"]);
    let kinds = ["CustomResourceDefinition", "DaemonSet", "RuntimeClass", "APIService"];
    let grades = kinds.map(|kind| said("scope", &ground, &format!("kind: {kind}\nmetadata: {{name: x}}"))[0][..4].to_string());
    assert_eq!(grades, ["pass", "warn", "fail", "warn"]);
    let list = "kind: List\nitems: [{kind: DaemonSet, metadata: {name: d}}]";
    assert_eq!(said("scope", &ground, list).len(), 1, "objects of a list count");
}

#[test]
fn the_template_that_fits_is_advised_with_its_reason() {
    let of = |rendered: &str| check(&chart(rendered), &Ground::default(), &BTreeMap::new()).template;
    let asking = |requests: &str, limits: &str| deployment("", &format!("resources: {{requests: {{{requests}}}, limits: {{{limits}}}}}"));
    let stateful = "kind: StatefulSet\nmetadata: {name: db}\nspec: {replicas: 3, template: {spec: {containers: []}}, volumeClaimTemplates: [{metadata: {name: d}, spec: {resources: \
                    {requests: {storage: 10Gi}}}}]}";
    for (rendered, name, why) in [
        (asking("cpu: 500m, memory: 512Mi", ""), "general", "nothing of it stands out; it declares 1 cpu, 1Gi memory, 0Mi volumes"),
        (asking("cpu: 10m, memory: 32Mi", ""), "edge", "it is small; it declares 0.02 cpu, 64Mi memory"),
        (asking("cpu: 2, memory: 1Gi", "cpu: 2"), "cpu", "it computes; it declares 4 cpu"),
        (asking("cpu: 100m, memory: 10Gi", ""), "memory", "more memory than processor; it declares 0.2 cpu, 20Gi memory"),
        (stateful.to_string(), "io", "a StatefulSet keeps data; it declares 0 cpu, 0Mi memory, 30Gi volumes"),
        (format!("{stateful}\n---\nkind: Ingress\nmetadata: {{name: i}}"), "network", "Ingress objects have to reach the host"),
        (String::new(), "general", "nothing"),
    ] {
        let advice = of(&rendered);
        assert!(advice.name == name && advice.reason.starts_with(why), "{advice:?} is not {name}: {why}");
    }
}

/// A small chart with a bit of everything.
fn report() -> Report {
    let rendered = deployment(
        "hostNetwork: true,",
        "resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 32Mi}}, readinessProbe: {}, livenessProbe: {}",
    );
    let images = [("r.test/a:1", Found::Nowhere), ("r.test/b:1", Found::Seed), ("r.test/c:1", Found::Source("./images.tar".into()))];
    let images = images.into_iter().map(|(image, found)| (Reference::with_tag(image).unwrap(), found)).collect();
    check(&chart(&rendered), &Ground::default(), &images)
}

#[test]
fn people_read_a_table() {
    let expected = "\
POINT      RESULT  OBJECT          FINDING
images     fail    r.test/a:1      neither in the nodes' image nor in the cluster's registry: `app deploy` pushes it with --images or --from
images     pass    r.test/b:1      in the nodes' image
images     pass    r.test/c:1      is pushed from ./images.tar
security   fail    Deployment web  hostNetwork: Pod Security `baseline` refuses it
storage    pass
network    pass
resources  pass
probes     pass
secrets    pass
apis       pass
scope      pass

template edge: it is small; it declares 0.02 cpu, 32Mi memory, 0Mi volumes
chart web 1.0.0: fail (2 fail, 0 warn)
";
    assert_eq!(report().text(), expected);
}

#[test]
fn programs_read_json() {
    let found: Value = serde_json::to_value(report()).unwrap();
    let points: Vec<_> = found["points"].as_array().unwrap().iter().map(|point| point["point"].as_str().unwrap()).collect();
    assert_eq!(points, ["images", "security", "storage", "network", "resources", "probes", "secrets", "apis", "scope"]);
    let point = json!({"point": "security", "result": "fail", "findings": [
        {"result": "fail", "object": "Deployment web", "message": "hostNetwork: Pod Security `baseline` refuses it"}
    ]});
    assert_eq!(found["points"][1], point);
    assert_eq!(
        (&found["result"], &found["chart"], &found["version"], &found["template"]["name"]),
        (&json!("fail"), &json!("web"), &json!("1.0.0"), &json!("edge"))
    );
}
