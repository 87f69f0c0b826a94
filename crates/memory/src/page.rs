//! [`next`]: what a page of a guest's memory becomes, and what is to be done about it, whatever happens to it.
//!
//! The kernel stops a thread of the guest where a page is not there (a *fault*), or is there and may not be written yet
//! (a *write-protect fault*), and tells the userfaultfd; it tells of a *removal*, madvise(2) or a balloon, before it happens. What is
//! told may be old by the time it is looked at: two threads can stop at one page, and only one of them is the first.
//!
//! | state | what it says |
//! |---|---|
//! | Missing | never served; its bytes are the image's |
//! | Clean | served from the image, not written since, write-protected |
//! | Dirty | may have been written; its bytes are the guest's alone |
//! | Kept | was written, and a snapshot has that; its bytes are the guest's alone; not written since, write-protected |
//! | Zero | served as zeros, not written since, write-protected |
//! | Removed | given back by the guest: it reads as zeros |
//!
//! | event | Missing | Clean | Dirty | Kept | Zero | Removed |
//! |---|---|---|---|---|---|---|
//! | read fault | install, protected | install (1) | install zeros, writable (2) | install zeros (3) | install zeros (3) | install zeros |
//! | write fault | install, writable | install (1) | install zeros, writable (2) | install zeros (3) | install zeros, writable (4) | install zeros, writable |
//! | write-protect fault | ! | unprotect → Dirty | unprotect (5) | unprotect → Dirty | unprotect → Dirty | unprotect (6) |
//! | removal | → Removed (7) | → Removed | → Removed | → Removed | → Removed | - |
//! | installed, protected | → Clean | - | ! | ! | ! | ! (8) |
//! | installed, writable | → Dirty | → Dirty | ! | ! | ! | ! (8) |
//! | zeros installed, protected | → Zero (9) | ! | ! | → Zero | - | → Zero |
//! | zeros installed, writable | → Dirty | ! | - (2) | ! | → Dirty | → Dirty |
//! | harvested | - | - | → Kept (10) | - | - (11) | - (11) |
//! | harvest lost | - | - | - | → Dirty (12) | - | - |
//!
//! 1. The fault was told before the page was installed for another one; most likely it is there by now. It is installed again
//!    all the same: the kernel refuses what is there (`EEXIST`), and that wakes. To wake without looking would
//!    stop a guest for ever whose page the kernel has dropped (a shared mapping that was punched without an event).
//! 2. As (1), but the image's bytes would be wrong here. Where it is not there, it was given back: zeros that were installed and written
//!    between the event of a removal and the removal itself went with it. To wake without looking would never end. It stays
//!    dirty, since it may be written at once.
//! 3. As (2), before they were written. A page that a snapshot has, and that is still to be copied for it, is zeros there as well: it is protected, so that it is copied
//!    before it is written.
//! 4. What a snapshot has of it is zeros, and is not copied.
//! 5. Two threads stopped at one page, and this is the second; or a harvest that was lost left the page protected.
//! 6. It was given back after the fault. The thread faults again, and that fault tells what is so now.
//! 7. Whatever the image has for it: a page that was given back reads as zeros from now on.
//! 8. This would be a page that was given back, and has its old bytes again. Installs and removals exclude each other (`guest.rs`).
//! 9. The image has zeros there.
//! 10. A snapshot is to have its bytes. It is protected again, and what it holds is copied before it is written (`capture.rs`).
//! 11. The snapshot has zeros there.
//! 12. The snapshot is not to be. What it was to have is for the next one.
//!
//! `!` cannot be; where it is all the same, the guest is stopped loudly ([`Impossible`]): nobody knows what its memory holds.
//!
//! Not here: which pages are on their way (`guest.rs`), and what the kernel answers (`install.rs`).

use std::fmt;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageState {
    /// Never served.
    Missing,
    /// Served from the image, not written since.
    Clean,
    /// May have been written.
    Dirty,
    /// Was written, and not since the last snapshot.
    Kept,
    /// Served as zeros, not written since.
    Zero,
    /// Given back by the guest.
    Removed,
}

impl PageState {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Missing,
        Self::Clean,
        Self::Dirty,
        Self::Kept,
        Self::Zero,
        Self::Removed,
    ];
}

/// What happens to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageEvent {
    /// A thread wants to read what is not there.
    ReadFault,
    /// A thread wants to write what is not there.
    WriteFault,
    /// A thread wants to write what is protected.
    ProtectFault,
    /// The guest gives it back.
    Remove,
    /// It is there now.
    Installed(Install),
    /// A snapshot is to have its bytes, and it is protected again.
    Harvested,
    /// That snapshot is not to be.
    HarvestLost,
}

