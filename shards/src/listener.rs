// SPDX-License-Identifier: Apache-2.0
//! Listening sockets: bound once by main so that an address in use is noticed, then by every shard.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_ipv6_v6only, set_socket_reuseaddr, set_socket_reuseport, set_tcp_nodelay,
};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind as bind_socket, getsockname, ipproto, listen,
    socket_with,
};

/// Connections that wait to be accepted, per shard and listener.
const BACKLOG: i32 = 4096;

/// A listener could not be bound.
#[derive(Debug)]
pub struct BindError {
    /// Name of the listener.
    pub id: String,
    /// Its address.
    pub address: SocketAddr,
    /// What the kernel said.
    pub errno: Errno,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let next = match self.errno {
            Errno::ADDRINUSE => "another process listens there; stop it or choose another address",
            Errno::ACCESS => {
                "ports below 1024 need the capability CAP_NET_BIND_SERVICE; choose another port or grant it"
            }
            Errno::ADDRNOTAVAIL => "no interface of this machine has that address",
            _ => "check the address",
        };
        write!(
            f,
            "listener {} cannot listen on {}: {} ({next})",
            self.id, self.address, self.errno
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
    // accepted sockets inherit it
    set_tcp_nodelay(&fd, true)?;
    bind_socket(&fd, &address)?;
    Ok(fd)
}

/// An address that is this process's: nobody else can bind it as long as this lives.
#[derive(Debug)]
pub struct Bound {
    /// With the port that the kernel chose where it was 0.
    pub address: SocketAddr,
    /// Bound but not listening, so it gets no connections.
    _holder: OwnedFd,
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
        address,
        errno,
    };
    let holder = socket(address, false).map_err(error)?;
    set_socket_reuseport(&holder, true).map_err(error)?;
    let bound = getsockname(&holder).map_err(error)?;
    let address = SocketAddr::try_from(bound).map_err(error)?;
    Ok(Bound {
        address,
        _holder: holder,
    })
}

/// A shard's own socket on an address.
pub(crate) fn open(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let fd = socket(address, true)?;
    listen(&fd, BACKLOG)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY_PORT: &str = "127.0.0.1:0";

    fn any() -> SocketAddr {
        ANY_PORT.parse().expect("an address")
    }

    #[test]
    fn shards_listen_beside_the_holder_and_nobody_else_does() {
        let bound = bind("tcp", any()).expect("a free port");
        let first = open(bound.address).expect("a shard's socket");
        let second = open(bound.address).expect("another shard's socket");
        let refused = bind("tcp-2", bound.address).expect_err("the address is taken");
        assert_eq!(refused.errno, Errno::ADDRINUSE);
        let text = refused.to_string();
        assert!(text.contains("tcp-2"), "{text}");
        assert!(text.contains(&bound.address.to_string()), "{text}");
        drop((first, second));
    }

    #[test]
    fn an_address_is_taken_before_any_shard_listens() {
        let bound = bind("tcp", any()).expect("a free port");
        assert!(bind("tcp-2", bound.address).is_err());
    }
}
