//! Back-pressure both ways: the receive budget, the send gate, flow control at its limit.

use super::*;
use crate::SendStatus;

fn narrow() -> Limits {
    Limits {
        send_queue_high: 400_000,
        send_queue_low: 100_000,
        receive_budget: 500_000,
        stream_window: 600_000,
        connection_window: 800_000,
        ..limits()
    }
}

#[test]
fn a_receiver_that_is_behind_stops_the_sender_and_loses_nothing() {
    let limits = narrow();
    let mut pair = Pair::connected(&limits);
    pair.server.consumes = false;
    let sent = packets(1, &[100_000; 60]);
    let total = frame(&sent).len();
    pair.client.send_data(&sent);
    pair.settle();

    // One read batch and the packet at its end may come on top of the budget.
    let held = pair.server.unconsumed;
    assert!(held > limits.receive_budget, "the budget is used: {held}");
    assert!(
        held <= limits.receive_budget + (256 << 10) + 100_004,
        "{held}"
    );
    let queued = pair.client.queued();
    let under_way = total - held - queued;
    assert!(
        under_way as u64 <= limits.stream_window + 100_004,
        "{under_way} between them"
    );

    // Nothing moves while nothing is consumed.
    for _ in 0..5 {
        pair.client.handle.tick().unwrap();
        pair.settle();
        assert_eq!(
            (pair.server.unconsumed, pair.client.queued()),
            (held, queued)
        );
    }

    // Less than it takes to come to the low mark (half the budget) changes nothing either. (What is
    // held may be a few bytes more than the budget.)
    pair.server.handle.consumed(10);
    pair.settle();
    assert_eq!(pair.client.queued(), queued);

    pair.server.consume_all();
    pair.settle();
    assert!(pair.server.unconsumed <= limits.receive_budget + (256 << 10) + 100_004);
    assert!(pair.client.queued() < queued, "the sender went on");

    pair.server.consumes = true;
    pair.server.consume_all();
    pair.until("everything has arrived", |pair| {
        pair.server.packets.len() == 60
    });
    assert_same(&pair.server.packets, &sent);
    assert_eq!(pair.client.queued(), 0);
}

/// A packet that is longer than every window and the whole budget still gets through, because its
/// pieces are taken out of the stream as they come.
#[test]
fn a_packet_may_be_longer_than_the_windows_and_the_budget() {
    let limits = Limits {
        receive_budget: 10_000,
        stream_window: 20_000,
        connection_window: 30_000,
        ..limits()
    };
    let mut pair = Pair::connected(&limits);
    let sent = packets(1, &[1 << 20, 5, 300_000]);
    pair.client.send_data(&sent);
    pair.until("everything has arrived", |pair| {
        pair.server.packets.len() == 3
    });
    assert_same(&pair.server.packets, &sent);
}

#[test]
fn flow_control_at_its_limit() {
    let limits = Limits {
        stream_window: 1024,
        connection_window: 1500,
        receive_budget: 2000,
        ..limits()
    };
    for faults in [
        Faults::default(),
        Faults {
            loss: 3,
            doubled: 5,
            held: 20,
        },
    ] {
        let mut pair = Pair::faulty(&limits, 31, faults);
        let lengths = [1020, 1024, 1, 0, 1500, 1019, 1021, 30_000];
        let (ours, theirs) = (packets(1, &lengths), packets(100, &lengths));
        pair.client.send_data(&ours);
        pair.server.send_data(&theirs);
        pair.client.send_control(&[1; 3000]);
        pair.server.send_control(&[2; 3000]);
        pair.until("everything has arrived", |pair| {
            pair.server.packets.len() == ours.len()
                && pair.client.packets.len() == theirs.len()
                && pair.server.control.len() == 1
                && pair.client.control.len() == 1
        });
        assert_same(&pair.server.packets, &ours);
        assert_same(&pair.client.packets, &theirs);
    }
}

