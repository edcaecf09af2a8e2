//! What a killed build leaves on the machine. FAULTS D1.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use builder::assemble::scratch;
use builder::store::Store;
use builder::tree::{Kind, Node, Tree, TreePath};

/// Scratch roots that hold a file of this name.
fn standing(store: &Store, marker: &str) -> Vec<PathBuf> {
    let folders = [store.root().join("tmp"), builder::workspace::memory().to_path_buf()];
    let scratch = folders.iter().flat_map(|f| fs::read_dir(f).into_iter().flatten().flatten());
    scratch.map(|e| e.path()).filter(|p| p.join("root").join(marker).exists()).collect()
}

/// Not a test by itself: the one below sees it die.
#[test]
#[ignore = "run by the test below, killed"]
fn child_dies_with_a_scratch_root() {
    scratch::use_executable(Path::new(env!("CARGO_BIN_EXE_chasi-bod")));
    let var = |name: &str| std::env::var(name).unwrap();
    let (store, marker) = (Store::open(Path::new(&var("CHASI_BOD_TEST_STORE"))).unwrap(), var("CHASI_BOD_TEST_MARKER"));
    let mut tree = Tree::default();
    tree.insert(TreePath::new(&marker).unwrap(), Node::new(Kind::Directory, 0o755, 0));
    // Only inside the namespace can this one be removed, by an ordinary user.
    for path in ["closed", "closed/below"] {
        tree.insert(TreePath::new(path).unwrap(), Node { uid: 33, gid: 33, ..Node::new(Kind::Directory, 0o700, 0) });
    }
    let _root = scratch::Root::materialize(&store, &tree).unwrap();
    assert_eq!(standing(&store, &marker).len(), 1);
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

#[test]
fn d1_the_scratch_root_of_a_killed_build_is_removed_by_the_next() {
    scratch::use_executable(Path::new(env!("CARGO_BIN_EXE_chasi-bod")));
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let marker = dir.path().file_name().unwrap().to_str().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "scratch::child_dies_with_a_scratch_root"]);
    let status = child.env("CHASI_BOD_TEST_STORE", dir.path()).env("CHASI_BOD_TEST_MARKER", marker).output().unwrap().status;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    // Another build of this user may have been quicker; either way it is gone.
    scratch::remove_stale(&store);
    assert_eq!(standing(&store, marker), [] as [PathBuf; 0]);
}
