//! `cowslip build --list-profiles`: the ways in which a template's file system can be made.

use serde::Serialize;

use crate::command::Context;
use crate::failure::Failure;
use crate::profile::{KNOBS, Knob, PROFILES, Profile, Settings};
use crate::report::table;

/// Its field names are a contract.
#[derive(Serialize)]
struct Listed {
    profiles: Vec<ListedProfile>,
    knobs: Vec<ListedKnob>,
}

#[derive(Serialize)]
struct ListedProfile {
    name: &'static str,
    why: &'static str,
    knobs: &'static [&'static str],
    mkfs_args: Vec<String>,
    mount_options: String,
}

#[derive(Serialize)]
struct ListedKnob {
    name: &'static str,
    why: &'static str,
    mkfs_args: Vec<String>,
    mount_options: &'static str,
    risk: Option<&'static str>,
}

pub(super) fn list(context: &Context) -> Result<(), Failure> {
    let profiles = PROFILES.iter().map(|profile: &Profile| {
        let settings = profile.settings();
        ListedProfile {
            name: profile.name,
            why: profile.why,
            knobs: profile.knobs,
            mkfs_args: settings.mkfs_args(),
            mount_options: settings.mount_options(),
        }
    });
    let knobs = KNOBS.iter().map(|knob: &Knob| ListedKnob {
        name: knob.name,
        why: knob.why,
        mkfs_args: Settings::of(knob),
        mount_options: knob.mount,
        risk: knob.risk,
    });
    let listed = Listed {
        profiles: profiles.collect(),
        knobs: knobs.collect(),
    };
    context.report.result(&listed, || text(&listed))
}

fn text(listed: &Listed) -> String {
    let profiles = listed.profiles.iter().map(|profile| {
        let knobs = match profile.knobs {
            [] => "no knobs".to_owned(),
            knobs => knobs.join(" "),
        };
        format!("{}\n    {}\n    {knobs}\n", profile.name, profile.why)
    });
    let knobs = listed.knobs.iter().map(|knob| {
        let risk = knob.risk.map(|risk| format!(". RISK: {risk}"));
        let why = format!("{}{}", knob.why, risk.unwrap_or_default());
        vec![knob.name.to_owned(), why]
    });
    let profiles: String = profiles.collect();
    let knobs = table(&["KNOB", "WHY"], &[], knobs.collect());
    format!("{profiles}\n{knobs}")
}
