//! [`Fence`]: what the kernel asks for a second time is not begun while the first of it is under way.
//!
//! A request that takes too long over one of several sockets makes the kernel end that socket, and send it again over another, at once. It may be
//! under way still, or not even begun, and end much later: over what was written to the same place after the second was answered. So a device
//! of several sockets has a lane for each, and of what changes it
//!
//! | what comes over | is |
//! |---|---|
//! | a socket that has ended | refused: nobody hears of that, and the kernel sends it again |
//! | one that has not, while a change that came over one that has is under way | begun when that has ended |
//! | one that has not | begun |
//!
//! 1. The kernel ends a socket before it sends again what came over it. So whoever has received that sees the end: poll(2) says HUP.
//! 2. A socket's end is looked at under the lock under which changes begin, and stays: what has begun over it is counted, and nothing more begins.
//! 3. Who waits has begun nothing. So nobody waits for one who waits.
//!
//! Reads change nothing, and a flush covers what was answered: they pass. Over one socket none of this is needed: another takes its place when all of it
//! has been answered (see `client.rs`).

use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cowslip_block::device::{Device, DeviceError, Extent, Geometry, ReadSink, Room};
use cowslip_block::units::{ByteOffset, ByteRange};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// See the module.
pub(crate) struct Fence {
    device: Arc<dyn Device>,
    lanes: Mutex<Lanes>,
    /// A change has ended, or a lane has gone.
    bell: Condvar,
}

#[derive(Default)]
struct Lanes {
    next: u64,
    open: Vec<Open>,
}

struct Open {
    id: u64,
    socket: OwnedFd,
    under_way: usize,
}

/// What becomes of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Refused,
    Waits,
    Begins,
}

/// The device, as what comes over one socket is done on it.
pub(crate) struct Lane {
    fence: Arc<Fence>,
    id: u64,
}

/// A change that has begun.
struct UnderWay<'a>(&'a Lane);

impl Fence {
    pub(crate) fn new(device: Arc<dyn Device>) -> Self {
        Self {
            device,
            lanes: Mutex::default(),
            bell: Condvar::new(),
        }
    }

    /// A lane for this socket, which is open for as long as the lane is.
    pub(crate) fn lane(self: &Arc<Self>, socket: &OwnedFd) -> io::Result<Lane> {
        let socket = socket.try_clone()?;
        let mut lanes = self.locked();
        let id = lanes.next;
        lanes.next += 1;
        lanes.open.push(Open {
            id,
            socket,
            under_way: 0,
        });
        Ok(Lane {
            fence: Arc::clone(self),
            id,
        })
    }

    /// What this guards is whole between any two statements.
    fn locked(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lanes {
    /// The table of the module.
    fn judge(&self, id: u64) -> io::Result<Verdict> {
        let ended = self.ended()?;
        let of_ended = || self.open.iter().zip(&ended).filter(|(_, ended)| **ended);
        Ok(if of_ended().any(|(lane, _)| lane.id == id) {
            Verdict::Refused
        } else if of_ended().any(|(lane, _)| lane.under_way > 0) {
            Verdict::Waits
        } else {
            Verdict::Begins
        })
    }

    /// Which of the sockets have.
    fn ended(&self) -> io::Result<Vec<bool>> {
        let at_once = Timespec::default();
        loop {
            // HUP is told without being asked for.
            let fds = self.open.iter().map(|lane| &lane.socket);
            let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::empty())).collect();
            match poll(&mut fds, Some(&at_once)) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect()),
            }
        }
    }

    fn of(&mut self, id: u64) -> Option<&mut Open> {
        self.open.iter_mut().find(|lane| lane.id == id)
    }
}

