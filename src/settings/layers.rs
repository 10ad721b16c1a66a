// SPDX-License-Identifier: Apache-2.0
//! The three sources laid over each other: one value per row of the table, with its origin.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::build;
use super::error::Problem;
use super::nearest::nearest;
use super::parts::Parts;
use super::table::{self, Preset, ROWS, Row};
use super::value::{Address, Cidr, Dialect, Kind, Level, Raw, Value};
use super::yaml;
use super::{NamedSetting, Notice, Settings, SettingsError};
use crate::args::Args;

/// A settings file is small; something larger is another file.
const FILE_BYTES_MAX: u64 = 1 << 20;
const PREFIX: &str = "CORQTT_";

/// The text of a settings file and its name for messages.
#[derive(Debug)]
pub(super) struct FileText {
    pub(super) name: String,
    pub(super) text: String,
}

/// The `CORQTT_*` variables that are UTF-8, without empty ones: those count as not set.
pub(super) fn corqtt_variables(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (name, value) in environment {
        let Ok(name) = name.into_string() else {
            continue;
        };
        if !name.starts_with(PREFIX) || value.is_empty() {
            continue;
        }
        match value.into_string() {
            Ok(value) => {
                found.insert(name, value);
            }
            Err(_) => problems.push(Problem::new(
                format!("{name}: the value is not UTF-8"),
                false,
            )),
        }
    }
    found
}

/// The file that the flag or the variable names.
pub(super) fn read_file(
    args: &Args,
    environment: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> Option<FileText> {
    let flag = args.flags.iter().find(|(flag, _)| *flag == "conf");
    let path = flag
        .map(|(_, path)| path)
        .or_else(|| environment.get("CORQTT_CONF"))
        .filter(|path| !path.is_empty())?;
    let name = path.escape_debug().to_string();
    match read_text(path) {
        Ok(text) => Some(FileText { name, text }),
        Err(error) => {
            problems.push(Problem::new(
                format!("cannot read the settings file {name}: {error}"),
                false,
            ));
            None
        }
    }
}

fn read_text(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            "it is larger than 1 MiB",
        ));
    }
    Ok(text)
}

/// All sources, read but not understood.
#[derive(Debug)]
pub(super) struct Sources<'a> {
    pub(super) flags: &'a [(&'static str, String)],
    pub(super) environment: &'a BTreeMap<String, String>,
    pub(super) file: Option<&'a FileText>,
}

impl Sources<'_> {
    /// Lays the sources over each other and builds the settings for a build with these parts.
    pub(super) fn settings(
        &self,
        parts: Parts,
        host_name: &str,
        mut problems: Vec<Problem>,
    ) -> Result<Settings, SettingsError> {
        let mut notices = Vec::new();
        let mut values = Values::default();
        let mut file_settings = yaml::FileSettings::default();
        if let Some(FileText { name, text }) = self.file {
            file_settings = yaml::read(text, name, &mut problems);
            values.take_file(
                std::mem::take(&mut file_settings.entries),
                name,
                &mut problems,
            );
        }
        self.take_environment(&mut values, &mut notices, &mut problems);
        for (flag, text) in self.flags {
            let place =
                table::place_of_flag(flag).expect("the parser takes flags of the table only");
            values.take(
                place,
                &Raw::Scalar(text.clone()),
                Origin::Flag(flag),
                &mut problems,
            );
        }
        let listeners = file_settings
            .listeners
            .into_iter()
            .map(|entry| {
                let name = self.file.map_or("", |file| &file.name);
                let mut values = Values::default();
                values.take_file(entry.entries, name, &mut problems);
                (
                    Origin::File {
                        file: name.to_owned(),
                        line: entry.line,
                        key: "mqtt.listeners",
                    },
                    values,
                )
            })
            .collect();
        let cluster_block = self
            .file
            .zip(file_settings.cluster_line)
            .map(|(file, line)| Origin::File {
                file: file.name.clone(),
                line,
                key: "cluster",
            });
        build::Builder {
            values: &values,
            listeners,
            cluster_block,
            parts,
            host_name,
            problems,
            notices,
        }
        .settings()
    }

    fn take_environment(
        &self,
        values: &mut Values,
        notices: &mut Vec<Notice>,
        problems: &mut Vec<Problem>,
    ) {
        let known: Vec<String> = ROWS.iter().filter_map(Row::variable).collect();
        for (name, text) in self.environment {
            if is_of_an_orchestrator(name, text) {
                continue;
            }
            let place = ROWS
                .iter()
                .position(|row| row.variable().as_deref() == Some(name));
            match place {
                Some(place) => values.take(
                    place,
                    &Raw::Scalar(text.clone()),
                    Origin::Variable(name.clone()),
                    problems,
                ),
                None => match nearest(name, known.iter().map(String::as_str)) {
                    Some((near, distance)) if distance <= edits_of_a_slip(name) => {
                        problems.push(Problem::new(
                            format!(
                                "unknown environment variable {}; the nearest known one is {near}",
                                name.escape_debug()
                            ),
                            false,
                        ));
                    }
                    _ => notices.push(Notice {
                        level: log::Level::Warn,
                        text: format!(
                            "the environment variable {} is unknown and not used",
                            name.escape_debug()
                        ),
                    }),
                },
            }
        }
    }
}

