//! Every maximum of this crate, in one place, and how they hang together.
//!
//! Nothing that a peer sends makes this crate allocate more than these say.

use std::time::Duration;

/// The largest payload of a READ or a WRITE, inclusive; advertised as the maximum payload size.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// A refused WRITE's payload is read and dropped up to here; above, the connection ends.
pub const REFUSED_PAYLOAD_BYTES_MAX: u32 = 128 << 20;
/// What one connection may owe its client: replies not yet sent, and a reservation for each flush
/// that is still running. While this is reached, the connection takes no further request.
pub const OWED_BYTES_MAX: usize = 64 << 20;
/// Requests and replies that a connection may hold as it likes, beside what it receives into.
pub const OWN_BYTES: usize = 2 << 20;
/// What all connections of a server may hold beyond [`OWN_BYTES`] each: large requests take turns.
pub const LARGE_BYTES_MAX: usize = 256 << 20;
/// While others wait for a turn, a client that lets its own lie still so long is sent away.
pub const HOLD_WITHIN: Duration = Duration::from_secs(5);
/// Fewer bytes than this, sent or taken in that time, count as lying still.
pub const MOVED_BYTES_MIN: usize = 1 << 20;
/// A connection looks so often whether somebody waits for what it holds.
pub const HOLD_LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is kept free in [`OWED_BYTES_MAX`] for any reply without data.
pub const REPLY_BYTES_MAX: usize = 1 << 10;
/// The text in an error reply, cut here.
pub const ERROR_TEXT_BYTES_MAX: usize = 512;
/// Extents of one metadata context in one BLOCK_STATUS reply.
pub const EXTENTS_MAX: usize = 1 << 16;
/// A zero run in a READ that is shorter than this travels as data: two chunk headers cost more.
pub const HOLE_BYTES_MIN: u64 = 512;

/// One receive asks for this much, and for the rest of a larger request.
pub const RECEIVE_BYTES: usize = 256 << 10;
/// Replies are sent as soon as so many bytes have gathered, even in the middle of a batch.
pub const SEND_BYTES: usize = 256 << 10;
/// After so long without a request a connection gives its buffers back.
pub const IDLE_AFTER: Duration = Duration::from_secs(1);

/// Connections served at once; more are accepted and closed.
pub const CONNECTIONS_MAX: usize = 128;
/// Lines about connections that ended badly, in this time: a client cannot fill a log.
pub const REPORTS_MAX: u32 = 20;
/// See [`REPORTS_MAX`].
pub const REPORTS_WITHIN: Duration = Duration::from_secs(10);
/// Threads that run flushes: one that is under way, and one for those that came meanwhile.
pub const FLUSH_THREADS_MAX: usize = 2;

/// From accept to transmission.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Options in one handshake.
pub const OPTIONS_MAX: usize = 256;
/// One option's data, kept in memory.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Longer option data than this is not even read to be dropped: the connection ends.
pub const OPTION_DRAIN_BYTES_MAX: u32 = 1 << 20;
/// Any string of the protocol.
pub const STRING_BYTES_MAX: usize = 4096;

/// `Server::stop`: requests that were received get so long to be answered.
pub const STOP_FINISH_WITHIN: Duration = Duration::from_millis(1000);
/// `Server::stop`: after that, threads get so long to end.
pub const STOP_END_WITHIN: Duration = Duration::from_millis(800);
/// After an accept that failed for want of files or memory.
pub const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);

/// Extents of one BLOCK_STATUS chunk that our client takes; the protocol's own bound.
pub const CLIENT_EXTENTS_MAX: usize = 1 << 20;
/// Requests that our client gathers before it sends them.
pub const CLIENT_SEND_BYTES: usize = 64 << 10;
/// Requests that our client holds unsent before `submit` waits for the server.
pub const CLIENT_UNSENT_BYTES_MAX: usize = 1 << 20;

/// The most that one request can add to what is owed: a READ in the worst cut of chunks.
pub(crate) const fn read_reply_bytes_max(len: u32) -> usize {
    // A hole header and a data header (60 bytes) for every 513 bytes is less than an eighth.
    len as usize + len as usize / 8 + REPLY_BYTES_MAX
}

/// Two contexts, a descriptor of eight bytes for each extent.
pub(crate) const STATUS_REPLY_BYTES_MAX: usize = 2 * 8 * EXTENTS_MAX + REPLY_BYTES_MAX;

const _: () = assert!(
    read_reply_bytes_max(PAYLOAD_BYTES_MAX) <= OWED_BYTES_MAX,
    "a connection that owes nothing can always take a request"
);
const _: () = assert!(STATUS_REPLY_BYTES_MAX <= OWED_BYTES_MAX);
const _: () = assert!(
    OWED_BYTES_MAX + PAYLOAD_BYTES_MAX as usize <= LARGE_BYTES_MAX,
    "whatever one connection may need, it can have"
);
const _: () = assert!(STATUS_REPLY_BYTES_MAX <= OWN_BYTES);
const _: () = assert!(PAYLOAD_BYTES_MAX <= REFUSED_PAYLOAD_BYTES_MAX);
const _: () = assert!(ERROR_TEXT_BYTES_MAX + 64 <= REPLY_BYTES_MAX);
const _: () = assert!(ERROR_TEXT_BYTES_MAX <= STRING_BYTES_MAX);
const _: () = assert!(EXTENTS_MAX <= CLIENT_EXTENTS_MAX);
