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
    Count(i32),
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
            return Ok(Active::Count(count.into()));
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
    pub active: Active,
    pub reader: Option<Box<(Waiter, Demand)>>,
    /// Its owner gives it away: nobody is told anything.
    pub giving: bool,
    /// What the new owner is to be told.
    pub end: Option<Box<End>>,
    /// The peer's end was delivered.
    pub fin: bool,
}

impl Entry {
    pub fn new(owner: LocalPid, active: Active) -> Self {
        Entry {
            owner,
            active,
            reader: None,
            giving: false,
            end: None,
            fin: false,
        }
    }

    /// What the engine is to read next.
    pub fn demand(&self) -> Option<Demand> {
        if self.giving || self.fin {
            return None;
        }
        match (&self.reader, self.active) {
            (Some(reader), _) => Some(reader.1),
            (None, Active::False) => None,
            (None, _) => Some(Demand::Any),
        }
    }

    /// Whether somebody takes a delivery. One that was on its way before need not be what is asked for
    /// now.
    pub fn takes(&self, length: usize, fin: bool) -> bool {
        match (&self.reader, self.active) {
            _ if self.giving => false,
            (Some(reader), _) => match reader.1 {
                Demand::Any => true,
                Demand::Exactly(asked) => length == asked || fin && length < asked,
            },
            (None, active) => active != Active::False,
        }
    }

    /// Nobody waits any more.
    pub fn withdraw(&mut self, handle: &Handle, id: u64) {
        self.reader = None;
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