impl Lane {
    fn begin(&self) -> Result<UnderWay<'_>, DeviceError> {
        let mut lanes = self.fence.locked();
        loop {
            match lanes.judge(self.id).map_err(DeviceError::Io)? {
                Verdict::Refused => {
                    return Err(DeviceError::Io(io::ErrorKind::NotConnected.into()));
                }
                Verdict::Waits => {
                    let waited = self.fence.bell.wait(lanes);
                    lanes = waited.unwrap_or_else(PoisonError::into_inner);
                }
                Verdict::Begins => {
                    if let Some(lane) = lanes.of(self.id) {
                        lane.under_way += 1;
                    }
                    return Ok(UnderWay(self));
                }
            }
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let Lane { fence, id } = self.0;
        if let Some(lane) = fence.locked().of(*id) {
            lane.under_way -= 1;
        }
        fence.bell.notify_all();
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.fence.locked().open.retain(|lane| lane.id != self.id);
        self.fence.bell.notify_all();
    }
}

impl Device for Lane {
    fn geometry(&self) -> Geometry {
        self.fence.device.geometry()
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        self.fence.device.read(range, sink)
    }

    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<(), DeviceError> {
        let _begun = self.begin()?;
        self.fence.device.write(offset, data)
    }

    fn write_zeroes(&self, range: ByteRange, room: Room) -> Result<(), DeviceError> {
        let _begun = self.begin()?;
        self.fence.device.write_zeroes(range, room)
    }

    fn trim(&self, range: ByteRange) -> Result<(), DeviceError> {
        let _begun = self.begin()?;
        self.fence.device.trim(range)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.fence.device.flush()
    }

    fn block_status(
        &self,
        range: ByteRange,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), DeviceError> {
        self.fence.device.block_status(range, visit)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU8, Ordering};
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::thread;
    use std::time::Duration;

    use cowslip_block::BlockSize;

    use super::*;

    /// One byte, and how long each write of it takes.
    struct Byte {
        value: Mutex<u8>,
        /// The last write that its kernel was told the end of: none before it may end now.
        answered: AtomicU8,
        slow: Box<dyn Fn(u8) + Send + Sync>,
    }

    impl Device for Byte {
        fn geometry(&self) -> Geometry {
            Geometry {
                size_bytes: 1,
                block_size: BlockSize::new(4096).unwrap(),
                read_only: false,
            }
        }

        fn read(&self, _: ByteRange, _: &mut dyn ReadSink) -> Result<(), DeviceError> {
            unreachable!("nobody does")
        }

        fn write(&self, _: ByteOffset, data: &[u8]) -> Result<(), DeviceError> {
            (self.slow)(data[0]);
            assert!(data[0] >= self.answered.load(Ordering::SeqCst));
            *self.value.lock().unwrap() = data[0];
            Ok(())
        }
    }

    struct World {
        byte: Arc<Byte>,
        fence: Arc<Fence>,
    }

    impl World {
        fn new(slow: impl Fn(u8) + Send + Sync + 'static) -> Self {
            let byte = Arc::new(Byte {
                value: Mutex::new(0),
                answered: AtomicU8::new(0),
                slow: Box::new(slow),
            });
            let fence = Arc::new(Fence::new(Arc::clone(&byte) as _));
            Self { byte, fence }
        }

        /// The kernel's end of a socket, and the lane of ours.
        fn socket(&self) -> (UnixStream, Arc<Lane>) {
            let (kernels, ours) = UnixStream::pair().unwrap();
            (kernels, Arc::new(self.fence.lane(&ours.into()).unwrap()))
        }

        fn verdict(&self, lane: &Lane) -> Verdict {
            self.fence.locked().judge(lane.id).unwrap()
        }
    }

    fn write(lane: &Lane, value: u8) -> Result<(), DeviceError> {
        lane.write(ByteOffset(0), &[value])
    }

    /// A device whose writes of 1 say that they have begun, and wait for a word.
    fn held() -> (World, Receiver<()>, Sender<()>) {
        let (begins, begun) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let channels = Mutex::new((begins, goes_on));
        let slow = move |value| {
            if value == 1 {
                let (begins, goes_on) = &*channels.lock().unwrap();
                begins.send(()).unwrap();
                // Whoever held it may be gone: from then on nothing is held.
                let _ = goes_on.recv();
            }
        };
        (World::new(slow), begun, go_on)
    }

