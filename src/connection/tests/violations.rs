//! Peers that know the cookie and break the rules: each ends its own connection, with a reason.

use super::intruder::Intruder;
use super::*;
use crate::close::code;
use crate::connection::unproved::{LAST_WORD, Unproved};

/// The connection ends, for both sides, because this rule was broken.
#[track_caller]
fn assert_broken(intruder: &mut Intruder, text: &str) {
    assert_eq!(intruder.told(), (true, code::PROTOCOL, text.to_owned()));
    assert_eq!(
        intruder.side.closed,
        Some(CloseReason::Protocol { text: text.into() })
    );
}

#[test]
fn a_length_over_the_limit() {
    let limits = Limits {
        max_frame: 1000,
        ..limits()
    };
    let text = |stream| format!("a packet of 1001 bytes on stream {stream}, 1000 is the limit");
    let prefix = 1001u32.to_be_bytes();
    for stream in [4, 8, 12, 16] {
        let mut intruder = Intruder::in_as_client(&limits);
        intruder.quic.stream_send(stream, &prefix, false).unwrap();
        assert_broken(&mut intruder, &text(stream));
    }
    for stream in [1, 5, 9, 13] {
        let mut intruder = Intruder::in_as_server(&limits);
        intruder.quic.stream_send(stream, &prefix, false).unwrap();
        assert_broken(&mut intruder, &text(stream));
    }
}

#[test]
fn no_hello() {
    for bytes in [&[0, 1, 7][..], &[0, 2, 1, 17], &[0, 0], &[0, 2, 2, 4]] {
        let mut intruder = Intruder::silent(&limits());
        intruder.quic.stream_send(0, bytes, false).unwrap();
        assert_broken(&mut intruder, "not a hello that this version understands");
    }
}

#[test]
fn data_on_a_stream_that_was_not_announced() {
    let mut intruder = Intruder::in_as_client(&limits());
    let packet = frame(&packets(1, &[10]));
    intruder.quic.stream_send(20, &packet, false).unwrap();
    assert_broken(&mut intruder, "data on stream 20, which was not announced");
}

/// The same where a packet that lies in memory of its own comes before the bad length.
#[test]
fn a_large_packet_is_not_delivered_after_the_end() {
    let mut intruder = Intruder::in_as_client(&limits());
    let mut sent = frame(&packets(1, &[17_000]));
    sent.extend_from_slice(&[0x7f, 0xff, 0xff, 0xff]);
    intruder.quic.stream_send(0, &[0, 1, 7], false).unwrap();
    intruder.quic.stream_send(4, &sent, false).unwrap();
    let told = intruder.told();
    assert_eq!((told.0, told.1), (true, code::PROTOCOL));
    assert!(matches!(
        intruder.side.closed,
        Some(CloseReason::Protocol { .. })
    ));
}

/// What was whole before the bad length was the peer's word, but it all comes in one read here.
#[test]
fn nothing_is_delivered_after_the_end() {
    let limits = Limits {
        max_frame: 1000,
        ..limits()
    };
    let mut intruder = Intruder::in_as_client(&limits);
    let good = frame(&packets(1, &[10, 20]));
    intruder.quic.stream_send(0, &[0, 1, 7], false).unwrap();
    intruder.quic.stream_send(4, &[0xff; 4], false).unwrap();
    intruder.quic.stream_send(8, &good, false).unwrap();
    assert_broken(
        &mut intruder,
        "a packet of 2147483647 bytes on stream 4, 1000 is the limit",
    );
    assert!(intruder.side.packets.is_empty());
}

#[test]
fn a_stream_that_ends_inside_a_packet() {
    for (bytes, stream, text) in [
        (&[0, 0, 0, 9, 1, 2][..], 4, "stream 4 ended inside a packet"),
        (&[0, 0][..], 4, "stream 4 ended inside a packet"),
        (
            &[0, 9, 1][..],
            0,
            "the control stream ended inside a packet",
        ),
        (&[0][..], 0, "the control stream ended inside a packet"),
    ] {
        let mut intruder = Intruder::in_as_client(&limits());
        intruder.quic.stream_send(stream, bytes, true).unwrap();
        assert_broken(&mut intruder, text);
    }
}

