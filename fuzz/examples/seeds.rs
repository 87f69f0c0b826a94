//! Writes `seeds/` again: `cargo run --no-default-features --example seeds` in this directory.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let seeds_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for (name, _, seeds) in cowslip_fuzz::TARGETS {
        let dir = seeds_dir.join(name);
        std::fs::create_dir_all(&dir)?;
        for (number, seed) in seeds().iter().enumerate() {
            std::fs::write(dir.join(number.to_string()), seed)?;
        }
    }
    Ok(())
}
