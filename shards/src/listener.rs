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
    set_socket_reuseaddr(&fd, true)?;
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

/// Checks that an address is free, and finds out the port where it is 0.
///
/// The check is made without SO_REUSEPORT, so that a second broker is not taken for one of our shards.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(id: &str, address: SocketAddr) -> Result<SocketAddr, BindError> {
    let error = |errno| BindError {
        id: id.to_owned(),
        address,
        errno,
    };
    let probe = socket(address, false).map_err(error)?;
    listen(&probe, 1).map_err(error)?;
    let bound = getsockname(&probe).map_err(error)?;
    SocketAddr::try_from(bound).map_err(error)
}

/// A shard's own socket on an address.
pub(crate) fn open(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let fd = socket(address, true)?;
    listen(&fd, BACKLOG)?;
    Ok(fd)
}
