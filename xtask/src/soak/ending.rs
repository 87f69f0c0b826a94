//! The end of a soak: all is compared, then all is removed, and nothing may be left; and the
//! [`Report`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::leaks::left_over;
use super::world::World;
use crate::rig::table::{bytes, table};
use crate::rig::usage::Process;

/// For commands and seals to end.
const ENDS_WITHIN: Duration = Duration::from_secs(300);

impl World {
    /// See the module.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.until("the commands to end", |world| {
            world.poll_jobs()?;
            Ok(world.jobs.is_empty())
        })?;
        self.until("the long-lived servers to be quiet", |world| {
            world.resolve_lost(None)?;
            world.look_for_leaks()
        })?;
        // Ended once more, so that no lost request is on its way.
        for at in 0..self.sessions.len() {
            if self.sessions[at].server.is_some() {
                self.stop(at, false)?;
            }
            self.resume(at)?;
        }
        self.until("all seals to end", |world| {
            world.resolve_lost(None)?;
            let sealing: Result<Vec<_>> = world.sessions.iter().map(|s| s.sealing()).collect();
            Ok(world.asked.is_empty() && sealing?.iter().all(Vec::is_empty))
        })?;
        self.compare_all()?;
        self.remove_all()
    }

    fn until(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let give_up = Instant::now() + ENDS_WITHIN;
        while !is_so(self)? {
            if Instant::now() > give_up {
                bail!("waited {ENDS_WITHIN:?} for {what}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn compare_all(&mut self) -> Result<()> {
        let listed = self.rig.json("ls")?;
        let listed = listed.as_array().context("ls prints a list")?;
        let listed: Vec<&str> = listed
            .iter()
            .filter_map(|row| row["name"].as_str())
            .collect();
        if !listed.iter().copied().eq(self.names.keys()) {
            bail!(
                "the names are {listed:?}, and should be {:?}",
                self.names.keys()
            );
        }
        for at in 0..self.sessions.len() {
            self.compare_session(at)?;
        }
        self.compare_template()?;
        let names: Vec<_> = self.names.clone().into_iter().collect();
        for (name, holds) in names {
            self.rig.ok(&format!("verify {name} --quiet"))?;
            self.rig.ok(&format!("export {name} end.raw --quiet"))?;
            let image = std::fs::read(self.rig.path("end.raw"))?;
            std::fs::remove_file(self.rig.path("end.raw"))?;
            self.compare_name(&name, holds, &image, "at the end")?;
        }
        Ok(())
    }

    fn remove_all(&mut self) -> Result<()> {
        while !self.sessions.is_empty() {
            self.drop_session(0)?;
        }
        let template = self.template.take();
        template.context("it is always served")?.end()?;
        let names: Vec<String> = self.names.keys().cloned().collect();
        names.iter().try_for_each(|name| self.remove_name(name))?;
        self.measure_store();
        self.rig.ok("gc")?;
        let left = left_over(self)?;
        if !left.is_empty() {
            bail!(
                "after all was removed there is left:\n  {}",
                left.join("\n  ")
            );
        }
        Ok(())
    }
}

/// What a soak did.
pub(super) struct Report {
    seed: u64,
    took: Duration,
    operations: u64,
    counts: BTreeMap<&'static str, u64>,
    requests: u64,
    compared_bytes: u64,
    store_bytes_peak: u64,
    samples: u64,
    peak: Process,
    last: [Process; 2],
}

impl Report {
    pub(super) fn new(world: &World, seed: u64, took: Duration, operations: u64) -> Self {
        Self {
            seed,
            took,
            operations,
            counts: world.counts.clone(),
            requests: world.requests,
            compared_bytes: world.compared_bytes,
            store_bytes_peak: world.store_bytes_peak,
            samples: world.leaks.samples(),
            peak: world.leaks.peak(),
            last: world.leaks.last(),
        }
    }

    pub(super) fn text(&self) -> String {
        let rows: Vec<_> = self
            .counts
            .iter()
            .map(|(what, n)| vec![(*what).to_owned(), n.to_string()])
            .collect();
        let [steady, template] = &self.last;
        let held = |p: &Process| {
            let rss = bytes(p.rss_bytes);
            format!(
                "{} descriptors, {} of objects ({} removed), {} threads and {} that flush, {rss}",
                p.fds, p.object_fds, p.removed_fds, p.threads, p.flush_threads
            )
        };
        format!(
            "\n{}\nsoak: seed {}, {} s, {} operations, {} requests; {} compared.\n\
             Lost: 0. Left over: 0. The store took {} at most.\n\
             Long-lived servers, at {} quiet moments: {} at most.\n\
             At the end the session's: {}; the template's: {}.\n",
            table(&["what", "times"], &rows),
            self.seed,
            self.took.as_secs(),
            self.operations,
            self.requests,
            bytes(self.compared_bytes),
            bytes(self.store_bytes_peak),
            self.samples,
            held(&self.peak),
            held(steady),
            held(template),
        )
    }

    pub(super) fn json(&self) -> Value {
        let held = |p: &Process| {
            json!({
                "descriptors": p.fds,
                "object_descriptors": p.object_fds,
                "removed_object_descriptors": p.removed_fds,
                "threads": p.threads,
                "flush_threads": p.flush_threads,
                "rss_bytes": p.rss_bytes,
            })
        };
        json!({
            "seed": self.seed,
            "took_ms": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            "operations": self.operations,
            "requests": self.requests,
            "times": self.counts,
            "compared_bytes": self.compared_bytes,
            "lost": 0,
            "left_over": 0,
            "store_peak_bytes": self.store_bytes_peak,
            "quiet_moments": self.samples,
            "peak": held(&self.peak),
            "end_session_server": held(&self.last[0]),
            "end_template_server": held(&self.last[1]),
        })
    }
}
