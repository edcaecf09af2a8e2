//! The content of the initramfs: our static `init`, the kernel modules that it may have to load, and the mount points.
//!
//! Module indexes are the text files of `depmod` (kmod, modules.dep(5)): `modules.dep`, `modules.softdep`, `modules.alias`, `modules.builtin`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use layers::{Error, Result};

use super::cpio::{Entry, What};
use crate::store::Store;
use crate::tree::{Kind, Tree, TreePath};

/// Microcode (Linux: Documentation/arch/x86/microcode.rst): packages' folder, and the one file that the kernel looks for before it unpacks the archive. Both
/// vendors' files are made to be put one behind the other.
const MICROCODE: [(&str, &str); 2] = [
    ("usr/lib/firmware/intel-ucode", "kernel/x86/microcode/GenuineIntel.bin"),
    ("usr/lib/firmware/amd-ucode", "kernel/x86/microcode/AuthenticAMD.bin"),
];

/// What goes into an initramfs.
#[derive(Debug)]
pub struct Contents<'a> {
    /// Bytes of the static program that becomes `/init`.
    pub init: Vec<u8>,
    /// Kernel release: the name of its folder below `/usr/lib/modules`.
    pub kernel_version: &'a str,
    /// Modules to have at hand, by name or by an alias without wildcards; `-` and `_` are the same.
    pub modules: &'a [String],
    /// Time of all entries in seconds since 1970.
    pub mtime: u32,
}

/// Paths of the wanted modules and of all that they depend on, softly too, sorted. What the kernel has built in needs no file; a module that
/// the kernel does not know at all is an input error that names it.
pub fn modules_closure(tree: &Tree, store: &Store, kernel_version: &str, wanted: &[String]) -> Result<Vec<TreePath>> {
    let index = Index::read(tree, store, kernel_version)?;
    let names = index.closure(wanted)?;
    names.iter().map(|name| index.file(tree, name)).collect()
}

/// The entries of the initramfs, parents first: `/init`, the modules with their reduced indexes, microcode, `/dev/console` and empty mount points.
pub fn entries(tree: &Tree, store: &Store, contents: &Contents<'_>) -> Result<Vec<Entry>> {
    let index = Index::read(tree, store, contents.kernel_version)?;
    let names = index.closure(contents.modules)?;
    let mut out = BTreeMap::new();
    let mut add = |path: TreePath, mode: u16, what: What| {
        out.insert(path.clone(), Entry::new(path, mode, contents.mtime, what));
    };
    for dir in ["dev", "proc", "sys", "run", "sysroot"] {
        add(fixed(dir), 0o755, What::Directory);
    }
    add(fixed("init"), 0o755, What::File(contents.init.clone()));
    add(fixed("dev/console"), 0o600, What::CharDevice(5, 1));
    let home = fixed("usr/lib/modules").join(contents.kernel_version.as_bytes());
    for name in &names {
        let path = index.file(tree, name)?;
        add(below(&home, &index.modules[name].path), 0o644, What::File(content(tree, store, &path)?));
    }
    for (file, text) in index.reduced(&names) {
        add(home.join(file.as_bytes()), 0o644, What::File(text.into_bytes()));
    }
    for (folder, path) in MICROCODE {
        let folder = fixed(folder);
        let files = tree.below(&folder).filter(|(path, node)| matches!(node.kind, Kind::File(_) | Kind::HardLink(_)) && is_microcode(path.name()));
        let bytes: Vec<_> = files.map(|(path, _)| content(tree, store, path)).collect::<Result<_>>()?;
        if !bytes.is_empty() {
            out.insert(fixed(path), Entry::new(fixed(path), 0o644, contents.mtime, What::File(bytes.concat())));
        }
    }
    let files: Vec<_> = out.keys().cloned().collect();
    for dir in files.iter().flat_map(|file| std::iter::successors(file.parent(), TreePath::parent)).filter(|dir| !dir.is_root()) {
        out.entry(dir.clone()).or_insert_with(|| Entry::new(dir, 0o755, contents.mtime, What::Directory));
    }
    Ok(out.into_values().collect())
}

/// Names such as `06-55-04` and `microcode_amd_fam17h.bin`; signatures and texts lie beside them.
fn is_microcode(name: &[u8]) -> bool {
    name.iter().all(|c| c.is_ascii_hexdigit() || *c == b'-') || name.starts_with(b"microcode_amd") && name.ends_with(b".bin")
}

/// A path that is part of this program.
fn fixed(path: &str) -> TreePath {
    path.split('/').fold(TreePath::root(), |dir, name| dir.join(name.as_bytes()))
}

fn below(dir: &TreePath, relative: &str) -> TreePath {
    relative.split('/').fold(dir.clone(), |dir, name| dir.join(name.as_bytes()))
}

