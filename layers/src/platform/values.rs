//! What settings are for vcluster's chart: values over those that the image has for every virtual cluster. The chart adds its defaults and checks all
//! of it by its own schema. Source: `chart/values.yaml` and `config/config.go` of loft-sh/vcluster 0.33.1.

use serde_json::{Map, Value, json};

use super::settings::{ControlPlane, Exposure, Network, Settings, Store, merge};
use crate::profile::suggest;
use crate::{Error, Result};

/// What only the paid product honours: the open one fails or, worse, goes on without a word. `*` is any key.
const PAID: [&str; 27] = [
    "controlPlane.advanced.kubeVip",
    "controlPlane.advanced.registry",
    "controlPlane.backingStore.database.external",
    "controlPlane.backingStore.etcd.embedded",
    "controlPlane.coredns.embedded",
    "controlPlane.hostPathMapper",
    "controlPlane.standalone",
    "deletion",
    "experimental.denyProxyRequests",
    "experimental.proxy",
    "external",
    "integrations.certManager",
    "integrations.externalSecrets",
    "integrations.istio",
    "integrations.kubeVirt",
    "integrations.netris",
    "networking.resolveDNS",
    "platform",
    "policies.centralAdmission",
    "privateNodes",
    "sleep",
    "sleepMode",
    "snapshots",
    "sync.*.customResources",
    "sync.*.*.patches",
    "sync.toHost.namespaces",
    "sync.toHost.pods.hybridScheduling",
];

/// Kinds that vcluster copies to the host.
const TO_HOST: [&str; 13] = [
    "endpointSlices",
    "endpoints",
    "ingresses",
    "networkPolicies",
    "persistentVolumes",
    "podDisruptionBudgets",
    "priorityClasses",
    "resourceClaimTemplates",
    "resourceClaims",
    "serviceAccounts",
    "storageClasses",
    "volumeSnapshotContents",
    "volumeSnapshots",
];
/// Kinds that vcluster copies from the host.
const FROM_HOST: [&str; 10] = [
    "csiDrivers",
    "csiNodes",
    "csiStorageCapacities",
    "deviceClasses",
    "events",
    "ingressClasses",
    "nodes",
    "priorityClasses",
    "runtimeClasses",
    "storageClasses",
];

/// The registry and repository of the images with the programs of control planes; the tag is the Kubernetes version.
pub const BINARIES: (&str, &str) = ("chasi-bod.internal", "vcluster-binaries");

/// Where the chart has what control plane and etcd keep.
const KEPT: [&str; 2] = ["controlPlane.statefulSet.persistence", "controlPlane.backingStore.etcd.deploy.statefulSet.persistence"];
/// Where it has the settings of the virtual cluster's DNS and the domain.
const COREFILE: &str = "/controlPlane/coredns/overwriteConfig";
const DOMAIN: &str = "/networking/advanced/clusterDomain";

/// What annotations of ingress-nginx begin with.
const NGINX: &str = "nginx.ingress.kubernetes.io";

/// Values of the chart for the virtual cluster of a name: the image's, then those of the settings, then the users' own.
pub fn values(image: &Value, name: &str, settings: &Settings) -> Result<Value> {
    let mut out = image.clone();
    merge(&mut out, of_settings(settings)?);
    if let Some(exposure) = settings.network.as_ref().and_then(|network| network.exposure.as_ref()) {
        merge(&mut out, json!({"controlPlane": exposed(name, exposure)}));
    }
    let own = settings.values.clone().unwrap_or_default();
    if let Some(paid) = PAID.iter().find_map(|path| paid(&own, path)) {
        return Err(Error::input(format!("spec.values.{paid}: only vcluster's paid product honours it")));
    }
    let own = Value::Object(own);
    if let Some(field) = KEPT.iter().find_map(|path| loses(&own, path)) {
        return Err(Error::input(format!("spec.values.{field}: what a virtual cluster keeps is always on a volume claim")));
    }
    // Theirs is theirs; the image's knows one domain.
    if own.pointer(COREFILE).is_none()
        && let Some(domain) = [&own, &out].iter().find_map(|values| values.pointer(DOMAIN)?.as_str().map(str::to_string))
        && let Some(Value::String(text)) = out.pointer_mut(COREFILE)
    {
        *text = text.replace("kubernetes cluster.local ", &format!("kubernetes {domain} cluster.local "));
    }
    merge(&mut out, own);
    Ok(out)
}

