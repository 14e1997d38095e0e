//! What is sent: for every connection its own sequence of bytes, of which any part can be made
//! without the ones before it.

/// What the messages of one connection contain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    /// Bytes in a message.
    pub(super) size: u64,
    /// Pseudo-random bytes, of this seed; none: zeros.
    pub(super) seed: Option<u64>,
    /// The first byte of a message is a number of milliseconds, mostly zero.
    pub(super) blocks: Option<Blocks>,
}

/// Which messages make the server's handler sleep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// One in how many.
    pub(super) every: u64,
    /// For how long.
    pub(super) ms: u8,
    /// The number of the first one: not the same on all connections.
    pub(super) first: u64,
}

impl Content {
    /// Whether this message makes the handler sleep.
    pub(super) fn is_block(&self, message: u64) -> bool {
        self.blocks.is_some_and(|blocks| message % blocks.every == blocks.first)
    }

    /// Makes the part of the connection's bytes that begins at `position` and fills `part`.
    pub(super) fn fill(&self, position: u64, part: &mut [u8]) {
        match self.seed {
            Some(seed) => fill_random(seed, position, part),
            None => part.fill(0),
        }
        let Some(blocks) = self.blocks else { return };
        let mut message = position.div_ceil(self.size);
        while let Ok(at) = usize::try_from(message * self.size - position)
            && let Some(byte) = part.get_mut(at)
        {
            *byte = if self.is_block(message) { blocks.ms } else { 0 };
            message += 1;
        }
    }

    /// How many bytes of `part`, which came at `position`, are not what was sent. `scratch` is
    /// memory to work in.
    pub(super) fn differences(&self, position: u64, part: &[u8], scratch: &mut Vec<u8>) -> u64 {
        scratch.resize(part.len(), 0);
        self.fill(position, scratch);
        if part == scratch {
            return 0;
        }
        part.iter().zip(scratch).filter(|(came, sent)| *came != *sent).count() as u64
    }
}

/// The word of that number: splitmix64, which needs nothing but the number.
fn word(seed: u64, number: u64) -> [u8; 8] {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

fn fill_random(seed: u64, position: u64, part: &mut [u8]) {
    let mut number = position / 8;
    // At most 7, so it fits.
    let skip = usize::try_from(position % 8).unwrap_or(0);
    let (head, rest) = part.split_at_mut(if skip == 0 { 0 } else { (8 - skip).min(part.len()) });
    if !head.is_empty() {
        head.copy_from_slice(&word(seed, number)[skip..][..head.len()]);
        number += 1;
    }
    for bytes in rest.chunks_mut(8) {
        bytes.copy_from_slice(&word(seed, number)[..bytes.len()]);
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(content: &Content, position: u64, length: usize) -> Vec<u8> {
        let mut part = vec![0xee; length];
        content.fill(position, &mut part);
        part
    }

    #[test]
    fn any_part_is_the_same_as_within_the_whole() {
        let blocks = Blocks { every: 3, ms: 9, first: 1 };
        for blocks in [None, Some(blocks)] {
            for size in [1, 2, 7, 8, 64] {
                let content = Content { size, seed: Some(7), blocks };
                let whole = made(&content, 0, 200);
                for from in 0..100 {
                    for length in [0, 1, 5, 8, 9, 100] {
                        let part = made(&content, from as u64, length);
                        assert_eq!(part, whole[from..from + length], "{from} {length} {size}");
                    }
                }
            }
        }
    }

    #[test]
    fn connections_differ() {
        let content = |seed| Content { size: 1, seed: Some(seed), blocks: None };
        assert_ne!(made(&content(1), 0, 64), made(&content(2), 0, 64));
    }

    #[test]
    fn first_bytes_say_how_long_to_sleep() {
        let blocks = Some(Blocks { every: 2, ms: 5, first: 1 });
        let content = Content { size: 4, seed: None, blocks };
        assert_eq!(made(&content, 0, 13), [0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 5]);
        assert_eq!(made(&content, 3, 2), [0, 5]);
        assert!(!content.is_block(0) && content.is_block(1));
    }

    #[test]
    fn differences_are_counted() {
        let content = Content { size: 16, seed: Some(1), blocks: None };
        let mut part = made(&content, 5, 100);
        let mut scratch = Vec::new();
        assert_eq!(content.differences(5, &part, &mut scratch), 0);
        part[0] ^= 1;
        part[99] ^= 0x80;
        assert_eq!(content.differences(5, &part, &mut scratch), 2);
        assert!(content.differences(6, &part, &mut scratch) > 50, "a lost byte shifts the rest");
    }
}
