//! `cowslip memory`: guests' memory.

mod control;
mod import;
mod passed;
mod serve;
mod snapshot;
mod trace;

use super::Context;
use crate::args::Memory;
use crate::failure::Failure;

pub(super) fn run(context: &Context, command: &Memory) -> Result<(), Failure> {
    match command {
        Memory::Import(args) => import::run(context, args),
        Memory::Serve(args) => serve::run(context, args),
        Memory::Snapshot(args) => snapshot::run(context, args),
    }
}
