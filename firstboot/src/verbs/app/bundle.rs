//! A chart that a person has, as a folder or an archive, and values for it.

use std::path::{Path, PathBuf};

use layers::chart::{ChartFiles, Metadata, archive};
use layers::platform::settings::merge;
use layers::{Context as _, Error, Fault, Result};
use serde_json::{Value, json};

use crate::folder::{Links, collect, read};

/// A chart.
pub struct Bundle {
    pub metadata: Metadata,
    /// As helm takes it: the same bytes for the same files.
    pub archive: Vec<u8>,
    files: ChartFiles,
}

impl Bundle {
    pub fn read(path: &Path) -> Result<Self> {
        let reading = || format!("reading chart {}", path.display());
        if path.is_dir() {
            let mut files = ChartFiles::new();
            collect(path, "", Links::Refused, &mut files).context(reading)?;
            let (metadata, archive) = archive::pack(&files).context(reading)?;
            return Ok(Self { metadata, archive, files });
        }
        let archive = read(path)?;
        if archive.len() as u64 > archive::LIMIT {
            return Err(Error::input(format!("{}: {} bytes are more than a chart may have", reading(), archive.len())));
        }
        let (metadata, files) = archive::unpack(&archive).context(reading)?;
        Ok(Self { metadata, archive, files })
    }

    /// `Chart.yaml`, as a registry has it beside the archive.
    pub fn description(&self) -> Result<Value> {
        document("Chart.yaml", self.files.get("Chart.yaml").map(Vec::as_slice).unwrap_or_default())
    }

    /// The values of files, later ones over earlier ones; and each document of values by its file, the chart's own first.
    pub fn values(&self, files: &[PathBuf]) -> Result<(Value, Vec<(String, Value)>)> {
        let (mut out, mut all) = (json!({}), Vec::new());
        if let Some(own) = self.files.get("values.yaml") {
            all.push((format!("values.yaml of chart {}", self.metadata.name), document("values.yaml", own)?));
        }
        for file in files {
            let shown = file.display().to_string();
            let values = document(&shown, &read(file)?)?;
            merge(&mut out, values.clone());
            all.push((shown, values));
        }
        Ok((out, all))
    }
}

/// A document that is a map, or empty.
fn document(file: &str, bytes: &[u8]) -> Result<Value> {
    let text = str::from_utf8(bytes).fault(Fault::Input, || format!("reading {file}"))?;
    let options = serde_saphyr::options! { with_snippet: false, duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
    let found = serde_saphyr::from_str_with_options(text, options).map_err(|e| Error::input(format!("reading {file}: {}", e.without_snippet())))?;
    match found {
        Value::Null => Ok(json!({})),
        Value::Object(_) => Ok(found),
        _ => Err(Error::input(format!("reading {file}: it is no map of values"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_and_archive_are_one_chart_and_later_values_go_over_earlier_ones() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let chart = folder.path().join("web");
        std::fs::create_dir_all(chart.join("templates")).unwrap();
        write("web/Chart.yaml", "name: web\nversion: 1.0.0\n");
        write("web/values.yaml", "a: 1\n");
        write("web/templates/x.yaml", "");
        let bundle = Bundle::read(&chart).unwrap();
        std::fs::write(folder.path().join("web.tgz"), &bundle.archive).unwrap();
        let again = Bundle::read(&folder.path().join("web.tgz")).unwrap();
        assert_eq!((&again.archive, &again.files, &again.metadata), (&bundle.archive, &bundle.files, &bundle.metadata));
        assert_eq!(again.description().unwrap(), json!({"name": "web", "version": "1.0.0"}));
        write("one.yaml", "a: {b: 1, c: 1}\n");
        write("two.yaml", "a: {c: 2}\n");
        write("bad.yaml", "- 1\n");
        let path = |name: &str| folder.path().join(name);
        let (values, files) = again.values(&[path("one.yaml"), path("two.yaml")]).unwrap();
        assert_eq!((values, files.len(), files[0].0.as_str()), (json!({"a": {"b": 1, "c": 2}}), 3, "values.yaml of chart web"));
        assert!(again.values(&[path("bad.yaml")]).unwrap_err().to_string().contains("bad.yaml: it is no map of values"));
        assert_eq!(again.values(&[path("tow.yaml")]).unwrap_err().hint(), Some("did you mean `two.yaml`?"));
    }

    #[test]
    fn what_is_no_chart_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: &Path| Bundle::read(path).err().unwrap().to_string();
        assert!(error(folder.path()).contains("it has no Chart.yaml"));
        assert!(error(&folder.path().join("none.tgz")).contains("none.tgz"));
        std::fs::write(folder.path().join("x.tgz"), "no archive").unwrap();
        assert!(error(&folder.path().join("x.tgz")).contains("x.tgz: reading the archive"));
    }
}
