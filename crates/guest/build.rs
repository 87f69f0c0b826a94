//! Builds the first process of a guest from `src/init`, linked statically: in the initramfs it is alone.
//!
//! Cargo builds no program of a dependency, and would link it like all others; so this calls the compiler. Where that cannot link statically the
//! program is empty, and a guest has to bring its own.

use std::path::PathBuf;
use std::process::Command;

const OPTIONS: [&str; 10] = [
    "--edition=2024",
    "--crate-name=cowslip_init",
    "--cap-lints=allow",
    "-Copt-level=s",
    "-Cpanic=abort",
    "-Cstrip=symbols",
    "-Clto=fat",
    "-Ccodegen-units=1",
    "-Cembed-bitcode=yes",
    "-Ctarget-feature=+crt-static",
];

fn main() {
    println!("cargo::rerun-if-changed=src/init");
    println!("cargo::rerun-if-changed=src/frame.rs");
    let of = |name: &str| std::env::var_os(name).expect("cargo says it to a build script");
    let program = PathBuf::from(of("OUT_DIR")).join("init");
    let mut command = Command::new(of("RUSTC"));
    command
        .args(OPTIONS)
        .arg("--target")
        .arg(of("TARGET"))
        .arg("-o")
        .arg(&program);
    command.arg("src/init/main.rs");
    let built = command.output();
    if !built.as_ref().is_ok_and(|output| output.status.success()) {
        std::fs::write(&program, "").expect("OUT_DIR can be written to");
        let why = built.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        let why = why.lines().next().unwrap_or_default();
        println!("cargo::warning=no program can be linked statically here: {why}");
    }
}
