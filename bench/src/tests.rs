// SPDX-License-Identifier: Apache-2.0

//! The generator and the relay face to face, in this process.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::clock::SECOND_NS;
use crate::load::{self, Load, Outcome, Pace, Shape};
use crate::relay::Relay;
use crate::target::Endpoint;
use crate::verify::Faults;
use crate::wire::{self, Protocol, kind};

/// A relay on a thread of its own, ended when dropped.
struct Served {
    endpoint: Endpoint,
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new() -> Self {
        let relay = Relay::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .expect("loopback has a free port");
        let addr = relay.addr().expect("a bound listener has an address");
        let (stop, stopped) = UnixStream::pair().expect("a socket pair");
        let thread = thread::spawn(move || {
            let shed = relay
                .run(Some(stopped))
                .expect("the relay runs until it is stopped");
            assert_eq!(shed, 0);
        });
        // this process is generator and broker in one
        Self {
            endpoint: Endpoint {
                addr,
                pid: Some(std::process::id()),
            },
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.stop.write_all(&[1]);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }
}

fn load(shape: Shape, pace: Pace) -> Load {
    Load {
        shape,
        pace,
        protocol: Protocol::V311,
        publish_qos: 0,
        subscribe_qos: 0,
        persistent: false,
        payload_bytes: 64,
        warmup_ns: SECOND_NS / 20,
        measure_ns: SECOND_NS / 10,
        stall_ns: 5 * SECOND_NS,
    }
}

fn run(load: &Load) -> Outcome {
    let outcome = load::run(&Served::new().endpoint, load).expect("the relay carries this load");
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
            load::run(&Endpoint { addr, pid: None }, &load).expect("one lie does not end a run");
        assert_eq!(outcome.faults, faults);
        broker
            .join()
            .expect("the broker does not panic")
            .expect("its clients stay until they say goodbye");
    }
}
