//! The programs of e2fsprogs, run on the image: mkfs.ext4, debugfs, e2fsck. Each is told the time that it is, so that
//! what it writes does not depend on when; and what mkfs.ext4 does unless told is what it was built with,
//! not what this machine's configuration says.
//!
//! | exit status of e2fsck -fn | |
//! |---|---|
//! | 0 | clean |
//! | any other, or none because a signal ended it | not clean: with -n nothing is mended, so 1 and 2 cannot mean that it was |

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Arc;

use crate::failure::Failure;

/// Where they look for mkfs.ext4's configuration, which is nowhere.
const NO_CONFIGURATION: &str = "/nonexistent/mke2fs.conf";

/// Under this path other programs come to a file of ours, whether it has a name or not.
pub(crate) fn path_of(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// The programs, for one image.
pub(crate) struct E2fsprogs<'a> {
    pub(crate) image: &'a File,
    /// A directory with room for what is only there for a moment.
    pub(crate) room: &'a Path,
    /// What time it is, in seconds since 1970.
    pub(crate) now: u64,
}

/// Commands for debugfs, and the files that they name.
#[derive(Default)]
pub(crate) struct Script {
    text: Vec<u8>,
    held: Vec<Arc<File>>,
}

impl Script {
    /// A command. Words stand in quotes, whatever is in them.
    ///
    /// # Errors
    /// Where a word cannot be said to debugfs, which reads lines of bounded length.
    pub(crate) fn line(&mut self, command: &str, words: &[&[u8]]) -> Result<(), String> {
        let start = self.text.len();
        self.text.extend(command.as_bytes());
        for word in words {
            if word.contains(&b'\n') || word.contains(&b'\r') || word.contains(&0) {
                self.text.truncate(start);
                return Err("a line break in a name, which debugfs cannot be told".into());
            }
            self.text.extend(b" \"");
            for byte in *word {
                self.text.push(*byte);
                if *byte == b'"' {
                    self.text.push(b'"');
                }
            }
            self.text.push(b'"');
        }
        if self.text.len() - start > Self::LINE_BYTES_MAX {
            self.text.truncate(start);
            return Err("a name so long that debugfs cannot be told".into());
        }
        self.text.push(b'\n');
        Ok(())
    }

    /// debugfs reads 8 KiB at a time, and takes what follows for another command.
    const LINE_BYTES_MAX: usize = 8000;

    /// The path of a file, which stays open until the script has run.
    pub(crate) fn hold(&mut self, file: Arc<File>) -> Vec<u8> {
        let path = path_of(&file).into_os_string().into_encoded_bytes();
        self.held.push(file);
        path
    }

    /// Is it so long that it should be run?
    pub(crate) fn is_long(&self) -> bool {
        self.held.len() >= 200 || self.text.len() >= 1 << 20
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl E2fsprogs<'_> {
    /// Makes the file system.
    pub(crate) fn mkfs(&self, args: &[String]) -> Result<(), Failure> {
        let mut command = self.command("mkfs.ext4");
        command
            .args(["-q", "-F"])
            .args(args)
            .arg(path_of(self.image));
        let output = run(&mut command)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(refused("mkfs.ext4", &output)),
        }
    }

    /// Runs a script. debugfs goes on after a command that fails, and says so: it has not worked if it said anything.
    pub(crate) fn debugfs(&self, script: &Script) -> Result<(), Failure> {
        let failed = |e: io::Error| Failure::failed(format!("a script for debugfs: {e}"));
        let mut text = tempfile::tempfile_in(self.room).map_err(failed)?;
        text.write_all(&script.text).map_err(failed)?;
        let mut command = self.command("debugfs");
        command
            .args(["-w", "-f"])
            .arg(path_of(&text))
            .arg(path_of(self.image));
        // It repeats each command there.
        command.stdout(Stdio::null());
        let mut output = run(&mut command)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = said.lines().filter(|line| !line.starts_with("debugfs 1."));
        let said: Vec<&str> = said.filter(|line| !line.trim().is_empty()).collect();
        if output.status.success() && said.is_empty() {
            return Ok(());
        }
        output.stderr = said.first().copied().unwrap_or("").as_bytes().to_vec();
        let failure = refused("debugfs", &output);
        let is_full =
            |line: &&str| line.contains("Could not allocate") || line.contains("No space");
        Err(match said.iter().any(is_full) {
            true => failure.hint("the image is too small: --size"),
            false => failure,
        })
    }

