// SPDX-License-Identifier: Apache-2.0

//! Scenarios against targets: side by side, interleaved, in rounds, so that a slow minute of the machine hits all.

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::report::Progress;
use crate::scenario::{Figures, Scenario};
use crate::stats;
use crate::target::{Running, Target, pin};

/// One scenario to run, for each target or not at all.
pub(crate) struct Plan {
    pub(crate) name: String,
    /// How to run it alone.
    pub(crate) command: String,
    pub(crate) rounds: u32,
    /// One per target; `None` where the target cannot do it.
    pub(crate) scenarios: Vec<Option<Scenario>>,
}

/// The runs of one scenario, a cell per target.
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) command: String,
    pub(crate) cells: Vec<Cell>,
}

#[derive(Default)]
pub(crate) struct Cell {
    pub(crate) runs: Vec<Figures>,
    pub(crate) failures: Vec<String>,
}

impl Cell {
    pub(crate) fn median(&self, figure: &str) -> Option<f64> {
        let values: Vec<f64> = self
            .runs
            .iter()
            .filter_map(|run| run.value(figure))
            .collect();
        stats::median(&values)
    }
}

/// The targets that the flags name, and where everything is pinned.
pub(crate) struct Field {
    pub(crate) targets: Vec<Target>,
    broker_cpus: Vec<usize>,
}

impl Field {
    /// Also pins the calling thread, the generator.
    pub(crate) fn parse(args: &Args) -> Result<Self> {
        let mut targets = Vec::new();
        for text in args.all("target") {
            targets.push(Target::parse_running(text)?);
        }
        for text in args.all("spawn") {
            targets.push(Target::parse_spawned(text)?);
        }
        if let Some(url) = args.text("broker") {
            targets.push(Target::parse_running(&crate::scenario::parse_url(url)?)?);
        }
        if targets.is_empty() {
            bail!("name a broker with --target=name=host:port[,pid=PID] or --spawn=name=COMMAND");
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        // the defaults want two CPUs; on one there is nothing to keep apart
        let wanted = |name| {
            if cpus < 2 && !args.is_given(name) {
                Ok(Vec::new())
            } else {
                args.cpus(name)
            }
        };
        let broker_cpus = wanted("broker-cpu")?;
        pin(&wanted("cpu")?)?;
        Ok(Self {
            targets,
            broker_cpus,
        })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.targets
            .iter()
            .map(|target| target.name.clone())
            .collect()
    }

    /// A line per target: its name and what runs there.
    pub(crate) fn describe(&self) -> Vec<String> {
        self.targets
            .iter()
            .map(|target| format!("{}: {}", target.name, target.describe()))
            .collect()
    }

    pub(crate) fn position(&self, name: &str) -> Result<usize> {
        let found = self.targets.iter().position(|target| target.name == name);
        found.with_context(|| format!("no target is named {name}"))
    }

    /// The one target that there must be, started where it is ours to start.
    pub(crate) fn start_one(&self) -> Result<Running> {
        let [target] = self.targets.as_slice() else {
            bail!("name one broker, not {}", self.targets.len());
        };
        target.start(&self.broker_cpus)
    }

    /// Runs all plans, a round over all targets at a time. A failed run is noted and the next one begins.
    pub(crate) fn run(&self, plans: Vec<Plan>) -> Vec<Group> {
        let runs = |plan: &Plan| plan.rounds as usize * plan.scenarios.iter().flatten().count();
        let mut progress = Progress::new(plans.iter().map(runs).sum());
        let mut groups = Vec::new();
        for plan in plans {
            let mut cells: Vec<Cell> = self.targets.iter().map(|_| Cell::default()).collect();
            for round in 1..=plan.rounds {
                for ((target, scenario), cell) in
                    self.targets.iter().zip(&plan.scenarios).zip(&mut cells)
                {
                    let Some(scenario) = scenario else { continue };
                    progress.begin(&format!(
                        "{} {} round {round} of {}",
                        plan.name, target.name, plan.rounds
                    ));
                    match target
                        .start(&self.broker_cpus)
                        .and_then(|running| scenario.run(&running.endpoint))
                    {
                        Ok(mut figures) => {
                            cell.failures.append(&mut figures.failures);
                            cell.runs.push(figures);
                        }
                        Err(error) => cell.failures.push(format!("{error:#}")),
                    }
                    progress.end();
                }
            }
            groups.push(Group {
                name: plan.name,
                command: plan.command,
                cells,
            });
        }
        groups
    }
}
