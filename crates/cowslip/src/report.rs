//! What the user sees: results on standard output, as text or JSON; remarks, progress and errors on
//! standard error. Nothing else in the program prints.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use comfy_table::{CellAlignment, Table, presets};
use cowslip_snapshot::error::StoreError;
use cowslip_snapshot::header::Header;
use cowslip_snapshot::ids::{HeaderId, ImageName, LayerId, SnapshotName};
use cowslip_snapshot::parts::Part;
use cowslip_snapshot::session::Seal;
use cowslip_snapshot::store::{Listed, Snapshot, StandsFor, Store};
use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::failure::Failure;

/// How to talk to the user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reporter {
    json: bool,
    quiet: bool,
}

impl Reporter {
    pub(crate) fn new(global: &Global) -> Self {
        Self {
            json: global.json,
            quiet: global.quiet,
        }
    }

    /// The result of a command: one of the two, as the user wanted it.
    pub(crate) fn result<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let text = if self.json {
            let json = serde_json::to_string_pretty(value);
            json.map_err(|e| Failure::failed(format!("writing JSON: {e}")))?
        } else {
            text()
        };
        print(&text)
    }

    /// Something that a person may want to know, and a program not.
    pub(crate) fn remark(self, text: &str) {
        if !self.quiet {
            complain(text);
        }
    }

    /// A bar on standard error while something long goes on, where somebody is there to see it.
    pub(crate) fn progress(self, what: &'static str, unit: Unit) -> ProgressBar {
        let seen = !self.quiet && std::io::stderr().is_terminal();
        let target = if seen {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let counts = match unit {
            Unit::Bytes => "{binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}",
            Unit::Files => "{human_pos}/{human_len} files",
            Unit::Blocks => "{human_pos}/{human_len} blocks",
            Unit::Snapshots => "{human_pos}/{human_len} snapshots",
            Unit::Groups => "{human_pos}/{human_len} groups",
        };
        let style = format!("{{msg:10}} [{{bar:30}}] {counts}, {{eta}} left");
        let style = ProgressStyle::with_template(&style).expect("a template that was tried");
        let bar = ProgressBar::with_draw_target(Some(0), target);
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(what);
        bar
    }
}

/// What a progress bar counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Bytes,
    Files,
    Blocks,
    Snapshots,
    Groups,
}

/// Moves a bar.
pub(crate) fn advance(bar: &ProgressBar, done: u64, total: u64) {
    bar.set_length(total);
    bar.set_position(done);
}

/// Standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{newline}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("writing to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Standard error, one line. There is nobody to tell that it cannot be written.
pub(crate) fn complain(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "cowslip: {text}"));
}

/// The end of a command that failed.
pub(crate) fn failure(failure: &Failure) {
    complain(&failure.message);
    if let Some(hint) = &failure.hint {
        complain(&format!("hint: {hint}"));
    }
}

pub(crate) fn bytes(n: u64) -> String {
    BinaryBytes(n).to_string()
}

/// So many of something, in words.
pub(crate) fn count(n: u64, what: &str) -> String {
    let s = if n == 1 { "" } else { "s" };
    format!("{n} {what}{s}")
}

/// A file name that somebody else chose, without what a terminal would act on.
pub(crate) fn plain(name: &str) -> String {
    name.escape_debug().to_string()
}

pub(crate) fn time(unix_ms: u64) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    at.map_or_else(
        || "-".into(),
        |at| humantime::format_rfc3339_seconds(at).to_string(),
    )
}

pub(crate) fn duration(d: Duration) -> String {
    match d.as_micros() {
        0..10 => format!("{:.1} us", d.as_secs_f64() * 1e6),
        us @ 10..10_000 => format!("{us} us"),
        us @ 10_000..10_000_000 => format!("{} ms", us / 1000),
        us => format!("{} s", us / 1_000_000),
    }
}

/// A table without lines; the columns in `right` are numbers.
pub(crate) fn table(head: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).add_rows(rows);
    if !head.is_empty() {
        table.set_header(head.iter().copied());
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// What an image of a snapshot is and what it added. Its field names are a contract.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Info {
    /// As it was typed: with the part where one was said.
    pub(crate) name: ImageName,
    /// Stays, however the snapshot is stored.
    pub(crate) id: HeaderId,
    /// The header object that holds its map now.
    pub(crate) header: HeaderId,
    /// The snapshot that this one was made over.
    pub(crate) parent: Option<HeaderId>,
    /// A name that the parent has now.
    pub(crate) parent_name: Option<ImageName>,
    pub(crate) generation: u64,
    pub(crate) created_unix_ms: u64,
    pub(crate) made_by: String,
    pub(crate) size_bytes: u64,
    pub(crate) block_size_bytes: u32,
    /// Of this snapshot's own diff: blocks with payload, blocks newly zero, blocks that were
    /// written and are equal to the parent's.
    pub(crate) dirty_blocks: u64,
    pub(crate) zero_blocks: u64,
    pub(crate) same_blocks: u64,
    /// What it added to the store: the layer object; header object and name; their sum.
    pub(crate) payload_bytes: u64,
    pub(crate) header_bytes: u64,
    pub(crate) stored_bytes: u64,
}

impl Info {
    pub(crate) fn new(store: &Store, name: &ImageName, header: &Header, names: &Names) -> Self {
        let meta = header.meta();
        let stored = store.stored_bytes(header);
        let parent_names = meta.parent.map_or(&[][..], |id| names.of(id));
        Self {
            name: name.clone(),
            id: meta.origin,
            header: meta.id,
            parent: meta.parent,
            parent_name: parent_names.first().cloned(),
            generation: meta.generation,
            created_unix_ms: meta.created_unix_ms,
            made_by: meta.made_by.clone(),
            size_bytes: meta.size_bytes,
            block_size_bytes: meta.block_size.bytes(),
            dirty_blocks: meta.figures.dirty_blocks,
            zero_blocks: meta.figures.zero_blocks,
            same_blocks: meta.figures.same_blocks,
            payload_bytes: stored.payload,
            header_bytes: stored.header,
            stored_bytes: stored.total(),
        }
    }

