//! What single texts of a profile must look like: a table of paths, a test, and the words for a text that fails it.

use std::net::IpAddr;

use super::diagnostic::suggest;
use crate::chart::is_release_name;
use crate::range::Range;

/// A rule for every text at a path (`[]` stands for each item of a list).
pub(super) struct Rule {
    pub path: &'static str,
    pub holds: fn(&str) -> bool,
    pub wanted: &'static str,
}

const fn rule(path: &'static str, holds: fn(&str) -> bool, wanted: &'static str) -> Rule {
    Rule { path, holds, wanted }
}

const USER: &str = "a user name: a lower-case letter or `_`, then up to 30 lower-case letters, digits, `_` and `-`";
const PACKAGE: &str = "a package name: at least two lower-case letters, digits, `+`, `-` and `.`, beginning with a letter or digit";
/// What the name of an image must be.
pub(super) const NAME: &str = "an image name: lower-case letters, digits and `-`, at most 63";
const OWNER: &str = "a user or group name, or a number";
const LAYER: &str = "a layer name: lower-case letters, digits and `-`; a folder of your own is given by `name` and `path`";
const ADDRESS: &str = "an IP address";
pub(super) const URL: &str = "a URL that begins with http://, https:// or file:/";
const NAMESPACE: &str = "a namespace: lower-case letters, digits and `-`, at most 63";
const RANGE: &str = "an IPv4 range such as 10.244.0.0/16";
const DEVICE: &str = "an interface name: up to 15 letters, digits, `_`, `-` and `.`";

/// The rules for single texts.
pub(super) const RULES: &[Rule] = &[
    rule("name", is_name, NAME),
    rule("version", is_version, "a semantic version such as 1.2.3"),
    rule("seed", is_line, "a line of text"),
    rule("debian.suite", is_word, "a suite: lower-case letters, digits, `-`, `.` and `/`"),
    rule("debian.components.[]", is_word, "an archive component: lower-case letters, digits, `-`, `.` and `/`"),
    rule("debian.mirror", is_url, URL),
    rule("debian.securityMirror", is_url, URL),
    rule("debian.snapshot", is_url, URL),
    rule("debian.keyring", is_line, "a path"),
    rule("layers.[]", is_name, LAYER),
    rule("layers.[].name", is_name, LAYER),
    rule("layers.[].path", is_line, "a path"),
    rule("boot.console.[]", is_console, "a console such as ttyS0,115200"),
    rule("boot.commandLine.[]", is_argument, "one word of a kernel command line"),
    rule("boot.commandLine.[]", is_own_argument, "for a profile to set: the image's verity, slot and init depend on it"),
    rule("packages.[]", is_package, PACKAGE),
    rule("users.[].name", is_user, USER),
    rule("users.[].groups.[]", is_user, "a group name: a lower-case letter or `_`, then lower-case letters, digits, `_` and `-`"),
    rule("users.[].shell", is_path, "an absolute path"),
    rule("users.[].sshKeys.[]", is_ssh_key, "a public key as in authorized_keys, such as `ssh-ed25519 AAAA… name`"),
    rule("files.[].path", is_path, "an absolute path without `.`, `..`, `//` and control characters"),
    rule("files.[].path", fits, "a path with names of at most 255 bytes"),
    rule("files.[].source", is_line, "a path"),
    rule("files.[].link", is_line, "the target of a link"),
    rule("files.[].from", is_from, "the name of a source, or `NAME#PATH` for one file of an archive"),
    rule("files.[].mode", is_mode, "an octal mode such as 0644"),
    rule("files.[].owner", is_owner, OWNER),
    rule("files.[].group", is_owner, OWNER),
    rule("manifests.[]", is_line, "a path"),
    rule(
        "vclusters.[].name",
        is_virtual_cluster,
        "the name of a virtual cluster: a lower-case letter, then such letters, digits and `-`, at most 40",
    ),
    rule("virtualVersions.[]", is_kubernetes, "a version of Kubernetes such as v1.36.3"),
    rule("vclusters.[].version", is_kubernetes, "a version of Kubernetes such as v1.36.3"),
    rule("vclusters.[].network.podCIDR", is_range, RANGE),
    rule("vclusters.[].network.serviceCIDR", is_range, RANGE),
    rule("components.[].name", is_release_name, "the name of a component: lower-case letters, digits, `-` and `.`, at most 53"),
    rule("components.[].target.namespace", is_name, NAMESPACE),
    rule("network.dns.[]", is_ip, ADDRESS),
    rule("network.interfaces.[].name", is_device, DEVICE),
    rule("network.interfaces.[].match.mac", is_mac, "a hardware address such as 52:54:00:12:34:56"),
    rule("network.interfaces.[].match.driver", is_pattern, "a driver name or pattern"),
    rule("network.interfaces.[].match.name", is_pattern, "an interface name or pattern"),
    rule("network.interfaces.[].addresses.[]", is_cidr, "an address with prefix length such as 192.0.2.10/24"),
    rule("network.interfaces.[].gateway", is_ip, ADDRESS),
    rule("network.interfaces.[].dns.[]", is_ip, ADDRESS),
    rule("disk.mounts.[].path", is_mount, "an absolute path below /var or /srv"),
    rule("time.zone", is_zone, "a time zone such as Europe/Berlin"),
    rule("time.servers.[]", is_host, "a host name or IP address"),
];

