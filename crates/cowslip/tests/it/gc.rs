//! `gc` beside four writers and two seals, with kill -9 of all of them: no live object is ever removed.
//!
//! Two sessions of one store, each with two connections that write numbers to a few blocks, so that
//! what was sealed soon is garbage; a snapshot of each is always on its way, older names are removed, and
//! collections run one after the other. Collections and snapshot commands are killed when so many more
//! writes have been answered, and at the end of a round the servers. Then, with nothing but what is on
//! disk, the names of one session removed, everything is collected once more, and all is looked at:
//!
//! - a session holds, in every block, the last number that was answered, or one submitted after it;
//! - a name verifies, and holds in every block a number from what was answered when it was asked for to
//!   what was submitted when it was there.
//!
//! `COWSLIP_GC_ROUNDS` makes it longer.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use cowslip_nbd::Client;

use crate::bytes::{BLOCK, Seeded, noise};
use crate::rig::{Rig, Served, until};

const SESSIONS: [&str; 2] = ["a", "b"];
const WRITERS: usize = 2;
/// Of an image; the odd ones are one writer's, the even ones the other's.
const BLOCKS: usize = 512;
const ROUNDS: usize = 12;
/// Collections in a round.
const COLLECTIONS: usize = 6;
const NAMES_MAX: usize = 5;

/// What a client knows of a device: for every block the last number that was answered, and the last
/// that was submitted.
struct Numbers {
    answered: Vec<AtomicU64>,
    submitted: Vec<AtomicU64>,
    writes: AtomicU64,
    stop: AtomicBool,
}

