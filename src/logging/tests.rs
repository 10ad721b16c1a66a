// SPDX-License-Identifier: Apache-2.0
//! Logging from the record to the file, without the process-wide logger.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use log::{Level, Log, Record};

use super::clock::Moment;
use super::*;
use crate::settings;

const SOON: Duration = Duration::from_secs(20);

/// A console that keeps what is written.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no writer panicked").clone())
            .expect("lines are UTF-8")
    }

    fn boxed(&self) -> Option<Box<dyn Write + Send>> {
        Some(Box::new(self.clone()))
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no reader panicked").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("corqtt-log-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary folder can be written");
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.0)
            .expect("the folder is there")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn gunzip(path: &Path) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open(path).expect("it is there"))
        .read_to_string(&mut text)
        .expect("it is gzip");
    text
}

fn settings() -> LogSettings {
    LogSettings {
        level: settings::Level::Info,
        format: LogFormat::Text,
        console: true,
        file: None,
        info_file: None,
        error_file: None,
        rotation: settings::Rotation {
            size_bytes: 1 << 20,
            age_max: None,
            backups_max: None,
            compress: false,
        },
    }
}

fn say(logger: &Logger, level: Level, message: &str) {
    logger.log(
        &Record::builder()
            .level(level)
            .args(format_args!("{message}"))
            .build(),
    );
}