    /// Sorts directories, so that the kernel finds names in large ones by their index.
    pub(crate) fn index_directories(&self) -> Result<(), Failure> {
        let mut command = self.command("e2fsck");
        command.arg("-fyD").arg(path_of(self.image));
        let output = run(&mut command)?;
        // 1: it changed something, as it should.
        match output.status.code() {
            Some(0 | 1) => Ok(()),
            _ => Err(refused("e2fsck -fyD", &output)),
        }
    }

    /// Is the file system clean?
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let mut command = self.command("e2fsck");
        command.arg("-fn").arg(path_of(self.image));
        let output = run(&mut command)?;
        clean(output.status).map_err(|why| {
            let said = String::from_utf8_lossy(&output.stdout);
            let said = said
                .lines()
                .find(|line| !line.starts_with("Pass "))
                .unwrap_or("");
            Failure::failed(format!(
                "the file system that was built is not clean: {why}: {said}"
            ))
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(tool(program));
        command
            .env("LC_ALL", "C")
            .env("MKE2FS_CONFIG", NO_CONFIGURATION)
            .env("E2FSPROGS_FAKE_TIME", self.now.to_string())
            .env("E2FSCK_TIME", self.now.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// They lie where not every user's PATH leads.
fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut places = places.map(|place| place.join(name));
    places
        .find(|path| path.is_file())
        .unwrap_or_else(|| Path::new(name).into())
}

fn run(command: &mut Command) -> Result<Output, Failure> {
    let ran = command
        .spawn()
        .and_then(std::process::Child::wait_with_output);
    ran.map_err(|e| {
        let program = Path::new(command.get_program())
            .file_name()
            .unwrap_or_default();
        let failure = Failure::failed(format!("running {}: {e}", program.display()));
        match e.kind() {
            io::ErrorKind::NotFound => failure.hint("install e2fsprogs"),
            _ => failure,
        }
    })
}

fn refused(program: &str, output: &Output) -> Failure {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = said.take(3).collect::<Vec<_>>().join("; ");
    let said = match said.as_str() {
        "" => output.status.to_string(),
        said => said.to_owned(),
    };
    Failure::failed(format!("{program}: {said}"))
}

/// See the table on top.
fn clean(status: ExitStatus) -> Result<(), String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => {
            let bits = [
                (1, "errors"),
                (2, "errors that want a reboot"),
                (4, "errors left"),
                (8, "it could not work"),
                (16, "it was called wrongly"),
                (32, "it was cancelled"),
                (128, "a library is missing"),
            ];
            let words = bits
                .iter()
                .filter(|(bit, _)| code & bit != 0)
                .map(|(_, what)| *what);
            Err(format!(
                "e2fsck ended with {code} ({})",
                words.collect::<Vec<_>>().join(", ")
            ))
        }
        (None, signal) => Err(format!(
            "e2fsck was killed by signal {}, and so nothing is known",
            signal.unwrap_or(0)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zero_is_clean() {
        // A wait status: an exit code in the second byte, a signal in the first.
        assert!(clean(ExitStatus::from_raw(0)).is_ok());
        for code in 1..256 {
            assert!(clean(ExitStatus::from_raw(code << 8)).is_err(), "{code}");
        }
        for signal in [1, 2, 6, 9, 11, 15] {
            let why = clean(ExitStatus::from_raw(signal)).unwrap_err();
            assert!(why.contains(&format!("signal {signal},")), "{why}");
        }
        let why = clean(ExitStatus::from_raw(12 << 8)).unwrap_err();
        assert!(why.contains("errors left, it could not work"), "{why}");
    }

    #[test]
    fn words_stay_words() {
        let mut script = Script::default();
        script.line("mkdir", &[b"a \"b\"\t; quit"]).unwrap();
        assert_eq!(script.text, b"mkdir \"a \"\"b\"\"\t; quit\"\n");
        for bad in [&b"a\nrm <2>"[..], b"a\r", &[b'"'; 4000]] {
            assert!(script.line("mkdir", &[bad]).is_err());
        }
        assert_eq!(script.text.split(|b| *b == b'\n').count(), 2);
    }
}
