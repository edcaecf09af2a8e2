//! `chasi-bod verify`: artifacts against SHA256SUMS and the build record.

use std::fs;
use std::path::{Path, PathBuf};

use layers::units::Digest;
use layers::{Context, Error, Result};

use super::output::{self, SUMS};
use crate::inspect;
use crate::record::{self, Artifact, BuildRecord};

/// Checks a folder of artifacts, or one artifact against the record beside it; returns what was found good, a line each. A difference is an input
/// error that names file, partition and offset.
pub fn verify(path: &Path) -> Result<Vec<String>> {
    let whole = path.is_dir();
    let folder = if whole { path.to_path_buf() } else { path.parent().map(Path::to_path_buf).unwrap_or_default() };
    let record = read_record(&folder)?;
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for artifact in record.artifacts.iter().filter(|a| whole || path.file_name().is_some_and(|n| n == a.file.as_str())) {
        match differences(&folder.join(&artifact.file), artifact, &record)? {
            found if found.is_empty() => good.push(format!("{}: all partitions as built", artifact.file)),
            found => bad.extend(found.into_iter().map(|line| format!("{}: {line}", artifact.file))),
        }
    }
    if whole {
        sums(&folder, &record, &mut good, &mut bad)?;
    }
    match (good.is_empty() && bad.is_empty(), bad.is_empty()) {
        (true, _) => Err(Error::input(format!("verifying {}: the build record beside it does not know this file", path.display()))),
        (_, true) => Ok(good),
        (_, false) => Err(Error::input(format!("verifying {}: it is not as built:\n  {}", path.display(), bad.join("\n  ")))),
    }
}

fn read_record(folder: &Path) -> Result<BuildRecord> {
    let path: PathBuf = folder.join(record::FILE);
    let text = fs::read(&path).context(|| format!("reading build record {}", path.display()))?;
    serde_json::from_slice(&text).context(|| format!("reading build record {}", path.display()))
}

fn differences(path: &Path, artifact: &Artifact, record: &BuildRecord) -> Result<Vec<String>> {
    let found = inspect::verify(path, &record.check, artifact.check.as_ref())?;
    Ok(found.iter().map(ToString::to_string).collect())
}

/// Files with a digest in SHA256SUMS; artifacts among them have been compared in more detail already.
fn sums(folder: &Path, record: &BuildRecord, good: &mut Vec<String>, bad: &mut Vec<String>) -> Result<()> {
    let path = folder.join(SUMS);
    let text = fs::read_to_string(&path).context(|| format!("reading {}", path.display()))?;
    for (number, line) in (1..).zip(text.lines()) {
        let parsed = line.split_once("  ").and_then(|(digest, name)| Some((digest.parse::<Digest>().ok()?, name)));
        let Some((expected, name)) = parsed else { return Err(Error::input(format!("{}:{number}: not a line of sha256sum", path.display()))) };
        if record.artifacts.iter().any(|a| a.file == name) {
            continue;
        }
        match output::sha256(&folder.join(name))? {
            found if found == expected => good.push(format!("{name}: {SUMS} agrees")),
            found => bad.push(format!("{name}: {SUMS} says {expected}, the file has {found}")),
        }
    }
    Ok(())
}
