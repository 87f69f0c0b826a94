//! The commands, a file each: what was typed becomes a call into the engine, and its result a
//! report.

mod attach;
mod build;
mod compact;
mod demo;
mod detach;
mod diff;
mod explain;
mod export;
mod gc;
mod import;
mod inspect;
mod kernel_args;
mod lab;
mod log;
mod ls;
mod memory;
mod mount;
mod quiesce;
mod repair;
mod rm;
mod run;
mod serve;
mod sessions;
mod snapshot;
mod target;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::CommandFactory;
use cowslip_block::files::RealDir;
use cowslip_nbd::ListenError;
use cowslip_snapshot::host::RealHost;
use cowslip_snapshot::session::Surroundings;
use cowslip_snapshot::store::{Caches, Store};

use crate::args::{Cli, Command, Global};
use crate::failure::{Failure, Kind};
use crate::fs_aware::FileSystems;
use crate::report::{self, Reporter, complain};

/// What every command gets.
pub(crate) struct Context {
    global: Global,
    pub(crate) report: Reporter,
}

pub(crate) fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let context = Context {
        report: Reporter::new(&cli.global),
        global: cli.global,
    };
    let done = match cli.command {
        Command::Import(args) => import::run(&context, &args),
        Command::Build(args) => build::run(&context, &args),
        Command::KernelArgs(args) => kernel_args::run(&context, &args),
        Command::Serve(args) => serve::run(&context, &args),
        Command::Attach(args) => attach::run(&context, &args),
        Command::Mount(args) => mount::run(&context, &args),
        Command::Run(args) => return run::run(&context, &args),
        Command::Detach(args) => detach::run(&context, &args),
        Command::Snapshot(args) => snapshot::run(&context, &args),
        Command::Ls => ls::run(&context),
        Command::Inspect(args) => inspect::run(&context, &args),
        Command::Verify(args) => verify::run(&context, &args),
        Command::Repair(args) => repair::run(&context, &args),
        Command::Diff(args) => return diff::run(&context, &args),
        Command::Explain(args) => explain::run(&context, &args),
        Command::Log(args) => log::run(&context, &args),
        Command::Export(args) => export::run(&context, &args),
        Command::Rm(args) => rm::run(&context, &args),
        Command::Gc(args) => gc::run(&context, &args),
        Command::Compact(args) => compact::run(&context, &args),
        Command::Sessions(args) => sessions::run(&context, &args),
        Command::Memory(command) => memory::run(&context, &command),
        Command::Quiesce(args) => quiesce::run(&context, &args),
        Command::Lab(args) => lab::run(&context, &args),
        Command::ThawGuard(args) => quiesce::guard(&args),
        Command::Demo(args) => demo::run(&context, &args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "cowslip", &mut script);
            report::print(&String::from_utf8_lossy(&script))
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

impl Context {
    /// Where the store is: what was said, or the user's data directory.
    fn store_path(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.global.store {
            return Ok(path.clone());
        }
        let set = |name| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let data = set("XDG_DATA_HOME")
            .filter(|p| p.is_absolute())
            .or_else(|| Some(set("HOME")?.join(".local/share")));
        let data = data.ok_or_else(|| {
            Failure::usage("neither --store nor COWSLIP_STORE nor HOME says where the store is")
        })?;
        Ok(data.join("cowslip"))
    }

    /// The store, which must be there.
    fn store(&self) -> Result<Arc<Store>, Failure> {
        open_store(&self.store_path()?, Caches::default())
    }

    /// The store, made if it is not there.
    fn store_or_new(&self) -> Result<Arc<Store>, Failure> {
        make_store(&self.store_path()?)
    }
}

pub(crate) fn open_store(path: &Path, caches: Caches) -> Result<Arc<Store>, Failure> {
    let dir = RealDir::open(path).map_err(|e| no_dir(path, &e))?;
    let store = Store::open(&dir, Arc::new(RealHost), caches);
    Ok(Arc::new(
        store.map_err(|e| Failure::from(e).about(path.display()))?,
    ))
}

/// The store's directory cannot be opened.
fn no_dir(path: &Path, error: &std::io::Error) -> Failure {
    if error.kind() != std::io::ErrorKind::NotFound {
        return Failure::file(path, error);
    }
    let message = format!("there is no store at {}", path.display());
    Failure::new(Kind::NotFound, message)
        .hint("--store DIR or COWSLIP_STORE says where it is; `cowslip import` makes one")
}

fn make_store(path: &Path) -> Result<Arc<Store>, Failure> {
    let dir = RealDir::open_or_create(path).map_err(|e| Failure::file(path, &e))?;
    let store = Store::open_or_create(&dir, Arc::new(RealHost), Caches::default());
    Ok(Arc::new(
        store.map_err(|e| Failure::from(e).about(path.display()))?,
    ))
}

/// What a session of this directory needs.
fn surroundings(
    dir: &Arc<RealDir>,
    path: &Path,
    temporary: bool,
    store: &Arc<Store>,
    store_path: &Path,
) -> Result<Surroundings, Failure> {
    let whole = |path: &Path| path.canonicalize().map_err(|e| Failure::file(path, &e));
    Ok(Surroundings {
        dir: Arc::clone(dir) as _,
        path: whole(path)?,
        temporary,
        store: Arc::clone(store),
        store_path: whole(store_path)?,
        host: Arc::new(RealHost),
        unneeded: Some(Arc::new(FileSystems)),
        say: Box::new(complain),
    })
}

/// It cannot be listened there.
fn refused(error: &ListenError) -> Failure {
    let failure = Failure::new(Kind::Failed, error.to_string());
    match error {
        ListenError::InUse(_) => failure.hint("end that server, or take another path"),
        ListenError::NotASocket(_) => failure.hint("take another path: it is never overwritten"),
        _ => failure,
    }
}
