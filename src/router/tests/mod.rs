//! The router against a model of Erlang's signal order, beside two routers that are known to be
//! wrong: what catches them would catch a mistake of ours.

mod encode;
mod model;
mod unfenced;

use super::wrong::{FromTo, RoundRobin};
use super::*;
use encode::{Name, Packet, Process};
use model::{Rules, order_is_kept};
use proptest::prelude::*;

fn process(id: u32) -> Process {
    Process { id, serial: 7 }
}

#[test]
fn a_sender_keeps_its_stream_whatever_the_signal() {
    let me = process(1001);
    let you = process(5);
    let mut router = Router::new(4);
    let expected = router.route(&Packet::new().link(me, you).whole());
    assert!(matches!(expected, Route::Stream(_)));
    for packet in encode::every_signal_of(me, you) {
        assert_eq!(
            router.route(&packet.bytes),
            expected,
            "operation {}",
            packet.operation
        );
    }
}

#[test]
fn what_has_no_sender_is_fenced() {
    let (a, b) = (process(1), process(2));
    let mut router = Router::new(4);
    for (why, packet) in [
        ("SEND", Packet::new().send(b).whole()),
        ("GROUP_LEADER", Packet::new().group_leader(a, b).whole()),
        (
            "an exit of a monitored name",
            Packet::new()
                .monitor_exit_of_name(Name("server"), b)
                .whole(),
        ),
        (
            "a spawn that failed",
            Packet::new().spawn_reply_error(b).whole(),
        ),
        ("an unknown operation", Packet::new().unknown(99, a).whole()),
    ] {
        assert_eq!(router.route(&packet), Route::Fence, "{why}");
    }
}

#[test]
fn a_new_process_is_the_sender_of_its_spawn_reply() {
    let (parent, child) = (process(40), process(41));
    let mut router = Router::new(4);
    let reply = router.route(&Packet::new().spawn_reply(parent, child).whole());
    let message = router.route(&Packet::new().send_sender(child, parent).whole());
    assert_eq!(reply, message);
}

#[test]
fn fragments_follow_their_first() {
    let mut router = Router::new(16);
    let senders: Vec<Process> = (0..50).map(process).collect();
    let routes: Vec<Route> = senders
        .iter()
        .map(|&p| router.route(&Packet::new().send_sender(p, process(9)).fragment(p, 3)))
        .collect();
    for fragment in [2, 1] {
        for (&sender, &route) in senders.iter().zip(&routes) {
            assert_eq!(
                router.route(&encode::next_fragment(sender, fragment)),
                route
            );
        }
    }
    assert!(
        router.sequences.is_empty(),
        "the last one ends the sequence"
    );
    assert_eq!(
        router.route(&encode::next_fragment(senders[0], 1)),
        Route::Fence,
        "of an unknown sequence"
    );
}

#[test]
fn sequences_under_way_are_bounded() {
    let mut router = Router::new(2);
    for id in 0..(MAX_SEQUENCES as u32 + 100) {
        let sender = process(id);
        router.route(
            &Packet::new()
                .send_sender(sender, process(9))
                .fragment(sender, 9),
        );
        assert!(router.sequences.len() <= MAX_SEQUENCES);
    }
}

#[test]
fn neighbours_take_different_streams() {
    let mut router = Router::new(4);
    let mut streams = |ids: std::ops::Range<u32>, length| {
        let routes = ids.map(|id| {
            let packet = Packet::new().link(process(id), process(9)).whole();
            match router.route_long(&packet, length) {
                Route::Stream(stream) => stream,
                Route::Fence => panic!("fenced"),
            }
        });
        routes.collect::<std::collections::BTreeSet<usize>>()
    };
    assert_eq!(streams(100..104, 100), [0, 1].into());
    assert_eq!(streams(200..204, 100_000), [2, 3].into());
    assert_eq!(streams(100..104, 100_000), [0, 1].into(), "they stay");
}

#[test]
fn one_stream_takes_everything() {
    let mut router = Router::new(1);
    assert_eq!(router.route(b"whatever"), Route::Stream(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever processes do, and however the streams overtake each other.
    #[test]
    fn the_order_of_signals_is_kept(
        story in model::stories(),
        streams in 1usize..=16,
        delivery in any::<u64>(),
    ) {
        let mut router = Router::new(streams);
        order_is_kept(&story, streams, delivery, Rules::ALL, |packet| router.route(packet))
            .map_err(TestCaseError::fail)?;
    }

    /// Also while senders are forgotten, and loads change at random.
    #[test]
    fn the_order_is_kept_though_senders_are_forgotten(
        story in model::stories(),
        streams in 2usize..=16,
        senders in 1usize..6,
        delivery in any::<u64>(),
    ) {
        let mut router = Router::remembering(senders, streams);
        let mut load = delivery;
        let route = |packet: &[u8]| {
            load = load.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            router.set_loads((0..streams).map(|s| (load >> s) as usize & 0xffff));
            router.route(packet)
        };
        order_is_kept(&story, streams, delivery, Rules::ALL, route).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn garbage_never_panics(mut packet in prop::collection::vec(any::<u8>(), 0..200), head in 0usize..4) {
        let heads: [&[u8]; 4] = [&[], &[131, 68, 0], &[131, 69], &[131, 70]];
        let mut bytes = heads[head].to_vec();
        bytes.append(&mut packet);
        Router::new(4).route(&bytes);
    }

    /// Every packet cut short is routed somewhere, and a cut inside its control message fences it.
    #[test]
    fn truncation_is_safe(story in model::stories(), cut in any::<prop::sample::Index>()) {
        let mut router = Router::new(4);
        for packet in model::packets(&story) {
            router.route(&packet[..cut.index(packet.len() + 1)]);
        }
    }
}

/// Finds a story and a delivery that a wrong router gets wrong.
fn is_caught(streams: usize, mut route: impl FnMut(&[u8]) -> Route, rules: Rules) -> bool {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    (0..2000).any(|seed| {
        let story = model::stories().new_tree(&mut runner).unwrap().current();
        order_is_kept(&story, streams, seed, rules, &mut route).is_err()
    })
}

#[test]
fn round_robin_is_caught() {
    let mut wrong = RoundRobin::new(4);
    assert!(is_caught(4, |packet| wrong.route(packet), Rules::ALL));
}

#[test]
fn a_hash_of_from_and_to_is_caught_by_each_hazard() {
    for (hazard, rules) in Rules::EACH {
        let wrong = FromTo::new(4);
        assert!(
            is_caught(4, |packet| wrong.route(packet), rules),
            "not by {hazard}"
        );
    }
}

#[test]
fn trusting_the_leader_in_group_leader_is_caught() {
    let mut router = Router::new(4);
    let wrong = |packet: &[u8]| match unfenced::group_leader_of(packet) {
        Some(leader) => Route::Stream((leader % 4) as usize),
        None => router.route(packet),
    };
    assert!(is_caught(4, wrong, Rules::ALL));
}

#[test]
fn routing_the_exit_of_a_name_by_the_name_is_caught() {
    let mut router = Router::new(4);
    let wrong = |packet: &[u8]| match unfenced::is_exit_of_name(packet) {
        true => Route::Stream(0),
        false => router.route(packet),
    };
    assert!(is_caught(4, wrong, Rules::ALL));
}
