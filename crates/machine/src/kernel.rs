//! [`Kernel`]: one of Debian's, in a cache of this user.
//!
//! ```text
//! $XDG_CACHE_HOME/cowslip/kernels/VERSION/
//!   vmlinux            not compressed, which an emulated processor would be long at
//!   release            what uname(1) will say
//!   lib/modules/RELEASE/
//! ```
//!
//! A directory is there whole or not at all. Who fetches it: `xtask/src/kernels.rs`.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use cowslip_guest::{INIT, in_order, initramfs};

/// What can be had: that of Debian 12, and the one in its backports.
pub const VERSIONS: [&str; 2] = ["6.1", "6.12"];

/// What a machine needs before it has its files, and before that what these need.
const MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
];

/// See the module.
#[derive(Clone, Debug)]
pub struct Kernel {
    dir: PathBuf,
    release: String,
}

impl Kernel {
    /// Where one of [`VERSIONS`] is, or is to be; nowhere for a user who has no home.
    pub fn place(version: &str) -> Option<PathBuf> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")))?;
        Some(cache.join("cowslip/kernels").join(version))
    }

    /// One of [`VERSIONS`], where it is there.
    pub fn find(version: &str) -> Option<Self> {
        let dir = Self::place(version)?;
        let release = std::fs::read_to_string(dir.join("release")).ok()?;
        let release = release.trim_end().to_owned();
        Some(Self { dir, release })
    }

    /// The program that QEMU, and Firecracker, begin with: ELF, with an entry for PVH.
    pub fn program(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// Its modules.
    pub fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.release)
    }

    /// These of its modules, each behind what it needs: by the names of their files, and as they are there, compressed or not. What is not there is built in.
    pub fn with_needs(&self, wanted: &[&str]) -> Vec<(String, Vec<u8>)> {
        let needs = std::fs::read_to_string(self.modules().join("modules.dep")).unwrap();
        let order = in_order(&needs, wanted).unwrap();
        let modules = order.into_iter().map(|path| {
            let name = path.rsplit('/').next().unwrap();
            let bytes = std::fs::read(self.modules().join(path)).unwrap();
            (name.to_owned(), bytes)
        });
        modules.collect()
    }

    /// What is unpacked into memory, for [`Machine`](crate::Machine). Each share is `ro PATH` or `rw PATH`.
    pub(crate) fn initramfs(&self, shares: &[String]) -> Vec<u8> {
        let modules = self.with_needs(&MODULES);
        let modules = modules.iter().map(|(name, bytes)| (&**name, bytes.clone()));
        let mut archive = initramfs(modules);
        archive.directory("shares");
        for (number, share) in shares.iter().enumerate() {
            archive.file(&format!("shares/{number:02}"), share.as_bytes());
        }
        archive.finish()
    }
}

/// Can this machine boot that kernel? If not, a line says what the test lacks; where `COWSLIP_REQUIRE_TOOLS` is 1, that is a failure.
pub fn have(test: &str, version: &str) -> Option<Kernel> {
    let kernel = Kernel::find(version);
    let mut needs = Vec::new();
    if kernel.is_none() {
        needs.push(format!(
            "Linux {version} of Debian (cargo xtask test fetches it)"
        ));
    }
    for program in ["qemu-system-x86_64", "setpriv"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
            needs.push(program.to_owned());
        }
    }
    if INIT.is_empty() {
        needs.push("a C library to link with statically".to_owned());
    }
    if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() != 0) {
        needs.push("root, whose files the machine has".to_owned());
    }
    if needs.is_empty() {
        return kernel;
    }
    let needs = needs.join(", ");
    let required = std::env::var_os("COWSLIP_REQUIRE_TOOLS").is_some_and(|value| value == "1");
    assert!(!required, "{test} needs {needs}");
    eprintln!("SKIP {test}: needs {needs}");
    None
}
