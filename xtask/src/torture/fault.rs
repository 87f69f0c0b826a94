//! [`Fault`]: what is done to a victim, for how long, and what its clients may be told meanwhile.
//!
//! | fault                    | clients may be told        | what must be there afterwards              |
//! |--------------------------|----------------------------|--------------------------------------------|
//! | server killed            | the connection is gone     | all that was answered                      |
//! | server stopped           | nothing: they wait         | all that was answered                      |
//! | full                     | no space                   | all that was answered                      |
//! | writes fail              | input/output error         | all that was flushed, no other bytes       |
//! | reads fail               | input/output error         | all that was flushed, no other bytes       |
//! | client gone, half-closed | the connection is gone     | all that was answered                      |
//! | clock                    | nothing                    | all that was answered                      |

use std::collections::BTreeMap;

use crate::rig::random::Random;

/// Which of a victim's two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Under {
    Store,
    Session,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Kill,
    Stop,
    Full(Under),
    FailWrites(Under),
    FailReads(Under),
    Client(Break),
    ClockForward,
    ClockBack,
}

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Break {
    /// With requests on their way: killed, or its socket closed.
    Vanish,
    /// Half of a request is sent.
    MidRequest,
    /// shutdown(SHUT_WR), then it reads on.
    StopsSending,
    /// shutdown(SHUT_RD), then it sends on.
    StopsReading,
}

impl Fault {
    /// As the table calls it; `kind` is that of the place.
    pub(super) fn name(self, kind: &str) -> String {
        let of = |under| match under {
            Under::Store => "store",
            Under::Session => "session",
        };
        match self {
            Self::Kill => "server killed (kill -9)".to_owned(),
            Self::Stop => "server stopped for a while".to_owned(),
            Self::Full(under) => format!("full {kind} under the {}", of(under)),
            Self::FailWrites(under) => format!("writes fail under the {}", of(under)),
            Self::FailReads(under) => format!("reads fail under the {}", of(under)),
            Self::Client(Break::Vanish) => "client vanishes".to_owned(),
            Self::Client(Break::MidRequest) => "client vanishes in mid-request".to_owned(),
            Self::Client(Break::StopsSending) => "socket half-closed: no more requests".to_owned(),
            Self::Client(Break::StopsReading) => "socket half-closed: no more answers".to_owned(),
            Self::ClockForward => "clock jumps ahead".to_owned(),
            Self::ClockBack => "clock jumps back".to_owned(),
        }
    }

    /// Does a disk fail?
    pub(super) fn is_a_failure(self) -> bool {
        matches!(self, Self::FailWrites(_) | Self::FailReads(_))
    }

    /// How long, in milliseconds, at least and at most. What is killed is served again after this.
    fn lasts_ms(self) -> (usize, usize) {
        match self {
            Self::Kill => (0, 400),
            Self::Client(_) => (0, 1),
            Self::Stop | Self::Full(_) => (100, 2000),
            Self::FailWrites(_) | Self::FailReads(_) => (100, 1500),
            Self::ClockForward | Self::ClockBack => (500, 3000),
        }
    }
}

/// A moment of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Begin(Fault),
    End(Fault),
}

/// Faults at random that overlap, as moments in milliseconds.
pub(super) fn round(random: &mut Random, of: &[(Fault, usize)]) -> Vec<(usize, Event)> {
    let mut chosen = BTreeMap::new();
    for _ in 0..random.weighted(&[(1, 4), (2, 3), (3, 2)]) {
        let fault = random.weighted(of);
        let begin = random.below(600);
        let (least, most) = fault.lasts_ms();
        chosen.insert(fault, (begin, begin + least + random.below(most - least)));
    }
    let moments = chosen.into_iter();
    let mut events: Vec<_> = moments
        .flat_map(|(fault, (begin, end))| [(begin, Event::Begin(fault)), (end, Event::End(fault))])
        .collect();
    events.sort();
    events
}

#[test]
fn what_begins_ends() {
    let mut random = Random(3);
    let all = [
        (Fault::Kill, 1),
        (Fault::Stop, 1),
        (Fault::Full(Under::Store), 1),
    ];
    for _ in 0..100 {
        let events = round(&mut random, &all);
        assert!(!events.is_empty() && events.is_sorted());
        for (at, event) in &events {
            if let Event::Begin(fault) = event {
                let end = |e: &&(usize, Event)| e.1 == Event::End(*fault);
                assert!(events.iter().find(end).unwrap().0 >= *at);
            }
        }
    }
}
