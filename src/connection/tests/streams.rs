//! The application's own streams: limits, pressure, priorities, datagrams.

use std::collections::HashMap;

use super::*;
use crate::event::StreamEvent;
use crate::streams::{Demand, Sent, StreamError, code};

/// What the owners of one side's streams have been told.
#[derive(Default)]
pub(in crate::connection) struct User {
    /// Streams are not read by themselves.
    pub stopped: bool,
    /// The peer's streams are refused.
    pub refuses: bool,
    pub incoming: Vec<u64>,
    pub received: HashMap<u64, (Vec<u8>, bool)>,
    pub room: Vec<u64>,
    /// The code of a reset; none where both sides have finished.
    pub ended: HashMap<u64, Option<u64>>,
    /// Data in the order in which it was told.
    pub order: Vec<u64>,
    pub datagrams: Vec<Vec<u8>>,
}

impl User {
    pub fn happened(&mut self, handle: &Handle, id: u64, event: StreamEvent) {
        assert!(
            !self.ended.contains_key(&id),
            "{id} after its end: {event:?}"
        );
        match event {
            StreamEvent::Incoming => {
                self.incoming.push(id);
                if self.refuses {
                    handle.reset_stream(id, code::REFUSED).unwrap();
                } else if !self.stopped {
                    handle.demand_stream(id, Some(Demand::Any)).unwrap();
                }
            }
            StreamEvent::Data { bytes, fin } => {
                let (received, ended) = self.received.entry(id).or_default();
                assert!(!*ended, "data after the end");
                assert!(!bytes.is_empty() || fin, "a delivery of nothing");
                received.extend_from_slice(&bytes);
                *ended = fin;
                self.order.push(id);
                let demand = (!fin && !self.stopped).then_some(Demand::Any);
                handle.stream_delivered(id, fin, demand);
            }
            StreamEvent::Room => self.room.push(id),
            StreamEvent::Reset(code) => {
                self.ended.insert(id, Some(code));
            }
            StreamEvent::Closed => {
                self.ended.insert(id, None);
            }
        }
    }

    pub(super) fn got(&self, id: u64, bytes: &[u8], fin: bool) -> bool {
        self.received
            .get(&id)
            .is_some_and(|(received, ended)| received == bytes && *ended == fin)
    }
}

pub(super) fn with_streams(most: usize) -> Limits {
    Limits {
        user_streams: most,
        data_streams: 4,
        ..limits()
    }
}

impl Side {
    pub(super) fn open(&self, uni: bool) -> u64 {
        let id = self.handle.open_stream(uni, 128).unwrap();
        if !uni {
            self.demand(id, Demand::Any);
        }
        id
    }

    pub(super) fn demand(&self, id: u64, demand: Demand) {
        self.handle.demand_stream(id, Some(demand)).unwrap();
    }

    pub(super) fn put(&self, id: u64, bytes: &[u8], fin: bool) -> Sent {
        self.handle.send_stream(id, bytes.to_vec(), fin).unwrap()
    }

    pub(super) fn end_of(&self, id: u64) -> Option<Option<u64>> {
        self.user.ended.get(&id).copied()
    }

    /// Nothing of the application's streams is left, and nothing of these in quiche.
    fn has_forgotten(&mut self, ids: &[u64]) -> bool {
        let quic = &mut self.connection.quic;
        self.handle.streams_info().is_empty()
            && self.connection.user.departing.is_empty()
            && ids.iter().all(|&id| {
                matches!(
                    quic.stream_capacity(id),
                    Err(quiche::Error::InvalidStreamState(_))
                )
            })
    }
}

impl Pair {
    /// Opens one of the client's, as soon as the limits allow.
    pub(super) fn open(&mut self, uni: bool) -> u64 {
        let handle = self.client.handle.clone();
        let opened = std::cell::Cell::new(None);
        self.until("a stream is open", |_| {
            opened.set(handle.open_stream(uni, 128).ok());
            opened.get().is_some()
        });
        let id = opened.get().unwrap();
        if !uni {
            self.client.demand(id, Demand::Any);
        }
        id
    }

