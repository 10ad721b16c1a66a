// SPDX-License-Identifier: Apache-2.0

use super::*;

const V6_LONGEST: &str = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";

fn source(text: &str) -> Option<SocketAddr> {
    Some(text.parse().unwrap())
}

/// The header at the beginning of `bytes`, which must be found with its last byte and not before.
fn parsed(bytes: &[u8]) -> Header {
    let header = parse(bytes).unwrap().unwrap();
    for end in 0..header.bytes {
        assert_eq!(parse(&bytes[..end]), Ok(None), "{end} bytes");
    }
    assert_eq!(parse(&bytes[..header.bytes]), Ok(Some(header)));
    header
}

/// How many bytes had to come until they were refused.
fn refused(bytes: &[u8]) -> (usize, ProxyError) {
    for end in 0..=bytes.len() {
        match parse(&bytes[..end]) {
            Ok(None) => {}
            Ok(Some(header)) => panic!("{header:?}"),
            Err(error) => {
                assert!(parse(bytes).is_err());
                return (end, error);
            }
        }
    }
    panic!("not refused");
}

fn v2(version_command: u8, family_protocol: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [
        V2_SIGNATURE,
        &[version_command, family_protocol],
        &length,
        rest,
    ]
    .concat()
}

const V4_ADDRESSES: &[u8] = b"\xc0\x00\x02\x01\xc0\x00\x02\x02\xdc\x04\x07\x5b";

fn extension(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], value].concat()
}

fn v2_with(extensions: &[u8]) -> Vec<u8> {
    v2(0x21, 0x11, &[V4_ADDRESSES, extensions].concat())
}

// version 1

#[test]
fn v1_names_a_v4_client() {
    let header = parsed(b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nGET / HTTP/1.1\r\n");
    assert_eq!(header.source, source("192.168.0.1:56324"));
    assert_eq!(header.bytes, 47);
}

#[test]
fn v1_names_a_v6_client() {
    let header = parsed(b"PROXY TCP6 2001:DB8::1 ::1 1 65535\r\n");
    assert_eq!(header.source, source("[2001:db8::1]:1"));
}

#[test]
fn v1_takes_a_v6_address_that_ends_like_a_v4_one() {
    let header = parsed(b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 4 5\r\n");
    assert_eq!(header.source, source("[::ffff:192.0.2.1]:4"));
}

#[test]
fn v1_takes_the_longest_lines_of_the_specification() {
    let tcp4 = b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n";
    assert_eq!(parsed(tcp4).bytes, 56);
    let tcp6 = format!("PROXY TCP6 {V6_LONGEST} {V6_LONGEST} 65535 65535\r\n");
    assert_eq!(parsed(tcp6.as_bytes()).bytes, 104);
    let unknown = format!("PROXY UNKNOWN {V6_LONGEST} {V6_LONGEST} 65535 65535\r\n");
    assert_eq!(parsed(unknown.as_bytes()).bytes, V1_BYTES_MAX);
}

#[test]
fn v1_unknown_leaves_the_address_of_the_connection() {
    let header = parsed(b"PROXY UNKNOWN\r\n\x10");
    assert_eq!(
        header,
        Header {
            source: None,
            bytes: 15
        }
    );
}

#[test]
fn v1_ignores_what_follows_unknown() {
    assert_eq!(parsed(b"PROXY UNKNOWN x  y\xff 99999\r\n").source, None);
}

#[test]
fn v1_takes_port_0() {
    let header = parsed(b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n");
    assert_eq!(header.source, source("0.0.0.0:0"));
}

#[test]
fn v1_refuses_at_the_first_byte_that_no_line_has() {
    use ProxyError::*;
    let rows: [(&str, usize, ProxyError); 33] = [
        ("proxy TCP4", 1, Signature),
        ("PROXY\r\n", 6, Signature),
        ("PROXYv2", 6, Signature),
        ("PROXY  TCP4", 7, Protocol),
        ("PROXY \r\n", 7, Protocol),
        ("PROXY TCP5", 10, Protocol),
        ("PROXY TCP\r\n", 10, Protocol),
        ("PROXY UDP4", 8, Protocol),
        ("PROXY UNKNOWNX", 14, Protocol),
        ("PROXY tcp4", 7, Protocol),
        ("PROXY TCP4\r\n", 11, Fields),
        ("PROXY TCP4 1.2.3.4\r\n", 19, Fields),
        ("PROXY TCP4 1.2.3.4 1.2.3.4\r\n", 27, Fields),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", 29, Fields),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", 31, Fields),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", 31, Fields),
        ("PROXY TCP4  1.2.3.4", 12, Address),
        ("PROXY TCP4 1.2.3.4\t", 19, Address),
        ("PROXY TCP4 ::1 ::1 1 2\r\n", 12, Address),
        ("PROXY TCP4 1.2.3 ", 17, Address),
        ("PROXY TCP4 1.2.3.256 ", 21, Address),
        ("PROXY TCP4 1.2.3.04 ", 20, Address),
        ("PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", 19, Address),
        ("PROXY TCP6 fe80::1%eth0", 19, Address),
        ("PROXY TCP6 ::1::2 ", 18, Address),
        ("PROXY TCP6 [::1]", 12, Address),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", 29, Port),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", 28, Port),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n", 28, Port),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n", 32, Port),
        ("PROXY TCP4 1.2.3.4 1.2.3.4  2\r\n", 28, Port),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 99999999\r\n", 34, Port),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 \r\n", 30, Port),
    ];
    for (line, at, error) in rows {
        assert_eq!(refused(line.as_bytes()), (at, error), "{line:?}");
    }
}

