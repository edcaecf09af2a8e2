//! Finds secrets that were written into a file as they are, and keeps them from being printed.

/// What `password:`-like keys are called, in lower case and without `-` and `_`.
const KEYS: [&str; 10] = ["password", "passwd", "passphrase", "secret", "secretkey", "token", "apikey", "privatekey", "accesskey", "credentials"];

/// `-----BEGIN … PRIVATE KEY` in base64, as in kubeconfig files: PKCS#8, RSA, EC, OpenSSH, encrypted.
const BASE64_KEYS: [&str; 5] = [
    "LS0tLS1CRUdJTiBQUklWQVRF",
    "LS0tLS1CRUdJTiBSU0EgUFJJVkFUR",
    "LS0tLS1CRUdJTiBFQyBQUklWQVRF",
    "LS0tLS1CRUdJTiBPUEVOU1NI",
    "LS0tLS1CRUdJTiBFTkNSWVBURUQ",
];

/// Tokens known by how they begin, and the least number of letters, digits, `_` and `-` that follow.
const PREFIXES: [(&str, usize); 8] =
    [("AKIA", 16), ("ASIA", 16), ("AGE-SECRET-KEY-1", 20), ("ghp_", 30), ("github_pat_", 30), ("glpat-", 18), ("xoxb-", 18), ("xoxp-", 18)];

/// What kind of secret a text holds; `None` for harmless text.
pub fn kind(text: &str) -> Option<&'static str> {
    if text.contains("-----BEGIN ") && text.contains("PRIVATE KEY") || BASE64_KEYS.iter().any(|k| text.contains(k)) {
        return Some("a private key");
    }
    if words(text, '$').any(is_hash) {
        return Some("a password hash");
    }
    if PREFIXES.iter().any(|(prefix, least)| has_token(text, prefix, *least)) {
        return Some("an access key");
    }
    if has_join_token(text) {
        return Some("a join token");
    }
    text.lines().any(is_assignment).then_some("a password")
}

/// Whether a key's name says that its value is a secret.
pub(super) fn is_secret_key(key: &str) -> bool {
    let plain: String = key.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    KEYS.iter().any(|k| plain.ends_with(k))
}

/// The lines that hold a secret, as far as lines alone can tell: index, and how many characters of it are harmless.
pub(super) fn lines(lines: &[String]) -> Vec<(usize, usize)> {
    let (mut found, mut inside, mut below) = (Vec::new(), false, None);
    for (n, line) in lines.iter().enumerate() {
        let key = line.contains("PRIVATE KEY");
        let indent = line.len() - line.trim_start_matches([' ', '-']).len();
        below = below.filter(|outer| indent > *outer || line.trim().is_empty());
        if inside || below.is_some() {
            found.push((n, 0));
        } else if key || kind(line).is_some() || has_secret_key(line) {
            found.push((n, harmless(line)));
        }
        if has_secret_key(line) {
            below = below.or(Some(indent));
        }
        inside = (inside || key && line.contains("BEGIN ")) && !(key && line.contains("END "));
    }
    found
}

/// Whether some word before a colon says that a secret follows.
fn has_secret_key(line: &str) -> bool {
    line.match_indices(':').any(|(n, _)| is_secret_key(line[..n].rsplit([',', '{', '[', ':']).next().unwrap_or("")))
}

/// How many characters at the start of a line may be shown: a plain key, if the line begins with one.
fn harmless(line: &str) -> usize {
    let Some((key, _)) = line.split_once(':').filter(|(key, _)| key.len() <= 40 && kind(key).is_none()) else { return 0 };
    let plain = key.trim_start_matches(['-', ' ', '{', '?']).chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if plain { key.len() + 2 } else { 0 }
}

/// The text from each `start` character on.
fn words(text: &str, start: char) -> impl Iterator<Item = &str> {
    text.char_indices().filter(move |(_, c)| *c == start).map(|(n, _)| &text[n..])
}

