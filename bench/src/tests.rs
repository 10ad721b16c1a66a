// SPDX-License-Identifier: Apache-2.0

//! The generator and the relay face to face, in this process.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::clock::SECOND_NS;
use crate::connect::{self, Storm};
use crate::disturb::Disturbance;
use crate::idle::{self, Idle};
use crate::load::{self, Load, Outcome, Pace, Shape};
use crate::probe::{self, Probe};
use crate::relay::Relay;
use crate::retained::{self, Retained};
use crate::scenario::Figures;
use crate::target::Endpoint;
use crate::transport::{Transport, Way};
use crate::verify::Faults;
use crate::wire::{self, Protocol, kind};
use crate::{certificates, tls};

/// Certificates in a directory of their own, which goes with them.
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("corqtt-bench-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        certificates::write(&dir).expect("the temporary directory can be written");
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The relay's other listener.
    fn add_to(&self, relay: &mut Relay) {
        let config = tls::server_config(&self.path("server.pem"), &self.path("server-key.pem"))
            .expect("certificate and key fit");
        relay
            .bind_tls(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), config)
            .expect("loopback has a free port");
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A relay on a thread of its own, ended when dropped.
struct Served {
    endpoint: Endpoint,
    /// Trusts the relay's certificate.
    tls: Way,
    _certificates: Certificates,
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new() -> Self {
        let mut relay = Relay::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .expect("loopback has a free port");
        let certificates = Certificates::new();
        certificates.add_to(&mut relay);
        let addrs = relay.addrs().expect("a bound listener has an address");
        let (stop, stopped) = UnixStream::pair().expect("a socket pair");
        let thread = thread::spawn(move || {
            let shed = relay
                .run(Some(stopped))
                .expect("the relay runs until it is stopped");
            assert_eq!(shed, 0);
        });
        // this process is generator and broker in one
        let mut endpoint = Endpoint::tcp(addrs[0], Some(std::process::id()));
        endpoint.set(Transport::Tls, addrs[1].port());
        Self {
            endpoint,
            tls: Way::tls(certificates.path("ca.pem")),
            _certificates: certificates,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.stop.write_all(&[1]);
        let ended = self.thread.take().map(JoinHandle::join);
        // a second panic would hide the first one
        if let (Some(Err(panic)), false) = (ended, thread::panicking()) {
            std::panic::resume_unwind(panic);
        }
    }
}

fn load(shape: Shape, pace: Pace) -> Load {
    Load {
        way: Way::tcp(),
        shape,
        pace,
        protocol: Protocol::V311,
        publish_qos: 0,
        subscribe_qos: 0,
        persistent: false,
        away: false,
        payload_bytes: 64,
        warmup_ns: SECOND_NS / 20,
        measure_ns: SECOND_NS / 10,
        stall_ns: 5 * SECOND_NS,
    }
}

fn run(load: &Load) -> Outcome {
    run_at(&Served::new(), load)
}

fn run_at(served: &Served, load: &Load) -> Outcome {
    let outcome = load::run(&served.endpoint, load).expect("the relay carries this load");
    assert_eq!(outcome.faults, Faults::default());
    assert!(outcome.published > 0);
    assert!(outcome.broker_cpu_ns.is_some());
    outcome
}

#[test]
fn pairs_lose_nothing_in_either_version() {
    for protocol in [Protocol::V311, Protocol::V5] {
        let shape = Shape::Pairs {
            pairs: 5,
            one_client: false,
        };
        let outcome = run(&Load {
            protocol,
            measure_ns: SECOND_NS / 2,
            ..load(shape, Pace::Window(16))
        });
        assert!(outcome.delivered > 0);
        // what was sent before the window and arrived in it is delivered there and has no latency there
        assert!(!outcome.latency.is_empty());
    }
}

#[test]
fn a_client_may_be_both_ends_of_a_pair() {
    run(&load(
        Shape::Pairs {
            pairs: 3,
            one_client: true,
        },
        Pace::Window(4),
    ));
}

#[test]
fn every_subscriber_of_a_fan_out_gets_every_message() {
    run(&load(Shape::FanOut { subscribers: 20 }, Pace::Window(8)));
}

#[test]
fn a_fan_in_keeps_its_publishers_apart() {
    run(&load(
        Shape::FanIn {
            publishers: 10,
            exact: true,
        },
        Pace::Window(8),
    ));
}

#[test]
fn payloads_larger_than_a_read_arrive_whole() {
    let shape = Shape::Pairs {
        pairs: 2,
        one_client: false,
    };
    run(&Load {
        payload_bytes: 50_000,
        ..load(shape, Pace::Window(4))
    });
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let started = Instant::now();
    let outcome = run(&load(
        Shape::Pairs {
            pairs: 4,
            one_client: false,
        },
        Pace::Rate(2000.0),
    ));
    // 0.15 s at least are scheduled; how much longer the run took, only the clock knows
    let most = 2000.0 * started.elapsed().as_secs_f64() + 1.0;
    assert!((300..=most as u64).contains(&(outcome.published + outcome.unsent)));
}

#[test]
fn what_the_relay_cannot_do_fails_the_run() {
    let shape = Shape::Pairs {
        pairs: 1,
        one_client: false,
    };
    let quality = Load {
        publish_qos: 1,
        subscribe_qos: 1,
        ..load(shape, Pace::Window(1))
    };
    assert!(load::run(&Served::new().endpoint, &quality).is_err());
    let wildcard = load(
        Shape::FanIn {
            publishers: 2,
            exact: false,
        },
        Pace::Window(1),
    );
    assert!(load::run(&Served::new().endpoint, &wildcard).is_err());
}

/// What an unfaithful broker does to the tenth message.
#[derive(Clone, Copy)]
enum Lie {
    Drop,
    Double,
    Delay,
}

/// A broker for one subscriber, then one publisher, that forwards all messages but one as it should.
fn lie_once(listener: &TcpListener, lie: Lie) -> std::io::Result<()> {
    let (mut subscriber, _) = listener.accept()?;
    answer(&mut subscriber, &[kind::CONNACK << 4, 2, 0, 0])?;
    answer(&mut subscriber, &[kind::SUBACK << 4, 3, 0, 1, 0])?;
    let (mut publisher, _) = listener.accept()?;
    answer(&mut publisher, &[kind::CONNACK << 4, 2, 0, 0])?;
    let mut held = Vec::new();
    for number in 0.. {
        let packet = packet_of(&mut publisher)?;
        if packet[0] >> 4 == kind::DISCONNECT {
            break;
        }
        match (number, lie) {
            (10, Lie::Drop) => {}
            (10, Lie::Double) => subscriber.write_all(&[packet.clone(), packet].concat())?,
            (10, Lie::Delay) => held = packet,
            _ => subscriber.write_all(&[packet, std::mem::take(&mut held)].concat())?,
        }
    }
    Ok(())
}

fn answer(client: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    packet_of(client)?;
    client.write_all(bytes)
}

fn packet_of(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut packet = Vec::new();
    loop {
        match wire::split(&packet).expect("the generator sends MQTT") {
            Some(_) => return Ok(packet),
            None => {
                let mut byte = [0];
                client.read_exact(&mut byte)?;
                packet.push(byte[0]);
            }
        }
    }
}

#[test]
fn loss_duplicates_and_disorder_are_found() {
    for (lie, faults) in [
        (
            Lie::Drop,
            Faults {
                lost: 1,
                ..Faults::default()
            },
        ),
        (
            Lie::Double,
            Faults {
                duplicates: 1,
                ..Faults::default()
            },
        ),
        (
            Lie::Delay,
            Faults {
                misordered: 1,
                ..Faults::default()
            },
        ),
    ] {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let addr = listener
            .local_addr()
            .expect("a bound listener has an address");
        let broker = thread::spawn(move || lie_once(&listener, lie));
        let shape = Shape::Pairs {
            pairs: 1,
            one_client: false,
        };
        let load = Load {
            stall_ns: 2 * SECOND_NS,
            ..load(shape, Pace::Rate(1000.0))
        };
        let outcome =
            load::run(&Endpoint::tcp(addr, None), &load).expect("one lie does not end a run");
        assert_eq!(outcome.faults, faults);
        broker
            .join()
            .expect("the broker does not panic")
            .expect("its clients stay until they say goodbye");
    }
}

#[test]
fn a_load_over_tls_loses_nothing_either() {
    let served = Served::new();
    for (payload_bytes, window) in [(64, 64), (50_000, 4)] {
        let shape = Shape::Pairs {
            pairs: 3,
            one_client: false,
        };
        let outcome = run_at(
            &served,
            &Load {
                way: served.tls.clone(),
                payload_bytes,
                measure_ns: SECOND_NS / 2,
                ..load(shape, Pace::Window(window))
            },
        );
        assert!(outcome.delivered > 0);
    }
}

#[test]
fn a_certificate_that_the_ca_did_not_sign_is_not_trusted() {
    let served = Served::new();
    let others = Certificates::new();
    let shape = Shape::FanOut { subscribers: 1 };
    let stranger = Load {
        way: Way::tls(others.path("ca.pem")),
        ..load(shape, Pace::Window(1))
    };
    let error = load::run(&served.endpoint, &stranger)
        .err()
        .expect("no handshake");
    assert!(format!("{error:#}").contains("certificate"), "{error:#}");
}

#[test]
fn certificates_are_complete() {
    let certificates = Certificates::new();
    for name in ["ca", "server", "client", "server-key", "client-key"] {
        let text = std::fs::read_to_string(certificates.path(&format!("{name}.pem")));
        let kind = if name.ends_with("key") {
            "PRIVATE KEY"
        } else {
            "CERTIFICATE"
        };
        let begin = format!("-----BEGIN {kind}-----");
        assert!(text.expect("it is written").starts_with(&begin), "{name}");
    }
    let path = |name: &str| certificates.path(name);
    assert!(tls::server_config(&path("client.pem"), &path("client-key.pem")).is_ok());
    assert!(tls::server_config(&path("server.pem"), &path("client-key.pem")).is_err());
    assert!(tls::client_config(&path("server-key.pem"), None).is_err());
    assert!(tls::client_config(Path::new("/nowhere"), None).is_err());
}

fn storm(way: &Way) -> Storm {
    Storm {
        way: way.clone(),
        protocol: Protocol::V311,
        connects: 60,
        concurrency: 10,
        rate: None,
        resume: 0.0,
    }
}

fn value(figures: &Figures, name: &str) -> f64 {
    figures
        .value(name)
        .unwrap_or_else(|| panic!("the figures have {name}"))
}

#[test]
fn a_storm_gets_all_its_connacks_on_every_transport() {
    let served = Served::new();
    for way in [&Way::tcp(), &served.tls] {
        let figures = connect::run(&served.endpoint, &storm(way)).expect("the relay accepts");
        assert!(figures.failures.is_empty());
        assert!(value(&figures, "connects_per_core_s") > 0.0);
        assert_eq!(figures.value("resumed_percent"), None);
    }
}

#[test]
fn a_storm_resumes_the_share_that_was_asked_for() {
    let served = Served::new();
    for (resume, percent) in [(0.5, 50.0), (1.0, 100.0)] {
        let figures = connect::run(
            &served.endpoint,
            &Storm {
                resume,
                ..storm(&served.tls)
            },
        );
        let figures = figures.expect("the relay accepts");
        assert!(figures.failures.is_empty(), "{:?}", figures.failures);
        assert_eq!(value(&figures, "resumed_percent"), percent);
    }
}

#[test]
fn a_storm_with_a_rate_takes_its_time() {
    let served = Served::new();
    let rated = Storm {
        rate: Some(600.0),
        ..storm(&Way::tcp())
    };
    let started = Instant::now();
    let figures = connect::run(&served.endpoint, &rated).expect("the relay accepts");
    // the last one is due 59/600 s after the first
    assert!(started.elapsed() >= Duration::from_millis(98));
    assert!(value(&figures, "connects_per_s") <= 60.0 / 0.098);
}

#[test]
fn idle_clients_are_counted_over_tls_too() {
    let served = Served::new();
    let figures = idle::run(
        &served.endpoint,
        &Idle {
            way: served.tls.clone(),
            protocol: Protocol::V5,
            connections: 20,
            opening: 7,
            watch_ns: 1,
        },
    );
    let figures = figures.expect("the relay accepts");
    assert!(value(&figures, "rss_bytes_per_connection").is_finite());
}

#[test]
fn a_probe_counts_what_it_sent_and_how_long_it_took() {
    let served = Served::new();
    let figures = probe::run(
        &served.endpoint,
        &Probe {
            way: served.tls.clone(),
            protocol: Protocol::V311,
            rate: 1000.0,
            duration_ns: SECOND_NS / 10,
            attended: false,
            nice: 0,
        },
    );
    let figures = figures.expect("the relay carries a probe");
    assert!(figures.failures.is_empty(), "{:?}", figures.failures);
    assert_eq!(value(&figures, "sent"), 100.0);
    assert_eq!(value(&figures, "lost"), 0.0);
    assert!(value(&figures, "p50_us") > 0.0);
    assert!(value(&figures, "p50_us") <= value(&figures, "max_us"));
}

/// A probe as the driver sees it: quiet it says 100 us, beside the load, which leaves a file, what `beside` is.
fn disturbance(dir: &Path, load: &str, beside: u32) -> Disturbance {
    let file = dir.join("loaded").display().to_string();
    let script = format!(
        "echo ready; read go; p99=100; cat >/dev/null; [ -e {file} ] && p99={beside}; \
         echo \"{{\\\"p99_us\\\": $p99, \\\"sent\\\": 1000, \\\"failures\\\": []}}\""
    );
    Disturbance {
        load: load.replace("FILE", &file),
        from: Some("begin".into()),
        until: Some("end".into()),
        at_most: Duration::from_secs(20),
        quiet: Duration::ZERO,
        rounds: 1,
        probe: ["sh", "-c", &script].map(String::from).to_vec(),
    }
}

#[test]
fn a_disturbance_is_judged_by_what_the_probe_says_beside_the_load() {
    let dir = Certificates::new();
    let endpoint = Endpoint::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), None);
    for (load, beside, holds) in [
        ("touch FILE; echo begin; echo end", 5000, true),
        ("touch FILE; echo begin; echo end", 5001, false),
        ("touch FILE; echo begin", 100, false),
        ("touch FILE", 100, false),
        ("touch FILE; echo begin; echo end; exit 1", 100, false),
    ] {
        let _ = std::fs::remove_file(dir.path("loaded"));
        let findings = disturbance(&dir.0, load, beside).run(&endpoint);
        assert_eq!(
            findings.holds(),
            holds,
            "{load} {beside} {:?}",
            findings.failures()
        );
        let json = findings.json();
        assert_eq!(json["quiet_p99_us"], 100.0, "{json}");
    }
}

