// SPDX-License-Identifier: Apache-2.0
//! The kinds of value that a setting can have, and the one way in which each is read from text.
//!
//! Flags, environment variables, the file and the defaults of the table all pass through [`Kind::read`],
//! so a value means the same wherever it is written.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use super::choices::Choice;

const KIB: u64 = 1024;

/// What a setting takes. Bounds are inclusive.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Bool,
    Number {
        min: u64,
        max: u64,
    },
    Choice(&'static [Choice]),
    /// A plain number is in `unit`; bounds are in `unit` too.
    Duration {
        unit: Unit,
        min: u64,
        max: u64,
    },
    /// As `Duration`, or the word `never`.
    DurationOrNever {
        unit: Unit,
    },
    /// A plain number is bytes.
    Bytes {
        min: u64,
        max: u64,
    },
    /// `always`, `never`, or a duration (a plain number is milliseconds).
    Sync,
    Level,
    Text,
    /// Text that is never shown again.
    Secret,
    Path,
    /// Where a listener binds: `:PORT`, `HOST:PORT`, or `off`.
    Listen,
    /// `HOST:PORT`.
    HostPort,
    /// `HOST:PORT`, or a `redis://` or `rediss://` URL.
    RedisAddress,
    Ip,
    Cpus,
    HostPorts,
    Cidrs,
    Texts,
    /// Keys that the user chooses, with text values.
    Map,
}

/// The unit of a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    Seconds,
    Days,
}

impl Unit {
    fn of(self, number: u64) -> Option<Duration> {
        match self {
            Self::Millis => Some(Duration::from_millis(number)),
            Self::Seconds => Some(Duration::from_secs(number)),
            Self::Days => number.checked_mul(86_400).map(Duration::from_secs),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Millis => "milliseconds",
            Self::Seconds => "seconds",
            Self::Days => "days",
        }
    }
}

/// A setting as it was written, before its kind is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    Scalar(String),
    List(Vec<String>),
    Map(Vec<(String, String)>),
}

/// Who wrote a value: levels are numbered differently on the command line and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    CommandLine,
    File,
}

/// A setting that was read. Each [`Kind`] gives one of these.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// An empty text: as if the setting was not named.
    Absent,
    Bool(bool),
    Number(u64),
    /// The place in the kind's list of choices.
    Choice(usize),
    Duration(Duration),
    Never,
    Always,
    Bytes(u64),
    Level(Level),
    Text(String),
    Path(PathBuf),
    Off,
    Address(Address),
    Ip(IpAddr),
    Cpus(Vec<usize>),
    Addresses(Vec<Address>),
    Cidrs(Vec<Cidr>),
    Texts(Vec<String>),
    Map(Vec<(String, String)>),
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
}

impl Level {
    /// The same for the `log` crate.
    #[must_use]
    pub fn filter(self) -> log::LevelFilter {
        match self {
            Self::Off => log::LevelFilter::Off,
            Self::Error => log::LevelFilter::Error,
            Self::Warn => log::LevelFilter::Warn,
            Self::Info => log::LevelFilter::Info,
            Self::Debug => log::LevelFilter::Debug,
        }
    }

    fn read(text: &str, dialect: Dialect) -> Option<Self> {
        let by_name = match text.to_ascii_lowercase().as_str() {
            "debug" => Some(Self::Debug),
            "info" => Some(Self::Info),
            "warn" | "warning" => Some(Self::Warn),
            // fatal and panic are errors here: nothing is logged above them
            "error" | "err" | "fatal" | "panic" => Some(Self::Error),
            "nolevel" | "off" => Some(Self::Off),
            _ => None,
        };
        by_name.or(match (dialect, text) {
            (Dialect::CommandLine, "0") | (Dialect::File, "-4") => Some(Self::Debug),
            (Dialect::CommandLine, "1") | (Dialect::File, "0") => Some(Self::Info),
            (Dialect::CommandLine, "2") | (Dialect::File, "4") => Some(Self::Warn),
            (Dialect::CommandLine, "3" | "4" | "5") | (Dialect::File, "8") => Some(Self::Error),
            (Dialect::CommandLine, "6" | "7") => Some(Self::Off),
            _ => None,
        })
    }
}

