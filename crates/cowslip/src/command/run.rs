//! `cowslip run`: a snapshot, or a session, as the disk of a guest under QEMU, until the guest ends.
//!
//! In order: what is served (`target.rs`), a kernel and what takes it to the disk, an NBD server for one client, the guest (`crate::run`). At the end the
//! guest has written all back, or was killed; then comes the snapshot, if one is wanted, and the session ends.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use cowslip_block::Device;
use cowslip_ext4::features::Feature;
use cowslip_ext4::{FileSystem, State};
use cowslip_nbd::{Export, Server};
use serde::Serialize;
use signal_hook::iterator::Signals;

use super::target::{Target, Wanted, signals};
use super::{Context, kernel_args, snapshot};
use crate::args::{Machine as For, Run};
use crate::control::Answer;
use crate::failure::{Failure, Kind};
use crate::report::{Taken, complain, duration};
use crate::run::{
    Booted, Event, Kernel, Lived, Machine, Modules, Order, Outcome, boot, choices, find_programs,
    initramfs,
};

/// QEMU and a kernel need as much.
const MEMORY_MIB_MIN: u64 = 64;

/// Its field names are a contract.
#[derive(Debug, Serialize)]
struct Ran<'a> {
    name: String,
    session: Option<&'a Path>,
    kernel: String,
    kernel_release: String,
    kernel_args: String,
    /// `kvm` or `tcg`, and why that.
    accel: &'static str,
    accel_why: String,
    /// Of the command, as a shell would say it.
    exit_code: Option<u8>,
    timed_out: bool,
    /// All that ran had ended, and all was written back.
    ended_cleanly: bool,
    boot_ms: Option<u64>,
    total_ms: u64,
    snapshot: Option<Taken>,
}

pub(super) fn run(context: &Context, args: &Run) -> Result<ExitCode, Failure> {
    run_in_it(context, args).map_err(Failure::around)
}

fn run_in_it(context: &Context, args: &Run) -> Result<ExitCode, Failure> {
    if context.global.json && args.command.is_empty() {
        let message = "--json wants a COMMAND: a shell on the console says what it likes";
        return Err(Failure::usage(message));
    }
    let signals = signals()?;
    // Before a session is begun.
    find_programs()?;
    let wanted = Wanted {
        name: args.name.as_ref(),
        options: &args.device,
    };
    let target = Target::open(context, &wanted)?;
    let device = target.device(args.device.read_only);
    let code = live(context, args, &target, &device, signals);
    target.close(device);
    code
}

fn live(
    context: &Context,
    args: &Run,
    target: &Target,
    device: &Arc<dyn Device>,
    signals: Signals,
) -> Result<ExitCode, Failure> {
    let (order, kernel) = order(context, args, target, device)?;
    let export = Export {
        name: String::new(),
        description: target.name.to_string(),
        device: Arc::clone(device),
    };
    let disk = |e| Failure::failed(format!("serving the disk: {e}"));
    let server = Server::new(export, Box::new(complain)).map_err(disk)?;
    let (tell, events) = mpsc::channel();
    on_signals(signals, tell.clone());
    let serve = |socket| server.serve_stream(socket).map(drop).map_err(disk);
    let mut booted = boot(&order, &serve, &tell, &events)?;
    target.has_guest(Arc::clone(&booted.guest));
    let accel = booted.accel.clone();
    context.report.remark(&format!(
        "booting {} with {}, {} ({})",
        target.name,
        kernel.from,
        accel.name(),
        accel.why
    ));
    let lived = booted.live(&order, &events);
    server.stop();
    let is_clean = lived.end.clone().and_then(|()| is_clean(device));
    let snapshot = at_exit(context, args, target, &is_clean, &events);
    let ran = Ran {
        name: target.name.to_string(),
        session: target.session().filter(|_| !target.is_temporary()),
        kernel: kernel.from,
        kernel_release: kernel.release,
        kernel_args: order.machine.line.clone(),
        accel: accel.name(),
        accel_why: accel.why,
        exit_code: match lived.outcome {
            Outcome::Exited(status) => Some(code_of(status)),
            _ => None,
        },
        timed_out: lived.outcome == Outcome::Late,
        ended_cleanly: is_clean.is_ok(),
        boot_ms: lived.boot.map(ms),
        total_ms: ms(lived.all),
        snapshot: snapshot.as_ref().ok().cloned().flatten(),
    };
    tell_of(context, &ran)?;
    let code = judge(&lived, &booted, args)?;
    snapshot?;
    Ok(code)
}

