//! Kernel modules by the devices that are there: modules.alias and modules.dep (format: depmod, modules.dep(5)), both as the builder
//! reduced them to what the initramfs holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use layers::{Context, Result};

/// Loaded on every boot, because no device names them: file systems, dm-verity and the hashes that they look for at run time.
/// Names that are not there (built into the kernel) are skipped. Hashes for a certain processor come by its own modalias.
pub const FIXED: [&str; 6] = ["crc32c_generic", "sha256_generic", "dm_verity", "erofs", "ext4", "overlay"];

/// Which modules there are, what they need and which devices they drive.
#[derive(Debug, Default)]
pub struct Modules {
    folder: PathBuf,
    needs: BTreeMap<String, (String, Vec<String>)>,
    aliases: Vec<(String, String)>,
}

impl Modules {
    /// Reads the lists of `folder` (`/lib/modules/<release>`); a missing list is an empty one: everything may be built in.
    pub fn read(folder: &Path) -> Self {
        let text = |name| fs::read_to_string(folder.join(name)).unwrap_or_default();
        Self::parse(folder, &text("modules.dep"), &text("modules.alias"))
    }

    /// Takes the texts of modules.dep and modules.alias.
    pub fn parse(folder: &Path, dep: &str, alias: &str) -> Self {
        let needs = dep.lines().filter_map(|line| {
            let (path, needs) = line.split_once(':')?;
            Some((name_of(path), (path.to_string(), needs.split_whitespace().map(name_of).collect())))
        });
        let aliases = alias.lines().filter_map(|line| {
            let mut words = line.split_whitespace().skip_while(|w| *w == "alias");
            Some((words.next()?.to_string(), name_of(words.next()?)))
        });
        Self { folder: folder.into(), needs: needs.collect(), aliases: aliases.filter(|(p, _)| !p.starts_with('#')).collect() }
    }

    /// Files to load for a module, what it needs before it; empty for a name that is not there. Circles are cut.
    pub fn order(&self, name: &str) -> Vec<PathBuf> {
        let (mut out, mut seen) = (Vec::new(), BTreeSet::new());
        self.visit(&name_of(name), &mut seen, &mut out);
        out
    }

    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, out: &mut Vec<PathBuf>) {
        let Some((path, needs)) = self.needs.get(name) else { return };
        if seen.insert(name.to_string()) {
            needs.iter().for_each(|need| self.visit(need, seen, out));
            out.push(self.folder.join(path));
        }
    }

    /// Modules for a device's modalias.
    pub fn drivers(&self, modalias: &str) -> Vec<&str> {
        self.aliases.iter().filter(|(pattern, _)| matches(pattern.as_bytes(), modalias.as_bytes())).map(|(_, m)| m.as_str()).collect()
    }
}

/// A module's name: file name without `.ko` and compression, `-` as `_`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Matches a pattern with `*`, `?` and `[…]` (fnmatch(3) without flags, as depmod means it); linear in memory, no recursion.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, t));
            p += 1;
        } else if let (Some(length), true) = (one(&pattern[p..], text.get(t)), t < text.len()) {
            p += length;
            t += 1;
        } else if p == pattern.len() && t == text.len() {
            return true;
        } else {
            match retry {
                Some((after, from)) if from < text.len() => {
                    retry = Some((after, from + 1));
                    (p, t) = (after, from + 1);
                }
                _ => return false,
            }
        }
    }
}

/// Length of the pattern's first element when it takes this byte.
fn one(pattern: &[u8], byte: Option<&u8>) -> Option<usize> {
    let byte = *byte?;
    match *pattern.first()? {
        b'?' => Some(1),
        b'[' => {
            let end = pattern.iter().position(|b| *b == b']')?;
            let set = &pattern[1..end];
            let ranges = set.windows(3).any(|w| w[1] == b'-' && (w[0]..=w[2]).contains(&byte));
            (ranges || set.contains(&byte)).then_some(end + 1)
        }
        other => (other == byte).then_some(1),
    }
}

/// The modaliases of all devices there are, in order, each once.
pub fn devices(sys: &Path) -> BTreeSet<String> {
    let buses = list(&sys.join("bus"));
    let devices = buses.iter().flat_map(|bus| list(&bus.join("devices")));
    devices.filter_map(|d| fs::read_to_string(d.join("modalias")).ok()).map(|m| m.trim().to_string()).filter(|m| !m.is_empty()).collect()
}

/// Paths in a folder, sorted; a folder that is not there is empty.
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let mut out: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    out.sort();
    out
}

/// Loads modules and remembers which.
#[derive(Debug)]
pub struct Loader<'m> {
    modules: &'m Modules,
    done: BTreeSet<PathBuf>,
    asked: BTreeSet<String>,
}

impl<'m> Loader<'m> {
    /// A loader of these modules.
    pub fn new(modules: &'m Modules) -> Self {
        Self { modules, done: BTreeSet::new(), asked: BTreeSet::new() }
    }

