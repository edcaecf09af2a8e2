//! The pod that copies: vcluster's own `snapshot` and `restore` in a copy of the control plane's pod, with the place of the snapshot beside it.
//! Source: `cmd/vcluster/cmd/snapshot`, `pkg/snapshot/pod/pod.go` of loft-sh/vcluster 0.33.1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt as _;
use layers::platform::machine::Copying;
use layers::platform::snapshot::Place;
use layers::{Error, Result};
use serde_json::{Value, json};

/// The name of the pod: of several copies of one virtual cluster, one is made at a time.
pub const NAME: &str = "chasi-bod-copy";
/// The label `app` of the pod, which policies know.
pub const APP: &str = "vcluster-copy";
/// Where the snapshot lies in the pod's containers.
pub const SNAPSHOT: &str = "/copy/snapshot.tar.gz";
/// The container that a snapshot is read from, or written to.
pub const KEEPER: &str = "keeper";
/// The container with vcluster.
const WORKER: &str = "vcluster";
/// An image of the layer `seed`.
const SHELL: &str = "chasi-bod.internal/busybox:1.37";
/// Seconds until a copy that does not end is given up.
const DEADLINE: u32 = 1800;

/// Takes the snapshot from where vcluster left it to its place on the volume, whole or not at all, and tells size and digest.
const KEEP: &str = r#"set -e
f="/claim/$1"; busybox mkdir -p "$(busybox dirname "$f")"
busybox cp /copy/snapshot.tar.gz "$f.partial"; busybox sync; busybox mv "$f.partial" "$f"; busybox sync
echo "$(busybox stat -c %s "$f") $(busybox sha256sum "$f")" > /dev/termination-log"#;
/// Stays until the pod is deleted, for the agent to read or write the snapshot meanwhile.
const STAY: &str = "while :; do sleep 1; done";
/// Ends when the agent has written the snapshot.
const AWAIT: &str = "until [ -e /copy/snapshot.tar.gz ]; do sleep 1; done";

