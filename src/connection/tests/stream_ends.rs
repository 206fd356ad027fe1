//! How streams of the application's end: by either side, in any way, at any time.

use super::streams::with_streams;
use super::*;
use crate::streams::{Sent, StreamError, code};

/// Every way in which a stream can end gives the number back: with room for two, four hundred are
/// used one after the other.
#[test]
fn every_end_gives_the_stream_back() {
    type End = fn(&mut Pair, u64);
    let ends: [(&str, End); 9] = [
        ("finished by both", |pair, id| {
            pair.client.put(id, b"there", true);
            pair.until("there", |pair| pair.server.user.got(id, b"there", true));
            pair.server.put(id, b"back", true);
        }),
        ("never used", |pair, id| {
            pair.client.put(id, b"", true);
            pair.until("there", |pair| pair.server.user.got(id, b"", true));
            pair.server.put(id, b"", true);
        }),
        ("reset before it was used", |pair, id| {
            pair.client.handle.reset_stream(id, 7).unwrap();
        }),
        ("reset by its opener", |pair, id| {
            pair.client.put(id, b"there", false);
            pair.until("there", |pair| pair.server.user.got(id, b"there", false));
            pair.client.handle.reset_stream(id, 7).unwrap();
        }),
        ("reset by its acceptor", |pair, id| {
            pair.client.put(id, b"there", false);
            pair.until("there", |pair| pair.server.user.got(id, b"there", false));
            pair.server.handle.reset_stream(id, 7).unwrap();
        }),
        ("reset by both", |pair, id| {
            pair.client.put(id, b"there", false);
            pair.until("there", |pair| pair.server.user.got(id, b"there", false));
            pair.server.handle.reset_stream(id, 7).unwrap();
            pair.client.handle.reset_stream(id, 7).unwrap();
        }),
        ("reset by its opener, who had finished", |pair, id| {
            pair.client.put(id, b"there", true);
            pair.until("there", |pair| pair.server.user.got(id, b"there", true));
            pair.client.handle.reset_stream(id, 7).unwrap();
        }),
        ("reset by its acceptor, who had finished", |pair, id| {
            pair.client.put(id, b"there", false);
            pair.until("there", |pair| pair.server.user.got(id, b"there", false));
            pair.server.put(id, b"back", true);
            pair.until("back", |pair| pair.client.user.got(id, b"back", true));
            pair.server.handle.reset_stream(id, 7).unwrap();
        }),
        (
            "reset by its acceptor, when its opener had finished",
            |pair, id| {
                pair.client.put(id, b"there", true);
                pair.until("there", |pair| pair.server.user.got(id, b"there", true));
                pair.server.handle.reset_stream(id, 7).unwrap();
            },
        ),
    ];
    for faults in [
        Faults::default(),
        Faults {
            loss: 10,
            doubled: 10,
            held: 30,
        },
    ] {
        for (what, end) in ends {
            eprintln!("{what}");
            let mut pair = Pair::faulty(&with_streams(2), 5, faults);
            // Credit comes back when half of it is used, and the server's includes what its peer's
            // data streams do not take.
            for _ in 0..if faults.loss > 0 { 40 } else { 200 } {
                let ours = pair.open(false);
                end(&mut pair, ours);
                pair.until(what, |pair| pair.client.end_of(ours).is_some());
            }
            pair.net.faults = Faults::default();
            pair.until_forgotten(what, &[]);
        }
    }
}

/// How many stories of random ends are told; more, where more are asked for.
fn stories() -> u64 {
    let asked = std::env::var("QUIC_DIST_STORIES").ok();
    asked.and_then(|asked| asked.parse().ok()).unwrap_or(25)
}

/// Whatever both sides do, at whatever time: each is told one end of each stream, and nothing is left.
#[test]
fn any_ends_at_any_time() {
    for seed in 0..stories() {
        any_ends(seed, |side, id| side.handle.send_stream(id, vec![0], true));
    }
}

/// The same where a side finishes without data.
#[test]
fn any_ends_at_any_time_by_fin_alone() {
    for seed in 0..stories() {
        any_ends(seed, |side, id| {
            side.handle.finish_stream(id).map(|()| Sent::Taken)
        });
    }
}

