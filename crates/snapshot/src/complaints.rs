//! [`Complaints`]: damage that readers come by, said once for each object and place, not once for
//! each request.
//!
//! What was said is kept, up to a bound; past it one last line says that there is more.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::StoreError;

/// Lines before the last one.
const SAID_MAX: usize = 1000;

type Say = Box<dyn Fn(&str) + Send + Sync>;

/// See the module. Silent until somebody listens.
#[derive(Default)]
pub(crate) struct Complaints {
    say: OnceLock<Say>,
    said: Mutex<HashSet<String>>,
}

impl Complaints {
    /// Who is told; the first one counts.
    pub(crate) fn listen(&self, say: Say) {
        drop(self.say.set(say));
    }

    /// A read failed for this.
    pub(crate) fn hear(&self, error: &StoreError) {
        let stored = matches!(
            error,
            StoreError::Corrupt { .. } | StoreError::Version { .. } | StoreError::Io { .. }
        );
        if let (true, Some(say)) = (stored, self.say.get()) {
            let text = error.to_string();
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            let known = said.len();
            if known <= SAID_MAX && said.insert(text.clone()) {
                drop(said);
                say(match known {
                    SAID_MAX => "more is damaged than is said here",
                    _ => &text,
                });
            }
        }
    }
}

impl fmt::Debug for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "{} complaints", said.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ObjectError;
    use std::sync::Arc;

    #[test]
    fn each_is_said_once_and_not_more_than_can_be_kept() {
        let complaints = Complaints::default();
        let damage = |n: usize| ObjectError::damaged(format!("byte {n}"), "?").of("x");
        complaints.hear(&damage(0));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&heard);
        complaints.listen(Box::new(move |line| {
            into.lock().unwrap().push(line.to_owned())
        }));
        for n in 0..3 * SAID_MAX {
            complaints.hear(&damage(n));
            complaints.hear(&damage(n / 2));
            complaints.hear(&StoreError::Invalid("a request".to_owned()));
        }
        let heard = heard.lock().unwrap();
        assert_eq!(heard.len(), SAID_MAX + 1);
        assert_eq!(heard[0], "x is damaged: byte 0: ?");
        assert_eq!(heard.iter().collect::<HashSet<_>>().len(), heard.len());
        assert!(heard[SAID_MAX].contains("more"));
    }
}