/// The bytes of a regular file, hard links followed.
fn content(tree: &Tree, store: &Store, path: &TreePath) -> Result<Vec<u8>> {
    let found = match tree.get(path).map(|n| &n.kind) {
        Some(Kind::HardLink(target)) => tree.get(target).map(|n| &n.kind),
        other => other,
    };
    let Some(Kind::File(content)) = found else { return Err(Error::input(format!("reading {path} of the image: it is no file there"))) };
    store.read(content)
}

/// One name for `nvme-core`, `nvme_core` and `kernel/drivers/nvme/host/nvme-core.ko.xz`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// A line of `modules.dep`.
#[derive(Debug)]
struct Module {
    /// Path below the kernel's folder, ending in `.ko` whatever the compression was.
    path: String,
    /// Names of all modules that must be loaded before, in the order of the line.
    needs: Vec<String>,
}

/// The module indexes of one kernel.
#[derive(Debug)]
struct Index {
    home: TreePath,
    modules: BTreeMap<String, Module>,
    /// Names or aliases that a module wants loaded with it.
    soft: BTreeMap<String, Vec<String>>,
    /// Modules of each alias without wildcards.
    aliases: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
    alias_text: String,
    soft_text: String,
}

impl Index {
    fn read(tree: &Tree, store: &Store, kernel_version: &str) -> Result<Self> {
        let homes = ["usr/lib/modules", "lib/modules"].map(|dir| fixed(dir).join(kernel_version.as_bytes()));
        let home = homes.into_iter().find(|home| tree.get(&home.join(b"modules.dep")).is_some()).ok_or_else(|| {
            Error::input(format!("reading the modules of kernel {kernel_version}: the image has no /usr/lib/modules/{kernel_version}/modules.dep"))
                .with_hint("the kernel package's scripts run depmod; was the package configured?")
        })?;
        let text = |file: &str| -> Result<String> {
            let path = home.join(file.as_bytes());
            if tree.get(&path).is_none() {
                return Ok(String::new());
            }
            String::from_utf8(content(tree, store, &path)?).map_err(|_| Error::input(format!("reading {path} of the image: it is not UTF-8")))
        };
        let (alias_text, soft_text) = (text("modules.alias")?, text("modules.softdep")?);
        Ok(Self {
            modules: parse_dep(&text("modules.dep")?),
            soft: parse_soft(&soft_text),
            aliases: parse_alias(&alias_text),
            builtin: text("modules.builtin")?.lines().map(name_of).collect(),
            home,
            alias_text,
            soft_text,
        })
    }

    /// The modules that a name stands for: the module itself, or all that have it as an alias.
    fn resolve(&self, wanted: &str) -> Vec<String> {
        let name = name_of(wanted);
        if self.modules.contains_key(&name) { vec![name] } else { self.aliases.get(&name).cloned().unwrap_or_default() }
    }

    /// Names of the wanted modules and all that they need.
    fn closure(&self, wanted: &[String]) -> Result<BTreeSet<String>> {
        let found: Vec<_> = wanted.iter().map(|name| (name, self.resolve(name))).collect();
        let unknown = found.iter().filter(|(name, modules)| modules.is_empty() && !self.builtin.contains(&name_of(name)));
        let unknown: Vec<_> = unknown.map(|(name, _)| format!("`{name}`")).collect();
        if !unknown.is_empty() {
            let hint = "correct `initrdModules` of the layer that names them; `chasi-bod plan` shows which does";
            return Err(
                Error::input(format!("choosing kernel modules: the kernel of {} has no module {}", self.home, unknown.join(", "))).with_hint(hint)
            );
        }
        let mut open: Vec<String> = found.into_iter().flat_map(|(_, modules)| modules).collect();
        let mut out = BTreeSet::new();
        while let Some(name) = open.pop() {
            // What modules.dep does not know is built in or an optional soft dependency.
            let Some(module) = self.modules.get(&name).filter(|_| out.insert(name.clone())) else { continue };
            open.extend(module.needs.iter().cloned());
            open.extend(self.soft.get(&name).into_iter().flatten().flat_map(|soft| self.resolve(soft)));
        }
        Ok(out)
    }

    /// Path of a module's file in the image.
    fn file(&self, tree: &Tree, name: &str) -> Result<TreePath> {
        let path = below(&self.home, &self.modules[name].path);
        match tree.get(&path) {
            Some(_) => Ok(path),
            None => Err(Error::input(format!("choosing kernel modules: {path} is listed in modules.dep, but it is not in the image uncompressed"))),
        }
    }

