// SPDX-License-Identifier: Apache-2.0
//! Settings as a whole: sources over each other, every row of the table, what this build lacks.

use std::collections::BTreeMap;
use std::path::Path;

use super::layers::{FileText, Sources};
use super::table::{Preset, ROWS, Row};
use super::value::{Dialect, Kind, Raw, Value};
use super::*;

/// A flag and its value.
type Flag<'text> = (&'static str, &'text str);

/// A build without optional parts, whatever the current one has.
const NOTHING: Parts = Parts::NONE;

fn resolve(
    flags: &[Flag<'_>],
    variables: &[(&str, &str)],
    yaml: &str,
    parts: Parts,
) -> Result<Settings, SettingsError> {
    let flags: Vec<_> = flags
        .iter()
        .map(|&(flag, text)| (flag, text.to_owned()))
        .collect();
    let environment: BTreeMap<_, _> = variables
        .iter()
        .map(|&(name, text)| (name.to_owned(), text.to_owned()))
        .collect();
    let file = FileText {
        name: "c.yml".into(),
        text: yaml.into(),
    };
    Sources {
        flags: &flags,
        environment: &environment,
        file: Some(&file),
    }
    .settings(parts, "host1", Vec::new())
}

fn from_yaml(yaml: &str) -> Settings {
    resolve(&[], &[], yaml, Parts::ALL).unwrap_or_else(|error| panic!("{yaml}\n{error}"))
}

fn problems(flags: &[Flag<'_>], yaml: &str, parts: Parts) -> Vec<String> {
    match resolve(flags, &[], yaml, parts) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems().iter().map(ToString::to_string).collect(),
    }
}

/// What the settings mean, without where they came from.
fn meaning(mut settings: Settings) -> Settings {
    settings.named.clear();
    settings.notices.clear();
    settings
}

// --- the table itself

#[test]
fn names_of_settings_are_unique() {
    let mut keys: Vec<&str> = table::keys().collect();
    let mut flags: Vec<&str> = flags().collect();
    for names in [&mut keys, &mut flags] {
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }
}

#[test]
fn every_default_is_a_value_of_its_kind() {
    for row in ROWS {
        if let Preset::Is(text) = row.default {
            for dialect in [Dialect::File, Dialect::CommandLine] {
                let read = row.kind.read(&Raw::Scalar(text.into()), dialect);
                assert!(read.is_ok(), "{}: {text}: {read:?}", row.name());
            }
        }
    }
}

#[test]
fn parts_are_asked_for_by_words_of_the_choice() {
    for row in ROWS {
        for (word, _) in row.values_need {
            let place = row.kind.choice_named(word);
            assert_eq!(
                row.kind.read(&Raw::Scalar((*word).into()), Dialect::File),
                Ok(Value::Choice(place))
            );
        }
    }
}

#[test]
fn every_bound_fits_its_type() {
    for row in ROWS {
        if let Kind::Number { min, max } = row.kind
            && let Some(key) = row.key
            && !key.starts_with("mqtt.listeners")
        {
            for bound in [min, max] {
                let yaml = Tree::default().with(key, &bound.to_string()).yaml();
                // problems are fine (a port twice), a panic is not
                let _ = resolve(&[("members", "a.example:7946")], &[], &yaml, Parts::ALL);
            }
        }
    }
}

/// A YAML file as a tree of blocks.
#[derive(Default, Clone)]
struct Tree(BTreeMap<String, String>);

impl Tree {
    fn with(mut self, key: &str, value: &str) -> Self {
        self.0.insert(key.to_owned(), value.to_owned());
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.0.remove(key);
        self
    }

    fn yaml(&self) -> String {
        let pairs: Vec<(Vec<&str>, &str)> = self
            .0
            .iter()
            .map(|(key, value)| (key.split('.').collect(), value.as_str()))
            .collect();
        block(&pairs, 0)
    }
}

/// A flow mapping of the pairs, whose paths have the first `depth` names in common.
fn block(pairs: &[(Vec<&str>, &str)], depth: usize) -> String {
    let mut text = String::from("{");
    for group in pairs.chunk_by(|(a, _), (b, _)| a[depth] == b[depth]) {
        let name = group[0].0[depth];
        let value = if group[0].0.len() == depth + 1 {
            group[0].1.to_owned()
        } else {
            block(group, depth + 1)
        };
        match name.strip_suffix("[]") {
            Some(name) => text.push_str(&format!("{name}: [{value}], ")),
            None => text.push_str(&format!("{name}: {value}, ")),
        }
    }
    text + "}"
}

/// Settings with which every other one has something to act on.
fn full() -> Tree {
    [
        ("auth.way", "username"),
        ("auth.datasource", "file"),
        ("auth.conf-path", "users.yml"),
        ("bridge-way", "kafka"),
        ("bridge-path", "bridge.yml"),
        ("cluster.members", "[b.example:7946]"),
        ("log.filename", "a.log"),
        ("log.output", "both"),
        ("mqtt.listeners[].address", "\":8084\""),
        ("mqtt.listeners[].kind", "wss"),
        ("mqtt.tls.ca-cert", "ca.pem"),
        ("mqtt.tls.server-cert", "cert.pem"),
        ("mqtt.tls.server-key", "key.pem"),
        ("storage-way", "redis"),
    ]
    .iter()
    .fold(Tree::default(), |tree, (key, value)| tree.with(key, value))
}

/// A value for a setting that is neither its default nor what `full` has.
fn other_value(row: &Row, now: Option<&str>) -> String {
    let now = now.or(match row.default {
        Preset::Is(text) => Some(text),
        Preset::Derived(_) | Preset::None => None,
    });
    let differs = |text: &String| Some(text.as_str()) != now;
    match row.key {
        Some("cluster.lease") => return "3s".into(),
        Some("cluster.will-row-max") => return "1MiB".into(),
        Some("mqtt.listeners[].address") => return "\":4321\"".into(),
        _ => {}
    }
    match row.kind {
        Kind::Bool => (now != Some("true")).to_string(),
        Kind::Number { min, max } => [4321.min(max), min]
            .map(|number| number.to_string())
            .into_iter()
            .find(differs)
            .expect("a range has two numbers"),
        Kind::Choice(choices) => choices
            .iter()
            .rev()
            .map(|choice| choice.name().to_owned())
            .find(differs)
            .expect("a choice has two words"),
        Kind::Duration { .. } | Kind::DurationOrNever { .. } => "33s".into(),
        Kind::Bytes { .. } => "2MiB".into(),
        Kind::Sync => "250".into(),
        Kind::Level => "error".into(),
        Kind::Text | Kind::Secret => "other".into(),
        Kind::Path => "/other/path".into(),
        Kind::Listen => "127.0.0.1:4321".into(),
        Kind::HostPort | Kind::HostPorts => "h.example:4321".into(),
        Kind::RedisAddress => "10.0.0.1:6380".into(),
        Kind::Ip => "127.0.0.2".into(),
        Kind::Cpus => "[1, 0]".into(),
        Kind::Cidrs => "10.0.0.0/8".into(),
        Kind::Texts => "https://a.example".into(),
        // a strategy too
        Kind::Map => "{zone: random}".into(),
    }
}

#[test]
fn groups_choose_by_strategies_that_there_are() {
    let shared = |yaml: &str| resolve(&[], &[], &format!("mqtt: {{shared: {yaml}}}"), Parts::ALL);
    let settings = shared("{strategy: random, groups: {a: sticky, b: hash-topic}}").expect("good");
    assert_eq!(settings.shared.strategy, GroupStrategy::Random);
    let of_groups: Vec<_> = settings.shared.groups.into_iter().collect();
    assert_eq!(
        of_groups,
        [
            ("a".to_owned(), GroupStrategy::Sticky),
            ("b".to_owned(), GroupStrategy::HashTopic)
        ]
    );
    let error = shared("{groups: {a: stickey}}").expect_err("there is no such one");
    let text = error.problems()[0].to_string();
    assert!(
        text.contains("group a: \"stickey\" is no strategy; expected one of round-robin, random"),
        "{text}"
    );
}

#[test]
fn a_revocation_list_needs_an_authority() {
    let listener =
        "{kind: tls, address: \":8883\", tls: {server-cert: s.pem, server-key: s.key, crl: r.pem}}";
    let yaml = format!("mqtt: {{listeners: [{listener}]}}");
    let error = resolve(&[], &[], &yaml, Parts::ALL).expect_err("nobody is judged by it");
    assert!(
        error.problems()[0]
            .to_string()
            .contains("crl needs ca-cert")
    );
}

#[test]
fn every_setting_works_through_the_file_and_through_its_flag_alike() {
    let base_flags = [("tls", ":8883")];
    let base =
        resolve(&base_flags, &[], &full().yaml(), Parts::ALL).expect("the full settings are good");
    for row in ROWS
        .iter()
        .filter(|row| row.unused.is_none() && row.flag != Some("conf"))
    {
        let name = row.name();
        let key = row.key.unwrap_or("");
        let value = other_value(row, full().0.get(key).map(String::as_str));
        let rest = full().without(key);
        let mut seen = Vec::new();
        for key in [row.key, row.also].into_iter().flatten() {
            let yaml = rest.clone().with(key, &value).yaml();
            let settings = resolve(&base_flags, &[], &yaml, Parts::ALL)
                .unwrap_or_else(|error| panic!("{yaml}\n{error}"));
            let shown: Vec<_> = settings
                .named
                .iter()
                .filter(|named| named.name == name)
                .collect();
            if !key.contains("[]") {
                assert!(
                    matches!(shown[..], [named] if named.origin == "c.yml:1"),
                    "{name}: {shown:?}"
                );
            }
            seen.push(meaning(settings));
        }
        if let Some(flag) = row.flag {
            let text = value.trim_matches(['[', ']']);
            let mut flags = base_flags.to_vec();
            flags.retain(|&(other, _)| other != flag);
            flags.push((flag, text));
            let settings = resolve(&flags, &[], &rest.yaml(), Parts::ALL)
                .unwrap_or_else(|error| panic!("--{flag}={text}\n{error}"));
            seen.push(meaning(settings));
            let variable = row.variable().expect("a flag has a variable");
            let settings = resolve(
                &base_flags[usize::from(flag == "tls")..],
                &[(&variable, text)],
                &rest.yaml(),
                Parts::ALL,
            );
            seen.push(meaning(settings.expect("a variable is as good as a flag")));
        }
        for settings in &seen {
            assert_ne!(
                *settings,
                meaning(base.clone()),
                "{name}={value} changes nothing"
            );
            assert_eq!(*settings, seen[0], "{name}={value} means different things");
        }
    }
}

#[test]
fn settings_that_are_only_accepted_say_so() {
    for row in ROWS.iter().filter(|row| row.unused.is_some()) {
        let key = row.key.expect("these are keys of comqtt's file");
        let yaml = full().with(key, &other_value_or_same(row)).yaml();
        let settings = from_yaml(&yaml);
        let said = settings
            .notices
            .iter()
            .filter(|notice| {
                // a listener's own keys are told with the listener's number
                let leaf = key.rsplit("[]").next().unwrap_or(key);
                notice
                    .text
                    .contains(&format!("{leaf} is accepted and does nothing"))
            })
            .count();
        assert_eq!(said, 1, "{key}");
    }
}

/// comqtt's choices of implementation have one value here.
fn other_value_or_same(row: &Row) -> String {
    match row.kind {
        Kind::Choice(choices) => choices[0].name().to_owned(),
        _ => other_value(row, None),
    }
}

// --- the documentation made from the table

#[test]
fn the_documented_settings_are_those_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/corqtt.yml");
    if std::env::var_os("UPDATE_CONFIGS").is_some() {
        std::fs::write(&path, reference()).expect("configs can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == reference(),
        "configs/corqtt.yml is out of date; UPDATE_CONFIGS=1 cargo test -p corqtt --lib writes it"
    );
}

#[test]
fn the_documented_tables_are_those_of_the_settings() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/SETTINGS.md");
    if std::env::var_os("UPDATE_CONFIGS").is_some() {
        std::fs::write(&path, manual()).expect("configs can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == manual(),
        "configs/SETTINGS.md is out of date; UPDATE_CONFIGS=1 cargo test -p corqtt --lib documented writes it"
    );
}

#[test]
fn the_documented_tables_have_a_row_for_every_setting() {
    let manual = manual();
    let rows: Vec<_> = manual
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| key"))
        .collect();
    assert_eq!(rows.len(), ROWS.len());
    for (row, line) in ROWS.iter().zip(rows) {
        let cells = line.replace("\\|", "").matches('|').count();
        assert_eq!(cells, 8, "{line}");
        assert!(line.contains(row.meaning), "{line}");
        if let Some(flag) = row.flag {
            assert!(line.contains(&format!("| `--{flag}` |")), "{line}");
        }
        if let Some(variable) = row.variable() {
            assert!(line.contains(&format!("| `{variable}` |")), "{line}");
        }
    }
}

#[test]
fn the_documented_file_changes_nothing() {
    assert_eq!(from_yaml(&reference()), from_yaml(""));
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let uncommented: String = reference()
        .lines()
        .map(|line| {
            let text = line.trim_start();
            let indent = &line[..line.len() - text.len()];
            match text.strip_prefix('#') {
                None => format!("{line}\n"),
                Some(rest) if rest.starts_with(' ') || rest.is_empty() => String::new(),
                // another one than that of mqtt.tcp
                Some("address:") => format!("{indent}address: \":1884\"\n"),
                Some(rest) => format!("{indent}{rest}\n"),
            }
        })
        .collect();
    let mut documented = from_yaml(&uncommented);
    let mut default = from_yaml("cluster:");
    // naming a listener opens it to all
    for settings in [&mut documented, &mut default] {
        settings.listeners.clear();
        settings.http = None;
    }
    assert_eq!(meaning(documented), meaning(default));
}

#[test]
fn help_names_every_flag() {
    let help = help();
    for flag in flags() {
        assert!(help.contains(&format!("  --{flag}")), "{flag}");
    }
}

// --- sources

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let yaml = "{mqtt: {tcp: ':1'}}";
    let variable = [("CORQTT_TCP", ":2")];
    let port = |settings: Result<Settings, SettingsError>| {
        settings.expect("good").listeners[0].socket.address()
    };
    assert_eq!(
        port(resolve(&[("tcp", ":3")], &variable, yaml, NOTHING)),
        ":3"
    );
    assert_eq!(port(resolve(&[], &variable, yaml, NOTHING)), ":2");
    assert_eq!(port(resolve(&[], &[], yaml, NOTHING)), ":1");
    assert_eq!(port(resolve(&[], &[], "", NOTHING)), "127.0.0.1:1883");
}

