//! An image of at most 8 MiB into a seed of the target `ext4`: `ext4_seed IMAGE SEED`, by the script
//! `fuzz/ext4-seeds.sh`.

use std::env::args_os;

fn main() -> std::io::Result<()> {
    let mut paths = args_os().skip(1);
    let (Some(image), Some(seed)) = (paths.next(), paths.next()) else {
        return Err(std::io::Error::other("usage: ext4_seed IMAGE SEED"));
    };
    std::fs::write(
        seed,
        cowslip_fuzz::ext4::input_of(&std::fs::read(image)?, true),
    )
}