    /// The index files with only the lines of these modules.
    fn reduced(&self, names: &BTreeSet<String>) -> [(&'static str, String); 3] {
        let mut dep = String::new();
        for module in names.iter().map(|name| &self.modules[name]) {
            let needs = module.needs.iter().filter_map(|n| self.modules.get(n)).fold(String::new(), |text, n| text + " " + &n.path);
            let _ = writeln!(dep, "{}:{needs}", module.path);
        }
        let keep = |text: &str, word: fn(&str) -> Option<&str>| -> String {
            let wanted = |line: &&str| !line.starts_with('#') && word(line).is_some_and(|name| names.contains(&name_of(name)));
            text.lines().filter(wanted).fold(String::new(), |text, line| text + line + "\n")
        };
        let alias = keep(&self.alias_text, |line| line.split_whitespace().nth(2));
        let soft = keep(&self.soft_text, |line| line.split_whitespace().nth(1));
        [("modules.dep", dep), ("modules.alias", alias), ("modules.softdep", soft)]
    }
}

/// `kernel/a.ko.xz: kernel/b.ko.xz kernel/c.ko.xz`
fn parse_dep(text: &str) -> BTreeMap<String, Module> {
    let plain = |path: &str| format!("{}.ko", path.split(".ko").next().unwrap_or(path));
    let module = |(path, needs): (&str, &str)| (name_of(path), Module { path: plain(path), needs: needs.split_whitespace().map(name_of).collect() });
    text.lines().filter_map(|line| line.split_once(':')).map(module).collect()
}

/// `softdep ext4 pre: crc32c post: other`
fn parse_soft(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut out = BTreeMap::<_, Vec<_>>::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some("softdep"), Some(module)) = (words.next(), words.next()) {
            out.entry(name_of(module)).or_default().extend(words.filter(|w| !w.ends_with(':')).map(str::to_string));
        }
    }
    out
}

