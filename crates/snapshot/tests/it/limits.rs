//! Limits that can be reached: the most that is allowed is written and read, one more is refused with an
//! error that names limit and value. Names are the ones that people type. What would be terabytes is
//! crafted, beside the code (`src/limits/tests.rs`).

use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use cowslip_block::units::SIZE_BYTES_MAX;
use cowslip_block::{BlockRange, BlockSize, ByteOffset};
use cowslip_snapshot::limits::{FROZEN_CACHES_MAX, LAYER_BLOCKS_MAX, MADE_BY_BYTES_MAX, span};
use cowslip_snapshot::session::{Session, SessionError, SnapshotOptions, Surroundings};
use cowslip_snapshot::{
    DiffFigures, HeaderSpec, LayerId, MapRun, SnapshotName, StoreError, Target,
};
use proptest::prelude::*;
use uuid::Uuid;

use crate::rig::Rig;
use crate::session_world::{BLOCK, BootHost, World, bytes_of, fresh, name};

/// The rule, the stupid way.
fn may_be_a_name(text: &str) -> bool {
    let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let first = text.chars().next().is_some_and(|c| letters.contains(c));
    let all = text
        .chars()
        .all(|c| letters.contains(c) || ".-_".contains(c));
    first && all && text.chars().count() <= 128
}

#[track_caller]
fn check_name(text: &str) {
    match text.parse::<SnapshotName>() {
        Ok(name) => {
            assert!(may_be_a_name(text), "{text:?} is accepted");
            assert_eq!(name.as_str(), text);
            let components: Vec<_> = Path::new(text).components().collect();
            assert_eq!(components, [Component::Normal(text.as_ref())], "{text:?}");
            assert!(!text.starts_with('-') && !text.starts_with('.'));
        }
        Err(error) => {
            assert!(!may_be_a_name(text), "{text:?} is refused");
            let why = error.to_string();
            assert!(why.contains(SnapshotName::RULE), "{why}");
            assert!(!why.contains(char::is_control) && why.len() < 2000, "{why}");
        }
    }
}

#[test]
fn names_that_are_file_names_and_nothing_else() {
    let longest = "x".repeat(128);
    let good = [
        "a",
        "0",
        "ubuntu-24.04_base",
        "A..b",
        "a.",
        "a..",
        "con",
        "x-",
        &longest,
    ];
    for text in good {
        assert!(text.parse::<SnapshotName>().is_ok(), "{text:?}");
        check_name(text);
    }
    let too_long = "x".repeat(129);
    let many = "\u{e4}".repeat(64);
    let bad = [
        "",
        ".",
        "..",
        "...",
        ".hidden",
        "-a",
        "--replace",
        "_a",
        "a/b",
        "/a",
        "a/",
        "a/../b",
        "a\\b",
        "a b",
        " a",
        "a ",
        "a\0",
        "a\n",
        "a\r",
        "a\t",
        "\u{1b}[31m",
        "a:b",
        "a*",
        "~a",
        "a,b",
        // They look like a, or like nothing.
        "\u{e4}",
        "\u{430}",
        "\u{ff41}",
        "a\u{301}",
        "a\u{200b}",
        "\u{202e}a",
        "a\u{a0}",
        "\u{2024}a",
        "a\u{2215}b",
        "\u{660}",
        "\u{1d7d8}",
        "\u{fffd}",
        &many,
        &too_long,
    ];
    for text in bad {
        assert!(text.parse::<SnapshotName>().is_err(), "{text:?}");
        check_name(text);
    }
}

proptest! {
    #[test]
    fn every_name_is_one_safe_component_and_every_refusal_says_the_rule(
        text in prop_oneof![
            any::<String>(),
            "[A-Za-z0-9._-]{0,140}",
            "[A-Za-z0-9._/ \\\\\u{0}-\u{1f}-]{0,12}",
            "[a-z0-9]{126,130}",
        ]
    ) {
        check_name(&text);
    }
}

