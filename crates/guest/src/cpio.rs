//! [`Archive`]: the archive that a kernel unpacks to have its first files ("newc", cpio(5)).

/// See the module.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const CHARACTERS: u32 = 0o020_600;

impl Archive {
    /// With `/dev/console`, which the first process has as its streams.
    pub fn new() -> Self {
        let mut archive = Self::default();
        archive.directory("dev");
        archive.entry("dev/console", CHARACTERS, (5, 1), &[]);
        archive
    }

    /// Adds a directory; its parent is there already. No path begins with a slash.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// Adds a file that can be run.
    pub fn file(&mut self, path: &str, bytes: &[u8]) {
        self.entry(path, FILE, (0, 0), bytes);
    }

    /// All of it, with its end.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), bytes: &[u8]) {
        let length = |n: usize| u32::try_from(n).expect("no file of 4 GiB is put into memory");
        let name = length(path.len() + 1);
        let fields = [
            0,
            mode,
            0,
            0,
            1,
            0,
            length(bytes.len()),
            0,
            0,
            major,
            minor,
            name,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}