/// crypt(5) notation: `$id$salt$hash`.
fn is_hash(text: &str) -> bool {
    let mut parts = text.splitn(3, '$').skip(1);
    let (Some(id), Some(rest)) = (parts.next(), parts.next()) else { return false };
    let least = match id {
        "5" | "6" | "7" | "y" | "gy" | "2a" | "2b" | "2y" | "argon2i" | "argon2d" | "argon2id" | "scrypt" => 4,
        "1" | "sha1" | "md5" => 12,
        _ => return false,
    };
    rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "./$=,+-".contains(*c)).count() >= least
}

fn has_token(text: &str, prefix: &str, least: usize) -> bool {
    text.match_indices(prefix).any(|(n, _)| {
        let free = !text[..n].ends_with(|c: char| c.is_ascii_alphanumeric());
        free && text[n + prefix.len()..].chars().take_while(|c| c.is_ascii_alphanumeric() || "_-".contains(*c)).count() >= least
    })
}

/// A kubeadm bootstrap token, `[a-z0-9]{6}\.[a-z0-9]{16}`, on its own (not part of a longer name).
fn has_join_token(text: &str) -> bool {
    let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.match_indices('.').any(|(n, _)| {
        let (before, after) = (&text[..n], &text[n + 1..]);
        let left = before.chars().rev().take_while(|c| part(*c)).count();
        let right = after.chars().take_while(|c| part(*c)).count();
        let outer = |c: char| c.is_alphanumeric() || "_-".contains(c);
        let mut beyond = after.chars().skip(right);
        let (next, then) = (beyond.next(), beyond.next());
        let longer = next.is_some_and(|c| outer(c) || c == '.' && then.is_some_and(outer));
        left == 6 && right == 16 && !longer && !before[..before.len() - left].ends_with(|c| outer(c) || c == '.')
    })
}

/// `password: value` or `password=value` inside a text, unless the value is a template's or a variable.
fn is_assignment(line: &str) -> bool {
    let Some((key, value)) = line.split_once([':', '=']) else { return false };
    let key = key.trim().trim_start_matches("- ").trim_matches(['"', '\'', ' ']).to_ascii_lowercase();
    let value = value.trim().trim_matches(['"', '\'']);
    (key.ends_with("password") || key.ends_with("passphrase")) && !value.is_empty() && !value.starts_with(['$', '{', '#'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a7_secrets_are_told_from_harmless_text() {
        let secrets = [
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nabc", "a private key"),
            ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
            ("client-key-data: LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQo=", "a private key"),
            ("$6$saltsalt$abcdef", "a password hash"),
            ("root:$y$j9T$abcdefgh$abcdef:19000::", "a password hash"),
            ("$2b$12$abcdefghijklmnopqrstuv", "a password hash"),
            ("kubeadm join --token abcdef.0123456789abcdef", "a join token"),
            ("abcdef.0123456789abcdef.", "a join token"),
            ("key AKIAIOSFODNN7EXAMPLE", "an access key"),
            ("a: b\n  password: hunter2", "a password"),
            ("wifi_password=hunter2", "a password"),
        ];
        for (text, expected) in secrets {
            assert_eq!(kind(text), Some(expected), "{text}");
        }
        let harmless = [
            "-----BEGIN CERTIFICATE-----",
            "$1$2 awk",
            "cost $6 $7",
            "files.abcdefghijklmnop.example.com",
            "server.administratively.net",
            "passwd: files systemd",
            "PasswordAuthentication no",
            "password: {{ parameters.password }}",
            "password required pam_unix.so",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@host",
        ];
        for text in harmless {
            assert_eq!(kind(text), None, "{text}");
        }
    }

    #[test]
    fn a7_lines_with_secrets_show_at_most_the_key() {
        let text = [
            "a: |",
            "  -----BEGIN RSA PRIVATE KEY-----",
            "  MIIabc",
            "  -----END RSA PRIVATE KEY-----",
            "users: [{name: a, password: hunter2",
            "- \"hunter: password\": 2",
            "AKIAIOSFODNN7EXAMPLE: x",
            "  token: |",
            "    first",
            "",
            "    second: line",
            "  b: 1",
        ];
        let expected = [(1, 0), (2, 0), (3, 0), (4, 7), (5, 0), (6, 0), (7, 9), (8, 0), (9, 0), (10, 0)];
        assert_eq!(lines(&text.map(String::from)), expected);
    }
}
