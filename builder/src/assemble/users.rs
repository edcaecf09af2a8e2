//! Accounts: numbers of names in the tree, and the profile's users written into it (passwd(5), group(5), shadow(5), gshadow(5)).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use layers::plan::PlannedUser;
use layers::profile::{Diagnostic, Spot, quote, suggest};
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
    let error = Error::input(format!("the image has no {what} {}", quote(name)));
    Err(match suggest(name, known.keys().map(String::as_str)) {
        Some(hint) => error.with_hint(hint),
        None => error,
    })
}

/// What the profile's users ask of the tree and it does not have, or has for others; `spot` gives the place of a value of the profile.
pub fn check(editor: &Editor<'_, '_>, users: &[PlannedUser], spot: &dyn Fn(&[&str]) -> Spot) -> Result<Vec<Diagnostic>> {
    let mut accounts = Accounts::of(editor)?;
    let mut problems = Vec::new();
    for (n, PlannedUser { uid, user }) in users.iter().enumerate() {
        let n = n.to_string();
        let at = |key: &str| spot(&["users", &n, key]);
        if accounts.users.contains_key(&user.name) || accounts.groups.contains_key(&user.name) {
            problems.push(at("name").problem(format!("a package has an account or group {}", quote(&user.name)), None));
        }
        if let Some((other, _)) = accounts.users.iter().chain(&accounts.groups).find(|(_, number)| *number == uid) {
            problems.push(at("uid").problem(format!("number {uid} is that of {}", quote(other)), None));
        }
        // `/bin` is a link into `/usr`, and shells are written with either.
        if editor.tree.at(&user.shell).is_none() && editor.tree.at(&format!("/usr{}", user.shell)).is_none() {
            problems.push(at("shell").problem(format!("the image has no shell {}", user.shell), Some("add its package to `packages`".into())));
        }
    }
    accounts.groups.extend(users.iter().map(|u| (u.user.name.clone(), u.uid)));
    for (n, PlannedUser { user, .. }) in users.iter().enumerate() {
        for (g, group) in user.groups.iter().enumerate() {
            let Err(error) = accounts.group(group) else { continue };
            let hint = error.hint().map_or_else(|| "add the package that has it to `packages`".into(), str::to_string);
            problems.push(spot(&["users", &n.to_string(), "groups", &g.to_string()]).problem(error.to_string(), Some(hint)));
        }
    }
    Ok(problems)
}

/// Adds accounts that [`check`] found nothing wrong with, without password; homes are made at boot, because they lie on the state partition.
pub fn add(editor: &mut Editor<'_, '_>, users: &[PlannedUser]) -> Result<()> {
    if users.is_empty() {
        return Ok(());
    }
    for user in users {
        add_one(editor, user).context(|| format!("adding user `{}`", user.user.name))?;
    }
    for PlannedUser { user, .. } in users {
        join(editor, "etc/group", &user.name, &user.groups)?;
        join(editor, "etc/gshadow", &user.name, &user.groups)?;
    }
    let homes = homes(editor, users);
    editor.put_text("usr/lib/tmpfiles.d/chasi-bod-users.conf", &homes)
}

fn add_one(editor: &mut Editor<'_, '_>, PlannedUser { uid, user }: &PlannedUser) -> Result<()> {
    let name = &user.name;
    append(editor, "etc/passwd", &format!("{name}:x:{uid}:{uid}::/home/{name}:{}", user.shell))?;
    append(editor, "etc/group", &format!("{name}:x:{uid}:"))?;
    // `*` is no password's hash; unlike `!` it does not make sshd refuse keys when PAM is off.
    append(editor, "etc/shadow", &format!("{name}:*:{}:0:99999:7:::", editor.epoch / DAY))?;
    append(editor, "etc/gshadow", &format!("{name}:!::"))?;
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
    fn a1_accounts_that_collide_or_need_what_is_missing_are_told_at_once_at_their_places() {
        let text = "name: x\nversion: 1.0.0\nusers:\n- {name: ops, groups: [sduo, docker, other, sudo]}\n- {name: ssl-cert}\n- {name: other, uid: 1042, shell: /bin/fish}\n";
        let loaded = layers::profile::load("p.yaml", &mut |_| Ok(text.into())).unwrap();
        let users: Vec<_> = loaded.profile.users.iter().zip([1000, 42, 1042]).map(|(user, uid)| PlannedUser { uid, user: user.clone() }).collect();
        let mut found = Vec::new();
        let problems = Bench::new(&[]).edit(|e| {
            found = check(e, &users, &|path| loaded.document.spot(path))?;
            Ok(())
        });
        problems.unwrap();
        let told: Vec<_> = found.iter().map(|d| format!("{}:{} {} {}", d.line, d.column, d.message, d.hint.as_deref().unwrap_or("-"))).collect();
        let expected = [
            "5:10 a package has an account or group `ssl-cert` -",
            "5:3 number 42 is that of `_apt` -",
            "6:35 the image has no shell /bin/fish add its package to `packages`",
            "4:24 the image has no group `sduo` did you mean `sudo`?",
            "4:30 the image has no group `docker`",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        told.iter().zip(expected).for_each(|(told, expected)| assert!(told.starts_with(expected), "{told} / {expected}"));
    }

    #[test]
    fn a_user_can_be_in_the_group_of_a_later_one() {
        let users = [user(serde_json::json!({"name": "a", "groups": ["b"]}), 1000), user(serde_json::json!({"name": "b"}), 1001)];
        let mut bench = Bench::new(&[]);
        bench.edit(|e| add(e, &users)).unwrap();
        assert!(bench.text("etc/group").contains("b:x:1001:a\n"));
    }
}
