//! What comes before somebody takes data.

use super::intruder::Intruder;
use super::*;

/// With streams of the application's the windows are no limit: 2,000 streams of 256 KiB.
#[test]
fn a_peer_that_nobody_reads_gets_rid_of_little() {
    let limits = Limits {
        user_streams: Limits::default().user_streams,
        ..limits()
    };
    let mut intruder = Intruder::dialling(&limits, &mut quic_config(&limits, Role::Client));
    intruder.side.claims = false;
    intruder.until("it is in", |it| {
        it.quic.is_established() && it.side.established
    });
    // As far as `dist_util`'s handshake.
    intruder.side.handle.read_control().unwrap();
    intruder.greet();
    let piece = vec![7; 64 << 10];
    let (start, mut after) = (Instant::now(), 0);
    for stream in (20..).step_by(4) {
        let _ = intruder.quic.stream_send(stream, &piece, false);
        if !(intruder.its_turn() | intruder.our_turn()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let taken = intruder.side.connection.quic.stats().recv_bytes;
        assert!(taken < (2 << 20) + 20_000, "{taken}");
        after += usize::from(taken > 2 << 20);
        if after == 100 {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "it never sends so much");
    }
    assert_eq!(intruder.side.ended(), None);
}

/// A peer of good faith may be as fast, while who is to take its data does not come: nothing of it
/// is lost.
#[test]
fn what_came_too_early_is_repeated() {
    let limits = Limits {
        user_streams: 0,
        ..limits()
    };
    let mut pair = Pair::new(&limits);
    pair.server.claims = false;
    pair.until("both are connected", |pair| {
        pair.client.established && pair.server.established
    });
    pair.server.handle.read_control().unwrap();
    let sent = packets(1, &[100_000; 60]);
    pair.client.send_data(&sent);
    pair.client.send_control(b"tick");
    pair.until("more has been sent than is taken", |pair| {
        let lost = pair.client.connection.quic.stats().sent_bytes
            - pair.server.connection.quic.stats().recv_bytes;
        pair.server.connection.is_too_early() && lost > 0
    });
    pair.settle_briefly();
    assert!(pair.server.packets.is_empty());
    pair.server.handle.read_data().unwrap();
    pair.until("everything has arrived", |pair| {
        pair.server.packets.len() == sent.len()
    });
    assert_same(&pair.server.packets, &sent);
    assert_eq!((pair.client.ended(), pair.server.ended()), (None, None));
}
