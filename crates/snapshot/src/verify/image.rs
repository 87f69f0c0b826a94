//! [`verify_image`]: all that one image is made of, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::Depth;
use super::bases::{base_frames, check_bases};
use super::findings::{DAMAGE_LISTED_MAX, Damage, Findings, Spot};
use super::map::{MapWalk, Met, past_the_end};
use crate::error::{ObjectError, StoreError};
use crate::header::Header;
use crate::ids::LayerId;
use crate::layer::{Layer, blocks_per_frame};
use crate::store::{Store, layer_name};

/// What was looked at, and what is wrong.
#[derive(Debug, Default)]
pub struct Report {
    /// Nodes of the map.
    pub nodes: u64,
    /// Layers that were read.
    pub layers: u64,
    /// Frames of those layers.
    pub frames: u64,
    /// What those frames hold, decoded.
    pub payload_bytes: u64,
    /// Damaged places: at most [`DAMAGE_LISTED_MAX`] of them.
    pub damage: Vec<Damage>,
    /// All damaged places.
    pub damaged: u64,
}

impl Report {
    /// Is all as it was stored?
    pub fn is_whole(&self) -> bool {
        self.damaged == 0
    }
}

/// [`verify_image`], as closely as can be.
///
/// # Errors
/// As there.
pub fn verify(
    store: &Store,
    header: &Header,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, StoreError> {
    verify_image(store, header, Depth::Decoded, progress)
}

/// Checks every node and every frame that the image uses. `progress` is told how many bytes of
/// payload are done, and of how many.
///
/// # Errors
/// `Io` where the store cannot be read; damage is no error, it is in the report.
pub fn verify_image(
    store: &Store,
    header: &Header,
    depth: Depth,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, StoreError> {
    let mut checked = Checked {
        header,
        depth,
        report: Report::default(),
        findings: Findings::default(),
    };
    let used = checked.map()?;
    let frames: u64 = used.values().map(Used::frames).sum();
    let frame_bytes =
        blocks_per_frame(header.block_size()) * u64::from(header.block_size().bytes());
    for (id, used) in &used {
        checked.layer(store, *id, used, &mut |done| {
            progress(done * frame_bytes, frames * frame_bytes);
        })?;
    }
    let Checked {
        mut report,
        findings,
        ..
    } = checked;
    debug_assert!(findings.listed.len() <= DAMAGE_LISTED_MAX);
    (report.damage, report.damaged) = (findings.listed, findings.count);
    Ok(report)
}

/// What a map uses of one layer.
#[derive(Default)]
struct Used {
    /// Where the last of its blocks ends.
    end: u64,
    /// Ranges of frames, start and end.
    ranges: Vec<(u64, u64)>,
}

struct Checked<'a> {
    header: &'a Header,
    depth: Depth,
    report: Report,
    findings: Findings,
}

impl Checked<'_> {
    /// The map, and which frames it uses.
    fn map(&mut self) -> Result<BTreeMap<LayerId, Used>, StoreError> {
        let per_frame = blocks_per_frame(self.header.block_size());
        let mut used: BTreeMap<LayerId, Used> = BTreeMap::new();
        let (report, findings) = (&mut self.report, &mut self.findings);
        MapWalk::new(self.header.nodes()).image(self.header, &mut |met| {
            match met {
                Met::Node => report.nodes += 1,
                Met::Broken(ptr, error) => {
                    report.nodes += 1;
                    findings.found(Spot::Node(ptr), error)?;
                }
                Met::Run { layer, at, count } => {
                    used.entry(layer)
                        .or_default()
                        .add(at, at + count, per_frame);
                }
            }
            Ok(())
        })?;
        if let Err(error) = past_the_end(self.header) {
            self.findings.found(Spot::Map(self.header.id()), error)?;
        }
        used.values_mut().for_each(Used::join);
        Ok(used)
    }

    fn layer(
        &mut self,
        store: &Store,
        id: LayerId,
        used: &Used,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        self.report.layers += 1;
        let damaged =
            |place: &str, why: String| ObjectError::damaged(place, why).of(layer_name(id));
        let wrong_map = Spot::Map(self.header.id());
        let layer = match store.open_layer_stored(id) {
            Ok(layer) => layer,
            Err(error) => return self.findings.found(Spot::Layer(id), error),
        };
        if layer.block_size() != self.header.block_size() {
            let why = "its blocks are not of the image's size".to_owned();
            return self.findings.found(wrong_map, damaged("the footer", why));
        }
        if used.end > layer.blocks().0 {
            let (last, all) = (used.end - 1, layer.blocks().0);
            let why = format!("the map uses block {last}, and there are {all}");
            self.findings.found(wrong_map, damaged("its end", why))?;
        }
        let mut bases: BTreeMap<LayerId, BTreeSet<u64>> = BTreeMap::new();
        for &(start, end) in &used.ranges {
            for n in start..end.min(layer.frames()) {
                self.report.frames += 1;
                progress(self.report.frames);
                match layer.check_frame(n, self.depth == Depth::Decoded) {
                    Ok(bytes) => self.report.payload_bytes += bytes,
                    Err(error) => {
                        let error = error.of(layer_name(id));
                        self.findings.found(Spot::Frame(id, n), error)?;
                        continue;
                    }
                }
                for (base, frames) in base_frames(&layer, n) {
                    bases.entry(base).or_default().extend(frames);
                }
            }
        }
        for (base, frames) in &bases {
            self.base(store, *base, frames)?;
        }
        if !bases.is_empty() {
            self.deltas(store, &layer, used)?;
        }
        Ok(())
    }

    /// Frames that deltas need; one that is none, they are told of.
    fn base(
        &mut self,
        store: &Store,
        id: LayerId,
        frames: &BTreeSet<u64>,
    ) -> Result<(), StoreError> {
        let base = match store.open_layer_stored(id) {
            Ok(base) => base,
            Err(error) => return self.findings.found(Spot::Layer(id), error),
        };
        for n in frames.iter().filter(|n| base.stands_alone(**n)) {
            if let Err(error) = base.check_frame(*n, self.depth == Depth::Decoded) {
                let error = error.of(layer_name(id));
                self.findings.found(Spot::Frame(id, *n), error)?;
            }
        }
        Ok(())
    }

    /// The deltas of a layer that the image uses, whose own bytes and bases have been checked.
    fn deltas(&mut self, store: &Store, layer: &Layer, used: &Used) -> Result<(), StoreError> {
        let size = layer.block_size();
        let mut alone = |id, n| {
            let base = store.open_layer(id)?;
            let is_one = base.block_size() == size && base.stands_alone(n);
            let read = is_one.then(|| base.read_frame(n));
            read.transpose().map_err(|e| e.of(layer_name(id)))
        };
        for n in layer.deltas().filter(|n| used.has_frame(*n)) {
            let spot = Spot::Frame(layer.id(), n);
            if self.findings.has_frames(layer.id(), n..n + 1) {
                continue;
            }
            for base in base_frames(layer, n).into_keys() {
                if let Ok(base) = store.open_layer(base)
                    && let Err(error) = check_bases(layer, n, &base)
                {
                    self.findings.found(spot.clone(), error)?;
                }
            }
            if self.depth == Depth::Stored || self.findings.has_frames(layer.id(), n..n + 1) {
                continue;
            }
            // What is wrong with a base has been found where that is.
            if let Ok(prefix) = layer.prefix(n, &mut alone)
                && let Err(error) = layer.read_delta(n, &prefix)
            {
                self.findings
                    .found(spot, error.of(layer_name(layer.id())))?;
            }
        }
        Ok(())
    }
}

impl Used {
    fn add(&mut self, start: u64, end: u64, per_frame: u64) {
        self.end = self.end.max(end);
        self.add_frames((start / per_frame, end.div_ceil(per_frame)));
    }

    /// A range that touches the last one makes that longer.
    fn add_frames(&mut self, frames: (u64, u64)) {
        match self.ranges.last_mut() {
            Some(last) if last.0 <= frames.0 && frames.0 <= last.1 => {
                last.1 = last.1.max(frames.1);
            }
            _ => self.ranges.push(frames),
        }
    }

    /// Sorts them, and makes the overlapping ones one.
    fn join(&mut self) {
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.sort_unstable();
        ranges
            .into_iter()
            .for_each(|frames| self.add_frames(frames));
    }

    fn has_frame(&self, n: u64) -> bool {
        let after = self.ranges.partition_point(|(_, end)| *end <= n);
        self.ranges.get(after).is_some_and(|(start, _)| *start <= n)
    }

    fn frames(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }
}
