//! The snapshots: chains of the root need no state, every other snapshot is a folder `<id>/` with `fs/`, `work/` and a `meta` file. A folder
//! without `meta` is garbage of a crash. Records name their parents by id, so that a stale record can be renamed.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use layers::units::Digest;
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::proto::{Info, Kind, Mount};
use crate::images::tree::Tree;

/// Label with the chainID that a Prepare is for.
pub const REF: &str = "containerd.io/snapshot.ref";
const KNOWN: &str = "known/";

/// What lies below a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Below {
    /// Nothing.
    Nothing,
    /// A chain of the root.
    Known(Digest),
    /// Another record.
    Record(u64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    kind: i32,
    name: String,
    below: Below,
    labels: HashMap<String, String>,
    created: u64,
    updated: u64,
    /// Size and files of a committed snapshot.
    usage: Option<(i64, i64)>,
    /// The chain whose folder in the root is this record's content: the root gained it after its parent had been unpacked.
    alias: Option<Digest>,
}

/// All snapshots of a node.
#[derive(Debug)]
pub struct Store {
    tree: Arc<Tree>,
    root: PathBuf,
    records: BTreeMap<u64, Record>,
    names: HashMap<String, u64>,
    next: u64,
}

type Result<T> = std::result::Result<T, Status>;

