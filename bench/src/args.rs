// SPDX-License-Identifier: Apache-2.0

//! The command line: commands, their flags with default and help, and what was given.
//!
//! Takes `--name=value`, `--name value` and one dash as well as two.

use std::collections::HashMap;
use std::fmt::{Display, Write};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

pub(crate) struct Flag {
    name: &'static str,
    /// What stands for the value in the help; empty for a switch.
    value: &'static str,
    default: &'static str,
    help: &'static str,
}

const fn flag(
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Flag {
    Flag {
        name,
        value,
        default,
        help,
    }
}

pub(crate) struct Command {
    pub(crate) name: &'static str,
    about: &'static str,
    /// What stands for positional arguments in the help; empty where there are none.
    positional: &'static str,
    flags: &'static [&'static [Flag]],
}

const TARGETS: &[Flag] = &[
    flag(
        "target",
        "name=host:port[,tls:PORT][,ws:PORT][,wss:PORT][,pid=PID]",
        "",
        "a broker that runs already and its ports; with its pid, CPU and memory are read",
    ),
    flag(
        "spawn",
        "name[@host:port[,tls:PORT][,ws:PORT][,wss:PORT]]=COMMAND",
        "",
        "a broker to start for each run and to end after it; {port} in COMMAND becomes a free port, {port.tls}, {port.ws} and {port.wss} one more for that transport, {self} this binary",
    ),
    flag(
        "ca",
        "FILE",
        "",
        "PEM file with the CA that signed the brokers' certificates, which must be valid for localhost",
    ),
    flag(
        "broker-cpu",
        "LIST",
        "0",
        "CPUs that a started broker is pinned to, `none` for no pinning",
    ),
    flag(
        "cpu",
        "LIST",
        "1",
        "CPUs that the generator is pinned to, `none` for no pinning",
    ),
    flag(
        "json",
        "FILE",
        "",
        "write all runs and their medians to this file",
    ),
];
const TRANSPORT: &[Flag] = &[flag(
    "transport",
    "tcp|tls|ws|wss",
    "tcp",
    "what the clients speak MQTT over",
)];
const PROTOCOL: &[Flag] = &[flag("protocol", "4|5", "4", "MQTT 3.1.1 or 5.0")];
const LOAD: &[Flag] = &[
    flag(
        "window",
        "N",
        "64",
        "closed loop: messages in flight per publisher, end to end",
    ),
    flag(
        "rate",
        "N",
        "",
        "open loop: messages per second over all publishers; latency from the intended send time",
    ),
    flag(
        "qos",
        "0|1|2",
        "0",
        "quality of service of publishers and subscribers",
    ),
    flag(
        "sub-qos",
        "0|1|2",
        "",
        "quality of service of subscribers, where it differs",
    ),
    flag(
        "persistent",
        "",
        "",
        "subscribers have sessions that survive their connection",
    ),
    flag(
        "away",
        "",
        "",
        "subscribers with such sessions are gone while it is published, and come back for all of it at the end; a message counts when it is acknowledged",
    ),
    flag(
        "payload",
        "BYTES",
        "64",
        "size of the payload, sequence number and time stamp (24 bytes) included",
    ),
    flag(
        "stall",
        "SECONDS",
        "5",
        "give a run up when nothing has arrived for this long",
    ),
];
const TIMES: &[Flag] = &[
    flag("warmup", "SECONDS", "1", "load before the measured window"),
    flag("duration", "SECONDS", "3", "the measured window"),
];
const ROUNDS: &[Flag] = &[flag(
    "rounds",
    "N",
    "1",
    "runs per target, interleaved; medians are compared",
)];
const SHAPES: &[Flag] = &[
    flag(
        "pairs",
        "N",
        "50",
        "p2p: publishers, each with its own topic and subscriber",
    ),
    flag(
        "crossing",
        "half|none",
        "half",
        "p2p: `half` makes two clients of each pair, which hash to different ones of two shards in half of the cases; \
         `none` makes them one client",
    ),
    flag(
        "publishers",
        "N",
        "50",
        "fan-in: publishers; shared: the default is 20",
    ),
    flag("subscribers", "N", "50", "fan-out: subscribers"),
    flag("members", "N", "20", "shared: members of the group"),
    flag(
        "filters",
        "wildcard|exact",
        "wildcard",
        "fan-in: one wildcard filter or one exact filter per publisher",
    ),
];
const CONNECT: &[Flag] = &[
    flag(
        "connects",
        "N",
        "10000",
        "connect: how many connections to make, greet and end",
    ),
    flag(
        "concurrency",
        "N",
        "",
        "connect: how many at once at most; 100 where there is no rate, 10000 where there is one",
    ),
    flag(
        "connect-rate",
        "N",
        "",
        "connect: open loop: connections per second; latency from the intended time",
    ),
    flag(
        "resume",
        "SHARE",
        "0",
        "connect: share of the connections that resume a TLS session, from 0 to 1",
    ),
];
const IDLE: &[Flag] = &[
    flag(
        "connections",
        "N",
        "10000",
        "idle: connections, each with one subscription",
    ),
    flag(
        "opening",
        "N",
        "1",
        "idle: how many connections to open at once",
    ),
    flag(
        "watch",
        "SECONDS",
        "5",
        "idle: how long to watch the CPU time of the idle broker",
    ),
];
const RETAINED: &[Flag] = &[
    flag(
        "topics",
        "N",
        "100000",
        "retained: retained messages, one per topic",
    ),
    flag(
        "updates",
        "N",
        "1000",
        "retained: retained messages per second that are replaced while the subscriber joins",
    ),
    flag(
        "join-qos",
        "0|1",
        "1",
        "retained: quality of service of the subscription; a broker may shed updates with 0",
    ),
    flag(
        "join-payload",
        "BYTES",
        "64",
        "retained: size of each payload",
    ),
];
const PROBE: &[Flag] = &[
    flag("probe-rate", "N", "1000", "messages per second"),
    flag(
        "seconds",
        "SECONDS",
        "5",
        "how long to send; a quiet run of disturb",
    ),
    flag(
        "nice",
        "N",
        "-10",
        "the priority it asks for; goes on without where that is denied",
    ),
];
const STRESSER: &[Flag] = &[
    flag(
        "num-clients",
        "N",
        "500",
        "stresser: clients, each a publisher and a subscriber of its own topic",
    ),
    flag(
        "num-messages",
        "N",
        "100",
        "stresser: messages per client, one write each",
    ),
    flag(
        "broker",
        "URL",
        "",
        "stresser: short for --target=broker=host:port, as tcp://host:port",
    ),
];

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        name: "p2p",
        about: "publishers with one subscriber each",
        positional: "",
        flags: &[SHAPES, LOAD, TIMES, PROTOCOL, TRANSPORT, ROUNDS, TARGETS],
    },
    Command {
        name: "fan-out",
        about: "one publisher, many subscribers",
        positional: "",
        flags: &[SHAPES, LOAD, TIMES, PROTOCOL, TRANSPORT, ROUNDS, TARGETS],
    },
    Command {
        name: "fan-in",
        about: "many publishers, one subscriber",
        positional: "",
        flags: &[SHAPES, LOAD, TIMES, PROTOCOL, TRANSPORT, ROUNDS, TARGETS],
    },
    Command {
        name: "shared",
        about: "many publishers, one shared group",
        positional: "",
        flags: &[SHAPES, LOAD, TIMES, PROTOCOL, TRANSPORT, ROUNDS, TARGETS],
    },
    Command {
        name: "connect",
        about: "a storm of CONNECT, CONNACK, DISCONNECT",
        positional: "",
        flags: &[CONNECT, PROTOCOL, TRANSPORT, ROUNDS, TARGETS],
    },
    Command {
        name: "idle",
        about: "what idle connections cost: memory each, CPU of all",
        positional: "",
        flags: &[IDLE, PROTOCOL, TRANSPORT, ROUNDS, TARGETS],
    },
    Command {
        name: "retained",
        about: "a subscriber of # joins many retained messages while they are replaced",
        positional: "",
        flags: &[RETAINED, PROTOCOL, TRANSPORT, ROUNDS, TARGETS],
    },
    Command {
        name: "stresser",
        about: "what mqtt-stresser does, with its report",
        positional: "",
        flags: &[STRESSER, TRANSPORT, ROUNDS, TARGETS],
    },
    Command {
        name: "compare",
        about: "several scenarios, several targets, interleaved; medians side by side",
        positional: "SCENARIO...",
        flags: &[
            &[
                flag(
                    "rounds",
                    "N",
                    "5",
                    "runs per scenario and target, interleaved",
                ),
                flag(
                    "baseline",
                    "NAME",
                    "",
                    "the target that ratios refer to; the first one otherwise",
                ),
            ],
            SHAPES,
            LOAD,
            TIMES,
            CONNECT,
            IDLE,
            RETAINED,
            STRESSER,
            PROTOCOL,
            TRANSPORT,
            TARGETS,
        ],
    },
    Command {
        name: "suite",
        about: "the project's speed lines with their limits; fails when one does not hold",
        positional: "[LINE...]",
        flags: &[
            &[
                flag(
                    "rounds",
                    "N",
                    "5",
                    "runs per line and target, interleaved (open loop: nine)",
                ),
                flag("quick", "", "", "runs of one second, three rounds"),
                flag(
                    "baseline",
                    "NAME",
                    "mosquitto",
                    "the target that ratios refer to",
                ),
                flag(
                    "floor",
                    "NAME",
                    "relay",
                    "a target that is shown and not judged: QoS 0, exact filters only; TLS handshakes refer to it",
                ),
                flag(
                    "list",
                    "",
                    "",
                    "print the lines with their limits and run nothing",
                ),
            ],
            TIMES,
            TARGETS,
        ],
    },
    Command {
        name: "probe",
        about: "an open loop through one broker, a process of its own; prints its latencies as JSON",
        positional: "",
        flags: &[
            PROBE,
            &[flag(
                "attended",
                "",
                "",
                "print `ready` when connected, begin at a line on stdin and end with stdin instead of the time",
            )],
            PROTOCOL,
            TRANSPORT,
            TARGETS,
        ],
    },
    Command {
        name: "disturb",
        about: "the probe alone and beside a load, alternately; fails when the load lifts its p99 too far",
        positional: "",
        flags: &[
            &[
                flag(
                    "load",
                    "COMMAND",
                    "",
                    "the load, a shell command; {host}, {port}, {port.tls}, {port.ws}, {port.wss}, {pid} and {self} are filled in",
                ),
                flag(
                    "from",
                    "TEXT",
                    "",
                    "the probe begins with the load's first line of output that holds this, otherwise with the load",
                ),
                flag(
                    "until",
                    "TEXT",
                    "",
                    "it ends with the first line that holds this, otherwise with the load",
                ),
                flag(
                    "at-most",
                    "SECONDS",
                    "60",
                    "a load that runs longer than this is ended",
                ),
                flag("rounds", "N", "9", "quiet and loaded runs each"),
            ],
            PROBE,
            PROTOCOL,
            TRANSPORT,
            TARGETS,
        ],
    },
    Command {
        name: "fsync",
        about: "what the disk does by itself: writes with an fdatasync each, as JSON",
        positional: "DIR",
        flags: &[&[
            flag("bytes", "N", "4096", "of each write"),
            flag("seconds", "SECONDS", "3", "how long"),
        ]],
    },
    Command {
        name: "certificates",
        about: "make a CA, a server's and a client's certificate (ECDSA P-256) for the brokers of a bench",
        positional: "DIR",
        flags: &[],
    },
    Command {
        name: "relay",
        about: "the bare relay that is the floor: QoS 0, exact topics, no sessions; with TLS the bare rustls loop",
        positional: "",
        flags: &[&[
            flag("listen", "host:port", "127.0.0.1:1883", "where to listen"),
            flag("tls", "host:port", "", "where to listen for TLS"),
            flag(
                "server-cert",
                "FILE",
                "",
                "PEM file with the certificate for TLS",
            ),
            flag("server-key", "FILE", "", "PEM file with its key"),
            flag("cpu", "LIST", "none", "CPUs to be pinned to"),
        ]],
    },
];