/// The field that takes the volume claim away.
fn loses(own: &Value, path: &str) -> Option<String> {
    let at = |field: &str| own.pointer(&format!("/{}/{field}", path.replace('.', "/")));
    let without = at("volumeClaim/enabled").is_some_and(|enabled| *enabled != true).then_some("volumeClaim.enabled");
    let field = without.or(at("dataVolume").is_some_and(is_on).then_some("dataVolume"))?;
    Some(format!("{path}.{field}"))
}

fn of_settings(settings: &Settings) -> Result<Value> {
    let mut out = json!({"sync": sync(settings)?, "policies": policies(settings), "controlPlane": store(settings)});
    if let Some(version) = &settings.version {
        let (registry, repository) = BINARIES;
        let volume = json!([{"name": "binaries", "image": {"reference": format!("{registry}/{repository}:{version}")}}]);
        let parts = json!({"distro": {"k8s": {"image": {"tag": version}}}, "statefulSet": {"persistence": {"binariesVolume": volume}}});
        merge(&mut out, json!({"controlPlane": parts}));
    }
    if let Some(pods) = &settings.control_plane {
        merge(&mut out, json!({"controlPlane": {"statefulSet": control_plane(pods)}}));
    }
    if let Some(network) = &settings.network {
        merge(&mut out, addresses(network));
    }
    let arguments = arguments(settings);
    if !arguments.api_server.is_empty() || !arguments.controller_manager.is_empty() {
        let programs = json!({"apiServer": {"extraArgs": arguments.api_server}, "controllerManager": {"extraArgs": arguments.controller_manager}});
        merge(&mut out, json!({"controlPlane": {"distro": {"k8s": programs}}}));
    }
    Ok(out)
}

/// Store, replicas and the volumes of both.
fn store(settings: &Settings) -> Value {
    // What is to go goes with the namespace.
    let mut claim = Map::from_iter([("enabled".to_string(), json!(true)), ("retentionPolicy".to_string(), json!("Retain"))]);
    if let Some(storage) = &settings.storage {
        claim.extend(storage.size.iter().map(|size| ("size".to_string(), json!(size))));
        claim.extend(storage.class.iter().map(|class| ("storageClass".to_string(), json!(class))));
    }
    let replicas = settings.replicas.unwrap_or(1);
    let own = json!({"highAvailability": {"replicas": replicas}, "persistence": {"volumeClaim": claim}});
    let backing = match settings.store.unwrap_or(Store::Sqlite) {
        Store::Sqlite => json!({"database": {"embedded": {"enabled": true}}}),
        Store::Etcd => json!({"etcd": {"deploy": {"enabled": true, "statefulSet": own}}}),
    };
    json!({"statefulSet": own, "backingStore": backing})
}

fn control_plane(pods: &ControlPlane) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Option<Value>| out.extend(value.map(|value| (key.to_string(), value)));
    put("resources", pods.resources.as_ref().map(|resources| json!(resources)));
    put("env", pods.env.as_ref().map(|env| env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()));
    let mut scheduling = Map::new();
    let mut place = |key: &str, value: Option<Value>| scheduling.extend(value.map(|value| (key.to_string(), value)));
    place("nodeSelector", pods.node_selector.as_ref().map(|labels| json!(labels)));
    place("affinity", pods.affinity.as_ref().map(|affinity| json!(affinity)));
    place("tolerations", pods.tolerations.as_ref().map(|tolerations| json!(tolerations)));
    place("priorityClassName", pods.priority_class_name.as_ref().map(|name| json!(name)));
    put("scheduling", Some(Value::Object(scheduling)).filter(|scheduling| scheduling != &json!({})));
    Value::Object(out)
}

