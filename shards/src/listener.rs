// SPDX-License-Identifier: Apache-2.0
//! Listening sockets: bound once by main so that an address in use is noticed, then by every shard. A unix socket has
//! one queue only: the first shard accepts for all.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_ipv6_v6only, set_socket_keepalive, set_socket_reuseaddr, set_socket_reuseport,
    set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_nodelay,
};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_socket, connect,
    getsockname, ipproto, listen, socket_with,
};

/// Connections that wait to be accepted, per shard and listener.
const BACKLOG: i32 = 4096;
/// A client with a keep-alive of 0 may say nothing for ever; its machine is asked whether it is still there when nothing
/// came for this long,
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// then once in this time,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// and the connection ends after so many questions without an answer.
const KEEPALIVE_PROBES: u32 = 5;

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// With the port that the kernel chose where it was 0.
    Ip(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The client's own address, where a load balancer told it.
    Ip(SocketAddr),
    /// A process of this machine.
    Unix,
}

impl Peer {
    pub(crate) const fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// A listener could not be bound.
#[derive(Debug)]
pub struct BindError {
    /// Name of the listener.
    pub id: String,
    /// Its address.
    pub place: Place,
    /// What the kernel said.
    pub errno: Errno,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let next = match (self.errno, &self.place) {
            (Errno::NAMETOOLONG, _) => "the path of a unix socket has at most 107 bytes",
            (Errno::EXIST, _) => "that file is no socket; choose another path",
            (_, Place::Unix(_)) if self.errno != Errno::ADDRINUSE => {
                "check that its folder exists and may be written to"
            }
            (Errno::ADDRINUSE, _) => {
                "another process listens there; stop it or choose another address"
            }
            (Errno::ACCESS, _) => {
                "ports below 1024 need the capability CAP_NET_BIND_SERVICE; choose another port or grant it"
            }
            (Errno::ADDRNOTAVAIL, _) => "no interface of this machine has that address",
            _ => "check the address",
        };
        write!(
            f,
            "listener {} cannot listen on {}: {} ({next})",
            self.id, self.place, self.errno
        )
    }
}

impl std::error::Error for BindError {}

fn socket(address: SocketAddr, share: bool) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    // a port that the kernel chooses must be nobody else's either
    set_socket_reuseaddr(&fd, address.port() != 0)?;
    if share {
        set_socket_reuseport(&fd, true)?;
    }
    if address.is_ipv6() {
        // `:PORT` is all interfaces of both families
        set_ipv6_v6only(&fd, !address.ip().is_unspecified())?;
    }
    // accepted sockets inherit all of these
    set_tcp_nodelay(&fd, true)?;
    set_socket_keepalive(&fd, true)?;
    set_tcp_keepidle(&fd, KEEPALIVE_IDLE)?;
    set_tcp_keepintvl(&fd, KEEPALIVE_INTERVAL)?;
    set_tcp_keepcnt(&fd, KEEPALIVE_PROBES)?;
    bind_socket(&fd, &address)?;
    Ok(fd)
}

/// An address that is this process's: nobody else can bind it as long as this lives.
#[derive(Debug)]
pub struct Bound {
    /// Where.
    pub place: Place,
    /// TCP: bound but not listening, so it gets no connections. Unix: the listening socket.
    holder: OwnedFd,
    /// The file of a unix socket: another broker may have put its own there since.
    file: Option<FileId>,
}

/// Device and inode.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Option<FileId> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

impl Bound {
    /// The address of a TCP listener.
    #[must_use]
    pub const fn ip(&self) -> Option<SocketAddr> {
        match self.place {
            Place::Ip(address) => Some(address),
            Place::Unix(_) => None,
        }
    }

    /// A shard's own socket; `None`: this shard need not listen there.
    pub(crate) fn open(&self, shard: u8) -> rustix::io::Result<Option<OwnedFd>> {
        match self.place {
            Place::Ip(address) => {
                let fd = socket(address, true)?;
                listen(&fd, BACKLOG)?;
                Ok(Some(fd))
            }
            Place::Unix(_) if shard == 0 => {
                rustix::io::fcntl_dupfd_cloexec(&self.holder, 0).map(Some)
            }
            Place::Unix(_) => Ok(None),
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Place::Unix(path) = &self.place
            && self.file.is_some()
            && file_id(path) == self.file
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Takes an address for this process.
///
/// It is bound without SO_REUSEPORT first, so that a second broker is not taken for one of our shards; the option is
/// set afterwards, so that the shards can bind it beside the holder.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(id: &str, address: SocketAddr) -> Result<Bound, BindError> {
    let error = |errno| BindError {
        id: id.to_owned(),
        place: Place::Ip(address),
        errno,
    };
    let holder = socket(address, false).map_err(error)?;
    set_socket_reuseport(&holder, true).map_err(error)?;
    let bound = getsockname(&holder).map_err(error)?;
    let address = SocketAddr::try_from(bound).map_err(error)?;
    Ok(Bound {
        place: Place::Ip(address),
        holder,
        file: None,
    })
}

/// Takes a path for this process. A socket that a process left behind is replaced, one that somebody listens on is not.
///
/// # Errors
/// When the path cannot be bound.
pub fn bind_unix(id: &str, path: &Path) -> Result<Bound, BindError> {
    let error = |errno| BindError {
        id: id.to_owned(),
        place: Place::Unix(path.to_owned()),
        errno,
    };
    let address = SocketAddrUnix::new(path).map_err(error)?;
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(error(Errno::EXIST));
        }
        let probe = unix_socket().map_err(error)?;
        match connect(&probe, &address) {
            Err(Errno::CONNREFUSED) => drop(std::fs::remove_file(path)),
            // its queue may be full: somebody listens all the same
            Ok(()) | Err(Errno::AGAIN) => return Err(error(Errno::ADDRINUSE)),
            Err(errno) => return Err(error(errno)),
        }
    }
    let holder = unix_socket().map_err(error)?;
    bind_socket(&holder, &address).map_err(error)?;
    // who may reach it is for the folder to say
    let everybody = std::fs::Permissions::from_mode(0o666);
    if let Err(cause) = std::fs::set_permissions(path, everybody) {
        return Err(error(Errno::from_io_error(&cause).unwrap_or(Errno::IO)));
    }
    listen(&holder, BACKLOG).map_err(error)?;
    Ok(Bound {
        place: Place::Unix(path.to_owned()),
        holder,
        file: file_id(path),
    })
}

