//! [`Seeded`]: choices that one number decides, the same on every machine (SplitMix64).

#[derive(Debug)]
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.up_to(bound as u64 - 1)).expect("below a usize")
    }

    /// One of `0..=most`.
    pub(crate) fn up_to(&mut self, most: u64) -> u64 {
        // A shade uneven for huge bounds, which nobody here has.
        self.next() % most.saturating_add(1)
    }
}
