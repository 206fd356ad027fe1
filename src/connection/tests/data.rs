//! Data packets of every size, both ways, on good networks and bad ones.

use super::*;

/// Around every border that a packet can meet: the prefix, a QUIC packet, quiche's send buffer
/// (4 KiB), our read batch (256 KiB), a packet that gets memory of its own (16 to 128 KiB).
const SIZES: [usize; 34] = [
    0, 1, 2, 3, 4, 5, 0, 0, 1195, 1196, 1197, 1400, 1452, 4092, 4096, 15_990, 16_000, 16_383,
    65_531, 65_536, 100_000, 262_139, 262_144, 262_145, 16_383, 16_384, 16_384, 0, 16_385, 3,
    131_071, 131_072, 131_073, 0,
];

fn exchange(pair: &mut Pair, ours: &[Vec<u8>], theirs: &[Vec<u8>]) {
    for batch in ours.chunks(3) {
        pair.client.send_data(batch);
    }
    for batch in theirs.chunks(2) {
        pair.server.send_data(batch);
    }
    pair.until("everything has arrived", |pair| {
        pair.server.packets.len() >= ours.len() && pair.client.packets.len() >= theirs.len()
    });
    assert_same(&pair.server.packets, ours);
    assert_same(&pair.client.packets, theirs);
    assert_eq!((pair.client.ended(), pair.server.ended()), (None, None));
}

#[test]
fn packets_of_all_sizes_arrive_both_ways_in_order() {
    let limits = limits();
    let mut pair = Pair::connected(&limits);
    let mut ours = packets(1, &SIZES);
    ours.push(packet(1000, limits.max_frame));
    let mut reversed = SIZES;
    reversed.reverse();
    let mut theirs = packets(2000, &reversed);
    theirs.insert(3, packet(3000, limits.max_frame));
    exchange(&mut pair, &ours, &theirs);
}

#[test]
fn small_packets_in_great_number() {
    let mut pair = Pair::connected(&limits());
    let lengths: Vec<usize> = (0..20_000).map(|i| i % 40).collect();
    let (ours, theirs) = (packets(1, &lengths), packets(50_000, &lengths[..9999]));
    exchange(&mut pair, &ours, &theirs);
}

#[test]
fn a_network_that_loses_doubles_and_reorders() {
    let size = |limit: usize| SIZES.into_iter().filter(move |&size| size <= limit);
    for (seed, loss, mtu, limit) in [
        (11, 0, 16_000, 300_000),
        (12, 5, 16_000, 300_000),
        (13, 20, 16_000, 70_000),
        (14, 5, 1452, 20_000),
        (15, 20, 1200, 16_000),
    ] {
        let limits = Limits {
            max_udp_payload: mtu,
            ..limits()
        };
        let faults = Faults {
            loss,
            doubled: 10,
            held: 20,
        };
        let mut pair = Pair::faulty(&limits, seed, faults);
        let ours: Vec<usize> = size(limit).chain([7, 0, 3]).collect();
        let theirs: Vec<usize> = size(limit).rev().collect();
        exchange(&mut pair, &packets(1, &ours), &packets(500, &theirs));
    }
}

/// quiche says what BBR has found out of the path, and nothing of that with the others.
#[test]
fn each_congestion_control_gets_all_through_a_bad_network() {
    use crate::CongestionControl::*;
    for (seed, which) in [(16, Cubic), (17, Reno), (18, Bbr2)] {
        let limits = Limits {
            congestion_control: which,
            ..limits()
        };
        let faults = Faults {
            loss: 5,
            doubled: 10,
            held: 20,
        };
        let mut pair = Pair::faulty(&limits, seed, faults);
        let sizes: Vec<usize> = SIZES.into_iter().filter(|&size| size <= 300_000).collect();
        let (ours, theirs) = (packets(1, &sizes), packets(500, &sizes));
        exchange(&mut pair, &ours, &theirs);
        for side in [&pair.client, &pair.server] {
            let mut paths = side.connection.quic.path_stats();
            let is_bbr = paths.any(|path| path.max_bandwidth.is_some());
            assert_eq!(is_bbr, which == Bbr2, "{which:?}");
        }
    }
}

/// Handshake, control and data packets all go over the same bad network.
#[test]
fn a_whole_life_on_a_bad_network() {
    for seed in 21..24 {
        let mut pair = Pair::new(&limits());
        pair.net = Net::new(seed);
        pair.net.faults = Faults {
            loss: 10,
            doubled: 10,
            held: 30,
        };
        pair.until("both are connected", |pair| {
            pair.client.established && pair.server.established
        });
        pair.client.send_control(b"name");
        pair.server.send_control(b"status");
        let (ours, theirs) = (packets(1, &[50_000, 0, 9]), packets(50, &[80_000, 12]));
        exchange(&mut pair, &ours, &theirs);
        pair.until("the control packets have arrived", |pair| {
            pair.client.control == [b"status"] && pair.server.control == [b"name"]
        });
        pair.client.handle.close("done");
        pair.until("both know of the end", |pair| {
            pair.client.closed.is_some() && pair.server.closed.is_some()
        });
        assert_eq!(
            pair.server.closed,
            Some(CloseReason::PeerClosed {
                code: 0,
                text: String::new()
            })
        );
    }
}

#[test]
fn counters_and_figures_tell_of_what_was_sent() {
    let mut pair = Pair::connected(&limits());
    let before = pair.client.handle.stat().unwrap();
    exchange(&mut pair, &packets(1, &[100_000]), &packets(2, &[10]));
    pair.settle();
    let after = pair.client.handle.stat().unwrap();
    assert!(after.sent > before.sent && after.received > before.received);
    assert_eq!(after.pending, 0);

    let info = pair.client.handle.info().unwrap();
    pair.until("the figures come", |_| !info.is_empty());
    let info = info.recv().unwrap();
    assert_eq!((info.peer, info.local), (SERVER, CLIENT));
    assert_eq!(info.role, Role::Client);
    assert_eq!(info.tls_version, "TLSv1.3");
    assert!(info.cipher.starts_with("TLS_"), "{}", info.cipher);
    assert_eq!(info.peer_name.as_deref(), Some("node@192.0.2.1"));
    assert!(info.bytes_sent > 100_000 && info.bytes_sent < 250_000);
    assert_eq!((info.send_queue, info.unconsumed, info.paths), (0, 0, 1));
}
