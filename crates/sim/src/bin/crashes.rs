//! Crashes histories, or with `--faults` has their operations on files fail, until the time is up or something is found:
//! `cargo xtask crashes`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cowslip_sim::world::operation::{Operation, history};
use cowslip_sim::world::{Effort, Finding, Met, Seen, Tally, Wrong, explore, faults, shrink};

const USAGE: &str = "usage: crashes [SECONDS] [--faults] [--seed N] [--length N] [--json]";
const TELL_EVERY: Duration = Duration::from_secs(10);

struct Options {
    seconds: u64,
    seed: u64,
    /// Operations in a history; of several lengths where it is not said.
    length: Option<usize>,
    faults: bool,
    json: bool,
}

fn options() -> Option<Options> {
    let mut options = Options {
        seconds: 60,
        seed: std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |d| d.as_secs()),
        length: None,
        faults: false,
        json: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match &*arg {
            "--json" => options.json = true,
            "--faults" => options.faults = true,
            "--seed" => options.seed = args.next()?.parse().ok()?,
            "--length" => options.length = Some(args.next()?.parse().ok()?),
            seconds => options.seconds = seconds.parse().ok()?,
        }
    }
    Some(options)
}

/// What was looked at, and what was found.
struct Run<T> {
    total: T,
    seconds: f64,
    last_seed: u64,
    found: Option<(u64, Box<Finding>)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at one history after the other, in as many threads as there are cores. `add` adds up, `tell` says how far it is.
fn run<T: Default + Send>(
    options: &Options,
    lengths: [usize; 4],
    look: impl Fn(&[Operation], u64) -> Result<T, Box<Finding>> + Sync,
    add: impl Fn(&mut T, T) + Sync,
    tell: impl Fn(&T) -> String,
) -> Run<T> {
    let begun = Instant::now();
    let until = begun + Duration::from_secs(options.seconds);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, stop) = (AtomicU64::new(options.seed), AtomicBool::new(false));
    let (total, found) = (Mutex::new(T::default()), Mutex::new(None));
    // A panic is caught, and told as what was found.
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let turn = usize::try_from(seed % 4).unwrap_or(0);
                    let operations = history(seed, options.length.unwrap_or(lengths[turn]));
                    match look(&operations, seed) {
                        Ok(more) => add(&mut locked(&total), more),
                        Err(finding) => {
                            stop.store(true, Ordering::Relaxed);
                            *locked(&found) = Some((seed, finding));
                        }
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
        }
        let mut told = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                let seconds = begun.elapsed().as_secs_f64();
                eprintln!("{seconds:6.0} s  {}", tell(&locked(&total)));
            }
        }
    });
    Run {
        total: total.into_inner().unwrap_or_else(PoisonError::into_inner),
        seconds: begun.elapsed().as_secs_f64(),
        last_seed: next.into_inner(),
        found: found.into_inner().unwrap_or_else(PoisonError::into_inner),
    }
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match options.faults {
        true => {
            let look = |operations: &[Operation], seed| faults(operations, seed, 1);
            let tell = |met: &Met| format!("{} faults", met.values().sum::<u64>());
            let run = run(&options, [4, 8, 12, 20], look, add_met, tell);
            print_faults(&options, &run);
            ended(run.found, look)
        }
        false => {
            // Short histories, of which all crashes are looked at, and long ones.
            let seen = Seen::default();
            let look =
                |operations: &[Operation], seed| explore(operations, seed, Effort::THOROUGH, &seen);
            let add = |total: &mut Tally, more| total.add(&more);
            let tell = |_: &_| format!("{} crash states", seen.len());
            let run = run(&options, [6, 12, 24, 48], look, add, tell);
            print(&options, &run);
            ended(run.found, |operations, seed| {
                explore(operations, seed, Effort::THOROUGH, &Seen::default())
            })
        }
    }
}

fn add_met(total: &mut Met, more: Met) {
    for (wrong, count) in more {
        *total.entry(wrong).or_default() += count;
    }
}

/// Shrinks what was found, if something was.
fn ended<T>(
    found: Option<(u64, Box<Finding>)>,
    look: impl Fn(&[Operation], u64) -> Result<T, Box<Finding>>,
) -> ExitCode {
    let Some((seed, finding)) = found else {
        return ExitCode::SUCCESS;
    };
    let (len, what) = (finding.history.len(), &finding.what);
    eprintln!("seed {seed}, history of {len}: {what}; shrinking");
    let finding = shrink(*finding, |operations| look(operations, seed).err());
    println!(
        "FOUND with seed {seed}, in {} operations:\n{finding}",
        finding.history.len()
    );
    ExitCode::FAILURE
}

fn print_faults(options: &Options, run: &Run<Met>) {
    let (first, last, seconds) = (options.seed, run.last_seed, run.seconds);
    let counts = Wrong::ALL.map(|wrong| {
        let count = run.total.get(&wrong).copied().unwrap_or(0);
        (format!("{wrong:?}").to_lowercase(), count)
    });
    if options.json {
        let counts = counts.map(|(what, count)| format!(",\"{what}\":{count}"));
        println!(
            "{{\"first_seed\":{first},\"last_seed\":{last},\"seconds\":{seconds:.1}{}}}",
            counts.concat()
        );
        return;
    }
    let counts = counts.map(|(what, count)| format!("{count} {what}"));
    println!(
        "seeds {first} to {last}, {seconds:.0} s: {} operations on files met a fault: {}",
        run.total.values().sum::<u64>(),
        counts.join(", ")
    );
}

fn print(options: &Options, run: &Run<Tally>) {
    let (seconds, last) = (run.seconds, run.last_seed);
    let Tally {
        histories,
        moments,
        exhausted,
        states,
        kills,
        again,
        met,
    } = run.total;
    if options.json {
        println!(
            "{{\"first_seed\":{},\"last_seed\":{last},\"seconds\":{seconds:.1},\"histories\":{histories},\"moments\":{moments},\
             \"exhausted_moments\":{exhausted},\"crash_states\":{states},\"kills\":{kills},\"crashes_of_recoveries\":{again},\"met_before\":{met}}}",
            options.seed
        );
        return;
    }
    println!(
        "seeds {} to {last}, {seconds:.0} s: {histories} histories, {moments} operations on files, {states} distinct crash states \
         ({:.0} a second): {kills} kills, {} power cuts, {again} of them crashes of a recovery; of {exhausted} moments every disk that a cut may \
         leave; {met} states were met again",
        options.seed,
        states as f64 / seconds.max(0.001),
        states - kills,
    );
}
