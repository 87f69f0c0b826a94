//! apt(8), with the sources that the machine has, and with the backports of its Debian beside them.
//!
//! The machine's own sources are left as they are: [`Apt::with_backports`] has a list of its own, in this user's cache, whose mirror is the one that
//! the machine has its packages from. Nothing is installed at the price of another package (`--no-remove`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run::output;

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// See the module.
pub(crate) struct Apt {
    options: Vec<String>,
    /// Which suite a package is taken from where there are several.
    suite: Option<String>,
}

impl Apt {
    pub(crate) fn system() -> Self {
        Self {
            options: Vec::new(),
            suite: None,
        }
    }

    /// `place` keeps its lists.
    pub(crate) fn with_backports(place: &Path) -> Result<Self> {
        for dir in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(place.join(dir))?;
        }
        let (mirror, name) = mirror()?;
        let suite = format!("{name}-backports");
        let line = |suite: &str| format!("deb [signed-by={KEYS}] {mirror} {suite} main\n");
        let list = place.join("sources.list");
        std::fs::write(&list, line(&name) + &line(&suite))?;
        let at = |option: &str, path: PathBuf| format!("{option}={}", path.display());
        let options = [
            at("Dir::Etc::sourcelist", list),
            at("Dir::Etc::sourceparts", "/dev/null".into()),
            at("Dir::State::lists", place.join("lists")),
            at("Dir::Cache", place.join("cache")),
            "Acquire::Languages=none".to_owned(),
        ];
        let apt = Self {
            options: options.into(),
            suite: Some(suite),
        };
        if !apt.get(&["update", "-q"]) {
            bail!("{mirror} has no {}", apt.suite.unwrap_or_default());
        }
        Ok(apt)
    }

    /// Runs apt-get; did it succeed?
    pub(crate) fn get(&self, args: &[&str]) -> bool {
        let mut command = self.command("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    pub(crate) fn install(&self, packages: &[&str]) -> bool {
        let options = ["-q", "-y", "--no-remove", "--no-install-recommends"];
        self.get(&[&["install"], &options[..], packages].concat())
    }

    /// What a package needs, of the version that would be installed.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache");
        command.args(["show", "--no-all-versions", package]);
        let said = output(&mut command)?;
        let line = said.lines().find_map(|line| line.strip_prefix("Depends: "));
        let each = line.unwrap_or_default().split(", ");
        let names = each.filter_map(|one| one.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Fetches a package into a directory, and unpacks it there.
    pub(crate) fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let mut command = self.command("apt-get");
        // Its own user could not write there.
        command.args(["download", "-q", "-o", "APT::Sandbox::User=root", package]);
        output(command.current_dir(into))?;
        let fetched = std::fs::read_dir(into)?.filter_map(|entry| Some(entry.ok()?.path()));
        let is_package = |path: &PathBuf| path.extension().is_some_and(|end| end == "deb");
        let file = fetched.into_iter().find(is_package);
        let file = file.with_context(|| format!("apt-get download {package} left nothing"))?;
        output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(into))?;
        Ok(std::fs::remove_file(file)?)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        if let Some(suite) = &self.suite {
            command.args(["-t", suite]);
        }
        command
    }
}

/// Where the machine has its packages from, and which Debian it is.
fn mirror() -> Result<(String, String)> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI) $(CODENAME)"]);
    let said = output(command.arg("Created-By: Packages"))?;
    let each = said.lines().filter_map(|line| line.split_once(' '));
    // Not what is beside it: updates, security.
    let mut plain = each.filter(|(_, name)| !name.is_empty() && !name.contains('-'));
    let (mirror, name) = plain
        .next()
        .context("apt-get indextargets names no Debian")?;
    Ok((mirror.to_owned(), name.to_owned()))
}