#[test]
fn a_level_is_numbered_as_its_source_numbers_it() {
    for (text, flag, key) in [
        ("0", Level::Debug, Level::Info),
        ("4", Level::Error, Level::Warn),
        ("warn", Level::Warn, Level::Warn),
    ] {
        let by_flag = resolve(&[("level", text)], &[], "", NOTHING).expect("a level");
        assert_eq!(by_flag.log.level, flag, "--level={text}");
        assert_eq!(
            from_yaml(&format!("{{log: {{level: {text}}}}}")).log.level,
            key,
            "log.level: {text}"
        );
    }
    assert_eq!(from_yaml("{log: {level: -4}}").log.level, Level::Debug);
    assert_eq!(from_yaml("{log: {enable: false}}").log.level, Level::Off);
}

#[test]
fn mistyped_variables_are_refused_and_strangers_told() {
    let strangers = [
        ("CORQTT_SOMETHING_ELSE", "1"),
        ("CORQTT_PORT", "tcp://10.0.0.1:1883"),
        ("CORQTT_PORT_1883_TCP_ADDR", "10.0.0.1"),
        ("CORQTT_SERVICE_HOST", "10.0.0.1"),
        ("CORQTT_WS_SERVICE_PORT_WS", "1882"),
        ("CORQTT_RAFT_PORT", "tcp://10.0.0.1:8946"),
    ];
    let settings = resolve(&[], &strangers, "", NOTHING).expect("strangers are no errors");
    let warnings: Vec<_> = settings
        .notices
        .iter()
        .filter(|notice| notice.level == log::Level::Warn)
        .map(|notice| notice.text.as_str())
        .collect();
    assert_eq!(
        warnings,
        ["the environment variable CORQTT_SOMETHING_ELSE is unknown and not used"]
    );
    for (mistyped, meant) in [
        ("CORQTT_TPC", "CORQTT_TCP"),
        ("CORQTT_RATF_PORT", "CORQTT_RAFT_PORT"),
        ("CORQTT_STORAGE_WYA", "CORQTT_STORAGE_WAY"),
    ] {
        let error = resolve(&[], &[(mistyped, "1")], "", NOTHING).expect_err("it is mistyped");
        assert_eq!(
            error.to_string(),
            format!("unknown environment variable {mistyped}; the nearest known one is {meant}")
        );
    }
    // of other software
    for other in ["CORQTT_TAG", "CORQTT_UID", "CORQTT_DB", "CORQTT_ENV_FILE"] {
        resolve(&[], &[(other, "1")], "", NOTHING).expect("a stranger is no error");
    }
}