/// Quota, what containers get that say nothing, Pod Security.
fn policies(settings: &Settings) -> Value {
    let mut out = Map::new();
    if let Some(quota) = &settings.quota {
        out.insert("resourceQuota".into(), json!({"enabled": true, "quota": quota}));
    }
    if let Some(defaults) = &settings.container_defaults {
        out.insert("limitRange".into(), json!({"enabled": true, "default": defaults.limits, "defaultRequest": defaults.requests}));
    }
    if let Some(level) = settings.pod_security {
        out.insert("podSecurityStandard".into(), json!(level));
    }
    Value::Object(out)
}

/// Ranges and domain.
fn addresses(network: &Network) -> Value {
    let mut out = json!({});
    let mut put = |value: Value| merge(&mut out, value);
    network.pod_cidr.iter().for_each(|range| put(json!({"networking": {"podCIDR": range}})));
    network.service_cidr.iter().for_each(|range| put(json!({"networking": {"serviceCIDR": range}})));
    network.domain.iter().for_each(|domain| put(json!({"networking": {"advanced": {"clusterDomain": domain}}})));
    if let Some(services) = &network.host_services {
        let copies: Vec<_> = services.iter().map(|one| json!({"from": one.from, "to": one.to.as_ref().unwrap_or(&one.from)})).collect();
        put(json!({"networking": {"replicateServices": {"fromHost": copies}}}));
    }
    out
}

/// The name for the outside.
fn exposed(name: &str, exposure: &Exposure) -> Value {
    let host = &exposure.host;
    let Some(path) = exposure.below() else {
        // The chart's annotations ask for TLS to be led through: the API sees the client's certificate, the client the API's.
        let ingress = json!({"enabled": true, "host": host, "spec": {"ingressClassName": exposure.class()}});
        return json!({"ingress": ingress, "proxy": {"extraSANs": [host]}});
    };
    // As ingress-nginx's documentation has it for an application below a path. The way on is enciphered, too, and only the virtual cluster's own API is at its end.
    let namespace = format!("vcluster-{name}");
    let annotations: Map<_, _> = [
        ("ssl-passthrough", "false"),
        ("force-ssl-redirect", "true"),
        ("use-regex", "true"),
        ("rewrite-target", "/$2"),
        ("backend-protocol", "HTTPS"),
        ("proxy-ssl-verify", "on"),
        ("proxy-ssl-secret", &format!("{namespace}/{name}-certs")),
        ("proxy-ssl-server-name", "on"),
        ("proxy-ssl-name", &format!("{name}.{namespace}")),
    ]
    .map(|(key, value)| (format!("{NGINX}/{key}"), json!(value)))
    .into_iter()
    .collect();
    let backend = json!({"service": {"name": name, "port": {"name": "https"}}});
    let paths = json!([{"path": format!("{path}(/|$)(.*)"), "pathType": "ImplementationSpecific", "backend": backend}]);
    let spec = json!({"ingressClassName": exposure.class(), "rules": [{"host": host, "http": {"paths": paths}}]});
    json!({"ingress": {"enabled": true, "host": host, "annotations": annotations, "spec": spec}})
}

#[derive(Default)]
struct Arguments {
    api_server: Vec<String>,
    controller_manager: Vec<String>,
}

