//! A machine without a clock: ids count up, and the boot is what the world says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowslip_snapshot::host::Host;
use uuid::Uuid;

/// Ids of one life of a process never meet those of another.
const IDS_A_LIFE: u64 = 1 << 32;

#[derive(Debug)]
pub(super) struct SimHost {
    boot: u64,
    next: AtomicU64,
}

impl SimHost {
    /// Of the boot, and of the life of a process, that have these numbers.
    pub(super) fn new(boot: u64, life: u64) -> Arc<Self> {
        let next = AtomicU64::new(life * IDS_A_LIFE + 1);
        Arc::new(Self { boot, next })
    }
}

impl Host for SimHost {
    fn now_unix_ms(&self) -> u64 {
        1_800_000_000_000
    }

    fn boot_id(&self) -> [u8; 16] {
        u128::from(self.boot).to_be_bytes()
    }

    fn new_uuid(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.next.fetch_add(1, Ordering::Relaxed)))
    }
}
