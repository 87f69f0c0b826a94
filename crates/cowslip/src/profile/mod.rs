//! How a template's ext4 is made and mounted, as data: [`Knob`]s, and the [`Profile`]s that are lists of them.
//!
//! ```text
//! profile -> knobs, in order -> Settings -> arguments for mkfs.ext4, options for mount
//! ```
//!
//! Later wins: a knob takes the place of what one before it said about the same thing, so a profile says what it
//! starts from and then what it does otherwise, and the command line comes last.
//!
//! Not here: making a file system (`build`), and what each knob is worth, which is measured.

mod knobs;
mod settings;

pub(crate) use knobs::{KNOBS, Knob};
pub(crate) use settings::{Settings, is_of_linux};

/// A named list of knobs.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
    pub(crate) knobs: &'static [&'static str],
}

/// The one that is taken unless another is named.
pub(crate) const DEFAULT: &str = "default";

/// All there are, the one to take first.
pub(crate) const PROFILES: &[Profile] = &[
    Profile {
        name: DEFAULT,
        why: "small snapshots, nothing risky: no writes for reads, freed blocks told, tiny files in their inodes, a short journal",
        knobs: &[
            "features",
            "no-lazy-init",
            "inline-data",
            "packed-meta",
            "journal=4M",
            "reserved=0",
            "discard",
            "noatime",
            "lazytime",
        ],
    },
    Profile {
        name: "system",
        why: "what was proposed for sandboxes and never measured: lazy initialisation, discard, no times of access",
        knobs: &["lazy-init", "discard", "noatime", "lazytime"],
    },
    Profile {
        name: "system-today",
        why: "what fleets of sandboxes run today: contents in inodes, an inode for each 4 KiB, discard",
        knobs: &[
            "no-64bit",
            "no-dir-index",
            "inline-data",
            "sparse-super2",
            "inode-ratio=4K",
            "reserved=0",
            "discard",
        ],
    },
    Profile {
        name: "plain",
        why: "mkfs.ext4 and mount with nothing said, blocks of 4 KiB: to compare with",
        knobs: &[],
    },
    Profile {
        name: "ephemeral",
        why: "as default, without a journal: for guests that never outlive a power cut, nor a snapshot taken without a freeze",
        knobs: &[
            "features",
            "no-lazy-init",
            "inline-data",
            "packed-meta",
            "no-journal",
            "reserved=0",
            "discard",
            "noatime",
            "lazytime",
        ],
    },
];

/// The profile of this name.
pub(crate) fn profile(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}

/// The knob of this name.
pub(crate) fn knob(name: &str) -> Option<&'static Knob> {
    KNOBS.iter().find(|knob| knob.name == name)
}

impl Profile {
    /// The knobs themselves.
    pub(crate) fn knobs(&self) -> impl Iterator<Item = &'static Knob> {
        let named =
            |name: &&str| knob(name).expect("a test holds that profiles name what there is");
        self.knobs.iter().map(named)
    }

    /// What they come to.
    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        self.knobs().for_each(|knob| settings.turn(knob));
        settings
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_name_is_there_once_and_says_why() {
        let names: BTreeSet<_> = KNOBS.iter().map(|knob| knob.name).collect();
        assert_eq!(names.len(), KNOBS.len());
        let names: BTreeSet<_> = PROFILES.iter().map(|profile| profile.name).collect();
        assert_eq!(names.len(), PROFILES.len());
        let whys = KNOBS.iter().map(|k| k.why);
        for why in whys.chain(PROFILES.iter().map(|p| p.why)) {
            assert!(!why.is_empty() && !why.contains('\n') && !why.ends_with('.'));
        }
    }

    #[test]
    fn profiles_name_knobs_that_there_are() {
        for profile in PROFILES {
            assert!(
                profile.knobs.iter().all(|name| knob(name).is_some()),
                "{}",
                profile.name
            );
        }
        assert!(profile(DEFAULT).is_some());
    }

    #[test]
    fn what_is_default_is_not_risky() {
        for name in [DEFAULT, "system", "plain"] {
            assert!(
                profile(name)
                    .unwrap()
                    .knobs()
                    .all(|knob| knob.risk.is_none()),
                "{name}"
            );
        }
    }

    #[test]
    fn what_the_profiles_come_to() {
        let line = |name: &str| {
            let settings = profile(name).unwrap().settings();
            (settings.mkfs_args().join(" "), settings.mount_options())
        };
        assert_eq!(line("plain"), ("-b 4096".into(), String::new()));
        assert_eq!(
            line("system"),
            (
                "-b 4096 -E lazy_itable_init=1,lazy_journal_init=1,discard".into(),
                "discard,noatime,lazytime".into()
            )
        );
    }
}