/// A store keeps what its names say, also for whoever made a file there by hand.
#[test]
fn files_that_are_no_names_are_no_snapshots() {
    let rig = Rig::new();
    let header = rig.put(None, 4, &[]);
    let lease = rig.store.lease().unwrap();
    let longest = name(&"x".repeat(128));
    rig.store.commit(&lease, &longest, &header, false).unwrap();
    assert_eq!(rig.reopened().resolve(&longest).unwrap().id(), header.id());
    let record = std::fs::read(rig.path("snapshots").join(longest.as_str())).unwrap();
    for text in [".hidden", "-a", "a b", "x~", &"x".repeat(129)] {
        std::fs::write(rig.path("snapshots").join(text), &record).unwrap();
    }
    let listed = rig.store.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name, longest);
}

fn spec(size_bytes: u64, made_by: &str) -> HeaderSpec<'_> {
    HeaderSpec {
        parent: None,
        size_bytes,
        block_size: BlockSize::DISK,
        changes: &[],
        layer: None,
        figures: DiffFigures::default(),
        made_by,
    }
}

#[track_caller]
fn is_limit<T: std::fmt::Debug>(outcome: Result<T, StoreError>, name: &str, value: u64) {
    let error = outcome.unwrap_err();
    let why = error.to_string();
    assert!(
        matches!(&error, StoreError::Limit { what, max } if what.contains(name) && *max == value),
        "{error:?}"
    );
    assert!(why.contains(&value.to_string()), "{why}");
}

#[test]
fn the_largest_image() {
    let rig = Rig::new();
    let lease = rig.store.lease().unwrap();
    let id = LayerId(Uuid::from_u128(9));
    for bytes in [512, 4096, 2 << 20] {
        let block_size = BlockSize::new(bytes).unwrap();
        let blocks = SIZE_BYTES_MAX / u64::from(bytes);
        // Its first block and its last, so that the map is as high as it gets.
        let at = |start, at| MapRun {
            blocks: BlockRange::new(start, start + 1),
            to: Target::Layer { id, at },
        };
        let changes = [at(0, 5), at(blocks - 1, 77)];
        let spec = HeaderSpec {
            block_size,
            changes: &changes,
            ..spec(SIZE_BYTES_MAX, "test")
        };
        let header = rig.store.put_header(&lease, &spec).unwrap();
        let header = rig.reopened().open_header(header.id()).unwrap();
        assert_eq!(header.size_bytes(), SIZE_BYTES_MAX);
        let last = BlockRange::new(blocks - 1, blocks);
        assert_eq!(header.runs(last).unwrap(), [changes[1]]);
        let more = HeaderSpec {
            size_bytes: SIZE_BYTES_MAX + 1,
            ..spec
        };
        is_limit(
            rig.store.put_header(&lease, &more),
            "the image's size",
            SIZE_BYTES_MAX,
        );
    }
}

#[test]
fn the_largest_session() {
    let (disk, world) = fresh();
    let root = disk.root();
    let create = |dir: &str, size_bytes| {
        root.create_dir(dir).unwrap();
        let around = Surroundings {
            dir: root.open_dir(dir).unwrap(),
            path: dir.into(),
            temporary: false,
            store: Arc::clone(&world.store),
            store_path: "store".into(),
            host: BootHost::new(1),
            unneeded: None,
            say: Box::new(|_| {}),
        };
        Session::create(around, &name("base"), Some(size_bytes))
    };
    let session = create("large", SIZE_BYTES_MAX).unwrap();
    let device = session.device();
    let last = SIZE_BYTES_MAX - 100;
    device.write(ByteOffset(last), &[7; 100]).unwrap();
    let seal = session
        .freeze(&name("large"), &SnapshotOptions::default())
        .unwrap();
    assert!(session.seal_next());
    let header = seal.wait(Duration::ZERO).unwrap().unwrap();
    assert_eq!(
        (header.size_bytes(), header.meta().figures.dirty_blocks),
        (SIZE_BYTES_MAX, 1)
    );
    let mut read = [0; 100];
    device.read_at(ByteOffset(last), &mut read).unwrap();
    assert_eq!(read, [7; 100]);
    let why = create("larger", SIZE_BYTES_MAX + 1)
        .err()
        .unwrap()
        .to_string();
    assert!(
        why.contains(&format!(
            "{} bytes; at most {SIZE_BYTES_MAX}",
            SIZE_BYTES_MAX + 1
        )),
        "{why}"
    );
}