fn any_ends(seed: u64, finish: fn(&Side, u64) -> Result<Sent, StreamError>) {
    const STREAMS: usize = 20;
    let faults = Faults {
        loss: 5,
        doubled: 5,
        held: 20,
    };
    let mut pair = Pair::faulty(&with_streams(2 * STREAMS), seed, faults);
    let mut rng = Rng::new(seed);
    let mut ids: Vec<u64> = (0..STREAMS).map(|n| pair.client.open(n % 4 == 3)).collect();
    ids.extend((0..STREAMS).map(|n| pair.server.open(n % 4 == 3)));
    for _ in 0..400 {
        let side = [&pair.client, &pair.server][rng.below(2) as usize];
        let id = ids[rng.below(ids.len() as u64) as usize];
        // On what has ended, or has not arrived yet, it fails.
        let _ = match rng.below(8) {
            0 => finish(side, id),
            1 => {
                let reset = side.handle.reset_stream(id, rng.below(3));
                reset.map(|()| Sent::Taken)
            }
            2 => {
                let much = vec![0; rng.below(600_000) as usize];
                side.handle.send_stream(id, much, false)
            }
            _ => {
                let some = vec![0; 1 + rng.below(3000) as usize];
                side.handle.send_stream(id, some, rng.below(4) == 0)
            }
        };
        for _ in 0..rng.below(4) {
            pair.step();
        }
    }
    pair.net.faults = Faults::default();
    pair.until(&format!("everybody is told, seed {seed}"), |pair| {
        let sides = [&pair.client, &pair.server];
        for side in sides {
            for info in side.handle.streams_info() {
                // What is full is finished in a later round.
                let _ = finish(side, info.id);
            }
        }
        sides.iter().all(|side| {
            let role = side.connection.role;
            let own = ids.iter().filter(|&&id| Role::opener(id) == role);
            own.chain(&side.user.incoming)
                .all(|&id| side.end_of(id).is_some())
        })
    });
    // What was lost is sent again when quiche's timers say so.
    pair.until_forgotten(&format!("nothing is left, seed {seed}"), &ids);
}

/// An end alone, behind data that has been acknowledged, is sent until it arrives; also where the
/// other side has finished, and quiche would have nothing more to do with the stream.
#[test]
fn an_end_alone_that_is_lost_is_sent_again() {
    for uni in [false, true] {
        let mut pair = Pair::connected(&with_streams(10));
        let id = pair.client.open(uni);
        pair.client.put(id, b"there", false);
        pair.until("it is there", |pair| {
            pair.server.user.got(id, b"there", false)
        });
        if !uni {
            pair.server.put(id, b"back", true);
            pair.until("it is back", |pair| pair.client.user.got(id, b"back", true));
        }
        pair.settle();
        pair.net.cut = true;
        pair.client.handle.finish_stream(id).unwrap();
        pair.step();
        pair.net.cut = false;
        pair.until("both are told", |pair| {
            pair.client.end_of(id) == Some(None) && pair.server.end_of(id) == Some(None)
        });
        assert!(pair.server.user.got(id, b"there", true));
        pair.until_forgotten("nothing is left", &[id]);
    }
}

/// The end of a stream has come, but not what is before it; and then the stream is cut. If the word of
/// that comes first, nobody hears of the stream at all.
#[test]
fn a_cut_behind_an_end_that_came_early() {
    for begun in [false, true] {
        let mut pair = Pair::connected(&with_streams(10));
        let id = pair.client.open(false);
        if begun {
            pair.client.put(id, b"there", false);
            pair.until("it is there", |pair| {
                pair.server.user.got(id, b"there", false)
            });
        }
        // No timer sends again what is lost, before the stream is cut.
        pair.freeze();
        pair.net.cut = true;
        pair.client.put(id, b"lost", false);
        pair.step();
        pair.net.cut = false;
        pair.client.put(id, b"end", true);
        pair.step();
        pair.client.handle.reset_stream(id, 7).unwrap();
        pair.step();
        pair.thaw();
        pair.until("both are told", |pair| {
            pair.client.end_of(id) == Some(Some(7))
                && (!begun || pair.server.end_of(id) == Some(Some(7)))
        });
        pair.until_forgotten("nothing is left", &[id]);
        assert_eq!(pair.server.user.incoming.is_empty(), !begun);
    }
}

