//! The cells of the comparison, and one measurement of one of them.

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::server::Server;
use crate::run::output;

/// One row: what fio is told, and what it is told to do before, unmeasured.
pub(super) struct Cell {
    pub(super) name: &'static str,
    before: Option<&'static str>,
    job: &'static str,
    /// For so long as is wished, and not until all is done.
    timed: bool,
}

/// In this order: what is read as it came, what is written first, what is hot.
pub(super) const CELLS: &[Cell] = &[
    Cell {
        name: "rr4k q1",
        before: None,
        job: "--rw=randread --bs=4k --iodepth=1",
        timed: true,
    },
    Cell {
        name: "rr4k q32",
        before: None,
        job: "--rw=randread --bs=4k --iodepth=32",
        timed: true,
    },
    Cell {
        name: "sr256k q8",
        before: None,
        job: "--rw=read --bs=256k --iodepth=8",
        timed: true,
    },
    // 16 reads in each MiB that holds data, then on to the next.
    Cell {
        name: "rr4k q32 data",
        before: None,
        job: "--rw=randread --bs=4k --iodepth=32 --zonemode=strided --zonesize=64k --zonerange=1m --zoneskip=3m",
        timed: true,
    },
    Cell {
        name: "rw4k q32 first",
        before: None,
        job: "--rw=randwrite --bs=4k --iodepth=32 --size=896m --io_size=256m",
        timed: false,
    },
    Cell {
        name: "rw4k q32 hot",
        before: Some("--rw=write --bs=256k --iodepth=8 --offset=960m --size=64m"),
        job: "--rw=randwrite --bs=4k --iodepth=32 --offset=960m --size=64m",
        timed: true,
    },
    Cell {
        name: "mix4k q32 hot",
        before: None,
        job: "--rw=randrw --rwmixread=70 --bs=4k --iodepth=32 --offset=960m --size=64m",
        timed: true,
    },
    Cell {
        name: "rr4k q32 hot",
        before: None,
        job: "--rw=randread --bs=4k --iodepth=32 --offset=960m --size=64m",
        timed: true,
    },
    Cell {
        name: "sr256k q8 hot",
        before: None,
        job: "--rw=read --bs=256k --iodepth=8 --offset=960m --size=64m",
        timed: true,
    },
];

/// What one run of fio gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    per_second: f64,
    p50_us: f64,
    server_cpu_us: f64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            per_second,
            p50_us,
            server_cpu_us,
        } = self;
        write!(
            f,
            "{:.1}k / {p50_us:.0} / {server_cpu_us:.1}",
            per_second / 1e3
        )
    }
}

impl Cell {
    pub(super) fn measure(&self, server: &Server, seconds: u32) -> Result<Sample> {
        if let Some(before) = self.before {
            fio(server, before, None)?;
        }
        let cpu_before = server.cpu_seconds()?;
        let report = fio(server, self.job, self.timed.then_some(seconds))?;
        let cpu = server.cpu_seconds()? - cpu_before;
        let mut sample = read_report(&report).context("a figure that fio should have printed")?;
        sample.server_cpu_us = cpu * 1e6 / sample.server_cpu_us;
        Ok(sample)
    }
}

fn fio(server: &Server, job: &str, seconds: Option<u32>) -> Result<Value> {
    let mut command = Command::new("fio");
    command.args([
        "--name=cell",
        "--ioengine=nbd",
        "--output-format=json",
        "--size=100%",
    ]);
    command
        .arg(format!("--uri={}", server.uri()))
        .args(job.split(' '));
    if let Some(seconds) = seconds {
        command.args(["--time_based", &format!("--runtime={seconds}")]);
    }
    let text = output(&mut command)?;
    // Notes may stand before the report.
    let start = text.find('{').context("fio printed no report")?;
    serde_json::from_str(&text[start..]).context("fio's report")
}

/// The figures of one job; in the place of the processor time, the number of requests.
fn read_report(report: &Value) -> Option<Sample> {
    let job = report["jobs"].get(0)?;
    let number = |kind: &str, name: &str| job[kind][name].as_f64();
    let total = |name: &str| Some(number("read", name)? + number("write", name)?);
    let kind = if number("read", "total_ios")? > 0.0 {
        "read"
    } else {
        "write"
    };
    Some(Sample {
        per_second: total("iops")?,
        p50_us: job[kind]["clat_ns"]["percentile"]["50.000000"].as_f64()? / 1e3,
        server_cpu_us: total("total_ios")?,
    })
}

/// The median of each figure, and the spread of the first.
pub(super) fn median(samples: &[Sample]) -> String {
    let sorted = |figure: fn(&Sample) -> f64| {
        let mut all: Vec<f64> = samples.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let middle = |all: &[f64]| all.get(all.len() / 2).copied().unwrap_or(f64::NAN);
    let rates = sorted(|s| s.per_second);
    let (Some(least), Some(most)) = (rates.first(), rates.last()) else {
        return "none".into();
    };
    let median = Sample {
        per_second: middle(&rates),
        p50_us: middle(&sorted(|s| s.p50_us)),
        server_cpu_us: middle(&sorted(|s| s.server_cpu_us)),
    };
    format!(
        "{median} ({:.0} %)",
        (most - least) / median.per_second * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let side = |ios: u32, iops: f64, ns: u32| {
            serde_json::json!({
                "total_ios": ios, "iops": iops, "clat_ns": {"percentile": {"50.000000": ns}},
            })
        };
        let report = |read, write| serde_json::json!({"jobs": [{"read": read, "write": write}]});
        let mixed = read_report(&report(side(700, 7.0, 3000), side(300, 3.0, 9000))).unwrap();
        assert_eq!(mixed.to_string(), "0.0k / 3 / 1000.0");
        let writes = read_report(&report(side(0, 0.0, 0), side(300, 30_000.0, 9000))).unwrap();
        assert_eq!(writes.to_string(), "30.0k / 9 / 300.0");
        assert!(read_report(&Value::Null).is_none());
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let sample = |n: f64| Sample {
            per_second: n * 1e3,
            p50_us: n,
            server_cpu_us: n,
        };
        assert_eq!(
            median(&[3.0, 1.0, 2.0].map(sample)),
            "2.0k / 2 / 2.0 (100 %)"
        );
        assert_eq!(median(&[]), "none");
    }
}
