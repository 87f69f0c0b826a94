//! `cowslip repair`: mends what is damaged and can be had again, and says what the rest costs.

use std::sync::Arc;

use cowslip_block::ByteRange;
use cowslip_block::files::RealDir;
use cowslip_snapshot::host::{Host, RealHost};
use cowslip_snapshot::repair::{Left, Lost, Mended, RepairOptions, RepairReport, repair};
use cowslip_snapshot::store::Caches;
use serde::Serialize;

use super::verify::Place;
use super::{Context, no_dir, open_store};
use crate::args::Repair;
use crate::failure::{Failure, Kind};
use crate::report::{Unit, advance, bytes, complain, count};

#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    /// Is all whole now? After a dry run: would it be?
    ok: bool,
    mended: Vec<Source<'a>>,
    /// All damaged places that are left; the list may hold fewer.
    left_count: u64,
    left: Vec<Rest<'a>>,
    lost: Vec<Cost<'a>>,
}

#[derive(Serialize)]
struct Source<'a> {
    object: &'a str,
    place: &'a str,
    source: &'a str,
}

#[derive(Serialize)]
struct Rest<'a> {
    #[serde(flatten)]
    place: Place<'a>,
    advice: Option<&'a str>,
}

#[derive(Serialize)]
struct Cost<'a> {
    image: &'a str,
    /// Nothing of it can be read; no ranges are listed then.
    whole: bool,
    ranges: Vec<Range>,
    /// There are other ranges besides those that are listed.
    more: bool,
}

#[derive(Serialize)]
struct Range {
    offset_bytes: u64,
    len_bytes: u64,
}

pub(super) fn run(context: &Context, args: &Repair) -> Result<(), Failure> {
    let path = context.store_path()?;
    let dir = RealDir::open(&path).map_err(|e| no_dir(&path, &e))?;
    let from = args.from.as_ref();
    let from = from.map(|from| open_store(from, Caches::default()));
    let from = from.transpose()?;
    let host: Arc<dyn Host> = Arc::new(RealHost);
    let options = RepairOptions {
        names: &args.names,
        from: from.as_deref(),
        dry_run: args.dry_run,
    };
    let bar = context.report.progress("checking", Unit::Bytes);
    let repaired = repair(&dir, &host, options, &mut |done, total| {
        advance(&bar, done, total);
    });
    bar.finish_and_clear();
    let repaired = repaired.map_err(|e| Failure::from(e).about(path.display()))?;
    let report = Report::of(&repaired, args.dry_run);
    context.report.result(&report, || report.text())?;
    for rest in &report.left {
        complain(&rest.place.text());
        if let Some(advice) = rest.advice {
            complain(&format!("hint: {advice}"));
        }
    }
    report.lost.iter().for_each(|cost| complain(&cost.text()));
    if report.ok {
        return Ok(());
    }
    let message = format!("{} left", count(report.left_count, "damaged place"));
    let failure = Failure::new(Kind::Corrupt, message);
    Err(match args.from {
        Some(_) => failure,
        None => failure.hint("--from STORE takes what is missing from another copy of the store"),
    })
}

impl<'a> Report<'a> {
    fn of(report: &'a RepairReport, dry_run: bool) -> Self {
        Self {
            dry_run,
            ok: report.is_whole(),
            mended: report.mended.iter().map(Source::of).collect(),
            left_count: report.left_count,
            left: report.left.iter().map(Rest::of).collect(),
            lost: report.lost.iter().map(Cost::of).collect(),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let done = match self.dry_run {
            true => "would be mended",
            false => "mended",
        };
        for Source {
            object,
            place,
            source,
        } in &self.mended
        {
            text += &format!("{object}  {place}: {done}, from {source}\n");
        }
        text + &format!(
            "{} {done}, {} left",
            count(self.mended.len() as u64, "damaged place"),
            self.left_count
        )
    }
}

impl<'a> Source<'a> {
    fn of(mended: &'a Mended) -> Self {
        Self {
            object: &mended.object,
            place: &mended.place,
            source: &mended.source,
        }
    }
}

impl<'a> Rest<'a> {
    fn of(left: &'a Left) -> Self {
        Self {
            place: Place::of(&left.damage),
            advice: left.advice.as_deref(),
        }
    }
}

impl<'a> Cost<'a> {
    fn of(lost: &'a Lost) -> Self {
        let range = |range: &ByteRange| Range {
            offset_bytes: range.start.0,
            len_bytes: range.len(),
        };
        Self {
            image: &lost.image,
            whole: lost.whole,
            ranges: lost.ranges.iter().map(range).collect(),
            more: lost.more,
        }
    }

    fn text(&self) -> String {
        const SHOWN: usize = 8;
        if self.whole {
            return format!("{}: nothing of it can be read", self.image);
        }
        let shown = self.ranges.iter().take(SHOWN);
        let shown: Vec<String> = shown
            .map(|range| format!("{} at {}", bytes(range.len_bytes), range.offset_bytes))
            .collect();
        let more = match self.more || self.ranges.len() > SHOWN {
            true => " and more",
            false => "",
        };
        format!("{}: cannot be read: {}{more}", self.image, shown.join(", "))
    }
}