fn arguments(settings: &Settings) -> Arguments {
    let mut out = Arguments::default();
    // Beside sqlite there is never a second one; and a new one need not wait until the lease of the former one is over.
    if settings.store.unwrap_or(Store::Sqlite) == Store::Sqlite {
        out.controller_manager.push("--leader-elect=false".into());
    }
    if let Some(gates) = settings.feature_gates.as_ref().filter(|gates| !gates.is_empty()) {
        let gates: Vec<_> = gates.iter().map(|(gate, on)| format!("{gate}={on}")).collect();
        let argument = format!("--feature-gates={}", gates.join(","));
        out.api_server.push(argument.clone());
        out.controller_manager.push(argument);
    }
    if let Some(plugins) = &settings.admission_plugins {
        for (flag, names) in [("enable", &plugins.enable), ("disable", &plugins.disable)] {
            let names = names.as_deref().unwrap_or_default();
            out.api_server.extend((!names.is_empty()).then(|| format!("--{flag}-admission-plugins={}", names.join(","))));
        }
    }
    out
}

fn sync(settings: &Settings) -> Result<Value> {
    let mut out = json!({});
    let Some(sync) = &settings.sync else { return Ok(out) };
    for (field, kinds, known) in [("toHost", &sync.to_host, &TO_HOST[..]), ("fromHost", &sync.from_host, &FROM_HOST[..])] {
        for (kind, on) in kinds.iter().flatten() {
            if !known.contains(&kind.as_str()) {
                let hint = suggest(kind, known.iter().copied());
                let error = Error::input(format!("spec.sync.{field}.{kind}: vcluster does not copy such a kind"));
                return Err(hint.into_iter().fold(error, Error::with_hint));
            }
            merge(&mut out, json!({field: {kind: {"enabled": on}}}));
        }
    }
    Ok(out)
}

/// The path of a key that is there and on, if one fits.
fn paid(values: &Map<String, Value>, path: &str) -> Option<String> {
    let (key, rest) = path.split_once('.').map_or((path, None), |(key, rest)| (key, Some(rest)));
    values.iter().filter(|(name, _)| key == "*" || *name == key).find_map(|(name, value)| match (rest, value) {
        (Some(rest), Value::Object(below)) => paid(below, rest).map(|found| format!("{name}.{found}")),
        (None, value) => is_on(value).then(|| name.clone()),
        _ => None,
    })
}

