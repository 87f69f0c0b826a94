//! `cowslip memory serve`: a snapshot's memory, for guests as they come, until a signal ends it.
//!
//! At the first signal the guests are let go on alone, which takes as long as what is left of their memory takes to be read; at the second they are
//! killed. The lease keeps what is served, whatever becomes of its name.

use std::sync::Arc;
use std::thread;

use cowslip_memory::server::Server;
use cowslip_memory::source::Source;
use cowslip_nbd::SocketFile;
use cowslip_snapshot::roots::Lease;
use cowslip_snapshot::{Caches, Header, Image, ImageName, Part, Store, StoreError};

use super::super::target::{open_told, signals};
use super::super::{Context, refused};
use super::control::{self, Control};
use super::trace::Traced;
use crate::args::MemoryServe;
use crate::failure::Failure;
use crate::report::{Unit, advance, bytes, complain};

pub(super) fn run(context: &Context, args: &MemoryServe) -> Result<(), Failure> {
    let mut signals = signals()?;
    let caches = Caches {
        frame_bytes: args.frame_cache.0,
        ..Caches::default()
    };
    let store_path = context.store_path()?;
    let store = open_told(&store_path, caches)?;
    let (header, _lease) = memory_of(&store, &args.name)?;
    let size = bytes(header.size_bytes());
    let traced = Traced::find(&store, args, &header);
    let source = Source::new(Image::new(Arc::clone(&store), header))?;
    let bind = |path| SocketFile::bind(path).map_err(|e| refused(&e));
    let (listener, _socket) = bind(&args.uffd)?;
    let (control, _control_socket) = bind(&control::path(&args.uffd))?;
    let failed = |e: std::io::Error| Failure::failed(format!("starting the server: {e}"));
    let server = Server::start(listener, Arc::new(source), traced.options(), complain);
    let server = Arc::new(server.map_err(failed)?);
    let trace = traced.keep(&server);
    let asked = Control {
        server: Arc::clone(&server),
        store,
        spool: store_path.join("tmp"),
    };
    asked.serve(control).map_err(failed)?;
    let (name, at) = (&args.name, args.uffd.display());
    complain(&format!(
        "ready: serving the memory of {name} ({size}) at unix:{at}"
    ));
    signals.forever().next();
    // From here on all is put in place, and nobody touches anything first.
    server.end_record();
    let killer = Arc::clone(&server);
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            killer.abandon();
        }
    });
    release(context, &server);
    // Nobody serves them any more: they would wait for ever, or read zeros.
    server.abandon();
    if let Some(trace) = trace {
        // It has said what it could not do, if it panicked.
        drop(trace.join());
    }
    Ok(())
}

/// The memory of a snapshot; of one that has none, the image that the name means: a memory file may have been imported as any image.
fn memory_of(store: &Store, image: &ImageName) -> Result<(Arc<Header>, Lease), StoreError> {
    if image.part.is_none() {
        let memory = ImageName::part(&image.name, Part::Memory);
        match store.resolve_image_leased(&memory) {
            Err(StoreError::NoPart { .. }) => {}
            other => return other,
        }
    }
    store.resolve_image_leased(image)
}

fn release(context: &Context, server: &Server) {
    let count = match server.guests().len() {
        0 => return,
        1 => "1 guest".to_owned(),
        n => format!("{n} guests"),
    };
    complain(&format!(
        "putting in place what is left of the memory of {count}"
    ));
    let bar = context.report.progress("releasing", Unit::Bytes);
    server.release(&|done, total| advance(&bar, done, total));
    bar.finish_and_clear();
}
