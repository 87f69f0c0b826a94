//! Listening: TCP addresses, unix sockets at any path, and listeners that somebody else has opened.
//!
//! What happens to a path that is taken:
//!
//! | there is               | it is                                         |
//! |------------------------|-----------------------------------------------|
//! | nothing                | made                                          |
//! | a socket, nobody listens | replaced                                    |
//! | a socket, somebody listens | refused                                   |
//! | anything else          | refused, and never removed                    |
//!
//! The kernel takes 107 bytes of a socket's path, so a longer one is reached through an open handle
//! of its directory, `/proc/self/fd/N/name`. At the end the file is removed if it is still ours (the
//! same inode). Two servers that find the same dead socket in the same instant may both replace it;
//! the later one is then the one that clients find.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, open, statat, unlinkat};
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_nodelay};

/// Where to listen.
#[derive(Debug)]
pub enum Listen {
    /// A unix socket at this path.
    Unix(PathBuf),
    /// A TCP address; port 0 takes any.
    Tcp(SocketAddr),
    /// A unix socket that listens already. Its file is its maker's.
    InheritedUnix(UnixListener),
    /// A TCP socket that listens already.
    InheritedTcp(TcpListener),
}

/// What a server listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The path of a unix socket.
    Unix(PathBuf),
    /// The address, with the port that was taken.
    Tcp(SocketAddr),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another server answers there.
    #[error("{}: another server listens there", .0.display())]
    InUse(PathBuf),
    /// Only a socket is ever replaced.
    #[error("{}: is there and is no socket", .0.display())]
    NotASocket(PathBuf),
    /// The name alone is longer than a socket's path may be.
    #[error("{}: a socket's name has at most {NAME_BYTES_MAX} bytes", .0.display())]
    NameTooLong(PathBuf),
    /// The path has no file name.
    #[error("\"{}\" names no file", .0.display())]
    NoName(PathBuf),
    /// The system refused.
    #[error("{place}: {source}")]
    Io {
        /// Where.
        place: String,
        /// Why.
        source: io::Error,
    },
}

/// What is left of a socket's 107 bytes after `/proc/self/fd/N/`, for any N.
const NAME_BYTES_MAX: usize = 107 - "/proc/self/fd/2147483647/".len();

/// A listener, and its file if it has made one.
pub(crate) struct Listener {
    kind: Kind,
    _file: Option<SocketFile>,
}

enum Kind {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    pub(crate) fn open(listen: Listen) -> Result<(Self, Bound), ListenError> {
        let mut file = None;
        let kind = match listen {
            Listen::InheritedUnix(listener) => Kind::Unix(listener),
            Listen::InheritedTcp(listener) => Kind::Tcp(listener),
            Listen::Tcp(address) => Kind::Tcp(at(&address, TcpListener::bind(address))?),
            Listen::Unix(path) => {
                let (listener, made) = SocketFile::bind(&path)?;
                file = Some(made);
                Kind::Unix(listener)
            }
        };
        let bound = match (&kind, &file) {
            (Kind::Unix(_), Some(file)) => Bound::Unix(file.path.clone()),
            (Kind::Unix(listener), None) => {
                let address = at(&"the socket", listener.local_addr())?;
                Bound::Unix(
                    address
                        .as_pathname()
                        .map(Path::to_path_buf)
                        .unwrap_or_default(),
                )
            }
            (Kind::Tcp(listener), _) => Bound::Tcp(at(&"the socket", listener.local_addr())?),
        };
        // A client that is gone before it is accepted must not make accept wait.
        let nonblocking = match &kind {
            Kind::Unix(listener) => listener.set_nonblocking(true),
            Kind::Tcp(listener) => listener.set_nonblocking(true),
        };
        at(&bound, nonblocking)?;
        Ok((Self { kind, _file: file }, bound))
    }

