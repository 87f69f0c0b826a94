//! Invariant 6 under power cuts and full disks: a name never stands for what cannot be read.

use std::sync::Arc;

use cowslip_block::BlockSize;
use cowslip_block::files::Dir;
use cowslip_sim::{Call, EIO, ENOSPC, Fault, Faults, FaultyDir, Forget, MemoryFs, Rule};
use cowslip_snapshot::verify::verify;
use cowslip_snapshot::{HeaderSpec, SnapshotName, Store, StoreError, Target};

use crate::rig::{CountingHost, SMALL, noise, run, spec};

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

/// How far [`history`] came: after each step that was acknowledged, the names and what they map.
type Acknowledged = Vec<Vec<(&'static str, u64)>>;

/// Makes a store, a snapshot, another on top of it, and replaces the first name.
fn history(root: &dyn Dir, done: &mut Acknowledged) -> Result<(), StoreError> {
    let store = Store::open_or_create(root, CountingHost::from(1), SMALL)?;
    done.push(vec![]);
    let lease = store.lease()?;
    let mut parent = None;
    for blocks in [20, 30] {
        let mut writer = store.layer_writer(&lease, BlockSize::DISK)?;
        writer.push(&noise(blocks, 17 * 4096))?;
        let layer = writer.finish()?;
        let to = Target::Layer {
            id: layer.id,
            at: 0,
        };
        let changes = [run(blocks - 17, blocks, to)];
        let header = store.put_header(
            &lease,
            &HeaderSpec {
                layer: Some(layer),
                ..spec(parent.as_deref(), blocks * 4096, &changes)
            },
        )?;
        let new = if blocks == 20 { "first" } else { "second" };
        store.commit(&lease, &name(new), &header, false)?;
        let mut names = done.last().unwrap().clone();
        names.push((new, blocks));
        done.push(names);
        parent = Some(header);
    }
    store.commit(&lease, &name("first"), &parent.unwrap(), true)?;
    done.push(vec![("first", 30), ("second", 30)]);
    store.remove(&name("second"))?;
    done.push(vec![("first", 30)]);
    Ok(())
}

/// All names of a store, each verified, and how many blocks each has.
fn whole_names(store: &Store) -> Vec<(String, u64)> {
    let listed = store.list().unwrap();
    let names = listed.iter().map(|l| {
        let header = store.resolve(&l.name).unwrap();
        let report = verify(store, &header, &mut |_, _| ()).unwrap();
        assert!(report.is_whole(), "{}: {:?}", l.name, report.damage);
        (l.name.to_string(), header.blocks().end.0)
    });
    names.collect()
}

fn same(got: &[(String, u64)], want: &[(&str, u64)]) -> bool {
    let got = got.iter().map(|(name, blocks)| (name.as_str(), *blocks));
    got.eq(want.iter().copied())
}

#[test]
fn a_power_cut_at_any_operation_leaves_whole_snapshots() {
    let fs = MemoryFs::new();
    let mut all = Vec::new();
    history(fs.root().as_ref(), &mut all).unwrap();
    let operations = fs.operations();
    assert!(operations > 40, "{operations}");
    for cut in 0..=operations {
        let fs = MemoryFs::new();
        fs.cut_after(cut);
        let mut done = Vec::new();
        let ended = history(fs.root().as_ref(), &mut done);
        // The last one gives the lease back, which may fail.
        assert_eq!(ended.is_ok(), cut + 1 >= operations, "{cut}");
        for forget in [
            Forget::Unsynced,
            Forget::Nothing,
            Forget::Some(1),
            Forget::Some(2),
            Forget::Some(3),
        ] {
            let root = fs.after_cut(forget).root();
            let host = CountingHost::from(1 << 20);
            if !done.is_empty() {
                Store::open(root.as_ref(), host.clone(), SMALL).unwrap();
            }
            let store = Store::open_or_create(root.as_ref(), host, SMALL).unwrap();
            let got = whole_names(&store);
            // What was acknowledged, or the step on the way as well.
            let at = done.len().saturating_sub(1);
            let ok = all[at..].iter().take(2).any(|want| same(&got, want));
            assert!(ok, "cut {cut}, {forget:?}: {got:?} after {:?}", all[at]);
        }
    }
}

#[test]
fn a_full_or_failing_disk_is_an_error_and_leaves_nothing_half_done() {
    for (errno, calls) in [
        (ENOSPC, vec![Call::Write, Call::Create]),
        (
            EIO,
            vec![Call::Write, Call::Sync, Call::SyncDir, Call::Rename],
        ),
    ] {
        for call in calls {
            for skip in 0.. {
                let fs = MemoryFs::new();
                let faults = Faults::new();
                let root = FaultyDir::new(fs.root(), &faults);
                faults.add(Rule::once(call, errno).after(skip));
                let mut done = Vec::new();
                let ended = history(&root, &mut done);
                let full = matches!(ended, Err(StoreError::NoSpace { .. }));
                assert_eq!(
                    full,
                    errno == ENOSPC && ended.is_err(),
                    "{call:?} {skip}: {ended:?}"
                );
                faults.clear();
                let store =
                    Store::open_or_create(&root, CountingHost::from(1 << 20), SMALL).unwrap();
                whole_names(&store);
                let tmp: Arc<dyn Dir> = root.open_dir("tmp").unwrap();
                assert_eq!(tmp.list().unwrap(), [""; 0], "{call:?} {skip}");
                if faults.met() == 0 {
                    assert!(ended.is_ok());
                    assert!(skip > 2, "{call:?}: the fault was never met");
                    break;
                }
            }
        }
    }
}

/// The first answer is lost, and the store is asked again: it finds the name taken, by what it has done itself.
#[test]
fn a_commit_that_is_made_twice_is_made() {
    let (fs, faults) = (MemoryFs::new(), Faults::new());
    let root = FaultyDir::new(fs.root(), &faults);
    let store = Store::open_or_create(&root, CountingHost::from(1), SMALL).unwrap();
    let lease = store.lease().unwrap();
    let put = |blocks: u64| {
        let header = store.put_header(&lease, &spec(None, blocks * 4096, &[]));
        header.unwrap()
    };
    let (first, second) = (put(1), put(2));
    faults.add(Rule::any(Fault::Twice).on("snapshots/one"));
    store.commit(&lease, &name("one"), &first, false).unwrap();
    assert_eq!(faults.met(), 1);
    assert_eq!(store.resolve(&name("one")).unwrap().id(), first.id());
    // It is durable, and another's name stays taken.
    let after = fs.after_cut(Forget::Unsynced).root();
    let after = Store::open(&*after, CountingHost::from(1 << 20), SMALL).unwrap();
    assert!(same(&whole_names(&after), &[("one", 1)]));
    let taken = store.commit(&lease, &name("one"), &second, false);
    assert!(matches!(taken, Err(StoreError::AlreadyExists { .. })));
}
