//! [`Part`]: what a snapshot is made of: a disk, a guest's memory, the state of its virtual machine monitor, and how its memory was used.
//!
//! Each part that a snapshot has is an image of its own, with a header and layers. One name stands for
//! all of them: they are committed in one step, by one record, and go with it. The trace alone comes later, when the snapshot has been used:
//! with another one, or none, it is the same snapshot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One part of a snapshot. Their order is that of a record, and the first that is there is what the name means where one image is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// A block device's bytes.
    Disk,
    /// A guest's memory.
    Memory,
    /// What the virtual machine monitor saved of itself. Nobody but that reads it.
    State,
    /// In which order a guest that was restored from it first touched its memory.
    Trace,
}

impl Part {
    /// All there are, in order.
    pub const ALL: [Self; 4] = [Self::Disk, Self::Memory, Self::State, Self::Trace];

    /// Its number in a record.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Disk => 1,
            Self::Memory => 2,
            Self::State => 3,
            Self::Trace => 4,
        }
    }

    pub(crate) fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.code() == code)
    }

    fn index(self) -> usize {
        self as usize
    }

    /// Its name, as it is typed behind a snapshot's.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::State => "state",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Part {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let found = Self::ALL.into_iter().find(|part| part.as_str() == text);
        found.ok_or(())
    }
}

/// Something of each part that a snapshot has, of which there is at least one; a trace is nothing by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<T>([Option<T>; Part::ALL.len()]);

impl<T> Parts<T> {
    /// Of a snapshot with one part.
    pub fn one(part: Part, of: T) -> Self {
        Self([const { None }; Part::ALL.len()]).with(part, of)
    }

    /// The same, and of one part more, or another of that part.
    pub fn with(mut self, part: Part, of: T) -> Self {
        self.0[part.index()] = Some(of);
        self
    }

    /// Of this part, if there is one.
    pub fn get(&self, part: Part) -> Option<&T> {
        self.0[part.index()].as_ref()
    }

    /// In order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Part, &T)> {
        let there = Part::ALL.into_iter().zip(&self.0);
        there.filter_map(|(part, of)| Some((part, of.as_ref()?)))
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    /// What the snapshot's name means where one image is wanted.
    pub fn main(&self) -> (Part, &T) {
        self.iter().next().expect("there is at least one")
    }

    /// The last that it was committed with: what is never another snapshot's as well. Nothing, where there is a trace alone.
    pub fn own(&self) -> Option<(Part, &T)> {
        self.iter().rfind(|(part, _)| *part != Part::Trace)
    }

    /// Of each part, what that makes of it.
    ///
    /// # Errors
    /// The first that it gives.
    pub fn try_map<'a, U, E>(
        &'a self,
        mut of: impl FnMut(Part, &'a T) -> Result<U, E>,
    ) -> Result<Parts<U>, E> {
        let mut made = Parts([const { None }; Part::ALL.len()]);
        for (part, value) in self.iter() {
            made.0[part.index()] = Some(of(part, value)?);
        }
        Ok(made)
    }

    /// The same, where nothing fails.
    pub fn map<'a, U>(&'a self, mut of: impl FnMut(Part, &'a T) -> U) -> Parts<U> {
        let made = self.try_map(|part, value| Ok::<_, std::convert::Infallible>(of(part, value)));
        match made {
            Ok(made) => made,
        }
    }

    /// Only this one of them, if it is there.
    pub(crate) fn only(&self, part: Part) -> Option<Self>
    where
        T: Copy,
    {
        Some(Self::one(part, *self.get(part)?))
    }
}

impl<T> fmt::Display for Parts<T> {
    /// Which there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (part, _)) in self.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{part}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_lead_back() {
        for part in Part::ALL {
            assert_eq!(Part::of_code(part.code()), Some(part));
            assert_eq!(part.as_str().parse(), Ok(part));
        }
        assert_eq!([0, 5, 255].map(Part::of_code), [None; 3]);
        assert_eq!("Disk".parse::<Part>(), Err(()));
    }

    #[test]
    fn they_come_in_order_and_the_first_is_meant() {
        let parts = Parts::one(Part::State, 3).with(Part::Memory, 2);
        assert_eq!(
            parts.iter().collect::<Vec<_>>(),
            [(Part::Memory, &2), (Part::State, &3)]
        );
        assert_eq!(
            (parts.main(), parts.own()),
            ((Part::Memory, &2), Some((Part::State, &3)))
        );
        assert_eq!(parts.with(Part::Trace, 9).own(), parts.own());
        assert_eq!(Parts::one(Part::Trace, 9).own(), None);
        assert_eq!((parts.get(Part::Disk), parts.count()), (None, 2));
        assert_eq!(parts.to_string(), "memory, state");
        assert_eq!(
            parts.map(|_, n| n * 2).only(Part::State),
            Some(Parts::one(Part::State, 6))
        );
    }
}