    /// Loads the drivers of devices that were not seen before; returns the files loaded and what failed.
    pub fn plug(&mut self, sys: &Path) -> (Vec<PathBuf>, Vec<String>) {
        let fresh: Vec<_> = devices(sys).into_iter().filter(|m| self.asked.insert(m.clone())).collect();
        let names: BTreeSet<String> = fresh.iter().flat_map(|m| self.modules.drivers(m)).map(str::to_string).collect();
        self.load(names.iter().map(String::as_str))
    }

    /// Loads modules by name with what they need.
    pub fn load<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) -> (Vec<PathBuf>, Vec<String>) {
        let (mut loaded, mut failed) = (Vec::new(), Vec::new());
        for path in names.into_iter().flat_map(|n| self.modules.order(n)).collect::<Vec<_>>() {
            if self.done.insert(path.clone()) {
                match insert(&path) {
                    Ok(()) => loaded.push(path),
                    Err(error) => failed.push(error.to_string()),
                }
            }
        }
        (loaded, failed)
    }
}

/// Loads one file; a module that is there already is no error.
fn insert(path: &Path) -> Result<()> {
    const COMPRESSED: i32 = 4;
    let file = fs::File::open(path).context(|| format!("opening module {}", path.display()))?;
    let flags = if path.extension().is_some_and(|e| e == "ko") { 0 } else { COMPRESSED };
    match rustix::system::finit_module(&file, c"", flags) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(std::io::Error::from(error)).context(|| format!("loading module {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko kernel/fs/mbcache.ko\nkernel/fs/jbd2/jbd2.ko:\n\
                       kernel/lib/crc16.ko:\nkernel/fs/mbcache.ko:\nkernel/drivers/virtio/virtio-pci.ko.xz: kernel/drivers/virtio/virtio.ko.xz\n\
                       kernel/drivers/virtio/virtio.ko.xz:\na.ko: b.ko\nb.ko: a.ko\n";
    const ALIAS: &str = "# Aliases extracted from modules themselves.\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\nalias virtio:d00000002v* virtio_blk\n\
                         alias scsi:t-0x0[05]* sd_mod\n";

    #[test]
    fn what_a_module_needs_comes_before_it() {
        let modules = Modules::parse(Path::new("/m"), DEP, ALIAS);
        let names = |n| modules.order(n).iter().map(|p| name_of(p.to_str().unwrap())).collect::<Vec<_>>();
        assert_eq!(names("ext4"), ["jbd2", "crc16", "mbcache", "ext4"]);
        assert_eq!(modules.order("virtio-pci")[1], Path::new("/m/kernel/drivers/virtio/virtio-pci.ko.xz"));
        assert_eq!(names("a"), ["b", "a"]);
        assert!(names("built_in").is_empty());
    }

    #[test]
    fn devices_find_their_drivers() {
        let modules = Modules::parse(Path::new("/m"), DEP, ALIAS);
        assert_eq!(modules.drivers("pci:v00001AF4d00001042sv00001AF4sd00001100bc01sc00i00"), ["virtio_pci"]);
        assert_eq!(modules.drivers("virtio:d00000002v00001AF4"), ["virtio_blk"]);
        assert_eq!(modules.drivers("scsi:t-0x05"), ["sd_mod"]);
        assert!(modules.drivers("scsi:t-0x01").is_empty() && modules.drivers("pci:v00008086d1").is_empty());
    }

    #[test]
    fn modaliases_are_read_from_a_fake_sys() {
        let sys = tempfile::tempdir().unwrap();
        for (device, alias) in [("bus/pci/devices/0", "pci:v1\n"), ("bus/virtio/devices/v0", "virtio:d2\n"), ("bus/usb/devices/u", "")] {
            fs::create_dir_all(sys.path().join(device)).unwrap();
            fs::write(sys.path().join(device).join("modalias"), alias).unwrap();
        }
        assert_eq!(devices(sys.path()).into_iter().collect::<Vec<_>>(), ["pci:v1", "virtio:d2"]);
    }

    proptest! {
        #[test]
        fn a_pattern_made_from_a_text_matches_it(text in "[a-z0-9:]{0,30}", stars in proptest::collection::vec((0..31usize, 0..10usize), 0..4)) {
            let mut pattern = text.clone();
            for (at, length) in stars {
                let at = at.min(pattern.len());
                let end = (at + length).min(pattern.len());
                pattern.replace_range(at..end, "*");
            }
            prop_assert!(matches(pattern.as_bytes(), text.as_bytes()), "{} {}", pattern, text);
            let longer = format!("{}X", text);
            prop_assert_eq!(matches(pattern.as_bytes(), longer.as_bytes()), pattern.ends_with('*'));
        }

        #[test]
        fn no_pattern_panics(pattern: Vec<u8>, text: Vec<u8>) {
            let _ = matches(&pattern, &text);
        }
    }
}
