//! What this machine has, and lends.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pages of 2 MiB that the system keeps for who asks for them; as it was, in the end. One at a time: the end of another one would take them away.
#[derive(Debug)]
pub struct HugePages {
    before: Option<String>,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl HugePages {
    const PATH: &str = "/proc/sys/vm/nr_hugepages";

    /// At least so many, while this lives.
    pub fn lent(count: u32) -> Self {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::fs::read_to_string(Self::PATH).ok();
        let has = before.as_deref().and_then(|text| text.trim().parse().ok());
        let is_short = has.is_none_or(|has: u32| has < count);
        let asked = is_short && std::fs::write(Self::PATH, count.to_string()).is_ok();
        Self {
            before: before.filter(|_| asked),
            _alone,
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            drop(std::fs::write(Self::PATH, before));
        }
    }
}

/// Can this machine? If not, a line says why.
pub fn can(test: &str, huge: bool) -> bool {
    let mut needs = Vec::new();
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd")
        .is_err()
    {
        needs.push("/dev/userfaultfd (Linux 6.1, as root)");
    }
    if huge && crate::Memory::new(2 << 20, true).is_none() {
        needs.push("pages of 2 MiB (vm.nr_hugepages)");
    }
    let missing = needs.join(", ");
    if !missing.is_empty() {
        eprintln!("SKIP {test}: needs {missing}");
    }
    missing.is_empty()
}

/// Has this machine processors to lend? If not, a line says so.
pub fn can_kvm(test: &str) -> bool {
    let can = crate::vcpu::is_there();
    if !can {
        eprintln!("SKIP {test}: needs /dev/kvm");
    }
    can
}
