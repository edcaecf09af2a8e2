//! The outer format of a Debian package: an `ar` archive of `debian-binary`, `control.tar*` and `data.tar*` in this order (deb(5)).
//! Read strictly: what dpkg-deb would tolerate by accident is refused by name, and memory stays bounded whatever the sizes claim.

use std::io::{self, Read, Seek, SeekFrom};

use layers::{Context, Error, Result};

/// Most memory an xz decoder may ask for; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 128 << 20;
/// Largest zstd window, as a power of two; what `zstd --ultra -22` uses.
const ZSTD_WINDOW: u32 = 27;
/// Most bytes a control member may unpack to.
const CONTROL_LIMIT: u64 = 64 << 20;

/// How a member is compressed, from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Xz,
    Zstd,
}

/// One `ar` member's place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    offset: u64,
    size: u64,
    compression: Compression,
}

/// An opened package: where its two archives lie.
#[derive(Debug)]
pub struct Deb<R> {
    file: R,
    size: u64,
    control: Part,
    data: Part,
}

impl<R: Read + Seek> Deb<R> {
    /// Reads the members' headers; names what is wrong with them.
    pub fn open(mut file: R) -> Result<Self> {
        let size = file.seek(SeekFrom::End(0)).context(|| "reading ar archive".into())?;
        let mut at = magic(&mut file)?;
        let (mut version, mut control, mut data) = (false, None, None);
        while at < size {
            let (name, start, length) = header(&mut file, at, size)?;
            at = padded(&mut file, start, length, size)?;
            let slot = match &*name {
                "debian-binary" if version => return Err(Error::input("ar member `debian-binary` comes twice")),
                "debian-binary" => {
                    check_version(&mut file, start, length)?;
                    version = true;
                    continue;
                }
                _ if !version => return Err(Error::input(format!("ar member `{name}` comes before `debian-binary`"))),
                n if n.starts_with('_') => continue,
                n if n.starts_with("control.tar") => &mut control,
                n if n.starts_with("data.tar") && control.is_some() => &mut data,
                n if n.starts_with("data.tar") => return Err(Error::input(format!("ar member `{n}` comes before `control.tar`"))),
                n => return Err(Error::input(format!("ar member `{n}` is unknown"))),
            };
            if slot.is_some() {
                return Err(Error::input(format!("ar member `{name}` comes twice")));
            }
            *slot = Some(Part { offset: start, size: length, compression: compression(&name)? });
        }
        match (control, data) {
            (Some(control), Some(data)) => Ok(Self { file, size, control, data }),
            (None, _) => Err(Error::input("ar member `control.tar` is missing")),
            (_, None) => Err(Error::input("ar member `data.tar` is missing")),
        }
    }

    /// The unpacked bytes of `control.tar`, ending with an error after 64 MiB.
    pub fn control(&mut self) -> Result<Box<dyn Read + '_>> {
        self.part(self.control, CONTROL_LIMIT)
    }

    /// The unpacked bytes of `data.tar`, ending with an error where they exceed 64 times the package and 1 GiB.
    pub fn data(&mut self) -> Result<Box<dyn Read + '_>> {
        self.part(self.data, (1 << 30) + 64 * self.size)
    }

    fn part(&mut self, part: Part, limit: u64) -> Result<Box<dyn Read + '_>> {
        self.file.seek(SeekFrom::Start(part.offset)).context(|| "reading ar archive".into())?;
        let raw = io::BufReader::with_capacity(1 << 17, (&mut self.file).take(part.size));
        Ok(Box::new(Limited { inner: decoder(raw, part.compression)?, left: limit }))
    }
}

/// The unpacked bytes of a stream, with bounded memory whatever its headers ask for.
pub(crate) fn decoder<'a>(raw: impl io::BufRead + 'a, compression: Compression) -> Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(raw),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0).context(|| "starting xz decoder".into())?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(raw, stream))
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(raw).context(|| "starting zstd decoder".into())?;
            decoder.window_log_max(ZSTD_WINDOW).context(|| "starting zstd decoder".into())?;
            Box::new(decoder)
        }
    })
}

