//! [`Leaks`]: the servers that live from the beginning to the end, at quiet moments; and what is left of
//! everything at the end.

use anyhow::{Context, Result};

use super::world::World;
use crate::rig::usage::{Process, processes_of};
use crate::rig::watch::{Watch, left_in_store, most, others_in};

/// See the module.
#[derive(Default)]
pub(super) struct Leaks {
    /// The steady session's server, and the template's.
    watched: [Watch; 2],
}

impl Leaks {
    pub(super) fn samples(&self) -> u64 {
        self.watched.iter().map(|watch| watch.samples).sum()
    }

    pub(super) fn peak(&self) -> Process {
        let [session, template] = &self.watched;
        most(&session.peak, &template.peak)
    }

    pub(super) fn last(&self) -> [Process; 2] {
        self.watched.each_ref().map(|watch| watch.last.clone())
    }
}

impl World {
    /// Looks at the long-lived servers, if nothing is on its way to them.
    pub(super) fn look_for_leaks(&mut self) -> Result<bool> {
        let Some(at) = self.sessions_that(|s| s.steady).pop() else {
            return Ok(false);
        };
        let number = self.sessions[at].number;
        // The first look comes after two snapshots: what is opened once is open by then.
        let manifest = self.sessions[at].manifest()?;
        let snapshots = manifest["next_cache"].as_u64().unwrap_or(0);
        // A snapshot that was cancelled leaves a frozen cache, and its files, for the next.
        let caches = manifest["caches"].as_array().map_or(0, Vec::len);
        if snapshots < 4
            || caches != 1
            || self.asked.iter().any(|asked| asked.session == number)
            || !self.sessions[at].sealing()?.is_empty()
        {
            return Ok(false);
        }
        self.sessions[at].device.drain(&self.clock)?;
        let server = self.sessions[at]
            .server
            .as_ref()
            .context("it is always served")?;
        let template = self.template.as_ref().context("it is always served")?;
        for (which, pid) in [server.pid(), template.pid()].into_iter().enumerate() {
            self.leaks.watched[which].sample(pid)?;
        }
        self.note("look for leaks", "");
        Ok(true)
    }
}

/// What is left when everything was removed.
pub(super) fn left_over(world: &World) -> Result<Vec<String>> {
    let dir = world.rig.dir();
    let mut left = processes_of(dir)?;
    left.extend(others_in(dir, &["cowslip", "log", "store", "tmp"])?);
    left.extend(others_in(&dir.join("tmp"), &[])?);
    left.extend(left_in_store(&world.rig.store())?);
    Ok(left)
}