type Form = fn(Moment, &Record<'_>) -> String;

fn line(form: Form, pairs: &[(&str, log::kv::Value<'_>)], message: &str) -> String {
    let moment = Moment::from_millis(1_795_341_600_000);
    let pairs = &pairs;
    form(
        moment,
        &Record::builder()
            .level(Level::Info)
            .args(format_args!("{message}"))
            .key_values(pairs)
            .build(),
    )
}

#[test]
fn a_text_line_looks_like_comqtts() {
    let pairs = [
        ("address", ":1883".into()),
        ("id", "tcp".into()),
        ("shards", 4_u64.into()),
    ];
    assert_eq!(
        line(format::text, &pairs, "attached listener"),
        "2026-11-22T10:00:00.000Z INFO attached listener address=:1883 id=tcp shards=4\n"
    );
}

#[test]
fn text_of_strangers_cannot_forge_a_line() {
    let pairs = [
        ("a", "x\n2026 ERROR y".into()),
        ("b", "\u{1b}[31m\u{202e}".into()),
        ("c", "say \"hi\" \\".into()),
        ("d", "".into()),
        ("e", "1=2".into()),
        ("f", "é\u{1f600}".into()),
    ];
    let expected = [
        r"2026-11-22T10:00:00.000Z INFO m\r\n\u007f",
        r#"a="x\n2026 ERROR y""#,
        r#"b="\u001b[31m\u202e""#,
        r#"c="say \"hi\" \\""#,
        r#"d="""#,
        r#"e="1=2""#,
        "f=é\u{1f600}\n",
    ];
    assert_eq!(
        line(format::text, &pairs, "m\r\n\u{7f}"),
        expected.join(" ")
    );
}

#[test]
fn a_json_line_is_json_whatever_it_carries() {
    let all: String = (0..=0x2100_u32).filter_map(char::from_u32).collect();
    let wild = format!("{all}\u{1f600}\u{feff}");
    let pairs = [
        ("text", wild.as_str().into()),
        ("count", 7_u64.into()),
        ("below", (-7_i64).into()),
        ("ratio", 0.5_f64.into()),
        ("none", f64::NAN.into()),
        ("yes", true.into()),
        ("odd \"key\"\n", 'c'.into()),
    ];
    let line = line(format::json, &pairs, "a \"message\"\n");
    assert_eq!(line.matches('\n').count(), 1);
    assert!(line.ends_with("}\n") && !line.trim_end().contains(|c: char| c.is_control()));
    let json: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
    assert_eq!(json["time"], "2026-11-22T10:00:00.000Z");
    assert_eq!(json["level"], "INFO");
    assert_eq!(json["msg"], "a \"message\"\n");
    let cut: String = wild.chars().take(2048).collect();
    assert_eq!(json["text"], format!("{cut}…"));
    assert_eq!(
        (&json["count"], &json["below"], &json["ratio"]),
        (&7.into(), &(-7).into(), &0.5.into())
    );
    assert!(json["none"].is_null() && json["yes"] == true);
    assert_eq!(json["odd \"key\"\n"], "c");
}

#[test]
fn a_long_text_is_cut() {
    let long = "x".repeat(100_000);
    for form in [format::text as Form, format::json] {
        let line = line(form, &[("topic", long.as_str().into())], &long);
        assert!(line.len() < 5000 && line.matches('…').count() == 2);
    }
}

#[test]
fn lines_reach_the_console_in_order_and_by_level() {
    let console = Console::default();
    let (logger, handle) = logger(&settings(), console.boxed()).expect("logging starts");
    for count in 0..1000 {
        say(&logger, Level::Info, &format!("line {count}"));
        say(&logger, Level::Debug, "hidden");
    }
    assert!(handle.flush(SOON));
    let text = console.text();
    let counts: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(" INFO line ").nth(1))
        .collect();
    assert_eq!(
        counts,
        (0..1000).map(|count| count.to_string()).collect::<Vec<_>>()
    );
    assert!(!text.contains("hidden"));
    handle.shutdown();
    say(&logger, Level::Info, "too late");
    assert!(!handle.flush(SOON));
    handle.shutdown();
}

/// A console that says when it is written to, and then waits to be let go.
struct Stuck {
    started: Sender<()>,
    go: Receiver<()>,
    console: Console,
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.started.send(());
        let _ = self.go.recv();
        self.console.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_lane_drops_lines_and_the_log_says_how_many() {
    let console = Console::default();
    let (started, has_started) = channel();
    let (let_go, go) = channel();
    let stuck = Stuck {
        started,
        go,
        console: console.clone(),
    };
    let sinks = Sinks::new(Some(Box::new(stuck)), Vec::new(), LogFormat::Text);
    let (mut lane, handle) = lane::start(sinks, 3).expect("the writer starts");
    let mut push = |text: &str| {
        let mut framed = Vec::new();
        lane::write_framed(&mut framed, Level::Info, text).expect("memory");
        lane.write_all(&framed).expect("a lane takes all");
    };
    push("first\n");
    has_started.recv_timeout(SOON).expect("the writer writes");
    for count in 0..5 {
        push(&format!("{count}\n"));
    }
    assert!(
        !handle.flush(Duration::ZERO),
        "nobody waits for a stuck console"
    );
    drop(let_go);
    assert!(handle.flush(SOON));
    let text = console.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], ["first", "0", "1", "2"]);
    assert!(
        lines[4].contains(" WARN 2 log lines were dropped"),
        "{lines:?}"
    );
    assert_eq!(lines.len(), 5);
    assert_eq!(handle.lines_dropped(), 2);
    handle.shutdown();
}

#[test]
fn errors_and_other_lines_have_files_of_their_own() {
    let folder = Folder::new();
    let settings = LogSettings {
        file: Some(folder.path("sub/all.log")),
        info_file: Some(folder.path("info.log")),
        error_file: Some(folder.path("error.log")),
        ..settings()
    };
    let (logger, handle) = logger(&settings, None).expect("logging starts");
    say(&logger, Level::Info, "good");
    say(&logger, Level::Error, "bad");
    handle.shutdown();
    let has = |name: &str| {
        let text = read(&folder.path(name));
        (text.contains("INFO good"), text.contains("ERROR bad"))
    };
    assert_eq!(has("sub/all.log"), (true, true));
    assert_eq!(has("info.log"), (true, false));
    assert_eq!(has("error.log"), (false, true));
}

#[test]
fn a_file_that_was_moved_away_is_opened_again() {
    let folder = Folder::new();
    let (now, moved) = (folder.path("a.log"), folder.path("moved.log"));
    let settings = LogSettings {
        file: Some(now.clone()),
        ..settings()
    };
    let (logger, handle) = logger(&settings, None).expect("logging starts");
    say(&logger, Level::Info, "before");
    assert!(handle.flush(SOON));
    fs::rename(&now, &moved).expect("it is there");
    handle.reopen();
    assert!(handle.flush(SOON));
    say(&logger, Level::Info, "after");
    handle.shutdown();
    assert!(read(&moved).contains("before") && !read(&moved).contains("after"));
    assert!(read(&now).contains("after") && !read(&now).contains("before"));
}

#[test]
fn a_full_file_is_rotated_compressed_and_in_the_end_removed() {
    let folder = Folder::new();
    for (name, text) in [
        ("a-2020-01-01T00-00-00.000.log", "old"),
        ("a-2020-01-01T00-00-00.001.log.gz.part", "half"),
        ("a-2020.log", "not ours"),
        ("a.log", "from the last run\n"),
    ] {
        fs::write(folder.path(name), text).expect("it can be written");
    }
    let settings = LogSettings {
        file: Some(folder.path("a.log")),
        rotation: settings::Rotation {
            size_bytes: 100,
            age_max: Some(Duration::from_secs(86_400)),
            backups_max: Some(2),
            compress: true,
        },
        ..settings()
    };
    let (logger, handle) = logger(&settings, None).expect("logging starts");
    for count in 0..6 {
        say(
            &logger,
            Level::Info,
            &format!("line {count} that fills more than half of a file"),
        );
    }
    handle.shutdown();
    let names = folder.names();
    let (backups, others): (Vec<&String>, Vec<&String>) =
        names.iter().partition(|name| name.ends_with(".gz"));
    assert_eq!(others, ["a-2020.log", "a.log"], "{names:?}");
    assert_eq!(backups.len(), 2, "{names:?}");
    assert!(gunzip(&folder.path(backups[0])).contains("line 3"));
    assert!(gunzip(&folder.path(backups[1])).contains("line 4"));
    assert!(read(&folder.path("a.log")).contains("line 5"));
}

#[test]
fn rotated_files_lose_no_line() {
    let folder = Folder::new();
    let settings = LogSettings {
        file: Some(folder.path("a.log")),
        rotation: settings::Rotation {
            size_bytes: 300,
            ..settings().rotation
        },
        ..settings()
    };
    let (logger, handle) = logger(&settings, None).expect("logging starts");
    for count in 0..200 {
        say(&logger, Level::Info, &format!("line {count}."));
    }
    handle.shutdown();
    let names = folder.names();
    assert!(names.len() > 20, "{names:?}");
    let text: String = names.iter().map(|name| read(&folder.path(name))).collect();
    let found = (0..200)
        .filter(|count| text.contains(&format!("line {count}.\n")))
        .count();
    assert_eq!(found, 200);
    assert!(
        names
            .iter()
            .all(|name| read(&folder.path(name)).len() <= 300)
    );
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let folder = Folder::new();
    fs::write(folder.path("file"), "").expect("it can be written");
    let settings = LogSettings {
        file: Some(folder.path("file/a.log")),
        ..settings()
    };
    let error = logger(&settings, None).err().expect("a file is no folder");
    assert!(error.to_string().contains("file/a.log"), "{error}");
}

#[test]
fn a_full_disk_is_told_once_on_the_console() {
    let console = Console::default();
    let settings = LogSettings {
        file: Some(PathBuf::from("/dev/full")),
        ..settings()
    };
    let (logger, handle) = logger(&settings, console.boxed()).expect("logging starts");
    for count in 0..3 {
        say(&logger, Level::Info, &format!("line {count}"));
        assert!(handle.flush(SOON));
    }
    let text = console.text();
    assert_eq!(
        text.matches("cannot write the log file /dev/full").count(),
        1,
        "{text}"
    );
    assert!(text.contains("line 2"));
    handle.shutdown();
}
