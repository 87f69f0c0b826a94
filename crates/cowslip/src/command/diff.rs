//! `cowslip diff`: which blocks of one snapshot are other than those of another.
//!
//! With `--quiet` it is an answer for scripts, as of diff(1) and cmp(1): nothing is printed, and the
//! exit code says equal or different. Code 1 means only that then: what would fail with it fails
//! with another.

use std::process::ExitCode;
use std::sync::Arc;

use cowslip_block::{BlockSize, ByteRange};
use cowslip_snapshot::diff::{DiffKind, DiffRun, DiffSummary, diff, differ};
use cowslip_snapshot::header::Header;
use cowslip_snapshot::ids::ImageName;
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::store::Store;
use serde::Serialize;

use super::Context;
use crate::args::Diff;
use crate::failure::{DIFFERENT, Failure};
use crate::report::{Unit, advance, bytes, table};

/// Rows of the table. More are nothing to read.
const ROWS_MAX: usize = 40;
/// Runs in JSON; more are only counted. It bounds the memory.
const RUNS_MAX: usize = 1_000_000;

/// Its field names are a contract.
#[derive(Serialize)]
struct Differences<'a> {
    a: &'a ImageName,
    b: &'a ImageName,
    /// The same bytes, and as many of them.
    equal: bool,
    /// Blocks that have other bytes in B, and not only zeros.
    changed_blocks: u64,
    /// Blocks that read as zeros in B, and do not in A.
    zeroed_blocks: u64,
    block_size_bytes: u32,
    /// Of A, and of B.
    size_bytes: [u64; 2],
    /// All of them; the list may hold fewer.
    runs_total: u64,
    runs: Vec<Run>,
}

#[derive(Serialize)]
struct Run {
    start_block: u64,
    blocks: u64,
    kind: &'static str,
    /// For people. The last block of an image may be a part of one.
    #[serde(skip)]
    bytes: ByteRange,
}

pub(super) fn run(context: &Context, args: &Diff) -> Result<ExitCode, Failure> {
    if context.global.quiet {
        return match is_different(context, args) {
            Ok(true) => Ok(ExitCode::from(DIFFERENT)),
            Ok(false) => Ok(ExitCode::SUCCESS),
            Err(failure) => Err(failure.undecided()),
        };
    }
    let pair = open(context, args)?;
    let most = if context.global.json {
        RUNS_MAX
    } else {
        ROWS_MAX
    };
    let (summary, runs) = differences(context, &pair, most)?;
    let found = Differences {
        a: &args.a,
        b: &args.b,
        equal: summary.is_equal(),
        changed_blocks: summary.changed.0,
        zeroed_blocks: summary.zeroed.0,
        block_size_bytes: summary.block_size.bytes(),
        size_bytes: summary.size_bytes,
        runs_total: summary.runs,
        runs,
    };
    context.report.result(&found, || text(&found))?;
    let left = found.runs_total - found.runs.len() as u64;
    if left > 0 {
        let hint = if context.global.json {
            ""
        } else {
            "; --json lists them"
        };
        context.report.remark(&format!("{left} more runs{hint}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn is_different(context: &Context, args: &Diff) -> Result<bool, Failure> {
    let pair = open(context, args)?;
    Ok(differ(&pair.store, &pair.a, &pair.b, &mut |_, _| ())?)
}

/// Two images, both of which stay whatever becomes of their names.
struct Pair {
    store: Arc<Store>,
    a: Arc<Header>,
    b: Arc<Header>,
    _leases: [Lease; 2],
}

fn open(context: &Context, args: &Diff) -> Result<Pair, Failure> {
    let store = context.store()?;
    let (a, lease_a) = store.resolve_image_leased(&args.a)?;
    let (b, lease_b) = store.resolve_image_leased(&args.b)?;
    if a.block_size() != b.block_size() {
        let size = |h: &Header| bytes(u64::from(h.block_size().bytes()));
        let (one, two) = (size(&a), size(&b));
        let why = format!("{} is in blocks of {one}, {} of {two}", args.a, args.b);
        return Err(Failure::usage(why).hint("only images in blocks of one size can be compared"));
    }
    Ok(Pair {
        store,
        a,
        b,
        _leases: [lease_a, lease_b],
    })
}

/// The first `most` runs, and the figures of all.
fn differences(
    context: &Context,
    Pair { store, a, b, .. }: &Pair,
    most: usize,
) -> Result<(DiffSummary, Vec<Run>), Failure> {
    let all = ByteRange::new(0, a.size_bytes().max(b.size_bytes()));
    let mut runs = Vec::new();
    let mut keep = |run: DiffRun| {
        if runs.len() < most {
            runs.push(Run::of(run, a.block_size(), all));
        }
    };
    let bar = context.report.progress("comparing", Unit::Blocks);
    let summary = diff(store, a, b, &mut keep, &mut |done, total| {
        advance(&bar, done, total);
    });
    bar.finish_and_clear();
    Ok((summary?, runs))
}

impl Run {
    fn of(DiffRun { blocks, kind }: DiffRun, size: BlockSize, all: ByteRange) -> Self {
        Self {
            start_block: blocks.start.0,
            blocks: blocks.count().0,
            kind: match kind {
                DiffKind::Changed => "changed",
                DiffKind::Zeroed => "zeroed",
            },
            bytes: size.bytes_of(blocks).intersect(all),
        }
    }
}

fn text(found: &Differences<'_>) -> String {
    let mut text = String::new();
    if !found.runs.is_empty() {
        let row = |run: &Run| {
            let (at, len) = (run.bytes.start.0, run.bytes.len());
            vec![at.to_string(), bytes(len), run.kind.to_owned()]
        };
        let rows = found.runs.iter().map(row).collect();
        text = table(&["OFFSET", "LENGTH", "KIND"], &[0, 1], rows) + "\n";
    }
    let (Differences { a, b, .. }, [size_a, size_b]) = (found, found.size_bytes);
    if found.equal {
        return format!("{a} and {b} are equal\n");
    }
    let unit = u64::from(found.block_size_bytes);
    let of = |blocks| format!("{blocks} ({})", bytes(blocks * unit));
    text += &format!(
        "{a} -> {b}: blocks changed: {}, zeroed: {}; runs: {}\n",
        of(found.changed_blocks),
        of(found.zeroed_blocks),
        found.runs_total
    );
    if size_a != size_b {
        text += &format!("size: {size_a} -> {size_b} bytes\n");
    }
    text
}
