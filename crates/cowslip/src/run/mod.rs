//! A guest under QEMU, whose disk this process serves.
//!
//! ```text
//! kernel.rs   a kernel, and the initramfs that takes it to the disk
//! qemu.rs     the program, what it is told, its end
//! agent.rs    the first process in the guest (crates/guest), over a virtio port
//! monitor.rs  QEMU itself (QMP)
//! console.rs  its serial line, for a person
//! life.rs     what happens to a guest, and what is done then: pure
//! guest.rs    all of them together, from the boot to the end
//! ```
//!
//! Nothing of it has a name on this machine: sockets are pairs, files are in memory, each handed to QEMU as a descriptor. So a kill -9 leaves
//! nothing behind; and QEMU dies with the thread that started it, which is the main one.

mod accel;
mod agent;
mod console;
mod guest;
mod kernel;
mod life;
mod monitor;
mod qemu;

pub(crate) use accel::choices;
pub(crate) use guest::{Booted, Guest, Held, Hold, Lived, Order, boot};
pub(crate) use kernel::{Kernel, Modules, initramfs};
pub(crate) use life::{Event, Outcome};
pub(crate) use qemu::{Machine, find_programs};
