//! [`Settings`]: what a list of knobs comes to. mkfs.ext4 takes each of its options once, so that lists
//! (`-O`, `-E`, `-J`) are joined here, and of two words about one thing the later is kept.

use super::Knob;

/// Options of mkfs.ext4 that take a list, in the order in which they are given.
const LISTS: [char; 3] = ['O', 'E', 'J'];
/// Those that take one value. What names files, devices or what is in the image is not among them.
const VALUES: [char; 9] = ['b', 'C', 'g', 'G', 'i', 'I', 'm', 'N', 'T'];

/// How a file system is made, and how it is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Option letter and word; the words of one list come one after the other.
    mkfs: Vec<(char, String)>,
    mount: Vec<String>,
}

impl Settings {
    /// What one knob says to mkfs.ext4, and nothing else.
    pub(crate) fn of(knob: &Knob) -> Vec<String> {
        let mut settings = Self::default();
        settings.turn(knob);
        settings.said()
    }

    /// On top of what is there.
    pub(crate) fn turn(&mut self, knob: &Knob) {
        for (letter, words) in knob.mkfs {
            self.add_mkfs(*letter, words);
        }
        self.add_mount(knob.mount);
    }

    /// One option as mkfs.ext4 takes it, `-O ^metadata_csum` or `-O^metadata_csum`.
    ///
    /// # Errors
    /// What options there are, for any other.
    pub(crate) fn add_mkfs_text(&mut self, text: &str) -> Result<(), String> {
        let mut chars = text.strip_prefix('-').unwrap_or("").chars();
        let letter = chars
            .next()
            .filter(|c| LISTS.contains(c) || VALUES.contains(c));
        let word = chars.as_str().trim();
        match letter {
            Some(letter) if !word.is_empty() && !word.contains(char::is_whitespace) => {
                self.add_mkfs(letter, word);
                Ok(())
            }
            _ => {
                let all = LISTS.iter().chain(&VALUES).map(|c| format!("-{c}"));
                let all = all.collect::<Vec<_>>().join(", ");
                Err(format!(
                    "{text:?} is not one option of mkfs.ext4 with its value, of {all}"
                ))
            }
        }
    }

    fn add_mkfs(&mut self, letter: char, words: &str) {
        for word in words.split(',') {
            // What is named behind `none` stands.
            match (letter, word) {
                ('O', "none") => self.mkfs.retain(|(l, _)| *l != 'O'),
                // To say how a journal is to be is to ask for one.
                ('O', "^has_journal") => self.mkfs.retain(|(l, _)| *l != 'J'),
                _ => {}
            }
            let about = about(letter, word).to_owned();
            self.mkfs
                .retain(|(l, w)| *l != letter || self::about(letter, w) != about);
            self.mkfs.push((letter, word.to_owned()));
        }
    }

    /// Mount options, separated by commas.
    pub(crate) fn add_mount(&mut self, options: &str) {
        for option in options.split(',').filter(|o| !o.is_empty()) {
            self.mount.retain(|o| mount_about(o) != mount_about(option));
            self.mount.push(option.to_owned());
        }
    }

    /// The arguments for mkfs.ext4, all but the image's. Blocks are of 4 KiB unless told otherwise, whatever the
    /// image's size: what is tracked is blocks of 4 KiB.
    pub(crate) fn mkfs_args(&self) -> Vec<String> {
        let block = match self.mkfs.iter().any(|(letter, _)| *letter == 'b') {
            true => Vec::new(),
            false => vec!["-b".to_owned(), "4096".to_owned()],
        };
        [block, self.said()].concat()
    }

    fn said(&self) -> Vec<String> {
        let mut args = Vec::new();
        for letter in VALUES.iter().chain(&LISTS) {
            let words = self.mkfs.iter().filter(|(l, _)| l == letter);
            let words: Vec<&str> = words.map(|(_, word)| word.as_str()).collect();
            if !words.is_empty() {
                args.extend([format!("-{letter}"), words.join(",")]);
            }
        }
        args
    }

