//! What pages are for, by the flags that a kernel shows of them (Documentation/admin-guide/mm/pagemap.rst), and how much of each kind changed.

use std::collections::BTreeMap;

use crate::rig::table::table;

/// What changed of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changed {
    pub(super) pages: u64,
    pub(super) bytes: u64,
}

/// By kind.
pub(super) type Kinds = BTreeMap<&'static str, Changed>;

/// The first that holds. Bits of /proc/kpageflags; `reserved` is in none of the others.
const KINDS: [(u64, &str); 7] = [
    (1 << 10, "free"),
    (1 << 26, "page tables"),
    (1 << 7, "slab"),
    (1 << 12, "anonymous"),
    (1 << 5 | 1 << 3 | 1 << 11, "page cache"),
    (1 << 32, "kernel image, per-CPU"),
    (1 << 20, "no page"),
];
const OTHER: &str = "kernel, other";

fn kind(flags: u64) -> &'static str {
    let found = KINDS.iter().find(|(bits, _)| flags & bits != 0);
    found.map_or(OTHER, |(_, name)| name)
}

/// How two memories differ, page by page.
pub(super) fn changed(before: Option<&[u8]>, now: &[u8], flags: &[u64]) -> Kinds {
    let mut kinds = Kinds::new();
    let zeros = [0; 4096];
    for (number, page) in now.chunks(4096).enumerate() {
        let old = before.map_or(&zeros[..], |before| &before[number * 4096..][..4096]);
        if page == old {
            continue;
        }
        let bytes = match [page, old].contains(&&zeros[..]) {
            true => 4096,
            false => page.iter().zip(old).filter(|(a, b)| a != b).count() as u64,
        };
        let kind = kinds
            .entry(kind(flags.get(number).copied().unwrap_or(0)))
            .or_default();
        kind.pages += 1;
        kind.bytes += bytes;
    }
    kinds
}

pub(super) fn table_of<'a>(stages: impl Iterator<Item = (&'a str, &'a Kinds)>) -> String {
    let mut head = vec!["stage"];
    head.extend(KINDS.map(|(_, name)| name));
    head.push(OTHER);
    let rows = stages.map(|(name, kinds)| {
        let cells = head[1..].iter().map(|kind| match kinds.get(kind) {
            Some(changed) => format!("{} ({} B)", changed.pages, changed.bytes),
            None => String::new(),
        });
        std::iter::once(name.to_owned()).chain(cells).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    table(&head, &rows)
}