    #[test]
    fn what_is_sent_again_begins_when_the_first_has_ended() {
        let (world, begun, go_on) = held();
        let ((first, one), (_second, two)) = (world.socket(), world.socket());
        thread::scope(|scope| {
            let slow = scope.spawn(|| write(&one, 1));
            begun.recv().unwrap();
            assert_eq!(world.verdict(&two), Verdict::Begins, "others go on");
            first.shutdown(Shutdown::Both).unwrap();
            assert_eq!(world.verdict(&one), Verdict::Refused);
            assert_eq!(world.verdict(&two), Verdict::Waits);
            let again = scope.spawn(|| write(&two, 1).and_then(|()| write(&two, 2)));
            drop(go_on);
            slow.join().unwrap().unwrap();
            begun.recv().unwrap();
            again.join().unwrap().unwrap();
        });
        assert_eq!(*world.byte.value.lock().unwrap(), 2);
        write(&one, 3).unwrap_err();
        assert_eq!(*world.byte.value.lock().unwrap(), 2);
    }

    #[test]
    fn who_waits_is_let_go_on_when_its_own_socket_ends_as_well() {
        let (world, begun, go_on) = held();
        let ((first, one), (second, two)) = (world.socket(), world.socket());
        let (_third, three) = world.socket();
        thread::scope(|scope| {
            let slow = scope.spawn(|| write(&one, 1));
            begun.recv().unwrap();
            first.shutdown(Shutdown::Both).unwrap();
            let again = scope.spawn(|| write(&two, 1));
            second.shutdown(Shutdown::Both).unwrap();
            let once_more = scope.spawn(|| write(&three, 2));
            drop(go_on);
            slow.join().unwrap().unwrap();
            // It saw that end before it began, or waited until the first had ended.
            again.join().unwrap().unwrap_err();
            once_more.join().unwrap().unwrap();
        });
        assert_eq!(*world.byte.value.lock().unwrap(), 2);
    }

    #[test]
    fn a_lane_that_has_gone_holds_up_nobody() {
        let (world, ..) = held();
        let ((first, one), (_second, two)) = (world.socket(), world.socket());
        drop((first, one));
        write(&two, 5).unwrap();
        assert_eq!(world.fence.locked().open.len(), 1);
    }

    /// A kernel without patience, and a device that is slow now and then: what was answered is not undone.
    #[test]
    fn a_kernel_that_gives_up_loses_no_write() {
        let turn = AtomicU8::new(0);
        let world = World::new(move |_| {
            let is_slow = turn.fetch_add(1, Ordering::SeqCst) % 7 == 3;
            thread::sleep(Duration::from_micros(if is_slow { 3000 } else { 50 }));
        });
        let mut sockets = [world.socket(), world.socket(), world.socket()];
        thread::scope(|scope| {
            for value in 0..=u8::MAX {
                for attempt in usize::from(value).. {
                    let (kernels, lane) = &mut sockets[attempt % 3];
                    let (answer, answered) = mpsc::channel();
                    let its = Arc::clone(lane);
                    scope.spawn(move || drop(write(&its, value).map(|()| answer.send(()))));
                    // More of it each time: a busy machine is slow at everything.
                    let tries = u32::try_from(attempt - usize::from(value)).unwrap();
                    let patience = Duration::from_micros(500) * (1 + tries);
                    if answered.recv_timeout(patience) == Ok(()) {
                        world.byte.answered.store(value, Ordering::SeqCst);
                        break;
                    }
                    kernels.shutdown(Shutdown::Both).unwrap();
                    sockets[attempt % 3] = world.socket();
                }
            }
        });
        assert_eq!(*world.byte.value.lock().unwrap(), u8::MAX);
    }
}