/// The word of a cut may be lost where the stream's end is not: that is no end that anybody is told of.
#[test]
fn a_cut_never_looks_like_an_end() {
    let faults = Faults {
        loss: 30,
        doubled: 10,
        held: 30,
    };
    for finished in [false, true] {
        let mut pair = Pair::faulty(&with_streams(40), 3, faults);
        for _ in 0..10 {
            let ids: Vec<u64> = (0..20).map(|_| pair.open(false)).collect();
            for &id in &ids {
                pair.client.put(id, b"there", finished);
                pair.until("it is there", |pair| {
                    pair.server.user.got(id, b"there", finished)
                });
                pair.server.handle.reset_stream(id, 7).unwrap();
                pair.step();
            }
            pair.until("all are told", |pair| {
                ids.iter().all(|&id| pair.client.end_of(id).is_some())
            });
            for id in ids {
                assert_eq!(pair.client.end_of(id), Some(Some(7)), "{id}");
                assert!(!pair.client.user.got(id, b"", true), "{id} has ended");
            }
        }
        pair.net.faults = Faults::default();
        pair.until_forgotten("nothing is left", &[]);
    }
}

/// It is the word that ends a stream; an end without it does not.
#[test]
fn a_cut_whose_word_comes_later() {
    let mut pair = Pair::connected(&with_streams(10));
    let id = pair.client.open(false);
    pair.client.put(id, b"there", false);
    pair.until("it is there", |pair| {
        pair.server.user.got(id, b"there", false)
    });
    let quic = &mut pair.server.connection.quic;
    quic.stream_send(id, &[b'x', 1], true).unwrap();
    pair.settle();
    assert!(pair.client.user.got(id, b"x", false));
    assert_eq!(pair.client.end_of(id), None);
    pair.server.handle.reset_stream(id, 7).unwrap();
    pair.until("it is cut", |pair| {
        pair.client.end_of(id) == Some(Some(7)) && pair.server.end_of(id) == Some(Some(7))
    });
}

#[test]
fn a_code_reaches_the_other_side() {
    for reset in [0, 7, 0x100, (1 << 62) - 1] {
        let mut pair = Pair::connected(&with_streams(10));
        let id = pair.client.open(false);
        pair.client.put(id, &packet(1, 5_000_000), false);
        pair.until("some is there", |pair| !pair.server.user.order.is_empty());
        pair.client.handle.reset_stream(id, reset).unwrap();
        pair.until("both are told", |pair| {
            pair.client.end_of(id) == Some(Some(reset))
                && pair.server.end_of(id) == Some(Some(reset))
        });
    }
}

/// What the reader has not taken does not hide the reset behind it.
#[test]
fn a_reset_overtakes_unread_data() {
    let mut pair = Pair::connected(&with_streams(10));
    pair.server.user.stopped = true;
    let bidi = pair.client.open(false);
    let finished = pair.client.open(false);
    pair.client.put(bidi, &packet(1, 100_000), false);
    pair.client.put(finished, &packet(1, 100_000), true);
    pair.settle();
    pair.client.handle.reset_stream(bidi, 9).unwrap();
    pair.client.handle.reset_stream(finished, 10).unwrap();
    pair.until("the reader is told", |pair| {
        pair.server.end_of(bidi) == Some(Some(9)) && pair.server.end_of(finished) == Some(Some(10))
    });
    assert_eq!(pair.server.user.order, []);
    pair.until_forgotten("nothing is left", &[bidi, finished]);
}

#[test]
fn streams_that_nobody_wants_are_refused() {
    let mut pair = Pair::connected(&with_streams(4));
    pair.server.user.refuses = true;
    for round in 0..50 {
        let (bidi, uni) = (pair.open(false), pair.open(true));
        let fin = round % 2 == 0;
        pair.client.put(bidi, &packet(1, 1000), fin);
        // With its end already sent, its sender is done with it.
        pair.client.put(uni, &packet(1, 1000), false);
        pair.until("both are refused", |pair| {
            pair.client.end_of(bidi) == Some(Some(code::REFUSED))
                && pair.client.end_of(uni) == Some(Some(code::REFUSED))
        });
    }
    pair.until_forgotten("nothing is left", &[]);
}
