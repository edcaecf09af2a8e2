//! Step `identity`: machine id, host name, ssh host keys, who may log in.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::time::Duration;

use layers::{Context, Error, Result};

use super::{Outcome, Site, Step, json};
use crate::exec;
use crate::host::Host;

const KEY_TYPES: [&str; 2] = ["ed25519", "ecdsa"];

/// Machine id, host name, host keys, authorized keys, root's console password.
pub struct IdentityStep;

impl Step for IdentityStep {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn inputs(&self, site: &Site) -> String {
        // Not the hardware address itself: a node keeps its name when a network card is replaced.
        let settings = site.settings;
        let hash = settings.password_hash.as_ref().map(|hash| &hash.value);
        json(&(&settings.hostname.value, &settings.ssh_keys, hash, further_names(site.host)))
    }

    fn is_done(&self, site: &Site) -> bool {
        let has_keys = KEY_TYPES.iter().all(|kind| has_key(site.host, kind));
        has_keys && site.host.line("etc/machine-id").len() == 32 && announce(site.host, &site.host.line("etc/hostname"))
    }

    fn run(&self, site: &Site) -> Result<Outcome> {
        let host = site.host;
        ensure_machine_id(host)?;
        let name = host_name(host, &site.settings.hostname.value)?;
        host.write("etc/hostname", format!("{name}\n").as_bytes(), 0o644)?;
        write_hosts(host, &name)?;
        announce(host, &name);
        make_keys(host)?;
        let mut files = vec!["etc/hostname".into(), "etc/hosts".into()];
        for (user, keys) in &site.settings.ssh_keys {
            let path = format!("etc/ssh/authorized_keys.d/{user}");
            host.write(&path, format!("{}\n", keys.value.join("\n")).as_bytes(), 0o644)?;
            files.push(path);
        }
        set_password(host, site.settings.password_hash.as_ref().map(|hash| hash.value.as_str()))?;
        Ok(Outcome { detail: name, files })
    }
}

/// Lines of hosts(5) that the node keeps beside its own name, such as that of the cluster's API.
const FURTHER_NAMES: &str = "var/lib/chasi-bod/hosts";

fn further_names(host: &Host) -> String {
    host.read(FURTHER_NAMES).ok().flatten().unwrap_or_default()
}

fn write_hosts(host: &Host, name: &str) -> Result<()> {
    let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n{}", further_names(host));
    host.write("etc/hosts", hosts.as_bytes(), 0o644).map(|_| ())
}

/// Gives further names to the node, now and at every boot; they replace those that were given before.
pub fn set_further_names(host: &Host, lines: &str) -> Result<()> {
    host.write(FURTHER_NAMES, lines.as_bytes(), 0o644)?;
    write_hosts(host, &host.line("etc/hostname"))
}

fn ensure_machine_id(host: &Host) -> Result<()> {
    let id = host.line("etc/machine-id");
    if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    // init writes it before systemd starts; this is the net below it. UUID version 4, as machine-id(5) wants.
    let id = uuid::Builder::from_random_bytes(host.random()?).into_uuid().simple().to_string();
    host.write("etc/machine-id", format!("{id}\n").as_bytes(), 0o444).map(|_| ())
}

fn host_name(host: &Host, rule: &str) -> Result<String> {
    let mut name = rule.to_string();
    if name.contains("{mac}") {
        let mac = mac(host).ok_or_else(|| {
            Error::environment(format!("naming the host `{rule}`: no network card was found")).with_hint("add a card, or set hostname without {mac}")
        })?;
        name = name.replace("{mac}", &mac);
    }
    if name.contains("{serial}") {
        let serial: String = host.firmware("product_serial").to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
        if serial.is_empty() {
            return Err(
                Error::environment(format!("naming the host `{rule}`: the machine has no serial number")).with_hint("set hostname without {serial}")
            );
        }
        name = name.replace("{serial}", &serial);
    }
    let id = host.line("etc/machine-id");
    Ok(name.replace("{id}", id.get(..8).unwrap_or(&id)).chars().take(64).collect())
}

