//! Guests in processes of their own, whose memory is served.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails"
)]

#[path = "it/capture.rs"]
mod capture;
#[path = "it/fill.rs"]
mod fill;
#[path = "it/races.rs"]
mod races;
#[path = "it/rig.rs"]
mod rig;
#[path = "it/sealed.rs"]
mod sealed;
#[path = "it/served.rs"]
mod served;
#[path = "it/snapshots.rs"]
mod snapshots;

#[test]
fn the_guest() {
    cowslip_vmm::run_if_asked();
}
