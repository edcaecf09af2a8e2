//! The seek table behind zstd frames (zstd: contrib/seekable_format): where each frame begins and what it unpacks to. `zstd -d` skips the table.
//!
//! ```text
//! frame | … | frame | skippable frame: (packed size, size)… | number of frames | flags | magic
//! ```

use std::ops::Range;

use crate::{Error, Result};

/// First bytes of a frame.
pub const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// A frame of zeros is shorter than this, packed.
pub const TINY: u64 = 1024;
/// First bytes of the skippable frame that has the table.
const SKIPPABLE: u32 = 0x184d_2a5e;
/// Last bytes of a table.
const SEEKABLE: u32 = 0x8f92_eab1;
/// Bytes of the skippable frame's header.
const HEADER: u64 = 8;
/// Bytes that end the table.
const FOOTER: u64 = 9;
/// Bytes of a frame's entry.
const ENTRY: u64 = 8;
/// Most that a frame of a foreign file may unpack to.
const MOST: u64 = 64 << 20;

/// Where frames begin, packed and unpacked, and where the last one ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    places: Vec<(u64, u64)>,
}

impl Default for Table {
    fn default() -> Self {
        Self { places: vec![(0, 0)] }
    }
}

impl Table {
    /// The most space that the table of so many frames takes, in bytes.
    pub fn size(frames: u64) -> u64 {
        frames * ENTRY + HEADER + FOOTER
    }

    /// Appends a frame of `packed` bytes that unpacks to `unpacked` bytes.
    pub fn push(&mut self, packed: u64, unpacked: u64) {
        let (at, from) = self.last();
        self.places.push((at + packed, from + unpacked));
    }

    fn last(&self) -> (u64, u64) {
        self.places.last().copied().unwrap_or_default()
    }

    /// Bytes of all frames.
    pub fn packed_len(&self) -> u64 {
        self.last().0
    }

    /// Bytes that they unpack to.
    pub fn unpacked_len(&self) -> u64 {
        self.last().1
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.places.len() - 1
    }

    /// Where a frame is in the file.
    pub fn packed(&self, frame: usize) -> Range<u64> {
        self.places[frame].0..self.places[frame + 1].0
    }

    /// What a frame unpacks to.
    pub fn unpacked(&self, frame: usize) -> Range<u64> {
        self.places[frame].1..self.places[frame + 1].1
    }

    /// The frame that has a byte of what is unpacked.
    pub fn frame_of(&self, offset: u64) -> usize {
        self.places.partition_point(|(_, begin)| *begin <= offset).saturating_sub(1)
    }

    /// The skippable frame that goes behind the others.
    pub fn to_bytes(&self) -> Vec<u8> {
        let entry = |frame| [self.packed(frame), self.unpacked(frame)].map(|part| ((part.end - part.start) as u32).to_le_bytes()).concat();
        let table: Vec<u8> = (0..self.frames()).flat_map(entry).collect();
        let (count, behind) = (self.frames() as u32, table.len() as u32 + FOOTER as u32);
        [&SKIPPABLE.to_le_bytes()[..], &behind.to_le_bytes(), &table, &count.to_le_bytes(), &[0], &SEEKABLE.to_le_bytes()].concat()
    }

    /// Reads the table of a file of `len` bytes; whatever is odd in it is refused.
    pub fn read(len: u64, mut read: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<Self> {
        let refused = |why: String| Error::input(format!("reading the seek table: {why}"));
        let none = || refused("there is none".into()).with_hint("unpack the file with `zstd -d` and read that");
        let start = len.checked_sub(FOOTER).ok_or_else(none)?;
        let mut footer = [0; FOOTER as usize];
        read(start, &mut footer)?;
        if le32(&footer, 5) != SEEKABLE {
            return Err(none());
        }
        // Bit 7 says that each entry has a checksum, too.
        let entry = match footer[4] {
            0 => ENTRY,
            0x80 => ENTRY + 4,
            other => return Err(refused(format!("flags {other:#x} are not known"))),
        };
        let length = u64::from(le32(&footer, 0)) * entry;
        let begin = start.checked_sub(length + HEADER).ok_or_else(|| refused(format!("{length} bytes do not fit into the file of {len}")))?;
        let mut frame = vec![0; (HEADER + length) as usize];
        read(begin, &mut frame)?;
        if le32(&frame, 0) != SKIPPABLE || u64::from(le32(&frame, 4)) != length + FOOTER {
            return Err(refused("its frame is not one of a table".into()));
        }
        let mut table = Self::default();
        for (number, entry) in frame[HEADER as usize..].chunks_exact(entry as usize).enumerate() {
            let (packed, unpacked) = (u64::from(le32(entry, 0)), u64::from(le32(entry, 4)));
            if unpacked == 0 || unpacked > MOST {
                return Err(refused(format!("frame {number} has {unpacked} bytes, 1 to {MOST} are known")));
            }
            table.push(packed, unpacked);
        }
        if table.packed_len() != begin {
            return Err(refused(format!("its frames do not end where it begins, at {begin}")));
        }
        Ok(table)
    }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Table> {
        Table::read(bytes.len() as u64, |at, buffer| {
            buffer.copy_from_slice(&bytes[at as usize..][..buffer.len()]);
            Ok(())
        })
    }

    proptest! {
        #[test]
        fn a_written_table_is_read_and_finds_each_byte(sizes in proptest::collection::vec((1_u64..500, 1_u64..5000), 0..20)) {
            let mut table = Table::default();
            sizes.iter().for_each(|(packed, unpacked)| table.push(*packed, *unpacked));
            let mut file = vec![7; table.packed_len() as usize];
            file.extend(table.to_bytes());
            prop_assert!(file.len() as u64 == table.packed_len() + Table::size(sizes.len() as u64));
            prop_assert_eq!(read(&file).unwrap(), table.clone());
            for frame in 0..table.frames() {
                let part = table.unpacked(frame);
                prop_assert!(table.frame_of(part.start) == frame && table.frame_of(part.end - 1) == frame);
            }
        }

        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
            if let (true, Some(at)) = (magic, bytes.len().checked_sub(4)) {
                bytes[at..].copy_from_slice(&SEEKABLE.to_le_bytes());
            }
            let _ = read(&bytes);
        }
    }
}
