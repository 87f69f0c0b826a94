//! What is not needed, where that is certain; and each reason for which it is not.

use cowslip_block::ByteRange;
use cowslip_ext4::{Inexact, Owner, State, unneeded};

use super::rig::{Image, have, owners};

const TOOLS: [&str; 2] = ["mkfs.ext4", "debugfs"];

fn ask(image: &Image) -> Result<Vec<ByteRange>, Inexact> {
    unneeded(&image.open(State::OnDisk), &mut |_| ()).unwrap()
}

/// A copy with these bytes changed.
fn changed(image: &Image, at: u64, bytes: &[u8]) -> Image {
    let copy = image.copy();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&copy.path)
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    copy
}

#[test]
fn all_that_nobody_has_is_unneeded_and_nothing_else() {
    let test = "all_that_nobody_has_is_unneeded_and_nothing_else";
    if !have(test, &TOOLS) {
        return;
    }
    for options in [&["-b", "1024"][..], &["-b", "4096", "-O", "^has_journal"]] {
        let image = Image::mkfs(16 << 10, options);
        let runs = ask(&image).unwrap();
        assert!(runs.windows(2).all(|w| w[0].end < w[1].start), "{runs:?}");
        let owners = owners(&image.open(State::OnDisk));
        for owned in owners.runs(ByteRange::new(0, owners.size_bytes())) {
            let is_in = runs
                .iter()
                .any(|run| run.intersect(owned.range) == owned.range);
            let nobodys = matches!(owned.owner, Owner::Free | Owner::Journal { live: false });
            assert_eq!(is_in, nobodys, "{owned:?}");
        }
    }
}

#[test]
fn what_is_not_certain_is_refused_with_its_reason() {
    let test = "what_is_not_certain_is_refused_with_its_reason";
    if !have(test, &TOOLS) {
        return;
    }
    // Without checksums a byte can be changed alone.
    let image = Image::mkfs(16 << 10, &["-b", "1024", "-O", "^metadata_csum"]);
    assert!(ask(&image).is_ok());
    let features =
        |at: usize| u32::from_le_bytes(image.bytes()[1024 + at..][..4].try_into().unwrap());
    let with = |at: u64, word: u32| changed(&image, 1024 + at, &word.to_le_bytes());
    let recover = with(0x60, features(0x60) | 4);
    assert_eq!(ask(&recover), Err(Inexact::NeedsRecovery));
    for state in [0u16, 2, 3, 5] {
        let image = changed(&image, 1024 + 0x3a, &state.to_le_bytes());
        assert_eq!(ask(&image), Err(Inexact::State(state)));
    }
    for at in [0x5c, 0x64] {
        assert_eq!(
            ask(&with(at, features(usize::try_from(at).unwrap()) | 1 << 30)),
            Err(Inexact::Features)
        );
    }
    // The journal's superblock.
    let owners = owners(&image.open(State::OnDisk));
    let all = owners.runs(ByteRange::new(0, owners.size_bytes()));
    let live = Owner::Journal { live: true };
    let journal = all
        .into_iter()
        .find(|owned| owned.owner == live)
        .unwrap()
        .range
        .start
        .0;
    let log = changed(&image, journal + 0x1c, &7u32.to_be_bytes());
    assert_eq!(ask(&log), Err(Inexact::Journal { start: 7, error: 0 }));
    let error = changed(&image, journal + 0x20, &(-5i32).to_be_bytes());
    assert_eq!(
        ask(&error),
        Err(Inexact::Journal {
            start: 0,
            error: -5
        })
    );
    assert_eq!(
        ask(&changed(&image, journal, &[0; 4])),
        Err(Inexact::NoJournal)
    );
    // A free block that the bitmap calls used, and the other way round.
    let free = owners
        .runs(ByteRange::new(0, owners.size_bytes()))
        .find(|o| o.owner == Owner::Free);
    let block = free.unwrap().range.start.0 / 1024;
    for commands in [format!("setb {block}"), "freeb 1".to_owned()] {
        let copy = image.copy();
        copy.debugfs(true, &format!("{commands}\n"));
        assert!(
            matches!(ask(&copy), Err(Inexact::Disagreement(_))),
            "{commands}"
        );
    }
    // A checksum that does not match, in whatever it is.
    let image = Image::mkfs(16 << 10, &["-b", "1024"]);
    let copy = changed(&image, 2048 + 4, &[1]);
    assert!(matches!(ask(&copy), Err(Inexact::Problem(_))));
    let copy = changed(&image, 1024 + 0x78, b"label");
    assert_eq!(ask(&copy), Err(Inexact::Superblock));
    for inexact in [
        Inexact::NeedsRecovery,
        Inexact::NoJournal,
        Inexact::Superblock,
    ] {
        assert!(inexact.to_string().len() > 20);
    }
}
