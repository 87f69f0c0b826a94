//! [`Buffer`]: bytes that come in at the end and leave at the front, in one piece of memory.
//!
//! Layout: `bytes[..start]` has left, `bytes[start..end]` is held, `bytes[end..]` is free and keeps
//! whatever was there before, so that room for a reply costs no clearing.
//!
//! Invariants:
//! 1. Positions given to callers count from `start`, and hold until something leaves at the front.
//! 2. What is held moves only when that frees at least as much as it moves: appending is O(1),
//!    amortised, however slowly the front leaves, and the memory stays within twice the most ever
//!    held (and a receive).

/// See the module.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// All that is held.
    pub(crate) fn held(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first `len` bytes leave.
    pub(crate) fn consume(&mut self, len: usize) {
        assert!(len <= self.len(), "only what is held can leave");
        self.start += len;
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
        }
    }

    /// The free bytes after the end, `len` of them, with old contents. [`Self::extend`] keeps them.
    pub(crate) fn room(&mut self, len: usize) -> &mut [u8] {
        if self.end + len > self.bytes.len() && self.start >= self.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end + len > self.bytes.len() {
            self.bytes.resize(self.end + len, 0);
        }
        &mut self.bytes[self.end..self.end + len]
    }

    /// The first `len` bytes of the room are held from now on.
    pub(crate) fn extend(&mut self, len: usize) {
        assert!(self.end + len <= self.bytes.len(), "room was made before");
        self.end += len;
    }

    /// `len` more bytes are held; the caller fills them.
    pub(crate) fn claim(&mut self, len: usize) -> &mut [u8] {
        self.room(len);
        self.end += len;
        &mut self.bytes[self.end - len..self.end]
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.claim(bytes.len()).copy_from_slice(bytes);
    }

    /// Writes over what is held, from position `at`.
    pub(crate) fn patch(&mut self, at: usize, bytes: &[u8]) {
        let at = self.start + at;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Forgets what is held from position `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.end = self.end.min(self.start + len);
    }

    /// Gives the memory back, except for what is held.
    pub(crate) fn shrink(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.bytes.truncate(self.end);
        self.bytes.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_front_that_leaves_slowly_costs_bounded_memory() {
        let mut buffer = Buffer::default();
        buffer.append(&[7; 4096]);
        for _ in 0..10_000 {
            buffer.append(&[7; 64]);
            buffer.consume(64);
            assert!(
                buffer.bytes.len() <= 2 * 4096 + 256,
                "{}",
                buffer.bytes.len()
            );
        }
    }

    #[test]
    fn what_is_held_moves_only_when_that_pays() {
        let mut buffer = Buffer::default();
        buffer.append(&[7; 4096]);
        buffer.consume(64);
        buffer.append(&[7; 64]);
        assert_eq!(buffer.start, 64, "64 bytes are not worth a move of 4032");
        buffer.consume(3000);
        buffer.room(1 << 20);
        assert_eq!(buffer.start, 0);
    }

    #[test]
    fn shrinking_keeps_what_is_held() {
        let mut buffer = Buffer::default();
        buffer.append(&[1; 1000]);
        buffer.append(&[2; 10]);
        buffer.consume(1000);
        buffer.shrink();
        assert_eq!(buffer.held(), [2; 10]);
        assert_eq!(buffer.bytes.capacity(), 10);
    }

    proptest! {
        #[test]
        fn it_is_a_queue(steps in proptest::collection::vec((0u8..4, 0usize..300), 1..200)) {
            let mut buffer = Buffer::default();
            let mut twin: Vec<u8> = Vec::new();
            for (number, (step, len)) in steps.into_iter().enumerate() {
                let byte = u8::try_from(number % 251).unwrap();
                match step {
                    0 => {
                        buffer.append(&vec![byte; len]);
                        twin.extend(vec![byte; len]);
                    }
                    1 => {
                        let len = len.min(twin.len());
                        buffer.consume(len);
                        twin.drain(..len);
                    }
                    2 => {
                        let len = len.min(twin.len());
                        buffer.truncate(len);
                        twin.truncate(len);
                    }
                    _ => {
                        let at = len.min(twin.len());
                        let patch = vec![byte; (twin.len() - at).min(5)];
                        buffer.patch(at, &patch);
                        twin[at..at + patch.len()].copy_from_slice(&patch);
                    }
                }
                prop_assert_eq!(buffer.held(), &twin[..]);
            }
        }
    }
}