/// The rules for single texts of a `layer.yaml`, beside those for files, which are a profile's.
pub(super) const LAYER_RULES: &[Rule] = &[
    rule("name", is_layer, "a layer name: lower-case letters, digits and `-`; `profile` is the profile itself"),
    rule("requires.[]", is_name, "a layer name: lower-case letters, digits and `-`"),
    rule("provides.[]", is_name, "a role: lower-case letters, digits and `-`"),
    rule("packages.[]", is_package, PACKAGE),
    rule("packages.[].name", is_package, PACKAGE),
    rule("assume.[].name", is_package, PACKAGE),
    rule("remove.[]", is_removal, "a pattern of absolute paths to remove"),
    rule("units.enable.[]", is_unit, UNIT),
    rule("units.disable.[]", is_unit, UNIT),
    rule("units.mask.[]", is_unit, UNIT),
    rule("scripts.[].file", is_line, "a path"),
    rule("manifests.[]", is_line, "a path"),
    rule("initrdModules.[]", is_module, "the name of a kernel module"),
    rule("initrdModules.[].name", is_module, "the name of a kernel module"),
];

/// The rules for single texts of charts, which profiles and layers have in common.
pub(super) const CHART_RULES: &[Rule] = &[
    rule("charts.[].name", is_release_name, "the name of a release: lower-case letters, digits, `-` and `.`, at most 53"),
    rule("charts.[].chart", is_line, "a folder, a name or an oci:// reference"),
    rule("charts.[].manifests", is_line, "a file or folder"),
    rule("charts.[].kustomize", is_line, "a folder"),
    rule("charts.[].repo", is_url, URL),
    rule("charts.[].module", is_module_path, "the path of a Go module"),
    rule("charts.[].version", is_chart_version, "a version such as 1.2.3"),
    rule("charts.[].namespace", is_name, NAMESPACE),
    rule("charts.[].keyring", is_line, "a path"),
    rule("charts.[].images.[]", is_image, "an image reference such as nginx:1.29 or registry.k8s.io/pause:3.10.2"),
];

fn is_chart_version(text: &str) -> bool {
    semver::Version::parse(text.strip_prefix('v').unwrap_or(text)).is_ok()
}

fn is_image(text: &str) -> bool {
    crate::reference::Reference::canonical(text).is_some()
}

/// The rules for single texts of a Go source.
pub(super) const GO_RULES: &[Rule] = &[
    rule("package", is_module_path, "the path of a Go package"),
    rule("main", is_line, "a folder of the layer"),
    rule("toolchain", is_toolchain, "a version of Go such as 1.26.8"),
    rule("tags.[]", |text| only(&text.to_lowercase(), 63, "_."), "a build tag"),
];

fn is_toolchain(text: &str) -> bool {
    text.split('.').count() == 3 && text.split('.').all(|part| part.parse::<u16>().is_ok())
}

/// Whether a text can be a Go module or package path, as far as a proxy's addresses go.
pub(super) fn is_module_path(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c));
    text.split('/').all(part) && text.len() < 256
}

