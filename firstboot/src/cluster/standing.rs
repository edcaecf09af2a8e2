//! What this machine is in its cluster, by the rules of the settings.

use layers::settings::rules::{Facts, Standing, decide};
use layers::settings::{Role, Settings};
use layers::{Error, Result};

use crate::host::Host;

/// What the rules give this machine.
pub fn of(host: &Host, settings: &Settings) -> Result<Standing> {
    let Some(rules) = &settings.rules else { return Ok(Standing::default()) };
    decide(&rules.value, facts(host)).map_err(|why| {
        let error = Error::input(format!("nodes.rules ({}): {why}", rules.source));
        error.with_hint("`\"KEY\" in labels && …` asks for a label that a machine may lack")
    })
}

/// Its part in forming the cluster.
pub fn part(host: &Host, settings: &Settings) -> Result<Option<Role>> {
    Ok(settings.part_by(of(host, settings)?.role))
}

fn facts(host: &Host) -> Facts {
    let macs = host.cards().into_iter().map(|card| host.line(&format!("sys/class/net/{card}/address")).to_lowercase());
    Facts {
        name: host.line("etc/hostname").to_lowercase(),
        macs: macs.filter(|mac| !mac.is_empty()).collect(),
        serial: host.firmware("product_serial"),
        uuid: host.firmware("product_uuid").to_lowercase(),
        labels: [].into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_rule_gives_the_part_that_nobody_told_the_node_itself() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        host.write("etc/hostname", b"W1\n", 0o644).unwrap();
        host.write("sys/class/net/eth0/address", b"52:54:00:00:00:0A\n", 0o444).unwrap();
        host.write("sys/class/net/eth0/device/uevent", b"", 0o444).unwrap();
        host.write("sys/class/dmi/id/product_serial", b"S1\n", 0o400).unwrap();
        let rule = "[{where: 'name == \"w1\" && \"52:54:00:00:00:0a\" in macs && serial == \"S1\"', role: worker, labels: {a: b}}]";
        let part = |items: &[(&str, &str)]| part(&host, &config::example(items)).unwrap();
        assert_eq!(part(&[("nodes.rules", rule)]), Some(Role::Worker));
        assert_eq!(part(&[("nodes.rules", rule), ("cluster.role", "member")]), Some(Role::Member), "what is said of this node alone counts more");
        assert_eq!(part(&[("nodes.rules", "[{where: 'serial == \"S2\"', role: worker}]"), ("nodes.expected", "3")]), None);
        let error = of(&host, &config::example(&[("nodes.rules", "[{where: 'labels.a == \"b\"'}]")])).unwrap_err().to_string();
        assert!(error.starts_with("nodes.rules (test): rule 1: "), "{error}");
    }
}
