//! A disk that failed under a session, and works again.

use std::sync::Arc;

use cowslip_block::ByteOffset;
use cowslip_block::files::{Access, Dir};
use cowslip_sim::{Call, EIO, Faults, FaultyDir, MemoryFs, Rule};

use crate::session_world::{BASE_BYTES, BLOCK, World, bytes_of};

/// The same boot, the same process even: nothing but the note in its directory tells a session that
/// writes were lost.
#[test]
fn what_no_flush_covers_is_not_believed_after_a_failure() {
    // The note is left at once; or when the disk takes it.
    for disturbed in [false, true] {
        let faults = Faults::new();
        let root: Arc<dyn Dir> = Arc::new(FaultyDir::new(MemoryFs::new().root(), &faults));
        let world = World::create(&*root, 1);
        let device = world.session.device();
        let at = |block: usize| ByteOffset((block * BLOCK) as u64);
        device.write(at(0), &bytes_of(5, BLOCK)).unwrap();
        device.flush().unwrap();
        device.write(at(1), &bytes_of(6, BLOCK)).unwrap();
        faults.add(Rule::once(Call::Sync, EIO).on(".data"));
        if disturbed {
            faults.add(Rule::once(Call::Create, EIO).on("failed"));
        }
        device.flush().unwrap_err();
        drop(world.session.tidy());
        drop((device, world));
        // Another's bytes, as under a block that was zeroed, and whose room was written again.
        let session = root.open_dir("session").unwrap();
        let file = session.open("cache-1.data", Access::ReadWrite).unwrap();
        file.write_at(&bytes_of(7, BLOCK), at(1).0).unwrap();
        for _ in 0..2 {
            let world = World::open(&*root, 1).unwrap();
            let (found, base) = (world.read(), bytes_of(1, BASE_BYTES));
            assert!(found[..BLOCK] == bytes_of(5, BLOCK), "{disturbed}");
            assert!(
                found[BLOCK..2 * BLOCK] == base[BLOCK..2 * BLOCK],
                "{disturbed}"
            );
            assert!(!session.list().unwrap().contains(&"failed".to_owned()));
            // It is as sound as any.
            world.session.device().write(at(2), &[1]).unwrap();
            world.session.device().flush().unwrap();
        }
    }
}
