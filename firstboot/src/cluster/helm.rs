//! The bundled helm, which keeps nothing but the release in the cluster.

use std::process::Command;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use layers::seed::CHARTS;
use layers::{Context as _, Error, Fault, Result};
use serde_json::Value;

use super::api::ADMIN;
use crate::exec;
use crate::host::{Host, RUN};
use crate::images::config::{CLUSTER_CA, NODE_CERTIFICATE};

/// A release, and the cluster and namespace that it is in.
pub struct Target<'a> {
    /// Path of the credentials.
    pub kubeconfig: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> Target<'a> {
    /// On the host, with the operator's credentials.
    pub fn on_host(namespace: &'a str, name: &'a str) -> Self {
        Self { kubeconfig: ADMIN, namespace, name }
    }

    /// A program with the credentials.
    fn command(&self, host: &Host, program: &str) -> Command {
        let mut command = homeless(host, host.program(program));
        command.args([format!("--kubeconfig={}", host.path(self.kubeconfig).display()), format!("--namespace={}", self.namespace)]);
        command
    }

    /// `helm upgrade --install` of a chart, a path on the host or an address, without values.
    pub fn upgrade(&self, host: &Host, chart: &str) -> Command {
        let mut helm = self.command(host, "helm");
        // The API refuses unknown fields of what is applied on its side; helm would have it build its whole OpenAPI document to see the same.
        helm.args(["--history-max", "5", "upgrade", "--install", "--server-side=true", "--disable-openapi-validation", self.name]);
        helm.arg(if chart.starts_with('/') { host.path(chart) } else { chart.into() });
        helm
    }

    /// Installs or upgrades with further arguments and gives the revision; fields that others wrote since are taken back.
    pub fn take(&self, host: &Host, chart: &str, values: &Value, arguments: &[&str]) -> Result<i32> {
        let file = self.file("values.json");
        let text = serde_json::to_string(values).fault(Fault::Internal, || format!("writing /{file}"))?;
        host.write(&file, text.as_bytes(), 0o600)?;
        let mut helm = self.upgrade(host, chart);
        let done = exec::run(helm.args(["--force-conflicts", "--output", "json", "--values"]).arg(host.path(&file)).args(arguments));
        host.remove(&file)?;
        revision(&done.map_err(by_schema)?.stdout)
    }

    /// Objects of the release that are not as it made them, by kind and name.
    pub fn drifted(&self, host: &Host) -> Result<Vec<String>> {
        let manifest = exec::run(self.command(host, "helm").args(["get", "manifest", self.name]))?.stdout;
        let (file, credentials) = (self.file("manifest.yaml"), self.file("conf"));
        host.write(&file, &manifest, 0o600)?;
        host.write(&credentials, self.at_home(host)?.as_bytes(), 0o600)?;
        let mut diff = homeless(host, host.program("kubectl"));
        diff.arg(format!("--kubeconfig={}", host.path(&credentials).display()));
        // Only who differs, not how: the texts may hold secrets.
        diff.env("KUBECTL_EXTERNAL_DIFF", "diff -rNq").args(["diff", "--server-side", "--force-conflicts", "--field-manager=helm", "--filename"]);
        let ended = diff.arg(host.path(&file)).output().fault(Fault::Environment, || "starting `kubectl diff`".into())?;
        host.remove(&file)?;
        host.remove(&credentials)?;
        match ended.status.code() {
            Some(0) => Ok(Vec::new()),
            Some(1) => Ok(differing(&String::from_utf8_lossy(&ended.stdout))),
            _ => Err(Error::environment(format!("comparing release {}: {}", self.name, String::from_utf8_lossy(&ended.stderr).trim()))),
        }
    }

    /// The credentials with the release's namespace for objects that name none: with `--namespace`, kubectl would refuse those that name another one.
    fn at_home(&self, host: &Host) -> Result<String> {
        let reading = || format!("reading /{}", self.kubeconfig);
        let text = host.read(self.kubeconfig)?.unwrap_or_default();
        let mut config: Value =
            serde_saphyr::from_str(&text).map_err(|error| Error::internal(format!("{}: {}", reading(), error.without_snippet())))?;
        for named in config["contexts"].as_array_mut().into_iter().flatten() {
            named["context"]["namespace"] = self.namespace.into();
        }
        serde_json::to_string(&config).fault(Fault::Internal, reading)
    }

    /// `helm uninstall`, done also when there is no such release.
    pub fn uninstall(&self, host: &Host) -> Result<()> {
        exec::run(self.command(host, "helm").args(["uninstall", self.name, "--ignore-not-found"])).map(drop)
    }

    /// Path of a file of this release alone.
    pub fn file(&self, end: &str) -> String {
        let cluster = self.kubeconfig.rsplit('/').next().unwrap_or_default();
        format!("{RUN}/helm/{cluster}.{}.{}.{end}", self.namespace, self.name)
    }
}

/// The revision in helm's JSON, before which it tells what it pulled.
fn revision(output: &[u8]) -> Result<i32> {
    let json = output.split_inclusive(|byte| *byte == b'\n').skip_while(|line| !line.starts_with(b"{")).flatten().copied().collect::<Vec<_>>();
    let release: Value = serde_json::from_slice(&json).fault(Fault::Internal, || "reading the output of `helm upgrade`".into())?;
    Ok(release["version"].as_i64().and_then(|revision| revision.try_into().ok()).unwrap_or_default())
}