/// So many edits from a known name a variable was meant to be that one; short names have many others near them.
fn edits_of_a_slip(name: &str) -> usize {
    if name.len() <= PREFIX.len() + 4 { 1 } else { 2 }
}

/// Orchestrators tell a service of this name, or one whose name begins so, where it is: `CORQTT_SERVICE_HOST`,
/// `CORQTT_WS_PORT_1882_TCP_ADDR`, and `CORQTT_RAFT_PORT` as a URL.
fn is_of_an_orchestrator(name: &str, text: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    let is_service = name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT");
    let is_url = |protocol: &str| {
        let scheme = text.get(..protocol.len());
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(protocol))
            && text[protocol.len()..].starts_with("://")
    };
    let is_part = |(_, rest): (&str, &str)| {
        let (port, rest) = rest.split_once('_').unwrap_or((rest, ""));
        let protocol = rest.split('_').next().unwrap_or_default();
        port.bytes().all(|byte| byte.is_ascii_digit()) && PROTOCOLS.contains(&protocol)
    };
    is_service
        || name.ends_with("_PORT") && PROTOCOLS.into_iter().any(is_url)
        || name.rsplit_once("_PORT_").is_some_and(is_part)
}

/// A URL without what stands before the host.
fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(host)) if scheme < host => {
            format!("{}://***{}", &url[..scheme], &url[host..])
        }
        _ => url.to_owned(),
    }
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Flag(&'static str),
    Variable(String),
    File {
        file: String,
        line: usize,
        key: &'static str,
    },
}

impl Origin {
    pub(super) fn problem(&self, text: impl fmt::Display) -> Problem {
        Problem::new(format!("{self}: {text}"), matches!(self, Self::Flag(_)))
    }

    fn dialect(&self) -> Dialect {
        match self {
            Self::Flag(_) | Self::Variable(_) => Dialect::CommandLine,
            Self::File { .. } => Dialect::File,
        }
    }

    fn place(&self) -> String {
        match self {
            Self::Flag(flag) => format!("--{flag}"),
            Self::Variable(name) => name.clone(),
            Self::File { file, line, .. } => format!("{file}:{line}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place())?;
        match self {
            Self::File { key, .. } => write!(f, ": {}", key.replace("[]", "")),
            Self::Flag(_) | Self::Variable(_) => Ok(()),
        }
    }
}

/// A value that was named.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) value: Value,
    pub(super) origin: Origin,
    shown: String,
}

/// At most one named value per row of the table; the others have their default.
#[derive(Debug, Default)]
pub(super) struct Values(BTreeMap<usize, Named>);

impl Values {
    fn take_file(&mut self, entries: Vec<yaml::Entry>, file: &str, problems: &mut Vec<Problem>) {
        for entry in entries {
            let origin = Origin::File {
                file: file.to_owned(),
                line: entry.line,
                key: ROWS[entry.place].key.unwrap_or_default(),
            };
            self.take(entry.place, &entry.raw, origin, problems);
        }
    }