#[test]
fn v1_lines_end_with_cr_lf_and_nothing_else() {
    for line in [
        "PROXY UNKNOWN\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
        "PROXY UNKNOWN\rX",
        "PROXY UNKNOWN \r\r\n",
    ] {
        let (_, error) = refused(line.as_bytes());
        assert_eq!(error, ProxyError::LineEnd, "{line:?}");
    }
}

#[test]
fn v1_refuses_a_line_without_end_at_its_107th_byte() {
    let line = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
    assert_eq!(line.len(), 108);
    assert_eq!(refused(line.as_bytes()), (107, ProxyError::LineTooLong));
}

// version 2

#[test]
fn v2_names_a_v4_client() {
    let header = parsed(&[&v2(0x21, 0x11, V4_ADDRESSES)[..], b"\x10\x0c"].concat());
    assert_eq!(header.source, source("192.0.2.1:56324"));
    assert_eq!(header.bytes, 28);
}

#[test]
fn v2_names_a_v6_client() {
    let from = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let to = Ipv6Addr::LOCALHOST;
    let addresses = [&from.octets()[..], &to.octets(), b"\x12\x34\x07\x5b"].concat();
    let header = parsed(&v2(0x21, 0x21, &addresses));
    assert_eq!(header.source, source("[2001:db8::1]:4660"));
    assert_eq!(header.bytes, 52);
}

#[test]
fn v2_local_unspecified_and_unix_leave_the_address_of_the_connection() {
    let unix = [0; 216];
    for (version_command, family_protocol, rest) in [
        (0x20, 0x00, &b""[..]),
        // a health check; the family and what follows are to be ignored
        (0x20, 0x11, V4_ADDRESSES),
        (0x20, 0xff, b"?"),
        (0x21, 0x00, b""),
        (0x21, 0x00, b"?"),
        (0x21, 0x31, &unix),
    ] {
        let header = parsed(&v2(version_command, family_protocol, rest));
        assert_eq!(
            header,
            Header {
                source: None,
                bytes: 16 + rest.len()
            }
        );
    }
}

#[test]
fn v2_refuses_at_the_first_byte_that_no_header_has() {
    use ProxyError::*;
    let rows: [(u8, u8, usize, ProxyError); 12] = [
        (0x11, 0x11, 13, Version),
        (0x31, 0x11, 13, Version),
        (0x01, 0x11, 13, Version),
        (0x22, 0x11, 13, Command),
        (0x2f, 0x11, 13, Command),
        (0x21, 0x12, 14, Datagram),
        (0x21, 0x22, 14, Datagram),
        (0x21, 0x32, 14, Datagram),
        (0x21, 0x13, 14, Family),
        (0x21, 0x10, 14, Family),
        (0x21, 0x01, 14, Family),
        (0x21, 0x41, 14, Family),
    ];
    for (version_command, family_protocol, at, error) in rows {
        let bytes = v2(version_command, family_protocol, V4_ADDRESSES);
        assert_eq!(refused(&bytes), (at, error));
    }
}

