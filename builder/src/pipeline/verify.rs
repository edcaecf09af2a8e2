//! `chasi-bod verify`: artifacts against SHA256SUMS and the build record.

use std::fs;
use std::path::{Path, PathBuf};

use layers::profile::Diagnostic;
use layers::{Context, Error, Fault, Result};

use super::output::{self, SUMS};
use crate::inspect;
use crate::record::{self, Artifact, BuildRecord};

/// What verifying found, by file.
#[derive(Debug, Default)]
struct Report {
    good: Vec<String>,
    bad: Vec<(String, String)>,
}

impl Report {
    fn problem(&mut self, file: &str, what: impl Into<String>) {
        self.bad.push((file.into(), what.into()));
    }
}

/// Checks a folder of artifacts, or one artifact against the record beside it; returns what was found good, a line each. Differences and
/// missing files are one input error that names all of them with partition and offset.
pub fn verify(path: &Path) -> Result<Vec<String>> {
    let whole = path.is_dir();
    let folder = if whole { path.to_path_buf() } else { path.parent().map(Path::to_path_buf).unwrap_or_default() };
    let record = read_record(&folder)?;
    let mut report = Report::default();
    let mut known = record.artifacts.iter().filter(|a| whole || path.file_name().is_some_and(|n| n == a.file.as_str())).peekable();
    if known.peek().is_none() && !whole {
        let all: Vec<_> = record.artifacts.iter().map(|a| a.file.as_str()).collect();
        let hint = format!("it knows {}; name the folder to check everything in it", all.join(", "));
        return Err(Error::input(format!("verifying {}: the build record beside it does not know this file", path.display())).with_hint(hint));
    }
    for artifact in known {
        differences(&folder, artifact, &record, &mut report);
    }
    if whole {
        sums(&folder, &record, &mut report);
    }
    if report.bad.is_empty() {
        return Ok(report.good);
    }
    let lines: String = report.bad.iter().map(|(file, what)| format!("\n  {file}: {what}")).collect();
    let place = |(file, what): (String, String)| {
        let file = folder.join(file).display().to_string();
        Diagnostic { file, line: 0, column: 0, message: what, source: None, hint: None }
    };
    Err(Error::input(format!("verifying {}: it is not as built:{lines}", path.display()))
        .with_hint("build it again, or copy it again from where it was published")
        .with_diagnostics(report.bad.into_iter().map(place).collect()))
}

/// The build record of a result folder.
pub fn read_record(folder: &Path) -> Result<BuildRecord> {
    let path: PathBuf = folder.join(record::FILE);
    let reading = || format!("reading build record {}", path.display());
    let text = fs::read(&path)
        .fault(Fault::Input, reading)
        .map_err(|e| e.with_hint("name a result folder, output/<profile>/<version>/, or an artifact in one"))?;
    serde_json::from_slice(&text).context(reading)
}

fn differences(folder: &Path, artifact: &Artifact, record: &BuildRecord, report: &mut Report) {
    let path = folder.join(&artifact.file);
    if !path.is_file() {
        return report.problem(&artifact.file, "it is missing");
    }
    match inspect::verify(&path, &record.check, artifact.check.as_ref()) {
        Ok(found) if found.is_empty() => report.good.push(format!("{}: all partitions as built", artifact.file)),
        Ok(found) => found.iter().for_each(|finding| report.problem(&artifact.file, finding.to_string())),
        Err(error) => report.problem(&artifact.file, error.to_string()),
    }
}

/// Files with a digest in SHA256SUMS; artifacts among them have been compared in more detail already.
fn sums(folder: &Path, record: &BuildRecord, report: &mut Report) {
    let text = match fs::read_to_string(folder.join(SUMS)) {
        Ok(text) => text,
        Err(error) => return report.problem(SUMS, format!("it cannot be read: {error}")),
    };
    for (number, line) in (1..).zip(text.lines()) {
        let Some((expected, name)) = output::sum_of(line) else {
            report.problem(SUMS, format!("line {number} is not one of sha256sum"));
            continue;
        };
        if record.artifacts.iter().any(|a| a.file == name) {
            continue;
        }
        let path = folder.join(name);
        match path.is_file().then(|| output::sha256(&path)) {
            None => report.problem(name, "it is missing"),
            Some(Err(error)) => report.problem(name, error.to_string()),
            Some(Ok(found)) if found == expected => report.good.push(format!("{name}: {SUMS} agrees")),
            Some(Ok(found)) => report.problem(name, format!("{SUMS} says {expected}, the file has {found}")),
        }
    }
}