/// Text that is shown as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The host part of an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Every interface, IPv4 and IPv6.
    All,
    Ip(IpAddr),
    Name(String),
}

/// A host and a port; shown as it is written in settings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub host: Host,
    pub port: u16,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: Host::Ip(address.ip()),
            port: address.port(),
        }
    }
}

impl Address {
    /// `127.0.0.1` with this port.
    #[must_use]
    pub fn loopback(port: u16) -> Self {
        Self {
            host: Host::Ip(IpAddr::from([127, 0, 0, 1])),
            port,
        }
    }

    /// Whether both cannot be had at once, as far as their texts tell: port 0 is one that the kernel chooses.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let is_all = |host: &Host| match host {
            Host::All => true,
            Host::Ip(ip) => ip.is_unspecified(),
            Host::Name(_) => false,
        };
        self.port != 0
            && self.port == other.port
            && (self.host == other.host || is_all(&self.host) || is_all(&other.host))
    }

    /// Whether only this machine can reach it. A name other than `localhost` is taken for a wider one.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::All => false,
            Host::Ip(ip) => ip.is_loopback(),
            Host::Name(name) => name.eq_ignore_ascii_case("localhost"),
        }
    }

    /// The socket addresses behind it; all interfaces are one dual-stack `[::]`. Asks the resolver for a name.
    ///
    /// # Errors
    ///
    /// The resolver's, or not found when a name has no address.
    pub fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        match &self.host {
            Host::All => Ok(vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.port))]),
            Host::Ip(ip) => Ok(vec![SocketAddr::from((*ip, self.port))]),
            Host::Name(name) => {
                let found: Vec<_> = (name.as_str(), self.port).to_socket_addrs()?.collect();
                if found.is_empty() {
                    return Err(std::io::Error::new(
                        std::io::ErrorKind::NotFound,
                        format!("{name} has no address"),
                    ));
                }
                Ok(found)
            }
        }
    }

    /// Reads `:PORT` and `HOST:PORT`, an IPv6 host in brackets.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let port = port.parse().ok()?;
        let host = if host.is_empty() {
            Host::All
        } else if let Some(inner) = host.strip_prefix('[') {
            Host::Ip(IpAddr::V6(inner.strip_suffix(']')?.parse().ok()?))
        } else if let Ok(ip) = host.parse::<IpAddr>() {
            // an IPv6 address without brackets would swallow its last group as the port
            if ip.is_ipv6() {
                return None;
            }
            Host::Ip(ip)
        } else if is_host_name(host) {
            Host::Name(host.to_owned())
        } else {
            return None;
        };
        Some(Self { host, port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::All => write!(f, ":{}", self.port),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Letters, digits, `-`, `_` and `.`, and not only digits and dots (that is a mistyped IPv4 address).
fn is_host_name(text: &str) -> bool {
    let plain = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let named = text.bytes().any(|b| b.is_ascii_alphabetic());
    text.len() <= 253 && plain && named && !text.starts_with(['-', '.'])
}

/// A range of addresses, `10.0.0.0/8`; a lone address is a range of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// Any address of it.
    pub network: IpAddr,
    /// Bits that count: at most 32 or 128.
    pub prefix_bits: u8,
}

impl Cidr {
    pub(super) fn read(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let network: IpAddr = address.parse().ok()?;
        let width = if network.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match prefix {
            Some(prefix) => prefix.parse().ok()?,
            None => width,
        };
        if prefix_bits > width {
            return None;
        }
        // peers that are written so are IPv4, and so is a range of them
        if let IpAddr::V6(v6) = network
            && let Some(v4) = v6.to_ipv4_mapped()
            && prefix_bits >= 96
        {
            return Some(Self {
                network: v4.into(),
                prefix_bits: prefix_bits - 96,
            });
        }
        Some(Self {
            network,
            prefix_bits,
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_bits)
    }
}

impl Kind {
    /// Reads a value. The error says what is expected, to be put after "expected".
    pub(super) fn read(self, raw: &Raw, dialect: Dialect) -> Result<Value, String> {
        match raw {
            Raw::Scalar(text) => self.read_scalar(text.trim(), dialect),
            Raw::List(items) => self.read_list(items),
            Raw::Map(pairs) => match self {
                Self::Map => Ok(Value::Map(pairs.clone())),
                _ => Err(self.expected(dialect)),
            },
        }
    }

    fn read_scalar(self, text: &str, dialect: Dialect) -> Result<Value, String> {
        let value = match self {
            Self::Bool => read_bool(text).map(Value::Bool),
            Self::Number { min, max } => read_number(text)
                .filter(|number| (min..=max).contains(number))
                .map(Value::Number),
            Self::Choice(choices) => choices
                .iter()
                .position(|choice| {
                    choice
                        .words
                        .iter()
                        .any(|word| word.eq_ignore_ascii_case(text))
                })
                .map(Value::Choice),
            Self::Duration { unit, min, max } => read_duration(text, unit)
                .filter(|&d| unit.of(min) <= Some(d) && Some(d) <= unit.of(max))
                .map(Value::Duration),
            Self::DurationOrNever { .. } if text.eq_ignore_ascii_case("never") => {
                Some(Value::Never)
            }
            Self::DurationOrNever { unit } => read_duration(text, unit).map(Value::Duration),
            Self::Bytes { min, max } => read_bytes(text)
                .filter(|bytes| (min..=max).contains(bytes))
                .map(Value::Bytes),
            Self::Sync => match text.to_ascii_lowercase().as_str() {
                "always" => Some(Value::Always),
                "never" => Some(Value::Never),
                text => read_duration(text, Unit::Millis)
                    .filter(|sync| !sync.is_zero())
                    .map(Value::Duration),
            },
            Self::Level => Level::read(text, dialect).map(Value::Level),
            Self::Text | Self::Secret | Self::Path if text.is_empty() => Some(Value::Absent),
            Self::Text | Self::Secret => Some(Value::Text(text.to_owned())),
            Self::Path => Some(Value::Path(PathBuf::from(text))),
            Self::Listen if matches!(text, "" | "off" | "none") => Some(Value::Off),
            Self::Listen => Address::read(text).map(Value::Address),
            Self::HostPort if text.is_empty() => Some(Value::Absent),
            Self::HostPort => read_peer(text).map(Value::Address),
            Self::RedisAddress if text.is_empty() => Some(Value::Absent),
            Self::RedisAddress => {
                let url = text.starts_with("redis://") || text.starts_with("rediss://");
                (url || read_peer(text).is_some()).then(|| Value::Text(text.to_owned()))
            }
            Self::Ip if text.is_empty() => Some(Value::Absent),
            Self::Ip => text.parse().ok().map(Value::Ip),
            Self::Cpus => read_cpus(text).map(Value::Cpus),
            Self::HostPorts | Self::Cidrs | Self::Texts => {
                let items: Vec<String> = text
                    .split(',')
                    .map(|item| item.trim().to_owned())
                    .filter(|item| !item.is_empty())
                    .collect();
                return self.read_list(&items);
            }
            Self::Map => None,
        };
        value.ok_or_else(|| self.expected(dialect))
    }

    fn read_list(self, items: &[String]) -> Result<Value, String> {
        let items = items.iter().map(|item| item.trim());
        let value = match self {
            Self::HostPorts => items
                .map(read_peer)
                .collect::<Option<_>>()
                .map(Value::Addresses),
            Self::Cidrs => items
                .map(Cidr::read)
                .collect::<Option<_>>()
                .map(Value::Cidrs),
            Self::Texts => Some(Value::Texts(items.map(str::to_owned).collect())),
            Self::Cpus => items
                .map(read_cpus)
                .collect::<Option<Vec<_>>>()
                .map(|lists| Value::Cpus(lists.concat())),
            _ => None,
        };
        value.ok_or_else(|| self.expected(Dialect::File))
    }

    /// The place of a choice; the word is one of the table's.
    pub(super) fn choice_named(self, word: &str) -> usize {
        match self {
            Self::Choice(choices) => choices.iter().position(|choice| choice.name() == word),
            _ => None,
        }
        .expect("the table names parts for words of its choices only; a test reads every row")
    }

    /// What this kind takes in the file, for a cell of a table, and the unit of a plain number.
    pub(super) fn in_short(self) -> (String, &'static str) {
        let range = |what: &str, min: u64, max: u64| match (min, max) {
            (0, u64::MAX) => what.to_owned(),
            (min, u64::MAX) => format!("{what} from {min}"),
            (min, max) => format!("{what} from {min} to {max}"),
        };
        match self {
            Self::Number { min, max } => (range("number", min, max), ""),
            Self::Duration { unit, min, max } => (range("duration", min, max), unit.name()),
            Self::DurationOrNever { unit } => ("duration or never".to_owned(), unit.name()),
            Self::Bytes { min, max } => (range("size", min, max), "bytes"),
            Self::Sync => (
                "always, never, or a duration".to_owned(),
                Unit::Millis.name(),
            ),
            kind => (kind.expected(Dialect::File), ""),
        }
    }

    /// What this kind takes, in words.
    pub(super) fn expected(self, dialect: Dialect) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Number { min: 0, max: u64::MAX } => "a whole number".into(),
            Self::Number { min, max } => format!("a whole number from {min} to {max}"),
            Self::Choice(choices) => choices
                .iter()
                .map(|choice| choice.words.join("/"))
                .collect::<Vec<_>>()
                .join(", "),
            Self::Duration { unit, min, max } => format!(
                "a duration like 500ms, 10s, 5m, 2h or 1d, or a number of {}, from {min} to {max} {}",
                unit.name(),
                unit.name()
            ),
            Self::DurationOrNever { unit } => format!(
                "never, a duration like 10s, 5m, 2h or 1d, or a number of {}",
                unit.name()
            ),
            Self::Bytes { min: 0, max: u64::MAX } => {
                "a size like 512KiB, 64MiB or 1GiB, or a number of bytes".into()
            }
            Self::Bytes { min, max } => format!(
                "a size like 512KiB, 64MiB or 1GiB, or a number of bytes, from {min} to {max} bytes"
            ),
            Self::Sync => "always, never, or a number of milliseconds above 0".into(),
            Self::Level => match dialect {
                Dialect::CommandLine => {
                    "0 debug, 1 info, 2 warn, 3 error, 4 fatal, 5 panic, 6 nolevel, 7 off, or one of these names".into()
                }
                Dialect::File => "-4 debug, 0 info, 4 warn, 8 error, or debug, info, warn, error, off".into(),
            },
            Self::Text | Self::Secret => "a text".into(),
            Self::Path => "a path".into(),
            Self::Listen => "HOST:PORT, :PORT for all interfaces, or off".into(),
            Self::HostPort => "HOST:PORT".into(),
            Self::RedisAddress => "HOST:PORT, redis://... or rediss://...".into(),
            Self::Ip => "an IP address".into(),
            Self::Cpus => "a list of CPU numbers without repeats, like 0,2 or 0-3".into(),
            Self::HostPorts => "a list of HOST:PORT".into(),
            Self::Cidrs => "a list of address ranges like 10.0.0.0/8".into(),
            Self::Texts => "a list of texts".into(),
            Self::Map => "a block of keys with texts".into(),
        }
    }
}

