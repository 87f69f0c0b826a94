//! `cowslip rm`: removes a snapshot's name. What others depend on stays.

use serde::Serialize;

use super::Context;
use crate::args::Name;
use crate::failure::Failure;

#[derive(Serialize)]
struct Removed<'a> {
    removed: &'a str,
}

pub(super) fn run(context: &Context, args: &Name) -> Result<(), Failure> {
    context.store()?.remove(&args.name)?;
    let removed = Removed {
        removed: args.name.as_str(),
    };
    context
        .report
        .result(&removed, || format!("removed {}", args.name))
}
