//! [`write()`]: the answer as a page: one file, without anything from elsewhere.
//!
//! `page.html` is the page, with places of the form `{{name}}` in it. What fills them is made here, and no place is looked for in
//! what was filled in. Names of files come from somebody else: in text they are escaped for HTML, in data for JSON inside a script, and the page's
//! own policy lets nothing be loaded.

use std::collections::HashMap;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cowslip_ext4::{Class, Owner};
use serde_json::json;

use super::report::{Explained, percent};
use crate::explain::Picture;
use crate::failure::Failure;
use crate::report::{bytes, plain};

const PAGE: &str = include_str!("page.html");

/// Writes it beside its place, and puts it there when it is whole.
pub(super) fn write(
    path: &Path,
    explained: &Explained,
    picture: &Picture,
    paths: &HashMap<u32, String>,
) -> Result<(), Failure> {
    let page = fill(PAGE, &|name| match name {
        "title" => html(&title(explained)),
        "summary" => summary(explained),
        "classes" => classes(explained),
        "advice" => advice(explained),
        "files" => files(explained),
        "problems" => problems(explained),
        "data" => data(picture, paths),
        other => unreachable!("the page has a place {other}"),
    });
    let beside = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let failed = |error: std::io::Error| Failure::file(path, &error);
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(beside.unwrap_or(Path::new(".")))
        .map_err(failed)?;
    file.write_all(page.as_bytes()).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Replaces each `{{name}}`.
fn fill(page: &str, value: &dyn Fn(&str) -> String) -> String {
    let mut parts = page.split("{{");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").expect("the page is our own");
        filled += &value(name);
        filled += rest;
    }
    filled
}

/// Text that somebody else may have chosen.
fn html(text: &str) -> String {
    let mut safe = String::new();
    for c in plain(text).chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            c => safe.push(c),
        }
    }
    safe
}

fn title(found: &Explained) -> String {
    format!(
        "{} \u{2192} {}",
        found.against.as_deref().unwrap_or("nothing"),
        found.name
    )
}

fn summary(found: &Explained) -> String {
    let unit = u64::from(found.block_size_bytes);
    let cards = [
        (
            "changed",
            bytes(found.total_blocks * unit),
            format!("{} blocks", found.total_blocks),
        ),
        (
            "stored",
            bytes(found.stored_bytes),
            "in the store, compressed".to_owned(),
        ),
        (
            "zeroed",
            found.zeroed_blocks.to_string(),
            "blocks, free of charge".to_owned(),
        ),
        ("device", bytes(found.size_bytes), html(&found.remark)),
    ];
    let card = |(what, value, more): &(&str, String, String)| {
        format!("<div class=card><h3>{what}</h3><b>{value}</b><small>{more}</small></div>")
    };
    cards.iter().map(card).collect()
}

/// A bar of all classes, and the legend, which is a table.
fn classes(found: &Explained) -> String {
    let share = |blocks| percent(blocks, found.total_blocks);
    let mut text = String::from("<div class=bar>");
    for row in &found.classes {
        let (class, width) = (row.class, share(row.blocks));
        text += &format!(
            "<i class=\"c {class}\" style=\"width:{width:.3}%\" title=\"{class} {width:.1} %\"></i>"
        );
    }
    text += "</div><table><thead><tr><th>class<th>blocks<th>bytes<th>share<tbody>";
    for row in &found.classes {
        let (class, blocks, held) = (row.class, row.blocks, bytes(row.bytes));
        let share = share(blocks);
        text += &format!(
            "<tr data-class={class}><td><i class=\"c dot {class}\"></i>{}<td>{blocks}<td>{held}<td>{share:.1} %",
            class.replace('_', " ")
        );
    }
    text + "</table>"
}

fn advice(found: &Explained) -> String {
    if found.advice.is_empty() {
        return "<p class=quiet>Nothing that is known.</p>".into();
    }
    let row = |advice: &crate::explain::Advice| {
        let (blocks, held) = (advice.blocks, bytes(advice.bytes));
        format!(
            "<li><b>{held}</b> <small>{blocks} blocks</small><p>{}</p>",
            html(advice.how)
        )
    };
    let rows: String = found.advice.iter().map(row).collect();
    format!("<ul class=advice>{rows}</ul>")
}

