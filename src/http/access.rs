// SPDX-License-Identifier: Apache-2.0
//! Who may ask for what while there is no login: callers on loopback for everything, others whether the broker is well.
//!
//! A page in a browser on this machine is on loopback too. It cannot read our answers, since none of them allows that
//! to other origins, unless its own name was made to point here (DNS rebinding). So the name that a request was sent to
//! must be one that nobody else can have.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::settings::{Host, HttpSettings};

use super::{Failure, HEALTH, READY};

/// The rules.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// The name that the operator gave the listener.
    name: Option<String>,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) SocketAddr);

impl Access {
    pub(crate) fn new(settings: &HttpSettings) -> Self {
        let name = match &settings.address.host {
            Host::Name(name) => Some(name.clone()),
            Host::All | Host::Ip(_) => None,
        };
        Self { name }
    }

    fn judge(&self, caller: IpAddr, request: &Request) -> Result<(), Failure> {
        let path = request.uri().path();
        if path == HEALTH || path == READY {
            return Ok(());
        }
        if !caller.to_canonical().is_loopback() {
            return Err(Failure::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                format!(
                    "callers from other machines get only {HEALTH} and {READY} until there is a login; \
                     ask from the machine that the broker runs on, or tunnel to its loopback address"
                ),
            ));
        }
        // a request to a proxy names its target in the request line, which counts then (RFC 9112, section 3.2.2)
        let target = request
            .uri()
            .authority()
            .map(|authority| authority.as_str());
        let mut headers = request.headers().get_all(HOST).iter();
        let header = headers
            .next()
            .map(|header| header.to_str().unwrap_or_default());
        let (Some(named), None) = (target.or(header), headers.next()) else {
            return Err(Failure::new(
                StatusCode::BAD_REQUEST,
                "bad request",
                "a request has one Host header",
            ));
        };
        if self.is_ours(host_of(named)) {
            return Ok(());
        }
        Err(Failure::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "the Host header is neither an IP address nor localhost, so a web page may have sent this; \
             use the address, or name the listener: --http=NAME:PORT",
        ))
    }

    fn is_ours(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        bare.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self
                .name
                .as_deref()
                .is_some_and(|name| name.eq_ignore_ascii_case(host))
    }
}

/// Without the port.
fn host_of(host_and_port: &str) -> &str {
    match host_and_port.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host_and_port,
    }
}

/// Passes on what may pass.
pub(super) async fn check(
    State(access): State<Arc<Access>>,
    request: Request,
    next: Next,
) -> Response {
    let caller = request
        .extensions()
        .get::<Caller>()
        .map(|caller| caller.0.ip());
    // who is not known is a stranger
    let caller = caller.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    match access.judge(caller, &request) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}