fn unix_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Listens on an address for a thread that is no shard; with the port that the kernel chose where it was 0.
///
/// # Errors
/// When the address cannot be had.
pub fn listen_alone(id: &str, address: SocketAddr) -> Result<(OwnedFd, SocketAddr), BindError> {
    let error = |errno| BindError {
        id: id.to_owned(),
        place: Place::Ip(address),
        errno,
    };
    let fd = socket(address, false).map_err(error)?;
    listen(&fd, BACKLOG).map_err(error)?;
    let bound = getsockname(&fd).map_err(error)?;
    let address = SocketAddr::try_from(bound).map_err(error)?;
    Ok((fd, address))
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt;

    use super::*;

    const ANY_PORT: &str = "127.0.0.1:0";

    fn any() -> SocketAddr {
        ANY_PORT.parse().expect("an address")
    }

    fn address_of(bound: &Bound) -> SocketAddr {
        bound.ip().expect("a TCP listener")
    }

    #[test]
    fn shards_listen_beside_the_holder_and_nobody_else_does() {
        let bound = bind("tcp", any()).expect("a free port");
        let first = bound.open(0).expect("a shard's socket");
        let second = bound.open(1).expect("another shard's socket");
        assert!(first.is_some() && second.is_some());
        let refused = bind("tcp-2", address_of(&bound)).expect_err("the address is taken");
        assert_eq!(refused.errno, Errno::ADDRINUSE);
        let text = refused.to_string();
        assert!(text.contains("tcp-2"), "{text}");
        assert!(text.contains(&bound.place.to_string()), "{text}");
    }

    #[test]
    fn an_address_is_taken_before_any_shard_listens() {
        let bound = bind("tcp", any()).expect("a free port");
        assert!(bind("tcp-2", address_of(&bound)).is_err());
    }

    #[test]
    fn what_is_accepted_is_asked_whether_its_client_is_there() {
        let bound = bind("tcp", any()).expect("a free port");
        let listener = bound.open(0).expect("a socket").expect("of this shard");
        let _client = std::net::TcpStream::connect(address_of(&bound)).expect("a connection");
        let accepted = rustix::net::accept(&listener).expect("it was connected");
        assert!(sockopt::socket_keepalive(&accepted).expect("a socket"));
        let idle = sockopt::tcp_keepidle(&accepted).expect("a socket");
        assert_eq!(idle, KEEPALIVE_IDLE);
        assert!(sockopt::tcp_nodelay(&accepted).expect("a socket"));
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("corqtt-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("a folder");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn a_unix_socket_is_accepted_by_the_first_shard_only() {
        let folder = Folder::new("first");
        let bound = bind_unix("unix", &folder.0.join("mqtt.sock")).expect("a socket");
        assert!(bound.open(0).expect("a descriptor").is_some());
        assert!(bound.open(1).expect("nothing to do").is_none());
    }

    #[test]
    fn a_unix_socket_in_use_is_refused_and_a_left_one_replaced() {
        let folder = Folder::new("left");
        let path = folder.0.join("mqtt.sock");
        let bound = bind_unix("unix", &path).expect("a socket");
        let refused = bind_unix("unix-2", &path).expect_err("somebody listens");
        assert_eq!(refused.errno, Errno::ADDRINUSE);
        assert!(refused.to_string().contains("mqtt.sock"), "{refused}");
        drop(bound);
        assert!(!path.exists());
        let left = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        drop(left);
        assert!(path.exists());
        bind_unix("unix", &path).expect("what was left is replaced");
    }

    #[test]
    fn a_unix_socket_that_another_broker_put_there_stays() {
        let folder = Folder::new("other");
        let path = folder.0.join("mqtt.sock");
        let bound = bind_unix("unix", &path).expect("a socket");
        std::fs::rename(&path, folder.0.join("old.sock")).expect("it is there");
        let other = bind_unix("unix-2", &path).expect("a socket of its own");
        drop(bound);
        assert!(path.exists());
        drop(other);
        assert!(!path.exists());
    }

    #[test]
    fn a_unix_socket_is_open_to_who_may_enter_its_folder() {
        let folder = Folder::new("mode");
        let path = folder.0.join("mqtt.sock");
        let _bound = bind_unix("unix", &path).expect("a socket");
        let mode = std::fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o666);
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let folder = Folder::new("file");
        let path = folder.0.join("mqtt.sock");
        std::fs::write(&path, "mine").expect("a file");
        let refused = bind_unix("unix", &path).expect_err("a file is there");
        assert!(refused.to_string().contains("no socket"), "{refused}");
        assert!(path.exists());
    }
}