impl Store {
    /// Reads the state below `root` and removes what crashes left.
    pub fn open(tree: Arc<Tree>, root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        fs::set_permissions(root, Permissions::from_mode(0o700))?;
        let mut store = Self { tree, root: root.into(), records: BTreeMap::new(), names: HashMap::new(), next: 1 };
        for entry in fs::read_dir(root)?.flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
            store.next = store.next.max(id + 1);
            match fs::read(entry.path().join("meta")).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok()) {
                Some(record) if record.alias.is_none_or(|chain| store.tree.chain(&chain).is_some()) => store.take(id, record),
                _ => delete(&entry.path()),
            }
        }
        Ok(store)
    }

    fn take(&mut self, id: u64, record: Record) {
        self.names.insert(record.name.clone(), id);
        self.records.insert(id, record);
    }

    /// Prepare and View; `AlreadyExists` says that the label's chain is there without unpacking.
    pub fn create(&mut self, kind: Kind, key: &str, parent: &str, labels: HashMap<String, String>) -> Result<Vec<Mount>> {
        let below = self.below(parent)?;
        let wanted = labels.get(REF).and_then(|text| text.parse::<Digest>().ok());
        if let Some(chain) = wanted.filter(|chain| kind == Kind::Active && self.tree.chain(chain).is_some()) {
            self.ensure_known(chain, below)?;
            return Err(Status::already_exists(format!("{chain} is in the root")));
        }
        self.set_aside(key)?;
        let now = now();
        let record = Record { kind: kind as i32, name: key.into(), below, labels, created: now, updated: now, usage: None, alias: None };
        let id = self.add(record)?;
        self.mounts_of(id)
    }

    /// A known chain on its own parent needs nothing; on a parent that was unpacked before, a record in between.
    fn ensure_known(&mut self, chain: Digest, below: Below) -> Result<()> {
        let parent = self.tree.chain(&chain).and_then(|c| c.parent).map_or(Below::Nothing, Below::Known);
        if parent == below || self.records.values().any(|r| r.alias == Some(chain) && r.below == below) {
            return Ok(());
        }
        let (now, labels) = (now(), HashMap::from([(REF.to_string(), chain.to_string())]));
        let (name, kind) = (format!("alias/{}/{chain}", self.next), Kind::Committed as i32);
        self.add(Record { kind, name, below, labels, created: now, updated: now, usage: Some((0, 0)), alias: Some(chain) }).map(|_| ())
    }

    /// containerd numbers its keys, so that a key that is there already is of a former, wiped containerd.
    fn set_aside(&mut self, key: &str) -> Result<()> {
        let Some(id) = self.names.get(key).copied() else { return Ok(()) };
        let mut record = self.record(id)?.clone();
        record.name = format!("stale/{id}/{key}");
        self.save(id, &record)?;
        self.names.remove(key);
        self.take(id, record);
        Ok(())
    }

    fn add(&mut self, record: Record) -> Result<u64> {
        let id = self.next;
        self.next += 1;
        let made = self.make_folder(id, &record).map_err(|e| failed("making", &record.name, &e)).and_then(|()| self.save(id, &record));
        if let Err(status) = made {
            let _ = fs::remove_dir_all(self.folder(id));
            return Err(status);
        }
        self.take(id, record);
        Ok(id)
    }

    fn make_folder(&self, id: u64, record: &Record) -> io::Result<()> {
        let folder = self.folder(id);
        fs::create_dir(&folder)?;
        fs::create_dir(folder.join("fs"))?;
        // The folder becomes the mount's top: it has owner and mode of what it covers.
        let top = self.lower(record.below).ok().and_then(|dirs| fs::metadata(dirs.first()?).ok());
        let (mode, uid, gid) = top.map_or((0o755, 0, 0), |m| (m.mode() & 0o7777, m.uid(), m.gid()));
        fs::set_permissions(folder.join("fs"), Permissions::from_mode(mode))?;
        if (uid, gid) != (0, 0) {
            chown(folder.join("fs"), Some(uid), Some(gid))?;
        }
        if record.kind == Kind::Active as i32 { fs::create_dir(folder.join("work")) } else { Ok(()) }
    }

    fn save(&self, id: u64, record: &Record) -> Result<()> {
        let write = || {
            let folder = self.folder(id);
            let mut file = File::create(folder.join("meta.new"))?;
            file.write_all(&serde_json::to_vec(record)?)?;
            file.sync_all()?;
            fs::rename(folder.join("meta.new"), folder.join("meta"))?;
            File::open(&folder)?.sync_all()?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(|e: io::Error| failed("writing", &record.name, &e))
    }

    fn folder(&self, id: u64) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// Mounts of an active or view snapshot.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        self.mounts_of(self.id(key)?)
    }

    fn mounts_of(&self, id: u64) -> Result<Vec<Mount>> {
        let record = self.record(id)?;
        let (active, lower) = (record.kind == Kind::Active as i32, self.lower(record.below)?);
        let own = self.folder(id).join("fs");
        let bind = |source: &Path, mode: &str| Mount {
            kind: "bind".into(),
            source: source.display().to_string(),
            target: String::new(),
            options: vec![mode.into(), "rbind".into()],
        };
        match (active, lower.as_slice()) {
            (true, []) => return Ok(vec![bind(&own, "rw")]),
            (false, []) => return Ok(vec![bind(&own, "ro")]),
            (false, [one]) => return Ok(vec![bind(one, "ro")]),
            _ => {}
        }
        let mut options = vec!["index=off".to_string()];
        if active {
            options.push(format!("workdir={}", self.folder(id).join("work").display()));
            options.push(format!("upperdir={}", own.display()));
        }
        let lower: Vec<_> = lower.iter().map(|dir| dir.display().to_string()).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        Ok(vec![Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }])
    }

    /// Folders below, uppermost first.
    fn lower(&self, mut below: Below) -> Result<Vec<PathBuf>> {
        let mut out = Vec::new();
        loop {
            below = match below {
                Below::Nothing => return Ok(out),
                Below::Known(digest) => {
                    let chain = self.tree.chain(&digest).ok_or_else(|| Status::not_found(format!("{digest} is not in the root any more")))?;
                    out.push(self.tree.layer(chain));
                    chain.parent.map_or(Below::Nothing, Below::Known)
                }
                Below::Record(id) => {
                    let record = self.record(id)?;
                    let alias = record.alias.and_then(|digest| self.tree.chain(&digest));
                    out.push(alias.map_or_else(|| self.folder(id).join("fs"), |chain| self.tree.layer(chain)));
                    record.below
                }
            };
        }
    }

    /// The content of an active snapshot that is to be committed; the caller flushes it, which can take long, before [`Self::commit`].
    pub fn content(&self, key: &str) -> Result<PathBuf> {
        let id = self.id(key)?;
        match self.record(id)?.kind == Kind::Active as i32 {
            true => Ok(self.folder(id).join("fs")),
            false => Err(Status::failed_precondition(format!("{key} is not an active snapshot"))),
        }
    }

    /// Makes an active snapshot, whose content is on the disk and counted, a committed one.
    pub fn commit(&mut self, name: &str, key: &str, labels: HashMap<String, String>, usage: (i64, i64)) -> Result<()> {
        self.content(key)?;
        self.set_aside(name)?;
        let id = self.id(key)?;
        let record = self.record(id)?.clone();
        let record = Record { kind: Kind::Committed as i32, name: name.into(), labels, updated: now(), usage: Some(usage), ..record };
        self.save(id, &record)?;
        self.names.remove(key);
        self.take(id, record);
        delete(&self.folder(id).join("work"));
        Ok(())
    }

    /// Forgets a snapshot and names its folder, which the caller deletes; what is in the root stays, and the caller is told that all is well.
    pub fn remove(&mut self, key: &str) -> Result<Option<PathBuf>> {
        if key.starts_with(KNOWN) {
            return Ok(None);
        }
        let id = self.id(key)?;
        if self.records.values().any(|record| record.below == Below::Record(id)) {
            return Err(Status::failed_precondition(format!("{key} has children")));
        }
        // Without it the folder is garbage, whatever happens next.
        fs::remove_file(self.folder(id).join("meta")).map_err(|e| failed("removing", key, &e))?;
        self.names.remove(key);
        self.records.remove(&id);
        Ok(Some(self.folder(id)))
    }

    /// One snapshot.
    pub fn stat(&self, key: &str) -> Result<Info> {
        if let Some(digest) = known(key) {
            return self.tree.chain(&digest).map(|_| self.known_info(&digest)).ok_or_else(|| missing(key));
        }
        let record = self.record(self.id(key)?)?;
        self.lower(record.below)?;
        Ok(self.info(record))
    }

    /// Every snapshot, or those for the chains that the filters name: containerd checks each again.
    pub fn list(&self, filters: &[String]) -> Vec<Info> {
        let wanted: Option<Vec<Digest>> = filters.iter().map(|filter| wanted_ref(filter)).collect();
        let wanted = wanted.filter(|list| !list.is_empty());
        let chains: Vec<Digest> = match &wanted {
            Some(list) => list.iter().filter(|digest| self.tree.chain(digest).is_some()).copied().collect(),
            None => self.tree.chains().map(|(digest, _)| *digest).collect(),
        };
        let fits = |record: &&Record| wanted.as_ref().is_none_or(|list| list.iter().any(|d| record.labels.get(REF) == Some(&d.to_string())));
        let known = chains.iter().map(|digest| self.known_info(digest));
        known.chain(self.records.values().filter(fits).map(|record| self.info(record))).collect()
    }

    /// Replaces labels: all of them, or one for each `labels.<name>` in `fields`.
    pub fn update(&mut self, info: &Info, fields: &[String]) -> Result<Info> {
        if info.name.starts_with(KNOWN) {
            return self.stat(&info.name);
        }
        let id = self.id(&info.name)?;
        let mut record = self.record(id)?.clone();
        if fields.is_empty() || fields.iter().any(|field| field == "labels") {
            record.labels.clone_from(&info.labels);
        }
        for name in fields.iter().filter_map(|field| field.strip_prefix("labels.")) {
            match info.labels.get(name) {
                Some(value) => record.labels.insert(name.into(), value.clone()),
                None => record.labels.remove(name),
            };
        }
        record.updated = now();
        self.save(id, &record)?;
        let out = self.info(&record);
        self.take(id, record);
        Ok(out)
    }

    /// Bytes on the disk and files: known at once, or the folder to be counted.
    pub fn usage(&self, key: &str) -> Result<std::result::Result<(i64, i64), PathBuf>> {
        if key.starts_with(KNOWN) {
            return Ok(Ok((0, 0)));
        }
        let id = self.id(key)?;
        Ok(self.record(id)?.usage.ok_or_else(|| self.folder(id).join("fs")))
    }

    fn below(&self, parent: &str) -> Result<Below> {
        if parent.is_empty() {
            return Ok(Below::Nothing);
        }
        if let Some(digest) = known(parent) {
            return self.tree.chain(&digest).map(|_| Below::Known(digest)).ok_or_else(|| missing(parent));
        }
        let id = self.id(parent)?;
        match self.record(id)?.kind == Kind::Committed as i32 {
            true => Ok(Below::Record(id)),
            false => Err(Status::failed_precondition(format!("{parent} is not committed"))),
        }
    }

    fn id(&self, key: &str) -> Result<u64> {
        self.names.get(key).copied().ok_or_else(|| missing(key))
    }

    fn record(&self, id: u64) -> Result<&Record> {
        self.records.get(&id).ok_or_else(|| Status::not_found(format!("snapshot {id} is gone")))
    }

    fn known_info(&self, digest: &Digest) -> Info {
        let parent = self.tree.chain(digest).and_then(|chain| chain.parent).map(|parent| format!("{KNOWN}{parent}"));
        Info {
            name: format!("{KNOWN}{digest}"),
            parent: parent.unwrap_or_default(),
            kind: Kind::Committed as i32,
            created_at: Some(time(0)),
            updated_at: Some(time(0)),
            labels: HashMap::from([(REF.to_string(), digest.to_string())]),
        }
    }

    fn info(&self, record: &Record) -> Info {
        let parent = match record.below {
            // containerd collects garbage from the lowest snapshot up: on a chain that left the root, this is the lowest.
            Below::Known(digest) if self.tree.chain(&digest).is_some() => format!("{KNOWN}{digest}"),
            Below::Nothing | Below::Known(_) => String::new(),
            Below::Record(id) => self.records.get(&id).map(|r| r.name.clone()).unwrap_or_default(),
        };
        let (created_at, updated_at) = (Some(time(record.created)), Some(time(record.updated)));
        Info { name: record.name.clone(), parent, kind: record.kind, created_at, updated_at, labels: record.labels.clone() }
    }
}

