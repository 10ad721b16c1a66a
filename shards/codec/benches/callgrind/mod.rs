// SPDX-License-Identifier: Apache-2.0
//! Counts the instructions of one operation, so that two versions can be compared without noise.
//!
//! The bench binary starts itself under callgrind, twice per case with different numbers of repetitions: the
//! difference is free of start and set-up. Needs `valgrind`.
//!
//! ```text
//! cargo bench -p CRATE                 counts, compared with benches/baseline.txt; fails above +3 %
//! cargo bench -p CRATE -- --bless      counts, written to benches/baseline.txt
//! cargo bench -p CRATE -- NAME         the cases whose name has NAME in it
//! cargo test -p CRATE --benches        each case a few times, without counting
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Repetitions of the two runs.
const FEW: u64 = 1_000;
const MANY: u64 = 11_000;

/// Above this part of the baseline a case has become slower.
const TOLERANCE: f64 = 0.03;

/// A name, and what repeats the operation that often after a set-up of its own.
pub(crate) type Case = (&'static str, fn(u64));

/// Runs what the command line asks for; `manifest_dir` is the crate's own.
pub(crate) fn main(manifest_dir: &str, cases: &[Case]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, times] = args.as_slice()
        && flag == "--repeat"
    {
        let times = times.parse().expect("our own argument");
        for (_, run) in cases.iter().filter(|(case, _)| case == name) {
            run(times);
        }
        return ExitCode::SUCCESS;
    }
    if !args.iter().any(|arg| arg == "--bench") {
        for (_, run) in cases {
            run(10);
        }
        return ExitCode::SUCCESS;
    }
    let bless = args.iter().any(|arg| arg == "--bless");
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    let path = Path::new(manifest_dir).join("benches/baseline.txt");
    let mut baseline = read(&path);
    let mut worse = false;
    println!(
        "{:<44} {:>12} {:>12} {:>8}",
        "instructions per operation", "now", "baseline", ""
    );
    for (name, _) in cases {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let count = match count(name) {
            Ok(count) => count,
            Err(error) => {
                eprintln!("{name}: {error}");
                return ExitCode::FAILURE;
            }
        };
        match baseline.get(*name) {
            Some(&before) => {
                let change = count / before - 1.0;
                println!(
                    "{name:<44} {count:>12.1} {before:>12.1} {:>+7.1}%",
                    change * 100.0
                );
                worse |= change > TOLERANCE;
            }
            None => println!("{name:<44} {count:>12.1} {:>12}", "-"),
        }
        if bless {
            baseline.insert((*name).to_owned(), count);
        }
    }
    if bless {
        let lines: String = baseline
            .iter()
            .map(|(name, count)| format!("{count:.1}\t{name}\n"))
            .collect();
        if let Err(error) = std::fs::write(&path, lines) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    if worse {
        eprintln!("above the baseline by more than {:.0} %", TOLERANCE * 100.0);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Lines of `COUNT<tab>NAME`.
fn read(path: &Path) -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let (count, name) = line.split_once('\t')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Instructions per repetition.
fn count(name: &str) -> Result<f64, String> {
    let few = instructions(name, FEW)?;
    let many = instructions(name, MANY)?;
    Ok(many.saturating_sub(few) as f64 / (MANY - FEW) as f64)
}

/// Instructions of one run of this binary.
fn instructions(name: &str, times: u64) -> Result<u64, String> {
    let binary = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(binary)
        .args(["--repeat", name, &times.to_string()])
        .output()
        .map_err(|error| format!("cannot start valgrind: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    collected
        .and_then(|(_, count)| count.trim().parse().ok())
        .ok_or_else(|| format!("valgrind gave no count ({}): {text}", output.status))
}
