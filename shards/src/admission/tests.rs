// SPDX-License-Identifier: Apache-2.0

use super::*;

fn admission(connections: usize, listeners: &[usize], per_ip: u32, rate: u64) -> Admission {
    let places = |maximum: &usize| Arc::new(Places::new(*maximum));
    let addresses = (per_ip > 0).then(|| Addresses {
        stripes: std::array::from_fn(|_| Mutex::default()),
        hasher: foldhash::fast::RandomState::default(),
        maximum: per_ip,
    });
    Admission {
        connections: Places::new(connections),
        listeners: listeners.iter().map(places).collect(),
        addresses,
        connects: Rate::per_second(rate),
        connect_due_ns: AtomicU64::new(0),
        lines: Lines::default(),
        shares: Shares::new(1),
    }
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().expect("an address"))
}

#[test]
fn the_last_place_is_given_and_not_one_more() {
    let node = admission(3, &[2, 0], 0, 0);
    assert_eq!(node.admit(0, None), Ok(()));
    assert_eq!(node.admit(0, None), Ok(()));
    assert_eq!(node.admit(0, None), Err(Limited::ListenerConnections));
    assert_eq!(node.admit(1, None), Ok(()));
    assert_eq!(node.admit(1, None), Err(Limited::Connections));
    assert_eq!(node.connections(), 3);
    node.leave(0, None);
    assert_eq!(node.admit(1, None), Ok(()));
    // the place of the whole node that it could not have was not kept from its listener either
    node.leave(1, None);
    assert_eq!(node.admit(0, None), Ok(()));
}

#[test]
fn each_address_has_so_many_places() {
    let node = admission(0, &[0], 2, 0);
    for address in ["192.0.2.1", "192.0.2.2", "2001:db8::1"] {
        assert_eq!(node.admit(0, ip(address)), Ok(()));
        assert_eq!(node.admit(0, ip(address)), Ok(()));
        assert_eq!(
            node.admit(0, ip(address)),
            Err(Limited::ConnectionsPerIp),
            "{address}"
        );
    }
    assert_eq!(node.connections(), 6);
    node.leave(0, ip("192.0.2.2"));
    assert_eq!(node.admit(0, ip("192.0.2.2")), Ok(()));
    assert_eq!(node.admit(0, None), Ok(()), "no address, no limit for it");
    assert_eq!(
        node.admit_address("192.0.2.1".parse().expect("an address")),
        Err(Limited::ConnectionsPerIp)
    );
}

#[test]
fn an_address_is_known_however_it_is_written() {
    let node = admission(0, &[0], 1, 0);
    assert_eq!(node.admit(0, ip("192.0.2.1")), Ok(()));
    assert!(node.admit(0, ip("::ffff:192.0.2.1")).is_err());
    assert_eq!(node.admit(0, ip("2001:db8:0:1::1")), Ok(()));
    assert!(node.admit(0, ip("2001:db8:0:1:ffff::9")).is_err());
    assert_eq!(node.admit(0, ip("2001:db8:0:2::1")), Ok(()));
}

#[test]
fn addresses_that_left_are_forgotten() {
    let node = admission(0, &[0], 1, 0);
    for n in 0..1000_u32 {
        let address = Some(IpAddr::from(n.to_be_bytes()));
        assert_eq!(node.admit(0, address), Ok(()));
        node.leave(0, address);
    }
    let addresses = node.addresses.as_ref().expect("there is a limit");
    for stripe in &addresses.stripes {
        assert!(stripe.lock().expect("nobody panicked").is_empty());
    }
}

#[test]
fn connects_beyond_the_rate_wait_for_the_next_second() {
    let node = admission(0, &[0], 0, 5);
    for _ in 0..5 {
        assert_eq!(node.connect(10_000), Ok(()));
    }
    assert_eq!(node.connect(10_000), Err(Limited::ConnectRate));
    assert_eq!(node.connect(10_199), Err(Limited::ConnectRate));
    assert_eq!(node.connect(10_200), Ok(()));
    assert_eq!(node.connect(10_200), Err(Limited::ConnectRate));
}