    /// Puts a value over the one of an earlier source. A wrong one is a problem even if a later source overrides it.
    fn take(&mut self, place: usize, raw: &Raw, origin: Origin, problems: &mut Vec<Problem>) {
        let kind = ROWS[place].kind;
        let shown = match (kind, raw) {
            (Kind::Secret, _) => "***".to_owned(),
            (Kind::RedisAddress, Raw::Scalar(text)) => without_password(text),
            (_, Raw::Scalar(text)) => text.clone(),
            (_, Raw::List(items)) => items.join(","),
            (_, Raw::Map(pairs)) => pairs
                .iter()
                .map(|(key, text)| format!("{key}={text}"))
                .collect::<Vec<_>>()
                .join(","),
        };
        match kind.read(raw, origin.dialect()) {
            Ok(Value::Absent) => {
                self.0.remove(&place);
            }
            Ok(value) => {
                self.0.insert(
                    place,
                    Named {
                        value,
                        origin,
                        shown,
                    },
                );
            }
            Err(expected) => {
                problems.push(origin.problem(format_args!(
                    "{shown:?} is not what it takes; expected {expected}"
                )));
            }
        }
    }

    pub(super) fn named(&self, name: &str) -> Option<&Named> {
        self.0.get(&table::place(name))
    }

    /// Every named value with its row, in the order of the table.
    pub(super) fn all_named(&self) -> impl Iterator<Item = (&'static Row, &Named)> {
        self.0.iter().map(|(&place, named)| (&ROWS[place], named))
    }

    pub(super) fn shown(&self) -> Vec<NamedSetting> {
        self.all_named()
            .map(|(row, named)| NamedSetting {
                name: row.name(),
                value: named.shown.clone(),
                origin: named.origin.place(),
            })
            .collect()
    }

    /// The named value, or the default as a value.
    fn value(&self, name: &str) -> Value {
        let place = table::place(name);
        if let Some(named) = self.0.get(&place) {
            return named.value.clone();
        }
        match ROWS[place].default {
            Preset::Is(text) => ROWS[place]
                .kind
                .read(&Raw::Scalar(text.to_owned()), Dialect::File)
                .expect("a test reads every default"),
            Preset::Derived(_) | Preset::None => Value::Absent,
        }
    }

    pub(super) fn bool(&self, name: &str) -> bool {
        matches!(self.value(name), Value::Bool(true))
    }

    /// A number or bytes; None when there is neither value nor default.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.value(name) {
            Value::Number(number) | Value::Bytes(number) => Some(number),
            _ => None,
        }
    }

    /// As `number`, where 0 means no limit.
    pub(super) fn above_zero(&self, name: &str) -> Option<u64> {
        self.number(name).filter(|&number| number > 0)
    }

    pub(super) fn choice(&self, name: &str) -> Option<usize> {
        match self.value(name) {
            Value::Choice(place) => Some(place),
            _ => None,
        }
    }

    /// A duration; None for `never` and for what has no default.
    pub(super) fn duration(&self, name: &str) -> Option<Duration> {
        match self.value(name) {
            Value::Duration(duration) => Some(duration),
            _ => None,
        }
    }

    pub(super) fn level(&self, name: &str) -> Option<Level> {
        match self.value(name) {
            Value::Level(level) => Some(level),
            _ => None,
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        match self.value(name) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        match self.value(name) {
            Value::Path(path) => Some(path),
            _ => None,
        }
    }

    pub(super) fn ip(&self, name: &str) -> Option<IpAddr> {
        match self.value(name) {
            Value::Ip(ip) => Some(ip),
            _ => None,
        }
    }

    /// A listener's address; None when it is off.
    pub(super) fn address(&self, name: &str) -> Option<Address> {
        match self.value(name) {
            Value::Address(address) => Some(address),
            _ => None,
        }
    }

    pub(super) fn addresses(&self, name: &str) -> Vec<Address> {
        match self.value(name) {
            Value::Addresses(addresses) => addresses,
            _ => Vec::new(),
        }
    }

    pub(super) fn cidrs(&self, name: &str) -> Vec<Cidr> {
        match self.value(name) {
            Value::Cidrs(cidrs) => cidrs,
            _ => Vec::new(),
        }
    }

    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Value::Texts(texts) => texts,
            _ => Vec::new(),
        }
    }

    pub(super) fn cpus(&self, name: &str) -> Option<Vec<usize>> {
        match self.value(name) {
            Value::Cpus(cpus) => Some(cpus),
            _ => None,
        }
    }

    pub(super) fn map(&self, name: &str) -> BTreeMap<String, String> {
        match self.value(name) {
            Value::Map(pairs) => pairs.into_iter().collect(),
            _ => BTreeMap::new(),
        }
    }

    pub(super) fn is_always(&self, name: &str) -> bool {
        self.value(name) == Value::Always
    }
}
