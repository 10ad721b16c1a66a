// SPDX-License-Identifier: Apache-2.0

//! The speed lines that the project promises, each with its command, its limit and whether it holds.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::args::{self, Args, Asked};
use crate::compare::{Field, Group, Plan};
use crate::load::Shape;
use crate::report::{Table, number, ratio};
use crate::scenario::Scenario;

/// What one figure of a line may be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    /// At most this share of the baseline's figure.
    Share(f64),
    /// At least this share of the baseline's figure.
    NoLessThan(f64),
    /// At least this share of the floor's figure.
    OfFloor(f64),
    AtMost(f64),
}

struct Line {
    name: &'static str,
    command: &'static str,
    /// Instead of the asked for rounds, except in a quick suite.
    rounds: Option<u32>,
    /// Only when asked for by name: it wants targets of its own.
    apart: bool,
    limits: &'static [(&'static str, Limit)],
}

/// A driver on glommio pays for its ring when nothing is batched.
const GLOMMIO_UNBATCHED: f64 = 0.85;

const LINES: &[Line] = &[
    Line {
        name: "p2p-qos0",
        command: "p2p --pairs=50 --window=64 --qos=0",
        rounds: None,
        apart: false,
        limits: &[("cpu_ns_per_message", Limit::Share(1.0 / 15.0))],
    },
    Line {
        name: "p2p-qos1",
        command: "p2p --pairs=50 --window=64 --qos=1",
        rounds: None,
        apart: false,
        limits: &[("cpu_ns_per_message", Limit::Share(1.0 / 20.0))],
    },
    Line {
        name: "p2p-qos2",
        command: "p2p --pairs=50 --window=64 --qos=2",
        rounds: None,
        apart: false,
        limits: &[("cpu_ns_per_message", Limit::Share(1.0 / 25.0))],
    },
    Line {
        name: "fan-out-50",
        command: "fan-out --subscribers=50 --window=64",
        rounds: None,
        apart: false,
        limits: &[("cpu_ns_per_message", Limit::Share(1.0 / 15.0))],
    },
    Line {
        name: "fan-in-50",
        command: "fan-in --publishers=50 --window=64",
        rounds: None,
        apart: false,
        limits: &[("cpu_ns_per_message", Limit::Share(1.0 / 12.0))],
    },
    Line {
        name: "shared-20",
        command: "shared --publishers=20 --members=20 --window=64 --qos=1",
        rounds: None,
        apart: false,
        limits: &[("cpu_ns_per_message", Limit::Share(1.0 / 20.0))],
    },
    Line {
        name: "unbatched",
        command: "p2p --pairs=100 --window=1",
        rounds: None,
        apart: false,
        limits: &[("cpu_ns_per_message", Limit::Share(0.80))],
    },
    Line {
        name: "fan-out-1000",
        command: "fan-out --subscribers=1000 --window=2",
        rounds: None,
        apart: false,
        limits: &[("cpu_ns_per_message", Limit::Share(0.6))],
    },
    Line {
        name: "open-loop",
        command: "p2p --pairs=50 --rate=20000",
        rounds: Some(9),
        apart: false,
        limits: &[("p99_us", Limit::Share(1.2))],
    },
    Line {
        name: "stresser",
        command: "stresser --num-clients=500 --num-messages=100",
        rounds: None,
        apart: false,
        limits: &[
            ("cpu_ms_per_run", Limit::Share(0.7)),
            ("receive_median_per_s", Limit::NoLessThan(1.0)),
        ],
    },
    Line {
        name: "connect",
        command: "connect --connects=10000 --concurrency=100",
        rounds: None,
        apart: false,
        limits: &[("cpu_us_per_connect", Limit::Share(1.2))],
    },
    Line {
        name: "idle",
        command: "idle --connections=10000 --watch=5",
        rounds: None,
        apart: false,
        limits: &[
            ("rss_bytes_per_connection", Limit::AtMost(1000.0)),
            ("idle_cpu_percent", Limit::AtMost(0.5)),
        ],
    },
    Line {
        name: "tls-p2p-qos0",
        command: "p2p --transport=tls --pairs=50 --window=64 --qos=0",
        rounds: None,
        apart: false,
        limits: &[("cpu_ns_per_message", Limit::Share(1.0 / 6.0))],
    },
    Line {
        name: "ws-p2p-qos0",
        command: "p2p --transport=ws --pairs=50 --window=64 --qos=0",
        rounds: None,
        apart: false,
        limits: &[("cpu_ns_per_message", Limit::Share(1.0 / 6.0))],
    },
    Line {
        name: "tls-connect",
        command: "connect --transport=tls --connects=10000 --concurrency=100 --resume=0",
        rounds: None,
        apart: false,
        limits: &[("connects_per_core_s", Limit::OfFloor(0.8))],
    },
    Line {
        name: "tls-resume",
        command: "connect --transport=tls --connects=10000 --concurrency=100 --resume=1",
        rounds: None,
        apart: false,
        limits: &[("connects_per_core_s", Limit::OfFloor(0.8))],
    },
    Line {
        name: "tls-idle",
        command: "idle --transport=tls --connections=10000 --watch=5",
        rounds: None,
        apart: false,
        limits: &[("rss_bytes_per_connection", Limit::AtMost(9.0 * 1024.0))],
    },
    // mosquitto looks after its WebSocket clients ten times a second: one after the other they would take an hour
    Line {
        name: "ws-idle",
        command: "idle --transport=ws --connections=10000 --opening=200 --watch=5",
        rounds: None,
        apart: false,
        limits: &[("rss_bytes_per_connection", Limit::AtMost(1.5 * 1024.0))],
    },
    // a broker with two shards against the same with one, half of the pairs crossing
    Line {
        name: "two-shards",
        command: "p2p --pairs=50 --window=64 --crossing=half",
        rounds: None,
        apart: true,
        limits: &[("cpu_ns_per_message", Limit::Share(1.5))],
    },
];

