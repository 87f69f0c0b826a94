//! A disk in memory on a unix socket, to measure the protocol alone:
//! `cargo run --release -p cowslip-nbd --example ram -- SOCKET MIB`, until its standard input ends.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use cowslip_block::{
    BlockSize, ByteOffset, ByteRange, Device, DeviceError, Geometry, ReadSink, Room,
};
use cowslip_nbd::{Export, Listen, Server};

struct Ram(RwLock<Vec<u8>>, u64);

fn place(range: ByteRange) -> std::ops::Range<usize> {
    let index = |offset: u64| usize::try_from(offset).expect("it is in memory");
    index(range.start.0)..index(range.end.0)
}

impl Device for Ram {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.1,
            block_size: BlockSize::DISK,
            read_only: false,
        }
    }

    fn read(&self, range: ByteRange, sink: &mut dyn ReadSink) -> Result<(), DeviceError> {
        let bytes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let from = &bytes[place(range)];
        sink.data(from.len()).copy_from_slice(from);
        Ok(())
    }

    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<(), DeviceError> {
        let range = ByteRange::new(offset.0, offset.0 + data.len() as u64);
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        bytes[place(range)].copy_from_slice(data);
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, _room: Room) -> Result<(), DeviceError> {
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        bytes[place(range)].fill(0);
        Ok(())
    }

    fn trim(&self, _range: ByteRange) -> Result<(), DeviceError> {
        Ok(())
    }
}

fn main() -> io::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let usage = || io::Error::other("usage: ram SOCKET MIB");
    let socket = args.next().ok_or_else(usage)?;
    let mib = args
        .next()
        .and_then(|mib| mib.to_str()?.parse::<u32>().ok());
    let size = u64::from(mib.ok_or_else(usage)?) << 20;
    let bytes = vec![0xc5; usize::try_from(size).map_err(io::Error::other)?];
    let export = Export {
        name: String::new(),
        description: "memory".into(),
        device: Arc::new(Ram(RwLock::new(bytes), size)),
    };
    let server = Server::new(export, Box::new(|_| {}))?;
    server
        .listen(Listen::Unix(socket.into()))
        .map_err(io::Error::other)?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    server.stop();
    Ok(())
}
