//! `cowslip memory`: guests' memory.

mod import;
mod serve;

use super::Context;
use crate::args::Memory;
use crate::failure::Failure;

pub(super) fn run(context: &Context, command: &Memory) -> Result<(), Failure> {
    match command {
        Memory::Import(args) => import::run(context, args),
        Memory::Serve(args) => serve::run(context, args),
    }
}
