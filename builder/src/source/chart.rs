//! Charts: a folder is packed by us, the same bytes on every machine; the others are fetched, checked and looked into.

use std::io::Write as _;

use flate2::{Compression, GzBuilder};
use layers::chart::{ChartFiles, LockedChart, Metadata, PlannedChart, metadata};
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};

/// A chart's archive as helm packs it: everything below a folder of the chart's name. Nothing is compressed, so that the root's compression and
/// deltas see the text.
pub fn pack(files: &ChartFiles) -> Result<(Metadata, Vec<u8>)> {
    let chart = metadata(files)?;
    let packing = || format!("packing chart {}", chart.name);
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        tar.append_data(&mut header, format!("{}/{path}", chart.name), bytes.as_slice()).context(packing)?;
    }
    let plain = tar.into_inner().context(packing)?;
    let mut gzip = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::none());
    let archive = gzip.write_all(&plain).and_then(|()| gzip.finish()).context(packing)?;
    Ok((chart, archive))
}

/// What a lock holds of a chart that is a folder.
pub fn lock_folder(planned: &PlannedChart) -> Result<LockedChart> {
    let (chart, archive) = pack(&planned.files)?;
    Ok(LockedChart {
        name: planned.spec.name.clone(),
        request: planned.request(),
        chart: chart.name,
        version: chart.version,
        sha256: Digest::of(&archive),
        size: Bytes(archive.len() as u64),
        from: Vec::new(),
        signed_by: None,
    })
}

/// The archive of a chart that is a folder, which must be the locked one.
pub fn packed(planned: &PlannedChart, locked: &LockedChart) -> Result<Vec<u8>> {
    let (chart, archive) = pack(&planned.files)?;
    let got = Digest::of(&archive);
    if got == locked.sha256 {
        return Ok(archive);
    }
    Err(Error::input(format!("packing chart {}: the lock has {}, but it became {got}", chart.name, locked.sha256)).with_hint("make the lock anew with `chasi-bod lock PROFILE`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_becomes_the_same_archive_below_the_charts_name() {
        let files: ChartFiles =
            [("Chart.yaml", "name: web\nversion: 1.0.0\n"), ("templates/x.yaml", "a: b\n")].map(|(path, text)| (path.to_string(), text.into())).into();
        let (chart, archive) = pack(&files).unwrap();
        assert_eq!((chart.name.as_str(), pack(&files).unwrap().1 == archive), ("web", true));
        let mut read = tar::Archive::new(flate2::read::GzDecoder::new(archive.as_slice()));
        let names: Vec<_> = read.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["web/Chart.yaml", "web/templates/x.yaml"]);
    }
}