fn known(key: &str) -> Option<Digest> {
    key.strip_prefix(KNOWN)?.parse().ok()
}

/// The chain in a filter such as `labels."containerd.io/snapshot.ref"==sha256:…,parent=="…"`.
fn wanted_ref(filter: &str) -> Option<Digest> {
    let rest = filter.split_once(REF)?.1.strip_prefix("\"==")?;
    rest.split(',').next()?.trim_matches('"').parse().ok()
}

fn missing(key: &str) -> Status {
    Status::not_found(format!("there is no snapshot {key}"))
}

fn failed(action: &str, name: &str, error: &io::Error) -> Status {
    let text = format!("{action} snapshot {name}: {error}");
    if error.kind() == io::ErrorKind::StorageFull { Status::resource_exhausted(text) } else { Status::internal(text) }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn time(seconds: u64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: seconds as i64, nanos: 0 }
}

/// Puts everything below the folder on the disk.
pub fn flush(key: &str, folder: &Path) -> Result<()> {
    let flush = || rustix::fs::syncfs(File::open(folder)?).map_err(io::Error::from);
    flush().map_err(|e| failed("flushing", key, &e))
}

/// Deletes a folder that no record names; what cannot be deleted now is garbage for the next start.
pub fn delete(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("snapshotter: deleting {}: {error}", folder.display());
    }
}

