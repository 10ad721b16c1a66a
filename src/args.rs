// SPDX-License-Identifier: Apache-2.0
//! The command line: every form in which comqtt's users write flags, brought to one form for the parser.
//!
//! `--x=y`, `--x y`, `-x=y` and `-x y` mean the same. A switch may stand alone, with `=value`, or before a word that
//! can only be its value. What a flag means and takes is in the table of settings; here are only names and texts.

use std::ffi::OsString;
use std::fmt;

use argh::FromArgs;

use crate::settings::{self, nearest};

/// A command line that was understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    pub help: bool,
    pub version: bool,
    /// Read the settings, report and exit.
    pub check: bool,
    /// Do something with a store that no broker uses, and exit.
    pub store: Option<StoreCommand>,
    /// Flags without dashes, in a fixed order, with the text that was given. Of a repeated flag the last.
    pub(crate) flags: Vec<(&'static str, String)>,
}

/// What `corqtt store` is to do; the flags behind it say which store that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreCommand {
    /// Reads every row and reports what is wrong.
    Check,
    /// Writes every row as a line of text.
    Dump,
    /// Reads what [`StoreCommand::Dump`] wrote to this file into an empty store; `-`: from standard input.
    Load(String),
    /// Gives back what deleted rows took.
    Compact,
}

/// A command line that was not. Exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// The struct that argh fills: all flags are texts here, the table of settings knows their kinds.
macro_rules! flags {
    ($($field:ident)+) => {
        /// A clustered MQTT broker.
        #[derive(FromArgs)]
        struct Flags {
            #[argh(switch)]
            version: bool,
            #[argh(switch)]
            check: bool,
            $(#[argh(option)] $field: Vec<String>,)+
        }

        impl Flags {
            fn into_args(self, help: bool) -> Args {
                let mut flags = Vec::new();
                $(if let Some(value) = self.$field.into_iter().last() {
                    flags.push((settings::flag_of_field(stringify!($field)), value));
                })+
                Args { help, version: self.version, check: self.check, store: None, flags }
            }
        }

        #[cfg(test)]
        const FIELDS: &[&str] = &[$(stringify!($field)),+];
    };
}

flags! {
    conf shards cpus runtime leave storage_way storage_path storage_sync auth_way auth_ds auth_path
    tcp ws http quic tls wss unix
    node_name bind_ip gossip_port advertise_ip raft_port peer_port members raft_dir raft_bootstrap
    cluster_secret_file server_reference grpc_enable grpc_port
    redis redis_user redis_pass redis_db
    log_enable level env log_file info_file error_file
}

/// Reads a command line, the program's name left out.
///
/// # Errors
///
/// For an unknown flag, a missing value or a word that is no flag.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, UsageError> {
    let words = words
        .into_iter()
        .map(|word| {
            word.into_string()
                .map_err(|word| UsageError(format!("{} is not UTF-8", word.display())))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (store, words) = store_command(&words)?;
    let (words, help) = normalise(words)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let flags = Flags::from_args(&["corqtt"], &words)
        .map_err(|exit| UsageError(exit.output.trim_end().to_owned()))?;
    Ok(Args {
        store,
        ..flags.into_args(help)
    })
}

/// The command that a command line begins with, and the words behind it.
fn store_command(words: &[String]) -> Result<(Option<StoreCommand>, &[String]), UsageError> {
    let Some(("store", words)) = words
        .split_first()
        .map(|(word, rest)| (word.as_str(), rest))
    else {
        return Ok((None, words));
    };
    let usage = || {
        UsageError("corqtt store takes check, dump, load FILE or compact, and then flags".into())
    };
    let (what, words) = words.split_first().ok_or_else(usage)?;
    let command = match what.as_str() {
        "check" => StoreCommand::Check,
        "dump" => StoreCommand::Dump,
        "compact" => StoreCommand::Compact,
        "load" => {
            let (file, words) = words.split_first().ok_or_else(usage)?;
            return Ok((Some(StoreCommand::Load(file.clone())), words));
        }
        _ => return Err(usage()),
    };
    Ok((Some(command), words))
}

/// Brings every form of a flag to `--flag value`, or to `--flag` for the ones that act at once. `--help` is taken out:
/// argh would answer it itself, but the text is made from the table.
fn normalise(words: &[String]) -> Result<(Vec<String>, bool), UsageError> {
    let mut normal = Vec::with_capacity(words.len() + 8);
    let mut help = false;
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        let Some(body) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            return Err(UsageError(format!(
                "unexpected word {word:?}; flags start with a dash, corqtt --help lists them"
            )));
        };
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        let name = if name == "h" { "help" } else { name };
        if settings::is_action(name) {
            match value.map_or(Some(true), settings::read_bool) {
                Some(true) if name == "help" => help = true,
                Some(true) => normal.push(format!("--{name}")),
                Some(false) => {}
                None => return Err(UsageError(format!("--{name} takes no value"))),
            }
            continue;
        }
        let Some(switch) = settings::flag_is_switch(name) else {
            return Err(unknown(name));
        };
        let value = match value {
            Some(value) => value,
            None if switch => match words.peek() {
                Some(next) if settings::is_switch_value(next) => words.next().unwrap_or("true"),
                _ => "true",
            },
            None => words
                .next()
                .ok_or_else(|| UsageError(format!("--{name} needs a value")))?,
        };
        normal.push(format!("--{name}"));
        normal.push(value.to_owned());
    }
    Ok((normal, help))
}

