//! Checks of what a layer plans: paths, accounts, units, kernel parameters, patterns.

use super::*;

/// Files that have their own place in the profile (`users`), so no layer may bring them.
const ACCOUNT_FILES: [&str; 4] = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"];

/// Folders that are something else on a running node: what an image holds there is never seen.
const HIDDEN: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

/// A destination in one spelling: absolute, no empty, `.` or `..` component.
pub(super) fn destination(path: &str) -> Result<String> {
    if !path.starts_with('/') {
        return Err(Error::input("the path must be absolute (begin with `/`)"));
    }
    if path.contains(char::is_control) {
        return Err(Error::input("the path holds a control character"));
    }
    let parts: Vec<_> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") {
        return Err(Error::input("the path leaves its folder with `..`"));
    }
    if let Some(long) = parts.iter().find(|p| p.len() > 255) {
        return Err(Error::input(format!("the name `{long}` is longer than 255 bytes")));
    }
    let path = format!("/{}", parts.join("/"));
    if ACCOUNT_FILES.contains(&path.as_str()) {
        return Err(
            Error::input("accounts come from packages, sysusers.d and the profile's `users`").with_hint("put a file into /usr/lib/sysusers.d")
        );
    }
    if parts.is_empty() || HIDDEN.contains(&format!("/{}", parts[0]).as_str()) {
        return Err(Error::input("the image holds no files there").with_hint("let /usr/lib/tmpfiles.d make it at boot"));
    }
    Ok(path)
}

/// One owner per path, and no path below another layer's file or link.
pub(super) fn check_paths(layers: &[PlannedLayer]) -> Result<()> {
    let mut owners = BTreeMap::<&str, (&str, &PlannedFile)>::new();
    for layer in layers {
        for file in &layer.files {
            if let Some((other, lower)) = owners.insert(&file.path, (&layer.name, file)) {
                let same = PlannedFile { overrides: lower.overrides, ..file.clone() } == *lower;
                if !same && !file.overrides {
                    let message = format!("layers `{other}` and `{}` both own {}, with different content, mode or owner", layer.name, file.path);
                    return Err(Error::input(message).with_hint(format!("say `override: true` at the file in `{}` if it shall win", layer.name)));
                }
            }
        }
    }
    for (path, (layer, _)) in &owners {
        let parents = path.match_indices('/').skip(1).map(|(at, _)| &path[..at]);
        if let Some((parent, (other, file))) = parents.filter_map(|p| owners.get_key_value(p)).next() {
            let what = if matches!(file.body, Body::Link(_)) { "a symbolic link" } else { "a file" };
            return Err(Error::input(format!("{path} of layer `{layer}` lies below {parent}, which layer `{other}` makes {what}")));
        }
    }
    Ok(())
}

pub(super) fn accounts(users: &[User]) -> Result<Vec<PlannedUser>> {
    let mut taken = BTreeMap::<u32, &str>::new();
    let mut names = BTreeSet::new();
    for user in users {
        let first = user.name.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c == '_');
        let rest = user.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
        if !first || !rest || user.name.len() > 32 || !names.insert(&user.name) {
            return Err(Error::input(format!("user name `{}` is malformed or used twice", user.name.escape_debug())));
        }
        let text = user.ssh_keys.iter().chain(&user.groups).chain([&user.shell]);
        if text.into_iter().any(|t| t.contains(char::is_control) || t.contains(':') && *t == user.shell) || !user.shell.starts_with('/') {
            return Err(Error::input(format!("user `{}`: shell, groups and keys must be one line each, and the shell an absolute path", user.name)));
        }
        if let Some(uid) = user.uid {
            if !(1000..60000).contains(&uid) {
                return Err(Error::input(format!("user `{}`: uid {uid} is not from 1000 to 59999", user.name)));
            }
            if let Some(other) = taken.insert(uid, &user.name) {
                return Err(Error::input(format!("users `{other}` and `{}` have the same uid {uid}", user.name)));
            }
        }
    }
    let mut free = (1000..60000).filter(|uid| !taken.contains_key(uid));
    let next = |user: &User| user.uid.or_else(|| free.next()).ok_or_else(|| Error::input("there are more users than numbers"));
    let mut next = next;
    users.iter().map(|user| Ok(PlannedUser { uid: next(user)?, user: user.clone() })).collect()
}

pub(super) fn checked_units(units: &Units) -> Result<Units> {
    for unit in units.enable.iter().chain(&units.disable).chain(&units.mask) {
        if unit.contains('/') || unit.contains(char::is_control) || !unit.contains('.') {
            return Err(Error::input(format!("`{}` is not the name of a unit, such as `ssh.service`", unit.escape_debug())));
        }
    }
    Ok(units.clone())
}

pub(super) fn checked_sysctl(values: &BTreeMap<String, Scalar>) -> Result<BTreeMap<String, String>> {
    let check = |(key, value): (&String, &Scalar)| {
        let value = value.to_string();
        let good = |c: char| c.is_ascii_alphanumeric() || "._-/*@".contains(c);
        if key.is_empty() || !key.chars().all(good) || value.contains(char::is_control) {
            return Err(Error::input(format!("kernel parameter `{}` has a malformed name or a value of several lines", key.escape_debug())));
        }
        Ok((key.clone(), value))
    };
    values.iter().map(check).collect()
}

pub(super) fn checked_patterns(patterns: &[String]) -> Result<Vec<String>> {
    for pattern in patterns {
        let path = pattern.strip_prefix('!').unwrap_or(pattern);
        if !path.starts_with('/') || path.split('/').any(|p| p == ".." || p == ".") || path.trim_matches(['/', '*']).is_empty() {
            return Err(Error::input(format!("`{pattern}` is not a pattern of absolute paths to remove")));
        }
    }
    Ok(patterns.to_vec())
}