impl PageEvent {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::ReadFault,
        Self::WriteFault,
        Self::ProtectFault,
        Self::Remove,
        Self::Installed(Install::IMAGE),
        Self::Installed(Install::IMAGE.writable()),
        Self::Installed(Install::ZEROS),
        Self::Installed(Install::ZEROS.writable()),
        Self::Harvested,
        Self::HarvestLost,
    ];
}

/// How a page is put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Install {
    /// Its bytes.
    pub bytes: Bytes,
    /// A first write is noticed.
    pub is_protected: bool,
}

/// Where a page's bytes are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bytes {
    /// What the snapshot has for it.
    Image,
    /// Zeros, whatever the snapshot has.
    Zeros,
}

impl Install {
    /// The image's bytes, protected.
    pub const IMAGE: Self = Self {
        bytes: Bytes::Image,
        is_protected: true,
    };
    /// Zeros, protected.
    pub const ZEROS: Self = Self {
        bytes: Bytes::Zeros,
        is_protected: true,
    };

    /// The same for one who writes at once: a second fault for the same write is spared.
    pub const fn writable(self) -> Self {
        Self {
            is_protected: false,
            ..self
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Put it in place, and wake who waits; then [`PageEvent::Installed`].
    Install(Install),
    /// Lift the protection, and wake who waits.
    Unprotect,
}

/// What happened to a page to which it cannot happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a page that is {state} was met by {event:?}, which cannot be: nobody knows what it holds")]
pub struct Impossible {
    /// What the page was.
    pub state: PageState,
    /// What happened to it.
    pub event: PageEvent,
}

/// The table of the module: what the page is from now on, and what is to be done. Where that is an install, the page becomes what it
/// makes of it once it is done.
///
/// # Errors
/// [`Impossible`].
pub fn next(state: PageState, event: PageEvent) -> Result<(PageState, Action), Impossible> {
    use PageEvent as E;
    use PageState::{Clean, Dirty, Kept, Missing, Removed, Zero};
    let install = |install| (state, Action::Install(install));
    Ok(match (state, event) {
        (Missing | Clean, E::ReadFault) => install(Install::IMAGE),
        (Missing | Clean, E::WriteFault) => install(Install::IMAGE.writable()),
        (Kept, E::ReadFault | E::WriteFault) | (Zero | Removed, E::ReadFault) => {
            install(Install::ZEROS)
        }
        (Zero | Removed, E::WriteFault) | (Dirty, E::ReadFault | E::WriteFault) => {
            install(Install::ZEROS.writable())
        }
        (Clean | Dirty | Kept | Zero, E::ProtectFault) => (Dirty, Action::Unprotect),
        (Removed, E::ProtectFault) => (Removed, Action::Unprotect),
        (_, E::Remove) => (Removed, Action::Nothing),
        (_, E::Installed(done)) => match installed(state, done) {
            Some(next) => (next, Action::Nothing),
            None => return Err(Impossible { state, event }),
        },
        (Dirty, E::Harvested) => (Kept, Action::Nothing),
        (Kept, E::HarvestLost) => (Dirty, Action::Nothing),
        (Missing | Clean | Kept | Zero | Removed, E::Harvested)
        | (Missing | Clean | Dirty | Zero | Removed, E::HarvestLost) => (state, Action::Nothing),
        (Missing, E::ProtectFault) => return Err(Impossible { state, event }),
    })
}

fn installed(state: PageState, install: Install) -> Option<PageState> {
    use PageState::{Clean, Dirty, Kept, Missing, Removed, Zero};
    let protected = match (state, install.bytes) {
        (Missing | Clean, Bytes::Image) => Clean,
        (Missing | Zero | Removed, Bytes::Zeros) => Zero,
        (Kept, Bytes::Zeros) if install.is_protected => Zero,
        (Dirty, Bytes::Zeros) if !install.is_protected => Dirty,
        (Dirty | Kept | Zero | Removed, Bytes::Image) | (Clean | Dirty | Kept, Bytes::Zeros) => {
            return None;
        }
    };
    Some(if install.is_protected {
        protected
    } else {
        Dirty
    })
}

impl fmt::Display for PageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Clean => "clean",
            Self::Dirty => "dirty",
            Self::Kept => "kept",
            Self::Zero => "zero",
            Self::Removed => "removed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the module's text, cell by cell.
    fn table() -> Vec<(PageEvent, Vec<String>)> {
        let text = include_str!("page.rs");
        let rows = text.lines().map_while(|line| line.strip_prefix("//!"));
        let rows = rows.filter_map(|row| row.trim().strip_prefix('|')?.strip_suffix('|'));
        let rows = rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()));
        let rows: Vec<Vec<_>> = rows
            .map(Iterator::collect)
            .filter(|row: &Vec<_>| row.len() == 7)
            .collect();
        assert_eq!(rows[0][1..], PageState::ALL.map(|s| format!("{s:?}")));
        let events = rows[2..].iter().map(|row| {
            let event = match &*row[0] {
                "read fault" => PageEvent::ReadFault,
                "write fault" => PageEvent::WriteFault,
                "write-protect fault" => PageEvent::ProtectFault,
                "removal" => PageEvent::Remove,
                "installed, protected" => PageEvent::Installed(Install::IMAGE),
                "installed, writable" => PageEvent::Installed(Install::IMAGE.writable()),
                "zeros installed, protected" => PageEvent::Installed(Install::ZEROS),
                "zeros installed, writable" => PageEvent::Installed(Install::ZEROS.writable()),
                "harvested" => PageEvent::Harvested,
                "harvest lost" => PageEvent::HarvestLost,
                other => panic!("what is {other}?"),
            };
            (event, row[1..].to_vec())
        });
        events.collect()
    }

    fn cell(state: PageState, event: PageEvent) -> String {
        let Ok((to, action)) = next(state, event) else {
            return "!".into();
        };
        let action = match action {
            Action::Nothing => "",
            Action::Unprotect => "unprotect",
            Action::Install(install) => {
                let zeros = install.bytes == Bytes::Zeros;
                return match (zeros, install.is_protected) {
                    (false, true) => "install, protected",
                    (false, false) => "install, writable",
                    (true, true) => "install zeros",
                    (true, false) => "install zeros, writable",
                }
                .into();
            }
        };
        let arrow = if to == state {
            String::new()
        } else {
            format!("→ {to:?}")
        };
        match format!("{action} {arrow}").trim() {
            "" => "-".into(),
            said => said.into(),
        }
    }

    #[test]
    fn the_table_is_what_is_written() {
        let table = table();
        let events: Vec<_> = table.iter().map(|(event, _)| *event).collect();
        assert_eq!(events, PageEvent::ALL);
        for (event, cells) in table {
            for (state, written) in PageState::ALL.into_iter().zip(cells) {
                let written = written.split(" (").next().unwrap_or_default();
                let found = cell(state, event);
                // Of what is installed again, the text leaves out how.
                let short = found.split(',').next().unwrap_or_default();
                assert!(
                    written == found || written == short,
                    "{event:?} of {state}: {found}, not {written}"
                );
            }
        }
    }

    #[test]
    fn a_page_that_was_given_back_never_has_its_old_bytes_again() {
        let (removed, _) = next(PageState::Dirty, PageEvent::Remove).unwrap();
        for event in PageEvent::ALL {
            match next(removed, event) {
                Ok((_, Action::Install(install))) => assert_eq!(install.bytes, Bytes::Zeros),
                Ok((to, _)) => assert_ne!(to, PageState::Clean),
                Err(_) => {
                    assert!(matches!(event, PageEvent::Installed(i) if i.bytes == Bytes::Image))
                }
            }
        }
    }

    /// What a guest wrote is nowhere but in its memory: where that is gone, nothing of the image takes its place.
    #[test]
    fn what_was_written_never_has_the_image_s_bytes_again() {
        for state in [PageState::Dirty, PageState::Kept] {
            for event in PageEvent::ALL {
                match next(state, event) {
                    Ok((_, Action::Install(install))) => assert_eq!(install.bytes, Bytes::Zeros),
                    Ok((to, _)) => assert!(![PageState::Missing, PageState::Clean].contains(&to)),
                    Err(_) => assert!(matches!(event, PageEvent::Installed(_))),
                }
            }
        }
    }

    /// Of what a guest wrote, nothing is forgotten but by a harvest or a removal.
    #[test]
    fn what_is_dirty_stays_dirty() {
        for event in PageEvent::ALL {
            let to = next(PageState::Dirty, event).map(|(to, _)| to);
            match event {
                PageEvent::Remove => assert_eq!(to, Ok(PageState::Removed)),
                PageEvent::Harvested => assert_eq!(to, Ok(PageState::Kept)),
                _ => assert!(to.is_err() || to == Ok(PageState::Dirty)),
            }
        }
    }
}