#[test]
fn a_stream_that_is_reset() {
    for stream in [0, 4] {
        let mut intruder = Intruder::in_as_client(&limits());
        let packet = frame(&packets(1, &[10]));
        intruder.quic.stream_send(stream, &packet, false).unwrap();
        intruder.settle();
        let shutdown = quiche::Shutdown::Write;
        intruder.quic.stream_shutdown(stream, shutdown, 77).unwrap();
        assert_broken(&mut intruder, &format!("stream {stream} was reset"));
    }
}

/// What comes with it on the application's streams is not told any more: the end is the last thing
/// that is.
#[test]
fn nothing_is_told_after_a_broken_rule() {
    let limits = Limits {
        user_streams: 8,
        ..limits()
    };
    let mut intruder = Intruder::in_as_client(&limits);
    let packet = frame(&packets(1, &[10]));
    intruder.quic.stream_send(4, &packet, false).unwrap();
    intruder.settle();
    let shutdown = quiche::Shutdown::Write;
    intruder.quic.stream_shutdown(4, shutdown, 77).unwrap();
    intruder.quic.stream_send(20, b"new", false).unwrap();
    assert_broken(&mut intruder, "stream 4 was reset");
}

#[test]
fn a_stream_that_is_stopped() {
    for stream in [0, 1] {
        let mut intruder = Intruder::in_as_client(&limits());
        intruder.quic.stream_send(0, &[0, 1, 7], false).unwrap();
        intruder.side.send_data(&packets(1, &[10]));
        intruder.side.send_control(b"x");
        intruder.settle();
        let shutdown = quiche::Shutdown::Read;
        intruder.quic.stream_shutdown(stream, shutdown, 77).unwrap();
        intruder.settle();
        intruder.side.send_data(&packets(1, &[10]));
        intruder.side.send_control(b"x");
        assert_broken(&mut intruder, &format!("stream {stream} was stopped"));
    }
}

/// The application's streams end by their last byte, and are cut on the control stream.
#[test]
fn a_stream_of_the_application_s_that_ends_in_another_way() {
    type End = fn(&mut Intruder);
    let ends: [(End, &str); 5] = [
        (
            |it| {
                it.quic
                    .stream_shutdown(20, quiche::Shutdown::Write, 7)
                    .unwrap()
            },
            "stream 20 was reset, or ended without its last byte",
        ),
        (
            |it| {
                it.quic.stream_send(20, b"", true).unwrap();
            },
            "stream 20 was reset, or ended without its last byte",
        ),
        (
            |it| {
                it.quic.stream_send(24, b"", true).unwrap();
            },
            "stream 24 was reset, or ended without its last byte",
        ),
        (
            |it| {
                it.quic
                    .stream_shutdown(20, quiche::Shutdown::Read, 7)
                    .unwrap();
                it.settle();
                let sent = it.side.handle.send_stream(20, vec![1], false);
                assert_eq!(sent, Ok(crate::streams::Sent::Taken));
            },
            "stream 20 was stopped",
        ),
        (
            |it| {
                for n in 0..40 {
                    let cancel = super::super::notice::cancel(1000 + 4 * n, 7);
                    it.quic.stream_send(0, &cancel, false).unwrap();
                }
            },
            "more streams were cut than can be open",
        ),
    ];
    for (end, text) in ends {
        let limits = Limits {
            user_streams: 8,
            ..limits()
        };
        let mut intruder = Intruder::in_as_client(&limits);
        intruder.quic.stream_send(20, b"begun", false).unwrap();
        intruder.settle();
        end(&mut intruder);
        assert_broken(&mut intruder, text);
    }
}

