//! Removing a node for good: its pods, its member of etcd, and what the API knows of it, in this order, so that a removal that broke off goes on.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use layers::profile::suggest;
use layers::{Error, Result};

use super::drain::Drain;
use super::list::{is_plane, seats};
use super::quorum::Quorum;
use super::{Outcome, Remove, Session};
use crate::cluster::api::{gone, not_ready};
use crate::cluster::etcd::{self, Member, Standing};
use crate::host::Host;
use crate::verbs::objects::failure;

/// What local volumes are tied to their node by.
const HOST_NAME: &str = "kubernetes.io/hostname";

/// How long etcd may refuse to take a member out.
const TRUST: Duration = Duration::from_secs(20);

/// What there is to do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// It is Ready, so that its pods can be ended in order.
    drains: bool,
    /// Members of its name.
    members: Vec<Member>,
    /// What etcd is without them.
    left: Option<Quorum>,
    /// The API knows it.
    deletes: bool,
}

impl Remove {
    pub(super) async fn run(&self, session: &Session<'_>) -> Result<Outcome> {
        let (name, api) = (&self.node.name, Api::<Node>::all(session.client().await?));
        let standing = session.standing().await?;
        let nodes = session.nodes(standing.as_ref()).await?;
        let plan = decide(name, &nodes, standing.as_ref())?;
        let told = plan.told(name);
        if told.is_empty() {
            nothing(name, &nodes, session).iter().for_each(|line| (session.say)(line));
            return Ok(Outcome::default());
        }
        let volumes = self.volumes(&nodes, session).await?;
        let drain = Drain::new(name, session).await?;
        if self.node.dry_run {
            let pods = if plan.drains { drain.planned().await? } else { String::new() };
            return Ok((told.into_iter().chain(volumes).map(|line| line + "\n").collect::<String>() + &pods).into());
        }
        volumes.iter().for_each(|line| (session.say)(line));
        if plan.drains
            && let Err(error) = drain.run(self.node.timeout).await
        {
            if !self.force {
                return Err(error.with_hint(format!("--force removes it all the same; `chasi-bod nodes uncordon {name}` takes it into use again")));
            }
            (session.say)(&format!("{error}; it goes on, as --force says"));
        }
        self.leave_etcd(session).await?;
        if plan.deletes {
            gone(api.delete(name, &DeleteParams::default()).await).map_err(|error| failure::<Node>(&error, &format!("deleting node {name}")))?;
            (session.say)(&format!("node {name} is removed; its machine, started again as it is, would bring it back: install that anew"));
        }
        Ok(Outcome::default())
    }

    /// Draining may have taken long: what counts is etcd as it is now.
    async fn leave_etcd(&self, session: &Session<'_>) -> Result<()> {
        let (Some(host), name) = (session.plane(), &self.node.name) else { return Ok(()) };
        let standing = session.standing().await?;
        let plan = decide(name, &session.nodes(standing.as_ref()).await?, standing.as_ref())?;
        for member in &plan.members {
            take_out(host, member).await?;
        }
        if let Some(left) = plan.left {
            (session.say)(&format!("{name} is no member of etcd any more: {}", left.votes()));
        }
        Ok(())
    }

    /// What nobody can read any more.
    async fn volumes(&self, nodes: &[Node], session: &Session<'_>) -> Result<Vec<String>> {
        let Some(node) = nodes.iter().find(|node| node.name_any() == self.node.name) else { return Ok(Vec::new()) };
        let listed = Api::<PersistentVolume>::all(session.client().await?).list(&ListParams::default()).await;
        let listed = listed.map_err(|error| failure::<Node>(&error, "listing volumes"))?;
        let host_name = node.labels().get(HOST_NAME).cloned().unwrap_or_else(|| node.name_any());
        Ok(listed.iter().filter(|volume| is_tied(volume, &host_name)).map(lost).collect())
    }
}

