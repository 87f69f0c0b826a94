//! A table of text: what the long runs print at their end, and what their pages hold.

use std::fmt::Write as _;

/// Columns as wide as they must be; the first is a name, the others are numbers. It is a table in
/// Markdown as well.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let longest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        longest.max(head[column].chars().count()).max(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        for (column, (cell, width)) in cells.zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "| {cell:width$} |"),
                _ => write!(text, " {cell:>width$} |"),
            };
        }
        text.push('\n');
    };
    line(&mut head.iter().copied());
    let rules = widths
        .iter()
        .enumerate()
        .map(|(column, width)| match column {
            0 => "-".repeat(*width),
            _ => "-".repeat(*width - 1) + ":",
        });
    let rules: Vec<String> = rules.collect();
    line(&mut rules.iter().map(String::as_str));
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// Bytes, for people.
pub(crate) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ if value < 100.0 => format!("{value:.1} {}", units[unit]),
        _ => format!("{value:.0} {}", units[unit]),
    }
}

#[test]
fn a_table_is_markdown() {
    let rows = [
        vec!["a".to_owned(), "1".to_owned()],
        vec!["long".to_owned(), "1234".to_owned()],
    ];
    let text = table(&["what", "n"], &rows);
    assert_eq!(
        text,
        "| what |    n |\n| ---- | ---: |\n| a    |    1 |\n| long | 1234 |\n"
    );
    assert_eq!(
        (bytes(1023), bytes(1536), bytes(200 << 30)),
        ("1023 B".into(), "1.5 KiB".into(), "200 GiB".into())
    );
}