/// Bytes on the disk and number of files below a folder, itself included; what vanishes meanwhile does not count.
pub fn disk_usage(folder: &Path) -> (i64, i64) {
    let (mut size, mut files, mut open) = (0, 0, vec![folder.to_path_buf()]);
    while let Some(path) = open.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        size += meta.blocks() as i64 * 512;
        files += 1;
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    (size, files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::images::tree::tests::root;
    use tonic::Code;

    struct Bench {
        folder: tempfile::TempDir,
        host: Host,
        store: Store,
    }

    impl Bench {
        fn new(images: &[(&str, &str)]) -> Self {
            let (folder, host) = root(images);
            let store = Self::open(&folder, &host);
            Self { folder, host, store }
        }

        fn open(folder: &tempfile::TempDir, host: &Host) -> Store {
            Store::open(Arc::new(Tree::load(host).unwrap()), &folder.path().join("s")).unwrap()
        }

        fn reopen(&mut self) {
            self.store = Self::open(&self.folder, &self.host);
        }

        fn chain(&self, layer: &str) -> Digest {
            *self.store.tree.chains().find(|(_, chain)| chain.layer == layer).unwrap().0
        }

        fn known(&self, layer: &str) -> String {
            format!("known/{}", self.chain(layer))
        }

        /// Prepares and commits a layer with one file, as an unpacking containerd does.
        fn unpack(&mut self, name: &str, parent: &str, reference: Digest) {
            let labels = HashMap::from([(REF.to_string(), reference.to_string())]);
            self.store.create(Kind::Active, &format!("extract {name}"), parent, labels.clone()).unwrap();
            let content = self.store.content(&format!("extract {name}")).unwrap();
            fs::write(content.join("who"), name).unwrap();
            self.store.commit(name, &format!("extract {name}"), labels, (1, 2)).unwrap();
        }
    }

    fn option(mounts: &[Mount], name: &str) -> String {
        let prefix = format!("{name}=");
        mounts[0].options.iter().find_map(|option| option.strip_prefix(&prefix)).unwrap_or_default().into()
    }

    fn label(digest: Digest) -> HashMap<String, String> {
        HashMap::from([(REF.to_string(), digest.to_string())])
    }

    #[test]
    fn a_chain_of_the_root_is_there_before_it_is_asked_for() {
        let mut b = Bench::new(&[("a.io/x:1", "pq")]);
        let (low, top) = (b.chain("p"), b.chain("q"));
        assert_eq!(b.store.create(Kind::Active, "k1", "", label(low)).unwrap_err().code(), Code::AlreadyExists);
        assert_eq!(b.store.create(Kind::Active, "k2", &b.known("p"), label(top)).unwrap_err().code(), Code::AlreadyExists);
        let listed = b.store.list(&[format!("labels.\"{REF}\"=={top},parent==\"{}\"", b.known("p"))]);
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].name.clone(), listed[0].parent.clone()), (b.known("q"), b.known("p")));
        assert_eq!(b.store.list(&[]).len(), 2);
        assert_eq!(b.store.remove(&b.known("q")).unwrap(), None);
        assert_eq!(b.store.stat(&b.known("q")).unwrap().kind, Kind::Committed as i32);
        assert_eq!(b.store.usage(&b.known("q")).unwrap(), Ok((0, 0)));
        assert_eq!(fs::read_dir(b.folder.path().join("s")).unwrap().count(), 0, "nothing was written");
    }

    #[test]
    fn containers_get_an_overlay_of_the_roots_layers() {
        let mut b = Bench::new(&[("a.io/x:1", "pq")]);
        let layers = b.host.path(layers::seed::LAYERS);
        let mounts = b.store.create(Kind::Active, "c", &b.known("q"), HashMap::new()).unwrap();
        assert_eq!(option(&mounts, "lowerdir"), format!("{0}/q:{0}/p", layers.display()));
        assert!(Path::new(&option(&mounts, "upperdir")).is_dir() && Path::new(&option(&mounts, "workdir")).is_dir());
        assert_eq!(b.store.mounts("c").unwrap(), mounts);
        let view = b.store.create(Kind::View, "v", &b.known("q"), HashMap::new()).unwrap();
        assert_eq!((view[0].kind.as_str(), option(&view, "upperdir").as_str()), ("overlay", ""));
        let one = b.store.create(Kind::View, "w", &b.known("p"), HashMap::new()).unwrap();
        assert_eq!((one[0].kind.as_str(), one[0].options[0].as_str(), one[0].source.ends_with("/p")), ("bind", "ro", true));
        let empty = b.store.create(Kind::Active, "e", "", HashMap::new()).unwrap();
        assert_eq!((empty[0].kind.as_str(), empty[0].options[0].as_str()), ("bind", "rw"));
    }

    #[test]
    fn ordinary_layers_lie_above_the_roots_and_go_in_order() {
        let mut b = Bench::new(&[("a.io/x:1", "p")]);
        let reference = Digest::of(b"outside");
        b.unpack("layer", &b.known("p"), reference);
        let mounts = b.store.create(Kind::Active, "c", "layer", HashMap::new()).unwrap();
        assert_eq!(option(&mounts, "lowerdir").split(':').count(), 2);
        assert_eq!(b.store.remove("layer").unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(b.store.create(Kind::Active, "d", "c", HashMap::new()).unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(b.store.content("layer").unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(b.store.usage("layer").unwrap(), Ok((1, 2)));
        for key in ["c", "layer"] {
            let folder = b.store.remove(key).unwrap().unwrap();
            delete(&folder);
            assert!(!folder.exists());
        }
        assert_eq!(b.store.stat("layer").unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn a_restart_finds_every_record_and_deletes_what_a_crash_left() {
        let mut b = Bench::new(&[("a.io/x:1", "p")]);
        b.unpack("layer", &b.known("p"), Digest::of(b"outside"));
        let mounts = b.store.create(Kind::Active, "c", "layer", label(Digest::of(b"n"))).unwrap();
        let state = b.folder.path().join("s");
        fs::create_dir_all(state.join("77/fs/deep")).unwrap();
        fs::create_dir_all(state.join("78")).unwrap();
        fs::write(state.join("78/meta"), "{\"kind\":2,").unwrap();
        fs::write(state.join("1/meta.new"), "half").unwrap();
        b.reopen();
        assert_eq!(b.store.mounts("c").unwrap(), mounts);
        assert_eq!(b.store.stat("c").unwrap().labels, label(Digest::of(b"n")));
        assert!(!state.join("77").exists() && !state.join("78").exists());
        b.store.create(Kind::Active, "d", "", HashMap::new()).unwrap();
        assert!(state.join("79/meta").exists(), "numbers are not used twice");
    }

    #[test]
    fn a_key_of_a_wiped_containerd_is_set_aside() {
        let mut b = Bench::new(&[]);
        b.unpack("k8s.io/1/x", "", Digest::of(b"old"));
        b.store.create(Kind::Active, "k8s.io/2/c", "k8s.io/1/x", HashMap::new()).unwrap();
        b.unpack("k8s.io/1/x", "", Digest::of(b"new"));
        b.store.create(Kind::Active, "k8s.io/2/c", "k8s.io/1/x", HashMap::new()).unwrap();
        b.reopen();
        assert_eq!(fs::read(b.folder.path().join("s/3/fs/who")).unwrap(), b"k8s.io/1/x");
        let stale: Vec<_> = b.store.list(&[]).into_iter().filter(|info| info.name.starts_with("stale/")).collect();
        assert_eq!(stale.len(), 2);
        assert!(stale.iter().any(|info| info.parent.starts_with("stale/")), "the child still names its parent");
        assert_eq!(b.store.stat("k8s.io/2/c").unwrap().parent, "k8s.io/1/x");
    }

    #[test]
    fn a_chain_that_the_root_gained_serves_on_a_parent_that_was_unpacked_before() {
        let mut b = Bench::new(&[]);
        b.unpack("low", "", Digest::of(b"p"));
        let (_other, host) = root(&[("a.io/x:1", "pq")]);
        b.host = host;
        b.reopen();
        let top = b.chain("q");
        for _ in 0..2 {
            assert_eq!(b.store.create(Kind::Active, "k", "low", label(top)).unwrap_err().code(), Code::AlreadyExists);
        }
        let listed = b.store.list(&[format!("labels.\"{REF}\"=={top}")]);
        let alias = listed.iter().find(|info| info.parent == "low").unwrap();
        assert_eq!(listed.iter().filter(|info| info.parent == "low").count(), 1);
        let mounts = b.store.create(Kind::Active, "c", &alias.name, HashMap::new()).unwrap();
        let lower = option(&mounts, "lowerdir");
        assert!(lower.split(':').next().unwrap().ends_with("/q") && lower.ends_with("/s/1/fs"), "{lower}");
    }

    #[test]
    fn what_stood_on_a_chain_that_left_the_root_is_missing_but_can_be_collected() {
        let mut b = Bench::new(&[("a.io/x:1", "p")]);
        let known = b.known("p");
        b.unpack("layer", &known, Digest::of(b"outside"));
        b.store.create(Kind::Active, "c", "layer", HashMap::new()).unwrap();
        let (_other, host) = root(&[]);
        b.host = host;
        b.reopen();
        for key in [&*known, "layer", "c"] {
            assert_eq!(b.store.stat(key).unwrap_err().code(), Code::NotFound, "{key}");
        }
        assert_eq!(b.store.mounts("c").unwrap_err().code(), Code::NotFound);
        let listed = b.store.list(&[]);
        assert_eq!(listed.iter().find(|info| info.name == "layer").unwrap().parent, "", "containerd must find it from a root");
        assert!(b.store.remove("c").unwrap().is_some() && b.store.remove("layer").unwrap().is_some());
    }

    #[test]
    fn labels_are_replaced_or_changed_one_by_one() {
        let mut b = Bench::new(&[("a.io/x:1", "p")]);
        b.unpack("layer", "", Digest::of(b"x"));
        let info = |labels: &[(&str, &str)]| Info {
            name: "layer".into(),
            labels: labels.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect(),
            ..Info::default()
        };
        b.store.update(&info(&[("a", "1"), ("b", "2")]), &[]).unwrap();
        let out = b.store.update(&info(&[("a", "3")]), &["labels.a".into(), "labels.b".into()]).unwrap();
        assert_eq!(out.labels, info(&[("a", "3")]).labels);
        b.reopen();
        assert_eq!(b.store.stat("layer").unwrap().labels, out.labels);
        let known = Info { name: b.known("p"), ..info(&[("a", "1")]) };
        assert_eq!(b.store.update(&known, &[]).unwrap().labels, label(b.chain("p")));
    }
}