/// A broker for retained messages of QoS 1 and one subscriber of everything.
#[derive(Default)]
struct Keeper {
    retained: BTreeMap<Vec<u8>, Vec<u8>>,
    subscriber: Option<TcpStream>,
    /// What the subscriber gets a second time after so many live messages.
    stale: Option<(u32, Vec<u8>)>,
}

impl Keeper {
    /// Serves two clients, each on a thread; `stale_after`: old values come again behind new ones.
    fn serve(stale_after: Option<u32>) -> Endpoint {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let addr = listener
            .local_addr()
            .expect("a bound listener has an address");
        let keeper = Arc::new(Mutex::new(Self::default()));
        thread::spawn(move || {
            for client in listener.incoming().take(2).flatten() {
                let keeper = Arc::clone(&keeper);
                thread::spawn(move || Self::serve_client(&keeper, client, stale_after));
            }
        });
        Endpoint::tcp(addr, None)
    }

    /// Until the client goes.
    fn serve_client(
        keeper: &Mutex<Self>,
        mut client: TcpStream,
        stale_after: Option<u32>,
    ) -> std::io::Result<()> {
        loop {
            let packet = packet_of(&mut client)?;
            let mut keeper = keeper.lock().expect("no client panics");
            match packet[0] >> 4 {
                kind::CONNECT => client.write_all(&[kind::CONNACK << 4, 2, 0, 0])?,
                kind::PUBLISH => keeper.publish(&mut client, packet)?,
                kind::SUBSCRIBE => {
                    let pages: Vec<u8> = keeper.retained.values().flatten().copied().collect();
                    client.write_all(&[kind::SUBACK << 4, 3, 0, 1, 1])?;
                    client.write_all(&pages)?;
                    // someone else's, which a subscriber of everything hears too
                    client.write_all(b"\x30\x06\x00\x03a/bx")?;
                    keeper.subscriber = Some(client.try_clone()?);
                    keeper.stale = stale_after.map(|after| (after, pages));
                }
                kind::PUBACK => {}
                _ => return Ok(()),
            }
        }
    }

