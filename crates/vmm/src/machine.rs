//! What this machine has, and lends.

use std::fs::File;

/// Pages of 2 MiB that the system keeps for who asks for them; as it was, in the end.
#[derive(Debug)]
pub struct HugePages(Option<String>);

impl HugePages {
    const PATH: &str = "/proc/sys/vm/nr_hugepages";

    /// At least so many, while this lives.
    pub fn lent(count: u32) -> Self {
        let before = std::fs::read_to_string(Self::PATH).ok();
        let has = before.as_deref().and_then(|text| text.trim().parse().ok());
        match has.is_some_and(|has: u32| has >= count) {
            true => Self(None),
            false => {
                let asked = std::fs::write(Self::PATH, count.to_string());
                Self(before.filter(|_| asked.is_ok()))
            }
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
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