/// What was given for one command.
pub(crate) struct Args {
    pub(crate) command: &'static Command,
    pub(crate) positional: Vec<String>,
    given: HashMap<&'static str, Vec<String>>,
}

pub(crate) enum Asked {
    Run(Args),
    Help(String),
}

pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Asked> {
    let mut words = words.into_iter();
    let Some(name) = words.next() else {
        return Ok(Asked::Help(overview()));
    };
    if matches!(name.trim_start_matches('-'), "help" | "h") {
        return Ok(Asked::Help(overview()));
    }
    let command = COMMANDS.iter().find(|command| command.name == name);
    let command =
        command.with_context(|| format!("there is no command {name:?}\n\n{}", overview()))?;
    let mut args = Args {
        command,
        positional: Vec::new(),
        given: HashMap::new(),
    };
    while let Some(word) = words.next() {
        let Some(rest) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            if command.positional.is_empty() {
                bail!("{name} takes no argument {word:?}");
            }
            args.positional.push(word);
            continue;
        };
        let (key, value) = match rest.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (rest, None),
        };
        if matches!(key, "help" | "h") {
            return Ok(Asked::Help(command.help()));
        }
        let flag = command
            .flag(key)
            .with_context(|| format!("{name} has no flag --{key}; see {name} --help"))?;
        let value = match value {
            Some(value) => value,
            None if flag.value.is_empty() => "true".into(),
            None => words
                .next()
                .with_context(|| format!("--{key} wants a value: {}", flag.value))?,
        };
        args.given.entry(flag.name).or_default().push(value);
    }
    Ok(Asked::Run(args))
}

