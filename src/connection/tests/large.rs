//! Large messages beside small ones: they take turns, they do not fill the way, and who sends them
//! hears when it may go on.

use super::*;
use crate::Batch;
use crate::term::Process;

/// A message of one process to another, of this length in all.
fn message(from: u32, length: usize) -> Vec<u8> {
    let mut packet = vec![131, 68, 0, 104, 3, 97, 22];
    for id in [from, 1] {
        packet.extend_from_slice(&[88, 119, 1, b'n']);
        packet.extend_from_slice(&id.to_be_bytes());
        packet.extend_from_slice(&[0; 8]);
    }
    packet.resize(length, 0);
    packet
}

fn sender(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[11..15].try_into().unwrap())
}

fn several() -> Limits {
    Limits {
        data_streams: 4,
        ..limits()
    }
}

#[test]
fn a_small_message_does_not_wait_for_large_ones() {
    let mut pair = Pair::connected(&several());
    // Until the congestion window is no limit any more.
    pair.client.send_data(&vec![message(7, 100_000); 40]);
    pair.until("the first have arrived", |pair| {
        pair.server.packets.len() == 40
    });
    pair.client.send_data(&vec![message(7, 100_000); 40]);
    pair.client.send_data(&[message(8, 100)]);
    pair.until("all have arrived", |pair| pair.server.packets.len() == 81);
    let place = pair.server.packets.iter().position(|p| sender(p) == 8);
    let overtaken = place.unwrap() - 40;
    // A read batch, and the packet at its end.
    assert!(overtaken <= 3 + 1, "{overtaken} of 40 came before it");
}

#[test]
fn those_who_send_much_take_turns() {
    let limits = Limits {
        receive_budget: 300_000,
        ..several()
    };
    let mut pair = Pair::connected(&limits);
    pair.server.consumes = false;
    for _ in 0..60 {
        pair.client
            .send_data(&[message(7, 50_000), message(8, 50_000)]);
    }
    let of = |pair: &Pair, id| {
        let packets = pair.server.packets.iter();
        packets.filter(|packet| sender(packet) == id).count()
    };
    while pair.server.packets.len() < 60 {
        pair.settle();
        let (one, other) = (of(&pair, 7), of(&pair, 8));
        // One read batch, and the packet at its end.
        assert!(one.abs_diff(other) <= 6, "{one} and {other}");
        pair.server.consume_all();
    }
}

#[test]
fn who_waits_is_told_once_when_its_stream_has_little_to_send() {
    let mut pair = Pair::connected(&Limits {
        stream_window: 300_000,
        ..several()
    });
    pair.server.consumes = false;
    let process = Process { id: 7, serial: 0 };
    let mut batch = Batch::from(frame(&vec![message(7, 100_000); 30]));
    batch.tell_when_low(process);
    // One that has never sent anything has nothing to send.
    let stranger = Process { id: 9, serial: 0 };
    batch.tell_when_low(stranger);
    pair.client.handle.send_data(batch).unwrap();
    pair.settle();
    assert_eq!(pair.client.low, [stranger]);
    assert!(pair.client.queued() > crate::batch::LOW);
    pair.server.consumes = true;
    pair.server.consume_all();
    pair.until("it is told", |pair| pair.client.low.len() > 1);
    assert!(pair.client.queued() <= crate::batch::LOW);
    pair.settle();
    assert_eq!(pair.client.low, [stranger, process]);
}

/// Who never waits would else make it wait without end.
#[test]
fn who_waits_does_not_wait_for_what_others_send_after_it() {
    let mut pair = Pair::connected(&Limits {
        data_streams: 1,
        stream_window: 300_000,
        ..limits()
    });
    pair.server.consumes = false;
    let process = Process { id: 7, serial: 0 };
    // The last word counts.
    for _ in 0..2 {
        let mut batch = Batch::from(frame(&vec![message(7, 100_000); 30]));
        batch.tell_when_low(process);
        pair.client.handle.send_data(batch).unwrap();
    }
    let others = frame(&vec![message(8, 100_000); 30]);
    let sent = others.len();
    pair.client.handle.send_data(Batch::from(others)).unwrap();
    pair.settle();
    assert!(pair.client.low.is_empty());
    pair.server.consumes = true;
    pair.server.consume_all();
    pair.until("it is told", |pair| !pair.client.low.is_empty());
    let queued = pair.client.queued();
    assert!(queued > sent, "{queued} were still queued");
    assert!(queued <= sent + crate::batch::LOW, "{queued} were queued");
    pair.until("all has arrived", |pair| pair.server.packets.len() == 90);
    assert_eq!(pair.client.low, [process]);
}
