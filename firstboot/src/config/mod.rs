//! Configuration sources in their one order, later wins: image, what an installation has carried over, kernel command line, labelled disk, SMBIOS, OVF and
//! guestinfo, URL, console.
//!
//! What a source that can go away said (disk, OVF, URL, console) is kept in the state, so that a node does not change when a medium is
//! pulled out. A field that is wrong is reported with its source and skipped.

mod cidata;
mod firmware;
mod url;
mod volume;

use std::collections::BTreeMap;

use layers::Result;
use layers::node::{IMAGE_SETTINGS, ImageRecord};
use layers::settings::{Item, SECRET_KEY, Settings, parse, shown_key};
use serde::{Deserialize, Serialize};

use std::sync::mpsc::Receiver;

pub use volume::devices;

use crate::host::{Change, Host, RUN, STATE};

/// What came from an address: its name as a source and the items, or why nothing came.
pub type Fetched = std::result::Result<(String, Vec<Item>), String>;

/// What each source said last, by its name; 0600, because it may hold a password hash.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    sources: BTreeMap<String, Vec<Item>>,
}

/// What all sources together say.
#[derive(Clone, Debug)]
pub struct Collected {
    /// The effective settings.
    pub settings: Settings,
    /// One line per field or document that was not taken: source, key, reason.
    pub problems: Vec<String>,
    /// What to keep for the next boot.
    pub kept: Kept,
}

/// What one source says now; `None` when it is not there.
type Said = Option<std::result::Result<Vec<Item>, Vec<String>>>;

/// What the kernel command line of the medium said that the node was installed from.
const INSTALLATION: &str = "installation";

fn kept_path() -> String {
    format!("{STATE}/config.json")
}

/// File of the console's own settings, written by `chasi-bod config set`.
pub fn console_path() -> String {
    format!("{STATE}/console.json")
}

/// Reads every source; nothing is written.
pub fn collect(host: &Host, image: &ImageRecord) -> Result<Collected> {
    let mut kept = load(host, &kept_path());
    let mut problems = Vec::new();
    let mut items = image_settings(host, &mut problems);
    items.extend(kept.sources.get(INSTALLATION).into_iter().flatten().cloned());
    items.extend(without_secret(command_line(host), &mut problems));
    for (name, said) in [
        ("disk CHASI", chasi(host)),
        ("disk cidata", cidata::read(host)),
        ("SMBIOS", firmware::smbios(host)),
        ("OVF", firmware::ovf(host)),
        ("guestinfo", firmware::guestinfo(host)),
    ] {
        match said {
            Some(Ok(found)) if matches!(name, "SMBIOS" | "guestinfo") => items.extend(found),
            Some(Ok(found)) => _ = kept.sources.insert(name.into(), found),
            Some(Err(why)) => problems.extend(why),
            None => {}
        }
        items.extend(kept.sources.get(name).into_iter().flatten().cloned());
    }
    let mut settings = Settings::of_image(image);
    apply(&mut settings, &items, &mut problems);
    let console = load(host, &console_path()).sources.remove("console").unwrap_or_default();
    // The console, whose say comes last, may say where to look.
    let mut with_console = settings.clone();
    apply(&mut with_console, &console, &mut Vec::new());
    if let Some(url) = with_console.url {
        match kept.sources.get(&url::name(&url.value)) {
            Some(fetched) => apply(&mut settings, fetched, &mut problems),
            None => settings.unread = Some(url.value),
        }
    }
    apply(&mut settings, &console, &mut problems);
    Ok(Collected { settings, problems, kept })
}

/// What the layers of the image say to every node.
fn image_settings(host: &Host, problems: &mut Vec<String>) -> Vec<Item> {
    let text = host.read(IMAGE_SETTINGS).ok().flatten();
    let said = text.map_or(Ok(Vec::new()), |text| parse(&text, "image: settings.yaml"));
    said.unwrap_or_else(|why| {
        problems.push(why);
        Vec::new()
    })
}

fn apply(settings: &mut Settings, items: &[Item], problems: &mut Vec<String>) {
    for item in items {
        if let Err(why) = settings.set(item) {
            problems.push(format!("{}: {}: {why}", item.source, shown_key(&item.key)));
        }
    }
}

