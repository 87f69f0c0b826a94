//! [`Kernel`]: the one that a guest begins with, from a file or from its own disk; and the initramfs that takes it to the disk.
//!
//! Which modules it needs says its release, which a kernel has in its bytes: a bzImage in its header (Documentation/arch/x86/boot.rst), an ELF somewhere
//! in its data. A disk is untrusted: what is read of it is bounded.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cowslip_ext4::FileSystem;
use cowslip_guest::in_order;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::failure::{Failure, Kind};

/// More is no kernel.
const KERNEL_BYTES_MAX: u64 = 512 << 20;
/// All modules of Debian's kernel are listed in half a MiB.
const LIST_BYTES_MAX: u64 = 4 << 20;
/// A dozen of them have a few MiB together.
const MODULES_BYTES_MAX: u64 = 128 << 20;
/// What a guest needs before it has its files. A kernel may have any of them built in.
const MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "crc32c_generic",
    "ext4",
];

/// Which module needs which: modules.dep(5).
const LIST: &str = "modules.dep";

/// See the module.
pub(crate) struct Kernel {
    /// For QEMU.
    pub(crate) program: OwnedFd,
    /// Where it has it from, for people.
    pub(crate) from: String,
    /// What uname(1) says in the guest.
    pub(crate) release: String,
}

impl Kernel {
    /// The file that somebody named.
    pub(crate) fn of_file(path: &Path) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::file(path, &e);
        let program = File::open(path).map_err(failed)?;
        let bytes = match program.metadata().map_err(failed)?.len() {
            ..=KERNEL_BYTES_MAX => std::fs::read(path).map_err(failed)?,
            _ => Vec::new(),
        };
        let from = path.display().to_string();
        let release = release(&bytes).ok_or_else(|| no_kernel(&from))?;
        Ok(Self {
            program: program.into(),
            from,
            release,
        })
    }

    /// The newest that the image has.
    pub(crate) fn of_image(fs: &FileSystem<'_>) -> Result<Self, Failure> {
        let failed = |e| Failure::failed(format!("looking for a kernel in the image: {e}"));
        let mut names = match fs.look_up("/boot").map_err(failed)? {
            Some(boot) => fs.names(&boot).map_err(failed)?,
            None => Vec::new(),
        };
        names.retain(|name| name.starts_with(b"vmlinu"));
        names.sort_by_cached_key(|name| natural(name));
        let boot = |name: &Vec<u8>| format!("/boot/{}", String::from_utf8_lossy(name));
        let newest = names.iter().rev().map(boot);
        for path in newest.chain(["/vmlinuz".into(), "/vmlinux".into()]) {
            let Some(inode) = fs.look_up(&path).map_err(failed)? else {
                continue;
            };
            let bytes = fs.read_file(&inode, KERNEL_BYTES_MAX).map_err(failed)?;
            let from = format!("{path} of the image");
            let release = release(&bytes).ok_or_else(|| no_kernel(&from))?;
            let program = in_memory("kernel", &bytes)?;
            return Ok(Self {
                program,
                from,
                release,
            });
        }
        let message = "there is no kernel: the image has none in /boot";
        Err(Failure::new(Kind::NotFound, message)
            .hint("--kernel FILE, with --modules DIR; or build the template with one (Debian: linux-image-cloud-amd64)"))
    }
}

fn no_kernel(from: &str) -> Failure {
    Failure::failed(format!(
        "{from} is no Linux kernel that QEMU boots: bzImage, or an ELF that is not stripped of its version"
    ))
}

/// A file without a name.
fn in_memory(what: &str, bytes: &[u8]) -> Result<OwnedFd, Failure> {
    let failed = |e: io::Error| Failure::failed(format!("keeping the {what} in memory: {e}"));
    let fd = memfd_create(what, MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let mut file = File::from(fd);
    file.write_all(bytes).map_err(failed)?;
    Ok(file.into())
}

/// Of a bzImage, or of an ELF.
fn release(bytes: &[u8]) -> Option<String> {
    let word = |text: &[u8]| {
        let end = text.iter().position(|b| !b.is_ascii_graphic())?;
        let word = std::str::from_utf8(text.get(..end)?).ok()?;
        Some(word.to_owned()).filter(|word| (1..=100).contains(&word.len()) && !word.contains('/'))
    };
    if bytes.get(0x202..0x206) == Some(b"HdrS") {
        let at = usize::from(u16::from_le_bytes(*bytes.get(0x20e..)?.first_chunk()?));
        return word(bytes.get(at + 0x200..)?);
    }
    let banner = b"Linux version ";
    let is_one = |at: &usize| {
        let rest = &bytes[*at..];
        rest.starts_with(banner) && rest.get(banner.len()).is_some_and(u8::is_ascii_digit)
    };
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'L');
    let at = starts.map(|(at, _)| at).find(is_one)?;
    word(&bytes[at + banner.len()..])
}