/// Fails, instead of ending, when more than the allowed bytes come out.
pub(crate) struct Limited<R> {
    /// The unpacked bytes.
    pub inner: R,
    /// How many more may come.
    pub left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other("unpacks to more bytes than a package of this size may"))?;
        Ok(n)
    }
}

fn magic(file: &mut (impl Read + Seek)) -> Result<u64> {
    let mut magic = [0; 8];
    file.seek(SeekFrom::Start(0)).context(|| "reading ar archive".into())?;
    file.read_exact(&mut magic).map_err(|_| Error::input("ar archive ends inside its magic"))?;
    if &magic != b"!<arch>\n" {
        return Err(Error::input("ar magic `!<arch>` is missing"));
    }
    Ok(8)
}

/// Name, first byte and length of the member whose header begins at `at`.
fn header(file: &mut (impl Read + Seek), at: u64, end: u64) -> Result<(String, u64, u64)> {
    let mut raw = [0; 60];
    file.seek(SeekFrom::Start(at)).context(|| "reading ar archive".into())?;
    file.read_exact(&mut raw).map_err(|_| Error::input(format!("ar header at byte {at} is cut short")))?;
    if &raw[58..] != b"`\n" {
        return Err(Error::input(format!("ar header at byte {at} has no end mark")));
    }
    let name = std::str::from_utf8(&raw[..16]).map_err(|_| Error::input(format!("ar header at byte {at} has a name that is not text")))?;
    let name = name.trim_end_matches(' ');
    let name = name.strip_suffix('/').unwrap_or(name).to_string();
    let size = number(&raw[48..58]).ok_or_else(|| Error::input(format!("ar member `{}` has a size that is not a number", name.escape_debug())))?;
    if size > end - at - 60 {
        return Err(Error::input(format!("ar member `{}` claims {size} bytes, more than the file has", name.escape_debug())));
    }
    Ok((name, at + 60, size))
}

/// Decimal digits followed by nothing but spaces.
fn number(field: &[u8]) -> Option<u64> {
    let digits = field.iter().position(|b| *b == b' ').unwrap_or(field.len());
    let (digits, rest) = field.split_at(digits);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) || rest.iter().any(|b| *b != b' ') {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Where the next header begins; an odd member is followed by a newline.
fn padded(file: &mut (impl Read + Seek), start: u64, length: u64, end: u64) -> Result<u64> {
    let next = start + length;
    if length.is_multiple_of(2) || next == end {
        return Ok(next);
    }
    let mut pad = [0; 1];
    file.seek(SeekFrom::Start(next)).and_then(|_| file.read_exact(&mut pad)).context(|| "reading ar archive".into())?;
    if pad != *b"\n" {
        return Err(Error::input(format!("ar padding at byte {next} is not a newline")));
    }
    Ok(next + 1)
}

fn check_version(file: &mut (impl Read + Seek), start: u64, length: u64) -> Result<()> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(start)).context(|| "reading ar archive".into())?;
    file.take(length.min(64)).read_to_end(&mut text).context(|| "reading ar archive".into())?;
    if text.starts_with(b"2.") && text.ends_with(b"\n") && length <= 64 {
        return Ok(());
    }
    Err(Error::input(format!("`debian-binary` says `{}`, not version 2", String::from_utf8_lossy(&text).trim_end().escape_debug())))
}

fn compression(name: &str) -> Result<Compression> {
    match name.split_once(".tar").map(|(_, rest)| rest) {
        Some("") => Ok(Compression::None),
        Some(".gz") => Ok(Compression::Gzip),
        Some(".xz") => Ok(Compression::Xz),
        Some(".zst") => Ok(Compression::Zstd),
        _ => Err(Error::input(format!("ar member `{name}` has an unknown compression"))),
    }
}

/// What the fuzz target `ar` runs, and the tests over its corpus.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Ok(mut deb) = Deb::open(io::Cursor::new(bytes)) else { return };
    let drain = |reader: Result<Box<dyn Read + '_>>| reader.is_ok_and(|r| io::copy(&mut r.take(1 << 24), &mut io::sink()).is_ok());
    drain(deb.control());
    drain(deb.data());
}