#[test]
fn more_control_data_than_any_handshake_has() {
    let mut intruder = Intruder::in_as_client(&limits());
    let packet: Vec<u8> = [&[0xff; 2][..], &[1; 65_535]].concat();
    let flood = packet.repeat(5);
    let mut sent = 0;
    let start = Instant::now();
    while intruder.side.closed.is_none() {
        assert!(start.elapsed() < PATIENCE);
        if let Ok(n) = intruder.quic.stream_send(0, &flood[sent..], false) {
            sent += n;
        }
        intruder.its_turn();
        intruder.our_turn();
    }
    assert_broken(&mut intruder, "too much on the control stream");
    assert!(intruder.side.control.len() <= 4);
}

/// A stream that we opened carries our data only (`docs/protocol.md`): the peer may not write it.
#[test]
fn data_on_a_stream_of_the_other_side() {
    let mut intruder = Intruder::in_as_client(&limits());
    intruder.side.send_data(&packets(1, &[10]));
    intruder.settle();
    intruder.quic.stream_send(1, b"surprise", false).unwrap();
    assert_eq!(intruder.told().1, code::PROTOCOL);

    let mut intruder = Intruder::in_as_server(&limits());
    intruder.side.send_data(&packets(1, &[10]));
    intruder.settle();
    intruder.quic.stream_send(4, b"surprise", false).unwrap();
    assert_eq!(intruder.told().1, code::PROTOCOL);
}

/// The streams that a hello announces are read, and their packets are delivered.
#[test]
fn all_streams_of_the_layout_are_read() {
    let mut intruder = Intruder::in_as_client(&limits());
    for (number, stream) in [4, 8, 12, 16].into_iter().enumerate() {
        let framed = frame(&[packet(number as u64, 100)]);
        intruder.quic.stream_send(stream, &framed, false).unwrap();
        intruder.until("it is delivered", |it| it.side.packets.len() == number + 1);
    }
    assert_same(&intruder.side.packets, &packets(0, &[100; 4]));
}

/// No stream outside the layout can even be opened, because there is no credit for one.
#[test]
fn there_is_no_credit_for_other_streams() {
    let mut intruder = Intruder::in_as_client(&limits());
    assert_eq!(intruder.quic.peer_streams_left_bidi(), 16);
    assert_eq!(intruder.quic.peer_streams_left_uni(), 0);
    let limit = Err(quiche::Error::StreamLimit);
    assert_eq!(intruder.quic.stream_send(68, b"x", false), limit);
    assert_eq!(intruder.quic.stream_send(2, b"x", false), limit);
    let mut intruder = Intruder::in_as_server(&limits());
    assert_eq!(intruder.quic.stream_send(65, b"x", false), limit);
    assert_eq!(intruder.quic.stream_send(3, b"x", false), limit);
}

/// A peer may not make us hold more than the windows say, whether anybody reads or not.
#[test]
fn an_unclaimed_peer_is_held_by_the_windows() {
    let limits = Limits {
        stream_window: 50_000,
        connection_window: 60_000,
        ..limits()
    };
    let mut intruder = Intruder::dialling(&limits, &mut quic_config(&limits, Role::Client));
    intruder.side.claims = false;
    intruder.until("it is in", |it| {
        it.quic.is_established() && it.side.established
    });
    let mut sent = 0;
    for _ in 0..50 {
        for stream in [0, 4, 8, 12, 16] {
            sent += intruder
                .quic
                .stream_send(stream, &[0; 10_000], false)
                .unwrap_or(0);
        }
        intruder.settle_briefly();
    }
    assert_eq!(sent, 60_000);
}

