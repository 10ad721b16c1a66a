// SPDX-License-Identifier: Apache-2.0
//! Tells the service manager what the process does: systemd's notification protocol, sd_notify(3).
//!
//! A message is one datagram of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names. Without that variable
//! nobody listens and nothing is sent.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What the service manager shows while clients are served.
pub(crate) const SERVING: &str = "serving";
/// Longest wait for a manager that does not read.
const SEND_MAX: Duration = Duration::from_secs(1);
/// What is left to end the process after its drain, beyond what the drain may take.
const STOP_SLACK: Duration = Duration::from_secs(10);

/// The way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    /// None: nobody listens.
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says; a socket that cannot be used is told in the log.
    #[must_use]
    pub fn from_environment() -> Self {
        let to = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty());
        let to = to.and_then(|path| match connect(&path) {
            Ok(to) => Some(to),
            Err(error) => {
                log::warn!(socket:% = path.display(), error:% = error; "the service manager cannot be told anything: NOTIFY_SOCKET is of no use");
                None
            }
        });
        let variable = |name| env::var(name).ok();
        let watchdog = watchdog(
            variable("WATCHDOG_USEC").as_deref(),
            variable("WATCHDOG_PID").as_deref(),
            std::process::id(),
        );
        Self { to, watchdog }
    }

    /// How often the manager wants to hear that all is well, if it does.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.to.is_some())
    }

    /// Everything is up; also the end of a reload.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// A reload begins; [`Notifier::ready`] ends it.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000;
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reloading"
        ));
    }

    /// The process is going down, and may take so long for it.
    pub fn stopping(&self, drain_max: Duration) {
        let micros = (drain_max + STOP_SLACK).as_micros();
        self.send(&format!(
            "STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS=draining"
        ));
    }

    /// All is well.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, text: &str) {
        if let Some((socket, manager)) = &self.to
            && let Err(error) = socket.send_to_addr(text.as_bytes(), manager)
        {
            log::warn!(error:% = error; "the service manager was not told: {}", text.escape_debug());
        }
    }
}

/// `/path`, or `@name` for an abstract socket.
fn connect(path: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let manager = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(path)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a path from / nor an abstract name from @",
            ));
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_MAX))?;
    Ok((socket, manager))
}

/// The interval, if it is meant for the process `own`.
fn watchdog(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let micros = usec?.parse().ok().filter(|micros| *micros > 0)?;
    Some(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notifier(path: &OsStr) -> Notifier {
        Notifier {
            to: Some(connect(path).expect("a socket")),
            watchdog: None,
        }
    }

    fn hear(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        manager
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        let count = manager.recv(&mut bytes).expect("a datagram");
        String::from_utf8(bytes[..count].to_vec()).expect("text")
    }

    #[test]
    fn the_manager_hears_each_step() {
        let path = env::temp_dir().join(format!("corqtt-notify-{}", std::process::id()));
        let manager = UnixDatagram::bind(&path).expect("a socket");
        let notifier = notifier(path.as_os_str());
        notifier.ready("serving");
        assert_eq!(hear(&manager), "READY=1\nSTATUS=serving");
        notifier.reloading();
        let reloading = hear(&manager);
        let micros = reloading
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .and_then(|rest| rest.strip_suffix("\nSTATUS=reloading"))
            .and_then(|micros| micros.parse::<u64>().ok());
        assert!(micros.is_some_and(|micros| micros > 0), "{reloading}");
        notifier.stopping(Duration::from_secs(30));
        assert_eq!(
            hear(&manager),
            "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\nSTATUS=draining"
        );
        notifier.alive();
        assert_eq!(hear(&manager), "WATCHDOG=1");
        drop(manager);
        std::fs::remove_file(&path).expect("the socket's file");
        // nobody listens any more: that is told in the log and nothing else
        notifier.alive();
    }

    #[test]
    fn an_abstract_socket_is_reached_too() {
        let name = format!("corqtt-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let manager = UnixDatagram::bind_addr(&address).expect("a socket");
        notifier(OsStr::new(&format!("@{name}"))).ready("serving");
        assert_eq!(hear(&manager), "READY=1\nSTATUS=serving");
    }

    #[test]
    fn other_kinds_of_sockets_are_refused() {
        assert!(connect(OsStr::new("vsock:2:1234")).is_err());
    }

    #[test]
    fn the_watchdog_is_for_this_process_only() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(Some("1000000"), None, 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("7"), 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("8"), 7), None);
        assert_eq!(watchdog(Some("0"), None, 7), None);
        assert_eq!(watchdog(Some("often"), None, 7), None);
        assert_eq!(watchdog(None, Some("7"), 7), None);
    }
}
