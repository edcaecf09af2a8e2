//! A chart's archive: packed by us from a folder, or somebody's that is looked into before anything else reads it (faults C3 and C7).

use std::io::{Read, Write as _};

use super::{ChartFiles, Metadata, metadata};
use crate::profile::quote;
use crate::{Context, Error, Fault, Result};
use flate2::{Compression, GzBuilder};

/// Most bytes of an archive.
pub const LIMIT: u64 = 20 << 20;
/// Most bytes that its files may have (helm's own bounds, these two).
const UNPACKED_LIMIT: u64 = 100 << 20;
/// Most bytes of one file.
pub const FILE_LIMIT: u64 = 5 << 20;

/// The archive of a folder as helm packs it: everything below a folder of the chart's name. Nothing is compressed, so that the root's compression
/// and deltas see the text.
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

/// What an archive says of its chart.
pub fn look_into(archive: &[u8]) -> Result<Metadata> {
    unpack(archive).map(|(chart, _)| chart)
}

/// An archive's chart and files; refused unless it is one folder of plain files that is named like the chart.
pub fn unpack(archive: &[u8]) -> Result<(Metadata, ChartFiles)> {
    let broken = || "reading the archive".to_string();
    // A bomb ends at the bound, which is noticed as a file that is cut short.
    let plain = flate2::read::MultiGzDecoder::new(archive).take(UNPACKED_LIMIT);
    let (mut root, mut files) = (None::<String>, ChartFiles::new());
    for entry in tar::Archive::new(plain).entries().fault(Fault::Input, broken)? {
        let mut entry = entry.fault(Fault::Input, broken)?;
        let path = String::from_utf8(entry.path_bytes().into_owned()).fault(Fault::Input, || "reading a file's name".into())?;
        match entry.header().entry_type() {
            tar::EntryType::XGlobalHeader | tar::EntryType::Directory => continue,
            tar::EntryType::Regular | tar::EntryType::Continuous => {}
            _ => return Err(Error::input(format!("{} is no plain file: a chart has neither links nor devices", quote(&path)))),
        }
        let (top, below) = parts(&path)?;
        if root.get_or_insert_with(|| top.to_string()).as_str() != top {
            return Err(Error::input(format!("it has several roots, {} and {}", quote(root.as_deref().unwrap_or_default()), quote(top))));
        }
        if entry.size() > FILE_LIMIT {
            return Err(Error::input(format!("{} has {} bytes, more than {FILE_LIMIT}", quote(&path), entry.size())));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).fault(Fault::Input, || format!("reading {}", quote(&path)))?;
        if bytes.len() as u64 != entry.size() {
            return Err(Error::input(format!("{} is cut short, or the archive unpacks to more than {UNPACKED_LIMIT} bytes", quote(&path))));
        }
        if files.insert(below.to_string(), bytes).is_some() {
            return Err(Error::input(format!("{} is there twice", quote(&path))));
        }
    }
    let chart = metadata(&files)?;
    match root {
        Some(root) if root == chart.name => Ok((chart, files)),
        root => Err(Error::input(format!("its folder is named {}, its chart {}", quote(&root.unwrap_or_default()), quote(&chart.name)))),
    }
}

/// The root folder and the path below it; a path that leads elsewhere is refused.
fn parts(path: &str) -> Result<(&str, &str)> {
    let refused = || Error::input(format!("{} is not a path below the chart's folder", quote(path)));
    let plain = path.strip_prefix("./").unwrap_or(path);
    if !is_below(plain) {
        return Err(refused());
    }
    plain.split_once('/').ok_or_else(refused)
}

/// Whether a path leads nowhere but below its folder.
pub fn is_below(path: &str) -> bool {
    !path.contains(['\\', '\0', ':']) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHART: &str = "name: web\nversion: 1.0.0\n";

    #[test]
    fn a_folder_becomes_the_same_archive_below_the_charts_name() {
        let files: ChartFiles = [("Chart.yaml", CHART), ("templates/x.yaml", "a: b\n")].map(|(path, text)| (path.to_string(), text.into())).into();
        let (chart, archive) = pack(&files).unwrap();
        assert_eq!((chart.name.as_str(), pack(&files).unwrap().1 == archive), ("web", true));
        assert_eq!(look_into(&archive).unwrap(), chart);
        let mut read = tar::Archive::new(flate2::read::GzDecoder::new(archive.as_slice()));
        let names: Vec<_> = read.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["web/Chart.yaml", "web/templates/x.yaml"]);
    }

    /// Path, type and bytes of an entry.
    type Made<'a> = (&'a str, tar::EntryType, &'a [u8]);

    /// An archive of hand-made entries; paths that no writer would take go into the header as they are.
    fn hostile(entries: &[Made<'_>]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, kind, bytes) in entries {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            if *kind == tar::EntryType::Symlink {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            tar.append(&header, *bytes).unwrap();
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar.into_inner().unwrap()).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn c7_archives_that_lead_elsewhere_are_refused() {
        use tar::EntryType::{Link, Regular, Symlink};
        let good = ("web/Chart.yaml", Regular, CHART.as_bytes());
        let table: &[(&[Made<'_>], &str)] = &[
            (&[good, ("other/values.yaml", Regular, b"")], "several roots, `web` and `other`"),
            (&[good, ("web/Chart.lock", Symlink, b"")], "`web/Chart.lock` is no plain file"),
            (&[good, ("web/x", Link, b"")], "no plain file"),
            (&[good, ("web/../../x", Regular, b"")], "not a path below"),
            (&[good, ("/etc/x", Regular, b"")], "not a path below"),
            (&[good, ("web\\..\\x", Regular, b"")], "not a path below"),
            (&[good, ("Chart.yaml", Regular, b"")], "not a path below"),
            (&[good, good], "there twice"),
            (&[("../Chart.yaml", Regular, b"name: '..'\nversion: 1.0.0\n")], "not a path below"),
            (&[("web/Chart.yaml", Regular, b"name: '..'\nversion: 1.0.0\n")], "is not the name of a chart"),
            (&[("shop/Chart.yaml", Regular, CHART.as_bytes())], "its folder is named `shop`, its chart `web`"),
            (&[("web/values.yaml", Regular, b"")], "no Chart.yaml"),
        ];
        for (entries, says) in table {
            let error = look_into(&hostile(entries)).unwrap_err();
            assert!(error.to_string().contains(says) && error.fault() == Fault::Input, "{says}: {error}");
        }
        assert!(look_into(b"no archive").unwrap_err().to_string().contains("reading the archive"));
    }

    #[test]
    fn c3_a_bomb_ends_at_the_bound() {
        let zeros = vec![0; 6 << 20];
        let error = look_into(&hostile(&[("web/values.yaml", tar::EntryType::Regular, &zeros)])).unwrap_err().to_string();
        assert!(error.contains("more than 5242880"), "{error}");
        let mut many = vec![("web/Chart.yaml".to_string(), CHART.as_bytes())];
        many.extend((0..26).map(|n| (format!("web/files/{n}"), &zeros[..4 << 20])));
        let many: Vec<_> = many.iter().map(|(path, bytes)| (path.as_str(), tar::EntryType::Regular, *bytes)).collect();
        let error = look_into(&hostile(&many)).unwrap_err().to_string();
        assert!(error.contains("web/files/2"), "{error}");
    }
}