#[test]
fn environment_variables_are_sorted_out() {
    use std::os::unix::ffi::OsStringExt;
    let mut found = Vec::new();
    let variables = layers::corqtt_variables(
        [
            (OsString::from("CORQTT_TCP"), OsString::from(":1")),
            (OsString::from("CORQTT_WS"), OsString::new()),
            (OsString::from("PATH"), OsString::from("/bin")),
            (
                OsString::from("CORQTT_LEVEL"),
                OsString::from_vec(vec![0xff]),
            ),
        ],
        &mut found,
    );
    assert_eq!(
        variables.into_iter().collect::<Vec<_>>(),
        [("CORQTT_TCP".into(), ":1".into())]
    );
    assert_eq!(found.len(), 1);
}

// --- what is wrong is named, with its place

#[test]
fn problems_of_the_file_name_key_and_line() {
    let table = [
        (
            "mqtt:\n  tpc: 1\n",
            "c.yml:2: unknown key mqtt.tpc; the nearest known key is mqtt.tcp",
        ),
        (
            "# x\n\nlogs:\n  level: 1\n",
            "c.yml:3: unknown key logs; the nearest known key is log",
        ),
        (
            "mqtt:\n  options:\n    receive-maximum: 3\n",
            "c.yml:3: unknown key mqtt.options.receive-maximum; the nearest known key is mqtt.options.capabilities.receive-maximum",
        ),
        (
            "mqtt:\n  listeners:\n    - kind: tcp\n      adress: ':1'\n      address: ':1'\n",
            "c.yml:4: unknown key mqtt.listeners.adress; the nearest known key is mqtt.listeners.address",
        ),
        (
            "shards: two\n",
            "c.yml:1: shards: \"two\" is not what it takes; expected a whole number from 1 to 64",
        ),
        (
            "shards: 0\n",
            "c.yml:1: shards: \"0\" is not what it takes; expected a whole number from 1 to 64",
        ),
        (
            "shards: -1\n",
            "c.yml:1: shards: \"-1\" is not what it takes; expected a whole number from 1 to 64",
        ),
        (
            "\nshards:\n  - 1\n",
            "c.yml:2: shards: \"1\" is not what it takes; expected a whole number from 1 to 64",
        ),
        (
            "runtime: tokio\n",
            "c.yml:1: runtime: \"tokio\" is not what it takes; expected auto, glommio, epoll",
        ),
        (
            "mqtt:\n  limits:\n    connect-timeout: 10 parsecs\n",
            "c.yml:3: mqtt.limits.connect-timeout: \"10 parsecs\" is not what it takes; expected a duration like 500ms, 10s, 5m, 2h or 1d, \
             or a number of seconds, from 1 to 3600 seconds",
        ),
        (
            "mqtt:\n  limits:\n    queue-bytes: 1.5MiB\n",
            "c.yml:3: mqtt.limits.queue-bytes: \"1.5MiB\" is not what it takes; expected a size like 512KiB, 64MiB or 1GiB, or a number of bytes",
        ),
        (
            "mqtt: 1883\n",
            "c.yml:1: mqtt is a block of keys, not a value",
        ),
        (
            "mqtt:\n  tcp: {port: 1}\n",
            "c.yml:2: mqtt.tcp: \"port=1\" is not what it takes; expected HOST:PORT, :PORT for all interfaces, or off",
        ),
        (
            "mqtt:\n  tcp: [[1]]\n",
            "c.yml:2: mqtt.tcp takes texts, not blocks",
        ),
        (
            "mqtt:\n  listeners: tcp\n",
            "c.yml:2: mqtt.listeners is a list of blocks",
        ),
        (
            "mqtt:\n  listeners:\n    - tcp\n",
            "c.yml:3: each item of mqtt.listeners is a block of keys",
        ),
        (
            "mqtt:\n  listeners:\n    - kind: tcp\n",
            "c.yml:3: mqtt.listeners: a listener needs an address: HOST:PORT, :PORT, or a path for unix",
        ),
        ("- 1\n", "c.yml:1: a settings file is a block of keys"),
        (
            "shards: 1\nshards: 2\n",
            "c.yml:2: the key shards is there twice, first in line 1",
        ),
        (
            "auth-way: 0\nauth:\n  way: 0\n",
            "c.yml:3: auth.way is there twice, first in line 1",
        ),
        (
            "shards: 1\n---\nshards: 2\n",
            "c.yml:3: a second document; a settings file has one",
        ),
        (
            "cpus: &a [1]\n",
            "c.yml:1: anchors and aliases are not supported; write the value out",
        ),
        (
            "{a: {b: }}\n",
            "c.yml:1: unknown key a; the nearest known key is auth",
        ),
    ];
    for (yaml, expected) in table {
        let found = problems(&[], yaml, NOTHING);
        assert_eq!(found.first().map(String::as_str), Some(expected), "{yaml}");
    }
}