/// Whether a text is a module version, or a module path and a version.
pub(super) fn is_module_version(text: &str) -> bool {
    let version = |text: &str| text.starts_with('v') && text.len() < 128 && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-+".contains(c));
    text.split_once(' ').map_or_else(|| version(text), |(path, after)| is_module_path(path) && version(after))
}

const UNIT: &str = "the name of a unit, such as `ssh.service`";

fn is_from(text: &str) -> bool {
    let (name, member) = text.split_once('#').unwrap_or((text, "x"));
    is_name(name) && is_line(member) && !member.split('/').any(|part| part.is_empty() || part == ".." || part == ".")
}

fn is_layer(text: &str) -> bool {
    is_name(text) && text != crate::plan::PROFILE_LAYER
}

fn is_unit(text: &str) -> bool {
    is_line(text) && !text.contains('/') && text.contains('.')
}

fn is_module(text: &str) -> bool {
    only(text, 63, "_-")
}

fn is_removal(text: &str) -> bool {
    let path = text.strip_prefix('!').unwrap_or(text);
    is_line(path) && path.starts_with('/') && path.split('/').all(|p| p != ".." && p != ".") && !path.trim_matches(['/', '*']).is_empty()
}

fn fits(path: &str) -> bool {
    path.split('/').all(|name| name.len() <= 255)
}

fn only(text: &str, most: usize, allowed: &str) -> bool {
    (1..=most).contains(&text.len()) && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || allowed.contains(c))
}

/// Whether a text may name an image or a layer.
pub fn is_name(text: &str) -> bool {
    only(text, 63, "-") && !text.starts_with('-') && !text.ends_with('-')
}

fn is_version(text: &str) -> bool {
    text.len() <= 63 && semver::Version::parse(text).is_ok()
}

fn is_line(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

fn is_word(text: &str) -> bool {
    only(text, 63, "-./") && !text.contains("..") && !text.starts_with('/') && !text.ends_with('/')
}

pub(super) fn is_url(text: &str) -> bool {
    let rest = ["http://", "https://", "file:/"].iter().find_map(|p| text.strip_prefix(p));
    rest.is_some_and(|r| !r.is_empty()) && !text.chars().any(|c| c.is_control() || c.is_whitespace())
}

fn is_console(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || ",_.:-@".contains(c))
}

/// Not one of the words that the builder and GRUB set.
fn is_own_argument(word: &str) -> bool {
    let name = word.split('=').next().unwrap_or_default();
    !["roothash", "init", "rdinit", "chasi.slot", "chasi.trial"].contains(&name)
}

/// One word: white space only within double quotes, as the kernel reads it.
fn is_argument(text: &str) -> bool {
    let mut quoted = false;
    is_line(text)
        && text.chars().all(|c| {
            quoted ^= c == '"';
            quoted || !c.is_whitespace()
        })
        && !quoted
}

/// Whether a text may name a package (Debian policy 5.6.1).
pub fn is_package(text: &str) -> bool {
    text.len() >= 2 && only(text, 255, "+-.") && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Whether a text may name a user or group.
pub fn is_user(text: &str) -> bool {
    only(text, 31, "_-") && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
}

fn is_owner(text: &str) -> bool {
    is_user(text) || text.parse::<u32>().is_ok_and(|n| n < u32::MAX)
}

/// A4: no part may lead elsewhere.
fn is_path(text: &str) -> bool {
    is_line(text) && text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|p| !matches!(p, "" | "." | "..")))
}

fn is_mode(text: &str) -> bool {
    (3..=5).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b)) && u32::from_str_radix(text, 8).is_ok_and(|m| m <= 0o7777)
}

const KEY_TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// `[options] type base64 [comment]` (sshd(8)); the base64 part must begin with the type it is said to be (RFC 4253, 6.6).
fn is_ssh_key(text: &str) -> bool {
    let words: Vec<&str> = text.split(' ').filter(|w| !w.is_empty()).collect();
    let Some(at) = words.iter().position(|w| KEY_TYPES.contains(w)) else { return false };
    let Some(blob) = words.get(at + 1) else { return false };
    let digits = blob.trim_end_matches('=');
    let base64 = blob.len() % 4 == 0 && blob.len() - digits.len() <= 2 && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/".contains(&b));
    is_line(text) && base64 && blob.len() >= 68 && blob.starts_with(&key_start(words[at]))
}