/// A damaged file is as good as none: everything in it can be read again from its source.
fn load(host: &Host, path: &str) -> Kept {
    let text = host.read(path).ok().flatten().unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Keeps what the sources said for the next boot.
pub fn keep(host: &Host, kept: &Kept) -> Result<Change> {
    save(host, &kept_path(), kept)
}

fn save(host: &Host, path: &str, kept: &Kept) -> Result<Change> {
    host.write(path, &encode(kept, path)?, 0o600)
}

fn encode(kept: &Kept, path: &str) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(kept).map_err(|e| layers::Error::internal(format!("encoding {path}: {e}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Files that let a system which this one installs know what was said to this one: by media, addresses, people and in the medium's menu.
pub fn carried(host: &Host, image: &ImageRecord) -> Result<Vec<(String, Vec<u8>)>> {
    let mut kept = collect(host, image)?.kept;
    let of_menu = without_secret(command_line(host), &mut Vec::new());
    let of_menu: Vec<_> = of_menu.into_iter().map(|item| Item { source: format!("{INSTALLATION}: {}", item.source), ..item }).collect();
    if !of_menu.is_empty() {
        kept.sources.insert(INSTALLATION.into(), of_menu);
    }
    let kept = if kept.sources.is_empty() { None } else { Some((kept_path(), encode(&kept, &kept_path())?)) };
    let console = host.read_bytes(&console_path())?.map(|bytes| (console_path(), bytes));
    Ok(kept.into_iter().chain(console).collect())
}

/// Starts fetching an address; the receiver gets every failure and at last the items.
pub fn fetch(address: String) -> Receiver<Fetched> {
    url::fetch(address)
}

/// Keeps what an address said; what another one said before is dropped.
pub fn keep_fetched(host: &Host, (name, items): (String, Vec<Item>)) -> Result<()> {
    let mut kept = load(host, &kept_path());
    kept.sources.retain(|name, _| !name.starts_with("URL "));
    kept.sources.insert(name, items);
    keep(host, &kept).map(|_| ())
}

fn effective_path() -> String {
    format!("{RUN}/settings.json")
}

/// Tells the console and `config show` what counts now.
pub fn publish(host: &Host, settings: &Settings) -> Result<()> {
    let text = serde_json::to_vec(settings).map_err(|e| layers::Error::internal(format!("encoding settings: {e}")))?;
    host.write(&effective_path(), &text, 0o600).map(|_| ())
}

/// The settings that the agent published; `None` before it ran.
pub fn published(host: &Host) -> Option<Settings> {
    serde_json::from_str(&host.read(&effective_path()).ok()??).ok()
}

/// Takes one setting from a person at the node; the agent picks it up. `value` empty takes it back.
pub fn set_by_console(host: &Host, key: &str, value: &str) -> Result<()> {
    let mut kept = load(host, &console_path());
    let items = kept.sources.entry("console".into()).or_default();
    items.retain(|item| item.key != key);
    if !value.is_empty() {
        let item = Item::text(key, value, "console");
        let mut probe = Settings::of_image(&host.image()?);
        probe.set(&item).map_err(|why| layers::Error::input(format!("setting {key}: {why}")))?;
        items.push(item);
    }
    save(host, &console_path(), &kept).map(|_| ())
}

/// `chasi.hostname=`, `chasi.url=`, `chasi.ssh-key=` (for root; percent-encoded or in double quotes), `chasi.set=key=value`.
fn command_line(host: &Host) -> Vec<Item> {
    let source = "kernel command line";
    let item = |word: &String| {
        let (name, value) = word.strip_prefix("chasi.")?.split_once('=')?;
        let value = percent_decode(value);
        match name {
            "hostname" | "url" => Some(Item::text(name, value, source)),
            "ssh-key" => Some(Item::text("sshKeys.root", value, source)),
            "set" => {
                value.split_once('=').map(|(key, value)| Item::text(key, value, source)).or_else(|| Some(Item::text("set", value.clone(), source)))
            }
            _ => None,
        }
    };
    host.command_line().iter().filter_map(item).collect()
}

/// Whatever the kernel was started with, every user of the node can read.
fn without_secret(items: Vec<Item>, problems: &mut Vec<String>) -> Vec<Item> {
    let (open, rest): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.key == SECRET_KEY);
    let why = "every user of the node can read it there; give it on a disk, by SMBIOS, OVF or URL, or on the console";
    problems.extend(open.iter().map(|item| format!("{}: {}: {why}", item.source, item.key)));
    rest
}

/// RFC 3986 percent-encoding; a `%` without two hex digits stays as it is.
fn percent_decode(text: &str) -> String {
    let (bytes, mut out, mut n) = (text.as_bytes(), Vec::new(), 0);
    while n < bytes.len() {
        let pair = bytes.get(n + 1..n + 3).filter(|_| bytes[n] == b'%').and_then(|pair| hex::decode(pair).ok());
        out.push(pair.as_ref().map_or(bytes[n], |byte| byte[0]));
        n += if pair.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `chasi-bod.yaml` on a volume labelled CHASI; `chasi-bod.yaml.sha256` beside it is checked when it is there.
fn chasi(host: &Host) -> Said {
    volume::read(host, "CHASI", |dir| {
        let place = "disk CHASI: chasi-bod.yaml";
        let text = volume::file(dir, "chasi-bod.yaml").map_err(|why| format!("{place}: {why}"))?;
        if let Ok(sum) = volume::file(dir, "chasi-bod.yaml.sha256") {
            let digest = layers::units::Digest::of(text.as_bytes()).hex();
            if !sum.trim_start().starts_with(&digest) {
                return Err(format!("{place}: differs from chasi-bod.yaml.sha256: the copy was not finished"));
            }
        }
        parse(&text, place)
    })
}

/// Settings of a node whose image has the defaults, with some of its own.
#[cfg(test)]
pub fn example(own: &[(&str, &str)]) -> Settings {
    let json = r#"{"name":"m","version":"1.0.0","epoch":0,"hostname":"n","network":{},"disk":{},"time":{},"console":{}}"#;
    let mut settings = Settings::of_image(&serde_json::from_str(json).unwrap());
    own.iter().for_each(|(key, value)| settings.set(&Item::text(key, *value, "test")).unwrap());
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8e1RkDLYBSVWxcLqJbPKB8YI9cI5WxdgVFYkA0kD0n me";

    fn fake() -> (tempfile::TempDir, Host, ImageRecord) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let json = r#"{"name":"m","version":"1.0.0","epoch":0,"hostname":"image","network":{},"disk":{},"time":{},"console":{}}"#;
        host.write("usr/lib/chasi-bod/image.json", json.as_bytes(), 0o444).unwrap();
        let image = host.image().unwrap();
        (dir, host, image)
    }

    #[test]
    fn later_sources_win_and_each_value_knows_its_source() {
        let (_dir, host, image) = fake();
        let name = |host: &Host| {
            let found = collect(host, &image).unwrap();
            assert_eq!(found.problems, Vec::<String>::new());
            (found.settings.hostname.value, found.settings.hostname.source)
        };
        assert_eq!(name(&host), ("image".into(), "image".into()));
        host.write("proc/cmdline", b"quiet chasi.slot=a chasi.hostname=cmdline\n", 0o444).unwrap();
        assert_eq!(name(&host), ("cmdline".into(), "kernel command line".into()));
        host.write("volumes/CHASI/chasi-bod.yaml", b"# site\nhostname: disk\n", 0o644).unwrap();
        assert_eq!(name(&host), ("disk".into(), "disk CHASI: chasi-bod.yaml:2".into()));
        host.write("volumes/cidata/meta-data", b"local-hostname: cloud\n", 0o644).unwrap();
        assert_eq!(name(&host), ("cloud".into(), "disk cidata: meta-data:1".into()));
        host.write("sys/firmware/dmi/tables/DMI", &firmware::table(&["chasi-bod:hostname=smbios"]), 0o400).unwrap();
        assert_eq!(name(&host), ("smbios".into(), "SMBIOS OEM string 1".into()));
        set_by_console(&host, "hostname", "console").unwrap();
        assert_eq!(name(&host), ("console".into(), "console".into()));
        set_by_console(&host, "hostname", "").unwrap();
        assert_eq!(name(&host).0, "smbios");
    }

    #[test]
    fn a_disk_that_is_pulled_out_keeps_its_say() {
        let (dir, host, image) = fake();
        host.write("volumes/CHASI/chasi-bod.yaml", b"hostname: disk\n", 0o644).unwrap();
        keep(&host, &collect(&host, &image).unwrap().kept).unwrap();
        std::fs::remove_dir_all(dir.path().join("volumes")).unwrap();
        assert_eq!(collect(&host, &image).unwrap().settings.hostname.value, "disk");
    }

    #[test]
    fn an_installed_system_knows_what_was_said_to_its_medium_and_its_own_command_line_wins() {
        let (_dir, host, image) = fake();
        assert_eq!(carried(&host, &image).unwrap(), []);
        host.write("proc/cmdline", b"chasi.live chasi.hostname=menu chasi.set=time.zone=Europe/Berlin\n", 0o444).unwrap();
        host.write("volumes/CHASI/chasi-bod.yaml", b"disk: {erase: true}\n", 0o644).unwrap();
        set_by_console(&host, "metrics.listen", "9955").unwrap();
        let (_other, installed, _) = fake();
        for (path, bytes) in carried(&host, &image).unwrap() {
            installed.write(&path, &bytes, 0o600).unwrap();
        }
        let settings = || collect(&installed, &image).unwrap().settings;
        assert_eq!((settings().hostname.value.as_str(), settings().hostname.source.as_str()), ("menu", "installation: kernel command line"));
        assert!(settings().zone.value == "Europe/Berlin" && settings().erase.value && settings().metrics_listen.is_some());
        installed.write("proc/cmdline", b"chasi.hostname=own\n", 0o444).unwrap();
        assert_eq!(settings().hostname.value, "own");
    }

    #[test]
    fn an_address_gives_the_nodes_part_before_the_image_does_and_the_console_can_name_one() {
        let (_dir, host, image) = fake();
        host.write(IMAGE_SETTINGS, b"cluster: {role: founder}\n", 0o444).unwrap();
        host.write("proc/cmdline", b"chasi.url=https://a/x\n", 0o444).unwrap();
        let settings = || collect(&host, &image).unwrap().settings;
        assert_eq!(settings().unread_part(), Some("https://a/x"));
        set_by_console(&host, "url", "https://b/y").unwrap();
        assert_eq!(settings().unread_part(), Some("https://b/y"));
        keep_fetched(&host, (url::name("https://b/y"), vec![Item::text("nodes.expected", "3", "URL")])).unwrap();
        assert_eq!((settings().unread, settings().part_by(None)), (None, None));
        set_by_console(&host, "url", "").unwrap();
        set_by_console(&host, "cluster.role", "founder").unwrap();
        assert_eq!((settings().unread.as_deref(), settings().unread_part()), (Some("https://a/x"), None), "a person's word needs no address");
    }

    #[test]
    fn f6_the_clusters_secret_is_not_taken_from_the_kernel_command_line() {
        let (_dir, host, image) = fake();
        let canary = "canary-in-the-coal-mine-0123456789";
        host.write("proc/cmdline", format!("chasi.set=cluster.secret={canary} chasi.hostname=a").as_bytes(), 0o444).unwrap();
        let found = collect(&host, &image).unwrap();
        assert!(found.settings.secret.is_none() && found.settings.hostname.value == "a");
        assert!(
            found.problems.len() == 1 && found.problems[0].starts_with("kernel command line: cluster.secret: every user"),
            "{:?}",
            found.problems
        );
        assert!(!found.problems[0].contains(canary));
        host.write("volumes/CHASI/chasi-bod.yaml", format!("cluster: {{secret: {canary}}}\n").as_bytes(), 0o644).unwrap();
        assert_eq!(collect(&host, &image).unwrap().settings.secret.unwrap().value.reveal(), canary);
    }

    #[test]
    fn f3_a_bad_disk_is_named_and_the_rest_still_counts() {
        let (_dir, host, image) = fake();
        host.write("proc/cmdline", format!("chasi.set=time.zone=Europe/Berlin \"chasi.ssh-key={}\"", KEY.replace(' ', "%20")).as_bytes(), 0o444)
            .unwrap();
        let table: [(&[u8], &str); 7] = [
            (b"", "disk CHASI: chasi-bod.yaml: is empty"),
            (b"hostname: a\0\0", "disk CHASI: chasi-bod.yaml: holds NUL"),
            (b"hostname: a\ntime: {zo", "disk CHASI: chasi-bod.yaml:2"),
            (b"hostname: [a]\n", "disk CHASI: chasi-bod.yaml:1: hostname: text expected, found a list"),
            (b"\xff\xfe", "disk CHASI: chasi-bod.yaml: is not UTF-8"),
            (b"rootPassword: x\n", "disk CHASI: chasi-bod.yaml:1: rootPassword: unknown key"),
            (b"cluster: {secret:0123456789abcdef0123456789abcdef}\n", "disk CHASI: chasi-bod.yaml:1: cluster.secret\u{2026}: unknown key"),
        ];
        for (document, problem) in table {
            host.write("volumes/CHASI/chasi-bod.yaml", document, 0o644).unwrap();
            let found = collect(&host, &image).unwrap();
            assert!(found.problems.len() == 1 && found.problems[0].starts_with(problem), "{:?}", found.problems);
            assert_eq!((found.settings.hostname.value.as_str(), found.settings.zone.value.as_str()), ("image", "Europe/Berlin"));
            assert_eq!(found.settings.ssh_keys["root"].value, [KEY]);
            assert!(found.settings.password_hash.is_none());
        }
        host.write("volumes/CHASI/chasi-bod.yaml", b"hostname: a\n", 0o644).unwrap();
        host.write("volumes/CHASI/chasi-bod.yaml.sha256", &b"0".repeat(64), 0o644).unwrap();
        assert!(collect(&host, &image).unwrap().problems[0].contains("differs from chasi-bod.yaml.sha256"));
    }
}