/// One judged figure of one target.
struct Verdict {
    line: &'static str,
    figure: &'static str,
    limit: Limit,
    target: usize,
    value: Option<f64>,
    /// Of the figure that the limit refers to, the baseline's or the floor's.
    share: Option<f64>,
    /// The baseline and the floor are shown, and who does not speak the line's transport is not.
    judged: bool,
    holds: bool,
}

pub(crate) struct Suite {
    names: Vec<String>,
    baseline: usize,
    floor: Option<usize>,
    pub(crate) groups: Vec<Group>,
    verdicts: Vec<Verdict>,
}

/// The lines with their commands and limits.
pub(crate) fn list() -> Table {
    let mut table = Table::new(3);
    for line in LINES {
        let limits = line
            .limits
            .iter()
            .map(|&(figure, limit)| format!("{figure} {}", limit.text()));
        let limits: Vec<String> = limits.collect();
        table.row([
            line.name.to_owned(),
            line.command.to_owned(),
            limits.join(", "),
        ]);
    }
    table
}

pub(crate) fn run(args: &Args, field: &Field) -> Result<Suite> {
    for name in &args.positional {
        ensure!(
            LINES.iter().any(|line| line.name == name),
            "the suite has no line {name:?}; see suite --list"
        );
    }
    let asked = |line: &&Line| match args.positional.as_slice() {
        [] => !line.apart,
        names => names.iter().any(|name| name == line.name),
    };
    let lines: Vec<&Line> = LINES.iter().filter(asked).collect();
    let baseline = field.position(args.text("baseline").unwrap_or_default())?;
    let floor = args
        .text("floor")
        .and_then(|name| field.position(name).ok());
    let quick = args.switch("quick");
    let seconds = if quick {
        "--warmup=0.5 --duration=1".to_owned()
    } else {
        format!(
            "--warmup={} --duration={}",
            args.number::<f64>("warmup")?,
            args.number::<f64>("duration")?
        )
    };
    let rounds = if quick && !args.is_given("rounds") {
        3
    } else {
        args.number("rounds")?
    };
    let mut plans = Vec::new();
    for line in &lines {
        let scenario = parse_line(line, &seconds, args.text("ca"))?;
        let of_target = |target: usize| {
            if !field.targets[target].speaks(scenario.transport()) {
                None
            } else if Some(target) == floor {
                for_floor(&scenario)
            } else {
                Some(scenario.clone())
            }
        };
        plans.push(Plan {
            name: line.name.into(),
            command: line.command.into(),
            rounds: line.rounds.filter(|_| !quick).unwrap_or(rounds),
            scenarios: (0..field.targets.len()).map(of_target).collect(),
        });
    }
    let groups = field.run(plans);
    let verdicts = lines
        .iter()
        .zip(&groups)
        .flat_map(|(line, group)| judge(line, group, field, baseline, floor));
    let verdicts = verdicts.collect();
    Ok(Suite {
        names: field.names(),
        baseline,
        floor,
        groups,
        verdicts,
    })
}

