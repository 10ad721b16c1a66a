// SPDX-License-Identifier: Apache-2.0
//! Logging of a whole process: the `log` macros, and a thread that panics. One test, since a process has one logger.

use corqtt::logging;
use corqtt::settings::{Level, LogFormat, LogSettings, Rotation};

#[test]
fn a_panic_is_in_the_log_before_its_thread_ends() {
    let path = std::env::temp_dir().join(format!("corqtt-panic-{}.log", std::process::id()));
    let settings = LogSettings {
        level: Level::Debug,
        format: LogFormat::Json,
        console: false,
        file: Some(path.clone()),
        info_file: None,
        error_file: None,
        rotation: Rotation {
            size_bytes: 1 << 20,
            age_max: None,
            backups_max: None,
            compress: false,
        },
    };
    let handle = logging::start(&settings).expect("logging starts");
    assert!(logging::start(&settings).is_err(), "a process has one log");
    let hook = std::panic::take_hook();
    logging::log_panics(&handle);
    log::debug!(client = "c\n1", protocol = 5; "client connected");
    let ended = std::thread::Builder::new()
        .name("shard-0".to_owned())
        .spawn(|| panic!("the count is {}", 3))
        .expect("a thread starts")
        .join();
    let text = std::fs::read_to_string(&path).expect("the log is there");
    std::panic::set_hook(hook);
    handle.shutdown();
    let _ = std::fs::remove_file(&path);

    assert!(ended.is_err());
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("lines are JSON"))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0]["msg"], "client connected");
    assert_eq!(
        (&lines[0]["client"], &lines[0]["protocol"]),
        (&"c\n1".into(), &5.into())
    );
    assert_eq!(lines[1]["level"], "ERROR");
    assert_eq!(
        (&lines[1]["thread"], &lines[1]["cause"]),
        (&"shard-0".into(), &"the count is 3".into())
    );
    assert!(
        lines[1]["place"]
            .as_str()
            .is_some_and(|place| place.contains("tests/logging.rs:"))
    );
}
