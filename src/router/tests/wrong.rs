//! Routers that are wrong, kept as counter-examples.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::super::Route;
use crate::term::Terms;

/// The specification's words: the next packet takes the next stream.
pub struct RoundRobin {
    streams: usize,
    next: usize,
}

impl RoundRobin {
    pub fn new(streams: usize) -> Self {
        RoundRobin { streams, next: 0 }
    }

    pub fn route(&mut self, _packet: &[u8]) -> Route {
        self.next = (self.next + 1) % self.streams;
        Route::Stream(self.next)
    }
}

/// A hash of the sender and the receiver, as they are written in the control message.
pub struct FromTo {
    streams: usize,
}

impl FromTo {
    pub fn new(streams: usize) -> Self {
        FromTo { streams }
    }

    pub fn route(&self, packet: &[u8]) -> Route {
        let control = match packet {
            [131, 68, 0, control @ ..] => control,
            [131, 69, rest @ ..] => &rest[17..],
            // Of later fragments it knows the sequence only.
            [131, 70, rest @ ..] => return self.of(&rest[..8]),
            _ => return Route::Stream(0),
        };
        // Everything but the payload: from, to, and how they are named.
        let end = control.len().saturating_sub(8);
        let named = match control.get(3) {
            // The references differ; from and to do not.
            Some(22 | 24) => &control[..end],
            _ => &control[..],
        };
        self.of(&named[4.min(named.len())..])
    }

    fn of(&self, named: &[u8]) -> Route {
        let mut hasher = DefaultHasher::new();
        named.hash(&mut hasher);
        Route::Stream((hasher.finish() % self.streams as u64) as usize)
    }
}

fn control(packet: &[u8]) -> Option<(u8, Terms<'_>)> {
    let [131, 68, 0, control @ ..] = packet else {
        return None;
    };
    let mut terms = Terms::of_tuple(control)?;
    let operation = terms.small_integer()?;
    Some((operation, terms))
}

/// The leader in a GROUP_LEADER signal: it stands where the sender does in the others.
pub fn group_leader_of(packet: &[u8]) -> Option<u64> {
    match control(packet)? {
        (7, mut terms) => terms.sender().map(|sender| sender.0),
        _ => None,
    }
}

pub fn is_exit_of_name(packet: &[u8]) -> bool {
    match control(packet) {
        Some((28, mut terms)) => terms.sender().is_none(),
        _ => false,
    }
}
