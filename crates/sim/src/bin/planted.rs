//! Hunts the planted bugs among the crashes of histories, a line of JSON for each: `cargo xtask crashes --planted`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

use std::process::ExitCode;
use std::time::Duration;

use cowslip_sim::planted::hunt_all;
use cowslip_sim::world::hunt::{bugs, hunt};

fn main() -> ExitCode {
    let args: Option<Vec<u64>> = std::env::args().skip(1).map(|a| a.parse().ok()).collect();
    let Some([seed, seconds_each]) = args.as_deref() else {
        eprintln!("usage: planted SEED SECONDS-EACH");
        return ExitCode::from(2);
    };
    // A panic is caught, and gives a bug away like anything else.
    std::panic::set_hook(Box::new(|_| {}));
    let at_most = Duration::from_secs(*seconds_each);
    let hunt = |bug| hunt(bug, *seed, at_most);
    hunt_all(&bugs(), hunt, |hunted| {
        println!("{}", hunted.json("crash_states"))
    });
    ExitCode::SUCCESS
}
