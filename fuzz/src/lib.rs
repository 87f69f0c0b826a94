//! What is fuzzed: one module a door, each with a `run` over arbitrary bytes and the `seeds` that
//! it starts from.
//!
//! | target | the bytes are |
//! |---|---|
//! | [`header`] | a header object, with the nodes of its map |
//! | [`layer`] | a layer object |
//! | [`journal`] | the journal and the checkpoint of a cache |
//! | [`nbd`] | all that an NBD client sends |
//! | [`ext4`] | some blocks of an ext4 file system |
//! | [`tar`] | an archive of tar |
//!
//! `run` must neither panic nor hang nor allocate beyond reason. Checksums would keep a fuzzer at
//! the door for ever, so a first byte says whether `run` makes them right before it goes in: both
//! ways are tried. Run one with `cargo xtask fuzz TARGET`; `cargo run --example seeds` writes
//! `seeds/` again.

pub mod ext4;
pub mod header;
pub mod input;
pub mod journal;
pub mod layer;
pub mod nbd;
mod session;
pub mod tar;

/// A target: its name, its entry, its seeds.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("header", header::run, header::seeds),
    ("layer", layer::run, layer::seeds),
    ("journal", journal::run, journal::seeds),
    ("nbd", nbd::run, nbd::seeds),
    ("ext4", ext4::run, ext4::seeds),
    ("tar", tar::run, tar::seeds),
];

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::path::Path;

    /// How many changed inputs each target takes: some seconds for all of them.
    const ROUNDS: [(&str, usize); 6] = [
        ("header", 2000),
        ("layer", 2000),
        ("journal", 200),
        ("nbd", 500),
        ("ext4", 100),
        ("tar", 5000),
    ];

    /// A seed that is refused at the door tests nothing.
    #[test]
    fn every_seed_runs() {
        for (name, run, seeds) in super::TARGETS {
            for (number, seed) in seeds().iter().enumerate() {
                println!("{name} {number}: {} bytes", seed.len());
                run(seed);
            }
        }
    }

    /// What libFuzzer does, for a moment and with any compiler: inputs that are kept, findings of old among them, as they are and
    /// changed here and there, the same ones each time.
    #[test]
    fn changed_inputs_do_no_harm() {
        for (name, run, _) in super::TARGETS {
            let rounds = ROUNDS.iter().find(|(of, _)| *of == name);
            let rounds = rounds.expect("each target has its number").1;
            let kept = kept(name);
            let mut random = Random(rounds as u64);
            for round in 0..kept.len() + rounds {
                let input = match kept.get(round) {
                    Some(input) => input.clone(),
                    None => random.changed(&kept),
                };
                if catch_unwind(|| run(&input)).is_err() {
                    let path = std::env::temp_dir().join(format!("{name}-{round}"));
                    std::fs::write(&path, &input).unwrap();
                    panic!("{name}: `cargo xtask fuzz {name} {}`", path.display());
                }
            }
        }
    }

    fn kept(name: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(name);
        let mut paths: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        paths
            .iter()
            .map(|path| std::fs::read(path).unwrap())
            .collect()
    }

    /// Choices that one number decides (SplitMix64).
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            usize::try_from((z ^ (z >> 31)) % end.max(1) as u64).unwrap()
        }

        fn byte(&mut self) -> u8 {
            u8::try_from(self.below(256)).unwrap()
        }

        fn changed(&mut self, kept: &[Vec<u8>]) -> Vec<u8> {
            let mut input = kept[self.below(kept.len())].clone();
            for _ in 0..1 + self.below(8) {
                let at = self.below(input.len());
                match self.below(6) {
                    0 => input.truncate(at.max(1)),
                    1 => input.insert(at, self.byte()),
                    2 => {
                        let other = &kept[self.below(kept.len())];
                        let from = self.below(other.len());
                        input.truncate(at);
                        input.extend(&other[from..]);
                    }
                    3 => input[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                    4 => input[at] = self.byte(),
                    _ => input[at] ^= 1 << self.below(8),
                }
                if input.is_empty() {
                    input.push(1);
                }
            }
            input
        }
    }
}