/// Data that the receiver does not take must not hold back the control stream (the distribution's
/// ticks) as long as the connection's window is wider than a stream's.
#[test]
fn unread_data_does_not_hold_back_control() {
    let mut pair = Pair::connected(&narrow());
    pair.server.consumes = false;
    pair.client.send_data(&packets(1, &[100_000; 60]));
    pair.settle();
    pair.client.send_control(b"still here");
    pair.until("it is heard", |pair| pair.server.control == [b"still here"]);
}

#[test]
fn a_sender_is_told_busy_and_then_once_to_go_on() {
    let limits = narrow();
    let mut pair = Pair::connected(&limits);
    pair.server.consumes = false;
    let mut sent = Vec::new();
    let mut status = SendStatus::Ready;
    // The receiver's budget fills, then the windows, then the queue.
    while status == SendStatus::Ready {
        let packet = packet(sent.len() as u64, 50_000);
        status = pair.client.send_data(std::slice::from_ref(&packet));
        sent.push(packet);
        pair.settle();
        assert!(sent.len() < 100, "never busy");
    }
    let over = pair.client.queued() - limits.send_queue_high;
    assert!(over > 0 && over <= 50_004);
    assert_eq!(pair.client.writable, 0);

    // Busy is said again, and all that is given is taken.
    let last = packet(999, 10);
    assert_eq!(
        pair.client.send_data(std::slice::from_ref(&last)),
        SendStatus::Busy
    );
    sent.push(last);

    pair.server.consumes = true;
    pair.server.consume_all();
    pair.until("the sender may go on", |pair| pair.client.writable > 0);
    assert!(pair.client.queued() <= limits.send_queue_low);
    pair.until("everything has arrived", |pair| {
        pair.server.packets.len() == sent.len()
    });
    assert_same(&pair.server.packets, &sent);
    assert_eq!(pair.client.writable, 1);
}

/// Below the high mark nobody is woken.
#[test]
fn a_sender_that_was_never_busy_hears_nothing() {
    let mut pair = Pair::connected(&narrow());
    for number in 0..50 {
        let status = pair.client.send_data(&[packet(number, 7000)]);
        assert_eq!(status, SendStatus::Ready);
        pair.settle_briefly();
    }
    pair.until("everything has arrived", |pair| {
        pair.server.packets.len() == 50
    });
    assert_eq!(pair.client.writable, 0);
}

/// SEND_SENDER of the process with this number, with so many bytes of message.
fn of_sender(id: u32, length: usize) -> Vec<u8> {
    let pid = |id: u32| {
        let mut pid = vec![88, 119, 1, b'n'];
        pid.extend(id.to_be_bytes().into_iter().chain([0; 8]));
        pid
    };
    [
        vec![131, 68, 0, 104, 3, 97, 22],
        pid(id),
        pid(1),
        packet(id.into(), length),
    ]
    .concat()
}

/// What comes after a fence must not use up the credit that what comes before it needs.
#[test]
fn a_fence_passes_however_small_the_windows() {
    let limits = Limits {
        data_streams: 4,
        stream_window: 65_536,
        connection_window: 65_536,
        ..limits()
    };
    let mut pair = Pair::connected(&limits);
    // Nobody knows what an unknown packet is: a fence.
    let mut sent = vec![of_sender(1, 300_000), b"unknown".to_vec()];
    for round in 0..20 {
        sent.extend((2..6).map(|id| of_sender(id, 20_000 + round)));
    }
    sent.push(b"unknown again".to_vec());
    sent.push(of_sender(1, 10));
    pair.client.send_data(&sent);
    pair.until("everything has come", |pair| {
        pair.server.packets.len() == sent.len()
    });
    let place = |wanted: &Vec<u8>| pair.server.packets.iter().position(|got| got == wanted);
    assert_eq!(place(&sent[0]), Some(0));
    assert_eq!(place(&sent[1]), Some(1));
    assert_eq!(place(&sent[sent.len() - 2]), Some(sent.len() - 2));
    assert_eq!(pair.client.queued(), 0, "every byte was given back");
}
