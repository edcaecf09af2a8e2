//! Accounts: numbers of names in the tree, and the profile's users written into it (passwd(5), group(5), shadow(5), gshadow(5)).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use layers::layer::nearest;
use layers::plan::PlannedUser;
use layers::{Context, Error, Result};

use crate::assemble::editor::{Editor, known};

const DAY: i64 = 86400;

/// Numbers of the users and groups that a tree knows.
#[derive(Debug, Default)]
pub struct Accounts {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

impl Accounts {
    /// Reads /etc/passwd and /etc/group of a tree.
    pub fn of(editor: &Editor<'_, '_>) -> Result<Self> {
        Ok(Self { users: numbers(&editor.text("etc/passwd")?), groups: numbers(&editor.text("etc/group")?) })
    }

    /// The number of a user given by name or number.
    pub fn user(&self, name: &str) -> Result<u32> {
        find(&self.users, "user", name)
    }

    /// The number of a group given by name or number.
    pub fn group(&self, name: &str) -> Result<u32> {
        find(&self.groups, "group", name)
    }
}

fn numbers(text: &str) -> BTreeMap<String, u32> {
    let entry = |line: &str| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_string(), fields.nth(1)?.parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

fn find(known: &BTreeMap<String, u32>, what: &str, name: &str) -> Result<u32> {
    if let Some(number) = known.get(name).copied().or_else(|| name.parse().ok()) {
        return Ok(number);
    }
    let error = Error::input(format!("the image has no {what} `{name}`"));
    Err(match nearest(name, known.keys().map(String::as_str)) {
        Some(near) => error.with_hint(format!("did you mean `{near}`?")),
        None => error,
    })
}

/// Adds accounts without password; homes are made at boot, because they lie on the state partition.
pub fn add(editor: &mut Editor<'_, '_>, users: &[PlannedUser]) -> Result<()> {
    if users.is_empty() {
        return Ok(());
    }
    for user in users {
        add_one(editor, user).context(|| format!("adding user `{}`", user.user.name))?;
    }
    let homes = homes(editor, users);
    editor.put_text("usr/lib/tmpfiles.d/chasi-bod-users.conf", &homes)
}

fn add_one(editor: &mut Editor<'_, '_>, PlannedUser { uid, user }: &PlannedUser) -> Result<()> {
    let name = &user.name;
    let accounts = Accounts::of(editor)?;
    if accounts.users.contains_key(name) || accounts.groups.contains_key(name) {
        return Err(Error::input("a package has an account or group of this name"));
    }
    let taken = |map: &BTreeMap<String, u32>| map.iter().find(|(_, n)| *n == uid).map(|(name, _)| name.clone());
    if let Some(other) = taken(&accounts.users).or_else(|| taken(&accounts.groups)) {
        return Err(Error::input(format!("number {uid} is `{other}`'s")));
    }
    // `/bin` is a link into `/usr`, and shells are written with either.
    if editor.tree.at(&user.shell).is_none() && editor.tree.at(&format!("/usr{}", user.shell)).is_none() {
        return Err(Error::input(format!("the image has no shell {}", user.shell)).with_hint("add its package to `packages`"));
    }
    for group in &user.groups {
        accounts.group(group)?;
    }
    append(editor, "etc/passwd", &format!("{name}:x:{uid}:{uid}::/home/{name}:{}", user.shell))?;
    append(editor, "etc/group", &format!("{name}:x:{uid}:"))?;
    // `*` is no password's hash; unlike `!` it does not make sshd refuse keys when PAM is off.
    append(editor, "etc/shadow", &format!("{name}:*:{}:0:99999:7:::", editor.epoch / DAY))?;
    append(editor, "etc/gshadow", &format!("{name}:!::"))?;
    join(editor, "etc/group", name, &user.groups)?;
    join(editor, "etc/gshadow", name, &user.groups)?;
    if !user.ssh_keys.is_empty() {
        editor.put_text(&format!("usr/lib/chasi-bod/ssh/{name}"), &(user.ssh_keys.join("\n") + "\n"))?;
    }
    if user.sudo {
        let rule = format!("{name} ALL=(ALL:ALL) NOPASSWD: ALL\n");
        editor.put(known(&format!("etc/sudoers.d/chasi-bod-{name}"))?, rule.as_bytes(), 0o440, (0, 0))?;
    }
    Ok(())
}

fn append(editor: &mut Editor<'_, '_>, path: &str, line: &str) -> Result<()> {
    if editor.tree.at(path).is_none() && path.ends_with("shadow") {
        editor.put(known(path)?, b"", 0o600, (0, 0))?;
    }
    let mut text = editor.text(path)?;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    text.push('\n');
    editor.rewrite(path, &text)
}

/// Adds a member to the last field of the lines of some groups.
fn join(editor: &mut Editor<'_, '_>, path: &str, member: &str, groups: &[String]) -> Result<()> {
    let mut out = String::new();
    for line in editor.text(path)?.lines() {
        let wanted = line.split(':').next().is_some_and(|name| groups.iter().any(|g| g == name));
        let comma = if line.ends_with(':') { "" } else { "," };
        let _ = if wanted { writeln!(out, "{line}{comma}{member}") } else { writeln!(out, "{line}") };
    }
    editor.rewrite(path, &out)
}

/// tmpfiles.d(5) lines: each home, and in it what /etc/skel has.
fn homes(editor: &Editor<'_, '_>, users: &[PlannedUser]) -> String {
    let skel = crate::tree::TreePath::new("etc/skel").unwrap_or_else(|_| crate::tree::TreePath::root());
    let files: Vec<_> = editor.tree.below(&skel).filter(|(p, n)| **p != skel && !n.is_dir()).map(|(p, _)| p.to_string()).collect();
    let mut out = String::new();
    for PlannedUser { user, .. } in users {
        let name = &user.name;
        let _ = writeln!(out, "d /home/{name} 0700 {name} {name} -");
        for path in &files {
            let _ = writeln!(out, "C /home/{name}{} 0644 {name} {name} - {path}", path.trim_start_matches("/etc/skel"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::editor::testing::Bench;

    fn user(json: serde_json::Value, uid: u32) -> PlannedUser {
        PlannedUser { uid, user: serde_json::from_value(json).unwrap() }
    }

    #[test]
    fn a_user_has_account_key_sudo_and_home() {
        let mut bench = Bench::new(&[("etc/skel/.profile", "p"), ("etc/gshadow", "sudo:*::\n")]);
        let admin = user(serde_json::json!({"name": "admin", "groups": ["sudo"], "sshKeys": ["ssh-ed25519 AAAA a@b"], "sudo": true}), 1000);
        bench.edit(|e| add(e, &[admin])).unwrap();
        assert!(bench.text("etc/passwd").ends_with("\nadmin:x:1000:1000::/home/admin:/bin/bash\n"));
        assert!(bench.text("etc/group").contains("sudo:x:27:admin\n") && bench.text("etc/group").ends_with("admin:x:1000:\n"));
        assert!(bench.text("etc/gshadow").contains("sudo:*::admin\n"));
        assert!(bench.text("etc/shadow").ends_with("admin:*:0:0:99999:7:::\n"));
        let shadow = bench.tree.at("etc/shadow").unwrap();
        assert_eq!((shadow.mode, shadow.gid), (0o640, 42));
        assert_eq!(bench.text("usr/lib/chasi-bod/ssh/admin"), "ssh-ed25519 AAAA a@b\n");
        assert_eq!(bench.tree.at("etc/sudoers.d/chasi-bod-admin").unwrap().mode, 0o440);
        let homes = "d /home/admin 0700 admin admin -\nC /home/admin/.profile 0644 admin admin - /etc/skel/.profile\n";
        assert_eq!(bench.text("usr/lib/tmpfiles.d/chasi-bod-users.conf"), homes);
    }

    #[test]
    fn accounts_that_collide_or_need_what_is_missing_are_refused() {
        for (json, uid, says) in [
            (serde_json::json!({"name": "root"}), 1000, "a package has"),
            (serde_json::json!({"name": "sudo"}), 1000, "a package has"),
            (serde_json::json!({"name": "a"}), 42, "`_apt`"),
            (serde_json::json!({"name": "a", "shell": "/bin/fish"}), 1000, "/bin/fish"),
            (serde_json::json!({"name": "a", "groups": ["docker"]}), 1000, "`docker`"),
        ] {
            let error = Bench::new(&[]).edit(|e| add(e, &[user(json, uid)])).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
