//! The boot state: which slot GRUB starts, in two GRUB environment blocks on the ESP (format: GRUB manual, "environment block").
//!
//! A block is 1024 bytes; all our variables lie within its first 512, the unit that a disk writes whole. The sequence number stands
//! first (`seq`) and last (`end`): a block whose two differ was torn and does not count. Of two whole blocks the newer wins. GRUB only
//! ever lowers `tries` in the winning block. A writer replaces the losing block, flushes, then the other one: at no instant is
//! the newest whole block missing.

use crate::node::Slot;

/// Size of one block in bytes.
pub const BLOCK: usize = 1024;

/// Paths of the two blocks on the ESP.
pub const PATHS: [&str; 2] = ["chasi/state-0", "chasi/state-1"];

/// The most tries a trial can be given: GRUB counts them down with one digit.
pub const MAX_TRIES: u8 = 9;

const HEADER: &str = "# GRUB Environment Block\n";

/// GRUB for BIOS compares signed 32-bit numbers.
const MAX_SEQUENCE: u32 = i32::MAX as u32 - 2;

/// What GRUB is told to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootState {
    /// Grows by one with each block that is written.
    pub sequence: u32,
    /// The slot that is known to be good.
    pub good: Slot,
    /// A slot on trial; it is started instead of the good one while `tries` is not 0.
    pub trial: Option<Slot>,
    /// How often the slot on trial may still be started, at most [`MAX_TRIES`].
    pub tries: u8,
}

/// One of the two blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// `chasi/state-0`.
    Zero,
    /// `chasi/state-1`.
    One,
}

impl Block {
    /// The other block.
    pub fn other(self) -> Self {
        match self {
            Self::Zero => Self::One,
            Self::One => Self::Zero,
        }
    }

    /// Path on the ESP.
    pub fn path(self) -> &'static str {
        match self {
            Self::Zero => PATHS[0],
            Self::One => PATHS[1],
        }
    }
}

impl BootState {
    /// The state of a new image: `good` is started, nothing is on trial.
    pub fn new(good: Slot) -> Self {
        Self { sequence: 1, good, trial: None, tries: 0 }
    }

    /// The bytes of a block with this state.
    pub fn encode(&self) -> [u8; BLOCK] {
        let trial = self.trial.map_or(String::new(), |slot| slot.letter().to_string());
        let (sequence, good, tries) = (self.sequence, self.good.letter(), self.tries.min(MAX_TRIES));
        let text = format!("{HEADER}seq={sequence}\ngood={good}\ntrial={trial}\ntries={tries}\nend={sequence}\n");
        let mut out = [b'#'; BLOCK];
        out[..text.len()].copy_from_slice(text.as_bytes());
        out
    }

    /// Reads a block; `None` when it is torn or was never one.
    pub fn decode(block: &[u8]) -> Option<Self> {
        let text = block.get(..BLOCK)?.strip_prefix(HEADER.as_bytes())?;
        let text = std::str::from_utf8(&text[..512 - HEADER.len()]).ok()?;
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let sequence = value("seq")?.parse::<u32>().ok().filter(|n| *n <= MAX_SEQUENCE + 2)?;
        if value("end")?.parse() != Ok(sequence) {
            return None;
        }
        let trial = match value("trial")? {
            "" => None,
            letter => Some(Slot::from_letter(letter)?),
        };
        let tries = value("tries")?.parse().ok().filter(|n| *n <= MAX_TRIES)?;
        Some(Self { sequence, good: Slot::from_letter(value("good")?)?, trial, tries })
    }

    /// The state that counts, and the block it lies in; `None` when neither block is whole. Of two equally new ones it is block 0's.
    pub fn newest(zero: &[u8], one: &[u8]) -> Option<(Block, Self)> {
        match (Self::decode(zero), Self::decode(one)) {
            (Some(zero), Some(one)) if one.sequence > zero.sequence => Some((Block::One, one)),
            (Some(zero), _) => Some((Block::Zero, zero)),
            (None, one) => one.map(|state| (Block::One, state)),
        }
    }

    /// The two blocks of a new image.
    pub fn initial(good: Slot) -> [[u8; BLOCK]; 2] {
        let state = Self::new(good);
        [state.encode(), Self { sequence: 2, ..state }.encode()]
    }

    /// The slot that GRUB starts next, and whether that is a trial.
    pub fn next_boot(&self) -> (Slot, Boot) {
        match self.trial {
            Some(slot) if self.tries > 0 => (slot, Boot::Trial),
            _ => (self.good, Boot::Good),
        }
    }

