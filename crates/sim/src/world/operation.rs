//! [`Operation`]: what a history is made of, and [`history`]: one that a seed decides.

use cowslip_block::Room;

use super::{BLOCK, SIZE_BYTES};
use crate::seeded::Seeded;

/// Which session.
pub type SessionNumber = u8;

/// Sessions that a world may have at once.
const SESSIONS_MAX: SessionNumber = 3;

/// One thing that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as the requests and commands of the same name")]
pub enum Operation {
    Write {
        session: SessionNumber,
        at: usize,
        len: usize,
        fua: bool,
    },
    /// Whole blocks, alternately data and zeros.
    Mixed {
        session: SessionNumber,
        block: usize,
        blocks: usize,
    },
    Zero {
        session: SessionNumber,
        at: usize,
        len: usize,
        room: Room,
    },
    Trim {
        session: SessionNumber,
        at: usize,
        len: usize,
    },
    Flush(SessionNumber),
    /// The snapshot is called after the place in the history.
    Freeze(SessionNumber),
    /// One attempt to store the oldest that was frozen.
    Seal(SessionNumber),
    /// The same; a collection by another process runs in the middle of it, once this many operations on
    /// files were made.
    SealAndCollect(SessionNumber, u64),
    Tidy(SessionNumber),
    Checkpoint(SessionNumber),
    GoOver(SessionNumber),
    /// Closed, and opened again.
    Restart(SessionNumber),
    /// Another session, from a snapshot that is there: the pick-th.
    Fork {
        session: SessionNumber,
        pick: usize,
    },
    Forget(SessionNumber),
    /// The pick-th name that is there goes.
    Remove(usize),
    Collect,
    Compact,
}

/// What a history is made of. What is rare among all operations is often there among few, and meets the same
/// again.
struct Taste {
    /// Has the bit of every fifth of a hundredth of [`one`]'s kinds that is wanted.
    kinds: u64,
    /// Most requests begin in one of so many blocks.
    blocks: usize,
}

/// So many operations that a seed decides: of all kinds, or of about half of them.
pub fn history(seed: u64, len: usize) -> Vec<Operation> {
    let mut seeded = Seeded::new(seed);
    let mut sessions = vec![0];
    let taste = Taste {
        kinds: [u64::MAX, seeded.up_to(u64::MAX - 1)][seeded.below(2)],
        blocks: [SIZE_BYTES / BLOCK, 3][seeded.below(2)],
    };
    let mut operations: Vec<Operation> = Vec::new();
    for _ in 0..len {
        let next = match operations.last().and_then(follows) {
            Some(next) if seeded.below(2) == 0 => next,
            _ => one(&mut seeded, &mut sessions, &taste),
        };
        operations.push(next);
    }
    operations
}

/// What is often asked for next: the life of a snapshot has many steps, and chance seldom takes them all.
fn follows(last: &Operation) -> Option<Operation> {
    match *last {
        Operation::Freeze(session) => Some(Operation::Seal(session)),
        // The oldest, which nobody stands on any more.
        Operation::Seal(_) => Some(Operation::Remove(0)),
        Operation::Remove(_) => Some(Operation::Collect),
        _ => None,
    }
}

fn one(seeded: &mut Seeded, sessions: &mut Vec<SessionNumber>, taste: &Taste) -> Operation {
    let mut below = |bound: usize| seeded.below(bound);
    let mut kind = below(100);
    // A plain write is always wanted.
    while kind >= 5 && taste.kinds >> (kind / 5) & 1 == 0 {
        kind = below(100);
    }
    let session = sessions[below(sessions.len())];
    // Many requests meet in a few blocks; some are not aligned to anything.
    let blocks = SIZE_BYTES / BLOCK;
    let (block, count) = (below(taste.blocks), 1 + below(3));
    let (at, len) = match below(3) {
        0 => (block * BLOCK, count * BLOCK),
        1 => (block * BLOCK + below(BLOCK), 1 + below(2 * BLOCK)),
        _ => (block * BLOCK + 512 * below(8), 512 * (1 + below(8))),
    };
    let len = len.min(SIZE_BYTES - at);
    match kind {
        0..26 => Operation::Write {
            session,
            at,
            len,
            fua: below(5) == 0,
        },
        26..32 => Operation::Mixed {
            session,
            block,
            blocks: count.min(blocks - block),
        },
        32..38 => Operation::Zero {
            session,
            at,
            len,
            room: [Room::Free, Room::Provision][below(2)],
        },
        38..46 => Operation::Trim {
            session,
            at,
            len: (len * (1 + below(4))).min(SIZE_BYTES - at),
        },
        46..54 => Operation::Flush(session),
        54..63 => Operation::Freeze(session),
        63..70 => Operation::Seal(session),
        70..73 => Operation::SealAndCollect(session, below(40) as u64),
        73..78 => Operation::Tidy(session),
        78..81 => Operation::Checkpoint(session),
        81..83 => Operation::GoOver(session),
        83..87 => Operation::Restart(session),
        87..90 if sessions.len() < usize::from(SESSIONS_MAX) => {
            let free = |n: &SessionNumber| !sessions.contains(n);
            let session = (0..SESSIONS_MAX).find(free).expect("there are fewer");
            sessions.push(session);
            Operation::Fork {
                session,
                pick: below(16),
            }
        }
        90..92 if sessions.len() > 1 => {
            sessions.retain(|n| *n != session);
            Operation::Forget(session)
        }
        87..95 => Operation::Remove(below(16)),
        95..98 => Operation::Collect,
        _ => Operation::Compact,
    }
}
