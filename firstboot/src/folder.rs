//! Folders and files that people name, read whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use layers::profile::suggest;
use layers::{Context, Error, Result};

/// Most bytes that one file may have.
const FILE_LIMIT: u64 = 256 << 20;

/// What becomes of symbolic links.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// One counts as the file that it points to, but a linked folder is not entered (it may lead back here).
    Followed,
    /// One is an error: in a chart it may bring what its author never had (C7).
    Refused,
}

/// Regular files below a folder.
pub fn collect(dir: &Path, prefix: &str, links: Links, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let entries = fs::read_dir(dir).fault(layers::Fault::Input, || format!("reading folder {}", dir.display()))?;
    for entry in entries {
        let entry = entry.context(|| format!("reading folder {}", dir.display()))?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| Error::input(format!("file name {} in {} is not UTF-8", name.display(), dir.display())))?;
        let (path, below) = (entry.path(), format!("{prefix}{name}"));
        let kind = entry.file_type().context(|| format!("reading {}", path.display()))?;
        if kind.is_symlink() && links == Links::Refused {
            return Err(
                Error::input(format!("{} is a symbolic link, which a chart must not have", path.display())).with_hint("put the file itself there")
            );
        }
        if kind.is_dir() {
            collect(&path, &format!("{below}/"), links, files)?;
        } else if path.is_file() {
            files.insert(below, read(&path)?);
        }
    }
    Ok(())
}

/// Bytes of a file that a profile or layer names; where there is none, the hint is what its folder has of a like name.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let context = || format!("reading {}", path.display());
    let size = match fs::metadata(path) {
        Ok(found) => found.len(),
        Err(e) => return Err(e).fault(layers::Fault::Input, context).map_err(|e| with_near(e, path)),
    };
    if size > FILE_LIMIT {
        return Err(Error::input(format!("reading {}: {size} bytes are more than such a file may have ({FILE_LIMIT})", path.display())));
    }
    fs::read(path).fault(layers::Fault::Input, context)
}

fn with_near(error: Error, path: &Path) -> Error {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    let wrong = path.file_name().unwrap_or_default().to_string_lossy();
    match suggest(&wrong, names.iter().map(String::as_str)).filter(|hint| hint.ends_with('?')) {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a1_a_missing_file_is_told_with_the_nearest_of_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("motd"), "hello\n").unwrap();
        let error = read(&dir.path().join("modt")).unwrap_err();
        assert_eq!((error.fault(), error.hint()), (layers::Fault::Input, Some("did you mean `motd`?")));
    }

    #[test]
    fn c7_a_link_is_followed_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/x"), "x").unwrap();
        std::os::unix::fs::symlink("a/x", dir.path().join("y")).unwrap();
        let mut files = BTreeMap::new();
        collect(dir.path(), "", Links::Followed, &mut files).unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a/x", "y"]);
        let error = collect(dir.path(), "", Links::Refused, &mut files).unwrap_err().to_string();
        assert!(error.contains("y is a symbolic link"), "{error}");
    }
}