    /// What to write so that `self` becomes the state: first one block, then a flush, then the other. `zero` and `one` are the blocks
    /// as they are; the sequence number of `self` is not looked at.
    pub fn replace(&self, zero: &[u8], one: &[u8]) -> [(Block, [u8; BLOCK]); 2] {
        let (newest, sequence) = Self::newest(zero, one).map_or((Block::One, 0), |(block, state)| (block, state.sequence.min(MAX_SEQUENCE)));
        let with = |sequence| Self { sequence, ..*self }.encode();
        [(newest.other(), with(sequence + 1)), (newest, with(sequence + 2))]
    }
}

/// Whether a boot is one of the good slot or of a slot on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The good slot.
    Good,
    /// A slot on trial.
    Trial,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_state() -> impl Strategy<Value = BootState> {
        let slot = || prop_oneof![Just(Slot::A), Just(Slot::B)];
        (0..MAX_SEQUENCE, slot(), proptest::option::of(slot()), 0..=MAX_TRIES).prop_map(|(sequence, good, trial, tries)| BootState {
            sequence,
            good,
            trial,
            tries,
        })
    }

    proptest! {
        #[test]
        fn a_state_survives_its_block(state in any_state()) {
            let block = state.encode();
            prop_assert_eq!(BootState::decode(&block), Some(state));
            prop_assert!(block.iter().rposition(|b| *b != b'#').unwrap() < 512);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1100), cut in 0..1100usize) {
            let mut block = BootState::new(Slot::A).encode().to_vec();
            for (at, byte) in bytes.iter().enumerate().skip(cut).take(block.len().saturating_sub(cut)) {
                block[at] = *byte;
            }
            let _ = (BootState::decode(&block), BootState::decode(&bytes));
        }

        /// E2 for the boot state: the power goes after any part of a replacement, in sectors or in the middle of one.
        #[test]
        fn e2_a_torn_replacement_leaves_the_old_or_the_new_state(old in any_state(), new in any_state(), torn in 0..=BLOCK, later in 0..2usize, reorder: bool) {
            let mut blocks = [old.encode(), BootState { sequence: old.sequence + 1, ..old }.encode()];
            let steps = new.replace(&blocks[0], &blocks[1]);
            for (block, bytes) in &steps[..later] {
                blocks[*block as usize] = *bytes;
            }
            let (block, bytes) = &steps[later];
            let range = if reorder { torn..BLOCK } else { 0..torn };
            blocks[*block as usize][range.clone()].copy_from_slice(&bytes[range]);
            let (_, read) = BootState::newest(&blocks[0], &blocks[1]).expect("one block is whole");
            let same = |a: BootState, b: BootState| (a.good, a.trial, a.tries) == (b.good, b.trial, b.tries);
            // With 512-byte sectors the first sector is written or not; finer tears are caught by the two sequence numbers unless
            // they mix digits of equal meaning, so only the sector-wise law is unconditional.
            if torn.is_multiple_of(512) {
                prop_assert!(same(read, old) || same(read, new), "{:?}", read);
            }
        }
    }

    #[test]
    fn the_newest_whole_block_wins() {
        let at = |sequence, good| BootState { sequence, good, trial: None, tries: 0 }.encode();
        let (old, new) = (at(9, Slot::A), at(10, Slot::B));
        assert_eq!(BootState::newest(&old, &new).map(|(b, s)| (b, s.good)), Some((Block::One, Slot::B)));
        assert_eq!(BootState::newest(&new, &old).map(|(b, s)| (b, s.good)), Some((Block::Zero, Slot::B)));
        let mut torn = new;
        torn[25..30].copy_from_slice(b"seq=3");
        assert_eq!(BootState::newest(&old, &torn).map(|(b, s)| (b, s.good)), Some((Block::Zero, Slot::A)));
        assert_eq!(BootState::newest(&[0; BLOCK], &[0; 3]), None);
    }

    #[test]
    fn the_bytes_are_those_of_a_grub_environment_block() {
        let block = BootState { sequence: 7, good: Slot::A, trial: Some(Slot::B), tries: 3 }.encode();
        let text = String::from_utf8(block.to_vec()).unwrap();
        assert!(text.starts_with("# GRUB Environment Block\nseq=7\ngood=a\ntrial=b\ntries=3\nend=7\n####"));
        assert!(text.ends_with('#'));
    }
}