impl Args {
    pub(crate) fn all(&self, name: &str) -> &[String] {
        self.given.get(name).map_or(&[], Vec::as_slice)
    }

    /// The last value given, or the default; `None` where neither is.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let default = || {
            self.command
                .flag(name)
                .map(|flag| flag.default)
                .filter(|default| !default.is_empty())
        };
        self.all(name).last().map(String::as_str).or_else(default)
    }

    pub(crate) fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    pub(crate) fn switch(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| value != "false")
    }

    pub(crate) fn number<T: FromStr<Err: Display>>(&self, name: &str) -> Result<T> {
        self.optional(name)?
            .with_context(|| format!("--{name} is missing"))
    }

    pub(crate) fn optional<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|error| anyhow!("--{name}={text}: {error}"))
    }

    /// CPUs as `0`, `0,2-3` or `none`.
    pub(crate) fn cpus(&self, name: &str) -> Result<Vec<usize>> {
        let text = self.text(name).unwrap_or("none");
        if text == "none" {
            return Ok(Vec::new());
        }
        let form = || format!("--{name}={text}: a list of CPUs is written 0,2-3");
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            cpus.extend(
                first.parse::<usize>().with_context(form)?..=last.parse().with_context(form)?,
            );
        }
        Ok(cpus)
    }
}

