//! `report.html`: the tables with charts. One page without scripts and without anything from elsewhere; every text that is not ours is
//! escaped. Colours follow the reader's choice of light or dark.

use std::fmt::Write as _;

use super::super::Found;
use super::tables::{Grid, grids};
use super::{Summary, works};

const STYLE: &str = "
:root{--bg:#fbfaf7;--fg:#23211d;--soft:#6d675c;--line:#e3dfd6;--card:#fff;--over:#d9822b;--floor:#7a9e4d}
@media(prefers-color-scheme:dark){:root{--bg:#181715;--fg:#e9e5dc;--soft:#a39c8e;--line:#37342e;--card:#211f1c;--over:#e09a4f;--floor:#8fb45f}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:1280px;margin:0 auto;padding:32px 20px 80px}h1{font-size:30px;margin:0 0 4px}h2{font-size:19px;margin:44px 0 4px}
p{color:var(--soft);margin:0 0 14px;max-width:80ch}.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;overflow-x:auto}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}th,td{padding:4px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600}td:first-child,th:first-child{text-align:left;position:sticky;left:0;background:var(--card)}
svg{display:block;max-width:100%;height:auto}svg text{fill:var(--fg);font:12px system-ui,sans-serif}svg .soft{fill:var(--soft)}
.figure{display:flex;gap:28px;flex-wrap:wrap;margin:18px 0}.figure div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 18px}
.figure b{display:block;font-size:26px}.less{background:color-mix(in srgb,var(--floor) var(--w),transparent)}.more{background:color-mix(in srgb,var(--over) var(--w),transparent)}
.key{max-width:none}.key span{display:inline-block;width:11px;height:11px;border-radius:3px;margin:0 5px 0 14px;vertical-align:-1px}";

/// By class, in the order in which they are stacked.
const COLOURS: [(&str, &str); 15] = [
    ("file", "#7a9e4d"),
    ("directory", "#4f86b8"),
    ("inode_table", "#d9822b"),
    ("bitmap", "#c2a43a"),
    ("descriptors", "#a8763e"),
    ("superblock", "#8c5a3c"),
    ("extent_tree", "#5aa39a"),
    ("xattr", "#7fb3d3"),
    ("journal_live", "#b0486a"),
    ("journal_dead", "#d48aa4"),
    ("free", "#9a958a"),
    ("orphan", "#7d6bb0"),
    ("special", "#a79bd0"),
    ("outside", "#666"),
    ("unknown", "#222"),
];

pub(super) fn page(found: &Found) -> String {
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>cowslip lab</title><style>{STYLE}</style><main>\
         <h1>What the knobs of ext4 are worth</h1><p>Linux {}, {}, seed {}, {} % of the full size, {} cells. Blocks of 4 KiB, not compressed: what a snapshot holds, \
         beside the floor, the blocks of files that the workloads really changed.</p>",
        escape(&found.kernel),
        escape(&found.e2fsprogs),
        found.seed,
        found.scale_percent,
        found.cells.len()
    );
    page += &figures(found);
    page += &section(
        "Noise, by variant",
        "Blocks above the floor, summed over the workloads: light after a sync, full after a quiesce.",
        &noise(found),
    );
    for name in ["default", "system", "plain"] {
        if let Some(chart) = stacked(found, name) {
            let title = format!("Whose the blocks are: {name}");
            page += &section(
                &title,
                "Each workload after a sync (above) and after a quiesce (below), by class of owner; the line is the floor.",
                &chart,
            );
        }
    }
    for grid in grids(found) {
        let table = table(&grid);
        page += &section(&grid.title, &grid.about, &table);
    }
    page + "</main></html>\n"
}

fn section(title: &str, about: &str, content: &str) -> String {
    format!(
        "<h2>{}</h2><p>{}</p><div class=card>{content}</div>",
        escape(title),
        escape(about)
    )
}

/// The three that people look for first.
fn figures(found: &Found) -> String {
    let mut text = "<div class=figure>".to_owned();
    for name in ["default", "system", "plain"] {
        let Some(summary) = found.summary.iter().find(|s| s.variant == name) else {
            continue;
        };
        for stage in ["sync", "quiesce"] {
            if let Some(of) = summary.stage(stage).and_then(|s| s.of_floor) {
                let _ = write!(
                    text,
                    "<div><b>{of:.2}</b>times the floor: {name}, {stage}</div>"
                );
            }
        }
    }
    let _ = write!(
        text,
        "<div><b>{:.2} %</b>of the blocks have a name, at least</div></div>",
        found.named_percent_min
    );
    text
}

fn table(grid: &Grid) -> String {
    let mut text = "<table><tr>".to_owned();
    grid.head.iter().for_each(|cell| {
        let _ = write!(text, "<th>{}", escape(cell));
    });
    for row in &grid.rows {
        text += "<tr>";
        for cell in row {
            let _ = write!(text, "<td{}>{}", shade(cell), escape(cell));
        }
    }
    text + "</table>"
}

