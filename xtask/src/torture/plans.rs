//! The victims, and what each has to endure.

use super::fault::{Break, Fault, Under};
use super::place::Kind;

/// Whose client it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Our own, with an oracle for each unit.
    Requests,
    Fio,
    /// A file system on the kernel's block device.
    Files,
}

/// What a victim is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) name: &'static str,
    pub(super) store: Kind,
    /// None where it lies beside the store.
    pub(super) session: Option<Kind>,
    pub(super) by: By,
    pub(super) faults: &'static [(Fault, usize)],
}

const PLAIN: &[(Fault, usize)] = &[
    (Fault::Kill, 4),
    (Fault::Stop, 2),
    (Fault::Client(Break::Vanish), 3),
    (Fault::Client(Break::MidRequest), 3),
    (Fault::Client(Break::StopsSending), 3),
    (Fault::Client(Break::StopsReading), 3),
    (Fault::ClockForward, 2),
    (Fault::ClockBack, 2),
];

const TMPFS: &[(Fault, usize)] = &[
    (Fault::Full(Under::Session), 6),
    (Fault::Kill, 3),
    (Fault::Stop, 1),
    (Fault::Client(Break::Vanish), 1),
    (Fault::Client(Break::MidRequest), 1),
    (Fault::ClockBack, 1),
];

const DISK: &[(Fault, usize)] = &[
    (Fault::Full(Under::Session), 4),
    (Fault::FailWrites(Under::Session), 4),
    (Fault::FailReads(Under::Session), 3),
    (Fault::Kill, 3),
    (Fault::Stop, 1),
    (Fault::Client(Break::StopsReading), 1),
    (Fault::ClockForward, 1),
];

const STORE: &[(Fault, usize)] = &[
    (Fault::Full(Under::Store), 4),
    (Fault::FailWrites(Under::Store), 4),
    (Fault::FailReads(Under::Store), 4),
    (Fault::Full(Under::Session), 2),
    (Fault::Kill, 2),
    (Fault::Stop, 1),
    (Fault::ClockForward, 1),
];

const FIO: &[(Fault, usize)] = &[
    (Fault::Client(Break::Vanish), 4),
    (Fault::Kill, 3),
    (Fault::Full(Under::Session), 2),
    (Fault::Stop, 2),
    (Fault::ClockBack, 1),
];

const FILES: &[(Fault, usize)] = &[
    (Fault::Kill, 3),
    (Fault::Stop, 2),
    (Fault::Full(Under::Session), 3),
    (Fault::FailWrites(Under::Session), 3),
    (Fault::ClockForward, 1),
    (Fault::ClockBack, 1),
];

pub(super) const PLANS: &[Plan] = &[
    Plan {
        name: "plain",
        store: Kind::Directory,
        session: None,
        by: By::Requests,
        faults: PLAIN,
    },
    Plan {
        name: "tmpfs",
        store: Kind::Directory,
        session: Some(Kind::Tmpfs),
        by: By::Requests,
        faults: TMPFS,
    },
    Plan {
        name: "disk",
        store: Kind::Directory,
        session: Some(Kind::Disk),
        by: By::Requests,
        faults: DISK,
    },
    Plan {
        name: "store",
        store: Kind::Disk,
        session: Some(Kind::Tmpfs),
        by: By::Requests,
        faults: STORE,
    },
    Plan {
        name: "fio",
        store: Kind::Directory,
        session: Some(Kind::Tmpfs),
        by: By::Fio,
        faults: FIO,
    },
    Plan {
        name: "files",
        store: Kind::Directory,
        session: Some(Kind::Disk),
        by: By::Files,
        faults: FILES,
    },
];