/// Takes a member out, as soon as etcd trusts the others: it counts one that has come back only after some seconds.
async fn take_out(host: &Host, member: &Member) -> Result<()> {
    let begun = Instant::now();
    loop {
        match etcd::remove(host, member).await {
            Err(_) if begun.elapsed() < TRUST => tokio::time::sleep(Duration::from_secs(2)).await,
            done => {
                return done.map_err(|error| {
                    error.with_hint("`chasi-bod nodes list` shows which members answer; the removal goes on when it is called again")
                });
            }
        }
    }
}

/// What is to be done about a node; why not, where it cannot be done here or etcd would not bear it.
fn decide(name: &str, nodes: &[Node], standing: Option<&Standing>) -> Result<Plan> {
    let removing = || format!("removing node {name}");
    let node = nodes.iter().find(|node| node.name_any() == name);
    let drains = node.is_some_and(|node| not_ready(node).is_none());
    let elsewhere = |why: &str| {
        let other = nodes.iter().find(|node| is_plane(node) && node.name_any() != name && not_ready(node).is_none());
        let hint = |node: &Node| format!("`ssh root@{} chasi-bod nodes remove {name}`", node.name_any());
        let hint = other.map_or_else(|| "there is no other control plane that is Ready: make one first".into(), hint);
        Error::input(format!("{}: {why}", removing())).with_hint(hint)
    };
    let Some(standing) = standing else {
        if node.is_some_and(is_plane) {
            return Err(elsewhere("it is a control plane, and only another control plane can take its member out of etcd"));
        }
        return Ok(Plan { drains, deletes: node.is_some(), ..Plan::default() });
    };
    let seats = seats(standing, name);
    if seats.iter().any(|seat| seat.member.id == standing.own) {
        return Err(elsewhere("it is this control plane itself, and another one has to do it"));
    }
    let left = Quorum::of(standing).without(seats.iter().copied()).map_err(|why| {
        let silent = standing.seats.iter().filter(|seat| !seat.answers).map(|seat| seat.member.name.as_str());
        let silent: Vec<_> = silent.filter(|other| !other.is_empty() && *other != name).collect();
        let error = Error::input(format!("{}: {why}", removing()));
        if silent.is_empty() { error } else { error.with_hint(format!("start what does not answer first, or remove it: {}", silent.join(", "))) }
    })?;
    let members: Vec<_> = seats.into_iter().map(|seat| seat.member.clone()).collect();
    Ok(Plan { drains, left: (!members.is_empty()).then_some(left), members, deletes: node.is_some() })
}

impl Plan {
    /// What would be done, a line for each part.
    fn told(&self, name: &str) -> Vec<String> {
        let drained = self.drains.then(|| format!("node {name} would be cordoned and drained"));
        let left = self.left.map(|left| format!("its member of etcd would be taken out, and then {}: {}", left.votes(), left.outlook()));
        let deleted = self.deletes.then(|| format!("node {name} would be deleted"));
        drained.into_iter().chain(left).chain(deleted).collect()
    }
}

/// Nothing of that name: removed already, or misspelt.
fn nothing(name: &str, nodes: &[Node], session: &Session<'_>) -> Vec<String> {
    let etcd = if session.plane().is_some() { "and no member of etcd is called so" } else { "what etcd knows only a control plane can tell" };
    let names: Vec<_> = nodes.iter().map(Node::name_any).collect();
    let near = suggest(name, names.iter().map(String::as_str));
    [format!("there is no node {name}, {etcd}: nothing to do")].into_iter().chain(near).collect()
}

/// Whether a volume can be used on this node alone.
fn is_tied(volume: &PersistentVolume, host_name: &str) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()).and_then(|affinity| affinity.required.as_ref());
    let mut terms = affinity.into_iter().flat_map(|required| &required.node_selector_terms).flat_map(|term| term.match_expressions.iter().flatten());
    terms.any(|term| term.key == HOST_NAME && term.operator == "In" && term.values.as_deref() == Some(&[host_name.to_string()]))
}

