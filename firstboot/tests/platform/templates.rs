//! What each shipped template comes to in the objects of vcluster's own chart, rendered by the image's helm as the controller has it installed.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use layers::manifest::documents;
use layers::platform::isolation::{self, policies};
use layers::platform::virtual_cluster::VirtualClusterSpec;
use layers::platform::{Settings, VirtualClusterTemplate, values};
use layers::range::Range;
use serde_json::{Value, json};

use crate::programs::{programs, run, workspace};

/// A virtual cluster of one template: its settings, and its objects by kind and name.
struct Made {
    settings: Settings,
    objects: BTreeMap<String, Value>,
}

impl Made {
    fn of(template: &str) -> Self {
        Self::with(template, json!({}))
    }

    /// Of a template with own settings.
    fn with(template: &str, own: Value) -> Self {
        let text = fs::read_to_string(workspace().join("layers/defs/vcluster/files/templates.yaml")).unwrap();
        let templates: Vec<VirtualClusterTemplate> = serde_saphyr::from_multiple(&text).unwrap();
        let find = |name: &str| templates.iter().find(|one| one.metadata.name.as_deref() == Some(name)).map(|one| &one.spec);
        let settings =
            VirtualClusterSpec { template: template.into(), settings: serde_json::from_value(own).unwrap(), ..VirtualClusterSpec::default() }
                .effective(find)
                .unwrap();
        let values = values::values(&crate::programs::values(), "biz", &settings).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("values.json");
        fs::write(&file, values.to_string()).unwrap();
        let mut helm = Command::new(programs().join("helm"));
        helm.env("HOME", folder.path()).args(["template", "biz"]).arg(programs().join("vcluster.tgz"));
        let text = run(helm.args(["--namespace", "vcluster-biz", "--kube-version", "v1.36.3", "--values"]).arg(&file));
        let named = |object: Value| (format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap()), object);
        let objects = documents(&String::from_utf8(text).unwrap()).unwrap().into_iter().filter(|object| !object.is_null()).map(named).collect();
        Self { settings, objects }
    }

    /// A part of an object.
    fn at(&self, object: &str, path: &str) -> Value {
        let found = self.objects.get(object).unwrap_or_else(|| panic!("{object} is not among {:?}", self.objects.keys()));
        found.pointer(path).cloned().unwrap_or_default()
    }

    /// A part of the control plane's container.
    fn container(&self, path: &str) -> Value {
        self.at("StatefulSet biz", &format!("/spec/template/spec/containers/0{path}"))
    }

    /// What containers get that say nothing: limits and requests.
    fn defaults(&self) -> (Value, Value) {
        let limits = self.at("LimitRange vc-biz", "/spec/limits/0");
        (limits["default"].clone(), limits["defaultRequest"].clone())
    }

    /// The volume of the store: class and size.
    fn volume(&self) -> (Value, Value) {
        let claim = self.at("StatefulSet biz", "/spec/volumeClaimTemplates/0/spec");
        (claim["storageClassName"].clone(), claim["resources"]["requests"]["storage"].clone())
    }

    fn quota(&self, what: &str) -> Value {
        self.at("ResourceQuota vc-biz", "/spec/hard")[what].clone()
    }

    fn variable(&self, name: &str) -> Value {
        let all = self.container("/env");
        all.as_array().unwrap().iter().find(|one| one["name"] == name).map(|one| one["value"].clone()).unwrap_or_default()
    }

    /// Who of other namespaces may reach it.
    fn reached_from(&self) -> Value {
        let range = |text: &str| Range::parse(text).unwrap();
        let host = isolation::Host { pods: range("10.244.0.0/16"), services: range("10.96.0.0/16"), nodes: Vec::new(), api: Vec::new() };
        let made = policies("biz", self.settings.network.as_ref(), &host);
        made[0].pointer("/spec/ingress/0/from/1/namespaceSelector/matchExpressions/0/values").cloned().unwrap_or_default()
    }
}

/// The Quality of Service class of a pod whose containers say nothing (Kubernetes: equal requests and limits of processors and memory are Guaranteed).
fn class((limits, requests): &(Value, Value)) -> &'static str {
    let equal = |what: &str| !limits[what].is_null() && limits[what] == requests[what];
    if equal("cpu") && equal("memory") { "Guaranteed" } else { "Burstable" }
}

