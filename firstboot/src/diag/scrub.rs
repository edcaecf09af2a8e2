//! The second net below the plan: whatever was collected, known secrets and all that looks like one are taken out of it.

use std::collections::BTreeSet;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use layers::{Context as _, Fault, Result};
use regex::{Regex, RegexBuilder};

/// What stands in the place of a secret.
pub const MARK: &str = "(redacted)";
/// Shorter texts are words of every day, such as `true` or `default`.
const SHORTEST: usize = 6;

/// Tells of secrets by their form; what a group `keep` matches stays.
const FORMS: [&str; 11] = [
    // A private key in one line, as JSON has it.
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)",
    // PEM in base64, as kubeconfigs and Secrets have it.
    r"LS0tLS1CRUdJTi[A-Za-z0-9+/_=-]+",
    // JSON Web Tokens (RFC 7519).
    r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)?",
    r"(?i)(?P<keep>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}",
    // Bootstrap tokens (Kubernetes documentation).
    r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b",
    // Keys of clouds and forges, which begin alike.
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|(?:ghp_|github_pat_|glpat-|xox[abps]-|AGE-SECRET-KEY-1)[A-Za-z0-9_-]{16,})",
    // Hashes of crypt(5).
    r"\$(?:y|gy|7|2[abxy]|6|5|1)\$[^\s:'\x22,\\]{8,}",
    // User and password of an address (RFC 3986, 3.2.1).
    r"(?P<keep>\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\x22]+@",
    // Settings on the kernel command line, which the kernel's log repeats.
    r"(?P<keep>\bchasi\.(?:url|set)=)(?:\x22[^\x22]*\x22|[^\s\x22]+)",
    // Names and values of secrets: `password=x`, `"token": "x"`, also within a text that is quoted itself.
    concat!(
        r"(?i)(?P<keep>(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|api[-_]?key|access[-_]?key(?:[-_]?id)?|private[-_]?key|key[-_]?data|",
        r"credentials?|authorization|(?:password|secret)[-_]?hash)\\?['\x22]?\s*[=:]\s*)",
        r"(?:\\?\x22(?:[^\x22\\]|\\[^\x22])*\\?\x22|'[^']*'|[^\s,;&'\x22(][^\s,;&'\x22]*)"
    ),
    // Options of programs: `--token x`.
    r"(?i)(?P<keep>--[a-z-]*(?:password|passphrase|secret|token|key)\s+)[^\s('\x22-][^\s'\x22]*",
];

/// Takes secrets out of texts.
pub struct Scrub {
    known: Option<Regex>,
    forms: Vec<Regex>,
}

impl Scrub {
    /// With secrets that are known by their text: each line of it, and the value of a line that has one.
    pub fn new(known: &[String]) -> Result<Self> {
        let compile =
            |form: &str| RegexBuilder::new(form).size_limit(256 << 20).build().fault(Fault::Internal, || "building the filter of secrets".into());
        let forms = FORMS.iter().map(|form| compile(form)).collect::<Result<_>>()?;
        let texts: BTreeSet<String> = known.iter().flat_map(|text| pieces(text)).filter(|text| text.len() >= SHORTEST).collect();
        let mut texts: Vec<String> = texts.into_iter().flat_map(|text| [BASE64_STANDARD.encode(&text), text]).collect();
        // The longest first: of two that begin alike the whole one goes.
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let known = (!texts.is_empty()).then(|| compile(&texts.iter().map(|text| regex::escape(text)).collect::<Vec<_>>().join("|"))).transpose()?;
        Ok(Self { known, forms })
    }

    /// The text without secrets.
    pub fn clean(&self, text: &str) -> String {
        let mut text = match &self.known {
            Some(known) => known.replace_all(text, MARK).into_owned(),
            None => text.into(),
        };
        text = without_keys(&text);
        for form in &self.forms {
            text = form.replace_all(&text, format!("${{keep}}{MARK}")).into_owned();
        }
        text
    }
}

/// What of a secret may stand alone somewhere.
fn pieces(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with("-----"));
    let values = lines.clone().filter_map(|line| line.split_once(": ")).map(|(_, value)| value.trim());
    let bare = |text: &str| text.trim_matches(['"', '\'', ',']).to_string();
    [text.trim().to_string()].into_iter().chain(lines.chain(values).map(bare)).collect()
}

