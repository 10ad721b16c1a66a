// SPDX-License-Identifier: Apache-2.0

//! What the user sees: tables on stdout, a progress bar on stderr, JSON in a file.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::compare::{Cell, Group};

/// Columns as wide as their widest cell; the first ones to the left, the others to the right.
pub(crate) struct Table {
    left: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(left: usize) -> Self {
        Self {
            left,
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let gap = if column == 0 { "" } else { "  " };
                line += &if column < self.left {
                    format!("{gap}{cell:<width$}")
                } else {
                    format!("{gap}{cell:>width$}")
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Three significant digits, no exponent; counts as they are.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// A ratio as the speed lines write it: 1/15 for what is far below, 0.80 otherwise.
pub(crate) fn ratio(value: f64) -> String {
    if value > 0.0 && value < 0.4 {
        format!("1/{:.1}", 1.0 / value)
    } else {
        format!("{value:.2}")
    }
}

/// All figures of one scenario, a row each, a column per target, medians with the ratio of the CPU time to the baseline.
pub(crate) fn scenario_table(group: &Group, names: &[String], baseline: usize) -> Table {
    let mut table = Table::new(1);
    table.row(
        [group.name.clone()]
            .into_iter()
            .chain(names.iter().cloned()),
    );
    let mut figures: Vec<&'static str> = Vec::new();
    for run in group.cells.iter().flat_map(|cell| &cell.runs) {
        for (name, _) in &run.values {
            if !figures.contains(name) {
                figures.push(name);
            }
        }
    }
    for figure in figures {
        let cells = group
            .cells
            .iter()
            .map(|cell| cell.median(figure).map_or_else(|| "-".into(), number));
        table.row([format!("  {figure}")].into_iter().chain(cells));
        if figure.starts_with("cpu_") && group.cells.len() > 1 {
            let base = group.cells[baseline].median(figure);
            let cells = group.cells.iter().map(|cell| {
                cell.median(figure)
                    .zip(base)
                    .map_or_else(|| "-".into(), |(value, base)| ratio(value / base))
            });
            table.row(
                [format!("    to {}", names[baseline])]
                    .into_iter()
                    .chain(cells),
            );
        }
    }
    table
}

pub(crate) fn group_json(group: &Group, names: &[String]) -> Value {
    let targets = names
        .iter()
        .zip(&group.cells)
        .map(|(name, cell)| (name.clone(), cell_json(cell)));
    json!({ "name": group.name, "command": group.command, "targets": targets.collect::<Map<_, _>>() })
}

fn cell_json(cell: &Cell) -> Value {
    let runs = cell.runs.iter().map(|run| {
        let values = run
            .values
            .iter()
            .map(|&(name, value)| (name.to_owned(), json!(value)));
        Value::Object(values.collect())
    });
    let runs: Vec<Value> = runs.collect();
    let names = cell
        .runs
        .first()
        .map(|run| run.values.as_slice())
        .unwrap_or_default();
    let medians = names
        .iter()
        .map(|&(name, _)| (name.to_owned(), json!(cell.median(name))));
    json!({ "runs": runs, "median": medians.collect::<Map<_, _>>(), "failures": cell.failures })
}

/// Where the figures were made.
pub(crate) struct Machine {
    cpu: String,
    cpus: usize,
    kernel: String,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpu: model
                .map_or("unknown CPU", |(_, model)| model.trim())
                .into(),
            // not only those that this thread is pinned to
            cpus: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "cpu": self.cpu, "cpus": self.cpus, "kernel": self.kernel })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} CPUs ({}), Linux {}",
            self.cpus, self.cpu, self.kernel
        )
    }
}

/// A bar on stderr where that is a terminal; silent elsewhere.
pub(crate) struct Progress {
    total: usize,
    done: usize,
    started: Instant,
    visible: bool,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Self {
        Self {
            total,
            done: 0,
            started: Instant::now(),
            visible: io::stderr().is_terminal(),
        }
    }

    pub(crate) fn begin(&self, what: &str) {
        const WIDTH: usize = 30;
        if !self.visible {
            return;
        }
        let full = WIDTH * self.done / self.total.max(1);
        let left = match self.done {
            0 => String::new(),
            done => {
                let secs = self.started.elapsed().as_secs() as usize * (self.total - done) / done;
                format!(", about {}:{:02} left", secs / 60, secs % 60)
            }
        };
        let bar = format!("[{}{}]", "=".repeat(full), " ".repeat(WIDTH - full));
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{bar} {}/{} {what}{left}",
            self.done + 1,
            self.total
        );
        let _ = io::stderr().flush();
    }

    pub(crate) fn end(&mut self) {
        self.done += 1;
        if self.visible && self.done == self.total {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(
            [0.0, 7.0, 0.0012, 0.123, 12.34, 123.4].map(number),
            ["0", "7", "0.0012", "0.12", "12.3", "123"]
        );
    }

    #[test]
    fn small_ratios_are_fractions_of_one() {
        assert_eq!([1.0 / 15.0, 0.8].map(ratio), ["1/15.0", "0.80"]);
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(1);
        table.row(["a".to_owned(), "long".to_owned()]);
        table.row(["bcd".to_owned(), "1".to_owned()]);
        assert_eq!(table.to_string(), "a    long\nbcd     1\n");
    }
}