/// `alias crypto-crc32c crc32c_generic`; patterns are left to the node.
fn parse_alias(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut out = BTreeMap::<_, Vec<_>>::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some("alias"), Some(alias), Some(module)) = (words.next(), words.next(), words.next())
            && !alias.contains(['*', '?', '['])
        {
            out.entry(alias.replace('-', "_")).or_default().push(name_of(module));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use layers::units::Digest;

    use super::*;
    use crate::fs::cpio;
    use crate::tree::Node;

    const VERSION: &str = "6.12.1-amd64";

    fn sample() -> (tempfile::TempDir, Store, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut tree = Tree::default();
        let mut pack = store.new_pack(Digest::of(b"pack")).unwrap();
        let files = [
            (
                "modules.dep",
                "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\nkernel/fs/jbd2/jbd2.ko.xz:\nkernel/lib/crc16.ko.xz:\n\
                 kernel/crypto/crc32c-generic.ko:\nkernel/drivers/nvme/host/nvme.ko: kernel/drivers/nvme/host/nvme-core.ko\n\
                 kernel/drivers/nvme/host/nvme-core.ko:\n",
            ),
            ("modules.softdep", "# Soft dependencies\nsoftdep jbd2 pre: crypto-crc32c absent post: none\nsoftdep nvme pre: absent\n"),
            (
                "modules.alias",
                "# Aliases\nalias pci:v*d*sv*sd*bc01sc08i02* nvme\nalias crypto-crc32c crc32c_generic\nalias fs-ext4 ext4\nalias fs-x other\n",
            ),
            ("modules.builtin", "kernel/drivers/block/loop.ko\nkernel/fs/erofs/erofs.ko\n"),
        ];
        let modules = ["fs/ext4/ext4", "fs/jbd2/jbd2", "lib/crc16", "crypto/crc32c-generic", "drivers/nvme/host/nvme", "drivers/nvme/host/nvme-core"];
        let modules = modules.map(|m| (format!("kernel/{m}.ko"), format!("module {m}")));
        for (name, bytes) in files.map(|(a, b)| (a.to_string(), b.to_string())).into_iter().chain(modules) {
            let path = TreePath::new(format!("usr/lib/modules/{VERSION}/{name}")).unwrap();
            tree.insert(path, Node::new(Kind::File(pack.add(bytes.as_bytes()).unwrap()), 0o644, 0));
        }
        pack.finish().unwrap();
        (dir, store, tree)
    }

    fn closure(wanted: &[&str]) -> Result<Vec<String>> {
        let (_dir, store, tree) = sample();
        let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
        let found = modules_closure(&tree, &store, VERSION, &wanted)?;
        Ok(found.iter().map(|p| String::from_utf8_lossy(p.name()).into_owned()).collect())
    }

    #[test]
    fn dependencies_come_along_hard_and_soft() {
        assert_eq!(closure(&["ext4"]).unwrap(), ["crc16.ko", "crc32c-generic.ko", "ext4.ko", "jbd2.ko"]);
        assert_eq!(closure(&["fs-ext4"]).unwrap().len(), 4, "an alias counts");
        assert_eq!(closure(&["nvme", "loop", "erofs"]).unwrap(), ["nvme.ko", "nvme-core.ko"]);
        assert_eq!(closure(&["nvme-core"]).unwrap(), closure(&["nvme_core"]).unwrap());
        assert_eq!(closure(&[]).unwrap(), [""; 0]);
    }

    #[test]
    fn an_unknown_module_or_kernel_is_named() {
        let error = closure(&["ext4", "warp-drive"]).unwrap_err().to_string();
        assert!(error.contains("`warp-drive`"), "{error}");
        let (_dir, store, mut tree) = sample();
        let error = modules_closure(&tree, &store, "5.0", &[]).unwrap_err();
        assert!(error.to_string().contains("/usr/lib/modules/5.0/modules.dep") && error.hint().is_some(), "{error}");
        tree.remove_below(&TreePath::new(format!("usr/lib/modules/{VERSION}/kernel/lib")).unwrap());
        let error = modules_closure(&tree, &store, VERSION, &["ext4".into()]).unwrap_err().to_string();
        assert!(error.contains("crc16.ko"), "{error}");
    }

    #[test]
    fn the_initramfs_holds_what_init_needs_and_nothing_else() {
        let (_dir, store, tree) = sample();
        let contents = Contents { init: b"ELF".to_vec(), kernel_version: VERSION, modules: &["nvme".into(), "loop".into()], mtime: 5 };
        let entries = entries(&tree, &store, &contents).unwrap();
        let mut archive = Vec::new();
        cpio::write(&entries, &mut archive).unwrap();
        assert_eq!(cpio::read(&archive).unwrap(), entries);
        let home = format!("/usr/lib/modules/{VERSION}");
        let listed: Vec<_> = entries.iter().map(|e| e.path.to_string().replace(&home, "@")).collect();
        let (host, dirs) = ("@/kernel/drivers/nvme/host", ["@/kernel", "@/kernel/drivers", "@/kernel/drivers/nvme"]);
        let expected = [
            "/dev",
            "/dev/console",
            "/init",
            "/proc",
            "/run",
            "/sys",
            "/sysroot",
            "/usr",
            "/usr/lib",
            "/usr/lib/modules",
            "@",
            dirs[0],
            dirs[1],
            dirs[2],
            host,
            &format!("{host}/nvme-core.ko"),
            &format!("{host}/nvme.ko"),
            "@/modules.alias",
            "@/modules.dep",
            "@/modules.softdep",
        ];
        assert_eq!(listed, expected);
        let text = |name: &str| match &entries.iter().find(|e| e.path.name() == name.as_bytes()).unwrap().what {
            What::File(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            other => panic!("{other:?}"),
        };
        let nvme = "kernel/drivers/nvme/host/nvme";
        assert_eq!(text("modules.dep"), format!("{nvme}.ko: {nvme}-core.ko\n{nvme}-core.ko:\n"));
        assert_eq!(text("modules.alias"), "alias pci:v*d*sv*sd*bc01sc08i02* nvme\n");
        assert_eq!(text("nvme.ko"), "module drivers/nvme/host/nvme");
    }

    #[test]
    fn microcode_of_both_vendors_lies_where_the_kernel_looks_and_aligned() {
        let (_dir, store, mut tree) = sample();
        let mut pack = store.new_pack(Digest::of(b"more")).unwrap();
        for name in [
            "intel-ucode/06-55-03",
            "intel-ucode/06-55-04",
            "intel-ucode/README",
            "amd-ucode/microcode_amd_fam17h.bin",
            "amd-ucode/microcode_amd_fam17h.bin.asc",
        ] {
            let path = TreePath::new(format!("usr/lib/firmware/{name}")).unwrap();
            tree.insert(path, Node::new(Kind::File(pack.add(format!("<{name}>").as_bytes()).unwrap()), 0o644, 0));
        }
        pack.finish().unwrap();
        let contents = Contents { init: b"ELF".to_vec(), kernel_version: VERSION, modules: &[], mtime: 5 };
        let entries = entries(&tree, &store, &contents).unwrap();
        let mut archive = Vec::new();
        cpio::write(&entries, &mut archive).unwrap();
        assert_eq!(cpio::read(&archive).unwrap(), entries);
        for (vendor, expected) in
            [("GenuineIntel", "<intel-ucode/06-55-03><intel-ucode/06-55-04>"), ("AuthenticAMD", "<amd-ucode/microcode_amd_fam17h.bin>")]
        {
            let entry = entries.iter().find(|entry| entry.path.to_string() == format!("/kernel/x86/microcode/{vendor}.bin")).unwrap();
            assert_eq!(entry.what, What::File(expected.as_bytes().to_vec()));
            let at = archive.windows(expected.len()).position(|part| part == expected.as_bytes()).unwrap();
            assert_eq!(at % 16, 0, "{vendor}");
        }
    }
}
