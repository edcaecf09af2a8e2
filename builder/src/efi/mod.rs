//! Programs for UEFI: the fields of PE images that this project reads and writes (Microsoft's PE format, PE32+).

pub mod uki;

use layers::{Error, Result};

/// Where the headers begin: `e_lfanew`.
const HEADERS_AT: usize = 0x3c;
/// Signature and COFF header, in bytes.
const COFF: usize = 24;
/// `Magic` of PE32+.
const PE32_PLUS: u16 = 0x20b;
/// Entry of the certificate table among the data directories.
const CERTIFICATES: usize = 4;
/// Size of a section header, in bytes.
const SECTION: usize = 40;

/// A PE image in memory.
#[derive(Clone, Debug)]
pub struct Pe {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Where the optional header begins.
    optional: usize,
    /// Size of the optional header, in bytes.
    optional_size: usize,
}

impl Pe {
    /// Reads the headers.
    pub fn read(bytes: Vec<u8>) -> Result<Self> {
        let odd = |why: &str| Error::input(format!("reading a UEFI program: {why}"));
        let mut pe = Self { bytes, optional: 0, optional_size: 0 };
        if pe.bytes.get(..2) != Some(b"MZ") {
            return Err(odd("it does not begin with `MZ`"));
        }
        let headers = pe.u32(HEADERS_AT)? as usize;
        if pe.bytes.get(headers..).and_then(|rest| rest.get(..4)) != Some(b"PE\0\0") {
            return Err(odd("it has no PE header"));
        }
        pe.optional = headers + COFF;
        pe.optional_size = pe.u16(headers + 20)? as usize;
        if pe.u16(pe.optional)? != PE32_PLUS {
            return Err(odd("it is not of the kind PE32+"));
        }
        if pe.u32(pe.optional + 108)? as usize <= CERTIFICATES {
            return Err(odd("it has no place for signatures"));
        }
        Ok(pe)
    }

    /// Where the checksum is, which signatures leave out.
    pub fn checksum_at(&self) -> usize {
        self.optional + 64
    }

    /// Where place and size of the certificate table are, which signatures leave out, too.
    pub fn certificates_at(&self) -> usize {
        self.optional + 112 + 8 * CERTIFICATES
    }

    fn sections(&self) -> Result<Vec<Section>> {
        let table = self.optional + self.optional_size;
        let one = |index: usize| {
            let at = table + index * SECTION;
            Ok(Section { name: self.field(at)?, address: self.u32(at + 12)?, size: self.u32(at + 8)?, offset: self.u32(at + 20)? })
        };
        (0..self.u16(self.optional - 18)? as usize).map(one).collect()
    }

    fn u16(&self, at: usize) -> Result<u16> {
        self.field(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32> {
        self.field(at).map(u32::from_le_bytes)
    }

    fn field<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let found = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        found.copied().ok_or_else(|| Error::input("reading a UEFI program: it ends within its headers"))
    }

    /// Writes into a header that [`Self::read`] has found.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A section's place in memory and in the file.
struct Section {
    name: [u8; 8],
    address: u32,
    size: u32,
    offset: u32,
}