fn lost(volume: &PersistentVolume) -> String {
    let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let claim = claim.map(|claim| format!(", of claim {}/{}", claim.namespace.as_deref().unwrap_or("-"), claim.name.as_deref().unwrap_or("-")));
    format!("volume {}{} is on this node alone: pods that need it wait for it forever", volume.name_any(), claim.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::list::tests::node;
    use super::super::quorum::tests::standing;
    use super::*;

    fn nodes() -> Vec<Node> {
        vec![
            node("a", true, "True", "00:00:00"),
            node("b", true, "True", "00:00:00"),
            node("c", true, "Unknown", "00:00:00"),
            node("w", false, "True", "00:00:00"),
        ]
    }

    #[test]
    fn g2_a_control_plane_goes_with_its_vote_unless_etcd_needs_that() {
        let seen = standing(&[("a", 'L'), ("b", 'v'), ("c", 'x')]);
        let plan = decide("c", &nodes(), Some(&seen)).unwrap();
        assert_eq!((plan.drains, plan.deletes, plan.members.len(), plan.left), (false, true, 1, Some(Quorum { voters: 2, healthy: 2 })));
        let told = [
            "its member of etcd would be taken out, and then 2 of 2 voters answer, 2 are needed: none may be lost, with the next one it stops",
            "node c would be deleted",
        ];
        assert_eq!(plan.told("c"), told);
        let error = decide("b", &nodes(), Some(&seen)).unwrap_err();
        let expected = "removing node b: etcd would lose its majority: now 2 of 3 voters answer, 2 are needed, \
                        and without it 1 of 2 voters answers, 2 are needed";
        assert_eq!((error.to_string().as_str(), error.hint()), (expected, Some("start what does not answer first, or remove it: c")));
    }

    #[test]
    fn what_cannot_be_done_here_says_where_it_can() {
        let error = decide("b", &nodes(), None).unwrap_err();
        assert!(error.to_string().contains("only another control plane") && error.hint() == Some("`ssh root@a chasi-bod nodes remove b`"), "{error}");
        let error = decide("a", &nodes(), Some(&standing(&[("a", 'L'), ("b", 'v')]))).unwrap_err();
        assert!(error.to_string().contains("itself") && error.hint() == Some("`ssh root@b chasi-bod nodes remove a`"), "{error}");
        let error = decide("a", &nodes()[..1], Some(&standing(&[("a", 'L')]))).unwrap_err();
        assert!(error.hint().unwrap().starts_with("there is no other control plane"), "{error}");
    }

    #[test]
    fn what_is_gone_already_is_no_mistake() {
        assert_eq!(decide("w", &nodes(), None).unwrap(), Plan { drains: true, deletes: true, ..Plan::default() });
        let seen = standing(&[("a", 'L'), ("b", 'v'), ("gone", 'x')]);
        let plan = decide("gone", &nodes(), Some(&seen)).unwrap();
        assert_eq!((plan.drains, plan.deletes, plan.members[0].name.as_str()), (false, false, "gone"));
        assert_eq!(decide("z", &nodes(), Some(&seen)).unwrap(), Plan::default());
        assert!(Plan::default().told("z").is_empty());
    }

    #[test]
    fn volumes_of_the_node_alone_are_named() {
        let volume = |values: &[&str]| -> PersistentVolume {
            let term = json!({"matchExpressions": [{"key": HOST_NAME, "operator": "In", "values": values}]});
            let affinity = json!({"required": {"nodeSelectorTerms": [term]}});
            let spec = json!({"nodeAffinity": affinity, "claimRef": {"namespace": "biz", "name": "data"}});
            serde_json::from_value(json!({"metadata": {"name": "pvc-1"}, "spec": spec})).unwrap()
        };
        assert_eq!([volume(&["n"]), volume(&["n", "m"]), PersistentVolume::default()].map(|volume| is_tied(&volume, "n")), [true, false, false]);
        assert_eq!(lost(&volume(&["n"])), "volume pvc-1, of claim biz/data is on this node alone: pods that need it wait for it forever");
    }
}