/// How the base64 form of a key of this type begins: length and name of the type, as far as whole groups of three bytes go.
fn key_start(kind: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = [0, 0, 0, kind.len() as u8].into_iter().chain(kind.bytes()).collect();
    let group = |b: &[u8]| b.iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
    bytes.chunks_exact(3).flat_map(|b| [18, 12, 6, 0].map(|shift| DIGITS[group(b) >> shift & 63] as char)).collect()
}

fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

fn is_cidr(text: &str) -> bool {
    let Some((Ok(address), length)) = text.split_once('/').map(|(a, l)| (a.parse::<IpAddr>(), l)) else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    length.bytes().all(|b| b.is_ascii_digit()) && length.parse::<u8>().is_ok_and(|l| l <= most)
}

fn is_range(text: &str) -> bool {
    Range::parse(text).is_some()
}

/// The name becomes a part of the names of a namespace and of what is in it.
fn is_virtual_cluster(text: &str) -> bool {
    is_name(text) && text.len() <= 40 && text.starts_with(|first: char| first.is_ascii_lowercase())
}

fn is_kubernetes(text: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.strip_prefix("v1.").is_some_and(|rest| rest.split('.').count() == 2 && rest.split('.').all(number))
}

fn is_device(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn is_mac(text: &str) -> bool {
    text.split(':').count() == 6 && text.split(':').all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_pattern(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.*?[]".contains(c))
}

fn is_mount(text: &str) -> bool {
    is_path(text)
        && ["/var/", "/srv"].iter().any(|p| text.strip_prefix(p).is_some_and(|rest| *p == "/var/" || rest.is_empty() || rest.starts_with('/')))
}

/// Whether a text is formed like the name of a time zone.
pub fn is_zone(text: &str) -> bool {
    let part = |p: &str| !p.is_empty() && p.chars().all(|c| c.is_ascii_alphanumeric() || "_+-".contains(c));
    text.len() <= 63 && text.split('/').all(part) && text.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Whether a text is a host name or an IP address.
pub fn is_host(text: &str) -> bool {
    let label =
        |l: &str| (1..=63).contains(&l.len()) && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') && !l.starts_with('-') && !l.ends_with('-');
    is_ip(text) || text.len() <= 253 && text.split('.').all(label)
}

/// A kernel parameter's name: words joined by `.` or `/`.
pub(super) fn is_sysctl(text: &str) -> bool {
    let word = |w: &str| !w.is_empty() && w.chars().all(|c| c.is_ascii_alphanumeric() || "_-*:@".contains(c));
    text.contains(['.', '/']) && text.split(['.', '/']).all(word)
}

/// What is wrong with a host name rule, and a hint.
pub(super) fn hostname(text: &str) -> Result<(), (String, Option<String>)> {
    const HOLDERS: [&str; 3] = ["{mac}", "{serial}", "{id}"];
    let plain = |message: &str| Err((message.to_string(), None));
    let (mut rest, mut name) = (text, String::new());
    while let Some((before, after)) = rest.split_once('{') {
        let Some((holder, after)) = after.split_once('}') else { return plain("has `{` without `}`") };
        let holder = format!("{{{holder}}}");
        if !HOLDERS.contains(&holder.as_str()) {
            return Err(("has an unknown placeholder".into(), suggest(&holder, HOLDERS)));
        }
        // As long as what will stand there; a serial number is cut to what fits.
        name += before;
        name += if holder == HOLDERS[0] { "525400123456" } else { "00000000" };
        rest = after;
    }
    name += rest;
    if !only(&name, 63, "-.") {
        return plain("must become 1 to 63 lower-case letters, digits, `-` and `.`");
    }
    let label = |l: &str| !l.is_empty() && !l.starts_with('-') && !l.ends_with('-');
    if name.split('.').all(label) { Ok(()) } else { plain("has a part that is empty or begins or ends with `-`") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@host";

    #[test]
    fn texts_are_told_right_from_wrong() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("name", &["a", "my-host2"], &["", "A", "-a", "a-", "a/b", "ä", ".."]),
            ("version", &["1.2.3", "0.1.0-rc.1+b"], &["1", "1.2", "v1.2.3", "01.2.3", "1.2.3 "]),
            ("packages.[]", &["g++", "libc6", "7zip"], &["a", "Foo", "+a", "a b", "a=1"]),
            ("users.[].name", &["ops", "_x-1"], &["Ops", "1a", "-a", "a.b", "a:b", ""]),
            (
                "users.[].sshKeys.[]",
                &[KEY, "restrict,command=\"a b\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"],
                &[
                    "ssh-ed25519",
                    "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
                    "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
                    "ssh-ed25519 AAAA",
                    "",
                ],
            ),
            ("files.[].mode", &["0644", "755", "04755", "1777"], &["644x", "8", "0888", "17777", "99", "u+x"]),
            (
                "network.interfaces.[].addresses.[]",
                &["192.0.2.1/24", "2001:db8::1/64"],
                &["192.0.2.1", "192.0.2.1/33", "1.2.3/8", "::1/129", "::1/+1"],
            ),
            ("network.interfaces.[].match.mac", &["52:54:00:aB:34:56"], &["52-54-00-12-34-56", "52:54:00:12:34", "5:4:0:1:3:5"]),
            ("vclusters.[].name", &["a", "biz-1"], &["", "A", "a.b", "-a", "1biz", "this-name-has-forty-two-letters-and-digits"]),
            ("vclusters.[].version", &["v1.36.3"], &["1.36.3", "v1.36", "v1.36.x", "v2.0.0"]),
            ("vclusters.[].network.podCIDR", &["10.244.0.0/16"], &["10.244.0.1/16", "10.0.0.0/33", "fd00::/64", "10.0.0.0"]),
            ("disk.mounts.[].path", &["/var/lib/x", "/srv", "/srv/data"], &["/var", "/home", "/srvx", "/var/../etc", "var/x"]),
            ("time.zone", &["UTC", "Europe/Berlin", "Etc/GMT+5"], &["", "/etc/passwd", "Europe/../x", "Europe/"]),
            ("boot.commandLine.[]", &["quiet", "a=\"b c\""], &["a b", "", "a=\"b", "a\nb"]),
            ("time.servers.[]", &["ntp.example.org", "192.0.2.1"], &["a b", "-a", "a..b", ""]),
        ];
        for (path, good, bad) in table {
            let rule = RULES.iter().find(|r| r.path == *path).unwrap();
            good.iter().for_each(|t| assert!((rule.holds)(t), "{path}: {t}"));
            bad.iter().for_each(|t| assert!(!(rule.holds)(t), "{path}: {t}"));
        }
    }

    #[test]
    fn the_words_that_verity_and_slots_depend_on_are_not_the_profiles() {
        for taken in ["roothash=00", "init=/bin/sh", "rdinit=/bin/sh", "chasi.slot=b", "chasi.trial=1"] {
            assert!(!is_own_argument(taken), "{taken}");
        }
        for free in ["quiet", "initcall_debug", "chasi.wait=120", "systemd.unit=rescue.target"] {
            assert!(is_own_argument(free), "{free}");
        }
    }

    #[test]
    fn a4_destinations_cannot_leave_the_image() {
        for bad in ["", "/", "etc/x", "/etc/../x", "/..", "/a/./b", "/a//b", "/a/", "/a\0b", "/a\nb", "../x", "/a/.."] {
            assert!(!is_path(bad), "{bad:?}");
        }
        assert!(is_path("/etc/..x/a b"));
    }

    #[test]
    fn host_name_rules() {
        for good in ["node-{mac}", "{serial}", "a.b-{id}", "web1"] {
            assert_eq!(hostname(good), Ok(()), "{good}");
        }
        assert_eq!(hostname("n-{macc}").unwrap_err().1, Some("did you mean `{mac}`?".into()));
        for bad in ["", "Node", "-{mac}", "a..b", "{mac", "a_b", "{mac}-", "{}"] {
            assert!(hostname(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sysctl_names() {
        for (name, good) in
            [("net.ipv4.ip_forward", true), ("net/ipv4/conf/eth0.1/x", true), ("x", false), ("a..b", false), (".a", false), ("a b.c", false)]
        {
            assert_eq!(is_sysctl(name), good, "{name}");
        }
    }
}
