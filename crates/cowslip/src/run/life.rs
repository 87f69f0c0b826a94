//! [`Life`]: what happens to a guest, and what is done then.
//!
//! | phase | what ends it | what is done |
//! |---|---|---|
//! | booting | it is ready | the command is started |
//! | | it takes too long, a signal | it is told to end |
//! | | it says that it failed | it ends by itself |
//! | working | the command ended, whoever is at its console leaves, too long, a signal | it is told to end |
//! | ending | it takes too long, a signal, whoever is at its console leaves once more | it is killed |
//! | killed | it takes too long: the kernel does not let go of it | nothing: it is over |
//! | any | QEMU has ended | nothing: it is over |
//!
//! Only the first reason counts. A guest is clean where it says that all is written back.

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Its first word.
    Hello,
    /// It has its files, and takes commands.
    Ready,
    /// The command ended so: wait(2).
    Exited(i32),
    /// It cannot go on.
    Failed(String),
    /// It has ended all that ran; why not all is written back, if it is not.
    Ended(String),
    /// Somebody wants it to end.
    Signal,
    /// Who was at its console has done with it.
    Left,
    /// Nothing happened for as long as this phase may take.
    Late,
    /// QEMU is gone.
    Gone,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    Start,
    End,
    Kill,
    Over,
}

/// Why it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The command did.
    Exited(i32),
    /// It took longer than it may.
    Late,
    /// Somebody wanted that.
    Interrupted,
    /// It could not go on.
    Failed(String),
    /// By itself.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Booting,
    Working,
    Ending,
    Killed,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) phase: Phase,
    pub(crate) outcome: Option<Outcome>,
    /// All was written back; or why not.
    pub(crate) end: Option<Result<(), String>>,
}

impl Life {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Booting,
            outcome: None,
            end: None,
        }
    }

    pub(crate) fn hear(&mut self, event: Event) -> Action {
        match (self.phase, event) {
            (_, Event::Gone) => {
                self.outcome.get_or_insert(Outcome::Gone);
                return Action::Over;
            }
            (_, Event::Ended(why)) => {
                let done = if why.is_empty() { Ok(()) } else { Err(why) };
                self.end = Some(done);
            }
            (_, Event::Failed(why)) => return self.ends_as(Outcome::Failed(why), Action::Nothing),
            (Phase::Booting, Event::Ready) => {
                self.phase = Phase::Working;
                return Action::Start;
            }
            (Phase::Working, Event::Exited(status)) => {
                return self.ends_as(Outcome::Exited(status), Action::End);
            }
            (Phase::Working, Event::Left) => return self.ends_as(Outcome::Exited(0), Action::End),
            (Phase::Ending, Event::Signal | Event::Late | Event::Left) => {
                self.phase = Phase::Killed;
                return Action::Kill;
            }
            (Phase::Killed, Event::Late) => return Action::Over,
            (Phase::Killed, Event::Signal) => {}
            (_, Event::Signal) => return self.ends_as(Outcome::Interrupted, Action::End),
            (_, Event::Late) => return self.ends_as(Outcome::Late, Action::End),
            // Too late to matter.
            (_, Event::Hello | Event::Ready | Event::Exited(_) | Event::Left) => {}
        }
        Action::Nothing
    }

    fn ends_as(&mut self, outcome: Outcome, action: Action) -> Action {
        self.phase = Phase::Ending;
        self.outcome.get_or_insert(outcome);
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lived(events: &[Event]) -> (Vec<Action>, Life) {
        let mut life = Life::new();
        let actions = events.iter().map(|event| life.hear(event.clone()));
        (actions.collect(), life)
    }

    #[test]
    fn a_command_is_run_and_the_guest_ends() {
        let all = [
            Event::Ready,
            Event::Exited(256),
            Event::Ended(String::new()),
            Event::Gone,
        ];
        let (actions, life) = lived(&all);
        let wanted = [Action::Start, Action::End, Action::Nothing, Action::Over];
        assert_eq!(actions, wanted);
        assert_eq!(life.outcome, Some(Outcome::Exited(256)));
        assert_eq!(life.end, Some(Ok(())));
    }

    #[test]
    fn the_first_reason_counts_and_who_does_not_end_is_killed() {
        for (event, outcome) in [
            (Event::Signal, Outcome::Interrupted),
            (Event::Late, Outcome::Late),
        ] {
            for begin in [&[Event::Ready][..], &[]] {
                for last in [Event::Gone, Event::Late] {
                    let ending = [event.clone(), Event::Exited(9), Event::Late];
                    let rest = [&ending[..], &[Event::Signal, last]].concat();
                    let (actions, life) = lived(&[begin, &rest].concat());
                    let wanted = [Action::End, Action::Nothing, Action::Kill];
                    let wanted = [&wanted[..], &[Action::Nothing, Action::Over]].concat();
                    assert_eq!(actions[begin.len()..], wanted);
                    assert_eq!((life.outcome, life.end), (Some(outcome.clone()), None));
                }
            }
        }
        let (actions, life) = lived(&[Event::Failed("no disk".into()), Event::Gone]);
        assert_eq!(actions, [Action::Nothing, Action::Over]);
        assert_eq!(life.outcome, Some(Outcome::Failed("no disk".into())));
        let (actions, life) = lived(&[Event::Ready, Event::Left, Event::Left, Event::Gone]);
        let wanted = [Action::Start, Action::End, Action::Kill, Action::Over];
        assert_eq!(
            (&actions[..], life.outcome),
            (&wanted[..], Some(Outcome::Exited(0)))
        );
        let (_, life) = lived(&[Event::Ready, Event::Gone]);
        assert_eq!(life.outcome, Some(Outcome::Gone));
        let (_, life) = lived(&[Event::Ready, Event::Signal, Event::Ended("busy".into())]);
        assert_eq!(life.end, Some(Err("busy".into())));
    }
}
