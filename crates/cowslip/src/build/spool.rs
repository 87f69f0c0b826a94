//! A source as a plain archive: told by its first bytes, not by its name, and decompressed into a file without a name
//! where that is needed. That file is gone when the process is, however it ends.

use std::fs::File;
use std::io::{self, BufReader, Chain, Cursor, Read, Write};
use std::path::Path;
use std::sync::Arc;

use crate::failure::Failure;
use crate::report::bytes;

/// As it is told by its magic number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Gzip,
    Zstd,
}

/// An archive that can be read at any place: `source` itself, where it is a plain file, or a copy in `dir`. What
/// decompresses to more than `max` is refused. `progress` is told how much there is so far.
pub(crate) fn archive(
    source: &Path,
    dir: &Path,
    max: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<Arc<File>, Failure> {
    let failed = |e: io::Error| Failure::file(source, &e);
    let is_stdin = source == Path::new("-");
    let mut input: Box<dyn Read> = match is_stdin {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(source).map_err(failed)?),
    };
    let mut start = Vec::new();
    input
        .by_ref()
        .take(512)
        .read_to_end(&mut start)
        .map_err(failed)?;
    let form = form(&start, source)?;
    if form == Form::Plain && !is_stdin {
        let file = File::open(source).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_file() {
            return Ok(Arc::new(file));
        }
    }
    let input = BufReader::new(Cursor::new(start).chain(input));
    let mut out = tempfile::tempfile_in(dir).map_err(|e| Failure::file(dir, &e))?;
    copy(
        decoder(input, form).map_err(failed)?,
        &mut out,
        max,
        progress,
    )
    .map_err(|e| match e {
        Copying::Read(e) => Failure::file(source, &e),
        Copying::Write(e) => Failure::file(dir, &e).about("the archive, decompressed"),
        Copying::TooMuch => {
            let max = bytes(max);
            let message = format!("{}: it is more than {max}, decompressed", source.display());
            Failure::failed(message).hint("--size says how large the image is to be")
        }
    })?;
    Ok(Arc::new(out))
}

fn form(start: &[u8], source: &Path) -> Result<Form, Failure> {
    let other = [
        (&b"\xfd7zXZ\0"[..], "xz"),
        (b"BZh", "bzip2"),
        (b"PK\x03\x04", "zip"),
        (b"QFI\xfb", "a qcow2 image"),
    ];
    if start.starts_with(b"\x1f\x8b") {
        return Ok(Form::Gzip);
    }
    if start.starts_with(b"\x28\xb5\x2f\xfd") {
        return Ok(Form::Zstd);
    }
    if let Some((_, what)) = other.iter().find(|(magic, _)| start.starts_with(magic)) {
        let message = format!(
            "{} is {what}, not a directory or an archive of tar",
            source.display()
        );
        let hint = match *what {
            "a qcow2 image" => "`cowslip import` takes disk images",
            _ => "decompress it into a pipe: `cowslip build -` reads an archive of tar from there",
        };
        return Err(Failure::failed(message).hint(hint));
    }
    Ok(Form::Plain)
}

type Input = BufReader<Chain<Cursor<Vec<u8>>, Box<dyn Read>>>;

fn decoder(input: Input, form: Form) -> io::Result<Box<dyn Read>> {
    Ok(match form {
        Form::Plain => Box::new(input),
        Form::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Form::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
    })
}

enum Copying {
    Read(io::Error),
    Write(io::Error),
    TooMuch,
}

fn copy(
    mut input: Box<dyn Read>,
    out: &mut File,
    max: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Copying> {
    let mut buf = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let len = match input.read(&mut buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(Copying::Read)?,
        };
        if len == 0 {
            return Ok(());
        }
        done += len as u64;
        if done > max {
            return Err(Copying::TooMuch);
        }
        out.write_all(&buf[..len]).map_err(Copying::Write)?;
        progress(done);
    }
}