/// A program of a node, which has no home.
pub fn homeless(host: &Host, mut command: Command) -> Command {
    for (variable, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data"), ("HOME", "home")] {
        command.env(variable, host.path(&format!("{RUN}/helm/{folder}")));
    }
    command
}

/// What helm says before it lists the values that a chart's schema forbids.
const SCHEMA: &str = "values don't meet the specifications of the schema(s) in the following chart(s):";

/// An error without the command line when all that is wrong is values, each by its place and chart.
fn by_schema(error: Error) -> Error {
    let text = error.to_string();
    let Some((_, list)) = text.split_once(SCHEMA) else { return error };
    let (mut chart, mut wrong) = ("", Vec::new());
    for line in list.lines().map(str::trim) {
        match (line.strip_prefix("- at "), line.strip_suffix(':')) {
            (Some(what), _) => wrong.push(format!("{what} (chart {chart})")),
            (None, Some(name)) => chart = name,
            (None, None) => {}
        }
    }
    if wrong.is_empty() { error } else { Error::environment(format!("spec.values: {}", wrong.join("; "))) }
}

/// What helm shows to the registry inside the cluster, when that has the chart: the node's certificate, as containerd does.
pub fn access(registry: &str, chart: &str) -> Vec<String> {
    let (scheme, host) = registry.trim_end_matches('/').split_once("://").unwrap_or_default();
    let inside = chart.strip_prefix("oci://").and_then(|rest| rest.split_once('/')).is_some_and(|(of, _)| !host.is_empty() && of == host);
    match scheme {
        "https" if inside => {
            let (authority, node) = (format!("/{CLUSTER_CA}"), format!("/{NODE_CERTIFICATE}"));
            vec!["--ca-file".into(), authority, "--cert-file".into(), node.clone(), "--key-file".into(), node]
        }
        "http" if inside => vec!["--plain-http".into()],
        _ => Vec::new(),
    }
}

/// The path of a chart that the image brings.
pub fn bundled(file: &str) -> String {
    format!("{CHARTS}/{file}")
}

/// Objects that `diff -rNq` names: `Files /tmp/LIVE-1/apps.v1.Deployment.default.web and /tmp/MERGED-1/… differ`.
fn differing(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("Files ")?.split(" and ").next()?.rsplit('/').next());
    names.map(String::from).collect()
}

/// Whether the cluster has anything of a release.
pub async fn knows(client: &Client, namespace: &str, name: &str) -> Result<bool> {
    let which = ListParams::default().labels(&format!("owner=helm,name={name}")).limit(1);
    let found = Api::<Secret>::namespaced(client.clone(), namespace).list(&which).await;
    found.map(|found| !found.items.is_empty()).fault(Fault::Environment, || format!("looking for release {name}"))
}

/// States in which helm leaves a release when it is killed.
const PENDING: &str = "owner=helm,status in (pending-install,pending-upgrade,pending-rollback)";

/// Removes the record of an operation that ended with its helm; what it made stays, and the next one takes it over.
pub async fn forget_pending(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let which = ListParams::default().labels(&format!("{PENDING},name={name}"));
    let gone = Api::<Secret>::namespaced(client.clone(), namespace).delete_collection(&DeleteParams::default(), &which).await;
    gone.map(drop).fault(Fault::Environment, || format!("clearing the unfinished operation of release {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_that_differ_are_named_without_their_texts() {
        let said = "Files /tmp/LIVE-3310/apps.v1.Deployment.default.web and /tmp/MERGED-2087/apps.v1.Deployment.default.web differ\n";
        assert_eq!(differing(said), ["apps.v1.Deployment.default.web"]);
        assert!(differing("").is_empty());
    }

    #[test]
    fn the_revision_is_read_also_after_what_helm_tells_of_a_pulled_chart() {
        let pulled = "Pulled: 10.96.0.5:5000/apps/web/web@sha256:00\nDigest: sha256:00\n";
        let json = "{\"name\":\"web\",\"info\":{\"notes\":\"{\\n{\"},\"version\":3}\n";
        assert_eq!(revision(json.as_bytes()).unwrap(), 3);
        assert_eq!(revision(format!("{pulled}{json}").as_bytes()).unwrap(), 3);
        assert!(revision(pulled.as_bytes()).unwrap_err().to_string().contains("the output of `helm upgrade`"));
    }

    #[test]
    fn f8_values_that_the_charts_schema_forbids_are_named_by_place_and_chart() {
        let said = format!(
            "running `helm upgrade`: exit code 1\n  Error: {SCHEMA}\n  web:\n  - at '/a/b': got number, want string\n  db:\n  - at '': missing c"
        );
        let shown = by_schema(Error::environment(said)).to_string();
        assert_eq!(shown, "spec.values: '/a/b': got number, want string (chart web); '': missing c (chart db)");
        assert_eq!(by_schema(Error::environment("timed out")).to_string(), "timed out");
    }

    #[test]
    fn only_the_registry_inside_the_cluster_sees_the_nodes_certificate() {
        let (own, chart) = ("https://10.96.0.5:5000", "oci://10.96.0.5:5000/apps/web/web@sha256:0");
        assert_eq!(access(own, chart)[..2], ["--ca-file", "/etc/kubernetes/pki/ca.crt"]);
        assert_eq!(access("http://10.96.0.5:5000", chart), ["--plain-http"]);
        for (registry, chart) in [(own, "oci://10.96.0.5:50001/a"), (own, "oci://other.test/10.96.0.5:5000/a"), (own, "/usr/x.tgz"), ("", chart)] {
            assert!(access(registry, chart).is_empty(), "{registry} {chart}");
        }
    }
}
