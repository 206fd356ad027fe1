//! Routers that are wrong, kept as counter-examples: the tests show that they are caught, the
//! unit tests of this module and, with the feature `counterexamples`, those with real nodes
//! (`test/counterexamples`). No library that is shipped has them.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::Route;
use crate::atom_cache;

/// The specification's words: the next packet takes the next stream.
#[derive(Debug)]
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
#[derive(Debug)]
pub struct FromTo {
    streams: usize,
}

impl FromTo {
    pub fn new(streams: usize) -> Self {
        FromTo { streams }
    }

    pub fn route(&self, packet: &[u8]) -> Route {
        let control = match packet {
            [112, 131, control @ ..] => control,
            [131, 68 | 69, ..] => atom_cache::terms(packet).unwrap_or_default(),
            // Of later fragments it knows the sequence only.
            [131, 70, rest @ ..] => return self.of(rest.get(..8)),
            _ => return Route::Stream(0),
        };
        self.of(from_to(control))
    }

    fn of(&self, named: impl Hash) -> Route {
        let mut hasher = DefaultHasher::new();
        named.hash(&mut hasher);
        Route::Stream((hasher.finish() % self.streams as u64) as usize)
    }
}

type Element<'a> = Option<&'a [u8]>;

/// The bytes of the sender and of the receiver, where the operation has them.
fn from_to(control: &[u8]) -> Option<(Element<'_>, Element<'_>)> {
    let [104, _arity, 97, operation, elements @ ..] = control else {
        return None;
    };
    let (from, to) = match operation {
        2 | 12 => (None, Some(1)),
        6 | 16 => (Some(0), Some(2)),
        29 | 30 => (Some(1), None),
        31 | 32 => (None, Some(1)),
        35..=37 => (Some(1), Some(2)),
        _ => (Some(0), Some(1)),
    };
    let element = |index: usize| {
        let mut rest = elements;
        for _ in 0..index {
            rest = rest.get(size(rest)?..)?;
        }
        rest.get(..size(rest)?)
    };
    Some((from.and_then(element), to.and_then(element)))
}

/// How many bytes the term takes that these begin with, if it is one that names somebody or comes
/// before one that does.
fn size(bytes: &[u8]) -> Option<usize> {
    let atom = |bytes: &[u8]| match *bytes {
        [82, _, ..] => Some(2),
        [115 | 119, length, ..] => Some(2 + usize::from(length)),
        [100 | 118, high, low, ..] => Some(3 + usize::from(u16::from_be_bytes([high, low]))),
        _ => None,
    };
    match *bytes {
        [97, ..] => Some(2),
        [98, ..] => Some(5),
        [110, length, ..] => Some(3 + usize::from(length)),
        [88, ref node @ ..] => Some(1 + atom(node)? + 12),
        [120, ref node @ ..] => Some(1 + atom(node)? + 12),
        [89, ref node @ ..] => Some(1 + atom(node)? + 8),
        [90, _, words, ref node @ ..] => Some(3 + atom(node)? + 4 + 4 * usize::from(words)),
        _ => atom(bytes),
    }
}

/// The wrong router that the environment asks for.
#[cfg(feature = "counterexamples")]
#[derive(Debug)]
pub enum Wrong {
    RoundRobin(RoundRobin),
    FromTo(FromTo),
}

#[cfg(feature = "counterexamples")]
impl Wrong {
    /// `QUIC_DIST_COUNTEREXAMPLE`: `round_robin`, `from_to`; unset or empty: the right router.
    ///
    /// # Panics
    ///
    /// When it is anything else: a test that believes that it runs a wrong router must not run the
    /// right one.
    pub fn of_environment(streams: usize) -> Option<Self> {
        match std::env::var("QUIC_DIST_COUNTEREXAMPLE")
            .unwrap_or_default()
            .as_str()
        {
            "" => None,
            "round_robin" => Some(Wrong::RoundRobin(RoundRobin::new(streams))),
            "from_to" => Some(Wrong::FromTo(FromTo::new(streams))),
            other => panic!("QUIC_DIST_COUNTEREXAMPLE={other}: no such counter-example"),
        }
    }

    pub fn route(&mut self, packet: &[u8]) -> Route {
        match self {
            Wrong::RoundRobin(router) => router.route(packet),
            Wrong::FromTo(router) => router.route(packet),
        }
    }
}