    #[track_caller]
    pub(super) fn until_forgotten(&mut self, what: &str, ids: &[u64]) {
        let start = Instant::now();
        while !(self.client.has_forgotten(ids) && self.server.has_forgotten(ids)) {
            assert!(start.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
            if !self.step() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

#[test]
fn both_ways_with_half_closes() {
    let mut pair = Pair::connected(&with_streams(10));
    let id = pair.client.open(false);
    assert_eq!(id, 20);
    let (there, back) = (packet(1, 700_000), packet(2, 300_000));
    assert_eq!(pair.client.put(id, &there, true), Sent::Taken);
    pair.until("it is there", |pair| pair.server.user.got(id, &there, true));
    assert_eq!(pair.client.end_of(id), None, "one side has finished");
    pair.server.put(id, &back[..1000], false);
    pair.server.put(id, b"", false);
    pair.server.put(id, &back[1000..], false);
    pair.until("it is back", |pair| pair.client.user.got(id, &back, false));
    pair.server.put(id, b"", true);
    pair.until("it is closed", |pair| {
        pair.client.end_of(id) == Some(None) && pair.server.end_of(id) == Some(None)
    });
    pair.until_forgotten("nothing is left", &[id]);
    let again = pair.client.handle.send_stream(id, vec![1], false);
    assert_eq!(again, Err(StreamError::Unknown));

    // The server's own begin at 17, unidirectional ones at 3 and 2.
    assert_eq!(pair.server.open(false), 17);
    assert_eq!(pair.server.open(true), 3);
    let uni = pair.client.open(true);
    assert_eq!(uni, 2);
    pair.client.put(uni, b"one way", true);
    pair.until("it is there", |pair| {
        pair.server.user.got(uni, b"one way", true)
    });
    pair.until("it is closed", |pair| {
        pair.server.end_of(uni) == Some(None) && pair.client.end_of(uni) == Some(None)
    });
    let answer = pair.server.handle.send_stream(uni, vec![1], false);
    assert_eq!(answer, Err(StreamError::Unknown));
}

#[test]
fn nothing_is_taken_after_the_end_of_a_side() {
    let mut pair = Pair::connected(&with_streams(10));
    let id = pair.client.open(false);
    pair.client.put(id, b"last", true);
    let late = pair.client.handle.send_stream(id, vec![1], false);
    assert_eq!(late, Err(StreamError::Closed));
    pair.until("it is there", |pair| {
        pair.server.user.got(id, b"last", true)
    });
}

#[test]
fn who_has_finished_may_say_so_again() {
    let mut pair = Pair::connected(&with_streams(10));
    for uni in [false, true] {
        let id = pair.client.open(uni);
        let (client, server) = (pair.client.handle.clone(), pair.server.handle.clone());
        let next = id + 4;
        pair.client.put(id, b"last", true);
        client.finish_stream(id).unwrap();
        assert_eq!(client.send_stream(id, vec![], true), Ok(Sent::Taken));
        pair.until("it is there", |pair| {
            pair.server.user.got(id, b"last", true)
        });
        server.finish_stream(id).unwrap();
        pair.until("it is closed", |pair| {
            pair.server.end_of(id) == Some(None) && pair.client.end_of(id) == Some(None)
        });
        for side in [&client, &server] {
            side.finish_stream(id).unwrap();
            assert_eq!(side.send_stream(id, vec![], true), Ok(Sent::Taken));
            // What never was cannot be finished, nor can the distribution's own.
            for other in [next, 0, 1, 4] {
                assert_eq!(side.finish_stream(other), Err(StreamError::Unknown));
            }
        }
    }
}

#[test]
fn no_more_than_the_limit_are_open() {
    let limits = with_streams(3);
    let mut pair = Pair::connected(&limits);
    let open: Vec<u64> = (0..3).map(|_| pair.client.open(false)).collect();
    let handle = pair.client.handle.clone();
    assert_eq!(handle.open_stream(false, 128), Err(StreamError::Limit));
    assert_eq!(handle.open_stream(true, 128), Err(StreamError::Limit));
    handle.reset_stream(open[0], 0).unwrap();
    pair.until("it has ended", |pair| pair.client.end_of(open[0]).is_some());
    handle.open_stream(true, 128).unwrap();
    assert_eq!(handle.open_stream(true, 128), Err(StreamError::Limit));
}

/// The peer's limit counts as well, and is not a breach of protocol.
#[test]
fn no_more_than_the_peer_allows() {
    let mut pair = Pair::new(&with_streams(2));
    pair.client = Side::client(&with_streams(1000));
    pair.until("both are connected", |pair| {
        pair.client.established && pair.server.established
    });
    pair.settle();
    let opened: Vec<u64> = (0..100)
        .map_while(|_| pair.client.handle.open_stream(false, 128).ok())
        .collect();
    assert_eq!(opened.len(), 2);
    for id in &opened {
        pair.client.put(*id, b"x", true);
    }
    pair.settle();
    assert_eq!(pair.server.user.incoming.len(), opened.len());
    assert_eq!(pair.client.ended(), None);
}

/// A reader that has stopped costs its window, whatever is sent; and it does not hold up the
/// distribution, even if all of them do.
#[test]
fn stopped_readers_hold_up_nobody_else() {
    let limits = Limits {
        user_stream_window: 50_000,
        user_stream_queue: 100_000,
        stream_window: 200_000,
        connection_window: 300_000,
        ..with_streams(40)
    };
    let mut pair = Pair::connected(&limits);
    pair.server.user.stopped = true;
    let ids: Vec<u64> = (0..40).map(|i| pair.client.open(i % 2 == 0)).collect();
    for &id in &ids {
        let mut sent = 0;
        while pair.client.put(id, &packet(id, 20_000), false) == Sent::Taken {
            sent += 20_000;
            pair.step();
            assert!(sent <= 400_000, "a stopped stream takes no end of data");
        }
    }
    pair.settle();
    for info in pair.client.handle.streams_info() {
        assert!(info.queued >= 100_000, "{info:?}");
    }
    // A megabyte of distribution, in packets larger than what the connection would have had left.
    let sent = packets(1, &[250_000, 100, 750_000]);
    for packet in &sent {
        pair.client.send_data(std::slice::from_ref(packet));
    }
    pair.until("the distribution's has arrived", |pair| {
        pair.server.packets.len() == sent.len()
    });
    assert_eq!(pair.server.user.order, []);
    // They go on where they stood.
    pair.server.user.stopped = false;
    for &id in &ids {
        pair.client.handle.finish_stream(id).unwrap();
        pair.server.demand(id, Demand::Any);
    }
    pair.until("all is there", |pair| {
        ids.iter().all(|id| {
            let (received, fin) = &pair
                .server
                .user
                .received
                .get(id)
                .cloned()
                .unwrap_or_default();
            *fin && received
                .chunks(20_000)
                .all(|chunk| chunk == packet(*id, 20_000))
        })
    });
}

#[test]
fn a_sender_waits_and_is_told_of_room_once() {
    let mut pair = Pair::connected(&with_streams(2));
    pair.server.user.stopped = true;
    let id = pair.client.open(false);
    let handle = pair.client.handle.clone();
    while pair.client.put(id, &packet(1, 100_000), false) == Sent::Taken {
        pair.step();
    }
    assert_eq!(handle.stream_has_room(id), Ok(false));
    pair.settle();
    if handle.stream_has_room(id) == Ok(true) {
        while pair.client.put(id, &packet(1, 100_000), false) == Sent::Taken {
            pair.settle_briefly();
        }
        assert_eq!(handle.stream_has_room(id), Ok(false));
    }
    pair.client.user.room.clear();
    pair.server.user.stopped = false;
    pair.server.demand(id, Demand::Any);
    pair.until("there is room", |pair| pair.client.user.room == [id]);
    pair.settle();
    assert_eq!(pair.client.user.room, [id], "nobody waits any more");
    assert_eq!(handle.stream_has_room(id), Ok(true));
}

/// Between the marks a second one finds room; the first, who found none, is told all the same.
#[test]
fn who_finds_room_does_not_keep_others_waiting() {
    let pair = Pair::connected(&Limits {
        user_stream_queue: 100_000,
        ..with_streams(2)
    });
    let id = pair.client.open(false);
    let handle = &pair.client.handle;
    let streams = &pair.client.connection.shared.streams;
    pair.client.put(id, &packet(1, 100_000), false);
    let drain = |length| {
        let (piece, _) = streams.take(id, length).unwrap();
        assert_eq!(piece.len(), length);
        streams.taken(id, None, false, None)
    };
    assert_eq!(handle.stream_has_room(id), Ok(false));
    assert!(drain(30_000).is_none());
    assert_eq!(handle.stream_has_room(id), Ok(true));
    assert!(matches!(drain(20_000), Some(StreamEvent::Room)));
    assert!(drain(20_000).is_none(), "once is enough");
}

/// As `recv` with a length, across what arrives in any pieces; what nobody takes is kept.
#[test]
fn exactly_as_much_as_asked_for() {
    let mut pair = Pair::connected(&with_streams(2));
    pair.server.user.stopped = true;
    let id = pair.client.open(false);
    let whole = packet(1, 1_000_000);
    pair.client.put(id, &whole, true);
    pair.settle();
    let mut taken = 0;
    // `Any` takes a batch at most, so the first five leave something to the last, which asks for
    // more than there is.
    for demand in [
        Demand::Exactly(1),
        Demand::Exactly(10),
        Demand::Any,
        Demand::Exactly(100_000),
        Demand::Exactly(600_000),
        Demand::Exactly(300_000),
    ] {
        pair.server.demand(id, demand);
        let before = pair.server.user.order.len();
        pair.until("it is delivered", |pair| {
            pair.server.user.order.len() > before
        });
        let (received, ended) = &pair.server.user.received[&id];
        assert!(whole.starts_with(received));
        match demand {
            Demand::Exactly(length) if !ended => {
                assert_eq!(received.len() - taken, length as usize)
            }
            Demand::Exactly(_) => assert_eq!(received.len(), whole.len()),
            Demand::Any => assert!(!ended),
        }
        taken = received.len();
    }
    assert!(pair.server.user.got(id, &whole, true), "{taken}");
}

#[test]
fn a_delivery_that_nobody_took_comes_again() {
    let mut pair = Pair::connected(&with_streams(2));
    pair.server.user.stopped = true;
    let id = pair.client.open(false);
    pair.client.put(id, b"0123456789", true);
    pair.settle();
    pair.server.demand(id, Demand::Exactly(4));
    pair.server.connection.work(pair.now());
    let Some(Happening::Event(Event::Stream(_, StreamEvent::Data { bytes, fin }))) =
        pair.server.connection.happening()
    else {
        panic!("no delivery");
    };
    assert_eq!((&*bytes, fin), (&b"0123"[..], false));
    // It is on its way, so nothing more is read, asked for or not.
    pair.server.demand(id, Demand::Any);
    assert!(
        pair.server
            .connection
            .shared
            .streams
            .next_read(10)
            .is_none()
    );
    pair.server.handle.put_back_stream(id, &bytes, fin);
    pair.server.user.stopped = false;
    pair.server.demand(id, Demand::Any);
    pair.until("all is there", |pair| {
        pair.server.user.got(id, b"0123456789", true)
    });
}

/// With more to send than leaves at once, the lower number is through before the higher begins to
/// matter, equals share, and the distribution comes before both.
#[test]
fn priorities() {
    let mut pair = Pair::connected(&Limits {
        user_stream_window: 8 << 20,
        ..with_streams(10)
    });
    let open = |priority| pair.client.handle.open_stream(true, priority).unwrap();
    let (low, first, second, urgent) = (open(200), open(100), open(100), open(16));
    for id in [low, first, second, urgent] {
        pair.client.put(id, &packet(id, 2_000_000), true);
    }
    let data = packets(1, &[1_000_000]);
    pair.client.send_data(&data);
    let done = |pair: &Pair, id| pair.server.user.received.get(&id).is_some_and(|r| r.1);
    let got = |pair: &Pair, id| pair.server.user.received.get(&id).map_or(0, |r| r.0.len());
    pair.until("the distribution's is there", |pair| {
        pair.server.packets.len() == 1
    });
    assert!(!done(&pair, urgent));
    pair.until("the urgent one is there", |pair| done(pair, urgent));
    assert_eq!(got(&pair, low), 0);
    pair.until("one of the equals is half there", |pair| {
        got(pair, first) > 1_000_000
    });
    let other = got(&pair, second);
    assert!((500_000..1_900_000).contains(&other), "{other}");
    pair.until("all is there", |pair| {
        done(pair, first) && done(pair, second)
    });
}

#[test]
fn a_priority_can_be_changed() {
    let mut pair = Pair::connected(&with_streams(10));
    let open = |priority| pair.client.handle.open_stream(true, priority).unwrap();
    let (first, second) = (open(100), open(200));
    for id in [first, second] {
        pair.client.put(id, &packet(id, 100_000), true);
    }
    pair.client.handle.set_stream_priority(second, 16).unwrap();
    pair.client.handle.set_stream_priority(second, 17).unwrap();
    pair.until("all is there", |pair| pair.server.user.received.len() == 2);
    assert_eq!(pair.server.user.order[0], second);
    assert_eq!(
        pair.client.handle.set_stream_priority(second, 16),
        Err(StreamError::Unknown)
    );
}

#[test]
fn everything_arrives_on_a_bad_network() {
    for seed in 0..6 {
        let faults = Faults {
            loss: 5,
            doubled: 10,
            held: 30,
        };
        let mut pair = Pair::faulty(&with_streams(100), seed, faults);
        let mut rng = Rng::new(seed);
        let mut sent = Vec::new();
        for number in 0..60 {
            let side = if number % 2 == 0 {
                &pair.client
            } else {
                &pair.server
            };
            let id = side.open(rng.below(3) == 0);
            let bytes = packet(number, rng.below(50_000) as usize);
            let cut = rng.below(bytes.len() as u64 + 1) as usize;
            side.put(id, &bytes[..cut], false);
            side.put(id, &bytes[cut..], true);
            sent.push((number % 2 == 0, id, bytes));
            if rng.below(4) == 0 {
                pair.step();
            }
        }
        pair.until("all is there", |pair| {
            sent.iter().all(|(by_client, id, bytes)| {
                let to = if *by_client {
                    &pair.server
                } else {
                    &pair.client
                };
                to.user.got(*id, bytes, true)
            })
        });
    }
}

#[test]
fn many_streams_open_at_once() {
    let mut pair = Pair::connected(&with_streams(1000));
    for round in 0..3 {
        let ids: Vec<u64> = (0..1000).map(|_| pair.client.open(false)).collect();
        for id in &ids {
            pair.client.put(*id, &packet(*id, 100), true);
        }
        pair.until("all are there", |pair| {
            pair.server.user.received.len() == 1000 * (round + 1)
        });
        for id in &ids {
            pair.server.put(*id, b"", true);
        }
        pair.until("all are closed", |pair| {
            pair.client.user.ended.len() == 1000 * (round + 1)
        });
        pair.settle();
    }
    pair.until_forgotten("nothing is left", &[]);
}

#[test]
fn datagrams_come_whole_or_not_at_all() {
    let mut pair = Pair::connected(&with_streams(1));
    let size = pair.client.handle.datagram_size().unwrap();
    assert!(size > 1000, "{size}");
    let long = pair.client.handle.send_datagram(vec![0; size + 1]);
    assert_eq!(long, Err(StreamError::TooLong));
    let sent = packets(1, &[0, 1, 100, size]);
    for datagram in &sent {
        pair.client.handle.send_datagram(datagram.clone()).unwrap();
    }
    pair.until("they are there", |pair| {
        pair.server.user.datagrams.len() == sent.len()
    });
    assert_same(&pair.server.user.datagrams, &sent);
    // The oldest make room for the newest.
    for number in 0..1000u32 {
        let datagram = number.to_be_bytes().to_vec();
        pair.client.handle.send_datagram(datagram).unwrap();
    }
    pair.settle();
    let last = pair.server.user.datagrams.last().cloned();
    assert_eq!(last, Some(999u32.to_be_bytes().to_vec()));
    let dropped = pair.client.connection.info().unwrap().datagrams_dropped;
    assert_eq!(pair.server.user.datagrams.len() as u64, 4 + 1000 - dropped);
    assert_eq!(dropped, 1000 - 128);
}

#[test]
fn nothing_is_possible_after_the_end() {
    let mut pair = Pair::connected(&with_streams(2));
    let id = pair.client.open(false);
    pair.client.handle.close("enough");
    pair.until("it has ended", |pair| pair.client.ended().is_some());
    let handle = &pair.client.handle;
    assert_eq!(
        handle.send_stream(id, vec![1], false),
        Err(StreamError::Closed)
    );
    assert_eq!(handle.open_stream(false, 128), Err(StreamError::Closed));
    assert_eq!(handle.datagram_size(), Err(StreamError::Closed));
}
