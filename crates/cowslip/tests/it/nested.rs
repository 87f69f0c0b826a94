//! A machine with a KVM of its own, where other people's monitors run guests: an emulated SVM, in a processor that is emulated itself.
//!
//! Such a guest writes "tick N whole" to its console, for as long as it finds everything as it should be, and else "tick N damaged".

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cowslip_machine::{Access, Kernel, Machine, Running, have};

use super::disk_guest::Files;
use super::rig::{COWSLIP, Rig};
use super::tools::{self, skip};

/// For what takes seconds on a machine that has nothing else to do.
pub(crate) const LONG: Duration = Duration::from_secs(300);

/// The machine, and the directory in it where the recipe is run.
pub(crate) struct World {
    pub(crate) machine: Running,
    begin: String,
}

impl World {
    /// Where guests of these monitors can be had; else a line says what is missing. `files` is what a guest begins with, by the names that the recipe has for
    /// them.
    pub(crate) fn new(
        test: &str,
        rig: &Rig,
        monitors: &[(&str, PathBuf)],
        files: impl FnOnce(&Kernel) -> Files,
    ) -> Option<Self> {
        let (true, Some(kernel)) = (tools::have(test, &["busybox", "curl"]), have(test, "6.12"))
        else {
            return None;
        };
        let mut files = files(&kernel);
        files.push(("KERNEL", kernel.program()));
        let mut machine = Machine::new(&kernel).memory_mib(3072);
        let monitors = monitors.iter().cloned();
        let programs: Vec<_> = monitors.chain([("cowslip", COWSLIP.into())]).collect();
        // Where they are may be below /tmp, which is the machine's own.
        let there = programs.iter().map(|(_, file)| file.clone());
        let there = there.chain([kernel.program()]);
        let dirs: BTreeSet<_> = there
            .map(|file| file.parent().unwrap().to_owned())
            .collect();
        for dir in dirs {
            machine = machine.share(&dir, Access::Read);
        }
        let mut machine = machine.share(&rig.path(""), Access::Read).boot();
        let kvm = "modprobe kvm_amd 2> /dev/null || modprobe kvm_intel; test -c /dev/kvm";
        if !machine.run(["sh", "-c", kvm], LONG).status.success() {
            skip(test, "a QEMU that emulates SVM");
            return None;
        }
        machine.sh("mkdir /tmp/recipe /tmp/bin", LONG);
        for (name, file) in programs {
            machine.sh(&format!("ln -s {} /tmp/bin/{name}", file.display()), LONG);
        }
        let files = files.iter();
        let files = files.map(|(name, path)| format!(" {name}={}", path.display()));
        let begin = format!(
            "set -e; cd /tmp/recipe; PATH=/tmp/bin:$PATH; export COWSLIP_STORE=/tmp/recipe/store{}",
            files.collect::<String>()
        );
        Some(Self { machine, begin })
    }

    pub(crate) fn sh(&mut self, block: &str) -> String {
        self.machine.sh(&format!("{}\n{block}", self.begin), LONG)
    }

    /// What the guest with this console has counted to, once that is more than this.
    pub(crate) fn ticks_after(&mut self, console: &str, before: u32) -> u32 {
        let give_up = Instant::now() + LONG;
        loop {
            let log = self.sh(&format!("sleep 1; cat {console}"));
            assert!(!log.contains("damaged"), "{log}");
            let ticks = log.split("tick ").skip(1);
            let whole = ticks.filter_map(|tick| tick.split_once(" whole")?.0.parse().ok());
            if let Some(last) = whole.max().filter(|last| *last > before) {
                return last;
            }
            assert!(Instant::now() < give_up, "{console} after {before}: {log}");
        }
    }
}
