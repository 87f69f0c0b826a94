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
}