impl Numbers {
    fn new() -> Arc<Self> {
        let zeros = || (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            answered: zeros(),
            submitted: zeros(),
            writes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    fn all(of: &[AtomicU64]) -> Vec<u64> {
        of.iter().map(|n| n.load(Ordering::SeqCst)).collect()
    }

    /// Writes to this writer's blocks until told to stop, or the server is gone.
    fn write(&self, mut client: Client, writer: usize, mut random: Seeded) {
        while !self.stop.load(Ordering::SeqCst) {
            let block = random.below(BLOCKS / WRITERS) * WRITERS + writer;
            let number = self.submitted[block].fetch_add(1, Ordering::SeqCst) + 1;
            let written = client.write((block * BLOCK) as u64, &content(block, number));
            if written.is_err() {
                return;
            }
            self.answered[block].store(number, Ordering::SeqCst);
            self.writes.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn wait_for_more(&self, count: usize) {
        let wanted = self.writes.load(Ordering::SeqCst) + count as u64;
        let enough = || (self.writes.load(Ordering::SeqCst) >= wanted).then_some(());
        until("the writers", enough);
    }

    /// An image holds in each block a number within these bounds.
    fn check(&self, image: &[u8], from: &[u64], to: &[u64], what: &str) {
        let base = noise(1, BLOCKS * BLOCK);
        for (block, found) in image.chunks(BLOCK).enumerate() {
            let number = match found == &base[block * BLOCK..][..BLOCK] {
                true => 0,
                false => u64::from_le_bytes(found[..8].try_into().unwrap()) >> 16,
            };
            let whole = number == 0 || found == content(block, number);
            assert!(whole, "{what}: block {block} is of no write");
            let bounds = from[block]..=to[block];
            assert!(
                bounds.contains(&number),
                "{what}: block {block}: {number} is not of {bounds:?}"
            );
        }
    }
}

/// Never equal to another block's, or to another number's.
fn content(block: usize, number: u64) -> Vec<u8> {
    let word = number << 16 | block as u64;
    word.to_le_bytes().repeat(BLOCK / 8)
}

/// A session with two writers.
struct Live {
    name: &'static str,
    numbers: Arc<Numbers>,
    served: Option<Served>,
    writers: Vec<JoinHandle<()>>,
    asked: Option<Asked>,
    /// What was answered when each was asked for, of all snapshots.
    from: BTreeMap<String, Vec<u64>>,
}

struct Asked {
    name: String,
    child: Child,
}

impl Live {
    fn serve(&mut self, rig: &Rig, arguments: &[&str], seed: u64) {
        let dir = rig.path(self.name);
        let mut command = rig.command(["serve", "--session"]);
        command.arg(&dir).args(arguments);
        let served = Served::start(command, dir.join("nbd.sock"));
        let numbers = &self.numbers;
        let start = |writer| {
            let (client, numbers) = (served.client(), Arc::clone(numbers));
            let random = Seeded(seed * 100 + writer as u64);
            std::thread::spawn(move || numbers.write(client, writer, random))
        };
        self.writers = (0..WRITERS).map(start).collect();
        self.served = Some(served);
    }

    /// Asks for a snapshot, unless one is on its way; now and then kills the command.
    fn keep_asking(&mut self, rig: &Rig, number: usize, random: &mut Seeded) {
        if let Some(asked) = &mut self.asked {
            if random.below(4) == 0 {
                asked.child.kill().unwrap();
            }
            let Some(status) = asked.child.try_wait().unwrap() else {
                return;
            };
            let mut said = String::new();
            let mut stderr = asked.child.stderr.take().unwrap();
            stderr.read_to_string(&mut said).unwrap();
            let killed = status.signal() == Some(9);
            assert!(
                killed || status.success(),
                "{}: {status}: {said}",
                asked.name
            );
        }
        let name = format!("{}-{number}", self.name);
        self.from
            .insert(name.clone(), Numbers::all(&self.numbers.answered));
        let mut command = rig.command(["snapshot", self.name, &name, "--quiet"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        self.asked = Some(Asked { name, child });
    }

    /// One that is there for sure.
    fn snapshot(&mut self, rig: &Rig, round: usize) {
        let name = format!("{}-end-{round}", self.name);
        let from = Numbers::all(&self.numbers.answered);
        rig.ok(&format!("snapshot {} {name}", self.name));
        self.from.insert(name, from);
    }

    /// kill -9, with all that was on its way.
    fn kill(&mut self) {
        self.served.take().unwrap().kill();
        self.writers
            .drain(..)
            .for_each(|writer| writer.join().unwrap());
        if let Some(mut asked) = self.asked.take() {
            // It finds no server, or loses it, or was faster; or takes the snapshot at rest.
            asked.child.wait().unwrap();
        }
    }

    fn names(&self, rig: &Rig) -> Vec<String> {
        let names = std::fs::read_dir(rig.store().join("snapshots")).unwrap();
        let names = names.map(|name| name.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|n| self.from.contains_key(n)).collect();
        names.sort();
        names
    }

    /// All that the session and its names hold.
    fn check(&self, rig: &Rig) {
        let numbers = &self.numbers;
        let image = self.served.as_ref().unwrap().read_all();
        let to = Numbers::all(&numbers.submitted);
        numbers.check(&image, &Numbers::all(&numbers.answered), &to, self.name);
        let manifest = rig.path(self.name).join("session.json");
        let seals = || {
            std::fs::read_to_string(&manifest)
                .unwrap()
                .contains("\"seal\"")
        };
        until("the seals to end", || (!seals()).then_some(()));
        for name in self.names(rig) {
            rig.ok(&format!("verify {name}"));
            numbers.check(&rig.export(&name), &self.from[&name], &to, &name);
        }
    }
}

/// Starts a collection, and kills it unless it is done when so many more writes are answered.
fn collect(rig: &Rig, numbers: &Numbers, random: &mut Seeded) {
    let mut command = rig.command(["gc", "--quiet"]);
    let mut gc = command.stdout(Stdio::null()).spawn().unwrap();
    if random.below(2) == 0 {
        numbers.wait_for_more(1 + random.below(200));
        gc.kill().unwrap();
    }
    let status = gc.wait().unwrap();
    assert!(
        status.success() || status.signal() == Some(9),
        "gc: {status}"
    );
}

#[test]
fn no_live_object_is_collected_beside_writers_and_seals_that_are_killed() {
    let rounds = std::env::var("COWSLIP_GC_ROUNDS").map_or(ROUNDS, |n| n.parse().unwrap());
    let rig = Rig::new();
    let mut random = Seeded(17);
    rig.import("base", &noise(1, BLOCKS * BLOCK));
    let mut live = SESSIONS.map(|name| Live {
        name,
        numbers: Numbers::new(),
        served: None,
        writers: Vec::new(),
        asked: None,
        from: BTreeMap::new(),
    });
    let mut removed = 0;
    for round in 0..rounds {
        for session in &mut live {
            let begin = if round == 0 { &["base"][..] } else { &[] };
            session.serve(&rig, begin, round as u64);
        }
        for collection in 0..COLLECTIONS {
            for session in &mut live {
                session.keep_asking(&rig, round * COLLECTIONS + collection, &mut random);
                let mut names = session.names(&rig);
                while names.len() > NAMES_MAX {
                    let name = names.swap_remove(random.below(names.len()));
                    rig.ok(&format!("rm {name}"));
                }
            }
            collect(&rig, &live[0].numbers, &mut random);
        }
        // Something to remove, however slow the machine.
        for session in &mut live {
            session.snapshot(&rig, round);
        }
        live.iter_mut().for_each(Live::kill);
        // Nothing holds a lease any more, and one session has no name but itself.
        let nameless = live[round % SESSIONS.len()].names(&rig);
        nameless
            .iter()
            .for_each(|name| drop(rig.ok(&format!("rm {name}"))));
        let report = rig.json("gc");
        removed += report["removed"].as_array().unwrap().len();
        for session in &mut live {
            session.numbers.stop.store(true, Ordering::SeqCst);
            session.serve(&rig, &[], 0);
            session.check(&rig);
            session.kill();
            session.numbers.stop.store(false, Ordering::SeqCst);
        }
    }
    assert!(removed > 0, "nothing was ever garbage");
    end(&rig, &live);
}

/// With all removed, nothing is left.
fn end(rig: &Rig, live: &[Live]) {
    for row in rig.json("sessions").as_array().unwrap() {
        rig.ok(&format!(
            "sessions --forget {}",
            row["id"].as_str().unwrap()
        ));
    }
    let names = live.iter().flat_map(|session| session.names(rig));
    names
        .chain(["base".into()])
        .for_each(|name| drop(rig.ok(&format!("rm {name}"))));
    rig.ok("gc");
    for kind in ["layers", "headers", "tmp", "sessions", "snapshots"] {
        let left = std::fs::read_dir(rig.store().join(kind)).unwrap().count();
        assert_eq!(left, 0, "files in {kind}");
    }
}