fn parse_line(line: &Line, seconds: &str, ca: Option<&str>) -> Result<Scenario> {
    let mut words: Vec<String> = line.command.split(' ').map(Into::into).collect();
    let name = words[0].clone();
    if matches!(name.as_str(), "p2p" | "fan-out" | "fan-in" | "shared") {
        words.extend(seconds.split(' ').map(Into::into));
    }
    words.extend(ca.map(|ca| format!("--ca={ca}")));
    match args::parse(words)? {
        Asked::Run(args) => Scenario::parse(&name, &args),
        Asked::Help(_) => bail!("the line {} asks for help", line.name),
    }
}

/// The same load as far as the bare relay can carry it.
fn for_floor(scenario: &Scenario) -> Option<Scenario> {
    let mut scenario = scenario.clone();
    if let Scenario::Load(load) = &mut scenario {
        match &mut load.shape {
            Shape::FanIn { exact, .. } => *exact = true,
            Shape::Shared { .. } => return None,
            Shape::Pairs { .. } | Shape::FanOut { .. } => {}
        }
        if load.publish_qos > 0 {
            return None;
        }
    }
    Some(scenario)
}

fn judge(
    line: &Line,
    group: &Group,
    field: &Field,
    baseline: usize,
    floor: Option<usize>,
) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for &(figure, limit) in line.limits {
        let reference = match limit {
            Limit::OfFloor(_) => floor,
            _ => Some(baseline),
        };
        let base = reference
            .and_then(|target| group.cells[target].median(figure))
            .filter(|base| *base > 0.0);
        for (target, cell) in group.cells.iter().enumerate() {
            let limit = match limit {
                Limit::Share(_)
                    if line.name == "unbatched"
                        && field.targets[target].name.contains("glommio") =>
                {
                    Limit::Share(GLOMMIO_UNBATCHED)
                }
                limit => limit,
            };
            let value = cell.median(figure);
            let share = value.zip(base).map(|(value, base)| value / base);
            let ran = !cell.runs.is_empty() || !cell.failures.is_empty();
            let judged = target != baseline && Some(target) != floor && ran;
            let holds = !judged || (cell.failures.is_empty() && limit.holds(value, share));
            verdicts.push(Verdict {
                line: line.name,
                figure,
                limit,
                target,
                value,
                share,
                judged,
                holds,
            });
        }
    }
    verdicts
}

impl Limit {
    fn holds(self, value: Option<f64>, share: Option<f64>) -> bool {
        match self {
            Self::Share(most) => share.is_some_and(|share| share <= most),
            Self::NoLessThan(least) | Self::OfFloor(least) => {
                share.is_some_and(|share| share >= least)
            }
            Self::AtMost(most) => value.is_some_and(|value| value <= most),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Share(most) => format!("<= {} of baseline", ratio(most)),
            Self::NoLessThan(least) => format!(">= {} of baseline", ratio(least)),
            Self::OfFloor(least) => format!(">= {} of floor", ratio(least)),
            Self::AtMost(most) => format!("<= {}", number(most)),
        }
    }
}