/// Hex digits of the first real network card. On a machine its driver may still be loading: it is waited for 5 s, and 30 s while udev is at work;
/// for a later one the agent runs the step again.
fn mac(host: &Host) -> Option<String> {
    for tenths in 0..300 {
        let address = |name: &String| host.line(&format!("sys/class/net/{name}/address")).replace(':', "");
        let found = host.cards().iter().map(address).find(|mac| mac.len() == 12);
        if found.is_some() || !host.is_live() || tenths >= 50 && !host.is_probing() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    None
}

/// Gives the kernel the name; whether it has it now.
fn announce(host: &Host, name: &str) -> bool {
    !host.is_live() || host.line("proc/sys/kernel/hostname") == name || rustix::system::sethostname(name.as_bytes()).is_ok()
}

fn key_path(kind: &str) -> String {
    format!("etc/ssh/ssh_host_{kind}_key")
}

fn has_key(host: &Host, kind: &str) -> bool {
    let path = key_path(kind);
    host.line(&path).starts_with("-----BEGIN") && !host.line(&format!("{path}.pub")).is_empty()
}

/// Makes the host keys that are missing or half there, all at once; each gets its name when both its files are whole.
fn make_keys(host: &Host) -> Result<()> {
    let missing: Vec<_> = KEY_TYPES.into_iter().filter(|kind| !has_key(host, kind)).collect();
    let mut commands = Vec::new();
    std::fs::create_dir_all(host.path("etc/ssh")).context(|| "making /etc/ssh".into())?;
    for kind in &missing {
        let new = format!("{}.new", key_path(kind));
        host.remove(&new)?;
        host.remove(&format!("{new}.pub"))?;
        let mut command = host.program("ssh-keygen");
        command.args(["-q", "-t", kind, "-N", "", "-C", "", "-f"]).arg(host.path(&new));
        commands.push(command);
    }
    let results: Vec<Result<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = commands.iter_mut().map(|command| scope.spawn(|| exec::run(command))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(Error::internal("making an ssh host key: thread ended")))).collect()
    });
    results.into_iter().collect::<Result<Vec<_>>>()?;
    for kind in missing {
        let path = key_path(kind);
        for (suffix, mode) in [(".pub", 0o644), ("", 0o600)] {
            let bytes = host.read_bytes(&format!("{path}.new{suffix}"))?.unwrap_or_default();
            host.write(&format!("{path}{suffix}"), &bytes, mode)?;
        }
    }
    // Of all types: a run that was cut may have left a private key beside one that is whole.
    let left = KEY_TYPES.iter().flat_map(|kind| ["", ".pub"].map(|suffix| format!("{}.new{suffix}", key_path(kind))));
    left.map(|path| host.remove(&path)).collect::<Result<Vec<_>>>().map(|_| ())
}

/// Root's entry in shadow(5): the configured hash, else locked. No image and no default can leave a password there.
fn set_password(host: &Host, hash: Option<&str>) -> Result<()> {
    let Some(text) = host.read("etc/shadow")? else {
        return if hash.is_some() { Err(Error::environment("setting root's password: /etc/shadow is missing")) } else { Ok(()) };
    };
    let line = |line: &str| match line.strip_prefix("root:").and_then(|rest| rest.split_once(':')) {
        Some((old, rest)) => format!("root:{}:{rest}\n", hash.unwrap_or(if old.starts_with(['!', '*']) { old } else { "!*" })),
        None => format!("{line}\n"),
    };
    let wanted: String = text.lines().map(line).collect();
    if wanted == text {
        return Ok(());
    }
    let (path, doing) = (host.path("etc/shadow"), || "keeping the owner of /etc/shadow".to_string());
    let old = std::fs::metadata(&path).context(doing)?;
    host.write("etc/shadow", wanted.as_bytes(), old.mode() & 0o7777)?;
    chown(&path, Some(old.uid()), Some(old.gid())).context(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_name_rules_are_filled_in() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        host.write("etc/machine-id", b"0123456789abcdef0123456789abcdef\n", 0o444).unwrap();
        assert!(host_name(&host, "node-{mac}").unwrap_err().hint().is_some());
        host.write("sys/class/net/ens3/address", b"52:54:00:12:34:56\n", 0o444).unwrap();
        host.write("sys/class/net/ens3/device/x", b"", 0o444).unwrap();
        host.write("sys/class/net/dummy/address", b"00:00:00:12:34:56\n", 0o444).unwrap();
        host.write("sys/class/dmi/id/product_serial", b"VM 42-X\n", 0o400).unwrap();
        assert_eq!(host_name(&host, "n-{mac}.{serial}.{id}").unwrap(), "n-525400123456.vm42x.01234567");
    }

    #[test]
    fn root_is_locked_unless_a_hash_is_configured() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        for (old, hash, new) in [("", None, "!*"), ("$6$x$y", None, "!*"), ("*", None, "*"), ("*", Some("$y$a"), "$y$a")] {
            host.write("etc/shadow", format!("root:{old}:1::::::\nme:!:1::::::\n").as_bytes(), 0o600).unwrap();
            set_password(&host, hash).unwrap();
            assert_eq!(host.read("etc/shadow").unwrap().unwrap(), format!("root:{new}:1::::::\nme:!:1::::::\n"));
        }
    }
}