fn files(found: &Explained) -> String {
    if found.files.is_empty() {
        return "<p class=quiet>None.</p>".into();
    }
    let most = found.files.iter().map(|row| row.blocks).max().unwrap_or(0);
    let mut text = String::from("<table class=files><thead><tr><th>file<th>blocks<th>bytes<tbody>");
    for row in &found.files {
        let (path, blocks, held) = (html(&row.path), row.blocks, bytes(row.bytes));
        let (width, inode) = (percent(blocks, most), row.inode);
        text += &format!(
            "<tr><td title=\"inode {inode}\"><bdi>{path}</bdi><i class=\"c file meter\" style=\"width:{width:.2}%\"></i><td>{blocks}<td>{held}"
        );
    }
    let more = found.files_total - found.files.len() as u64;
    let more = match more {
        0 => String::new(),
        n => format!("<p class=quiet>and {n} more</p>"),
    };
    text + "</table>" + &more
}

fn problems(found: &Explained) -> String {
    if found.problems.is_empty() {
        return String::new();
    }
    let row = |what: &str, count: u64| format!("<li>{}: {count}", html(what));
    let rows = found
        .problems
        .iter()
        .map(|wrong| row(&wrong.what, wrong.count));
    let examples = found
        .examples
        .iter()
        .map(|text| format!("<li><small>{}</small>", html(text)));
    let all: String = rows.chain(examples).collect();
    format!("<section><h2>Wrong in the file system</h2><ul>{all}</ul></section>")
}

/// What the picture is drawn from, safe inside a script.
fn data(picture: &Picture, paths: &HashMap<u32, String>) -> String {
    let owner = |owner: &Owner| {
        let path = owner.inode().and_then(|inode| paths.get(&inode));
        json!([owner.class() as usize, path.map(|path| plain(path))])
    };
    let owners: Vec<_> = picture.owners().iter().map(owner).collect();
    // Distance from the end of the last piece, length, owner, and whether it is zeros now.
    let mut last = 0;
    let mut pieces = Vec::new();
    for piece in picture.pieces() {
        let (start, count) = (piece.blocks.start.0, piece.blocks.count().0);
        let owner = piece.owner as u64 * 2 + u64::from(piece.zeroed);
        pieces.extend([start.saturating_sub(last), count, owner]);
        last = piece.blocks.end.0;
    }
    let data = json!({
        "classes": Class::ALL.map(Class::name),
        "cells": picture.cells(),
        "owners": owners,
        "pieces": pieces,
        "cut": picture.is_cut(),
    });
    let text = data.to_string();
    text.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_text() {
        let bad = "/a<script>alert('x')</script>&\"\u{202e}\n{{data}}";
        let safe = html(bad);
        assert!(
            !safe.contains(['<', '>', '"', '\'', '\n', '\u{202e}']),
            "{safe}"
        );
        assert!(safe.contains("{{data}}"));
        let filled = fill("a {{one}} b {{two}}", &|name| match name {
            "one" => "{{two}}".into(),
            _ => "2".into(),
        });
        assert_eq!(filled, "a {{two}} b 2");
        let mut picture = Picture::new(cowslip_block::BlockSize::DISK, 4);
        let share = crate::explain::Share::Whole(
            cowslip_block::BlockRange::new(1, 2),
            Owner::File { inode: 12 },
        );
        picture.add(share, false);
        let text = data(&picture, &HashMap::from([(12, bad.to_owned())]));
        assert!(!text.contains(['<', '>', '\n']), "{text}");
        let back: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(back["owners"][0][1].as_str().unwrap().contains("<script>"));
        assert_eq!(back["pieces"], json!([1, 1, 0]));
    }

    #[test]
    fn the_page_has_only_places_that_are_filled() {
        let mut seen = std::cell::RefCell::new(Vec::new());
        fill(PAGE, &|name| {
            seen.borrow_mut().push(name.to_owned());
            String::new()
        });
        let seen = seen.get_mut();
        seen.sort();
        let known = [
            "advice", "classes", "data", "files", "problems", "summary", "title", "title",
        ];
        assert_eq!(*seen, known);
        assert!(!PAGE.contains("http://") && !PAGE.contains("https://"));
    }
}