impl Suite {
    pub(crate) fn holds(&self) -> bool {
        let failed = |group: &Group| group.cells.iter().any(|cell| !cell.failures.is_empty());
        self.verdicts.iter().all(|verdict| verdict.holds) && !self.groups.iter().any(failed)
    }

    /// A row per line and figure: the limit, then value, share of the baseline and verdict of each target.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new(3);
        let head = ["line".to_owned(), "figure (median)".into(), "limit".into()];
        table.row(head.into_iter().chain(self.names.iter().cloned()));
        for row in self.verdicts.chunks(self.names.len()) {
            let first = &row[0];
            let cells = row.iter().map(|verdict| self.cell(verdict));
            let cells: Vec<String> = cells.collect();
            let head = [
                first.line.to_owned(),
                first.figure.to_owned(),
                self.limit_text(row),
            ];
            table.row(head.into_iter().chain(cells));
        }
        table
    }

    fn limit_text(&self, row: &[Verdict]) -> String {
        let mut texts: Vec<String> = Vec::new();
        for verdict in row.iter().filter(|verdict| verdict.judged) {
            let text = verdict.limit.text();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        texts.join(" / ").replace(" of baseline", "")
    }

    fn cell(&self, verdict: &Verdict) -> String {
        let Some(value) = verdict.value else {
            return "-".into();
        };
        let mut text = number(value);
        let reference = match verdict.limit {
            Limit::OfFloor(_) => self.floor,
            _ => Some(self.baseline),
        };
        if let Some(share) = verdict.share.filter(|_| Some(verdict.target) != reference) {
            text += &format!(" {}", ratio(share));
        }
        if verdict.judged {
            text += if verdict.holds { " ok" } else { " FAILS" };
        }
        text
    }

    pub(crate) fn verdicts_json(&self) -> Value {
        let verdicts = self.verdicts.iter().map(|verdict| {
            json!({
                "line": verdict.line,
                "figure": verdict.figure,
                "limit": verdict.limit.text(),
                "target": self.names[verdict.target],
                "value": verdict.value,
                "share_of_reference": verdict.share,
                "judged": verdict.judged,
                "holds": verdict.holds,
            })
        });
        verdicts.collect()
    }

    pub(crate) fn baseline(&self) -> usize {
        self.baseline
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_command_that_parses() {
        for line in LINES {
            assert!(
                parse_line(line, "--warmup=0 --duration=1", Some("ca.pem")).is_ok(),
                "{}",
                line.name
            );
        }
    }

    #[test]
    fn the_floor_gets_what_it_can_carry() {
        let floor = |name: &str| {
            let line = LINES
                .iter()
                .find(|line| line.name == name)
                .expect("a line of the suite");
            for_floor(&parse_line(line, "--warmup=0 --duration=1", None).expect("parses"))
        };
        assert!(floor("p2p-qos0").is_some());
        assert!(floor("p2p-qos1").is_none());
        assert!(floor("shared-20").is_none());
        let Some(Scenario::Load(load)) = floor("fan-in-50") else {
            panic!("the relay carries fan-in")
        };
        assert_eq!(
            load.shape,
            Shape::FanIn {
                publishers: 50,
                exact: true
            }
        );
    }

    #[test]
    fn a_limit_needs_a_value_to_hold() {
        assert!(Limit::Share(0.5).holds(Some(10.0), Some(0.5)));
        assert!(!Limit::Share(0.5).holds(Some(10.0), Some(0.51)));
        assert!(!Limit::Share(0.5).holds(Some(10.0), None));
        assert!(Limit::NoLessThan(1.0).holds(None, Some(1.0)));
        assert!(Limit::OfFloor(0.8).holds(Some(1.0), Some(0.8)));
        assert!(!Limit::OfFloor(0.8).holds(Some(1.0), None));
        assert!(Limit::AtMost(1000.0).holds(Some(999.0), None));
        assert!(!Limit::AtMost(1000.0).holds(None, None));
    }
}