/// Differences have a sign: the larger, the stronger.
fn shade(cell: &str) -> String {
    let (class, digits) = match (cell.strip_prefix('-'), cell.strip_prefix('+')) {
        (Some(less), _) => ("less", less),
        (_, Some(more)) => ("more", more),
        _ => return String::new(),
    };
    match digits.parse::<u64>() {
        Ok(0) | Err(_) => String::new(),
        Ok(n) => format!(" class={class} style=\"--w:{}%\"", (n.ilog2() + 1) * 5),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for a picture")]
fn share(part: u64, all: u64, width: f64) -> f64 {
    part as f64 / all.max(1) as f64 * width
}

fn noise(found: &Found) -> String {
    let above = |s: &Summary, stage: &str| {
        s.stage(stage)
            .map(|sum| sum.blocks.saturating_sub(s.floor_blocks))
    };
    let rows: Vec<(&Summary, u64, u64)> = found
        .summary
        .iter()
        .filter_map(|s| Some((s, above(s, "sync")?, above(s, "quiesce")?)))
        .collect();
    let most = rows
        .iter()
        .map(|(_, sync, quiesce)| *sync.max(quiesce))
        .max()
        .unwrap_or(0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 1180 {0}\" width=1180 height={0}>",
        rows.len() * 22 + 8
    );
    for (i, (summary, sync, quiesce)) in rows.iter().enumerate() {
        let y = i * 22 + 4;
        let (wide, narrow) = (share(*sync, most, 760.0), share(*quiesce, most, 760.0));
        let _ = write!(
            svg,
            "<text x=230 y={} text-anchor=end>{}</text><rect x=240 y={y} width={wide:.1} height=16 rx=2 fill=\"var(--over)\" opacity=.35><title>sync: {sync}</title></rect>\
             <rect x=240 y={} width={narrow:.1} height=8 rx=2 fill=\"var(--over)\"><title>quiesce: {quiesce}</title></rect><text x={:.1} y={} class=soft>{sync} → {quiesce}</text>",
            y + 13,
            escape(&summary.variant),
            y + 4,
            248.0 + wide.max(narrow),
            y + 13
        );
    }
    svg + "</svg>"
}

/// A pair of bars for each workload, each on a scale of its own: the pair's larger one is the full width.
fn stacked(found: &Found, variant: &str) -> Option<String> {
    let rows = works(&found.cells, variant);
    if rows.is_empty() {
        return None;
    }
    let mut svg = format!(
        "<svg viewBox=\"0 0 1180 {0}\" width=1180 height={0}>",
        rows.len() * 42 + 6
    );
    for (i, row) in rows.iter().enumerate() {
        let y = i * 42 + 4;
        let _ = write!(
            svg,
            "<text x=150 y={} text-anchor=end>{}</text>",
            y + 20,
            escape(&row.workload)
        );
        let pair = ["sync", "quiesce"].map(|stage| row.stage(stage));
        let most = pair
            .iter()
            .flatten()
            .map(|m| m.blocks)
            .max()
            .unwrap_or(0)
            .max(row.floor_blocks);
        for (measured, top) in pair.iter().zip([y, y + 16]) {
            let Some(measured) = measured else { continue };
            let mut x = 160.0;
            for (class, colour) in COLOURS {
                let n = measured.classes.get(class).copied().unwrap_or(0);
                let width = share(n, most, 860.0);
                if n > 0 {
                    let _ = write!(
                        svg,
                        "<rect x={x:.1} y={top} width={width:.1} height=13 fill=\"{colour}\"><title>{class}: {n}</title></rect>"
                    );
                }
                x += width;
            }
            let _ = write!(
                svg,
                "<text x={:.1} y={} class=soft>{}</text>",
                x + 6.0,
                top + 11,
                measured.blocks
            );
        }
        let at = 160.0 + share(row.floor_blocks, most, 860.0);
        let _ = write!(
            svg,
            "<rect x={at:.1} y={} width=2 height=34 fill=\"var(--fg)\"><title>floor: {}</title></rect>",
            y - 2,
            row.floor_blocks
        );
    }
    svg += "</svg><p class=key>";
    for (class, colour) in COLOURS {
        if rows.iter().any(|r| {
            r.stages
                .iter()
                .any(|s| s.measured.classes.contains_key(class))
        }) {
            let _ = write!(
                svg,
                "<span style=\"background:{colour}\"></span>{}",
                class.replace('_', " ")
            );
        }
    }
    Some(svg + "</p>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::super::cell::STAGES;
    use super::super::tests::found;
    use super::*;

    #[test]
    fn what_others_named_is_escaped() {
        let page = page(&found());
        assert!(!page.contains("<script>") && page.contains("plain+&lt;script&gt;"));
        assert!(!page.contains("<b>\"") && page.contains("&lt;b&gt;"));
        assert!(page.contains("1.20</b>times the floor: default, quiesce"));
    }

    #[test]
    fn the_stages_of_the_charts_are_there() {
        for stage in ["sync", "quiesce", "no-sync"] {
            assert!(STAGES.iter().any(|(_, name)| *name == stage));
        }
    }
}