    fn publish(&mut self, client: &mut TcpStream, packet: Vec<u8>) -> std::io::Result<()> {
        let whole = wire::split(&packet).expect("MQTT").expect("whole");
        let body = &packet[whole.body..];
        let delivery = wire::delivery(packet[0], body, Protocol::V311).expect("a PUBLISH");
        let [high, low] = delivery.packet_id.to_be_bytes();
        if let Some(subscriber) = &mut self.subscriber {
            subscriber.write_all(&packet)?;
            match &mut self.stale {
                Some((0, pages)) => {
                    subscriber.write_all(pages)?;
                    self.stale = None;
                }
                Some((left, _)) => *left -= 1,
                None => {}
            }
        }
        if delivery.payload.is_empty() {
            self.retained.remove(delivery.topic);
            self.subscriber = None;
        } else {
            self.retained.insert(delivery.topic.to_vec(), packet);
        }
        client.write_all(&[kind::PUBACK << 4, 2, high, low])
    }
}

fn retained() -> Retained {
    Retained {
        way: Way::tcp(),
        protocol: Protocol::V311,
        topics: 300,
        payload_bytes: 64,
        updates: 1e6,
        qos: 1,
        stall_ns: SECOND_NS,
    }
}

#[test]
fn a_join_ends_with_the_newest_value_of_every_topic() {
    let figures = retained::run(&Keeper::serve(None), &retained()).expect("the keeper answers");
    assert!(figures.failures.is_empty(), "{:?}", figures.failures);
    assert!(value(&figures, "received") >= 300.0);
    assert_eq!(value(&figures, "behind"), 0.0);
    assert_eq!(value(&figures, "of_others"), 1.0);
}

#[test]
fn an_old_value_behind_a_new_one_is_found() {
    let figures = retained::run(&Keeper::serve(Some(0)), &retained()).expect("the keeper answers");
    assert!(value(&figures, "went_back") >= 1.0);
    assert!(!figures.failures.is_empty());
}
