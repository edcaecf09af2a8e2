//! Kernel modules are kept uncompressed: the root is never compressed, so that versions differ by little and transport compresses all.

use std::collections::BTreeSet;
use std::io::{self, Read};

use layers::{Context, Error, Result};
use rayon::prelude::*;

use crate::assemble::editor::{Editor, known, remove};
use crate::tree::{Node, TreePath};

/// Most bytes that one module may have uncompressed.
const LIMIT: u64 = 256 << 20;

/// Modules held in memory at once.
const BATCH: usize = 64;

/// Replaces every `.ko.xz`, `.ko.zst` and `.ko.gz` below /usr/lib/modules by its content; returns how many there were.
pub fn decompress_modules(editor: &mut Editor<'_, '_>) -> Result<usize> {
    let dir = known("usr/lib/modules")?;
    let all = editor.tree.below(&dir).filter_map(|(path, node)| Some((path.clone(), plain_name(path)?, node.clone())));
    let all: Vec<(TreePath, TreePath, Node)> = all.collect();
    for batch in all.chunks(BATCH) {
        let shared = &*editor;
        let plain: Vec<_> = batch.par_iter().map(|(path, _, _)| decompressed(shared, path)).collect::<Result<_>>()?;
        for ((_, plain_path, node), bytes) in batch.iter().zip(plain) {
            editor.put(plain_path.clone(), &bytes, node.mode, (node.uid, node.gid))?;
            if let Some(new) = editor.tree.entries.get_mut(plain_path) {
                new.mtime = node.mtime;
            }
        }
    }
    let old: BTreeSet<_> = all.iter().map(|(path, _, _)| path.clone()).collect();
    remove(editor.tree, &old);
    Ok(all.len())
}

fn plain_name(path: &TreePath) -> Option<TreePath> {
    let bytes = path.as_bytes();
    let plain = [".xz", ".zst", ".gz"].iter().find_map(|suffix| bytes.strip_suffix(suffix.as_bytes()))?;
    plain.ends_with(b".ko").then(|| TreePath::new(plain).ok()).flatten()
}

fn decompressed(editor: &Editor<'_, '_>, path: &TreePath) -> Result<Vec<u8>> {
    let context = || format!("decompressing kernel module {path}");
    let bytes = editor.read(path)?.ok_or_else(|| Error::input(format!("kernel module {path} is not a file")))?;
    let mut out = Vec::with_capacity(bytes.len() * 4);
    decoder(path, &bytes).and_then(|d| d.take(LIMIT + 1).read_to_end(&mut out)).fault(layers::Fault::Input, context)?;
    if out.len() as u64 > LIMIT {
        return Err(Error::input(format!("kernel module {path} has more than {LIMIT} bytes")));
    }
    Ok(out)
}

fn decoder<'a>(path: &TreePath, bytes: &'a [u8]) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match path.as_bytes().rsplit(|b| *b == b'.').next() {
        Some(b"xz") => Box::new(liblzma::read::XzDecoder::new(bytes)),
        Some(b"zst") => Box::new(zstd::Decoder::new(bytes)?),
        _ => Box::new(flate2::read::GzDecoder::new(bytes)),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::assemble::editor::testing::Bench;

    #[test]
    fn modules_of_every_compression_become_plain() {
        let mut bench = Bench::new(&[("usr/lib/modules/6/modules.order", "x"), ("usr/lib/modules/6/d.ko", "plain")]);
        let text = b"\x7fELF module".repeat(1000);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&text).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&text).unwrap();
        let files = [("a.ko.xz", xz.finish().unwrap()), ("b.ko.zst", zstd::encode_all(&text[..], 1).unwrap()), ("c.ko.gz", gz.finish().unwrap())];
        for (name, bytes) in &files {
            bench.edit(|e| e.put(known(&format!("usr/lib/modules/6/{name}"))?, bytes, 0o640, (0, 7))).unwrap();
        }
        assert_eq!(bench.edit(decompress_modules).unwrap(), 3);
        for name in ["a.ko", "b.ko", "c.ko"] {
            assert_eq!(bench.text(&format!("usr/lib/modules/6/{name}")).as_bytes(), text, "{name}");
        }
        let dir = known("usr/lib/modules").unwrap();
        assert_eq!(bench.tree.below(&dir).filter(|(_, n)| !n.is_dir()).count(), 5);
        assert_eq!(bench.tree.at("usr/lib/modules/6/a.ko").unwrap().gid, 7);
    }

    #[test]
    fn a_damaged_module_is_named() {
        let mut bench = Bench::new(&[("usr/lib/modules/6/a.ko.xz", "not xz")]);
        let error = bench.edit(decompress_modules).unwrap_err().to_string();
        assert!(error.contains("/usr/lib/modules/6/a.ko.xz"), "{error}");
    }
}
