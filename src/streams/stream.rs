//! One stream of the application's: what is known of it on our side of quiche.

use bytes::{Bytes, BytesMut};

use super::{Left, StreamInfo};
use crate::connection::Held;
use crate::send_queue::SendQueue;

/// How far the sending side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    Open,
    /// Nothing more is taken; the queue and FIN have not all been given to quiche.
    Finishing,
    /// Quiche has it all, or there is no such side.
    Done,
}

/// What the reader wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Whatever there is.
    Any,
    /// This many bytes, or what is left before the end.
    Exactly(u32),
}

/// There may be very many, and idle: what is there seldom is in a box.
#[derive(Debug)]
pub(super) struct Stream {
    pub uni: bool,
    pub priority: u8,
    /// What quiche was told; nothing, before it knows the stream.
    pub told_priority: Option<u8>,
    /// Quiche was told since that it comes after all others.
    pub last: bool,
    /// Whether quiche holds anything of it.
    pub held: Held,
    /// It is in the list of those of which that may be so.
    pub noted: bool,
    /// What waits, if anything does.
    rest: Option<Box<Rest>>,
    pub sending: Sending,
    /// The peer's end has been delivered, or there is no such side.
    pub received: bool,
    /// It is in the schedule of those to write.
    pub scheduled: bool,
    /// Somebody waits for room in the queue.
    pub waiting: bool,
    /// One delivery, once asked for.
    pub demand: Option<Demand>,
    /// A delivery is on its way; until it has arrived nothing more is read.
    pub in_flight: bool,
    /// Quiche has something to read.
    pub unread: bool,
    /// It is in the list of those to read.
    pub listed: bool,
    /// What was read and not delivered is all that comes before the peer's end.
    pub fin_read: bool,
    /// A reset has been ordered: nothing else matters any more.
    pub reset: bool,
    /// [`crate::event::StreamEvent::Closed`] has been told.
    pub closed: bool,
}

#[derive(Debug, Default)]
struct Rest {
    /// For QUIC.
    queue: SendQueue,
    /// Read from quiche and not delivered.
    partial: BytesMut,
}

impl Stream {
    pub fn new(priority: u8, sends: bool, receives: bool) -> Self {
        Stream {
            uni: !(sends && receives),
            priority,
            told_priority: None,
            last: false,
            held: Held::default(),
            noted: false,
            rest: None,
            sending: if sends { Sending::Open } else { Sending::Done },
            received: !receives,
            scheduled: false,
            waiting: false,
            demand: None,
            in_flight: false,
            unread: false,
            listed: false,
            fin_read: false,
            reset: false,
            closed: false,
        }
    }

    /// How many bytes are queued.
    pub fn queued(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.queue.len())
    }

    /// What waits for QUIC.
    pub fn queue(&mut self) -> &mut SendQueue {
        &mut self.rest.get_or_insert_default().queue
    }

    /// A piece of it, at most so long.
    pub fn take_queued(&mut self, room: usize) -> Option<Bytes> {
        let piece = self.rest.as_mut()?.queue.take(room);
        self.tidy();
        piece
    }

    /// An idle stream keeps no memory for what it may send or receive.
    fn tidy(&mut self) {
        let is_idle = |rest: &Rest| rest.queue.is_empty() && rest.partial.is_empty();
        if self.rest.as_deref().is_some_and(is_idle) {
            self.rest = None;
        }
    }

    fn has_partial(&self) -> bool {
        let rest = self.rest.as_ref();
        rest.is_some_and(|rest| !rest.partial.is_empty())
    }

    /// Whether something can be read for a reader that wants it.
    pub fn wants_reading(&self) -> bool {
        self.demand.is_some()
            && !self.in_flight
            && !self.reset
            && (self.unread || self.fin_read || self.has_partial())
    }

    /// Whether there is something to give to quiche.
    pub fn wants_writing(&self) -> bool {
        !self.reset && (self.queued() > 0 || self.sending == Sending::Finishing)
    }

    /// What people are told of it.
    pub fn info(&self, id: u64) -> StreamInfo {
        StreamInfo {
            id,
            uni: self.uni,
            priority: self.priority,
            received: self.received,
            finished: self.sending != Sending::Open,
            queued: self.queued(),
        }
    }

    /// How it is left.
    pub fn left(&self) -> Left {
        Left {
            opened: self.told_priority.is_some(),
            priority: self.priority,
            sending: self.sending != Sending::Done,
            closed: self.closed,
        }
    }

    /// What was read before and waits for more.
    pub fn take_partial(&mut self) -> BytesMut {
        let Some(rest) = &mut self.rest else {
            return BytesMut::new();
        };
        let partial = std::mem::take(&mut rest.partial);
        self.tidy();
        partial
    }

    fn keep(&mut self, bytes: BytesMut) {
        if !bytes.is_empty() {
            self.rest.get_or_insert_default().partial = bytes;
        }
    }

    /// The delivery that the demand asks for, if what has been read makes one; the rest is kept.
    pub fn delivery(&mut self, mut bytes: BytesMut) -> Option<(Bytes, bool)> {
        let length = match self.demand {
            Some(Demand::Exactly(length)) if bytes.len() >= length as usize => length as usize,
            Some(Demand::Exactly(_)) if self.fin_read => bytes.len(),
            Some(Demand::Any) if self.fin_read || !bytes.is_empty() => bytes.len(),
            _ => {
                self.keep(bytes);
                return None;
            }
        };
        let delivered = if length == bytes.len() {
            // An empty rest would hold on to the whole buffer.
            bytes.freeze()
        } else {
            let delivered = bytes.split_to(length).freeze();
            self.keep(bytes);
            delivered
        };
        self.demand = None;
        self.in_flight = true;
        let fin = self.fin_read && !self.has_partial();
        self.fin_read &= !fin;
        Some((delivered, fin))
    }

    /// A delivery comes back: nobody took it. There is only ever one.
    pub fn put_back(&mut self, bytes: &[u8], fin: bool) {
        let rest = self.take_partial();
        let mut whole = BytesMut::with_capacity(bytes.len() + rest.len());
        whole.extend_from_slice(bytes);
        whole.extend_from_slice(&rest);
        self.keep(whole);
        self.fin_read |= fin;
        self.in_flight = false;
    }
}
