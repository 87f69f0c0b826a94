//! Running programs: one step after the other, the first that fails ends it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The workspace.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR");
    let here = here.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent()
        .expect("xtask is a directory of the workspace")
        .to_owned()
}

/// Where cargo builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |d| root().join(d))
}

/// Cargo, in the workspace.
pub(crate) fn cargo<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new("cargo");
    command.args(args).current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs one step that must succeed, its output shown.
pub(crate) fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("== {name}: {}", line(command));
    let begun = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("{name}: {}", line(command)))?;
    if !status.success() {
        bail!("{name} failed ({status}): {}", line(command));
    }
    println!("== {name}: passed, {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a program that must succeed, quietly; its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting {}", line(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} ({}): {}", line(command), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program by its name; those of e2fsprogs are not on everybody's PATH.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places
        .map(|place| place.join(name))
        .find(|path| path.is_file())
}

/// A command as one would type it.
fn line(command: &Command) -> String {
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    let words: Vec<_> = words.map(|w| w.to_string_lossy()).collect();
    words.join(" ")
}

/// Writes a page of docs/measurements, and says so.
pub(crate) fn save(name: &str, text: &str) -> Result<()> {
    let path: &Path = &root().join("docs/measurements").join(name);
    std::fs::create_dir_all(path.parent().expect("it has one"))?;
    std::fs::write(path, text).with_context(|| path.display().to_string())?;
    println!("saved: docs/measurements/{name}");
    Ok(())
}
