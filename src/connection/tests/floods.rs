//! Frames that cost us more than they cost a peer that knows the cookie, or has a certificate: each
//! kind has its limit, quiche's or ours (`docs/security.md`, "Frames that cost more than they are
//! worth").

use super::forger::Forger;
use super::*;
use crate::connection::paths::MAX_PATHS;

/// A connection has that many ids, and may have retired three times as many without our having said
/// so; quiche has both from `active_connection_id_limit`.
const MAX_IDS: u64 = MAX_PATHS;
const MAX_RETIRED: u64 = 3 * MAX_PATHS;
/// RFC 9000, section 20.1: CONNECTION_ID_LIMIT_ERROR.
const CONNECTION_ID_LIMIT: u64 = 0x9;

/// NEW_CONNECTION_ID; numbers below 2^14.
fn new_id(number: u64, retire_prior_to: u64) -> Vec<u8> {
    let short = |n: u64| (0x4000 | n as u16).to_be_bytes();
    let mut frame = vec![0x18];
    frame.extend_from_slice(&short(number));
    frame.extend_from_slice(&short(retire_prior_to));
    frame.push(16);
    // The id, and the token that resets a connection by it.
    frame.extend_from_slice(&packet(number, 16));
    frame.extend_from_slice(&packet(!number, 16));
    frame
}

fn ended_by_ids(side: &Side) -> bool {
    matches!(
        side.closed,
        Some(CloseReason::Transport {
            by_us: true,
            code: CONNECTION_ID_LIMIT,
            ..
        })
    )
}

/// One that has given all ids that it may.
fn with_all_ids() -> Forger {
    let mut forger = Forger::new(&limits());
    // The first is from the handshake.
    for number in 1..MAX_IDS {
        forger.say(&new_id(number, 0));
    }
    forger.our_turn();
    forger
}

#[test]
fn a_peer_has_only_so_many_ids() {
    let mut forger = with_all_ids();
    assert_eq!(forger.side.ended(), None);
    forger.say(&new_id(MAX_IDS, 0));
    forger.our_turn();
    assert!(ended_by_ids(&forger.side), "{:?}", forger.side.ended());
}

/// Each id that it gives retires all before it, and we get to say so of none.
#[test]
fn a_peer_retires_only_so_many_ids_at_once() {
    let mut forger = Forger::new(&limits());
    let mut said = 0;
    while forger.side.connection.quic.local_error().is_none() {
        said += 1;
        assert!(said <= MAX_RETIRED + 1, "there is no end to it");
        forger.say(&new_id(said, said));
    }
    assert!(said > MAX_RETIRED / 2, "{said}");
    forger.our_turn();
    assert!(ended_by_ids(&forger.side), "{:?}", forger.side.ended());
}

#[test]
fn path_challenges_are_answered_a_few_at_a_time() {
    let mut forger = Forger::new(&limits());
    let data = |number: u8| [number, 0xc4, 0xa1, 0x1e, 0x29, 0x3e, 0x77, number];
    for turn in 0..3 {
        for number in 0..100 {
            let challenge = [&[0x1a][..], &data(number)].concat();
            forger.say(&challenge);
        }
        let packets = forger.our_turn();
        let answers = (0..100)
            .map(|number| [&[0x1b][..], &data(number)].concat())
            .filter(|answer| {
                packets
                    .iter()
                    .any(|packet| packet.windows(9).any(|w| w == answer))
            })
            .count();
        assert!((1..=3).contains(&answers), "{answers} in turn {turn}");
    }
    assert_eq!(forger.side.ended(), None);
}

/// From as many addresses as it likes, with ids for all of them.
#[test]
fn a_peer_has_only_so_many_paths() {
    let mut forger = with_all_ids();
    for port in 1..=100 {
        // A PING, and an address that is not known.
        forger.say_from((CLIENT.ip(), 2000 + port).into(), &[1; 8]);
        forger.our_turn();
        let paths = forger.side.connection.quic.path_stats().count() as u64;
        assert!(paths <= MAX_PATHS, "{paths}");
        if port == 5 {
            assert!(paths > 1, "none is new");
        }
        assert_eq!(forger.side.ended(), None);
    }
}

/// Ids of ours that it will not use are replaced, one for one.
#[test]
fn retired_ids_are_replaced_one_for_one() {
    let mut forger = Forger::new(&limits());
    let many = forger.side.ids.len();
    assert!(many > 1);
    for number in 1..5_000_u16 {
        // RETIRE_CONNECTION_ID of the oldest that is not in use.
        let number = (0x4000 | number).to_be_bytes();
        forger.say(&[0x19, number[0], number[1], 0]);
        forger.our_turn();
        assert_eq!(forger.side.ended(), None, "{number:?}");
        assert_eq!(forger.side.ids.len(), many);
    }
    assert_eq!(forger.side.retired, 4_999);
}

#[test]
fn pings_share_an_answer() {
    let mut forger = Forger::new(&limits());
    for _ in 0..10_000 {
        forger.say(&[1; 1000]);
    }
    let packets = forger.our_turn();
    let bytes: usize = packets.iter().map(Vec::len).sum();
    assert!(bytes > 0 && bytes < 2000, "{bytes} for 10 million PINGs");
    assert_eq!(forger.side.ended(), None);
}

/// Nobody takes them meanwhile.
#[test]
fn datagrams_that_come_at_once_are_kept_as_far_as_the_queue_goes() {
    let limits = Limits {
        user_streams: 8,
        ..limits()
    };
    let mut forger = Forger::new(&limits);
    // Ten in a packet.
    let datagrams = b"\x31\x04data".repeat(10);
    for _ in 0..1000 {
        forger.say(&datagrams);
    }
    let quic = &forger.side.connection.quic;
    assert_eq!(quic.stats().dgram_recv, 10_000);
    assert_eq!(quic.dgram_recv_queue_len(), 1024);
    forger.our_turn();
    assert_eq!(forger.side.user.datagrams.len(), 1024);
}
