//! All that one client sends, from its first byte: a server answers over a socket pair, a megabyte of
//! memory behind it.
//!
//! ```text
//! input  0 how: 0 as it is; 1 after a handshake; 2 after one with structured replies and contexts;
//!               3, 4 the same two, and what follows are whole requests: see [`crate::session`]
//!        1 the bytes
//! ```

use std::io::{Read, Write};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use cowslip_block::{
    BlockSize, ByteOffset, ByteRange, Device, DeviceError, Extent, Geometry, ReadSink, Room,
};
use cowslip_nbd::{Export, Server};

use crate::input::Input;
use crate::session;

const SIZE_BYTES: usize = (1 << 20) + 100;

struct World {
    ram: Arc<Ram>,
    server: Server,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let ram = Arc::new(Ram(RwLock::new(vec![0; SIZE_BYTES])));
    let export = Export {
        name: "disk".into(),
        description: "memory".into(),
        device: Arc::clone(&ram) as Arc<dyn Device>,
    };
    let server = Server::new(export, Box::new(|_| {})).expect("a server");
    World { ram, server }
});

/// Sends it all, says that there is no more, and reads to the end.
pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let how = input.byte();
    let hello = match how {
        0 => Vec::new(),
        how => handshake(how.is_multiple_of(2)),
    };
    WORLD
        .ram
        .0
        .write()
        .unwrap_or_else(PoisonError::into_inner)
        .fill(0);
    let (mut client, server) = UnixStream::pair().expect("a socket pair");
    let served = WORLD
        .server
        .serve_stream(server.into())
        .expect("there is one client at a time");
    if how == 3 || how == 4 {
        session::run(client, &hello, &mut input, SIZE_BYTES);
        served.wait();
        return;
    }
    let mut reader = client.try_clone().expect("another handle");
    let replies = std::thread::spawn(move || {
        let mut bytes = [0; 1 << 16];
        while reader.read(&mut bytes).is_ok_and(|n| n > 0) {}
    });
    // The server may have hung up by now.
    let _ = client
        .write_all(&hello)
        .and_then(|()| client.write_all(input.0));
    let _ = client.shutdown(Shutdown::Write);
    replies.join().expect("it only reads");
    served.wait();
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"IHAVEOPT".to_vec();
    out.extend(code.to_be_bytes());
    out.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
    out.extend(data);
    out
}

/// The client's half of a handshake that ends with GO.
fn handshake(structured: bool) -> Vec<u8> {
    let mut out = 3u32.to_be_bytes().to_vec();
    if structured {
        out.extend(option(8, &[]));
        let contexts = ["base:allocation", "cowslip:dirty"];
        let mut data = 0u32.to_be_bytes().to_vec();
        data.extend(2u32.to_be_bytes());
        for context in contexts {
            data.extend(u32::try_from(context.len()).expect("short").to_be_bytes());
            data.extend(context.as_bytes());
        }
        out.extend(option(10, &data));
    }
    out.extend(option(7, &[0; 6]));
    out
}

fn request(kind: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut out = 0x2560_9513u32.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(0x636f_6f6b_6965_0000u64.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(len.to_be_bytes());
    out
}

/// A whole session each way: handshakes of every option, and requests of every kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut options = vec![0];
    options.extend(3u32.to_be_bytes());
    options.extend(option(3, &[]));
    options.extend(option(6, &[0, 0, 0, 4, b'd', b'i', b's', b'k', 0, 1, 0, 3]));
    options.extend(option(9, &[0, 0, 0, 0, 0, 0, 0, 0]));
    options.extend(option(99, b"what"));
    options.extend(option(2, &[]));
    let mut old = vec![0];
    old.extend(1u32.to_be_bytes());
    old.extend(option(1, b"disk"));
    old.extend(request(0, 0, 0, 10));
    let requests = [
        request(1, 1, 4090, 8),
        b"payload!".to_vec(),
        request(0, 0, 4000, 5000),
        request(0, 4, 0, 1 << 20),
        request(4, 0, 0, 8192),
        request(6, 3, 100, 70_000),
        request(6, 16, 0, SIZE_BYTES as u32),
        request(3, 0, 0, 0),
        request(5, 0, 0, 4096),
        request(7, 8, 0, 4096),
        request(7, 0, 0, SIZE_BYTES as u32),
        request(0, 0, 1 << 40, 16),
        request(1, 0, 1 << 63, 4),
        b"none".to_vec(),
        request(77, 0, 0, 0),
        request(2, 0, 0, 0),
    ]
    .concat();
    let after = |how: u8| [&[how][..], &requests].concat();
    let session = |how: u8| [vec![how], session::seed()].concat();
    vec![options, old, after(1), after(2), session(3), session(4)]
}

/// A megabyte; what is zero is a hole.
struct Ram(RwLock<Vec<u8>>);

fn indexes(range: ByteRange) -> std::ops::Range<usize> {
    let index = |n| usize::try_from(n).expect("the door lets nothing through that is past the end");
    index(range.start.0)..index(range.end.0)
}

impl Device for Ram {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: SIZE_BYTES as u64,
            block_size: BlockSize::DISK,
            read_only: false,
        }
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        let bytes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        for chunk in bytes[indexes(range)].chunks(4096) {
            match chunk.iter().all(|b| *b == 0) {
                true => sink.zeroes(chunk.len() as u64),
                false => sink.data(chunk.len()).copy_from_slice(chunk),
            }
        }
        Ok(())
    }

    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<(), DeviceError> {
        let range = ByteRange::at(offset.0, data.len() as u64).expect("checked at the door");
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        bytes[indexes(range)].copy_from_slice(data);
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, _: Room) -> Result<(), DeviceError> {
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        bytes[indexes(range)].fill(0);
        Ok(())
    }

    fn trim(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.write_zeroes(range, Room::Free)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn block_status(
        &self,
        range: ByteRange,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), DeviceError> {
        let bytes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        for chunk in bytes[indexes(range)].chunks(4096) {
            let hole = chunk.iter().all(|b| *b == 0);
            if visit(Extent {
                len: chunk.len() as u64,
                hole,
                dirty: !hole,
            })
            .is_break()
            {
                break;
            }
        }
        Ok(())
    }
}
