//! [`Pool`]: threads that fetch pages whose bytes are not at hand, in turns: however many one guest asks for, the next one's first page
//! comes after one of its.
//!
//! A turn is a guest with something to do. A guest has one turn in the queue at most; who has had it goes to the end, if there is more.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// One who has jobs.
pub(crate) trait Turns: Send + Sync + Sized + 'static {
    /// What is to be done.
    type Job: Send + Debug;

    /// Does one. It may block, and may leave more for later.
    fn act(self: &Arc<Self>, job: Self::Job, pool: &Queue<Self>);
}

/// The jobs of one, in order.
pub(crate) struct Line<T: Turns> {
    jobs: Mutex<VecDeque<T::Job>>,
}

/// See the module.
pub(crate) struct Pool<T: Turns> {
    shared: Arc<Queue<T>>,
    threads: Vec<JoinHandle<()>>,
}

type Turn<T> = (Arc<T>, Arc<Line<T>>);

/// What the threads have in common.
pub(crate) struct Queue<T: Turns> {
    turns: Mutex<Turnstile<T>>,
    came: Condvar,
}

struct Turnstile<T: Turns> {
    queue: VecDeque<Turn<T>>,
    ended: bool,
}

fn locked<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Turns> Default for Line<T> {
    fn default() -> Self {
        Self {
            jobs: Mutex::default(),
        }
    }
}

impl<T: Turns> Pool<T> {
    pub(crate) fn new(threads: usize, name: &str) -> std::io::Result<Self> {
        let shared = Arc::new(Queue {
            turns: Mutex::new(Turnstile {
                queue: VecDeque::new(),
                ended: false,
            }),
            came: Condvar::new(),
        });
        let start = |_| {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name(name.to_owned());
            builder.spawn(move || shared.work())
        };
        let threads = (0..threads).map(start).collect::<Result<_, _>>()?;
        Ok(Self { shared, threads })
    }

    pub(crate) fn push(&self, who: &Arc<T>, line: &Arc<Line<T>>, job: T::Job) {
        self.shared.push(who, line, job);
    }
}

impl<T: Turns> Queue<T> {
    pub(crate) fn push(&self, who: &Arc<T>, line: &Arc<Line<T>>, job: T::Job) {
        let is_first = {
            let mut jobs = locked(&line.jobs);
            jobs.push_back(job);
            jobs.len() == 1
        };
        // Else its turn is in the queue, or will be put there by who took the job before.
        if is_first {
            self.queue((Arc::clone(who), Arc::clone(line)));
        }
    }

    fn queue(&self, turn: Turn<T>) {
        locked(&self.turns).queue.push_back(turn);
        self.came.notify_one();
    }

    fn next(&self) -> Option<Turn<T>> {
        let mut turns = locked(&self.turns);
        loop {
            if turns.ended {
                return None;
            }
            if let Some(turn) = turns.queue.pop_front() {
                return Some(turn);
            }
            turns = self
                .came
                .wait(turns)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) {
        while let Some((who, line)) = self.next() {
            // Whoever puts a job into an empty line queues the turn; so it is queued here if, and only if, the line is not empty now.
            let (job, has_more) = {
                let mut jobs = locked(&line.jobs);
                let job = jobs.pop_front();
                (job, !jobs.is_empty())
            };
            if has_more {
                self.queue((Arc::clone(&who), line));
            }
            if let Some(job) = job {
                who.act(job, self);
            }
        }
    }
}

impl<T: Turns> Drop for Pool<T> {
    fn drop(&mut self) {
        {
            let mut turns = locked(&self.shared.turns);
            turns.ended = true;
            turns.queue.clear();
        }
        self.shared.came.notify_all();
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    struct One {
        name: char,
        done: Sender<(char, u32)>,
        /// Each job waits for a word.
        go: Mutex<Receiver<()>>,
    }

    impl Turns for One {
        type Job = u32;

        fn act(self: &Arc<Self>, job: u32, _: &Queue<Self>) {
            locked(&self.go).recv().ok();
            self.done.send((self.name, job)).unwrap();
        }
    }

    #[test]
    fn one_who_wants_much_does_not_keep_another_from_its_turn() {
        let (done, all) = channel();
        let pool = Pool::new(1, "test").unwrap();
        let one = |name| {
            let (go, receiver) = channel();
            let done = done.clone();
            let go_on = Mutex::new(receiver);
            (
                Arc::new(One {
                    name,
                    done,
                    go: go_on,
                }),
                Arc::new(Line::default()),
                go,
            )
        };
        let ((a, a_line, a_go), (b, b_line, b_go)) = (one('a'), one('b'));
        for job in 0..5 {
            pool.push(&a, &a_line, job);
        }
        for job in 0..2 {
            pool.push(&b, &b_line, job);
        }
        (0..5).for_each(|_| a_go.send(()).unwrap());
        (0..2).for_each(|_| b_go.send(()).unwrap());
        let order: Vec<_> = (0..7).map(|_| all.recv().unwrap()).collect();
        let of = |name| {
            order
                .iter()
                .filter(move |(n, _)| *n == name)
                .map(|(_, job)| *job)
        };
        assert!(of('a').eq(0..5) && of('b').eq(0..2), "{order:?}");
        let last_b = order.iter().rposition(|(name, _)| *name == 'b').unwrap();
        assert!(last_b < 6, "{order:?}");
        // Its turn comes again after its line was empty.
        pool.push(&a, &a_line, 9);
        a_go.send(()).unwrap();
        assert_eq!(all.recv().unwrap(), ('a', 9));
    }
}