#[test]
fn each_template_differs_in_fields_that_reach_pods() {
    let general = Made::of("general");
    assert_eq!(class(&general.defaults()), "Burstable");
    assert_eq!((general.volume(), general.reached_from()), ((Value::Null, json!("2Gi")), Value::Null));
    assert_eq!((general.variable("GOGC"), general.variable("GOMEMLIMIT")), (json!("40"), Value::Null));
    assert_eq!(general.defaults().0["ephemeral-storage"], Value::Null);
    let config = STANDARD.decode(general.at("Secret vc-config-biz", "/data/config.yaml").as_str().unwrap()).unwrap();
    let config: Value = serde_saphyr::from_str(std::str::from_utf8(&config).unwrap()).unwrap();
    assert_eq!(config["telemetry"]["enabled"], false, "{config}");

    let cpu = Made::of("cpu");
    // Whole processors in a Guaranteed pod are what the static CPU manager gives away.
    assert_eq!((class(&cpu.defaults()), &cpu.defaults().0["cpu"]), ("Guaranteed", &json!("1")));
    let preferred = "/spec/template/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution/0/preference/matchExpressions/0";
    let label = json!({"key": "chasi-bod.io/cpu-manager", "operator": "In", "values": ["static"]});
    assert_eq!((cpu.at("StatefulSet biz", preferred), general.at("StatefulSet biz", preferred)), (label, Value::Null));

    let io = Made::of("io");
    assert_eq!(io.volume(), (json!("local-path-io"), json!("10Gi")));
    let (limits, requests) = io.defaults();
    assert_eq!((&limits["ephemeral-storage"], &requests["ephemeral-storage"]), (&json!("4Gi"), &json!("256Mi")));
    assert_eq!((io.quota("requests.storage"), general.quota("requests.storage")), (json!("1Ti"), json!("100Gi")));

    let memory = Made::of("memory");
    assert_eq!((class(&memory.defaults()), &memory.defaults().0["memory"]), ("Guaranteed", &json!("1Gi")));
    assert_eq!(memory.container("/resources/limits/cpu"), "1", "the control plane would have the defaults' 250m");
    assert_eq!((memory.quota("limits.memory"), general.quota("limits.memory")), (json!("64Gi"), json!("32Gi")));

    let network = Made::of("network");
    assert_eq!(network.reached_from(), json!(["ingress"]));
    let copies = |made: &Made, kind: &str| {
        let rules = made.at("Role vc-biz", "/rules");
        rules.as_array().unwrap().iter().any(|rule| rule["resources"].as_array().unwrap().contains(&json!(kind)))
    };
    for kind in ["ingresses", "networkpolicies"] {
        assert!(copies(&network, kind) && !copies(&general, kind), "{kind}");
    }

    let edge = Made::of("edge");
    assert_eq!((edge.variable("GOGC"), edge.variable("GOMEMLIMIT")), (json!("25"), json!("200MiB")));
    assert_eq!((edge.container("/resources/requests/memory"), edge.container("/resources/limits/memory")), (json!("192Mi"), json!("1Gi")));
    assert_eq!((edge.volume().1, general.container("/resources/requests/memory")), (json!("512Mi"), json!("256Mi")));
}

#[test]
fn an_exposure_leads_tls_through_or_ends_it_below_a_path() {
    let annotation = |made: &Made, name: &str| made.at("Ingress biz", &format!("/metadata/annotations/nginx.ingress.kubernetes.io~1{name}"));
    let path = |made: &Made, at: &str| made.at("Ingress biz", &format!("/spec/rules/0{at}"));
    let through = Made::with("network", json!({"network": {"exposure": {"host": "biz.example.org"}}}));
    assert_eq!((annotation(&through, "ssl-passthrough"), through.at("Ingress biz", "/spec/ingressClassName")), (json!("true"), json!("nginx")));
    assert_eq!((path(&through, "/host"), path(&through, "/http/paths/0/path")), (json!("biz.example.org"), json!("/")));
    let below = Made::with("network", json!({"network": {"exposure": {"host": "apis.example.org", "path": "/biz"}}}));
    assert_eq!((annotation(&below, "ssl-passthrough"), below.at("Ingress biz", "/spec/ingressClassName")), (json!("false"), json!("virtual-apis")));
    assert_eq!((annotation(&below, "proxy-ssl-verify"), annotation(&below, "proxy-ssl-secret")), (json!("on"), json!("vcluster-biz/biz-certs")));
    assert_eq!((path(&below, "/host"), path(&below, "/http/paths/0/path")), (json!("apis.example.org"), json!("/biz(/|$)(.*)")));
    let backend = json!({"service": {"name": "biz", "port": {"name": "https"}}});
    assert_eq!(path(&below, "/http/paths/0/backend"), backend);
    assert_eq!(through.at("Service biz", "/spec/ports/0/name"), "https");
    assert_eq!(path(&below, "/http/paths/1"), Value::Null);
}
