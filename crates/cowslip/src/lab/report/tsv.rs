//! `results.tsv`: a line for each stage of each cell, with a head.

use super::super::results::Row;

pub(super) fn text(rows: &[Row]) -> String {
    let head = "variant\tworkload\tstage\tfloor_blocks\tblocks\tzeroed_blocks\tpayload_bytes\tunknown_blocks\tclasses\n";
    let mut text = head.to_owned();
    for row in rows {
        for stage in &row.stages {
            let m = &stage.measured;
            let classes: Vec<String> = m
                .classes
                .iter()
                .map(|(class, n)| format!("{class}={n}"))
                .collect();
            let fields = [
                row.variant.clone(),
                row.workload.clone(),
                stage.stage.clone(),
                row.floor_blocks.to_string(),
                m.blocks.to_string(),
                m.zeroed_blocks.to_string(),
                m.payload_bytes.to_string(),
                m.unknown_blocks.to_string(),
                classes.join(","),
            ];
            text += &fields
                .map(|field| field.replace(['\t', '\n'], " "))
                .join("\t");
            text.push('\n');
        }
    }
    text
}