#[test]
fn the_longest_text_of_what_made_it() {
    let rig = Rig::new();
    let lease = rig.store.lease().unwrap();
    // 64 bytes, of 62 characters.
    let longest = format!("\u{e4}\u{fc}{}", "x".repeat(60));
    assert_eq!(longest.len(), MADE_BY_BYTES_MAX);
    let header = rig.store.put_header(&lease, &spec(4096, &longest)).unwrap();
    assert_eq!(
        rig.reopened()
            .open_header(header.id())
            .unwrap()
            .meta()
            .made_by,
        longest
    );
    for bad in [format!("{longest}x"), "a\nb".into(), "\u{1b}[1m".into()] {
        is_limit(
            rig.store.put_header(&lease, &spec(4096, &bad)),
            "plain text",
            64,
        );
    }
}

/// Every block of a leaf in a layer of its own, at distances as far as they get: no node is larger.
#[test]
fn the_largest_nodes() {
    let rig = Rig::new();
    let blocks = span(1);
    let run = |block: u64| MapRun {
        blocks: BlockRange::new(block, block + 1),
        to: Target::Layer {
            id: LayerId(Uuid::from_u128(u128::from(block) + 1)),
            at: LAYER_BLOCKS_MAX - 1,
        },
    };
    let changes: Vec<_> = (0..blocks).map(run).collect();
    let header = rig.put(None, blocks, &changes);
    let read = rig.reopened().open_header(header.id()).unwrap();
    assert_eq!(read.runs(read.blocks()).unwrap(), changes);
}

fn freeze(world: &World, n: usize) -> Result<(), SessionError> {
    let bytes = bytes_of(n as u64, BLOCK);
    let at = ByteOffset((n % 14 * BLOCK) as u64);
    world.session.device().write(at, &bytes).unwrap();
    let text = name(&format!("s{n}"));
    world
        .session
        .freeze(&text, &SnapshotOptions::default())
        .map(drop)
}

#[test]
fn as_many_frozen_caches_as_are_allowed_and_the_way_out() {
    let (disk, mut world) = fresh();
    for n in 0..FROZEN_CACHES_MAX {
        freeze(&world, n).unwrap();
    }
    let image = world.read();
    let full = |outcome: Result<(), SessionError>| {
        let why = outcome.unwrap_err().to_string();
        assert!(why.contains("at most 64"), "{why}");
    };
    full(freeze(&world, 64));
    // The write before the freeze went through.
    let now = world.read();
    assert!(now != image);
    drop(world);
    world = World::open(&*disk.root(), 1).unwrap();
    assert!(world.read() == now, "as many are opened");
    assert_eq!(world.session.pending().len(), FROZEN_CACHES_MAX);
    full(freeze(&world, 65));
    // All are given up: none waits, so that another may be taken, with all that they held.
    for n in (0..FROZEN_CACHES_MAX).rev() {
        world.session.cancel(&name(&format!("s{n}"))).unwrap();
    }
    world.session.seal_next();
    assert_eq!(world.session.pending().len(), 0);
    freeze(&world, 66).unwrap();
    full(freeze(&world, 67));
    // That one is not given up, and does not lose its name to an error that would take it else.
    let cancel = world.session.cancel(&name("s66"));
    assert!(matches!(cancel, Err(SessionError::Full)));
    let base = world.store.resolve(&name("base")).unwrap();
    let lease = world.store.lease().unwrap();
    world
        .store
        .commit(&lease, &name("s66"), &base, false)
        .unwrap();
    assert!(!world.session.seal_next());
    assert_eq!(world.session.pending().len(), 1);
    drop(world);
    world = World::open(&*disk.root(), 1).unwrap();
    world.store.remove(&name("s66")).unwrap();
    let now = world.read();
    assert!(world.session.seal_next());
    assert_eq!(world.session.status().unwrap().frozen, 0);
    assert!(world.read() == now);
    freeze(&world, 68).unwrap();
    assert!(world.session.seal_next());
}
