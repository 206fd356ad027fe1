//! Rebindings of a NAT and silences at random, while one side has much to say, or both.

use super::paths::{Roaming, address};
use super::*;

const STORIES: u64 = 16;
const ROUNDS: u16 = 25;
/// What a round may take, once all is well again.
const MENDED: Duration = Duration::from_secs(15);

/// Without what [`crate::connection::in_the_way`] does, one story in five stands still for good.
#[test]
#[ignore = "takes a minute"]
fn whatever_is_said_arrives() {
    let stories = (0..STORIES).map(|seed| std::thread::spawn(move || story(seed)));
    let stories: Vec<_> = stories.collect();
    let failed = stories
        .into_iter()
        .filter_map(|story| story.join().unwrap());
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// Where it stood still, if it did.
fn story(seed: u64) -> Option<String> {
    let limits = Limits {
        path_mtu_discovery: true,
        data_streams: 4,
        ..limits()
    };
    let mut rng = Rng::new(seed);
    let mut roaming = Roaming::new(&limits);
    for round in 0..ROUNDS {
        let sent = say_at_random(&mut roaming, &mut rng, round);
        roaming.mtu = usize::MAX;
        let start = Instant::now();
        let mut tick = start;
        let arrived = |pair: &Pair| [pair.server.packets.len(), pair.client.packets.len()];
        while arrived(&roaming.pair) != sent {
            if start.elapsed() > MENDED {
                let arrived = arrived(&roaming.pair);
                return Some(format!("{seed}, {round}: {arrived:?} of {sent:?}"));
            }
            turn(&mut roaming, &mut tick);
        }
        roaming.pair.server.packets.clear();
        roaming.pair.client.packets.clear();
    }
    None
}

/// How many packets the client has said, and the server.
fn say_at_random(roaming: &mut Roaming, rng: &mut Rng, round: u16) -> [usize; 2] {
    let mut sent = [0; 2];
    let start = Instant::now();
    let end = start + Duration::from_millis(600 + rng.next() % 1500);
    let (mut next, mut tick, mut silent) = (start, start, start);
    // One of them, or both.
    let who = rng.next() % 4;
    while Instant::now() < end {
        let now = Instant::now();
        if now >= next {
            next = now + Duration::from_millis(50 + rng.next() % 400);
            match rng.next() % 6 {
                0 if round > 0 => roaming.seen_as = Some(address(9, 5000 + round)),
                1 | 2 => silent = now + Duration::from_millis(rng.next() % 1100),
                _ => {}
            }
        }
        roaming.mtu = if now < silent { 0 } else { usize::MAX };
        let length = if rng.next().is_multiple_of(3) {
            100
        } else {
            1_000_000
        };
        for (index, role) in [Role::Client, Role::Server].into_iter().enumerate() {
            let side = roaming.side(role);
            if (who > 1 || who == index as u64) && side.queued() < 2_000_000 {
                side.send_data(&[packet(sent[index] as u64, length)]);
                sent[index] += 1;
            }
        }
        turn(roaming, &mut tick);
    }
    sent
}

fn turn(roaming: &mut Roaming, tick: &mut Instant) {
    if Instant::now() >= *tick {
        *tick = Instant::now() + Duration::from_millis(300);
        roaming.pair.client.connection.tick();
    }
    if !roaming.step() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
