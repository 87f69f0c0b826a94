//! `cowslip demo`.
use super::Context;
use crate::args::Demo;
use crate::failure::Failure;
pub(super) fn run(_: &Context, _: &Demo) -> Result<(), Failure> { Ok(()) }