/// Whether a value asks for something: `enabled: false` and empty ones do not.
fn is_on(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => map.get("enabled").map_or(!map.is_empty(), |enabled| enabled != false),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(settings: &str) -> Result<Value> {
        let image = json!({"telemetry": {"enabled": false}, "controlPlane": {"statefulSet": {"env": [{"name": "GOGC", "value": "50"}]}}});
        values(&image, "biz", &serde_saphyr::from_str(settings).unwrap())
    }

    #[test]
    fn settings_reach_the_values_of_the_chart_and_own_values_go_over_them() {
        let made = of("{version: v1.35.4, replicas: 3, store: etcd, storage: {class: fast, size: 2Gi}, quota: {pods: 20}, podSecurity: baseline,
            controlPlane: {env: {GOGC: '40'}, nodeSelector: {disk: ssd}}, network: {domain: a.test, exposure: {host: a.example.org}, hostServices: [{from: db/main, to: web/db}, {from: mail/smtp}]},
            sync: {toHost: {ingresses: true}, fromHost: {events: false}}, featureGates: {X: true, Y: false}, admissionPlugins: {enable: [P, Q]},
            containerDefaults: {limits: {memory: 1Gi}, requests: {cpu: 10m}}, values: {controlPlane: {statefulSet: {highAvailability: {replicas: 5}}}}}")
        .unwrap();
        let at = |path: &str| made.pointer(path).unwrap_or_else(|| panic!("{path} in {made:#}")).clone();
        let claim = json!({"enabled": true, "retentionPolicy": "Retain", "size": "2Gi", "storageClass": "fast"});
        for (path, expected) in [
            ("/telemetry/enabled", json!(false)),
            ("/controlPlane/distro/k8s/image/tag", json!("v1.35.4")),
            ("/controlPlane/statefulSet/persistence/binariesVolume/0/image/reference", json!("chasi-bod.internal/vcluster-binaries:v1.35.4")),
            ("/controlPlane/statefulSet/env", json!([{"name": "GOGC", "value": "40"}])),
            ("/controlPlane/statefulSet/scheduling", json!({"nodeSelector": {"disk": "ssd"}})),
            ("/controlPlane/statefulSet/persistence/volumeClaim", claim.clone()),
            ("/controlPlane/statefulSet/highAvailability/replicas", json!(5)),
            ("/controlPlane/backingStore/etcd/deploy/statefulSet/highAvailability/replicas", json!(3)),
            ("/controlPlane/backingStore/etcd/deploy/statefulSet/persistence/volumeClaim", claim),
            ("/controlPlane/distro/k8s/apiServer/extraArgs", json!(["--feature-gates=X=true,Y=false", "--enable-admission-plugins=P,Q"])),
            ("/controlPlane/distro/k8s/controllerManager/extraArgs", json!(["--feature-gates=X=true,Y=false"])),
            ("/controlPlane/ingress", json!({"enabled": true, "host": "a.example.org", "spec": {"ingressClassName": "nginx"}})),
            ("/controlPlane/proxy/extraSANs", json!(["a.example.org"])),
            ("/networking/advanced/clusterDomain", json!("a.test")),
            ("/networking/replicateServices/fromHost", json!([{"from": "db/main", "to": "web/db"}, {"from": "mail/smtp", "to": "mail/smtp"}])),
            ("/policies/resourceQuota", json!({"enabled": true, "quota": {"pods": "20"}})),
            ("/policies/limitRange", json!({"enabled": true, "default": {"memory": "1Gi"}, "defaultRequest": {"cpu": "10m"}})),
            ("/policies/podSecurityStandard", json!("baseline")),
            ("/sync", json!({"toHost": {"ingresses": {"enabled": true}}, "fromHost": {"events": {"enabled": false}}})),
        ] {
            assert_eq!(at(path), expected, "{path}");
        }
    }

    #[test]
    fn below_a_path_tls_ends_at_the_controller_which_strips_it_and_knows_the_api_by_its_own_authority() {
        let made = of("{network: {exposure: {host: apis.example.org, path: /teams/biz}}}").unwrap();
        let at = |path: &str| made.pointer(&format!("/controlPlane/{path}")).unwrap_or(&Value::Null).clone();
        let annotation = |name: &str| at(&format!("ingress/annotations/nginx.ingress.kubernetes.io~1{name}"));
        for (name, expected) in [
            ("ssl-passthrough", "false"),
            ("rewrite-target", "/$2"),
            ("proxy-ssl-verify", "on"),
            ("proxy-ssl-secret", "vcluster-biz/biz-certs"),
            ("proxy-ssl-name", "biz.vcluster-biz"),
        ] {
            assert_eq!(annotation(name), expected, "{name}");
        }
        assert_eq!(at("ingress/spec/ingressClassName"), "virtual-apis");
        assert_eq!(at("ingress/spec/rules/0/http/paths/0/path"), "/teams/biz(/|$)(.*)");
        assert_eq!(at("proxy/extraSANs"), Value::Null, "the host is others', too");
        let own = of("{network: {exposure: {host: apis.example.org, path: /biz, class: own}}}").unwrap();
        assert_eq!(own.pointer("/controlPlane/ingress/spec/ingressClassName").unwrap(), "own");
    }

    #[test]
    fn a_cluster_without_settings_has_one_replica_and_a_file_on_a_volume() {
        let made = of("{}").unwrap();
        assert_eq!(made["controlPlane"]["backingStore"], json!({"database": {"embedded": {"enabled": true}}}));
        assert_eq!(made["controlPlane"]["statefulSet"]["persistence"]["volumeClaim"]["enabled"], true);
        assert_eq!(made["controlPlane"]["distro"]["k8s"]["controllerManager"]["extraArgs"], json!(["--leader-elect=false"]));
    }

    #[test]
    fn paid_and_unknown_keys_are_refused_by_name() {
        for (settings, said) in [
            ("{values: {privateNodes: {enabled: true}}}", "spec.values.privateNodes: only vcluster's paid"),
            ("{values: {sync: {toHost: {pods: {patches: [{path: a}]}}}}}", "spec.values.sync.toHost.pods.patches: only"),
            ("{values: {sync: {fromHost: {configMaps: {patches: [{path: a}]}}}}}", "spec.values.sync.fromHost.configMaps.patches: only"),
            ("{values: {sync: {toHost: {pods: {hybridScheduling: {enabled: true}}}}}}", "spec.values.sync.toHost.pods.hybridScheduling: only"),
            ("{values: {sleep: {auto: {afterInactivity: 1h}}}}", "spec.values.sleep: only"),
            ("{values: {deletion: {prevent: true}}}", "spec.values.deletion: only"),
            ("{values: {integrations: {certManager: {enabled: true}}}}", "spec.values.integrations.certManager: only"),
            ("{values: {sync: {fromHost: {customResources: {x: {enabled: true}}}}}}", "spec.values.sync.fromHost.customResources: only"),
            ("{values: {controlPlane: {backingStore: {etcd: {embedded: {enabled: true}}}}}}", "controlPlane.backingStore.etcd.embedded: only"),
            ("{sync: {toHost: {ingress: true}}}", "spec.sync.toHost.ingress: vcluster does not copy"),
        ] {
            let error = of(settings).unwrap_err().to_string();
            assert!(error.starts_with("spec.") && error.contains(said), "{settings}: {error}");
        }
        assert!(of("{values: {privateNodes: {enabled: false}, snapshots: {}, sleepMode: {enabled: false}}}").is_ok());
    }

    #[test]
    fn what_a_virtual_cluster_keeps_stays_on_a_volume_claim() {
        let persistence = "controlPlane.statefulSet.persistence";
        for (settings, field) in [
            ("{volumeClaim: {enabled: false}}", "volumeClaim.enabled"),
            ("{volumeClaim: {enabled: auto}}", "volumeClaim.enabled"),
            ("{dataVolume: [{name: data, emptyDir: {}}]}", "dataVolume"),
        ] {
            let error = of(&format!("{{values: {{controlPlane: {{statefulSet: {{persistence: {settings}}}}}}}}}")).unwrap_err().to_string();
            assert_eq!(error, format!("spec.values.{persistence}.{field}: what a virtual cluster keeps is always on a volume claim"));
        }
        let etcd =
            "{store: etcd, values: {controlPlane: {backingStore: {etcd: {deploy: {statefulSet: {persistence: {volumeClaim: {enabled: false}}}}}}}}}";
        assert!(
            of(etcd).unwrap_err().to_string().starts_with("spec.values.controlPlane.backingStore.etcd.deploy.statefulSet.persistence.volumeClaim")
        );
        assert!(of("{values: {controlPlane: {statefulSet: {persistence: {volumeClaim: {enabled: true, size: 9Gi}, dataVolume: []}}}}}").is_ok());
    }

    #[test]
    fn the_dns_serves_the_clusters_own_domain() {
        let file = |settings: &str| {
            let image = json!({"controlPlane": {"coredns": {"overwriteConfig": "    kubernetes cluster.local in-addr.arpa {\n"}}});
            values(&image, "biz", &serde_saphyr::from_str(settings).unwrap()).unwrap().pointer(COREFILE).unwrap().as_str().unwrap().trim().to_string()
        };
        assert_eq!(file("{}"), "kubernetes cluster.local in-addr.arpa {");
        assert_eq!(file("{network: {domain: a.test}}"), "kubernetes a.test cluster.local in-addr.arpa {");
        assert_eq!(file("{values: {networking: {advanced: {clusterDomain: b.test}}}}"), "kubernetes b.test cluster.local in-addr.arpa {");
        assert_eq!(file("{network: {domain: a.test}, values: {controlPlane: {coredns: {overwriteConfig: own}}}}"), "own");
    }
}