    /// The options for mount(8).
    pub(crate) fn mount_options(&self) -> String {
        self.mount.join(",")
    }

    /// Those of them that are ext4's own: a file system can carry them itself.
    pub(crate) fn ext4_options(&self) -> String {
        let own = self.mount.iter().filter(|option| !is_of_linux(option));
        own.map(String::as_str).collect::<Vec<_>>().join(",")
    }

    /// Those that Linux has for every file system.
    pub(crate) fn linux_options(&self) -> String {
        let of_linux = self.mount.iter().filter(|option| is_of_linux(option));
        of_linux.map(String::as_str).collect::<Vec<_>>().join(",")
    }
}

/// What a word of a list is about: a feature with or without `^`, a setting whatever its value; `nodiscard` and
/// `discard` are about the same. A value is about its letter.
fn about(letter: char, word: &str) -> &str {
    match letter {
        'O' => word.trim_start_matches('^'),
        'E' | 'J' => before_equals(word.strip_prefix("no").unwrap_or(word)),
        _ => "",
    }
}

fn mount_about(option: &str) -> &str {
    match before_equals(option) {
        "noatime" | "relatime" | "strictatime" | "atime" => "atime",
        name => name.strip_prefix("no").unwrap_or(name),
    }
}

/// mount(8) tells the kernel these in flags, not in the text that a file system reads.
pub(crate) fn is_of_linux(option: &str) -> bool {
    let names = [
        "atime",
        "relatime",
        "strictatime",
        "diratime",
        "lazytime",
        "sync",
        "async",
        "dirsync",
        "dev",
        "suid",
        "exec",
        "ro",
        "rw",
        "iversion",
        "mand",
    ];
    let plain = option.strip_prefix("no").unwrap_or(option);
    names.contains(&option) || names.contains(&plain)
}

fn before_equals(word: &str) -> &str {
    word.split('=').next().unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mkfs: &[&str], mount: &[&str]) -> Settings {
        let mut settings = Settings::default();
        for text in mkfs {
            settings.add_mkfs_text(text).unwrap();
        }
        for options in mount {
            settings.add_mount(options);
        }
        settings
    }

    #[test]
    fn later_wins_and_lists_are_joined() {
        let mkfs = [
            "-O z",
            "-O none,a,b",
            "-E x=1,discard",
            "-J size=4",
            "-O ^a",
            "-Ex=2",
            "-E nodiscard",
            "-J size=8",
            "-b 1024",
            "-b 2048",
        ];
        let args = settings(&mkfs, &[]).mkfs_args();
        assert_eq!(
            args.join(" "),
            "-b 2048 -O none,b,^a -E x=2,nodiscard -J size=8"
        );
        let none = ["-J size=4", "-O ^has_journal"];
        assert_eq!(
            settings(&none, &[]).mkfs_args().join(" "),
            "-b 4096 -O ^has_journal"
        );
        let mount = [
            "discard,noatime",
            "commit=5,data=ordered",
            "relatime,nodiscard",
            "commit=60",
        ];
        assert_eq!(
            settings(&[], &mount).mount_options(),
            "data=ordered,relatime,nodiscard,commit=60"
        );
    }

    #[test]
    fn whose_options() {
        let all = settings(
            &[],
            &["discard,noatime,lazytime,commit=30,nodelalloc,nosuid"],
        );
        assert_eq!(all.ext4_options(), "discard,commit=30,nodelalloc");
        assert_eq!(all.linux_options(), "noatime,lazytime,nosuid");
    }

    #[test]
    fn only_options_that_say_how() {
        for bad in [
            "",
            "-",
            "-F",
            "-d x",
            "-O",
            "-O a b",
            "-U random",
            "--help",
            "O a",
            "-b",
            "-L label",
            "-E a\tb",
        ] {
            let error = Settings::default().add_mkfs_text(bad).unwrap_err();
            assert!(error.contains("-O, -E, -J"), "{error}");
        }
    }
}
