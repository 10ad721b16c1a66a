// SPDX-License-Identifier: Apache-2.0
//! Numbers as Prometheus reads them, text format 0.0.4: comqtt's names for the whole node, and `corqtt_` ones with
//! labels for each shard and reason.
//!
//! Written by hand: comqtt's counters are called `bytes_received`, where client libraries insist on
//! `bytes_received_total`.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use corqtt_port::admin::{ByReason, Numbers};
use corqtt_port::histogram::Histogram;

use crate::numbers::{Overall, Snapshot};
use crate::store::StoreNumbers;

pub(super) const CONTENT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is counted outside the shards.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OfProcess {
    pub(super) log_lines_dropped: u64,
    pub(super) http_evicted: u64,
}

/// The whole page.
pub(super) fn text(
    snapshot: &Snapshot,
    process: OfProcess,
    store: Option<&StoreNumbers>,
) -> String {
    let mut page = Page(String::with_capacity(16 * 1024));
    for (name, kind, help, value) in comqtts(&snapshot.overall) {
        page.family(name, kind, help);
        page.sample(name, &[], value);
    }
    of_process(&mut page, &snapshot.overall, process);
    of_shards(&mut page, &snapshot.shards);
    if let Some(store) = store {
        of_store(&mut page, store);
    }
    page.0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

use Kind::{Counter, Gauge};

/// comqtt's 17, with its kinds.
#[rustfmt::skip]
fn comqtts(of: &Overall) -> [(&'static str, Kind, &'static str, u64); 17] {
    [
        ("bytes_received", Counter, "bytes read from clients since start", of.bytes_received),
        ("bytes_sent", Counter, "bytes written to clients since start", of.bytes_sent),
        ("clients_connected", Gauge, "connected clients", of.clients_connected),
        ("clients_disconnected", Gauge, "sessions whose client is not connected", of.clients_disconnected),
        ("clients_maximum", Gauge, "the most clients that were connected at once since start", of.clients_maximum),
        ("clients_total", Gauge, "sessions, connected or not", of.clients_total),
        ("messages_received", Counter, "PUBLISH packets of clients since start", of.messages_received),
        ("messages_sent", Counter, "PUBLISH packets to clients since start", of.messages_sent),
        ("messages_dropped", Counter, "messages dropped since start", of.messages_dropped),
        ("retained", Gauge, "retained messages", of.retained),
        ("inflight", Gauge, "messages begun and not acknowledged to the end", of.inflight),
        ("inflight_dropped", Gauge, "those whose session ended first, since start", of.inflight_dropped),
        ("subscriptions", Gauge, "subscriptions", of.subscriptions),
        ("packets_received", Counter, "packets of clients since start", of.packets_received),
        ("packets_sent", Counter, "packets to clients since start", of.packets_sent),
        ("memory_alloc", Gauge, "resident memory of the process in bytes", of.memory_alloc),
        ("threads", Gauge, "threads of the process", of.threads),
    ]
}

fn of_process(page: &mut Page, overall: &Overall, process: OfProcess) {
    let name = "corqtt_build_info";
    page.family(name, Gauge, "1; the version is a label");
    page.sample(name, &[("version", overall.version)], 1);
    #[rustfmt::skip]
    let rows = [
        ("corqtt_start_time_seconds", Gauge, "when the broker started, since 1970", overall.started),
        ("corqtt_uptime_seconds", Gauge, "time since start", overall.uptime),
        ("corqtt_log_lines_dropped_total", Counter, "log lines dropped since they could not be written fast enough",
            process.log_lines_dropped),
        ("corqtt_http_connections_evicted_total", Counter, "HTTP connections closed to make room for newer ones",
            process.http_evicted),
    ];
    for (name, kind, help, value) in rows {
        page.family(name, kind, help);
        page.sample(name, &[], value);
    }
}

type Value = fn(&Numbers) -> u64;
type Reasons = fn(&Numbers) -> &ByReason;
type Durations = fn(&Numbers) -> &Histogram;

#[rustfmt::skip]
const VALUES: [(&str, Kind, &str, Value); 12] = [
    ("corqtt_bytes_received_total", Counter, "bytes read from clients", |of| of.bytes_received),
    ("corqtt_bytes_sent_total", Counter, "bytes written to clients", |of| of.bytes_sent),
    ("corqtt_packets_received_total", Counter, "packets of clients", |of| of.packets_received),
    ("corqtt_packets_sent_total", Counter, "packets to clients", |of| of.packets_sent),
    ("corqtt_messages_sent_total", Counter, "PUBLISH packets to clients", |of| of.messages_sent),
    ("corqtt_inflight_dropped_total", Counter, "messages in flight whose session ended first", |of| of.inflight_dropped),
    ("corqtt_sessions", Gauge, "sessions, connected or not", |of| of.clients_total),
    ("corqtt_subscriptions", Gauge, "subscriptions", |of| of.subscriptions),
    ("corqtt_retained_messages", Gauge, "retained messages, without $SYS", |of| of.retained),
    ("corqtt_retained_bytes", Gauge, "bytes of retained messages, without $SYS", |of| of.retained_bytes),
    ("corqtt_held_bytes", Gauge, "bytes that clients make the shard hold, which count against memory-max", |of| of.held_bytes),
    ("corqtt_inflight_messages", Gauge, "messages begun and not acknowledged to the end", |of| of.inflight),
];

#[rustfmt::skip]
const BY_REASON: [(&str, &str, Reasons); 4] = [
    ("corqtt_messages_dropped_total", "messages dropped", |of| &of.dropped),
    ("corqtt_limits_reached_total", "times that a limit was reached", |of| &of.limited),
    ("corqtt_connections_refused_total", "connections that ended before their client was connected", |of| &of.refused),
    ("corqtt_connections_closed_total", "connections of clients that ended: by whom, or why the broker did", |of| &of.closed),
];

#[rustfmt::skip]
const DURATIONS: [(&str, &str, Durations); 4] = [
    ("corqtt_turn_cpu_seconds", "time on the CPU per turn, at most 250 µs too high", |of| &of.turn_cpu),
    ("corqtt_turn_seconds", "time from waking up to the last write, of turns that had something to do", |of| &of.turn_wall),
    ("corqtt_ack_wait_for_shards_seconds", "time that acknowledgements waited for another shard, a sample",
        |of| &of.waited_for_shards),
    ("corqtt_ack_wait_for_store_seconds", "time that acknowledgements waited for the store, a sample",
        |of| &of.waited_for_store),
];

fn of_shards(page: &mut Page, shards: &[Numbers]) {
    let shards: Vec<_> = (0..).map(|n: usize| n.to_string()).zip(shards).collect();
    for (name, kind, help, value) in VALUES {
        page.family(name, kind, help);
        for (shard, of) in &shards {
            page.sample(name, &[("shard", shard)], value(of));
        }
    }
    let name = "corqtt_messages_received_total";
    page.family(name, Counter, "PUBLISH packets of clients");
    for (shard, of) in &shards {
        for (qos, count) in ["0", "1", "2"].iter().zip(of.messages_received_by_qos) {
            page.sample(name, &[("shard", shard), ("qos", qos)], count);
        }
    }
    let name = "corqtt_connections";
    page.family(name, Gauge, "connections by how far they are");
    for (shard, of) in &shards {
        for (stage, count) in [
            ("opening", of.connections_opening),
            ("live", of.clients_connected),
            ("lingering", of.connections_lingering),
        ] {
            page.sample(name, &[("shard", shard), ("stage", stage)], count);
        }
    }
    for (name, help, reasons) in BY_REASON {
        page.family(name, Counter, help);
        for (shard, of) in &shards {
            for (reason, count) in reasons(of) {
                page.sample(name, &[("shard", shard), ("reason", reason)], count);
            }
        }
    }
    for (name, help, durations) in DURATIONS {
        page.family(name, Kind::Histogram, help);
        for (shard, of) in &shards {
            let durations = durations(of);
            let labels = [("shard", shard.as_str())];
            page.histogram(name, &labels, durations.counts(), durations.sum_ns());
        }
    }
    for (name, _, durations) in DURATIONS {
        let name = name.replace("_seconds", "_max_seconds");
        page.family(&name, Gauge, "the longest since start");
        for (shard, of) in &shards {
            page.sample(&name, &[("shard", shard)], Seconds(durations(of).max_ns()));
        }
    }
}

fn of_store(page: &mut Page, store: &StoreNumbers) {
    let load = |of: &AtomicU64| of.load(Ordering::Relaxed);
    #[rustfmt::skip]
    let rows = [
        ("corqtt_store_batches_total", Counter, "batches of shards that were committed", &store.batches),
        ("corqtt_store_operations_total", Counter, "operations in them", &store.operations),
        ("corqtt_store_rows_total", Counter, "rows written and removed for them", &store.rows),
        ("corqtt_store_written_bytes_total", Counter, "keys and values of those", &store.written_bytes),
        ("corqtt_store_backlog_operations", Gauge, "operations that wait for the next commit", &store.backlog),
        ("corqtt_store_bytes", Gauge, "what the store takes on the disk", &store.bytes),
        ("corqtt_store_used_bytes", Gauge, "what its rows take of that, which counts against store-bytes", &store.used_bytes),
        ("corqtt_store_full", Gauge, "1 while there is no room for more", &store.full),
    ];
    for (name, kind, help, value) in rows {
        page.family(name, kind, help);
        page.sample(name, &[], load(value));
    }
    let name = "corqtt_store_commit_seconds";
    page.family(
        name,
        Kind::Histogram,
        "how long a commit took, with its sync",
    );
    let counts: Vec<u64> = store.commits_by_ns.iter().map(load).collect();
    page.histogram(name, &[], &counts, load(&store.commit_ns));
    let name = "corqtt_store_commit_max_seconds";
    page.family(name, Gauge, "the longest since start");
    page.sample(name, &[], Seconds(load(&store.commit_max_ns)));
}

/// Nanoseconds, shown as seconds without loss.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        let rest = format!("{rest:09}");
        write!(f, "{whole}.{}", rest.trim_end_matches('0'))
    }
}

