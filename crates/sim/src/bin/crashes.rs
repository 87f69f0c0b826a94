//! Crashes histories until the time is up, or something is found: `cargo xtask crashes`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cowslip_sim::world::operation::history;
use cowslip_sim::world::{Effort, Finding, Seen, Tally, explore, shrink};

const USAGE: &str = "usage: crashes [SECONDS] [--seed N] [--length N] [--json]";
const TELL_EVERY: Duration = Duration::from_secs(10);

struct Options {
    seconds: u64,
    seed: u64,
    /// Operations in a history; of several lengths where it is not said.
    length: Option<usize>,
    json: bool,
}

fn options() -> Option<Options> {
    let mut options = Options {
        seconds: 60,
        seed: std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |d| d.as_secs()),
        length: None,
        json: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match &*arg {
            "--json" => options.json = true,
            "--seed" => options.seed = args.next()?.parse().ok()?,
            "--length" => options.length = Some(args.next()?.parse().ok()?),
            seconds => options.seconds = seconds.parse().ok()?,
        }
    }
    Some(options)
}

/// Short histories, of which all crashes are looked at, and long ones.
fn length(seed: u64) -> usize {
    [6, 12, 24, 48][usize::try_from(seed % 4).unwrap_or(0)]
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let begun = Instant::now();
    let until = begun + Duration::from_secs(options.seconds);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, stop) = (AtomicU64::new(options.seed), AtomicBool::new(false));
    let (seen, total) = (Seen::default(), Mutex::new(Tally::default()));
    let found: Mutex<Option<(u64, Box<Finding>)>> = Mutex::new(None);
    // A panic is caught, and told as what was found.
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let operations = history(seed, options.length.unwrap_or(length(seed)));
                    match explore(&operations, seed, Effort::THOROUGH, &seen) {
                        Ok(tally) => total
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .add(&tally),
                        Err(finding) => {
                            stop.store(true, Ordering::Relaxed);
                            *found.lock().unwrap_or_else(PoisonError::into_inner) =
                                Some((seed, finding));
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
                let states = seen.len();
                eprintln!(
                    "{:6.0} s  {states} crash states",
                    begun.elapsed().as_secs_f64()
                );
            }
        }
    });
    let tally = *total.lock().unwrap_or_else(PoisonError::into_inner);
    let seconds = begun.elapsed().as_secs_f64();
    let last = next.load(Ordering::Relaxed);
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    print(&options, &tally, seconds, last);
    let Some((seed, finding)) = found else {
        return ExitCode::SUCCESS;
    };
    eprintln!(
        "seed {seed}, history of {}: {}; shrinking",
        finding.history.len(),
        finding.what
    );
    let finding = shrink(*finding, seed, Effort::THOROUGH);
    println!(
        "FOUND with seed {seed}, in {} operations:\n{finding}",
        finding.history.len()
    );
    ExitCode::FAILURE
}

fn print(options: &Options, tally: &Tally, seconds: f64, last: u64) {
    let Tally {
        histories,
        moments,
        exhausted,
        states,
        kills,
        again,
        met,
    } = *tally;
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
