//! The tree that a template holds, aged: files have come and gone before, so that what is new lies in gaps. The same
//! seed makes the same files; where they lie is the file system's affair.
//!
//! | directory | what | for |
//! |---|---|---|
//! | `tree/` | many small files in many directories | walks, times, deletion |
//! | `src/`, `obj/`, `bin/` | a program | edit and rebuild, the chain |
//! | `etc/`, `log/`, `state/` | what a system writes as it boots | the boot |
//! | `data/` | a database, large files | transactions |

use std::io;

use super::Scale;
use super::hand::Hand;
use crate::random::Random;

/// Text of a few words, which compresses as text does.
pub(crate) fn text(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: [&str; 32] = [
        "fn", "let", "return", "the", "snapshot", "block", "of", "a", "write", "journal", "inode",
        "value", "error", "if", "else", "device", "and", "in", "self", "mut", "match", "layer",
        "file", "zero", "is", "not", "read", "use", "crate", "path", "size", "with",
    ];
    let mut random = Random(seed ^ 0x5eed);
    let mut bytes = Vec::with_capacity(len + 40);
    while bytes.len() < len {
        let n = random.next();
        for shift in [0, 5, 10, 15, 20, 25, 30] {
            let word = WORDS[usize::try_from((n >> shift) & 31).expect("below 32")];
            bytes.extend(word.as_bytes());
            bytes.push(b' ');
        }
        // Each line is another one.
        bytes.extend(format!("{:x}\n", n >> 35).bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Sizes of small files: as many between 300 bytes and 3 KiB as between 3 and 30.
pub(crate) fn small_len(random: &mut Random) -> usize {
    let octave = random.below(7);
    (300 << octave) + random.below(300 << octave)
}

impl Scale {
    pub(crate) fn tree_dirs(self) -> usize {
        self.of(160)
    }
    pub(crate) fn tree_files(self) -> usize {
        self.of(3200)
    }
    pub(crate) fn sources(self) -> usize {
        self.of(320)
    }
}

pub(crate) fn tree_path(scale: Scale, i: usize) -> String {
    let dir = i % scale.tree_dirs();
    format!("tree/{}/{dir}/file{i}", dir % 8)
}

pub(crate) fn source_path(i: usize) -> String {
    format!("src/{}/unit{i}.rs", i % 16)
}

pub(crate) fn object_path(i: usize) -> String {
    format!("obj/unit{i}.o")
}

/// Fills an empty file system, in rounds: two of three files of a round are gone after the next one.
pub(crate) fn grow(hand: &mut Hand, scale: Scale) -> io::Result<()> {
    for dir in 0..scale.tree_dirs() {
        hand.mkdir(&format!("tree/{}/{dir}", dir % 8))?;
    }
    for dir in ["src", "obj", "bin", "etc", "log", "state", "data", "old"] {
        hand.mkdir(dir)?;
    }
    for dir in 0..16 {
        hand.mkdir(&format!("src/{dir}"))?;
    }
    let files = scale.tree_files();
    for round in 0..3 {
        for i in (round..files).step_by(3) {
            let len = small_len(&mut hand.random);
            hand.write(&tree_path(scale, i), &text(i as u64, len))?;
            // Its neighbours on the disk will be gone.
            for twin in 0..2 {
                hand.write(&format!("old/{round}-{i}-{twin}"), &text(twin, len))?;
            }
        }
        for i in 0..scale.of(12) {
            hand.write(&format!("old/large{round}-{i}"), &text(i as u64, 1 << 20))?;
        }
        hand.sync()?;
        let gone = hand.walk("old")?;
        for (path, _) in gone.iter().filter(|_| round < 2) {
            if hand.random.below(3) > 0 {
                hand.remove(path)?;
            }
        }
    }
    for i in 0..scale.sources() {
        let len = 2000 + hand.random.below(14_000);
        hand.write(&source_path(i), &text(i as u64, len))?;
        hand.write(&object_path(i), &text(1000 + i as u64, len * 2))?;
    }
    hand.write("bin/program", &text(7, scale.of(2 << 20)))?;
    for i in 0..40 {
        hand.write(&format!("etc/conf{i}"), &text(i, 700))?;
        hand.write(&format!("state/state{i}"), &text(i, 300))?;
    }
    for i in 0..8 {
        hand.write(&format!("log/log{i}"), &text(i, 50_000))?;
    }
    for i in 0..scale.of(8) {
        hand.write(&format!("data/large{i}"), &text(i as u64, 2 << 20))?;
    }
    hand.remove_dir("old")?;
    hand.sync()
}
