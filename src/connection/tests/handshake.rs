//! The handshake, the control stream, ticks, connection ids.

use super::*;

#[test]
fn both_sides_are_established_once() {
    let pair = Pair::connected(&limits());
    for side in [&pair.client, &pair.server] {
        assert!(side.established && !side.connection.is_half_open());
        assert_eq!(side.ended(), None);
        assert_eq!(
            side.connection.peer_name().as_deref(),
            Some("node@192.0.2.1")
        );
    }
}

#[test]
fn a_handshake_survives_a_bad_network() {
    for seed in 1..=6 {
        let mut pair = Pair::new(&limits());
        pair.net = Net::new(seed);
        pair.net.faults = Faults {
            loss: 20,
            doubled: 10,
            held: 30,
        };
        pair.until("both are connected", |pair| {
            pair.client.established && pair.server.established
        });
        assert_eq!((pair.client.ended(), pair.server.ended()), (None, None));
    }
}

/// Loss tests run on these configurations too, so they must be the engine's own.
#[test]
fn the_largest_packets_are_used_after_the_handshake() {
    for (mtu, discovery) in [
        (1200, false),
        (1452, false),
        (16_000, false),
        (16_000, true),
    ] {
        let limits = Limits {
            max_udp_payload: mtu,
            path_mtu_discovery: discovery,
            ..Limits::default()
        };
        let mut pair = Pair::connected(&limits);
        pair.client.send_data(&packets(1, &[200_000]));
        pair.until("it has arrived", |pair| pair.server.packets.len() == 1);
        let info = pair.client.handle.info().unwrap();
        pair.until("the MTU is known", |_| !info.is_empty());
        assert_eq!(info.recv().unwrap().mtu, mtu, "discovery: {discovery}");
    }
}

#[test]
fn control_packets_arrive_both_ways_in_order() {
    let mut pair = Pair::connected(&limits());
    let ours = packets(1, &[1, 5, 2000, 65_535, 7]);
    let theirs = packets(100, &[30, 1, 40_000]);
    for packet in &ours {
        pair.client.send_control(packet);
    }
    for packet in &theirs {
        pair.server.send_control(packet);
    }
    pair.until("all control packets have arrived", |pair| {
        pair.server.control.len() == ours.len() && pair.client.control.len() == theirs.len()
    });
    assert_same(&pair.server.control, &ours);
    assert_same(&pair.client.control, &theirs);
}

#[test]
fn a_control_packet_has_its_limit() {
    let pair = Pair::connected(&limits());
    let too_long = vec![0; 65_536];
    assert_eq!(
        pair.client.handle.send_control(&too_long),
        Err(crate::SendError::TooLong)
    );
}

/// The dialled side cannot open the control stream; the other's hello does.
#[test]
fn a_server_that_speaks_first_is_heard() {
    let mut pair = Pair::connected(&limits());
    pair.server.send_control(b"status");
    pair.until("it was heard", |pair| pair.client.control == [b"status"]);
}

#[test]
fn nothing_is_read_before_somebody_asks() {
    let mut pair = Pair::new(&limits());
    pair.server.claims = false;
    pair.until("both are connected", |pair| {
        pair.client.established && pair.server.established
    });
    pair.client.send_control(b"name");
    pair.client.send_data(&packets(1, &[10]));
    pair.settle();
    assert!(pair.server.control.is_empty() && pair.server.packets.is_empty());
    pair.server.handle.read_control().unwrap();
    pair.settle();
    assert_eq!(pair.server.control, [b"name"]);
    assert!(pair.server.packets.is_empty());
    pair.server.handle.read_data().unwrap();
    pair.until("the data is read", |pair| pair.server.packets.len() == 1);
}

#[test]
fn ticks_are_swallowed_and_count_as_packets() {
    let mut pair = Pair::connected(&limits());
    pair.client.send_control(b"name");
    pair.until("the control stream is open", |pair| {
        pair.server.control.len() == 1
    });
    for _ in 0..10 {
        let before = (
            pair.client.handle.stat().unwrap().received,
            pair.server.handle.stat().unwrap().received,
        );
        pair.client.handle.tick().unwrap();
        pair.server.handle.tick().unwrap();
        pair.until("both have heard something", |pair| {
            pair.client.handle.stat().unwrap().received > before.0
                && pair.server.handle.stat().unwrap().received > before.1
        });
    }
    pair.settle();
    assert_eq!(pair.server.control.len(), 1);
    assert!(pair.client.control.is_empty());
}

/// A tick is a PING too, and a PING needs no credit: it is heard when the stream's window is shut.
#[test]
fn a_tick_is_heard_through_a_closed_window() {
    let limits = Limits {
        connection_window: 20_000,
        stream_window: 20_000,
        receive_budget: 1000,
        ..limits()
    };
    let mut pair = Pair::connected(&limits);
    pair.server.consumes = false;
    pair.client.send_data(&packets(1, &[5_000; 20]));
    pair.settle();
    assert!(pair.client.queued() > 0, "the window is shut");
    let before = pair.server.handle.stat().unwrap().received;
    pair.client.handle.tick().unwrap();
    pair.settle();
    assert!(pair.server.handle.stat().unwrap().received > before);
}

/// Ticks that cannot leave do not pile up: this many would end the connection, as control packets
/// that nobody takes do.
#[test]
fn ticks_are_bounded() {
    let mut pair = Pair::connected(&limits());
    // The client never opens the control stream, so all that the server has for it waits.
    for _ in 0..200_000 {
        pair.server.handle.tick().unwrap();
    }
    pair.server.send_control(b"status");
    pair.settle();
    assert_eq!(pair.server.ended(), None);
    pair.client.send_control(b"name");
    pair.until("the status arrives", |pair| {
        pair.client.control == [b"status"]
    });
}

/// Control packets that nobody takes do not pile up either.
#[test]
fn a_control_stream_that_nobody_reads_ends_the_connection() {
    let mut pair = Pair::connected(&limits());
    for _ in 0..5 {
        pair.server.send_control(&[0; 60_000]);
    }
    pair.until("both know", |pair| {
        pair.client.closed.is_some() && pair.server.closed.is_some()
    });
    let text = "the control stream is not being read".to_owned();
    assert_eq!(
        pair.client.closed,
        Some(CloseReason::PeerClosed {
            code: crate::close::code::LIMIT,
            text: text.clone()
        })
    );
    assert_eq!(pair.server.closed, Some(CloseReason::LocalClosed { text }));
}

#[test]
fn ids_are_exchanged_and_retired() {
    let mut pair = Pair::connected(&limits());
    let (client, server) = (pair.client.ids.clone(), pair.server.ids.clone());
    assert!(client.len() > 1 && server.len() > 1, "no spare ids");
    // The server is told to forget one of the client's ids, and the client one of the server's.
    for _ in 0..5 {
        let quic = &mut pair.client.connection.quic;
        let in_use = quic.destination_id().into_owned();
        assert!(pair.server.ids.contains(&*in_use));
        let before = pair.server.retired;
        let sequence = pair.server.retired as u64;
        quic.retire_dcid(sequence).unwrap();
        pair.until("the id is retired", |pair| pair.server.retired > before);
        pair.client.send_control(b"still here");
        let count = pair.server.control.len();
        pair.until("the next id works", |pair| {
            pair.server.control.len() > count
        });
        assert!(!pair.server.ids.contains(&*in_use));
        let now = pair.client.connection.quic.destination_id().into_owned();
        assert!(pair.server.ids.contains(&*now));
    }
    assert_eq!(pair.server.ids.len(), server.len(), "each was replaced");
}
