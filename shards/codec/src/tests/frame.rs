// SPDX-License-Identifier: Apache-2.0
//! Fixed headers.

use crate::{ErrorKind, Frame, ReasonCode, frame, frame_len};

#[test]
fn remaining_length_at_the_ends_of_its_sizes() {
    for (header, total) in [
        (&b"\x30\x00"[..], 2),
        (b"\x30\x7f", 2 + 127),
        (b"\x30\x80\x01", 3 + 128),
        (b"\x30\xff\x7f", 3 + 16_383),
        (b"\x30\x80\x80\x01", 4 + 16_384),
        (b"\x30\xff\xff\x7f", 4 + 2_097_151),
        (b"\x30\x80\x80\x80\x01", 5 + 2_097_152),
        (b"\x30\xff\xff\xff\x7f", 5 + 268_435_455),
    ] {
        assert_eq!(frame_len(header), Ok(Some(total)), "{header:02x?}");
        for cut in 0..header.len() {
            assert_eq!(
                frame_len(&header[..cut]),
                Ok(None),
                "{header:02x?} cut at {cut}"
            );
        }
    }
}

// [MQTT5-1.5.5-1]
#[test]
fn remaining_length_of_five_bytes_or_more_than_needed_is_malformed() {
    for header in [
        &b"\x30\x80\x80\x80\x80"[..],
        b"\x30\xff\xff\xff\xff\x7f",
        b"\x30\x80\x00",
        b"\x30\xff\x80\x00",
        b"\x30\x80\x80\x80\x00",
    ] {
        let error = frame_len(header).unwrap_err();
        assert_eq!(error.kind, ErrorKind::RemainingLength, "{header:02x?}");
        assert_eq!(error.reason(), ReasonCode::MALFORMED_PACKET);
        assert_eq!(frame(header, u32::MAX), Err(error));
    }
}

#[test]
fn one_frame_after_the_other() {
    let bytes = b"\xc0\x00\x40\x02\x00\x0a\xd0";
    assert_eq!(
        frame(bytes, 100),
        Ok(Some((
            Frame {
                first: 0xc0,
                body: b""
            },
            2
        )))
    );
    let (frame_2, total) = frame(&bytes[2..], 100).unwrap().unwrap();
    assert_eq!(
        (frame_2, total),
        (
            Frame {
                first: 0x40,
                body: b"\x00\x0a"
            },
            4
        )
    );
    assert_eq!((frame_2.packet_type(), frame_2.flags()), (4, 0));
    assert_eq!(frame(&bytes[6..], 100), Ok(None));
}

#[test]
fn too_large_is_known_from_the_fixed_header_alone() {
    assert_eq!(frame(b"\x30\x62", 100), Ok(None));
    let error = frame(b"\x30\x63", 100).unwrap_err();
    assert_eq!(error.kind, ErrorKind::PacketTooLarge);
    assert_eq!(error.reason(), ReasonCode::PACKET_TOO_LARGE);
    assert_eq!(frame(b"\x30\xff\xff\xff\x7f", 268_435_459), Err(error));
    assert_eq!(frame(b"\x30\xff\xff\xff\x7f", 268_435_460), Ok(None));
}
