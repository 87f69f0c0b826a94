//! What a guest of QEMU begins with: an initramfs, with a first process that finds the guest's files and takes commands from the host.
//!
//! ```text
//! initramfs() ──> kernel ──> /init (src/init): modules, the virtio port, the files of the guest, commands
//!                               ^
//! host ── frame ── virtio port ─┘
//! ```
//!
//! Where the files are says the initramfs: with a directory `/shares`, on the host (9p, as the tests' machines have it); else on the disk that the
//! kernel's command line calls `root=`, as with any initramfs.

mod cpio;
pub mod frame;
mod modules;

pub use cpio::Archive;
pub use modules::in_order;

/// The first process, linked statically (see build.rs). Empty where the compiler could not do that.
pub const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));
/// The name of the port to the host.
pub const PORT: &str = "cowslip";

/// An initramfs with the first process and these modules, by their file names, in this order. More may be added.
pub fn initramfs<'a>(modules: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Archive {
    let mut archive = Archive::new();
    for dir in ["proc", "sys", "modules"] {
        archive.directory(dir);
    }
    archive.file("init", INIT);
    for (number, (name, bytes)) in modules.into_iter().enumerate() {
        archive.file(&format!("modules/{number:02}-{name}"), &bytes);
    }
    archive
}
