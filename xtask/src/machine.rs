//! What a measurement says of where and when it was taken.

use std::process::Command;
use std::time::SystemTime;

use crate::run::output;

/// Today, as YYYY-MM-DD.
pub(crate) fn today() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now[..10].to_owned()
}

/// One paragraph: date, processor, kernel, how busy it is, commit.
pub(crate) fn describe() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let meminfo = read("/proc/meminfo");
    let memory_kib: u64 = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0);
    let ask = |program: &str, args: &[&str]| {
        let answer = output(
            Command::new(program)
                .args(args)
                .current_dir(crate::run::root()),
        );
        answer.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
    };
    let load = read("/proc/loadavg");
    format!(
        "{}, {model}, {cores} cores, {} GiB, Linux {}, load average {} at the start, commit {}.",
        today(),
        memory_kib.div_ceil(1 << 20),
        ask("uname", &["-r"]),
        load.split(' ').next().unwrap_or("unknown"),
        ask("git", &["rev-parse", "--short", "HEAD"]),
    )
}
