// SPDX-License-Identifier: Apache-2.0
//! Session expiry and the will.

use super::*;
use crate::Deadline;

fn with_will(session_expiry_secs: u32, delay_secs: u32) -> Bench {
    Bench::open(Opening {
        session_expiry_secs,
        will: will(delay_secs),
        ..opening(Version::V5)
    })
}

#[test]
fn an_interval_of_0_ends_the_session_with_its_connection() {
    // [MQTT-3.1.2-6] [MQTT5-4.1.0-2]
    let mut bench = Bench::open(clean(Version::V5));
    assert!(!bench.session.is_persistent());
    assert!(bench.close().ended);
}

#[test]
fn an_interval_ends_the_session_that_long_after_its_connection() {
    // [MQTT-4.1.0-2] [MQTT5-3.1.2-23] [MQTT5-4.1.0-1] [MQTT5-4.1.0-2]
    let mut bench = with_will(30, 0);
    assert_eq!(bench.session.poll_deadline(), None, "not while connected");
    assert!(!bench.close().ended);
    assert_eq!(
        bench.session.poll_deadline(),
        Some(Deadline::Expiry(5_000 + 30_000))
    );
    bench.session.open(opening(Version::V5));
    assert_eq!(bench.session.poll_deadline(), None);
}

#[test]
fn the_highest_interval_never_ends_it() {
    let mut bench = Bench::persistent(Version::V5);
    assert!(!bench.close().ended);
    assert_eq!(bench.session.poll_deadline(), None);
    let mut bench = with_will(u32::MAX - 1, 0);
    bench.close();
    let end = 5_000 + u64::from(u32::MAX - 1) * 1000;
    assert_eq!(bench.session.poll_deadline(), Some(Deadline::Expiry(end)));
}

#[test]
fn disconnect_may_change_the_interval_but_not_from_0() {
    let mut bench = Bench::persistent(Version::V5);
    assert_eq!(bench.session.set_session_expiry(0), Ok(()));
    assert!(bench.close().ended);
    let mut bench = Bench::open(clean(Version::V5));
    assert_eq!(bench.session.set_session_expiry(0), Ok(()));
    let violation = bench.session.set_session_expiry(1).unwrap_err();
    assert_eq!(violation.reason, ReasonCode::PROTOCOL_ERROR);
}

#[test]
fn a_will_without_delay_is_published_when_the_connection_ends() {
    // [MQTT-3.1.2-8] [MQTT-3.1.2-10] [MQTT5-3.1.2-7] [MQTT5-3.1.2-8] [MQTT5-3.1.2-10]
    let mut bench = with_will(30, 0);
    let closed = bench.close();
    assert_eq!(closed.will, will(0));
    assert_eq!(bench.session.take_will(), None);
}

#[test]
fn a_normal_disconnect_drops_the_will() {
    // [MQTT-3.1.2-10] [MQTT5-3.1.2-10] [MQTT-3.14.4-3] [MQTT5-3.14.4-3]
    for delay_secs in [0, 10] {
        let mut bench = with_will(30, delay_secs);
        let closed = bench.session.close(false, bench.now);
        assert_eq!(closed.will, None);
        assert_eq!(bench.session.take_will(), None);
        assert_eq!(
            bench.session.poll_deadline(),
            Some(Deadline::Expiry(5_000 + 30_000))
        );
    }
}

#[test]
fn a_delayed_will_waits_and_then_the_session_goes_on() {
    // [MQTT5-3.1.2-8]
    let mut bench = with_will(30, 10);
    assert_eq!(bench.close().will, None);
    assert_eq!(
        bench.session.poll_deadline(),
        Some(Deadline::Will(5_000 + 10_000))
    );
    assert_eq!(bench.session.take_will(), will(10));
    assert_eq!(
        bench.session.poll_deadline(),
        Some(Deadline::Expiry(5_000 + 30_000))
    );
}

#[test]
fn a_delayed_will_is_published_when_its_session_ends_before() {
    // [MQTT5-3.1.3-9]
    for delay_secs in [30, 60, u32::MAX] {
        let mut bench = with_will(30, delay_secs);
        bench.close();
        assert_eq!(
            bench.session.poll_deadline(),
            Some(Deadline::Expiry(5_000 + 30_000))
        );
        assert_eq!(bench.session.take_will(), will(delay_secs));
    }
    let mut bench = with_will(0, 60);
    let closed = bench.close();
    assert!(closed.ended);
    assert_eq!(closed.will, will(60));
}

#[test]
fn a_delayed_will_of_a_session_without_end_is_still_due() {
    let mut bench = with_will(u32::MAX, 60);
    bench.close();
    assert_eq!(
        bench.session.poll_deadline(),
        Some(Deadline::Will(5_000 + 60_000))
    );
}

#[test]
fn a_client_that_comes_back_in_time_stops_its_will() {
    // [MQTT5-3.1.3-9]
    let mut bench = with_will(30, 10);
    bench.close();
    bench.session.open(opening(Version::V5));
    assert_eq!(bench.session.poll_deadline(), None);
    assert_eq!(bench.session.take_will(), None);
}

#[test]
fn a_connection_without_a_will_has_none_whatever_the_one_before_had() {
    // [MQTT-3.1.2-12]
    let mut bench = with_will(30, 10);
    bench.close();
    bench.session.open(opening(Version::V311));
    assert_eq!(bench.close().will, None);
    assert_eq!(bench.session.poll_deadline(), None);
}

#[test]
fn a_will_expires_from_its_publication_on() {
    let message = Will {
        expiry_secs: Some(7),
        ..*will(0).expect("a will")
    }
    .into_message(Now {
        mono_ms: 1,
        wall_ms: 1_000,
    });
    assert_eq!(message.expires_at_ms, Some(8_000));
}