fn unknown(name: &str) -> UsageError {
    let mut text = format!("unknown flag --{}", name.escape_debug());
    if let Some((near, _)) = nearest(name, settings::flags()) {
        text.push_str(&format!("; the nearest known flag is --{near}"));
    }
    UsageError(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Args, String> {
        parse(words.iter().map(OsString::from)).map_err(|error| error.to_string())
    }

    fn flags(words: &[&str]) -> Vec<(&'static str, String)> {
        read(words).expect("the words are flags").flags
    }

    fn pairs(pairs: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        pairs
            .iter()
            .map(|&(flag, value)| (flag, value.to_owned()))
            .collect()
    }

    #[test]
    fn every_form_of_a_flag_means_the_same() {
        for words in [
            &["--tcp=:1884"][..],
            &["--tcp", ":1884"],
            &["-tcp=:1884"],
            &["-tcp", ":1884"],
        ] {
            assert_eq!(flags(words), pairs(&[("tcp", ":1884")]), "{words:?}");
        }
    }

    #[test]
    fn switches_stand_alone_or_with_a_value() {
        type Flag = (&'static str, &'static str);
        let table: &[(&[&str], &[Flag])] = &[
            (&["--raft-bootstrap"], &[("raft-bootstrap", "true")]),
            (&["--raft-bootstrap=true"], &[("raft-bootstrap", "true")]),
            (&["--raft-bootstrap=force"], &[("raft-bootstrap", "force")]),
            (
                &["--raft-bootstrap", "force"],
                &[("raft-bootstrap", "force")],
            ),
            (
                &["-raft-bootstrap", "--tcp=:1"],
                &[("tcp", ":1"), ("raft-bootstrap", "true")],
            ),
            (&["--log-enable=false"], &[("log-enable", "false")]),
            (&["--log-enable", "false"], &[("log-enable", "false")]),
            (&["--log-enable"], &[("log-enable", "true")]),
            (&["--log-enable="], &[("log-enable", "")]),
        ];
        for &(words, expected) in table {
            assert_eq!(flags(words), pairs(expected), "{words:?}");
        }
    }

    #[test]
    fn the_last_of_a_repeated_flag_holds() {
        assert_eq!(
            flags(&["--level=0", "--level", "3"]),
            pairs(&[("level", "3")])
        );
    }

    #[test]
    fn a_value_may_look_like_a_flag() {
        assert_eq!(flags(&["--level", "-4"]), pairs(&[("level", "-4")]));
        assert_eq!(
            flags(&["--redis-pass", "--help"]),
            pairs(&[("redis-pass", "--help")])
        );
        assert_eq!(
            flags(&["--redis-pass=a=b"]),
            pairs(&[("redis-pass", "a=b")])
        );
    }

    #[test]
    fn a_command_for_the_store_comes_before_the_flags() {
        let table: &[(&[&str], StoreCommand)] = &[
            (&["store", "check", "--storage-way=2"], StoreCommand::Check),
            (&["store", "dump", "--storage-way=2"], StoreCommand::Dump),
            (
                &["store", "load", "-", "--storage-way", "2"],
                StoreCommand::Load("-".to_owned()),
            ),
            (
                &["store", "compact", "-storage-way=2"],
                StoreCommand::Compact,
            ),
        ];
        for (words, command) in table {
            let args = read(words).expect("a command");
            assert_eq!(args.store.as_ref(), Some(command), "{words:?}");
            assert_eq!(args.flags, pairs(&[("storage-way", "2")]), "{words:?}");
        }
        for words in [&["store"][..], &["store", "chek"], &["store", "load"]] {
            let error = read(words).expect_err("no command");
            assert!(
                error.starts_with("corqtt store takes check, dump"),
                "{words:?}"
            );
        }
        assert!(read(&["--tcp=:1", "store", "check"]).is_err());
    }

    #[test]
    fn flags_that_act_at_once() {
        assert!(read(&["--help"]).is_ok_and(|args| args.help));
        assert!(read(&["-h"]).is_ok_and(|args| args.help));
        assert!(read(&["-version"]).is_ok_and(|args| args.version));
        assert!(
            read(&["--check", "--tcp=:1"]).is_ok_and(|args| args.check && args.flags.len() == 1)
        );
        assert!(read(&["--check=false"]).is_ok_and(|args| !args.check));
        assert_eq!(
            read(&["--check=maybe"]),
            Err("--check takes no value".into())
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table: &[(&[&str], &str)] = &[
            (
                &["--tpc=:1"],
                "unknown flag --tpc; the nearest known flag is --tcp",
            ),
            (
                &["-storage_way", "1"],
                "unknown flag --storage_way; the nearest known flag is --storage-way",
            ),
            (
                &["--chek"],
                "unknown flag --chek; the nearest known flag is --check",
            ),
            (&["--tcp"], "--tcp needs a value"),
            (
                &["start"],
                "unexpected word \"start\"; flags start with a dash, corqtt --help lists them",
            ),
            (
                &["help"],
                "unexpected word \"help\"; flags start with a dash, corqtt --help lists them",
            ),
        ];
        for &(words, expected) in table {
            assert_eq!(read(words), Err(expected.to_owned()), "{words:?}");
        }
    }

    #[test]
    fn the_parser_knows_exactly_the_flags_of_the_table() {
        let mut fields: Vec<String> = FIELDS.iter().map(|field| field.replace('_', "-")).collect();
        let mut table: Vec<String> = settings::flags()
            .filter(|flag| !settings::is_action(flag))
            .map(str::to_owned)
            .collect();
        fields.sort();
        table.sort();
        assert_eq!(fields, table);
    }

    #[test]
    fn a_word_that_is_not_utf8_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let error = parse([OsString::from_vec(vec![b'-', 0xff])]).expect_err("not UTF-8");
        assert!(error.to_string().ends_with("is not UTF-8"));
    }
}
