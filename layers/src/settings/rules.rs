//! What a node is in its cluster, by rules over what its machine says of itself: one set of rules for all machines of a site.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Role;
use super::checks::is_label;
use crate::expression;
use crate::profile::quote;

/// What a machine says of itself; each field is a variable of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Host name.
    pub name: String,
    /// Hardware addresses of its network cards, such as `52:54:00:12:34:56`.
    pub macs: Vec<String>,
    /// Serial number; empty when it has none.
    pub serial: String,
    /// SMBIOS UUID in lower case; empty when it has none.
    pub uuid: String,
    /// Labels that the rules before have given it.
    pub labels: BTreeMap<String, String>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Condition: an expression over [`Facts`].
    #[serde(rename = "where")]
    pub condition: String,
    /// The part in forming the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Labels of the Node object.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
}

/// A taint: `KEY=VALUE:EFFECT` or `KEY:EFFECT`, as kubectl takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value, maybe empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl TryFrom<String> for Taint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{} is no taint such as `dedicated=gpu:NoSchedule`", quote(&text));
        let (left, effect) = text.rsplit_once(':').ok_or_else(bad)?;
        let (key, value) = left.split_once('=').unwrap_or((left, ""));
        let is_good = is_key(key) && is_value(value) && ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect);
        is_good.then(|| Self { key: key.into(), value: value.into(), effect: effect.into() }).ok_or_else(bad)
    }
}

impl From<Taint> for String {
    fn from(Taint { key, value, effect }: Taint) -> Self {
        let value = if value.is_empty() { value } else { format!("={value}") };
        format!("{key}{value}:{effect}")
    }
}

/// What the rules give a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its part; none when no rule says one.
    pub role: Option<Role>,
    /// Labels of its Node object.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
}

/// Applies rules in their order: labels add up, of roles and of taints with one key and effect the last counts.
pub fn decide(rules: &[Rule], mut facts: Facts) -> Result<Standing, String> {
    let mut standing = Standing::default();
    for (number, rule) in rules.iter().enumerate() {
        if !expression::holds(&rule.condition, &facts).map_err(|why| format!("rule {}: {why}", number + 1))? {
            continue;
        }
        facts.labels.extend(rule.labels.clone());
        standing.role = rule.role.or(standing.role);
        for taint in &rule.taints {
            standing.taints.retain(|old| (&old.key, &old.effect) != (&taint.key, &taint.effect));
            standing.taints.push(taint.clone());
        }
    }
    standing.labels = facts.labels;
    Ok(standing)
}

/// Says what is wrong with rules, as far as that can be seen without a machine.
pub fn check(rules: &[Rule]) -> Result<(), String> {
    for (number, rule) in rules.iter().enumerate() {
        let naming = |why: String| format!("rule {}: {why}", number + 1);
        expression::check(&rule.condition, &Facts::default()).map_err(naming)?;
        for (key, value) in &rule.labels {
            check_label(key, value).map_err(naming)?;
        }
    }
    Ok(())
}

/// A label that a kubelet may give its own node: of Kubernetes' names it has a few only (kubelet's `--node-labels`), as others say what a node may do.
fn check_label(key: &str, value: &str) -> Result<(), String> {
    let of_kubernetes = |domain: &str| ["kubernetes.io", "k8s.io"].iter().any(|own| domain == *own || domain.ends_with(&format!(".{own}")));
    let of_kubelets =
        |domain: &str| ["node.kubernetes.io", "kubelet.kubernetes.io"].iter().any(|own| domain == *own || domain.ends_with(&format!(".{own}")));
    let is_open = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"].contains(&key);
    match key.split_once('/').map(|(domain, _)| domain) {
        _ if !is_key(key) => Err(format!("{} is no key of a label", quote(key))),
        _ if !is_value(value) => Err(format!("{} is no value of a label", quote(value))),
        Some(domain) if of_kubernetes(domain) && !of_kubelets(domain) && !is_open => {
            Err(format!("{} is not a node's own to give; use a domain of yours", quote(key)))
        }
        _ => Ok(()),
    }
}

/// `[DOMAIN/]NAME` (Kubernetes, "Labels and Selectors").
fn is_key(key: &str) -> bool {
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    !name.is_empty() && is_value(name) && domain.is_none_or(|domain| domain.len() <= 253 && domain.split('.').all(is_label))
}

fn is_value(value: &str) -> bool {
    let ends = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    value.len() <= 63 && value.chars().all(inner) && ends(value.chars().next()) && ends(value.chars().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<Rule> {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn machines_get_role_labels_and_taints_by_what_they_say_of_themselves() {
        let rules = rules(
            "- {where: 'name.startsWith(\"w\")', role: worker, labels: {site.example.org/rack: r1}}\n\
             - {where: '\"52:54:00:00:00:02\" in macs || serial == \"S2\"', labels: {gpu: \"yes\"}, taints: [\"gpu=a:NoSchedule\", x:NoExecute]}\n\
             - {where: '\"gpu\" in labels && labels.gpu == \"yes\"', taints: [\"gpu=b:NoSchedule\"]}\n\
             - {where: 'uuid == \"0\"', role: founder}\n",
        );
        check(&rules).unwrap();
        let of = |name: &str, mac: &str| decide(&rules, Facts { name: name.into(), macs: vec![mac.into()], ..Facts::default() }).unwrap();
        let told = |standing: Standing| {
            (standing.role, standing.labels.into_keys().collect::<Vec<_>>(), standing.taints.into_iter().map(String::from).collect::<Vec<_>>())
        };
        assert_eq!(told(of("n1", "52:54:00:00:00:01")), (None, vec![], vec![]));
        let rack = "site.example.org/rack".to_string();
        assert_eq!(told(of("w1", "52:54:00:00:00:01")), (Some(Role::Worker), vec![rack.clone()], vec![]));
        let taints = ["x:NoExecute", "gpu=b:NoSchedule"].map(String::from).to_vec();
        assert_eq!(told(of("w2", "52:54:00:00:00:02")), (Some(Role::Worker), vec!["gpu".into(), rack], taints));
    }

    #[test]
    fn a_wrong_rule_is_named_before_there_is_a_machine() {
        for (text, why) in [
            ("- {where: true}\n- {where: nam == 'a'}", "rule 2: `nam == 'a'`: unknown variable `nam`, did you mean `name`?"),
            ("- {where: 'name =='}", "rule 1: `name ==`: "),
            ("- {where: true, labels: {node-role.kubernetes.io/x: a}}", "is not a node's own to give"),
            ("- {where: true, labels: {k8s.io/x: a}}", "is not a node's own to give"),
            ("- {where: true, labels: {a b: c}}", "`a b` is no key of a label"),
            ("- {where: true, labels: {a: -c}}", "`-c` is no value of a label"),
        ] {
            let error = check(&rules(text)).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        check(&rules("- {where: true, labels: {topology.kubernetes.io/zone: a, node.kubernetes.io/x: b}}")).unwrap();
        for taint in ["a", "a=b", "a=b:Never", ":NoSchedule", "a b:NoSchedule"] {
            assert!(Taint::try_from(taint.to_string()).unwrap_err().contains("is no taint such as"), "{taint}");
        }
        let error = decide(&rules("- {where: 'labels.a == \"b\"'}"), Facts::default()).unwrap_err();
        assert!(error.starts_with("rule 1: `labels.a == \"b\"`: "), "{error}");
    }
}