#[test]
fn what_is_not_yaml_is_told_with_its_line() {
    for yaml in ["a: [1", "mqtt:\n  tcp: '", "a: b: c", "\t- x", "*x", "%"] {
        let found = problems(&[], yaml, NOTHING);
        assert!(
            found.len() == 1 && found[0].starts_with("c.yml:"),
            "{yaml:?}: {found:?}"
        );
    }
    let deep = "[".repeat(100_000);
    assert!(!problems(&[], &deep, NOTHING).is_empty());
}

#[test]
fn problems_of_flags_name_the_flag() {
    let table = [
        (
            "level",
            "9",
            "--level: \"9\" is not what it takes; expected 0 debug",
        ),
        (
            "tcp",
            "1883",
            "--tcp: \"1883\" is not what it takes; expected HOST:PORT",
        ),
        (
            "tcp",
            "::1:1883",
            "--tcp: \"::1:1883\" is not what it takes",
        ),
        (
            "tcp",
            "127.0.0.999:1",
            "--tcp: \"127.0.0.999:1\" is not what it takes",
        ),
        ("tcp", ":65536", "--tcp: \":65536\" is not what it takes"),
        ("cpus", "3-1", "--cpus: \"3-1\" is not what it takes"),
        ("cpus", "1,1", "--cpus: \"1,1\" is not what it takes"),
        (
            "node-name",
            "a/b",
            "--node-name: \"a/b\" is not a node name",
        ),
        (
            "members",
            "a",
            "--members: \"a\" is not what it takes; expected a list of HOST:PORT",
        ),
        (
            "storage-sync",
            "0",
            "--storage-sync: \"0\" is not what it takes",
        ),
        (
            "redis",
            "localhost",
            "--redis: \"localhost\" is not what it takes",
        ),
    ];
    for (flag, text, expected) in table {
        let found = problems(&[(flag, text)], "", Parts::ALL);
        assert!(
            found
                .first()
                .is_some_and(|found| found.starts_with(expected)),
            "{found:?}"
        );
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let found = problems(
        &[("level", "9"), ("cpus", "x")],
        "{shards: x, runtime: x}",
        NOTHING,
    );
    assert_eq!(found.len(), 4, "{found:?}");
}

#[test]
fn a_wrong_command_line_has_its_own_exit_code() {
    let code = |flags: &[Flag<'_>], yaml| {
        resolve(flags, &[], yaml, NOTHING)
            .expect_err("wrong")
            .exit_code()
    };
    assert_eq!(code(&[("level", "9")], ""), 2);
    assert_eq!(code(&[("tls", ":1")], ""), 1);
    assert_eq!(code(&[], "shards: x"), 1);
}

// --- parts that are not in a build

#[test]
fn asking_by_name_for_a_missing_part_is_an_error() {
    let flags: &[(&[Flag<'_>], &str)] = &[
        (&[("tls", ":8883")], "--tls: asks for TLS, "),
        (&[("wss", ":8884")], "--wss: asks for WebSocket, "),
        (&[("ws", ":1882")], "--ws: asks for WebSocket, "),
        (
            &[("http", ":8080")],
            "--http: asks for the HTTP interface, ",
        ),
        (&[("unix", "/run/x")], "--unix: asks for Unix sockets, "),
        (&[("quic", ":14567")], "--quic: asks for MQTT over QUIC, "),
        (
            &[("storage-way", "1")],
            "--storage-way: asks for the redb store, ",
        ),
        (
            &[("storage-way", "badger")],
            "--storage-way: asks for the fjall store, ",
        ),
        (
            &[("storage-way", "3")],
            "--storage-way: asks for the redis store, ",
        ),
        (
            &[("storage-path", "x")],
            "--storage-path: asks for the redb store, ",
        ),
        (
            &[("redis", "localhost:6379")],
            "--redis: asks for the redis store, ",
        ),
        (
            &[("auth-way", "1")],
            "--auth-way: asks for access control, ",
        ),
        (
            &[("raft-bootstrap", "true")],
            "--raft-bootstrap: asks for cluster mode, ",
        ),
        (
            &[("members", "localhost:7946")],
            "--members: asks for cluster mode, ",
        ),
    ];
    for (flags, expected) in flags {
        let found = problems(flags, "", NOTHING);
        assert!(
            matches!(&found[..], [one] if one.starts_with(expected)),
            "{flags:?}: {found:?}"
        );
    }
    let files = [
        ("cluster:\n", "c.yml:1: cluster: asks for cluster mode, "),
        (
            "bridge-way: 1\n",
            "c.yml:1: bridge-way: asks for the Kafka bridge, ",
        ),
        (
            "dashboard-enable: true\n",
            "c.yml:1: dashboard-enable: asks for the dashboard, ",
        ),
        (
            "auth:\n  blacklist-path: x\n",
            "c.yml:2: auth.blacklist-path: asks for access control, ",
        ),
        (
            "mqtt:\n  tls:\n    server-cert: x\n",
            "c.yml:3: mqtt.tls.server-cert: asks for TLS, ",
        ),
        (
            "mqtt:\n  listeners:\n  - {kind: tcp, address: ':1'}\n  - {kind: ws, address: ':2'}\n",
            "c.yml:4: mqtt.listeners.kind: asks for WebSocket, ",
        ),
        (
            "mqtt:\n  listeners:\n  - {kind: tcp, address: ':1', proxy-protocol-from: [10.0.0.0/8]}\n",
            "c.yml:3: mqtt.listeners.proxy-protocol-from: asks for the PROXY protocol, ",
        ),
    ];
    for (yaml, expected) in files {
        let found = problems(&[], yaml, NOTHING);
        assert!(
            matches!(&found[..], [one] if one.starts_with(expected)),
            "{yaml}: {found:?}"
        );
    }
}

#[test]
fn naming_a_part_as_off_asks_for_nothing() {
    let yaml = "{storage-way: 0, bridge-way: 0, bridge-path: x, dashboard-enable: false, mqtt: {ws: off, http: '', tls: {ca-cert: , zero-rtt: false}}, auth: {way: 0, datasource: 0}}";
    let flags = [("raft-bootstrap", "false"), ("grpc-enable", "false")];
    let settings = resolve(&flags, &[], yaml, NOTHING).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(settings.cluster, None);
    assert!(settings.missing.is_empty() && settings.http.is_none());
}

#[test]
fn unnamed_parts_that_are_missing_are_listed() {
    let settings = resolve(&[], &[], "", NOTHING).expect("the defaults run in any build");
    let parts: Vec<Part> = settings
        .missing
        .iter()
        .map(|missing| missing.part)
        .collect();
    assert_eq!(parts, [Part::Redb, Part::WebSocket, Part::Http]);
    assert_eq!(settings.storage.way, StorageWay::Memory);
    assert_eq!(settings.listeners.len(), 1);
    let all = from_yaml("");
    assert!(all.missing.is_empty());
    assert_eq!(all.storage.way, StorageWay::Redb);
    assert_eq!(all.listeners.len(), 2);
}

// --- what depends on several settings

#[test]
fn an_unnamed_listener_is_open_to_this_machine_only_while_clients_are_anonymous() {
    let settings = resolve(&[], &[], "", NOTHING).expect("good");
    assert_eq!(settings.listeners[0].socket.address(), "127.0.0.1:1883");
    assert!(
        settings
            .notices
            .iter()
            .any(|notice| notice.text.contains("--tcp=:1883"))
    );
    let named = resolve(&[("tcp", ":1883")], &[], "", NOTHING).expect("good");
    assert_eq!(
        named.listeners[0].socket,
        ListenerSocket::Tcp(Address::read(":1883").expect("an address"))
    );
    assert!(named.notices.is_empty(), "{:?}", named.notices);
    let with_auth = from_yaml("{auth: {way: 1, datasource: 5, conf-path: users.yml}}");
    assert_eq!(with_auth.listeners[0].socket.address(), ":1883");
}

#[test]
fn a_list_of_listeners_is_all_there_is_beside_named_ones() {
    let yaml = "{mqtt: {listeners: [{address: ':1'}, {kind: tcp, address: 'localhost:2', max-connections: 5}, {kind: unix, address: /run/c}]}}";
    let ids = |settings: &Settings| {
        settings
            .listeners
            .iter()
            .map(|one| one.id.clone())
            .collect::<Vec<_>>()
    };
    let settings = from_yaml(yaml);
    assert_eq!(ids(&settings), ["tcp", "tcp-2", "unix"]);
    assert_eq!(settings.listeners[1].connections_max, Some(5));
    let with_named = resolve(&[("tcp", ":3")], &[], yaml, Parts::ALL).expect("good");
    assert_eq!(ids(&with_named), ["tcp", "tcp-2", "unix", "tcp-3"]);
    assert_eq!(
        problems(&[("tcp", "off")], "", NOTHING),
        ["no listener for clients is on; name one with --tcp=:1883"]
    );
}

#[test]
fn a_tls_listener_needs_a_certificate() {
    assert_eq!(
        problems(&[("tls", ":8883")], "", Parts::ALL),
        ["--tls: needs a certificate; name mqtt.tls.server-cert and mqtt.tls.server-key"]
    );
    let yaml = "{mqtt: {tls: {server-cert: c, server-key: k}, listeners: [{kind: tls, address: ':1', tls: {server-cert: own, min-version: 1.3}}]}}";
    let ListenerSocket::Tls(_, tls) = from_yaml(yaml).listeners[0].socket.clone() else {
        panic!("a TLS listener");
    };
    assert_eq!(
        (tls.server_cert, tls.server_key),
        ("own".into(), "k".into())
    );
    assert_eq!(tls.min_version, TlsVersion::Tls13);
}

#[test]
fn comqtts_three_commands_are_understood() {
    let commands: [&[Flag<'_>]; 3] = [
        &[
            ("node-name", "c01"),
            ("gossip-port", "7946"),
            ("raft-port", "8946"),
            ("raft-bootstrap", "true"),
        ],
        &[
            ("node-name", "c02"),
            ("gossip-port", "7947"),
            ("raft-port", "8947"),
            ("members", "localhost:7946"),
            ("redis", "localhost:6379"),
            ("tcp", ":1885"),
            ("ws", ":1886"),
            ("http", ":8081"),
        ],
        &[
            ("node-name", "c03"),
            ("gossip-port", "7948"),
            ("raft-port", "8948"),
            ("members", "localhost:7946"),
            ("grpc-port", "17948"),
        ],
    ];
    for (flags, peer_port) in commands.into_iter().zip([17_946, 17_947, 17_948]) {
        let settings =
            resolve(flags, &[], "", Parts::ALL).unwrap_or_else(|error| panic!("{error}"));
        let cluster = settings.cluster.expect("cluster mode is on");
        assert_eq!(cluster.peer_port, peer_port);
        assert_eq!(
            cluster.raft_dir,
            Path::new("data").join(&settings.node_name).join("raft")
        );
        let lacking = problems(flags, "", NOTHING);
        assert!(
            lacking
                .iter()
                .any(|problem| problem.contains("asks for cluster mode")),
            "{lacking:?}"
        );
    }
}

#[test]
fn a_cluster_is_checked_as_a_whole() {
    let table: &[(&[Flag<'_>], &str, &str)] = &[
        (
            &[("raft-port", "7946")],
            "",
            "--raft-port: gossip has port 7946 too",
        ),
        (
            &[],
            "{cluster: {lease: 4}}",
            "cluster.dead-node-timeout: 10s is below three leases of 4s",
        ),
        (
            &[("bind-ip", "10.0.0.1")],
            "",
            "--bind-ip: nodes link on loopback only without a shared secret",
        ),
        (
            &[("gossip-port", "60000")],
            "",
            "there is no port 10000 above the gossip port 60000",
        ),
        (
            &[("grpc-port", "5"), ("peer-port", "6")],
            "",
            "--grpc-port: 5 is another port than the peer-port 6",
        ),
    ];
    for (flags, yaml, expected) in table {
        let mut flags = flags.to_vec();
        flags.push(("raft-bootstrap", "force"));
        let found = problems(&flags, yaml, Parts::ALL);
        assert!(
            matches!(&found[..], [one] if one.starts_with(expected)),
            "{found:?}"
        );
    }
    let idle = resolve(
        &[("gossip-port", "7000"), ("node-name", "a")],
        &[],
        "",
        NOTHING,
    )
    .expect("a single node");
    let said: Vec<_> = idle
        .notices
        .iter()
        .map(|notice| notice.text.as_str())
        .collect();
    assert!(
        said.contains(&"--gossip-port does nothing outside cluster mode"),
        "{said:?}"
    );
    assert_eq!(idle.node_name, "a");
}

#[test]
fn a_file_of_comqtts_shape_is_understood() {
    let yaml = "\
storage-way: 3  # redis
bridge-way: 0
bridge-path: ./cmd/config/bridge-kafka.yml
auth:
  way: 0
  datasource: 1
  conf-path: ./cmd/config/auth-redis.yml
cluster:
  discovery-way: 0
  node-name: c01
  bind-addr: 127.0.0.1
  bind-port: 7946
  advertise-addr: # the default
  advertise-port:
  members: [127.0.0.1:7946]
  queue-depth: 10240
  raft-impl: 0
  raft-port: 8946
  raft-dir: data/c01
  raft-bootstrap: true
  grpc-enable: true
  grpc-port: 17946
  inbound-pool-size: 40960
  outbound-pool-size: 40960
  inout-pool-nonblocking: false
mqtt:
  tcp: :1883
  ws: :1882
  http: :8080
  tls:
    ca-cert:
    server-cert:
    server-key:
  options:
    client-write-buffer-size: 2048
    client-read-buffer-size: 2048
    sys-topic-resend-interval: 1
    capabilities:
      compatibilities:
        obscure-not-authorized: true
      maximum-message-expiry-interval: 86400
      maximum-session-expiry-interval: 4294967295
      maximum-client-writes-pending: 65535
      maximum-packet-size: 0
      receive-maximum: 1024
      maximum-qos: 2
      retain-available: 1
      shared-sub-available: 0
      minimum-protocol-version: 3
redis:
  options:
    addr: 127.0.0.1:6379
    username:
    password: secret
    db: 0
  prefix: comqtt
log:
  enable: true
  env: 0
  caller: false
  info-file: ./logs/comqtt-info.log
  error-file: ./logs/comqtt-error.log
  thirdparty-file: ./logs/thirdparty.log
  maxsize: 100
  max-age: 30
  max-backups: 10
  localtime: true
  compress: true
  level: 0
  sampler:
    burst: 3
    period: 1
";
    let settings = from_yaml(yaml);
    assert_eq!(settings.storage.way, StorageWay::Redis);
    assert_eq!(settings.capabilities.message_expiry_max_secs, Some(86_400));
    assert!(settings.capabilities.shortens_retained);
    assert_eq!(settings.capabilities.packet_bytes_max, 268_435_460);
    assert!(settings.compatibilities.obscure_not_authorized);
    assert!(settings.capabilities.retain_available && !settings.capabilities.shared_sub_available);
    let cluster = settings.cluster.expect("cluster mode is on");
    assert_eq!(
        cluster.members,
        [Address::read("127.0.0.1:7946").expect("an address")]
    );
    assert_eq!(
        settings.log.rotation.age_max,
        Some(Duration::from_secs(30 * 86_400))
    );
    assert_eq!(
        settings.log.info_file,
        Some("./logs/comqtt-info.log".into())
    );
}

#[test]
fn connections_and_maximum_clients_are_one_limit() {
    let both = |a: u32, b: u32| {
        format!(
            "{{mqtt: {{limits: {{connections: {a}}}, options: {{capabilities: {{maximum-clients: {b}}}}}}}}}"
        )
    };
    assert_eq!(from_yaml(&both(5, 5)).limits.connections, Limit::Max(5));
    assert_eq!(problems(&[], &both(5, 6), NOTHING).len(), 1);
    assert_eq!(
        from_yaml("{mqtt: {options: {capabilities: {maximum-clients: 6}}}}")
            .limits
            .connections,
        Limit::Max(6)
    );
    assert_eq!(
        from_yaml("{mqtt: {limits: {connections: 0}}}")
            .limits
            .connections,
        Limit::None
    );
    assert_eq!(from_yaml("").limits.connections, Limit::Derived);
}

#[test]
fn log_files_are_used_when_they_are_named() {
    let log = |yaml: &str| from_yaml(yaml).log;
    assert!(log("").console && log("").file.is_none());
    let both = log("{log: {filename: a.log}}");
    assert!(both.console && both.file.is_some());
    assert!(!log("{log: {filename: a.log, output: 1}}").console);
    assert!(log("{log: {filename: a.log, output: 0}}").file.is_none());
    assert_eq!(
        problems(&[], "{log: {output: 1}}", NOTHING),
        ["c.yml:1: log.output: needs a file; name it with log.filename"]
    );
    assert_eq!(log("{log: {env: 1}}").format, LogFormat::Json);
    assert_eq!(log("{log: {env: 1, format: 0}}").format, LogFormat::Text);
}

#[test]
fn more_shards_than_cpus_are_refused() {
    assert_eq!(
        problems(&[("shards", "3"), ("cpus", "0,1")], "", NOTHING).len(),
        1
    );
    let settings = resolve(&[("shards", "2"), ("cpus", "2-3,0")], &[], "", NOTHING).expect("good");
    assert_eq!(settings.cpus, Some(vec![2, 3, 0]));
}

#[test]
fn secrets_are_not_shown() {
    let flags = [
        ("redis", "redis://me:hidden@h:1/0"),
        ("redis-pass", "hidden"),
    ];
    let settings = resolve(&flags, &[], "", Parts::ALL).expect("good");
    assert!(!format!("{settings:?}").contains("hidden"));
    assert_eq!(settings.redis.password.expect("named").expose(), "hidden");
}

// --- kinds

#[test]
fn durations_and_sizes_have_units() {
    let seconds = Kind::Duration {
        unit: value::Unit::Seconds,
        min: 0,
        max: u64::MAX,
    };
    for (text, millis) in [
        ("10", 10_000),
        ("500ms", 500),
        ("10s", 10_000),
        ("2 m", 120_000),
        ("1h", 3_600_000),
        ("1d", 86_400_000),
    ] {
        let read = seconds.read(&Raw::Scalar(text.into()), Dialect::File);
        assert_eq!(
            read,
            Ok(Value::Duration(Duration::from_millis(millis))),
            "{text}"
        );
    }
    let bytes = Kind::Bytes {
        min: 0,
        max: u64::MAX,
    };
    for (text, count) in [
        ("7", 7),
        ("7B", 7),
        ("64KiB", 65_536),
        ("64 mib", 67_108_864),
        ("1GB", 1_000_000_000),
        ("16777215TiB", 16_777_215 << 40),
    ] {
        assert_eq!(
            bytes.read(&Raw::Scalar(text.into()), Dialect::File),
            Ok(Value::Bytes(count)),
            "{text}"
        );
    }
    for text in [
        "",
        "x",
        "1.5",
        "-1",
        "1 furlong",
        "99999999999999999999",
        "18446744073709551615TiB",
        "0x10",
        "1_000",
    ] {
        assert!(
            bytes
                .read(&Raw::Scalar(text.into()), Dialect::File)
                .is_err(),
            "{text}"
        );
        assert!(
            seconds
                .read(&Raw::Scalar(text.into()), Dialect::File)
                .is_err(),
            "{text}"
        );
    }
}

#[test]
fn addresses_are_read_and_shown_alike() {
    for text in [
        ":1883",
        "127.0.0.1:0",
        "[::1]:1883",
        "broker.example:1883",
        "0.0.0.0:1",
        "a_b:1",
    ] {
        assert_eq!(
            Address::read(text)
                .map(|address| address.to_string())
                .as_deref(),
            Some(text)
        );
    }
    for text in [
        "",
        ":",
        "1883",
        "h:",
        "h:x",
        "h:+1",
        "::1:5",
        "[::1]",
        "[1.2.3.4]:5",
        "a b:1",
        "1.2.3:4",
        "-a:1",
        "h:70000",
    ] {
        assert_eq!(Address::read(text), None, "{text}");
    }
    let all = Address::read(":7").expect("an address");
    assert_eq!(
        all.resolve().expect("no name"),
        ["[::]:7".parse().expect("an address")]
    );
    assert!(!all.is_loopback() && Address::loopback(7).is_loopback());
}

#[test]
fn ranges_of_addresses_have_a_prefix_that_fits() {
    let range = Cidr::read("10.0.0.0/8").expect("a range");
    assert_eq!(
        (range.network.to_string(), range.prefix_bits),
        ("10.0.0.0".into(), 8)
    );
    assert_eq!(Cidr::read("192.0.2.1").expect("one").prefix_bits, 32);
    assert_eq!(Cidr::read("::1").expect("one").prefix_bits, 128);
    let mapped = Cidr::read("::ffff:10.0.0.0/104").expect("a range");
    assert_eq!(mapped, range);
    for text in [
        "10.0.0.0/33",
        "::/129",
        "10/8",
        "x",
        "10.0.0.0/",
        "10.0.0.0/-1",
    ] {
        assert_eq!(Cidr::read(text), None, "{text}");
    }
}
