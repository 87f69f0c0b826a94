//! [`Mount`]: what is mounted, from `/proc/self/mountinfo` (proc(5)), and mount(8) and umount(8).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::AttachError;
use crate::tool;

/// One mount of this process's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor` of its device; of no block device for btrfs and the like.
    pub device: String,
    /// Where it is mounted.
    pub target: PathBuf,
    /// The kind of file system.
    pub kind: String,
    /// What was mounted, as it was called.
    pub source: OsString,
}

/// All mounts, in the order in which they were made.
///
/// # Errors
/// Where `/proc` is missing.
pub fn all() -> Result<Vec<Mount>, AttachError> {
    let path = "/proc/self/mountinfo";
    let text = fs::read(path).map_err(AttachError::io(path))?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// Mounts of this block device, and of its partitions, the latest first.
///
/// # Errors
/// As [`all`].
pub fn of_device(device: &Path) -> Result<Vec<Mount>, AttachError> {
    let numbers = device.file_name().map(numbers).unwrap_or_default();
    let is_of = |mount: &Mount| {
        // The number tells under whatever name it was mounted; the name, where the file system has a number of its own.
        mount.source == device.as_os_str() || numbers.contains(&mount.device)
    };
    Ok(all()?.into_iter().rev().filter(is_of).collect())
}

/// The number of a block device, and those of its partitions.
fn numbers(name: &OsStr) -> Vec<String> {
    let sys = Path::new("/sys/block").join(name);
    let below = fs::read_dir(&sys).into_iter().flatten();
    let below = below.filter_map(|entry| Some(entry.ok()?.path()));
    let all = below.chain([sys]).map(|path| path.join("dev"));
    all.filter_map(|dev| Some(fs::read_to_string(dev).ok()?.trim().to_owned()))
        .collect()
}

/// Mounts a block device.
///
/// # Errors
/// What mount(8) said.
pub fn mount(
    device: &Path,
    target: &Path,
    options: &str,
    within: Duration,
) -> Result<(), AttachError> {
    let args = ["-o".as_ref(), options.as_ref(), "--".as_ref()];
    let paths = [device.as_os_str(), target.as_os_str()];
    tool::run("mount", &[&args[..], &paths[..]].concat(), within).map(drop)
}

/// Unmounts; `lazily` at once, whoever uses it: it goes when the last of them does.
///
/// # Errors
/// What umount(8) said: that it is in use, most likely.
pub fn unmount(target: &Path, lazily: bool, within: Duration) -> Result<(), AttachError> {
    let lazy: &[&OsStr] = if lazily { &["-l".as_ref()] } else { &[] };
    // The path is the kernel's own: to resolve it again would mean to look at what may be dead.
    let args = [lazy, &["-c".as_ref(), "--".as_ref(), target.as_os_str()]].concat();
    tool::run("umount", &args, within).map(drop)
}

/// The kind of file system on a block device; nothing where there is none that blkid(8) knows.
///
/// # Errors
/// Where blkid(8) cannot be run, or takes too long.
pub fn kind_of(device: &Path, within: Duration) -> Result<Option<String>, AttachError> {
    let args = ["-p", "-o", "value", "-s", "TYPE", "--"].map(OsStr::new);
    match tool::run(
        "blkid",
        &[&args[..], &[device.as_os_str()]].concat(),
        within,
    ) {
        Ok(kind) => Ok(Some(kind).filter(|kind| !kind.is_empty())),
        Err(AttachError::Refused { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

fn parse(line: &[u8]) -> Option<Mount> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let mut fields = line.split(|b| *b == b' ');
    let device = text(fields.nth(2)?);
    let target = unescaped(fields.nth(1)?).into();
    // Optional fields end with a dash.
    let mut fields = fields.skip_while(|field| *field != b"-");
    Some(Mount {
        device,
        target,
        kind: text(fields.nth(1)?),
        source: unescaped(fields.next()?),
    })
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescaped(mut field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    while let Some((first, rest)) = field.split_first() {
        let octal = rest.get(..3).filter(|_| *first == b'\\');
        let code = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(*first));
        field = if code.is_some() { &rest[3..] } else { rest };
    }
    OsString::from_vec(bytes)
}

/// Does this path lie in that directory, or is it the same? It need not be there yet.
pub fn lies_in(path: &Path, dir: &Path) -> bool {
    // The part of it that is there says where the rest will be.
    let parts = path.ancestors().map(|part| match part.as_os_str().len() {
        0 => Path::new("."),
        _ => part,
    });
    let there = parts.into_iter().find_map(|part| part.canonicalize().ok());
    let dir = dir.canonicalize();
    there.is_some_and(|there| dir.is_ok_and(|dir| there.starts_with(dir)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line =
            br"36 35 7:3 / /mnt/a\040b\134c rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw";
        let mount = parse(line).unwrap();
        assert_eq!(mount.target, Path::new(r"/mnt/a b\c"));
        assert_eq!(
            (&*mount.device, &*mount.kind, mount.source.as_bytes()),
            ("7:3", "ext4", &b"/dev/loop3"[..])
        );
        let plain = parse(b"1 0 0:20 / /x rw - tmpfs none rw").unwrap();
        assert_eq!(
            (&*plain.kind, plain.source.as_bytes()),
            ("tmpfs", &b"none"[..])
        );
        for bad in [&b""[..], b"1 2 3", b"36 35 7:3 / /mnt rw ext4 /dev/loop3"] {
            assert_eq!(parse(bad), None);
        }
        assert_eq!(unescaped(br"a\9b\04").as_bytes(), br"a\9b\04");
    }

    #[test]
    fn what_lies_in_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        std::os::unix::fs::symlink(&a, b.join("to-a")).unwrap();
        for inside in ["a", "a/x/y", "b/to-a", "b/to-a/x"] {
            assert!(lies_in(&dir.path().join(inside), &a), "{inside}");
        }
        for outside in ["b", "b/x", "ab", "x"] {
            assert!(!lies_in(&dir.path().join(outside), &a), "{outside}");
        }
        assert!(lies_in(Path::new("no/such/path"), Path::new(".")));
    }

    #[test]
    fn what_is_mounted_here() {
        assert!(
            all()
                .unwrap()
                .iter()
                .any(|m| m.target == Path::new("/proc"))
        );
    }
}
