//! [`FileSystem`]: an ext4 that was found, and can be read.
//!
//! Opening reads the superblock, the group descriptors and the journal's log. With [`State::Replayed`], all that is read
//! afterwards is as the next mount will find it, once it has replayed the journal: superblock and descriptors are read again.

use crate::descriptor::{self, GroupDescriptor};
use crate::error::Ext4Error;
use crate::journal::{self, Journal};
use crate::problems::{Problem, Problems};
use crate::source::Source;
use crate::superblock::{self, Superblock};
use crate::view::{Overlay, View};

/// What state of the file system is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum State {
    /// As the next mount will find it, after it has replayed the journal. For a file system that is in use this is the one
    /// whose parts fit each other.
    #[default]
    Replayed,
    /// As its blocks are.
    OnDisk,
}

/// An ext4 file system.
pub struct FileSystem<'a> {
    view: View<'a>,
    superblock: Superblock,
    descriptors: Vec<GroupDescriptor>,
    journal: Option<Journal>,
    problems: Problems,
}

impl<'a> FileSystem<'a> {
    /// Opens what the source holds.
    ///
    /// # Errors
    /// Where there is no file system, or none that can be read here.
    pub fn open(source: impl Source + 'a, state: State) -> Result<Self, Ext4Error> {
        let mut problems = Problems::default();
        let superblock = superblock::find(&source, &mut problems)?;
        let is_copy = problems.count(Problem::Superblock) > 0 && superblock.group != 0;
        let copy = if is_copy { superblock.group } else { 0 };
        let unknown = superblock.features.unknown().ro_compat;
        if unknown != 0 {
            problems.note(Problem::UnknownFeature, || {
                format!("read-only compatible features {unknown:#x} are not known to this version")
            });
        }
        let view = View::new(Box::new(source), &superblock);
        let mut own = Problems::default();
        let descriptors = descriptor::read_all(&view, &superblock, copy, &mut own)?;
        let mut fs = Self {
            view,
            superblock,
            descriptors,
            journal: None,
            problems,
        };
        let overlay = fs.read_journal(is_copy)?;
        if state == State::Replayed && !overlay.is_empty() {
            fs.view.lay_over(overlay);
            own = fs.read_again()?;
        }
        fs.problems.merge(own);
        Ok(fs)
    }

    fn read_journal(&mut self, is_copy: bool) -> Result<Overlay, Ext4Error> {
        let mut problems = std::mem::take(&mut self.problems);
        let read = journal::read(self, is_copy, &mut problems);
        self.problems = problems;
        match read {
            Ok(Some((journal, overlay))) => {
                self.journal = Some(journal);
                Ok(overlay)
            }
            Ok(None) => Ok(Overlay::new()),
            Err(error @ Ext4Error::Read { .. }) => Err(error),
            Err(error) => {
                self.problems.note(Problem::Journal, || error.to_string());
                Ok(Overlay::new())
            }
        }
    }

    /// Superblock and descriptors, as the journal has them, and what is wrong with these.
    fn read_again(&mut self) -> Result<Problems, Ext4Error> {
        let (block, at) = match self.superblock.block_bytes {
            1024 => (1, 0),
            _ => (0, superblock::BYTES),
        };
        let bytes = self.view.block(block)?;
        let raw = bytes[at..]
            .first_chunk()
            .expect("a superblock fits into a block");
        let replayed = Superblock::parse(raw, self.superblock.size_bytes())?;
        if !replayed.lies_as(&self.superblock) {
            let why = "its copy of the superblock has another layout";
            return Err(Ext4Error::damaged("the journal", why));
        }
        self.superblock = replayed;
        let mut problems = Problems::default();
        self.descriptors = descriptor::read_all(&self.view, &self.superblock, 0, &mut problems)?;
        Ok(problems)
    }

    /// How it is laid out.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Its journal, if it has one that can be read.
    pub fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref()
    }

    /// What was wrong when it was opened.
    pub fn problems(&self) -> &Problems {
        &self.problems
    }

    /// Blocks that are seen as the journal has them.
    pub fn replayed_blocks(&self) -> u64 {
        self.view.replayed_blocks()
    }

    /// Where a group's parts lie. The group is one of [`Superblock::groups`].
    pub fn descriptor(&self, group: u32) -> &GroupDescriptor {
        &self.descriptors[group as usize]
    }

    pub(crate) fn view(&self) -> &View<'a> {
        &self.view
    }
}