/// Takes out private keys that go over lines, each of which a log may have given a head of its own.
fn without_keys(text: &str) -> String {
    let begins =
        |line: &str| line.rfind("-----BEGIN ").is_some_and(|at| line[at..].contains("PRIVATE KEY-----") && !line[at..].contains("-----END "));
    let (mut out, mut inside) = (String::with_capacity(text.len()), false);
    for line in text.split_inclusive('\n') {
        if inside {
            inside = !line.contains("-----END ");
            continue;
        }
        match begins(line) {
            true => {
                out.push_str(&line[..line.rfind("-----BEGIN ").unwrap_or(0)]);
                out.push_str(MARK);
                out.push('\n');
                inside = true;
            }
            false => out.push_str(line),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn clean(text: &str) -> String {
        Scrub::new(&[]).unwrap().clean(text)
    }

    #[test]
    fn f6_what_looks_like_a_secret_goes_and_what_stands_beside_it_stays() {
        let jwt = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJl";
        for (text, wanted) in [
            ("join 10.0.0.1:6443 with abcdef.0123456789abcdef now", "join 10.0.0.1:6443 with (redacted) now"),
            (&format!("Authorization: Bearer {jwt} x"), "Authorization: (redacted) (redacted) x"),
            (&format!("got {jwt}"), "got (redacted)"),
            ("client-key-data: LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0tLS0tCg==", "client-key-data: (redacted)"),
            ("certificate LS0tLS1CRUdJTiBDRVJU and", "certificate (redacted) and"),
            ("used AKIAIOSFODNN7EXAMPLE and ghp_0123456789abcdefghijABCDEFGHIJ", "used (redacted) and (redacted)"),
            ("db-password=hunter2, user=me", "db-password=(redacted), user=me"),
            (r#"{"token": "hunter2", "n": 1}"#, r#"{"token": (redacted), "n": 1}"#),
            (r#"said "{\"secret\":\"hunter2\"}" twice"#, r#"said "{\"secret\":(redacted)}" twice"#),
            ("ran tool --client-secret hunter2 --port 1", "ran tool --client-secret (redacted) --port 1"),
            ("password: 'hunter 2'", "password: (redacted)"),
            ("root:$6$saltsalt$hashhash/hash.:1::", "root:(redacted):1::"),
            ("GET https://me:hunter2@host/x?token=hunter2&a=1", "GET https://(redacted)host/x?token=(redacted)&a=1"),
            ("key -----BEGIN PRIVATE KEY-----\\nMIIE\\n-----END PRIVATE KEY-----\\n", "key (redacted)\\n"),
            ("cut -----BEGIN EC PRIVATE KEY-----\\nMIIE", "cut (redacted)\n"),
            ("Command line: quiet chasi.set=console.passwordHash=%24y%24x chasi.slot=a", "Command line: quiet chasi.set=(redacted) chasi.slot=a"),
            ("pod web-6799fbcd5-abcde is Running, 3 tokens left", "pod web-6799fbcd5-abcde is Running, 3 tokens left"),
            ("MountVolume failed: secret \"db\" not found", "MountVolume failed: secret \"db\" not found"),
        ] {
            assert_eq!(clean(text), wanted, "{text}");
        }
    }

    #[test]
    fn f6_a_key_over_lines_goes_with_the_heads_that_a_journal_gives_them() {
        let log = "Jan 1 n x[1]: a\nJan 1 n x[1]: -----BEGIN RSA PRIVATE KEY-----\nJan 1 n x[1]: MIIEow\nJan 1 n x[1]: -----END RSA PRIVATE KEY-----\nJan 1 n x[1]: b\n";
        assert_eq!(clean(log), "Jan 1 n x[1]: a\nJan 1 n x[1]: (redacted)\nJan 1 n x[1]: b\n");
        assert_eq!(clean("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\nand cut"), "(redacted)\n");
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        assert_eq!(clean(certificate), certificate);
    }

    #[test]
    fn f6_a_known_secret_goes_wherever_it_is_also_in_base64_and_by_the_values_of_its_lines() {
        let scrub = Scrub::new(&["db:\n  pin: 48151623\n  user: true\n".into(), "plain-words-of-a-site".into(), "plain-words".into()]).unwrap();
        assert_eq!(scrub.clean("helm: got 48151623 at pin, true"), "helm: got (redacted) at pin, true");
        assert_eq!(scrub.clean("x plain-words-of-a-site plain-words y"), "x (redacted) (redacted) y");
        assert_eq!(scrub.clean(&BASE64_STANDARD.encode("plain-words-of-a-site")), MARK);
    }

    proptest! {
        #[test]
        fn f6_a_known_secret_is_never_left(secret in "[!-~]{12,40}", before in "\\PC{0,20}", after in "\\PC{0,20}") {
            let known = secret.trim_matches(['"', '\'', ',']).to_string();
            prop_assume!(known.len() >= 12 && !known.contains(": ") && !known.starts_with("-----") && !MARK.contains(&known));
            let cleaned = Scrub::new(std::slice::from_ref(&known)).unwrap().clean(&format!("{before}{known}{after}"));
            prop_assert!(!cleaned.contains(&known), "{cleaned}");
        }
    }
}
