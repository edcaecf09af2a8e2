//! Conflicts between layers, and numbers of accounts.

use super::*;

/// One owner per path, and no path below another layer's file or link.
pub(super) fn check_paths(layers: &[PlannedLayer], problems: &mut Vec<Diagnostic>) {
    let mut owners = BTreeMap::<&str, (&str, &PlannedFile)>::new();
    for layer in layers {
        for file in &layer.files {
            if let Some((other, lower)) = owners.insert(&file.path, (&layer.name, file)) {
                let same = PlannedFile { overrides: lower.overrides, at: lower.at.clone(), ..file.clone() } == *lower;
                if !same && !file.overrides {
                    let message = format!("layers `{other}` and `{}` both own {}, with different content, mode or owner", layer.name, file.path);
                    problems.push(file.at.problem(message, Some(format!("say `override: true` at the file in `{}` if it shall win", layer.name))));
                }
            }
        }
    }
    for (path, (layer, below)) in &owners {
        let parents = path.match_indices('/').skip(1).map(|(at, _)| &path[..at]);
        if let Some((parent, (other, file))) = parents.filter_map(|p| owners.get_key_value(p)).next() {
            let what = if matches!(file.body, Body::Link(_)) { "a symbolic link" } else { "a file" };
            problems.push(below.at.problem(format!("{path} of layer `{layer}` lies below {parent}, which layer `{other}` makes {what}"), None));
        }
    }
}

/// Accounts with their numbers: those that the profile says, the others from 1000 upwards.
pub(super) fn accounts(loaded: &Loaded, problems: &mut Vec<Diagnostic>) -> Vec<PlannedUser> {
    let users = &loaded.profile.users;
    let taken: BTreeSet<u32> = users.iter().filter_map(|user| user.uid).collect();
    let mut free = (1000..60000).filter(|uid| !taken.contains(uid));
    let mut out = Vec::new();
    for user in users {
        match user.uid.or_else(|| free.next()) {
            Some(uid) => out.push(PlannedUser { uid, user: user.clone() }),
            None => problems.push(loaded.document.spot(&["users"]).problem("there are more users than numbers", None)),
        }
    }
    out
}
