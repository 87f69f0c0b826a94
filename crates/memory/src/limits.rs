//! Every limit of this crate: what a virtual machine monitor may say, and how much of it is kept.

/// The longest handshake, in bytes. Firecracker's is some 150 bytes a region.
pub const HANDSHAKE_BYTES_MAX: usize = 64 << 10;
/// Regions of one guest: Firecracker has one below the device hole of its architecture, one above it, and one for each plugged memory device.
pub const REGIONS_MAX: usize = 128;
/// Guests of one server.
pub const GUESTS_MAX: usize = 16_384;
/// Handshakes that go on at the same time: each is a thread, for a moment.
pub const HANDSHAKES_MAX: usize = 64;
/// Pages in a trace: 4 GiB of the usual ones. Whatever was touched later is fetched when it is asked for.
pub const TRACE_PAGES_MAX: u64 = 1 << 20;
/// Runs in a trace: 8 MiB of them.
pub const TRACE_RUNS_MAX: usize = 1 << 20;
/// Frames of the disk that a memory's map points at, where nothing else is asked for: each may cost a fetch when the memory is restored. As many as hold
/// 256 MiB of a guest's page cache.
pub const DISK_FRAMES_MAX: u64 = 4096;