    /// The next client, if one waits.
    pub(crate) fn accept(&self) -> io::Result<OwnedFd> {
        match &self.kind {
            Kind::Unix(listener) => Ok(listener.accept()?.0.into()),
            Kind::Tcp(listener) => {
                let stream = listener.accept()?.0;
                set_tcp_nodelay(&stream, true)?;
                // A client whose machine is gone gives its place back one day.
                set_socket_keepalive(&stream, true)?;
                Ok(stream.into())
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Unix(listener) => listener.as_fd(),
            Kind::Tcp(listener) => listener.as_fd(),
        }
    }
}

fn at<T>(place: &dyn fmt::Display, result: io::Result<T>) -> Result<T, ListenError> {
    result.map_err(|source| ListenError::Io {
        place: place.to_string(),
        source,
    })
}

/// Connects to a unix socket at a path of any length.
///
/// # Errors
/// [`ListenError::NoName`], [`ListenError::NameTooLong`], or the system's own.
pub fn connect_unix(path: &Path) -> Result<UnixStream, ListenError> {
    let directory = Directory::of(path)?;
    at(
        &path.display(),
        UnixStream::connect(directory.short_path(path_name(path)?)),
    )
}

fn path_name(path: &Path) -> Result<&OsStr, ListenError> {
    let name = path
        .file_name()
        .ok_or_else(|| ListenError::NoName(path.into()))?;
    if name.len() > NAME_BYTES_MAX {
        return Err(ListenError::NameTooLong(path.into()));
    }
    Ok(name)
}

/// An open handle of the directory that holds a socket.
#[derive(Debug)]
struct Directory(OwnedFd);

impl Directory {
    fn of(path: &Path) -> Result<Self, ListenError> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(parent, flags, Mode::empty());
        Ok(Self(at(&parent.display(), fd.map_err(Into::into))?))
    }

    fn short_path(&self, name: &OsStr) -> PathBuf {
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        path.push(name);
        path
    }

    /// The type and identity of what has this name.
    fn look(&self, name: &OsStr) -> io::Result<(FileType, (u64, u64))> {
        let stat = statat(&self.0, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((
            FileType::from_raw_mode(stat.st_mode),
            (stat.st_dev, stat.st_ino),
        ))
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.0, name.as_bytes(), AtFlags::empty())?)
    }
}

/// A unix socket's file that we have made, removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    directory: Directory,
    /// Device and inode, to know it again.
    identity: (u64, u64),
}

impl SocketFile {
    /// Listens at a path of any length; see the table of the module for one that is taken.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path) -> Result<(UnixListener, Self), ListenError> {
        let name = path_name(path)?;
        let directory = Directory::of(path)?;
        let place = path.display();
        match directory.look(name) {
            Ok((FileType::Socket, _)) => {
                match UnixStream::connect(directory.short_path(name)) {
                    Ok(_) => return Err(ListenError::InUse(path.into())),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(error) => return at(&place, Err(error)),
                }
                at(&place, directory.remove(name))?;
            }
            Ok(_) => return Err(ListenError::NotASocket(path.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return at(&place, Err(error)),
        }
        let listener = at(&place, UnixListener::bind(directory.short_path(name)))?;
        let (_, identity) = at(&place, directory.look(name))?;
        Ok((
            listener,
            Self {
                path: path.into(),
                directory,
                identity,
            },
        ))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let name = self.path.file_name().expect("it was bound under a name");
        let is_ours = self
            .directory
            .look(name)
            .is_ok_and(|(_, found)| found == self.identity);
        if is_ours {
            // Where it cannot be removed, the next server replaces it.
            let _ = self.directory.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_a_live_one_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let (listener, bound) = Listener::open(Listen::Unix(path.clone())).unwrap();
        assert_eq!(bound, Bound::Unix(path.clone()));
        let error = Listener::open(Listen::Unix(path.clone()))
            .map(|_| ())
            .unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        let error = Listener::open(Listen::Unix(path.clone()))
            .map(|_| ())
            .unwrap_err();
        assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_file_that_is_no_longer_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, _) = Listener::open(Listen::Unix(path.clone())).unwrap();
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_long_path_works_and_a_long_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(200)).join("e".repeat(200));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("socket");
        let (listener, _) = Listener::open(Listen::Unix(path.clone())).unwrap();
        let client = connect_unix(&path).unwrap();
        listener.accept().unwrap();
        drop((listener, client));
        assert!(!path.exists());
        let error = Listener::open(Listen::Unix(deep.join("n".repeat(100)))).map(|_| ());
        assert!(
            matches!(error, Err(ListenError::NameTooLong(_))),
            "{error:?}"
        );
        let error = Listener::open(Listen::Unix("/".into())).map(|_| ());
        assert!(matches!(error, Err(ListenError::NoName(_))), "{error:?}");
    }
}
