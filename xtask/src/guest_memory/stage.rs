//! [`Stage`]: disk and memory of a guest under one name, and what the memory cost.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::guest::Guest;
use super::pages::{Kinds, changed};
use crate::rig::Rig;
use crate::rig::table::bytes;

/// See the module.
pub(super) struct Stage {
    pub(super) name: String,
    /// As `cowslip memory import --json` tells it.
    taken: Value,
    pub(super) kinds: Kinds,
}

/// Takes one over another, and compares.
pub(super) fn take(
    rig: &Rig,
    guest: &mut Guest,
    name: &str,
    parent: Option<&str>,
) -> Result<Stage> {
    guest.stop();
    rig.ok(&format!("snapshot session {name}-disk --quiet"))?;
    let memfd = guest.memory();
    let mut line = format!(
        "memory import {} {name} --disk {name}-disk",
        memfd.display()
    );
    if let Some(parent) = parent {
        line += &format!(" --parent {parent}");
    }
    let taken = rig.json(&line)?;
    let now = std::fs::read(&memfd).context("the memfd")?;
    guest.go_on();
    let exported = |name: &str| -> Result<Vec<u8>> {
        rig.ok(&format!("export {name}:memory memory --replace --quiet"))?;
        Ok(std::fs::read(rig.path("memory"))?)
    };
    if exported(name)? != now {
        bail!("the memory of {name} is not the memfd's");
    }
    let before = parent.map(exported).transpose()?;
    let kinds = changed(before.as_deref(), &now, &guest.page_flags);
    let stage = Stage {
        name: name.to_owned(),
        taken,
        kinds,
    };
    let pages: u64 = stage.kinds.values().map(|kind| kind.pages).sum();
    if pages != stage.number("changed_pages") {
        bail!(
            "{pages} pages of {name} changed, and the command says: {}",
            stage.taken
        );
    }
    Ok(stage)
}

impl Stage {
    pub(super) const HEAD: [&str; 9] = [
        "stage", "changed", "to zero", "on disk", "delta", "new", "payload", "header", "stored",
    ];

    /// 0 where it is not told.
    pub(super) fn number(&self, field: &str) -> u64 {
        self.taken[field].as_u64().unwrap_or(0)
    }

    pub(super) fn line(&self) -> String {
        let stored = ["payload_bytes", "header_bytes"].map(|field| bytes(self.number(field)));
        format!(
            "{}: {} pages changed; payload {}, header {}",
            self.name,
            self.number("changed_pages"),
            stored[0],
            stored[1]
        )
    }

    pub(super) fn row(&self) -> Vec<String> {
        let [all, disk, delta, new] = [
            "changed_pages",
            "disk_pages",
            "delta_pages",
            "payload_pages",
        ]
        .map(|f| self.number(f));
        let zero = all - disk - delta - new;
        let mut row = vec![self.name.clone()];
        row.extend([all, zero, disk, delta, new].map(|n| n.to_string()));
        row.extend(
            ["payload_bytes", "header_bytes", "stored_bytes"]
                .map(|field| bytes(self.number(field))),
        );
        row
    }

    pub(super) fn json(&self) -> Value {
        let kinds = self.kinds.iter();
        let kinds = kinds.map(|(kind, changed)| {
            json!({"kind": kind, "pages": changed.pages, "changed_bytes": changed.bytes})
        });
        let kinds: Vec<Value> = kinds.collect();
        json!({"stage": self.name, "import": self.taken, "kinds": kinds})
    }
}