#[test]
fn the_peer_s_reason_is_reported() {
    for (app, number, reason, expected) in [
        (
            true,
            77,
            &b"so\nlong\x1b"[..],
            CloseReason::PeerClosed {
                code: 77,
                text: "so?long?".into(),
            },
        ),
        (
            false,
            0xa,
            &b"bad frame"[..],
            CloseReason::Transport {
                by_us: false,
                code: 0xa,
                text: "bad frame".into(),
            },
        ),
    ] {
        let mut intruder = Intruder::in_as_client(&limits());
        intruder.quic.close(app, number, reason).unwrap();
        intruder.until("it is over", |it| it.side.connection.is_over());
        assert_eq!(intruder.side.closed, Some(expected));
    }
}

/// What came before CONNECTION_CLOSE, even in the same packet, is delivered before the end.
#[test]
fn data_before_an_abrupt_end_is_delivered() {
    let mut intruder = Intruder::in_as_client(&limits());
    let sent = packets(1, &[10, 20_000]);
    intruder.quic.stream_send(4, &frame(&sent), false).unwrap();
    let flight = intruder.its_datagrams();
    intruder.quic.close(true, 5, b"").unwrap();
    for mut datagram in flight.into_iter().chain(intruder.its_datagrams()) {
        intruder
            .side
            .connection
            .receive(&mut datagram, CLIENT, SERVER);
    }
    intruder.our_turn();
    assert_same(&intruder.side.packets, &sent);
    assert!(matches!(
        intruder.side.closed,
        Some(CloseReason::PeerClosed { code: 5, .. })
    ));
}

/// Bytes that nobody authenticated change nothing, wherever they land.
#[test]
fn garbage_and_replays_do_not_touch_a_connection() {
    let mut intruder = Intruder::in_as_client(&limits());
    let mut rng = Rng::new(61);
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for round in 0..200 {
        let framed = frame(&[packet(round, 100)]);
        intruder.quic.stream_send(4, &framed, false).unwrap();
        seen.extend(intruder.its_datagrams());
        let original = seen[rng.below(seen.len() as u64) as usize].clone();
        let mut truncated = original[..rng.below(original.len() as u64) as usize].to_vec();
        let mut flipped = original.clone();
        let at = rng.below(flipped.len() as u64) as usize;
        flipped[at] ^= 1 << rng.below(8);
        let mut random = packet(rng.next(), 1 + rng.below(2000) as usize);
        let mut oversized = [original.clone(), vec![0; 60_000]].concat();
        let mut replay = original;
        for bad in [
            &mut truncated,
            &mut flipped,
            &mut random,
            &mut oversized,
            &mut replay,
        ] {
            intruder.side.connection.receive(bad, CLIENT, SERVER);
        }
        let newest = seen.last_mut().unwrap();
        intruder
            .side
            .connection
            .receive(&mut newest.clone(), CLIENT, SERVER);
        intruder.our_turn();
        assert_eq!(intruder.side.ended(), None, "round {round}");
    }
    intruder.until("all of it has arrived", |it| it.side.packets.len() == 200);
    assert_same(&intruder.side.packets, &packets(0, &[100; 200]));
}

#[test]
fn another_application_protocol_is_refused() {
    let mut config = quic_config(&limits(), Role::Client);
    config.set_application_protos(&[b"h3"]).unwrap();
    let mut intruder = Intruder::dialling(&limits(), &mut config);
    assert_eq!(intruder.told(), (false, 0x178, String::new()));
    let reason = CloseReason::Tls {
        by_us: true,
        alert: 120,
    };
    assert_eq!(intruder.side.refused, Some(reason));
}

#[test]
fn a_handshake_that_stalls_is_given_up() {
    let limits = limits();
    let mut intruder = Intruder::dialling(&limits, &mut quic_config(&limits, Role::Client));
    assert!(intruder.its_turn());
    intruder.our_turn();
    assert!(intruder.side.connection.is_half_open());
    intruder.ahead = limits.handshake_timeout;
    intruder.our_turn();
    assert_eq!(intruder.side.refused, Some(CloseReason::HandshakeTimeout));
    // (RFC 9000 forbids an application's reason before the handshake is done.)
    assert_eq!(intruder.told(), (false, 0xc, String::new()));
    // Whoever is refused has its place until nothing is left of it: places are what is limited.
    assert!(intruder.side.connection.is_half_open());
}

