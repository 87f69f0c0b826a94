//! The floor: what a user would call changed, whatever the file system did for it.
//!
//! It is the number of 4 KiB blocks of regular files, counted from the start of each file, whose content is not what the
//! file of that path had there before, and is not zero. Files that are gone count nothing, nor do names, times, owners,
//! holes. The last block of a file counts if any byte of it is new.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::hand::{read_unseen, walk};

const BLOCK_BYTES: usize = 4096;
/// Stands for a block of zeros, and for one that is not there.
const ZERO: u64 = 0;

/// What files hold, by path and block, as hashes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Contents(BTreeMap<String, Vec<u64>>);

impl Contents {
    /// Of all files below a root.
    pub(crate) fn read(root: &Path) -> io::Result<Self> {
        let mut contents = Self::default();
        for (path, _) in walk(root, "")? {
            let hashes = hashes(&read_unseen(&root.join(&path))?);
            contents.0.insert(path, hashes);
        }
        Ok(contents)
    }

    /// Looks at these files again; how many blocks are new.
    pub(crate) fn update(&mut self, root: &Path, touched: &BTreeSet<String>) -> io::Result<u64> {
        let mut changed = 0;
        for path in touched {
            match read_unseen(&root.join(path)) {
                Ok(bytes) => {
                    let now = hashes(&bytes);
                    changed += count(self.0.get(path).map_or(&[], Vec::as_slice), &now);
                    self.0.insert(path.clone(), now);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.0.remove(path);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(changed)
    }

    /// Paths whose content is not the same there, and that nobody said were touched.
    pub(crate) fn unsaid(
        &self,
        root: &Path,
        touched: &BTreeSet<String>,
    ) -> io::Result<BTreeSet<String>> {
        let now = Self::read(root)?;
        let paths = self.0.keys().chain(now.0.keys());
        let is_unsaid =
            |path: &&String| !touched.contains(*path) && self.0.get(*path) != now.0.get(*path);
        Ok(paths.filter(is_unsaid).cloned().collect())
    }
}

fn count(before: &[u64], now: &[u64]) -> u64 {
    let before = before.iter().chain(std::iter::repeat(&ZERO));
    let new = now
        .iter()
        .zip(before)
        .filter(|(now, was)| now != was && **now != ZERO);
    new.count() as u64
}

fn hashes(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(BLOCK_BYTES).map(hash).collect()
}

fn hash(block: &[u8]) -> u64 {
    // The end of a file is as if zeros came after it.
    let len = block.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    if len == 0 {
        return ZERO;
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(&block[..len]);
    hasher.finish() | 1
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_new_content_counts() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("same"), [1; 9000]).unwrap();
        fs::write(at("edited"), [1; 12288]).unwrap();
        fs::write(at("gone"), [1; 9000]).unwrap();
        fs::write(at("longer"), [1; 4095]).unwrap();
        fs::write(at("zeroed"), [1; 8192]).unwrap();
        let mut contents = Contents::read(dir.path()).unwrap();
        fs::write(at("same"), [1; 9000]).unwrap();
        let edited = [[1; 4096], [2; 4096], [1; 4096]].concat();
        fs::write(at("edited"), edited).unwrap();
        fs::remove_file(at("gone")).unwrap();
        fs::write(at("longer"), [1; 4097]).unwrap();
        fs::write(at("zeroed"), [0; 8192]).unwrap();
        fs::write(at("new"), [3; 8193]).unwrap();
        let all = ["same", "edited", "gone", "longer", "zeroed", "new", "never"];
        let touched = all.map(str::to_owned).into();
        // One edited, two of the longer one, three new.
        assert_eq!(contents.update(dir.path(), &touched).unwrap(), 6);
        assert_eq!(contents.update(dir.path(), &touched).unwrap(), 0);
        let again = Contents::read(dir.path()).unwrap();
        assert_eq!(contents, again);
        fs::write(at("new"), [4; 8193]).unwrap();
        let only_same = ["same".to_owned()].into();
        let unsaid = again.unsaid(dir.path(), &only_same).unwrap();
        assert_eq!(unsaid, ["new".to_owned()].into());
    }
}