impl Command {
    fn flag(&self, name: &str) -> Option<&'static Flag> {
        self.flags
            .iter()
            .copied()
            .flatten()
            .find(|flag| flag.name == name)
    }

    fn help(&self) -> String {
        let mut help = format!("corqtt-bench {}: {}\n\n", self.name, self.about);
        let _ = writeln!(
            help,
            "Usage: corqtt-bench {} {}[--flag=value ...]\n",
            self.name,
            match self.positional {
                "" => String::new(),
                positional => format!("{positional} "),
            }
        );
        for flag in self.flags.iter().copied().flatten() {
            let value = if flag.value.is_empty() {
                String::new()
            } else {
                format!("={}", flag.value)
            };
            let default = if flag.default.is_empty() {
                String::new()
            } else {
                format!(" (default {})", flag.default)
            };
            let _ = writeln!(
                help,
                "  --{}{value}\n        {}{default}",
                flag.name, flag.help
            );
        }
        help
    }
}

fn overview() -> String {
    let mut help = String::from(
        "corqtt-bench: load for MQTT brokers, verified while it runs\n\n\
         Every run checks loss, duplicates and order by sequence numbers and fails when they are not right.\n\
         A message is one delivery to one subscriber. Broker CPU is user and system time of all its threads.\n\n\
         Usage: corqtt-bench COMMAND [--flag=value ...]; corqtt-bench COMMAND --help\n\n",
    );
    for command in COMMANDS {
        let _ = writeln!(help, "  {:<12} {}", command.name, command.about);
    }
    help
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Result<Args> {
        match parse(words.iter().map(|word| (*word).to_owned()))? {
            Asked::Run(args) => Ok(args),
            Asked::Help(help) => bail!(help),
        }
    }

    #[test]
    fn every_way_to_write_a_flag_is_taken() {
        let args = args(&[
            "p2p",
            "--pairs=7",
            "-window",
            "8",
            "--persistent",
            "--target=a=h:1",
            "--target",
            "b=h:2",
        ]);
        let args = args.expect("well formed");
        assert_eq!(args.number::<u32>("pairs").expect("a number"), 7);
        assert_eq!(args.number::<u32>("window").expect("a number"), 8);
        assert_eq!(args.number::<u32>("payload").expect("the default"), 64);
        assert_eq!(args.optional::<f64>("rate").expect("absent"), None);
        assert!(args.switch("persistent"));
        assert_eq!(args.all("target"), ["a=h:1", "b=h:2"]);
    }

    #[test]
    fn what_is_unknown_is_refused() {
        assert!(args(&["p2p", "--paris=7"]).is_err());
        assert!(args(&["p2q"]).is_err());
        assert!(args(&["p2p", "stray"]).is_err());
        assert!(args(&["p2p", "--pairs"]).is_err());
        assert!(
            args(&["p2p", "--pairs=x"])
                .expect("checked when read")
                .number::<u32>("pairs")
                .is_err()
        );
    }

    #[test]
    fn cpus_are_lists_and_ranges() {
        let cpus = |list: &str| {
            args(&["p2p", "--cpu", list])
                .expect("well formed")
                .cpus("cpu")
        };
        assert_eq!(cpus("0").expect("a list"), [0]);
        assert_eq!(cpus("0,2-4").expect("a list"), [0, 2, 3, 4]);
        assert!(cpus("none").expect("a list").is_empty());
        assert!(cpus("a").is_err());
    }

    #[test]
    fn every_command_has_help_that_names_its_flags() {
        for command in COMMANDS {
            let help = command.help();
            assert!(
                command
                    .flags
                    .iter()
                    .copied()
                    .flatten()
                    .all(|flag| help.contains(flag.name)),
                "{}",
                command.name
            );
        }
    }
}
