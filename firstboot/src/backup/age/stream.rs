//! What follows the header: chunks of 64 KiB, each enciphered and authenticated with its number, the last one as such (STREAM; Hoang, Reyhanitabar,
//! Rogaway, Vizár, 2015).

use std::io::{self, Read, Write};

use chacha20poly1305::aead::AeadInPlace as _;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _, Nonce};
use layers::{Context as _, Error, Fault, Result};

use super::header::derive;

const CHUNK: usize = 64 << 10;
const TAG: usize = 16;

struct Cipher {
    cipher: ChaCha20Poly1305,
    number: u64,
}

impl Cipher {
    fn new(key: &[u8; 16], nonce: &[u8; 16]) -> Self {
        Self { cipher: ChaCha20Poly1305::new(&derive(key, nonce, b"payload").into()), number: 0 }
    }

    /// Eleven bytes of number, most significant first, and whether it is the last one.
    fn nonce(&mut self, is_last: bool) -> Nonce {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.number.to_be_bytes());
        nonce[11] = u8::from(is_last);
        self.number += 1;
        nonce.into()
    }
}

/// A file that is being written.
pub struct Sealed<W> {
    to: W,
    cipher: Cipher,
    held: Vec<u8>,
}

impl<W: Write> Sealed<W> {
    pub(super) fn begin(mut to: W, header: &str, key: &[u8; 16], nonce: &[u8; 16]) -> Result<Self> {
        let begun = to.write_all(header.as_bytes()).and_then(|()| to.write_all(nonce));
        begun.fault(Fault::Environment, || "writing the header".into())?;
        Ok(Self { to, cipher: Cipher::new(key, nonce), held: Vec::with_capacity(CHUNK + TAG) })
    }

    fn put(&mut self, is_last: bool) -> io::Result<()> {
        let nonce = self.cipher.nonce(is_last);
        self.cipher.cipher.encrypt_in_place(&nonce, b"", &mut self.held).map_err(|_| io::Error::other("enciphering failed"))?;
        self.to.write_all(&self.held)?;
        self.held.clear();
        Ok(())
    }

    /// Writes the last chunk, without which the file is not whole.
    pub fn finish(mut self) -> io::Result<W> {
        self.put(true)?;
        Ok(self.to)
    }
}

impl<W: Write> Write for Sealed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Only when there is more: the last chunk may be a full one.
        if self.held.len() == CHUNK && !bytes.is_empty() {
            self.put(false)?;
        }
        let taken = bytes.len().min(CHUNK - self.held.len());
        self.held.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A file that is being read. Every byte that it gives is authenticated; its end is only then one when the last chunk was there.
pub struct Opened<R> {
    from: R,
    cipher: Cipher,
    /// What is read ahead: a chunk is the last one when nothing follows.
    ahead: Vec<u8>,
    plain: Vec<u8>,
    given: usize,
    through: bool,
}

impl<R: Read> Opened<R> {
    pub(super) fn begin(mut from: R, key: &[u8; 16]) -> Result<Self> {
        let mut nonce = [0; 16];
        from.read_exact(&mut nonce).map_err(|_| Error::input("it is cut off after its header"))?;
        Ok(Self { from, cipher: Cipher::new(key, &nonce), ahead: Vec::new(), plain: Vec::new(), given: 0, through: false })
    }

    fn fill(&mut self) -> io::Result<()> {
        let wanted = CHUNK + TAG + 1;
        let missing = u64::try_from(wanted - self.ahead.len()).unwrap_or(0);
        self.from.by_ref().take(missing).read_to_end(&mut self.ahead)?;
        let is_last = self.ahead.len() < wanted;
        let rest = if is_last { Vec::new() } else { self.ahead.split_off(CHUNK + TAG) };
        let mut chunk = std::mem::replace(&mut self.ahead, rest);
        let is_first = self.cipher.number == 0;
        let nonce = self.cipher.nonce(is_last);
        let opened = self.cipher.cipher.decrypt_in_place(&nonce, b"", &mut chunk);
        // An empty chunk is the whole of an empty file.
        if opened.is_err() || chunk.is_empty() && !is_first {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged, or cut off"));
        }
        (self.plain, self.given, self.through) = (chunk, 0, is_last);
        Ok(())
    }
}

impl<R: Read> Read for Opened<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.given == self.plain.len() && !self.through {
            self.fill()?;
        }
        let count = into.len().min(self.plain.len() - self.given);
        into[..count].copy_from_slice(&self.plain[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}