    fn dirty_bytes(&self) -> u64 {
        self.dirty_blocks * u64::from(self.block_size_bytes)
    }

    /// One line about the diff.
    pub(crate) fn diff(&self) -> String {
        format!(
            "{} dirty blocks ({}), {} zero, {} same; stored {} (payload {}, header {})",
            self.dirty_blocks,
            bytes(self.dirty_bytes()),
            self.zero_blocks,
            self.same_blocks,
            bytes(self.stored_bytes),
            bytes(self.payload_bytes),
            bytes(self.header_bytes),
        )
    }
}

/// One part of a snapshot. Its field names are a contract.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartInfo {
    pub(crate) part: Part,
    /// The image, however it is stored: the same in each snapshot that has it as a part.
    pub(crate) id: HeaderId,
    pub(crate) header: HeaderId,
    pub(crate) size_bytes: u64,
    /// What the image added to the store when it was made; the record of the name counts with the first part.
    pub(crate) payload_bytes: u64,
    pub(crate) header_bytes: u64,
    pub(crate) stored_bytes: u64,
}

impl PartInfo {
    pub(crate) fn all(store: &Store, snapshot: &Snapshot) -> Vec<Self> {
        let stored = store.stored_parts(snapshot);
        let info = |(part, header): (Part, &Arc<Header>)| {
            let stored = stored.get(part).expect("of each part");
            Self {
                part,
                id: header.meta().origin,
                header: header.id(),
                size_bytes: header.size_bytes(),
                payload_bytes: stored.payload,
                header_bytes: stored.header,
                stored_bytes: stored.total(),
            }
        };
        snapshot.parts.iter().map(info).collect()
    }
}

/// Which names each image has, whatever part of a snapshot it is. A damaged record has none; `ls` tells of it.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<HeaderId, (HeaderId, Vec<ImageName>)>);

impl Names {
    pub(crate) fn read(store: &Store) -> Result<Self, StoreError> {
        let mut names = Self::default();
        for Listed { name, stands_for } in store.list()? {
            let Ok(StandsFor { origin, parts }) = stands_for else {
                continue;
            };
            match parts.count() {
                1 => names.add(origin, *parts.main().1, (&name).into()),
                // Each is an image of its own, which its header says.
                _ => names.add_parts(&name, store.resolve_snapshot(&name)),
            }
        }
        Ok(names)
    }

    /// As if there were this name only: what it costs does not depend on how many there are.
    pub(crate) fn only(store: &Store, name: &SnapshotName) -> Self {
        let mut names = Self::default();
        names.add_parts(name, store.resolve_snapshot(name));
        names
    }

    fn add(&mut self, origin: HeaderId, header: HeaderId, name: ImageName) {
        let (_, all) = self.0.entry(origin).or_insert((header, Vec::new()));
        all.push(name);
    }

    fn add_parts(&mut self, name: &SnapshotName, snapshot: Result<Snapshot, StoreError>) {
        let Ok(snapshot) = snapshot else {
            return;
        };
        let (main, _) = snapshot.parts.main();
        for (part, header) in snapshot.parts.iter() {
            let image = match part == main {
                true => name.into(),
                false => ImageName::part(name, part),
            };
            self.add(header.meta().origin, header.id(), image);
        }
    }

    /// The names of an image, in order.
    pub(crate) fn of(&self, id: HeaderId) -> &[ImageName] {
        self.0.get(&id).map_or(&[], |(_, names)| names)
    }

    /// Where an image that has a name is stored.
    pub(crate) fn header(&self, id: HeaderId) -> Option<HeaderId> {
        self.0.get(&id).map(|(header, _)| *header)
    }
}

/// A snapshot that was just taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Taken {
    #[serde(flatten)]
    pub(crate) info: Info,
    /// How long no request could begin.
    pub(crate) held_us: f64,
    /// From the asking to the commit.
    pub(crate) seconds: f64,
    /// Written blocks that were left out because the file system does not need them; only where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) unneeded_blocks: Option<u64>,
    /// How the guest was held by who runs it: `frozen`, its file system was; `paused`, all of it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) guest: Option<String>,
}

impl Taken {
    /// `over` is the snapshot that it was made over, most likely: its name is said if it is.
    pub(crate) fn new(
        store: &Arc<Store>,
        header: &Header,
        over: &SnapshotName,
        seal: &Seal,
        all: Duration,
    ) -> Self {
        Self {
            info: Info::new(
                store,
                &seal.name().into(),
                header,
                &Names::only(store, over),
            ),
            held_us: seal.held().as_secs_f64() * 1e6,
            seconds: all.as_secs_f64(),
            unneeded_blocks: None,
            guest: None,
        }
    }

    /// Says how its guest was held, if it had one.
    pub(crate) fn of_guest(self, held: Option<&'static str>) -> Self {
        Self {
            guest: held.map(str::to_owned),
            ..self
        }
    }

    /// Says what was left out, if that was asked for.
    pub(crate) fn fs_aware(self, wanted: bool, seal: &Seal) -> Self {
        Self {
            unneeded_blocks: wanted.then(|| seal.progress().unneeded_blocks),
            ..self
        }
    }
}

/// One layer that an image depends on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LayerUse {
    pub(crate) id: LayerId,
    /// Blocks of the image that are in it.
    pub(crate) blocks: u64,
}
