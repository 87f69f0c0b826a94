//! [`Work`]: threads of a guest that write patterns, look at them and give memory back, until they are paused; with a shadow of each byte.
//!
//! The memory is in stripes, and each belongs to one worker, who alone writes there: the memory, then the shadow, which is a file that no userfaultfd
//! hears of. Rules:
//! 1. While all are paused, memory and shadow are the same: whoever copies the shadow then has what a snapshot must hold.
//! 2. A page that its owner reads is as its shadow, at any time; else the guest says so, and ends.
//! 3. One more thread reads anywhere, so that two stop at one page; it looks at nothing.
//!
//! A worker stays in a few stripes from one pause to the next, so that most of the memory is left alone, and strays now and then.

use std::fs::File;
use std::process::exit;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sys::Memory;
use crate::vcpu::Vcpu;

/// What is written at a time lies within one.
const PAGE: usize = 4096;
/// A stripe has at least so many bytes.
const STRIPE: usize = 16 * PAGE;
/// In so many stripes each works, from pause to pause.
const AT_WORK_IN: usize = 3;
/// Once in so many times it does something elsewhere.
const STRAYS: usize = 300;
/// What a processor writes at a time.
const WORDS: u64 = 8;
/// Of the system's time they take a little: so many steps in each millisecond.
const STEPS: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Work(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    memory: Arc<Memory>,
    shadow: Memory,
    stripe: usize,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Debug)]
struct Gate {
    is_paused: bool,
    at_work: usize,
    pauses: u64,
}

impl Work {
    /// Begins: a seed, and how many workers; or none, and a processor of /dev/kvm works. `page` is what can be given back. The shadow holds what the memory
    /// holds.
    pub(crate) fn begin(
        memory: &Arc<Memory>,
        shadow: &File,
        page: usize,
        (seed, threads): (usize, usize),
    ) -> Self {
        let workers = threads.max(1);
        let shared = Arc::new(Shared {
            memory: Arc::clone(memory),
            shadow: Memory::of(shadow, memory.len()),
            stripe: STRIPE.max(page),
            gate: Mutex::new(Gate {
                is_paused: false,
                at_work: workers + 1,
                pauses: 0,
            }),
            changed: Condvar::new(),
        });
        for number in 0..workers {
            let shared = Arc::clone(&shared);
            let random = Random((seed as u64) << 8 | number as u64);
            let stripes = (number * shared.stripe..memory.len()).step_by(workers * shared.stripe);
            let worker = Worker {
                page,
                stripes: stripes.collect(),
                at_work: Vec::new(),
                pauses: None,
                random,
                vcpu: (threads == 0).then(|| Vcpu::new(&shared.memory, &shared.shadow)),
            };
            thread::spawn(move || worker.run(&shared));
        }
        let own = Arc::clone(&shared);
        thread::spawn(move || own.look_anywhere(Random(seed as u64)));
        Self(shared)
    }

    /// Returns when nobody is at work.
    pub(crate) fn pause(&self) {
        let mut gate = self.0.locked();
        gate.is_paused = true;
        while gate.at_work > 0 {
            gate = self.0.changed.wait(gate).unwrap();
        }
    }

    pub(crate) fn resume(&self) {
        let mut gate = self.0.locked();
        gate.is_paused = false;
        gate.pauses += 1;
        self.0.changed.notify_all();
    }

    /// Every byte, while all are paused.
    pub(crate) fn check(&self) {
        assert_eq!(self.0.locked().at_work, 0);
        self.0.check(0..self.0.memory.len());
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Between two steps: waits out a pause. How many there were.
    fn pass(&self) -> u64 {
        let mut gate = self.locked();
        if gate.is_paused {
            gate.at_work -= 1;
            self.changed.notify_all();
            while gate.is_paused {
                gate = self.changed.wait(gate).unwrap();
            }
            gate.at_work += 1;
        }
        gate.pauses
    }

    fn look_anywhere(&self, mut random: Random) {
        loop {
            self.pass();
            self.memory.read(random.below(self.memory.len()));
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn check(&self, bytes: std::ops::Range<usize>) {
        for at in bytes {
            let (has, should) = (self.memory.read(at), self.shadow.read(at));
            if has != should {
                eprintln!(
                    "guest: byte {at:#x} is {has:#04x}, and was {should:#04x} when it was written last"
                );
                exit(1);
            }
        }
    }
}

struct Worker {
    page: usize,
    /// Where each of its own begins.
    stripes: Vec<usize>,
    at_work: Vec<usize>,
    pauses: Option<u64>,
    random: Random,
    vcpu: Option<Vcpu>,
}

impl Worker {
    fn run(mut self, on: &Shared) {
        loop {
            for _ in 0..STEPS {
                let pauses = Some(on.pass());
                if self.pauses != pauses {
                    self.pauses = pauses;
                    self.at_work = (0..AT_WORK_IN).map(|_| self.any()).collect();
                }
                self.step(on);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn any(&mut self) -> usize {
        self.stripes[self.random.below(self.stripes.len())]
    }

    fn step(&mut self, on: &Shared) {
        let mut stripe = self.at_work[self.random.below(AT_WORK_IN)];
        if self.random.below(STRAYS) == 0 {
            stripe = self.any();
        }
        let at = stripe + self.random.below(on.stripe / PAGE) * PAGE;
        match self.random.below(400) {
            0 => self.give_back(on, stripe),
            1..50 => match &mut self.vcpu {
                Some(vcpu) => {
                    if !vcpu.is_as_its_shadow(at, PAGE) {
                        eprintln!(
                            "guest: its processor finds other bytes at {at:#x} than it wrote"
                        );
                        exit(1);
                    }
                }
                None => on.check(at..at + PAGE),
            },
            50..70 => write(on, at, &[0; PAGE]),
            // As it is: written, and not changed.
            70..90 => write(on, at, &shadowed(on, at)),
            // What is elsewhere already.
            90..120 => {
                let from = self.any() + self.random.below(on.stripe / PAGE) * PAGE;
                write(on, at, &shadowed(on, from));
            }
            120..150 => {
                let bytes: [u8; PAGE] = std::array::from_fn(|_| self.random.byte());
                write(on, at, &bytes);
            }
            _ if let Some(vcpu) = &mut self.vcpu => {
                vcpu.write(stripe, on.stripe, self.random.next(), WORDS);
            }
            _ => {
                let len = 1 + self.random.below(64);
                let within = self.random.below(PAGE - len);
                let bytes: Vec<u8> = (0..len).map(|_| self.random.byte()).collect();
                write(on, at + within, &bytes);
            }
        }
    }

    /// Some pages of a stripe, as a balloon does.
    fn give_back(&mut self, on: &Shared, stripe: usize) {
        let pages = on.stripe / self.page;
        let first = self.random.below(pages);
        let count = 1 + self.random.below(pages - first);
        let range = stripe + first * self.page..stripe + (first + count) * self.page;
        on.memory.give_back(range.clone());
        range.for_each(|at| on.shadow.write(at, 0));
    }
}

fn shadowed(on: &Shared, at: usize) -> Vec<u8> {
    (at..at + PAGE).map(|at| on.shadow.read(at)).collect()
}

fn write(on: &Shared, at: usize, bytes: &[u8]) {
    for to in [&*on.memory, &on.shadow] {
        for (at, byte) in (at..).zip(bytes) {
            to.write(at, *byte);
        }
    }
}

/// Choices that one number decides (SplitMix64).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.next() >> 56).unwrap()
    }
}
