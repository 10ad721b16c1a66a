// SPDX-License-Identifier: Apache-2.0
//! Which web pages may connect: the rule for the Origin header (RFC 6454, RFC 6455 section 10.2).
//!
//! A browser lets any page open a WebSocket to any address, and names the page. Without a rule, every page that its
//! user visits could talk to a broker that listens on loopback because it has no password. What sends no Origin is no
//! browser and is not hindered by this.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The rule of a listener.
#[derive(Clone, Debug, Default)]
pub struct Origins(Rule);

#[derive(Clone, Debug, Default)]
enum Rule {
    #[default]
    Any,
    Loopback,
    Listed {
        /// Pages without an origin: files, sandboxed frames.
        null: bool,
        origins: Box<[Origin<Box<str>>]>,
    },
}

/// An entry of `allowed-origins` that could never match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidOrigin {
    entry: Box<str>,
}

impl fmt::Display for InvalidOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not an origin: one is written scheme://host or scheme://host:port without a path, null or *",
            self.entry
        )
    }
}

impl std::error::Error for InvalidOrigin {}

impl Origins {
    /// Accepts those of `allowed`; `*` stands for all of them, `null` for pages that have none. If `allowed` is empty
    /// all are accepted, or with `loopback_only` those whose host is this machine.
    ///
    /// # Errors
    /// When an entry is not an origin.
    pub fn new<'a>(
        allowed: impl IntoIterator<Item = &'a str>,
        loopback_only: bool,
    ) -> Result<Self, InvalidOrigin> {
        let mut is_empty = true;
        let (mut any, mut null) = (false, false);
        let mut origins = Vec::new();
        for entry in allowed {
            is_empty = false;
            match entry {
                "*" => any = true,
                "null" => null = true,
                _ => match Origin::parse(entry) {
                    Some(origin) => origins.push(origin.to_owned()),
                    None => {
                        return Err(InvalidOrigin {
                            entry: entry.into(),
                        });
                    }
                },
            }
        }
        Ok(Self(if any || (is_empty && !loopback_only) {
            Rule::Any
        } else if is_empty {
            Rule::Loopback
        } else {
            Rule::Listed {
                null,
                origins: origins.into(),
            }
        }))
    }

    /// Whether a request with this Origin header, or without one, may connect.
    #[must_use]
    pub fn accept(&self, origin: Option<&[u8]>) -> bool {
        let Some(origin) = origin else {
            return true;
        };
        let parse = |origin| Origin::parse(std::str::from_utf8(origin).ok()?);
        match &self.0 {
            Rule::Any => true,
            Rule::Loopback => parse(origin).is_some_and(|origin| origin.is_loopback()),
            Rule::Listed { null, origins } => {
                (*null && origin == b"null")
                    || parse(origin)
                        .is_some_and(|origin| origins.iter().any(|listed| origin.is(listed)))
            }
        }
    }
}

/// `scheme://host[:port]`.
#[derive(Clone, Debug)]
struct Origin<Text> {
    scheme: Text,
    /// An IPv6 address has its brackets.
    host: Text,
    /// None: the scheme's own, which browsers leave out.
    port: Option<u16>,
}

impl<'a> Origin<&'a str> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme_is_valid = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
        let host_end = match authority.strip_prefix('[') {
            Some(bracketed) => 1 + bracketed.find(']')? + 1,
            None => authority.find(':').unwrap_or(authority.len()),
        };
        let (host, rest) = authority.split_at(host_end);
        let host_is_valid = match host.strip_prefix('[') {
            Some(address) => address.strip_suffix(']')?.parse::<Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.bytes().all(|byte| {
                        byte.is_ascii_alphanumeric()
                            || matches!(byte, b'-' | b'.' | b'_')
                            || byte >= 0x80
                    })
            }
        };
        let port = match rest.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            Some(_) => return None,
            None if rest.is_empty() => None,
            None => return None,
        };
        (scheme_is_valid && host_is_valid).then_some(Self {
            scheme,
            host,
            port: port.filter(|&port| Some(port) != default_port(scheme)),
        })
    }

    fn to_owned(&self) -> Origin<Box<str>> {
        Origin {
            scheme: self.scheme.into(),
            host: self.host.into(),
            port: self.port,
        }
    }

    fn is(&self, listed: &Origin<Box<str>>) -> bool {
        self.port == listed.port
            && self.host.eq_ignore_ascii_case(&listed.host)
            && self.scheme.eq_ignore_ascii_case(&listed.scheme)
    }

    fn is_loopback(&self) -> bool {
        let host = self.host;
        let name = host.rsplit_once('.').map_or(host, |(_, last)| last);
        if name.eq_ignore_ascii_case("localhost") {
            return true;
        }
        match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(address) => address.parse().is_ok_and(|ip: Ipv6Addr| ip.is_loopback()),
            None => host.parse().is_ok_and(|ip: Ipv4Addr| ip.is_loopback()),
        }
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        _ if scheme.eq_ignore_ascii_case("http") => Some(80),
        _ if scheme.eq_ignore_ascii_case("https") => Some(443),
        _ => None,
    }
}