#[test]
fn v2_refuses_a_signature_that_goes_wrong() {
    for at in 1..V2_SIGNATURE.len() {
        let mut bytes = v2(0x21, 0x11, V4_ADDRESSES);
        bytes[at] ^= 0x20;
        assert_eq!(refused(&bytes), (at + 1, ProxyError::Signature));
    }
}

#[test]
fn v2_refuses_less_than_the_addresses_of_the_family() {
    for (family_protocol, least) in [(0x11, 12), (0x21, 36), (0x31, 216)] {
        for short in [0, 1, least - 1] {
            let bytes = v2(0x21, family_protocol, &vec![0; short]);
            assert_eq!(refused(&bytes), (16, ProxyError::TooShort));
        }
        assert!(parse(&v2(0x21, family_protocol, &vec![0; least])).is_ok());
    }
}

#[test]
fn v2_takes_4096_bytes_and_refuses_one_more_before_it_comes() {
    let padding = HEADER_BYTES_MAX - 16 - V4_ADDRESSES.len() - 3;
    assert_eq!(
        parsed(&v2_with(&extension(4, &vec![0; padding]))).bytes,
        HEADER_BYTES_MAX
    );
    for version_command in [0x20, 0x21] {
        let bytes = v2(version_command, 0x00, &vec![0; HEADER_BYTES_MAX - 15]);
        assert_eq!(refused(&bytes), (16, ProxyError::TooLong));
    }
}

#[test]
fn v2_extensions_are_skipped() {
    let extensions = [
        extension(1, b"mqtt"),
        extension(2, b"broker.example"),
        extension(4, b""),
        extension(0xea, &[0; 300]),
    ]
    .concat();
    let header = parsed(&v2_with(&extensions));
    assert_eq!(header.source, source("192.0.2.1:56324"));
    assert_eq!(header.bytes, 28 + extensions.len());
}

#[test]
fn v2_extensions_must_end_with_the_header() {
    let whole = extension(2, b"broker.example");
    for short in 1..whole.len() {
        let bytes = v2_with(&whole[..short]);
        assert_eq!(refused(&bytes), (bytes.len(), ProxyError::Extension));
    }
    assert_eq!(
        refused(&v2_with(&[&whole[..], b"\0"].concat())).1,
        ProxyError::Extension
    );
}

fn with_checksum(before: &[u8], after: &[u8]) -> Vec<u8> {
    let mut bytes = v2_with(&[before, &extension(3, &[0; 4]), after].concat());
    let sum = !crc32c(!0, &bytes);
    let at = bytes.len() - after.len() - 4;
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn crc32c_is_that_of_castagnoli() {
    assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    // RFC 3720 B.4
    assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
    assert_eq!(!crc32c(!0, &[0xff; 32]), 0x62a8_ab43);
}

#[test]
fn v2_takes_a_header_whose_checksum_is_right() {
    let more = extension(1, b"mqtt");
    for bytes in [
        with_checksum(b"", b""),
        with_checksum(&more, b""),
        with_checksum(b"", &more),
    ] {
        assert_eq!(parsed(&bytes).source, source("192.0.2.1:56324"));
    }
}

#[test]
fn v2_refuses_a_header_that_is_damaged() {
    let whole = with_checksum(&extension(2, b"a"), &extension(1, b"mqtt"));
    // its addresses, then the values of the extensions
    for at in (16..28).chain([31]).chain(35..39).chain(42..46) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        assert_eq!(
            refused(&bytes),
            (bytes.len(), ProxyError::Checksum),
            "byte {at}"
        );
    }
}

#[test]
fn v2_refuses_a_checksum_of_another_size_or_two_of_them() {
    for extensions in [
        extension(3, &[0; 3]),
        extension(3, &[0; 5]),
        extension(3, b""),
        extension(3, &[0; 4]).repeat(2),
    ] {
        assert_eq!(refused(&v2_with(&extensions)).1, ProxyError::Extension);
    }
}

#[test]
fn other_protocols_are_refused_at_their_first_byte() {
    for bytes in [
        &b"\x10\x0c\0\x04MQTT\x04"[..],
        b"\x16\x03\x01\x02\0\x01",
        b"GET / HTTP/1.1\r\n",
    ] {
        assert_eq!(refused(bytes), (1, ProxyError::Signature));
    }
    assert_eq!(parse(b""), Ok(None));
}
