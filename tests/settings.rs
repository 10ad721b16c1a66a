// SPDX-License-Identifier: Apache-2.0
//! The command line of the binary: what it prints, where, and with which exit code.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A finished run.
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn corqtt(flags: &[&str]) -> Run {
    with_environment(flags, &[])
}

/// Runs the binary with these variables and no others that mean something to it.
fn with_environment(flags: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corqtt"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CORQTT_") {
            command.env_remove(name);
        }
    }
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .args(flags)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the binary was built for this test");
    Run {
        code: status.code(),
        stdout: String::from_utf8(stdout).expect("text"),
        stderr: String::from_utf8(stderr).expect("text"),
    }
}

/// A settings file, removed at the end.
struct SettingsFile(PathBuf);

impl SettingsFile {
    fn new(name: &str, text: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("corqtt-settings-{}-{name}.yml", std::process::id()));
        std::fs::write(&path, text).expect("the temporary folder can be written");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path of ours is text")
    }
}

impl Drop for SettingsFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn version_and_help_go_to_standard_output() {
    let version = corqtt(&["--version"]);
    assert_eq!(version.code, Some(0));
    assert_eq!(
        version.stdout,
        concat!("corqtt ", env!("CARGO_PKG_VERSION"), "\n")
    );
    for flag in ["--help", "-h", "-help"] {
        let help = corqtt(&[flag]);
        assert_eq!(help.code, Some(0));
        assert!(help.stdout.contains("--storage-way") && help.stderr.is_empty());
    }
}

#[test]
fn a_wrong_command_line_ends_with_code_2() {
    for (flags, expected) in [
        (
            &["--tpc=:1"][..],
            "corqtt: unknown flag --tpc; the nearest known flag is --tcp\n",
        ),
        (&["--level"], "corqtt: --level needs a value\n"),
        (
            &["--check", "run"],
            "corqtt: unexpected word \"run\"; flags start with a dash, corqtt --help lists them\n",
        ),
    ] {
        let run = corqtt(flags);
        assert_eq!((run.code, run.stderr.as_str()), (Some(2), expected));
        assert!(run.stdout.is_empty());
    }
    let run = corqtt(&["--level=9"]);
    assert_eq!(run.code, Some(2));
    assert!(
        run.stderr
            .starts_with("corqtt: --level: \"9\" is not what it takes"),
        "{}",
        run.stderr
    );
}

#[test]
fn check_says_what_would_run_and_what_is_missing() {
    let run = corqtt(&["--check"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stdout.contains("listener: tcp 127.0.0.1:1883\n"),
        "{}",
        run.stdout
    );
    assert!(run.stderr.is_empty());

    let run = corqtt(&["-check", "-tcp", ":1884", "--level", "debug"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stdout.contains("listener: tcp :1884\n"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("  mqtt.tcp = :1884 (--tcp)\n"),
        "{}",
        run.stdout
    );

    for second in ["--ws=127.0.0.1:1", "--http=:1"] {
        let run = corqtt(&["--check", "--tcp=127.0.0.1:1", second]);
        assert_eq!(run.code, Some(1));
        assert!(
            run.stdout
                .contains("and listener tcp (127.0.0.1:1) have one address"),
            "{}",
            run.stdout
        );
    }

    let run = corqtt(&["--check", "--shards=1", "--cpus=1023"]);
    assert_eq!(run.code, Some(1));
    assert!(
        run.stdout.starts_with(
            "corqtt would not start:\n  --cpus: this process may not run on CPU 1023; now it runs on ["
        ),
        "{}",
        run.stdout
    );

    let run = corqtt(&["--check", "--level=9"]);
    assert_eq!(run.code, Some(1));
    assert!(
        run.stdout
            .starts_with("corqtt would not start:\n  --level: "),
        "{}",
        run.stdout
    );
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let file = SettingsFile::new("order", "mqtt:\n  tcp: :1001\nshards: 1\nruntime: epoll\n");
    let run = with_environment(
        &["--check", "--conf", file.path(), "--tcp=:1003"],
        &[("CORQTT_TCP", ":1002"), ("CORQTT_SHARDS", "2")],
    );
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    assert!(
        run.stdout.contains("listener: tcp :1003\n"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("shards: 2, epoll driver\n"),
        "{}",
        run.stdout
    );
    let by_variable = with_environment(&["--check"], &[("CORQTT_CONF", file.path())]);
    assert!(
        by_variable.stdout.contains("listener: tcp :1001\n"),
        "{}",
        by_variable.stdout
    );
}

#[test]
fn a_wrong_file_is_told_with_its_lines() {
    let file = SettingsFile::new(
        "wrong",
        "mqtt:\n  tpc: :1883\n  limits:\n    queue-full: never\n",
    );
    let run = corqtt(&["--conf", file.path()]);
    assert_eq!(run.code, Some(1));
    let lines: Vec<&str> = run.stderr.lines().collect();
    let path = file.path();
    assert_eq!(
        lines,
        [
            format!("corqtt: {path}:2: unknown key mqtt.tpc; the nearest known key is mqtt.tcp"),
            format!(
                "corqtt: {path}:4: mqtt.limits.queue-full: \"never\" is not what it takes; \
                 expected drop-oldest, drop-new, reject, disconnect"
            ),
        ]
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let run = corqtt(&["--conf=/nowhere/corqtt.yml"]);
    assert_eq!(run.code, Some(1));
    assert!(
        run.stderr
            .starts_with("corqtt: cannot read the settings file /nowhere/corqtt.yml: "),
        "{}",
        run.stderr
    );
    let endless = corqtt(&["--check", "--conf=/dev/zero"]);
    assert_eq!(endless.code, Some(1));
    assert!(
        endless.stdout.contains("larger than 1 MiB"),
        "{}",
        endless.stdout
    );
}

#[test]
fn the_documented_file_is_accepted() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/corqtt.yml");
    let run = corqtt(&["--check", "--conf", path]);
    assert_eq!(run.code, Some(0), "{}", run.stdout);
}

#[test]
fn a_log_file_that_cannot_be_opened_is_a_start_error() {
    let run = corqtt(&["--log-file=/dev/null/a.log"]);
    assert_eq!(run.code, Some(1));
    assert!(
        run.stderr
            .starts_with("corqtt: cannot open the log file /dev/null/a.log: "),
        "{}",
        run.stderr
    );
}
