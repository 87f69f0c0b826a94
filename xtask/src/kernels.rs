//! The kernels that tests boot, into this user's cache: Debian's own packages, unpacked, never installed.
//!
//! What a directory of the cache holds is on top of `crates/machine/src/kernel.rs`. It is put together beside, and renamed when it is whole.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cowslip_machine::Kernel;

use crate::apt::Apt;
use crate::run::output;

/// The package that stands for the newest one of a suite.
const NEWEST: &str = "linux-image-amd64";

/// Where lists of packages are kept that the machine has not: beside the kernels.
pub(crate) fn lists() -> Option<PathBuf> {
    Some(Kernel::place("")?.parent()?.join("apt"))
}

/// Fetches one of the versions that [`Kernel`] knows.
pub(crate) fn fetch(version: &str) -> Result<()> {
    let place = Kernel::place(version).context("no home directory")?;
    let beside = place.parent().context("a place within the cache")?;
    std::fs::create_dir_all(beside)?;
    let dir = tempfile::tempdir_in(beside)?;
    let (apt, image) = newest(version).or_else(|_| {
        // The machine's lists may be old, or never have been fetched.
        Apt::system().get(&["update", "-q"]);
        newest(version)
    })?;
    println!("== fetching {image}");
    apt.unpack(&image, dir.path())?;
    let kernel = dir.path().join("kernel");
    put_together(dir.path(), &kernel)?;
    std::fs::rename(kernel, place).context("another one may have fetched it")
}

/// The package of that version, and who has it.
fn newest(version: &str) -> Result<(Apt, String)> {
    let is_it = |image: &String| image.starts_with(&format!("linux-image-{version}."));
    let system = Apt::system();
    if let Some(image) = system.depends(NEWEST)?.into_iter().find(is_it) {
        return Ok((system, image));
    }
    let apt = Apt::with_backports(&lists().context("no home directory")?)?;
    let images = apt.depends(NEWEST)?;
    match images.iter().find(|image| is_it(image)) {
        Some(image) => Ok((apt, image.clone())),
        None => bail!("Debian's newest here is {}", images.join(", ")),
    }
}

/// What was unpacked, as the cache has it.
fn put_together(unpacked: &Path, kernel: &Path) -> Result<()> {
    let files = std::fs::read_dir(unpacked.join("boot"))?;
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    let mut releases = names.filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()));
    let release = releases.next().context("the package has no kernel")?;
    let modules = kernel.join("lib/modules");
    std::fs::create_dir_all(&modules)?;
    let mut from = unpacked.join("usr/lib/modules");
    if !from.exists() {
        from = unpacked.join("lib/modules");
    }
    std::fs::rename(from.join(&release), modules.join(&release))?;
    output(Command::new("depmod").arg("-b").arg(kernel).arg(&release))?;
    let image = std::fs::read(unpacked.join("boot").join(format!("vmlinuz-{release}")))?;
    uncompressed(&image, &kernel.join("vmlinux"))?;
    Ok(std::fs::write(kernel.join("release"), release + "\n")?)
}

/// The kernel in an image as boot loaders have it (Documentation/arch/x86/boot.rst: `setup_sects`, `payload_offset`, `payload_length`).
fn uncompressed(image: &[u8], to: &Path) -> Result<()> {
    let number = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let payload = || {
        let start = (usize::from(*image.get(0x1f1)?) + 1) * 512 + number(0x248)?;
        image.get(start..start + number(0x24c)?)
    };
    let payload = payload().context("the kernel's image is cut")?;
    let program = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => bail!("the kernel is compressed in a way that is not known here"),
    };
    // Behind it, the kernel's build puts its length.
    let packed = to.with_extension("packed");
    std::fs::write(&packed, &payload[..payload.len().saturating_sub(4)])?;
    let mut command = Command::new(program);
    command.arg("-dcq").stdin(std::fs::File::open(&packed)?);
    command
        .stdout(std::fs::File::create(to)?)
        .stderr(Stdio::null());
    if !command.status().context(program)?.success() {
        bail!("{program} cannot unpack the kernel");
    }
    Ok(std::fs::remove_file(packed)?)
}