/// The pod for one copy from or into the control plane of a StatefulSet.
pub fn pod(owner: &OwnerReference, copying: Copying, place: &Place, set: &StatefulSet) -> Result<Value> {
    let malformed = || Error::environment(format!("StatefulSet {} has no container `syncer`", set.name_any()));
    let template = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).ok_or_else(malformed)?;
    let syncer = template.containers.iter().find(|container| container.name == "syncer").ok_or_else(malformed)?;
    let mut volumes: Vec<Value> = template.volumes.iter().flatten().map(|volume| json!(volume)).collect();
    if volumes.iter().all(|volume| volume["name"] != "data") {
        volumes.push(json!({"name": "data", "persistentVolumeClaim": {"claimName": format!("data-{}-0", set.name_any())}}));
    }
    volumes.push(json!({"name": "copy", "emptyDir": {}}));
    let mut mounts = vec![json!({"name": "copy", "mountPath": "/copy"})];
    let path = match (&place.volume_claim, copying) {
        (Some(claim), _) => {
            volumes.push(json!({"name": "claim", "persistentVolumeClaim": {"claimName": claim.name}}));
            mounts.push(json!({"name": "claim", "mountPath": "/claim", "readOnly": copying == Copying::Restore}));
            if copying == Copying::Restore { format!("/claim/{}", claim.path) } else { SNAPSHOT.into() }
        }
        (None, _) => SNAPSHOT.into(),
    };
    let words: &[&str] = match copying {
        Copying::Snapshot => &["/vcluster", "snapshot"],
        // Names on the host are made anew: what is restored may be another one's.
        Copying::Restore => &["/vcluster", "restore", "--new-vcluster"],
    };
    let options = STANDARD.encode(json!({"type": "container", "container": {"path": path}}).to_string());
    let mut env: Vec<Value> = syncer.env.iter().flatten().filter(|variable| variable.name != "POD_NAME").map(|variable| json!(variable)).collect();
    env.push(json!({"name": "VCLUSTER_STORAGE_OPTIONS", "value": options}));
    env.push(json!({"name": "POD_NAME", "value": format!("{}-0", set.name_any())}));
    let own: Vec<_> = syncer.volume_mounts.iter().flatten().map(|mount| json!(mount)).chain(mounts.iter().cloned()).collect();
    let worker = json!({
        "name": WORKER, "image": syncer.image, "command": words, "env": env, "envFrom": syncer.env_from, "volumeMounts": own,
        "securityContext": syncer.security_context, "resources": resources("1", "1Gi"), "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    let keeper = |script: &str| {
        let argument = place.volume_claim.as_ref().map_or("", |claim| claim.path.as_str());
        json!({
            "name": KEEPER, "image": SHELL, "command": ["/usr/bin/busybox", "sh", "-c", script, "sh", argument], "volumeMounts": mounts,
            "securityContext": syncer.security_context, "resources": resources("1", "64Mi"), "terminationMessagePolicy": "FallbackToLogsOnError",
        })
    };
    let mut first: Vec<_> = template.init_containers.iter().flatten().map(|container| json!(container)).collect();
    let last = match copying {
        Copying::Snapshot => {
            first.push(worker);
            keeper(if place.volume_claim.is_some() { KEEP } else { STAY })
        }
        Copying::Restore => {
            first.extend(place.volume_claim.is_none().then(|| keeper(AWAIT)));
            worker
        }
    };
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": NAME, "labels": {"app": APP, "release": set.name_any()}, "ownerReferences": [owner]},
        "spec": {
            "restartPolicy": "Never", "activeDeadlineSeconds": DEADLINE, "terminationGracePeriodSeconds": 1, "enableServiceLinks": false,
            "serviceAccountName": template.service_account_name, "securityContext": template.security_context,
            "nodeSelector": template.node_selector, "tolerations": template.tolerations,
            "volumes": volumes, "initContainers": first, "containers": [last],
        },
    }))
}

fn resources(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": cpu, "memory": memory}})
}

/// How far a pod is.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    /// It works, or waits for room or a volume, and why.
    Going(String),
    /// Its container [`KEEPER`] runs: the agent's turn.
    Keeping,
    /// All of it is done; with the last words of the container [`KEEPER`].
    Done(String),
    /// It ended without success, and why.
    Failed(String),
}

