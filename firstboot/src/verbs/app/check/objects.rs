//! What a rendered chart has: its objects, and the pods that they make.

use layers::platform::check::number;
use serde_json::Value;

/// `Deployment web`.
pub fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_string();
    format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

pub fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

/// The objects of documents, those of lists one by one.
pub fn all(documents: Vec<Value>) -> Vec<Value> {
    let mut out = Vec::new();
    for mut document in documents {
        match document["items"].take() {
            Value::Array(items) if kind(&document).ends_with("List") => out.extend(all(items)),
            Value::Null if document.is_object() && !kind(&document).is_empty() => out.push(without_items(document)),
            _ => {}
        }
    }
    out
}

/// Looking for `items` has made it.
fn without_items(mut document: Value) -> Value {
    if let Some(map) = document.as_object_mut() {
        map.retain(|key, value| key != "items" || !value.is_null());
    }
    document
}

/// Pods that an object makes.
pub struct Workload<'a> {
    pub object: &'a Value,
    /// Specification of one.
    pub pod: &'a Value,
    /// How many.
    pub count: f64,
}

impl<'a> Workload<'a> {
    pub fn of(object: &'a Value) -> Option<Self> {
        let path = match kind(object) {
            "Pod" => "/spec",
            "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" | "ReplicationController" => "/spec/template/spec",
            "CronJob" => "/spec/jobTemplate/spec/template/spec",
            _ => return None,
        };
        let count = object["spec"]["replicas"].as_f64().or(object["spec"]["parallelism"].as_f64()).unwrap_or(1.0);
        Some(Self { object, pod: object.pointer(path)?, count })
    }

    pub fn name(&self) -> String {
        name(self.object)
    }

    /// Whether it serves as long as it is there.
    pub fn serves(&self) -> bool {
        !matches!(kind(self.object), "Job" | "CronJob" | "Pod")
    }

    /// Its containers, first those that end before the others begin.
    pub fn containers(&self) -> impl Iterator<Item = &'a Value> {
        ["initContainers", "containers"].into_iter().flat_map(|list| self.pod[list].as_array().into_iter().flatten())
    }

    /// Those that run all the time.
    pub fn running(&self) -> impl Iterator<Item = &'a Value> {
        let own = self.pod["initContainers"].as_array().into_iter().flatten().filter(|container| container["restartPolicy"] == "Always");
        own.chain(self.pod["containers"].as_array().into_iter().flatten())
    }

    /// What its pods ask for together, such as `requests` of `cpu`.
    pub fn sum(&self, of: &str, resource: &str) -> f64 {
        self.count * self.running().filter_map(|container| quantity(&container["resources"][of][resource])).sum::<f64>()
    }
}

/// A quantity, however it is written.
pub fn quantity(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| number(value.as_str()?))
}

/// `Deployment web, container app`.
pub fn place(workload: &Workload<'_>, container: &Value) -> String {
    format!("{}, container {}", workload.name(), container["name"].as_str().unwrap_or("?"))
}

/// A volume that is asked for, and for how many pods.
pub struct Claim<'a> {
    pub name: String,
    pub spec: &'a Value,
    pub count: f64,
}

/// Claims of an object: its own, those of its pods.
pub fn claims(object: &Value) -> Vec<Claim<'_>> {
    if kind(object) == "PersistentVolumeClaim" {
        return vec![Claim { name: name(object), spec: &object["spec"], count: 1.0 }];
    }
    let Some(workload) = Workload::of(object) else { return Vec::new() };
    let each = |value: &'_ Value| value["metadata"]["name"].as_str().or(value["name"].as_str()).unwrap_or("?").to_string();
    let named = |text: String| format!("{}, volume {text}", workload.name());
    let templates = object["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten().map(|claim| (each(claim), &claim["spec"]));
    let volumes = workload.pod["volumes"].as_array().into_iter().flatten();
    let ephemeral = volumes.filter_map(|volume| Some((each(volume), volume.pointer("/ephemeral/volumeClaimTemplate/spec")?)));
    templates.chain(ephemeral).map(|(claim, spec)| Claim { name: named(claim), spec, count: workload.count }).collect()
}

/// Bytes that a claim asks for, for all its pods.
pub fn size(claim: &Claim<'_>) -> f64 {
    claim.count * quantity(&claim.spec["resources"]["requests"]["storage"]).unwrap_or(0.0)
}

/// Bytes for people.
pub fn bytes(count: f64) -> String {
    // The sum of nothing is -0.
    match count + 0.0 {
        count if count >= 1_073_741_824.0 => format!("{}Gi", (count / 107_374_182.4).round() / 10.0),
        count => format!("{}Mi", (count / 1_048_576.0).round()),
    }
}
