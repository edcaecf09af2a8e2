//! What layers are made of: a program with its names, or Debian packages without their scripts, distroless style.

use layers::lock::Package;
use layers::{Error, Result};

use super::recipe::LayerContent;
use crate::assemble::editor::{Editor, known};
use crate::assemble::glob;
use crate::assemble::merge;
use crate::assemble::unpack::Unpacked;
use crate::store::{PackWriter, Store};
use crate::tree::{Content, Kind, Node, Tree, TreePath};

/// What containers never read. Copyright files stay, because the licences ask for it.
const LEFT_OUT: [&str; 5] = ["/usr/share/man/**", "/usr/share/info/**", "/usr/share/locale/**", "/usr/share/lintian/**", "/usr/share/bug/**"];

/// Directories of the merged /usr.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

const PASSWD: &str = "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n\
                      nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnobody:x:65534:\ntty:x:5:\nstaff:x:50:\nnonroot:x:65532:\n";

/// A program at a path, mode 0755, and further names that are symbolic links to it.
pub fn program(comment: &str, content: Content, path: &str, names: &[&str]) -> Result<LayerContent> {
    let mut tree = Tree::default();
    tree.insert(known(path)?, Node::new(Kind::File(content), 0o755, 0));
    for name in names {
        let target = format!("/{}", path.trim_start_matches('/')).into_bytes();
        tree.insert(known(name)?, Node::new(Kind::Symlink(target), 0o777, 0));
    }
    Ok(LayerContent { comment: comment.to_string(), tree })
}

/// The files of Debian packages as a root directory: merged /usr, accounts root, nobody (65534) and nonroot (65532), /tmp, the bundle of the CA
/// certificates that are in it, and dpkg records where scanners look for them. New contents go to `pack`, which the caller finishes.
pub fn packages(packages: &[(Package, Unpacked)], store: &Store, pack: &mut PackWriter<'_>) -> Result<LayerContent> {
    let mut tree = merged(packages)?;
    let names: Vec<_> = packages.iter().map(|(p, _)| format!("{} {}", p.name, p.version)).collect();
    let mut editor = Editor::new(&mut tree, store, pack, 0);
    for (package, unpacked) in packages {
        let text = unpacked.control.text();
        editor.put_text(&format!("var/lib/dpkg/status.d/{}", package.name), &format!("{}\nStatus: install ok installed\n", text.trim_end()))?;
        editor.put_text(&format!("var/lib/dpkg/status.d/{}.md5sums", package.name), &unpacked.control.file("md5sums"))?;
    }
    for (path, text) in [("etc/passwd", PASSWD), ("etc/group", GROUP), ("etc/nsswitch.conf", "hosts: files dns\n")] {
        editor.put_text(path, text)?;
    }
    for (dir, mode) in [("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700), ("home", 0o755), ("run", 0o755)] {
        editor.directory(dir, mode)?;
    }
    editor.directory("home/nonroot", 0o700)?;
    if let Some(node) = editor.tree.entries.get_mut(&known("home/nonroot")?) {
        (node.uid, node.gid) = (65532, 65532);
    }
    bundle(&mut editor)?;
    Ok(LayerContent { comment: format!("Debian packages {}", names.join(", ")), tree })
}

/// The packages' files, configuration files at their places, documentation left out.
fn merged(packages: &[(Package, Unpacked)]) -> Result<Tree> {
    let mut all = packages.to_vec();
    if let (None, Some((package, _))) = (packages.iter().find(|(p, _)| p.name == "base-files"), packages.first()) {
        let mut links = Tree::default();
        for name in MERGED {
            let target = format!("usr/{name}");
            links.insert(known(name)?, Node::new(Kind::Symlink(target.clone().into_bytes()), 0o777, 0));
            links.insert(known(&target)?, Node::new(Kind::Directory, 0o755, 0));
        }
        links.insert(known("usr")?, Node::new(Kind::Directory, 0o755, 0));
        let control = crate::assemble::unpack::Control::default();
        all.push((Package { name: "base-files".into(), ..package.clone() }, Unpacked { tree: links, control }));
    }
    let mut out = Tree::default();
    for (path, node) in merge::merge(&all)?.tree.entries {
        let doc = glob::fits("/usr/share/doc/**", &path) && path.name() != b"copyright" && !node.is_dir();
        if doc || LEFT_OUT.iter().any(|pattern| glob::fits(pattern, &path)) {
            continue;
        }
        let place = path.as_bytes().strip_suffix(b".dpkg-new").map_or(Ok(path.clone()), TreePath::new).map_err(Error::internal)?;
        out.insert(place, node);
    }
    // A hard link may have lost the file that it names.
    let lost: Vec<_> =
        out.entries.iter().filter(|(_, n)| matches!(&n.kind, Kind::HardLink(t) if out.get(t).is_none())).map(|(p, _)| p.clone()).collect();
    match lost.first() {
        None => Ok(out),
        Some(path) => Err(Error::input(format!("{path} is a hard link to a file that containers do not get"))),
    }
}

/// One file of all certificates, in order of their names, as update-ca-certificates(8) makes it.
fn bundle(editor: &mut Editor<'_, '_>) -> Result<()> {
    let dir = known("usr/share/ca-certificates")?;
    let paths: Vec<_> = editor.tree.below(&dir).filter(|(p, _)| p.as_bytes().ends_with(b".crt")).map(|(p, _)| p.clone()).collect();
    let mut text = Vec::new();
    for path in &paths {
        let bytes = editor.read(path)?.unwrap_or_default();
        text.extend_from_slice(bytes.trim_ascii_end());
        text.push(b'\n');
    }
    if paths.is_empty() { Ok(()) } else { editor.put(known("etc/ssl/certs/ca-certificates.crt")?, &text, 0o644, (0, 0)) }
}