/// How far it is, from what its containers are at.
pub fn state(pod: &Pod) -> State {
    let Some(status) = &pod.status else { return State::Going(String::new()) };
    let all = || status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let state = |name: &str| all().find(|container| container.name == name).and_then(|container| container.state.clone());
    match status.phase.as_deref() {
        Some("Succeeded") => State::Done(state(KEEPER).and_then(|state| state.terminated?.message).unwrap_or_default()),
        Some("Failed") => {
            let failed =
                all().find_map(|one| one.state.as_ref()?.terminated.clone().filter(|ended| ended.exit_code != 0).map(|ended| (&one.name, ended)));
            State::Failed(match failed {
                Some((name, ended)) => {
                    let said = ended.message.unwrap_or_default();
                    format!("container {name} ended with exit code {}: {}", ended.exit_code, said.trim().lines().last().unwrap_or_default())
                }
                None => status.message.clone().or(status.reason.clone()).unwrap_or_else(|| "the pod failed".into()),
            })
        }
        _ if matches!(state(KEEPER), Some(ContainerState { running: Some(_), .. })) => State::Keeping,
        _ => {
            let unplaced = status.conditions.iter().flatten().find(|one| one.type_ == "PodScheduled" && one.status == "False");
            let unstarted = all().find_map(|one| one.state.as_ref()?.waiting.as_ref()?.message.clone());
            State::Going(unplaced.and_then(|one| one.message.clone()).or(unstarted).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(copying: Copying, place: &str) -> Value {
        let set = json!({
            "metadata": {"name": "biz"},
            "spec": {"selector": {}, "serviceName": "biz-headless", "template": {"spec": {
                "serviceAccountName": "vc-biz",
                "initContainers": [{"name": "vcluster-copy", "image": "binaries"}],
                "containers": [{"name": "syncer", "image": "syncer", "env": [{"name": "VCLUSTER_NAME", "value": "biz"}, {"name": "POD_NAME", "value": "x"}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            }}},
        });
        pod(&OwnerReference::default(), copying, &place.parse().unwrap(), &serde_json::from_value(set).unwrap()).unwrap()
    }

    fn names(list: &Value) -> Vec<&str> {
        list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
    }

    fn options(container: &Value) -> String {
        let variable = container["env"].as_array().unwrap().iter().find(|one| one["name"] == "VCLUSTER_STORAGE_OPTIONS").unwrap();
        String::from_utf8(STANDARD.decode(variable["value"].as_str().unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn a_snapshot_is_made_first_and_kept_then() {
        let pod = made(Copying::Snapshot, "claim:backups/2026/biz.tar.gz");
        let spec = &pod["spec"];
        assert_eq!((names(&spec["initContainers"]), names(&spec["containers"])), (vec!["vcluster-copy", WORKER], vec![KEEPER]));
        assert_eq!(names(&spec["volumes"]), ["tmp", "data", "copy", "claim"]);
        assert!(options(&spec["initContainers"][1]).contains(r#""path":"/copy/snapshot.tar.gz""#));
        assert_eq!(spec["containers"][0]["command"].as_array().unwrap().last().unwrap(), "2026/biz.tar.gz");
        assert_eq!(spec["initContainers"][1]["env"].as_array().unwrap().iter().filter(|one| one["name"] == "POD_NAME").count(), 1);
    }

    #[test]
    fn a_restore_reads_its_volume_or_waits_for_the_agent() {
        let spec = &made(Copying::Restore, "claim:backups/biz.tar.gz")["spec"];
        assert_eq!((names(&spec["initContainers"]), names(&spec["containers"])), (vec!["vcluster-copy"], vec![WORKER]));
        assert!(options(&spec["containers"][0]).contains(r#""path":"/claim/biz.tar.gz""#));
        let spec = &made(Copying::Restore, "file:biz.tar.gz")["spec"];
        assert_eq!((names(&spec["initContainers"]), names(&spec["containers"])), (vec!["vcluster-copy", KEEPER], vec![WORKER]));
        assert_eq!(spec["containers"][0]["command"], json!(["/vcluster", "restore", "--new-vcluster"]));
    }

    #[test]
    fn a_pod_says_how_far_it_is() {
        let of = |status: Value| state(&serde_json::from_value(json!({"status": status})).unwrap());
        let container =
            |name: &str, state: Value| json!({"name": name, "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0});
        let ended = |code: i32, message: &str| json!({"terminated": {"exitCode": code, "message": message}});
        assert_eq!(of(json!({"phase": "Pending"})), State::Going(String::new()));
        let unplaced = json!({"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"});
        assert_eq!(of(json!({"phase": "Pending", "conditions": [unplaced]})), State::Going("0/1 nodes are available".into()));
        let running = json!({"phase": "Running", "containerStatuses": [container(KEEPER, json!({"running": {}}))]});
        assert_eq!(of(running), State::Keeping);
        let done = json!({"phase": "Succeeded", "containerStatuses": [container(KEEPER, ended(0, "12 abc"))]});
        assert_eq!(of(done), State::Done("12 abc".into()));
        let failed = json!({"phase": "Failed", "initContainerStatuses": [container(WORKER, ended(1, "I x\nF no such file\n"))]});
        assert_eq!(of(failed), State::Failed("container vcluster ended with exit code 1: F no such file".into()));
        let late =
            json!({"phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline"});
        assert_eq!(of(late), State::Failed("Pod was active on the node longer than the specified deadline".into()));
    }
}
