//! `cowslip demo`: the whole thing in one run, with nothing set up: a small ext4 image becomes a
//! snapshot and is served; a client writes to it over NBD; two snapshots are taken meanwhile; the
//! server is killed and comes back; a fork is served from the second snapshot; every byte is compared
//! with an oracle.
//!
//! The server is this program, started as a user would start it; the client is a real NBD client.
//!
//! - `stage.rs`: the directory, the image, the server processes;
//! - `workload.rs`: what the client writes, and the oracle;
//! - `story.rs`: what the user reads.

mod stage;
mod story;
mod workload;

use std::time::{Duration, Instant};

use self::stage::{Server, Stage};
use self::story::{SnapshotLine, Story};
use self::workload::{Kind, STAMPS_AT, Stamper, Workload};
use super::Context;
use crate::args::Demo;
use crate::failure::Failure;
use crate::report::bytes;

pub(super) fn run(context: &Context, args: &Demo) -> Result<(), Failure> {
    let begun = Instant::now();
    let say = |text: String| context.report.remark(&text);
    let stage = Stage::set(args.keep.as_deref())?;
    say(format!(
        "an ext4 image of {} with a few files, imported as `base`",
        bytes(stage::IMAGE_BYTES)
    ));
    stage.make_image()?;
    stage.import("base")?;
    let mut server = stage.serve("base", "session", Some(workload::DEVICE_BYTES))?;
    say(format!(
        "served over NBD as a device of {}; a client writes",
        bytes(workload::DEVICE_BYTES)
    ));
    let mut workload = Workload::begin(args.seed, server.connect()?)?;
    let stamper = Stamper::start(server.connect()?);

    workload.write(Kind::Random, 0..400)?;
    workload.write(Kind::Text, 400..560)?;
    workload.write(Kind::Zeros, 0..100)?;
    workload.write(Kind::Trim, 100..160)?;
    workload.write(Kind::WriteZeroes, 160..200)?;
    workload.write_what_is_there(128)?;
    workload.write(Kind::Text, 400..440)?;
    let first = take(&stage, &mut workload, &stamper, "first")?;
    say("snapshot `first`, while the client was writing".into());

    workload.write(Kind::Text, 100..130)?;
    workload.write(Kind::Trim, 200..300)?;
    workload.write_what_is_there(64)?;
    let second = take(&stage, &mut workload, &stamper, "second")?;
    say("snapshot `second`, in the same way".into());

    let acknowledged = stamper.acknowledged();
    server.kill();
    let stamps = stamper.end();
    server = stage.serve("base", "session", None)?;
    say("killed the server (kill -9) with the client writing, and started it again".into());
    let mut compared = check_session(&server, &workload, stamps, acknowledged)?;
    for taken in [&first, &second] {
        let session = format!("fork-of-{}", taken.name);
        let fork = stage.serve(&taken.name, &session, None)?;
        compared += taken.check(&fork)?;
        fork.end()?;
    }
    server.end()?;
    say("served both snapshots again, and compared every byte".into());

    let story = Story {
        written: workload.written(stamps),
        snapshots: vec![first.line, second.line],
        compared_bytes: compared,
        kept: args.keep.clone(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    context.report.result(&story, || story.tell())
}

/// A snapshot, with what it must hold.
struct TakenHere {
    name: String,
    line: SnapshotLine,
    oracle: Vec<u8>,
    /// Stamps that were acknowledged before it was asked for, and submitted before it was there.
    stamps: (u64, u64),
}

fn take(
    stage: &Stage,
    workload: &mut Workload,
    stamper: &Stamper,
    name: &str,
) -> Result<TakenHere, Failure> {
    // Only after the client has written for a while again: the snapshot comes in the middle.
    stamper.wait_for_more(200, Duration::from_secs(20))?;
    let before = stamper.acknowledged();
    let taken = stage.snapshot("session", name)?;
    let stamps = (before, stamper.submitted());
    let mut carried = workload.carried();
    carried.written_bytes += (stamps.1 - stage.note_stamps(stamps.1)) * workload::STAMP_BYTES;
    Ok(TakenHere {
        name: name.to_owned(),
        line: SnapshotLine::new(taken, carried),
        oracle: workload.oracle().to_vec(),
        stamps,
    })
}

impl TakenHere {
    /// Reads all of it, and compares. How many bytes that were.
    fn check(&self, server: &Server) -> Result<u64, Failure> {
        let got = server.read_all()?;
        let wrong = |at| {
            Failure::failed(format!(
                "byte {at} of {} is not what was written",
                self.name
            ))
        };
        if let Some(at) = workload::first_difference(&got, &self.oracle) {
            return Err(wrong(at));
        }
        workload::check_stamps(&got[STAMPS_AT..], self.stamps.0, self.stamps.1)
            .map_err(|why| Failure::failed(format!("{}: {why}", self.name)))?;
        Ok(got.len() as u64)
    }
}

/// After the kill: every write that was acknowledged is there.
fn check_session(
    server: &Server,
    workload: &Workload,
    submitted: u64,
    acknowledged: u64,
) -> Result<u64, Failure> {
    let got = server.read_all()?;
    if let Some(at) = workload::first_difference(&got, workload.oracle()) {
        return Err(Failure::failed(format!("byte {at} was lost by the kill")));
    }
    workload::check_stamps(&got[STAMPS_AT..], acknowledged, submitted)
        .map_err(|why| Failure::failed(format!("after the kill: {why}")))?;
    Ok(got.len() as u64)
}
