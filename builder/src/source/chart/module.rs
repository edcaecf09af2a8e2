//! Charts of Go modules: some projects publish the folder of their chart nowhere else without a network's detour. It is packed like a folder of
//! one's own, so the lock's digest is the same on every machine (<https://go.dev/ref/mod#zip-files>).

use std::io::{Cursor, Read as _};

use layers::chart::archive::{self, FILE_LIMIT};
use layers::chart::{ChartFiles, LockedChart, PlannedChart};
use layers::units::Digest;
use layers::{Context, Error, Fault, Result};

use super::locked;
use crate::source::deb::Archive;
use crate::source::go::Proxies;

/// Most bytes of a module (Go's own bound).
const LIMIT: u64 = 500 << 20;
/// How the lock names the place of a chart: `go:MODULE@VERSION//FOLDER`.
pub const SCHEME: &str = "go:";

/// Fetches a module and packs the folder.
pub fn lock(site: &Archive<'_>, planned: &PlannedChart, module: &str, folder: &str) -> Result<LockedChart> {
    let version = planned.spec.version.as_deref().unwrap_or_default();
    let address = format!("{SCHEME}{module}@{version}//{folder}");
    let (chart, bytes) = archive::pack(&files(site, &address)?).context(|| format!("looking into {address}"))?;
    site.store.put_blob(&bytes)?;
    Ok(locked(planned, chart, &bytes, vec![address], None))
}

/// Puts the archive of a locked chart into the store.
pub fn fetch(site: &Archive<'_>, locked: &LockedChart, address: &str) -> Result<()> {
    let (_, bytes) = archive::pack(&files(site, address)?)?;
    let got = Digest::of(&bytes);
    if got != locked.sha256 {
        return Err(Error::input(format!("another chart came: expected {}, got {got}", locked.sha256)));
    }
    site.store.put_blob(&bytes).map(drop)
}

/// The files of a folder of a module.
fn files(site: &Archive<'_>, address: &str) -> Result<ChartFiles> {
    let parts = address.strip_prefix(SCHEME).and_then(|rest| rest.split_once("//")).and_then(|(at, folder)| Some((at.split_once('@')?, folder)));
    let ((module, version), folder) = parts.ok_or_else(|| Error::input(format!("reading {address}: it is no chart of a module")))?;
    for url in Proxies::find()?.urls(module, version, "zip") {
        if let Some(zip) = site.http.get(&url, LIMIT)? {
            return folder_of(&zip, &format!("{module}@{version}"), folder);
        }
    }
    Err(Error::environment(format!("fetching module {module} {version}: no proxy has it")))
}

/// The files below a folder in a module's zip, whose paths all begin with the module and its version.
fn folder_of(zip: &[u8], module: &str, folder: &str) -> Result<ChartFiles> {
    let reading = || format!("reading module {module}");
    let prefix = format!("{module}/{folder}/");
    let mut zip = zip::ZipArchive::new(Cursor::new(zip)).fault(Fault::Input, reading)?;
    let mut out = ChartFiles::new();
    for index in 0..zip.len() {
        let entry = zip.by_index(index).fault(Fault::Input, reading)?;
        let below = |name: &str| name.strip_prefix(&prefix).filter(|path| !path.is_empty() && !path.ends_with('/')).map(str::to_string);
        let Some(path) = below(&entry.name().fault(Fault::Input, reading)?) else { continue };
        if !archive::is_below(&path) {
            return Err(Error::input(format!("{}: {path} leads elsewhere", reading())));
        }
        let mut bytes = Vec::new();
        entry.take(FILE_LIMIT + 1).read_to_end(&mut bytes).fault(Fault::Input, reading)?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(Error::input(format!("{}: {path} has more than {FILE_LIMIT} bytes", reading())));
        }
        out.insert(path, bytes);
    }
    if out.is_empty() { Err(Error::input(format!("{}: it has no folder {folder}", reading()))) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in files {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn the_chart_is_the_folder_and_nothing_beside_it() {
        let module = "a.test/m@v1.0.0";
        let chart = b"name: web\nversion: 1.0.0\n";
        let whole = zip(&[
            ("a.test/m@v1.0.0/go.mod", b"module a.test/m"),
            ("a.test/m@v1.0.0/chart/Chart.yaml", chart),
            ("a.test/m@v1.0.0/chart/templates/x.yaml", b"a: b"),
            ("a.test/m@v1.0.0/charts/other/Chart.yaml", chart),
        ]);
        let files = folder_of(&whole, module, "chart").unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["Chart.yaml", "templates/x.yaml"]);
        assert_eq!(archive::pack(&files).unwrap().0.name, "web");
        for (folder, said) in [("helm", "reading module a.test/m@v1.0.0: it has no folder helm"), ("", "it has no folder")] {
            assert!(folder_of(&whole, module, folder).unwrap_err().to_string().contains(said));
        }
    }

    #[test]
    fn c3_c7_what_leads_elsewhere_or_is_too_large_is_refused() {
        let module = "a.test/m@v1.0.0";
        let large = vec![0; FILE_LIMIT as usize + 1];
        for (path, bytes, said) in
            [("../x", &b""[..], "leads elsewhere"), ("a//x", b"", "leads elsewhere"), ("values.yaml", &large, "more than 5242880")]
        {
            let name = format!("{module}/chart/{path}");
            let error = folder_of(&zip(&[(&name, bytes)]), module, "chart").unwrap_err().to_string();
            assert!(error.contains(path) && error.contains(said), "{error}");
        }
        assert!(folder_of(b"no zip", module, "chart").unwrap_err().to_string().contains("reading module a.test/m@v1.0.0"));
    }
}