/// Handshake data that is out of order has to be kept; there is a limit to what is.
#[test]
fn a_handshake_takes_in_only_so_much() {
    let limits = limits();
    let mut intruder = Intruder::dialling(&limits, &mut quic_config(&limits, Role::Client));
    assert!(intruder.its_turn());
    intruder.our_turn();
    let mut taken = 0;
    while intruder.side.ended().is_none() {
        let mut datagram = [&[0xc0, 0, 0, 0, 1][..], &[0; 1195]].concat();
        let connection = &mut intruder.side.connection;
        connection.receive(&mut datagram, CLIENT, SERVER);
        taken += datagram.len();
        assert!(taken <= super::super::HANDSHAKE_BYTES);
        intruder.our_turn();
    }
    let reason = CloseReason::LocalClosed {
        text: "too much in the handshake".into(),
    };
    assert_eq!(intruder.side.refused, Some(reason));
}

/// Data that follows the handshake's last packet closely is not the handshake's, however much it is.
#[test]
fn data_right_behind_a_handshake_is_not_of_it() {
    let limits = limits();
    let mut intruder = Intruder::dialling(&limits, &mut quic_config(&limits, Role::Client));
    assert!(intruder.its_turn());
    intruder.our_turn();
    for _ in 0..100 {
        let mut datagram = [&[0x40][..], &[0; 1199]].concat();
        intruder
            .side
            .connection
            .receive(&mut datagram, CLIENT, SERVER);
        intruder.our_turn();
    }
    assert_eq!(intruder.side.ended(), None);
    intruder.enter();
}

/// As above, but we have used up what may be sent to an address that nobody has confirmed (RFC
/// 9000, section 8.1), so no more packet can leave, not even the last one.
#[test]
fn a_stalled_handshake_is_forgotten_when_nothing_may_be_sent() {
    let limits = limits();
    let mut intruder = Intruder::dialling(&limits, &mut quic_config(&limits, Role::Client));
    assert!(intruder.its_turn());
    let start = Instant::now();
    fn unproved(intruder: &mut Intruder) -> &mut Unproved {
        intruder.side.connection.unproved.as_mut().unwrap()
    }
    // Of the rest no packet can be made.
    while unproved(&mut intruder).room(false) > 100 {
        assert!(
            start.elapsed() < PATIENCE,
            "there is no end to what is sent"
        );
        let now = Instant::now();
        intruder.side.work(now);
        intruder.side.datagrams();
        std::thread::sleep(Duration::from_millis(1));
    }
    // Nor of what is kept for the last one, if that is used up as well.
    unproved(&mut intruder).sent(LAST_WORD);
    intruder.ahead = limits.handshake_timeout;
    intruder.our_turn();
    assert_eq!(intruder.side.refused, Some(CloseReason::HandshakeTimeout));
    assert!(intruder.side.datagrams().is_empty());
    // Draining takes three probe timeouts, which have grown meanwhile.
    let start = Instant::now();
    while !intruder.side.connection.is_over() {
        assert!(start.elapsed() < PATIENCE, "it is never forgotten");
        let now = intruder.now();
        intruder.side.work(now);
        intruder.side.datagrams();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What is no handshake at all is not one that failed.
#[test]
fn an_initial_of_garbage_is_a_stray() {
    let limits = limits();
    let mut server = Side::server(&limits);
    let mut garbage = vec![
        0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0x90,
    ];
    garbage.extend_from_slice(&packet(1, 1182));
    server.connection.receive(&mut garbage, CLIENT, SERVER);
    let now = Instant::now();
    server.work(now);
    assert!(server.stray && server.refused.is_none());
    assert!(server.datagrams().is_empty(), "it is not answered");
    assert!(server.connection.is_over());
}
