//! [`Host`]: what cowslip asks of the machine besides files: the time, the boot, fresh ids.
//!
//! It stands behind a trait so that a simulation can answer instead, the same for the same seed.
//! [`RealHost`] asks the kernel.

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// The time, the boot and fresh ids.
pub trait Host: Send + Sync + Debug {
    /// Milliseconds since 1970. For people to read: nothing is ordered by it.
    fn now_unix_ms(&self) -> u64;

    /// Which boot of the machine this is: it changes when, and only when, the page cache was lost.
    fn boot_id(&self) -> [u8; 16];

    /// An id that nothing else has.
    fn new_uuid(&self) -> Uuid;
}

/// The machine that we run on.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealHost;

/// Where Linux says which boot this is (random(4)).
const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

impl Host for RealHost {
    fn now_unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    }

    /// Where the kernel does not say, each call gives another id: every boot counts as a new one,
    /// which is the careful answer.
    fn boot_id(&self) -> [u8; 16] {
        let text = std::fs::read_to_string(BOOT_ID_PATH).unwrap_or_default();
        let boot = Uuid::try_parse(text.trim()).unwrap_or_else(|_| Uuid::new_v4());
        boot.into_bytes()
    }

    fn new_uuid(&self) -> Uuid {
        Uuid::new_v4()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_stays_the_same_and_ids_differ() {
        assert_eq!(RealHost.boot_id(), RealHost.boot_id());
        assert_ne!(RealHost.new_uuid(), RealHost.new_uuid());
        // After 2020: the unit is right.
        assert!(RealHost.now_unix_ms() > 1_577_836_800_000);
    }
}