/// An order in which 6.12 comes after 6.1.
fn natural(name: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let part = |part: &[u8]| {
        let digits = part.iter().take_while(|byte| is_digit(byte)).count();
        let number = std::str::from_utf8(&part[..digits]).unwrap_or("");
        (number.parse().unwrap_or(0), part[digits..].to_vec())
    };
    name.chunk_by(|a, b| is_digit(a) || !is_digit(b))
        .map(part)
        .collect()
}

/// Where a kernel's modules are.
pub(crate) enum Modules<'a, 'b> {
    Here(PathBuf),
    InImage(&'a FileSystem<'b>, String),
    /// Nowhere: the kernel may have what it needs built in.
    BuiltIn,
}

impl<'a, 'b> Modules<'a, 'b> {
    /// Those of this release: where somebody said, or in the image, or on this machine.
    pub(crate) fn find(
        said: Option<&Path>,
        fs: &'a FileSystem<'b>,
        release: &str,
    ) -> Result<Self, Failure> {
        if let Some(dir) = said {
            let list = dir.join(LIST);
            return match list.is_file() {
                true => Ok(Self::Here(dir.to_owned())),
                false => Err(Failure::new(
                    Kind::NotFound,
                    format!("{} is not there", list.display()),
                )
                .hint("--modules is the directory lib/modules/RELEASE of that kernel; depmod(8) makes the list")),
            };
        }
        let dir = format!("/lib/modules/{release}");
        let in_image = Self::InImage(fs, dir.clone());
        if in_image.read(LIST, LIST_BYTES_MAX)?.is_some() {
            return Ok(in_image);
        }
        let here = Path::new(&dir);
        Ok(match here.join(LIST).is_file() {
            true => Self::Here(here.to_owned()),
            false => Self::BuiltIn,
        })
    }

    fn read(&self, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, Failure> {
        match self {
            Self::BuiltIn => Ok(None),
            Self::Here(dir) => {
                let path = dir.join(path);
                let bytes = std::fs::read(&path).map_err(|e| Failure::file(&path, &e))?;
                Ok(Some(bytes))
            }
            Self::InImage(fs, dir) => {
                let path = format!("{dir}/{path}");
                let failed = |e| Failure::failed(format!("{path} of the image: {e}"));
                let inode = fs.look_up(&path).map_err(failed)?;
                inode
                    .map(|inode| fs.read_file(&inode, bytes_max).map_err(failed))
                    .transpose()
            }
        }
    }
}

/// What takes a kernel to its disk, and takes commands there.
pub(crate) fn initramfs(modules: &Modules<'_, '_>) -> Result<OwnedFd, Failure> {
    if cowslip_guest::INIT.is_empty() {
        let message = "this cowslip has no first process for guests: where it was built, nothing could be linked statically";
        return Err(Failure::failed(message));
    }
    let list = modules.read(LIST, LIST_BYTES_MAX)?.unwrap_or_default();
    let list = String::from_utf8_lossy(&list);
    let mut files = Vec::new();
    let mut bytes_left = MODULES_BYTES_MAX;
    let order = in_order(&list, &MODULES)
        .ok_or_else(|| Failure::failed(format!("{LIST} names far more than a disk needs")))?;
    for path in order {
        let missing = || Failure::new(Kind::NotFound, format!("the module {path} is not there"));
        let name = path.rsplit('/').next().unwrap_or(path);
        let bytes = modules.read(path, bytes_left)?.ok_or_else(missing)?;
        bytes_left = bytes_left.saturating_sub(bytes.len() as u64);
        files.push((name, bytes));
    }
    in_memory("initramfs", &cowslip_guest::initramfs(files).finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_says_its_release() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x315].copy_from_slice(b"6.1.0-56-amd64 (a) b\0");
        assert_eq!(release(&image).unwrap(), "6.1.0-56-amd64");
        // It leads out of the file; it is no word.
        image[0x20e..0x210].copy_from_slice(&0xffff_u16.to_le_bytes());
        assert_eq!(release(&image), None);
        let elf = b"\x7fELF..Linux version %s (%s)\0..Linux version 6.12.9+x (b) #1\0";
        assert_eq!(release(elf).unwrap(), "6.12.9+x");
        for bad in [
            &b""[..],
            b"Linux version 6",
            b"Linux version 6/../x \0",
            b"L",
        ] {
            assert_eq!(release(bad), None);
        }
    }

    #[test]
    fn the_newest_kernel_comes_last() {
        let mut names = [
            "vmlinuz-6.12.9-cloud",
            "vmlinuz-6.1.0-9",
            "vmlinuz-6.1.0-56",
            "vmlinuz",
        ];
        names.sort_by_cached_key(|name| natural(name.as_bytes()));
        let wanted = [
            "vmlinuz",
            "vmlinuz-6.1.0-9",
            "vmlinuz-6.1.0-56",
            "vmlinuz-6.12.9-cloud",
        ];
        assert_eq!(names, wanted);
    }
}
