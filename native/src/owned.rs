//! One stream as its owner has it: the mode in which it gets what arrives, who waits for it, and the
//! messages that tell of it. [`crate::owners`] has the table, its lock, and the decisions.

use bytes::Bytes;
use quic_dist_engine::streams::Demand;
use quic_dist_engine::{CloseReason, Handle};
use rustler::{
    Atom, Decoder, Encoder, Env, Error, LocalPid, NifResult, Resource, ResourceArc, Term,
};

use crate::terms::{self, atoms};
use crate::waiters::Waiter;

/// From this size on what was received becomes a binary where it is, without being copied.
const IN_PLACE: usize = 4096;

/// How an owner gets what arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Active {
    True,
    False,
    Once,
    Count(i16),
}

impl Active {
    /// A count that has run out is none.
    pub fn counted(self) -> Self {
        match self {
            Active::Count(..=0) => Active::False,
            active => active,
        }
    }
}

impl<'a> Decoder<'a> for Active {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        if let Ok(count) = term.decode::<i16>() {
            return Ok(Active::Count(count));
        }
        let mode: Atom = term.decode()?;
        if mode == atoms::true_() {
            Ok(Active::True)
        } else if mode == atoms::false_() {
            Ok(Active::False)
        } else if mode == atoms::once() {
            Ok(Active::Once)
        } else {
            Err(Error::BadArg)
        }
    }
}

impl Encoder for Active {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Active::True => atoms::true_().encode(env),
            Active::False => atoms::false_().encode(env),
            Active::Once => atoms::once().encode(env),
            Active::Count(count) => count.encode(env),
        }
    }
}

/// How a stream ended.
#[derive(Clone)]
pub enum End {
    Closed,
    Reset(u64),
    Connection(CloseReason),
}

/// There may be very many: what is there seldom is in a box.
pub struct Entry {
    pub owner: LocalPid,
    seldom: Option<Box<Seldom>>,
    pub active: Active,
    /// Its owner gives it away: nobody is told anything.
    pub giving: bool,
    /// The peer's end was delivered.
    pub fin: bool,
}

// docs/streams.md says what an idle stream costs.
const _: () = assert!(size_of::<Option<(u64, Entry)>>() <= 32);

/// One of them: nobody waits for a stream that has ended.
enum Seldom {
    Reader(Waiter, Demand),
    /// What the new owner is to be told.
    End(End),
}

impl Entry {
    pub fn new(owner: LocalPid, active: Active) -> Self {
        Entry {
            owner,
            seldom: None,
            active,
            giving: false,
            fin: false,
        }
    }

    /// Who waits for what arrives, and for what.
    pub fn reader(&self) -> Option<(&Waiter, Demand)> {
        match self.seldom.as_deref() {
            Some(Seldom::Reader(waiter, demand)) => Some((waiter, *demand)),
            _ => None,
        }
    }

    pub fn take_reader(&mut self) -> Option<Waiter> {
        match self.seldom.take().map(|seldom| *seldom) {
            Some(Seldom::Reader(waiter, _)) => Some(waiter),
            Some(end) => {
                self.seldom = Some(Box::new(end));
                None
            }
            None => None,
        }
    }

    pub fn read_by(&mut self, waiter: Waiter, demand: Demand) {
        self.seldom = Some(Box::new(Seldom::Reader(waiter, demand)));
    }

    /// It has ended, while it is given away.
    pub fn has_ended(&self) -> bool {
        matches!(self.seldom.as_deref(), Some(Seldom::End(_)))
    }

    pub fn ends(&mut self, end: End) {
        self.seldom = Some(Box::new(Seldom::End(end)));
    }

    pub fn take_end(&mut self) -> Option<End> {
        if !self.has_ended() {
            return None;
        }
        match self.seldom.take().map(|seldom| *seldom) {
            Some(Seldom::End(end)) => Some(end),
            _ => None,
        }
    }

    /// What the engine is to read next.
    pub fn demand(&self) -> Option<Demand> {
        if self.giving || self.fin {
            return None;
        }
        match (self.reader(), self.active) {
            (Some((_, demand)), _) => Some(demand),
            (None, Active::False) => None,
            (None, _) => Some(Demand::Any),
        }
    }

    /// Whether somebody takes a delivery. One that was on its way before need not be what is asked for
    /// now.
    pub fn takes(&self, length: usize, fin: bool) -> bool {
        match (self.reader(), self.active) {
            _ if self.giving => false,
            (Some((_, Demand::Any)), _) => true,
            (Some((_, Demand::Exactly(asked))), _) => {
                let asked = asked as usize;
                length == asked || fin && length < asked
            }
            (None, active) => active != Active::False,
        }
    }

    /// Nobody waits any more.
    pub fn withdraw(&mut self, handle: &Handle, id: u64) {
        self.take_reader();
        // If the stream has ended meanwhile there is nothing to take back.
        let _ = handle.demand_stream(id, None);
    }

    /// Counts a delivery to the owner. True: the stream has become passive by a count.
    pub fn delivered(&mut self) -> bool {
        match self.active {
            Active::Once => self.active = Active::False,
            Active::Count(n) => {
                self.active = Active::Count(n - 1).counted();
                return self.active == Active::False;
            }
            Active::True | Active::False => {}
        }
        false
    }
}

/// Bytes that became a binary where they are.
struct Received(Bytes);

#[rustler::resource_impl]
impl Resource for Received {}

pub fn binary(env: Env, bytes: Bytes) -> Term {
    if bytes.len() < IN_PLACE {
        return terms::binary(env, &bytes);
    }
    ResourceArc::new(Received(bytes))
        .make_binary(env, |received| &received.0)
        .to_term(env)
}

pub fn message<'a>(env: Env<'a>, node: Option<Atom>, id: u64, what: Term<'a>) -> Term<'a> {
    let node = node.unwrap_or_else(atoms::undefined);
    let reference = (atoms::quic_dist_stream(), node, id);
    (atoms::quic_dist_stream(), reference, what).encode(env)
}

pub fn end_term<'a>(env: Env<'a>, end: &End) -> Term<'a> {
    match end {
        End::Closed => atoms::closed().encode(env),
        End::Reset(code) => (atoms::reset(), code).encode(env),
        End::Connection(reason) => {
            let reason = (atoms::connection(), terms::close_reason(env, reason));
            (atoms::reset(), reason).encode(env)
        }
    }
}
