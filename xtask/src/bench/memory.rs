//! `cargo xtask bench memory [SECTION...] [--quick] [--save] [--json]`: what guests' memory costs to serve, beside the kernel alone (`crates/memory/benches/guests`).

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::machine;
use crate::rig::table::table;
use crate::run::{cargo, output, save};

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (mut saving, mut json) = (false, false);
    let mut command = cargo(["bench", "-p", "cowslip-memory", "--bench", "guests", "--"]);
    for arg in args {
        match *arg {
            "--save" => saving = true,
            "--json" => json = true,
            "--quick" | "faults" | "prefetch" | "harvest" | "forks" | "restore" => {
                command.arg(arg);
            }
            _ => bail!(
                "usage: cargo xtask bench memory [faults|prefetch|harvest|forks|restore]... [--quick] [--save] [--json]"
            ),
        }
    }
    let where_and_when = machine::describe();
    eprintln!("some five minutes, and 8 GiB of memory");
    let said = output(&mut command)?;
    let figures = figures(&said)?;
    if json {
        println!("{:#}", Value::from(figures.clone()));
    }
    let rows: Vec<_> = figures.iter().map(row).collect();
    let text = table(
        &[
            "what",
            "median",
            "least to most",
            "the kernel alone",
            "ratio",
            "target",
        ],
        &rows,
    );
    if !json {
        println!("{text}");
    }
    if saving {
        let words = args.iter().filter(|arg| **arg != "--json");
        let words: Vec<_> = words.copied().collect();
        let page = format!(
            "# Guests' memory\n\n{where_and_when}\n\n`cargo xtask bench memory {}`. Medians of rounds, in which floor and engine take turns; a ratio is the median of theirs. \
             What is told apart, and what each floor is: `crates/memory/benches/guests/main.rs`.\n\n{text}",
            words.join(" ")
        );
        save(&format!("memory-{}.md", machine::today()), &page)?;
    }
    Ok(())
}

fn figures(said: &str) -> Result<Vec<Value>> {
    if let Some(skip) = said.lines().find(|line| line.starts_with("SKIP")) {
        bail!("{skip}");
    }
    let lines = said.lines().filter(|line| line.starts_with('{'));
    let figures: Vec<Value> = lines
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect::<Result<_>>()?;
    if figures.is_empty() {
        bail!("the bench printed no figure: {said}");
    }
    Ok(figures)
}

fn row(figure: &Value) -> Vec<String> {
    let number = |field: &str| figure[field].as_f64();
    let unit = figure["unit"].as_str().unwrap_or("");
    let short = |n: f64| match n {
        n if n < 10.0 => format!("{n:.2}"),
        n if n < 100.0 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    };
    let with_unit = |n: f64| format!("{} {unit}", short(n));
    let or_none = |n: Option<String>| n.unwrap_or_default();
    let range = number("least").zip(number("most"));
    vec![
        figure["what"].as_str().unwrap_or("").to_owned(),
        or_none(number("median").map(with_unit)),
        or_none(range.map(|(least, most)| format!("{} to {}", short(least), short(most)))),
        or_none(number("floor").map(with_unit)),
        or_none(number("ratio").map(|ratio| format!("{ratio:.2}"))),
        figure["target"].as_str().unwrap_or("").to_owned(),
    ]
}

#[test]
fn a_figure_is_a_row() {
    let said = "running\n{\"what\":\"w\",\"unit\":\"us\",\"median\":12.437,\"least\":1.0,\"most\":700.2,\"floor\":null,\"ratio\":null,\"target\":\"at most 2\"}\n";
    let figures = figures(said).unwrap();
    let expected = ["w", "12.4 us", "1.00 to 700", "", "", "at most 2"];
    assert_eq!(row(&figures[0]), expected);
    assert!(self::figures("nothing").is_err());
}