/// Go's words for a boolean, and YAML's.
pub(crate) fn read_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" | "yes" | "on" => Some(true),
        "false" | "f" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn read_number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Splits `10s` in 10 and `s`.
fn read_quantity(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((read_number(number)?, unit.trim()))
}

fn read_duration(text: &str, unit: Unit) -> Option<Duration> {
    let (number, suffix) = read_quantity(text)?;
    let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
    match suffix {
        "" => unit.of(number),
        "ms" => Some(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86_400),
        _ => None,
    }
}

fn read_bytes(text: &str) -> Option<u64> {
    let (number, suffix) = read_quantity(text)?;
    let each = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => KIB,
        "mib" => KIB.pow(2),
        "gib" => KIB.pow(3),
        "tib" => KIB.pow(4),
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(each)
}

fn read_peer(text: &str) -> Option<Address> {
    Address::read(text).filter(|address| address.host != Host::All && address.port != 0)
}

/// Highest CPU number that is taken; the kernel's own limit is 8192.
const CPU_MAX: usize = 8191;

fn read_cpus(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text| read_number(text).and_then(|n| usize::try_from(n).ok());
        let (first, last) = (number(first.trim())?, number(last.trim())?);
        if first > last || last > CPU_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    let mut sorted = cpus.clone();
    sorted.sort_unstable();
    sorted.dedup();
    (sorted.len() == cpus.len()).then_some(cpus)
}