/// The page, as far as it is written. Writing to a String cannot fail.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Counter => "counter",
            Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"");
            for char in text.chars() {
                match char {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// `counts`: durations up to each bound of [`Histogram::BOUNDS_NS`], and above the last.
    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], counts: &[u64], sum_ns: u64) {
        let bucket = format!("{name}_bucket");
        let bounds = Histogram::BOUNDS_NS
            .iter()
            .map(|ns| Seconds(*ns).to_string());
        let bounds = bounds.chain(["+Inf".to_owned()]);
        let mut up_to_here = 0;
        for (bound, count) in bounds.zip(counts) {
            up_to_here += count;
            let labels = [labels, &[("le", &bound)]].concat();
            self.sample(&bucket, &labels, up_to_here);
        }
        self.sample(&format!("{name}_sum"), labels, Seconds(sum_ns));
        self.sample(&format!("{name}_count"), labels, up_to_here);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::numbers::tests::snapshot;

    fn page() -> String {
        let process = OfProcess {
            log_lines_dropped: 3,
            http_evicted: 4,
        };
        let store = StoreNumbers::default();
        store.commits_by_ns[1].store(2, Ordering::Relaxed);
        store.commit_ns.store(200_000, Ordering::Relaxed);
        text(&snapshot(), process, Some(&store))
    }

    #[test]
    fn a_store_is_there_if_there_is_one() {
        let with = page();
        assert_eq!(value(&with, "corqtt_store_commit_seconds_count"), "2");
        assert_eq!(value(&with, "corqtt_store_commit_seconds_sum"), "0.0002");
        let bucket = r#"corqtt_store_commit_seconds_bucket{le="0.00005"}"#;
        assert_eq!(value(&with, bucket), "0");
        let without = text(&snapshot(), OfProcess::default(), None);
        assert!(!without.contains("corqtt_store_"));
    }

    /// The value behind a name and its labels.
    fn value<'a>(page: &'a str, series: &str) -> &'a str {
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{page}"))
    }

    #[test]
    fn comqtts_names_have_the_nodes_values() {
        let page = page();
        assert_eq!(value(&page, "bytes_received"), "1010");
        assert_eq!(value(&page, "clients_disconnected"), "202");
        assert_eq!(value(&page, "messages_dropped"), "303");
        assert!(page.contains("# TYPE bytes_received counter\n"));
        assert!(page.contains("# TYPE clients_connected gauge\n"));
    }

    #[test]
    fn comqtts_names_are_the_fields_of_its_statistics() {
        let overall = snapshot().overall;
        let fields = serde_json::to_value(&overall).expect("plain values");
        let mut names: BTreeSet<_> = ["version", "started", "time", "uptime"].into();
        for (name, _, _, value) in comqtts(&overall) {
            assert_eq!(fields[name], value, "{name}");
            names.insert(name);
        }
        let fields: BTreeSet<_> = fields
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(fields, names);
    }

    #[test]
    fn shards_and_reasons_are_labels() {
        let page = page();
        let dropped = r#"corqtt_messages_dropped_total{shard="1",reason="offline"}"#;
        assert_eq!(value(&page, dropped), "200");
        let refused = r#"corqtt_connections_refused_total{shard="0",reason="not-authorized"}"#;
        assert_eq!(value(&page, refused), "1");
        let limited = r#"corqtt_limits_reached_total{shard="1",reason="connections"}"#;
        assert_eq!(value(&page, limited), "300");
        let lingering = r#"corqtt_connections{shard="1",stage="lingering"}"#;
        assert_eq!(value(&page, lingering), "200");
        assert_eq!(value(&page, "corqtt_log_lines_dropped_total"), "3");
        assert_eq!(value(&page, "corqtt_http_connections_evicted_total"), "4");
    }

    #[test]
    fn buckets_add_up() {
        let mut page = Page(String::new());
        let mut durations = Histogram::default();
        for ns in [1, 60_000, 70_000, 3_000_000_000] {
            durations.record(ns);
        }
        let labels = [("shard", "0")];
        page.histogram("t", &labels, durations.counts(), durations.sum_ns());
        let page = page.0;
        assert_eq!(value(&page, r#"t_bucket{shard="0",le="0.00005"}"#), "1");
        assert_eq!(value(&page, r#"t_bucket{shard="0",le="0.0001"}"#), "3");
        assert_eq!(value(&page, r#"t_bucket{shard="0",le="1"}"#), "3");
        assert_eq!(value(&page, r#"t_bucket{shard="0",le="+Inf"}"#), "4");
        assert_eq!(value(&page, r#"t_count{shard="0"}"#), "4");
        assert_eq!(value(&page, r#"t_sum{shard="0"}"#), "3.000130001");
    }

    #[test]
    fn every_family_is_told_once_and_before_its_samples() {
        let page = page();
        let mut told = BTreeSet::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().expect("a name");
                assert!(told.insert(name.to_owned()), "{name} is told twice");
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().expect("a name");
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end))
                    .filter(|family| told.contains(*family));
                assert!(told.contains(family.unwrap_or(name)), "{line}");
            }
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let mut page = Page(String::new());
        page.sample("a", &[("b", "c\\d\"e\nf")], 1);
        assert_eq!(page.0, "a{b=\"c\\\\d\\\"e\\nf\"} 1\n");
    }

    #[test]
    fn seconds_lose_nothing() {
        for (ns, text) in [
            (0, "0"),
            (1, "0.000000001"),
            (50_000, "0.00005"),
            (1_500_000_000, "1.5"),
        ] {
            assert_eq!(Seconds(ns).to_string(), text);
        }
    }
}
