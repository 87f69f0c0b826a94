//! Schedules until the time is up, or something is found: `cargo xtask schedules`. With the feature `planted` and
//! `--planted`, hunts the planted bugs, a line of JSON for each: `cargo xtask crashes --planted`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use cowslip_sim::schedules::explore;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let planted = args.first().is_some_and(|arg| arg == "--planted");
    args.drain(..usize::from(planted));
    let numbers: Option<Vec<u64>> = args.iter().map(|arg| arg.parse().ok()).collect();
    let Some(&[seed, seconds]) = numbers.as_deref() else {
        eprintln!("usage: schedules [--planted] SEED SECONDS");
        return ExitCode::from(2);
    };
    let seconds = Duration::from_secs(seconds);
    match planted {
        true => hunt(seed, seconds),
        false => run(seed, seconds),
    }
}

fn run(seed: u64, seconds: Duration) -> ExitCode {
    let begun = Instant::now();
    let explored = explore(seed, u64::MAX, begun + seconds);
    let took = begun.elapsed().as_secs_f64();
    println!(
        "seeds from {seed} on: {} schedules in {took:.0} s",
        explored.schedules
    );
    let Some((seed, why)) = explored.found else {
        return ExitCode::SUCCESS;
    };
    println!("FOUND with seed {seed}: {why}");
    ExitCode::FAILURE
}

#[cfg(feature = "planted")]
fn hunt(seed: u64, seconds_each: Duration) -> ExitCode {
    use cowslip_sim::planted::{RACES, hunt_all};
    // A panic is caught, and gives a bug away like anything else.
    std::panic::set_hook(Box::new(|_| {}));
    let hunt = |bug| cowslip_sim::schedules::hunt(bug, seed, seconds_each);
    hunt_all(&RACES, hunt, |hunted| {
        println!("{}", hunted.json("schedules"))
    });
    ExitCode::SUCCESS
}

#[cfg(not(feature = "planted"))]
fn hunt(_: u64, _: Duration) -> ExitCode {
    eprintln!("built without the feature `planted`");
    ExitCode::from(2)
}