/// The guest that is wanted, whole but for its disk.
fn order(
    context: &Context,
    args: &Run,
    target: &Target,
    device: &Arc<dyn Device>,
) -> Result<(Order, Kernel), Failure> {
    let memory_mib = args.memory.0 >> 20;
    if memory_mib < MEMORY_MIB_MIN {
        let message = format!("a guest needs {MEMORY_MIB_MIN} MiB of memory");
        return Err(Failure::usage(message));
    }
    let fs = FileSystem::open(Arc::clone(device), State::Replayed);
    let fs = fs.map_err(|e| Failure::failed(format!("{} holds no ext4: {e}", target.name)))?;
    let kernel = match &args.kernel {
        Some(path) => Kernel::of_file(path)?,
        None => Kernel::of_image(&fs)?,
    };
    let modules = Modules::find(args.modules.as_deref(), &fs, &kernel.release)?;
    let initrd = initramfs(&modules)?;
    // A session goes on when the template's name is gone.
    let header = target.store.resolve(&target.name.name).ok();
    let rootflags = kernel_args::options(&target.store, header, &fs)?;
    let mut line = kernel_args::line(For::Qemu, "/dev/vda", &rootflags);
    if args.device.read_only {
        line += " ro";
    }
    // The console is for what goes wrong.
    line += " loglevel=4";
    for more in &args.append {
        line = format!("{line} {more}");
    }
    let program = kernel.program.try_clone();
    let machine = Machine {
        kernel: program.map_err(|e| Failure::failed(format!("the kernel: {e}")))?,
        initrd,
        line,
        memory_mib,
        cpus: args.cpus,
        read_only: args.device.read_only,
        shows_console: args.command.is_empty(),
        more: args.qemu_arg.clone(),
    };
    let order = Order {
        machine,
        choices: choices(args.accel),
        command: args.command.clone(),
        timeout: args.timeout,
        out_is_taken: context.global.json,
    };
    Ok((order, kernel))
}

fn on_signals(mut signals: Signals, tell: Sender<Event>) {
    thread::spawn(move || {
        for _ in signals.forever() {
            if tell.send(Event::Signal).is_err() {
                return;
            }
        }
    });
}

/// As the file system on the disk says.
fn is_clean(device: &Arc<dyn Device>) -> Result<(), String> {
    let fs = FileSystem::open(Arc::clone(device), State::OnDisk).map_err(|e| e.to_string())?;
    let superblock = fs.superblock();
    match superblock.is_clean() && !superblock.features.has(Feature::RECOVER) {
        true => Ok(()),
        false => Err("the file system says that it is still mounted".into()),
    }
}

fn at_exit(
    context: &Context,
    args: &Run,
    target: &Target,
    is_clean: &Result<(), String>,
    events: &Receiver<Event>,
) -> Result<Option<Taken>, Failure> {
    let is_kept = target.session().is_some() && !target.is_temporary() && !args.device.read_only;
    let name = match (&args.snapshot_on_exit, is_clean) {
        (Some(name), Ok(())) => name,
        (None, Ok(())) => return Ok(None),
        (None, Err(_)) if !is_kept => return Ok(None),
        (name, Err(why)) => {
            let no = name.iter().map(|name| format!(", so there is no {name}"));
            let no = no.collect::<String>();
            let message = format!("the guest was not turned off cleanly{no}: {why}");
            let failure = Failure::failed(message);
            return Err(match is_kept {
                true => failure
                    .hint("what it had written is in the session, and can be snapshot from there"),
                false => failure,
            });
        }
    };
    let say = |answer: &Answer| {
        // A full store is waited for: not by who wants to end.
        if events.try_iter().any(|event| event == Event::Signal) {
            target.cancel(name);
        }
        if let Answer::Retrying(sealing) = answer {
            let error = sealing.last_error.as_deref().unwrap_or("no reason given");
            complain(&format!(
                "storing {} failed: {error}; it is tried again",
                sealing.name
            ));
        }
    };
    let taken = target.snapshot(name, args.replace, &say)?;
    context.report.remark(&snapshot::describe(&taken));
    Ok(Some(taken))
}

fn tell_of(context: &Context, ran: &Ran<'_>) -> Result<(), Failure> {
    if context.global.json {
        return context.report.result(ran, String::new);
    }
    let boot = ran.boot_ms.map_or_else(
        || "it never came up".to_owned(),
        |ms| format!("up after {}", duration(Duration::from_millis(ms))),
    );
    let end = match ran.ended_cleanly {
        true => "turned off cleanly",
        false => "not turned off cleanly",
    };
    let all = duration(Duration::from_millis(ran.total_ms));
    context
        .report
        .remark(&format!("the guest was {end}: {boot}, {all} in all"));
    Ok(())
}

/// The command's exit code, or what went wrong around it.
fn judge(lived: &Lived, booted: &Booted, args: &Run) -> Result<ExitCode, Failure> {
    let words = || match booted.last_words(args.command.is_empty()) {
        words if words.is_empty() => String::new(),
        words => format!("; the last that was heard:\n{words}"),
    };
    match &lived.outcome {
        Outcome::Exited(status) => Ok(ExitCode::from(code_of(*status))),
        Outcome::Late => match (args.timeout, lived.boot) {
            (Some(timeout), _) => {
                let message = format!(
                    "the guest took longer than {} (--timeout)",
                    duration(timeout)
                );
                Err(Failure::new(Kind::Late, message))
            }
            (None, _) => Err(Failure::failed(format!(
                "the guest does not come up{}",
                words()
            ))),
        },
        Outcome::Interrupted => Err(Failure::failed("interrupted")),
        Outcome::Failed(why) => Err(Failure::failed(format!("in the guest: {why}{}", words()))),
        Outcome::Gone => Err(Failure::failed(format!(
            "the guest ended by itself{}",
            words()
        ))),
    }
}

/// As a shell says how a command ended.
fn code_of(status: i32) -> u8 {
    let status = ExitStatus::from_raw(status);
    let signal = || 128 + status.signal().unwrap_or(0);
    let code = status.code().unwrap_or_else(signal);
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
