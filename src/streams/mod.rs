//! The application's own streams: what the threads that send and receive share with whoever works
//! on the connection ([`crate::connection`]).
//!
//! A table behind a lock of its own, which is held for moves between queues only, never while
//! quiche works, a system call is made, or another lock is taken. So it is always the innermost
//! lock, and cannot be part of a deadlock.

mod datagrams;
mod handle;
mod schedule;
mod stream;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::config::Limits;
use crate::connection::Held;
use crate::event::StreamEvent;
use crate::ids::Ids;
use crate::layout::{Role, StreamKind};
use datagrams::Datagrams;
pub use handle::{Sent, StreamError};
use schedule::Schedule;
pub use stream::Demand;
use stream::{Sending, Stream};

/// Codes of cut streams that are ours; all others are the application's.
pub mod code {
    /// Somebody changed their mind, or died: what a reset has when no other code is given.
    pub const CANCELLED: u64 = 0x0;
    /// Nobody accepts streams.
    pub const REFUSED: u64 = 0x100;
}

/// The priority of a stream for which none was asked.
pub const DEFAULT_PRIORITY: u8 = 128;

/// A stream, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Its number.
    pub id: u64,
    /// It has one direction.
    pub uni: bool,
    /// Lower is served first.
    pub priority: u8,
    /// The peer's end was delivered.
    pub received: bool,
    /// This side takes nothing more.
    pub finished: bool,
    /// Bytes that quiche has not taken yet.
    pub queued: usize,
}

/// What a thread cannot do itself, for lack of the connection.
#[derive(Debug)]
pub(crate) enum Order {
    /// Both directions end, with this code.
    Reset(u64, u64),
    /// Both sides may have finished.
    Check(u64),
}

/// What a side sends last on a stream, with FIN: one byte that nobody is given. A FIN that went alone,
/// behind data that had left, could be lost for good: quiche 0.30 forgets a stream whose data has
/// been acknowledged, whether or not its FIN has (`docs/protocol.md`).
pub(crate) const END: [u8; 1] = [0];

/// What it sends in place of that on a stream that is cut: it has not said all. It may come before the
/// word of the cut, which is on the control stream.
pub(crate) const CUT: [u8; 1] = [1];

/// Room for so many streams is kept in a list of those that were in use.
const FEW: usize = 64;

/// A stream whose turn it is to write.
pub(crate) struct Write {
    pub id: u64,
    /// Quiche does not know it yet, or another one.
    pub priority: Option<u8>,
}

/// A stream to read: what has been read of it before, and how much more is wanted.
pub(crate) struct Read {
    pub id: u64,
    pub bytes: BytesMut,
    pub room: usize,
}

/// How a stream was left.
pub(crate) struct Left {
    /// Quiche knows it.
    pub opened: bool,
    pub priority: u8,
    /// Quiche has not been given all of our side.
    pub sending: bool,
    /// Its end has been told: both sides have finished.
    pub closed: bool,
}

/// See the module's documentation.
pub(crate) struct Streams {
    table: Mutex<Table>,
    /// The longest datagram that fits a packet; 0: the peer takes none.
    pub datagram_size: AtomicUsize,
}

struct Table {
    role: Role,
    data_streams: usize,
    /// Streams that this side may have open, as far as it is concerned; and as far as both are, once
    /// the peer has said what it allows.
    limit: usize,
    most: usize,
    /// The marks of a stream's queue.
    high: usize,
    low: usize,
    /// Whether the connection lives.
    open: bool,
    streams: Ids<Stream>,
    /// Those of `streams` that this side has opened.
    ours: usize,
    /// Indexes of the next ones, and how many the peer allows; bidirectional and unidirectional.
    next: [u64; 2],
    allowed: [u64; 2],
    /// The peer's data streams, and the highest numbers that have come from it; 0: none.
    peer_data_streams: usize,
    come: [u64; 2],
    to_write: Schedule,
    to_read: VecDeque<u64>,
    /// Those of which it is noted what quiche holds.
    noted: Vec<u64>,
    orders: VecDeque<Order>,
    datagrams: Datagrams,
    /// The event thread has been told that there is something to do, and has not come yet.
    signalled: bool,
}

impl Streams {
    pub fn new(role: Role, limits: &Limits) -> Self {
        Streams {
            table: Mutex::new(Table {
                role,
                data_streams: limits.data_streams,
                limit: limits.user_streams,
                most: 0,
                high: limits.user_stream_queue,
                low: limits.user_stream_queue / 2,
                open: true,
                streams: Ids::default(),
                ours: 0,
                next: [0, 0],
                allowed: [0, 0],
                peer_data_streams: 0,
                come: [0, 0],
                to_write: Schedule::default(),
                to_read: VecDeque::new(),
                noted: Vec::new(),
                orders: VecDeque::new(),
                datagrams: Datagrams::new(limits.datagram_queue),
                signalled: false,
            }),
            datagram_size: AtomicUsize::new(0),
        }
    }

    /// The connection ends, and with it everything here.
    pub fn close(&self) {
        let mut table = self.table.lock();
        table.open = false;
        table.streams = Ids::default();
        table.to_write = Schedule::default();
        table.to_read = VecDeque::new();
        table.noted = Vec::new();
        table.orders = VecDeque::new();
        table.datagrams.clear();
    }

    /// The event thread serves the connection: what is ordered from now on needs a new signal.
    pub fn served(&self) {
        self.table.lock().signalled = false;
    }

    /// The peer's hello: so many data streams it has, and so many streams of ours may be open.
    pub fn peer_says(&self, data_streams: usize, most: usize) {
        let mut table = self.table.lock();
        table.peer_data_streams = data_streams;
        table.most = table.limit.min(most);
    }

    /// QUIC has credit for so many streams of ours, bidirectional and unidirectional.
    pub fn allow(&self, bidi: u64, uni: u64, datagram_size: usize) {
        self.table.lock().allowed = [bidi, uni];
        self.datagram_size.store(datagram_size, Relaxed);
    }

    pub fn order(&self) -> Option<Order> {
        self.table.lock().orders.pop_front()
    }

    pub fn datagram(&self) -> Option<Vec<u8>> {
        self.table.lock().datagrams.pop()
    }

    pub fn datagram_lost(&self) {
        self.table.lock().datagrams.lost += 1;
    }

    /// Datagrams that found no room, so far.
    pub fn datagrams_lost(&self) -> u64 {
        self.table.lock().datagrams.lost
    }

    // Reading

    /// Quiche has something to read on a stream. False: nobody knows it.
    pub fn readable(&self, id: u64) -> bool {
        let mut table = self.table.lock();
        let Some(stream) = table.streams.get_mut(id) else {
            return false;
        };
        stream.unread = true;
        table.list(id);
        true
    }

    /// The peer has opened a stream. Nothing of it is read before there is a demand.
    pub fn incoming(&self, id: u64, kind: StreamKind) {
        let mut stream = Stream::new(DEFAULT_PRIORITY, kind == StreamKind::Bidi, true);
        stream.unread = true;
        let mut table = self.table.lock();
        let come = &mut table.come[kind as usize];
        *come = id.max(*come);
        // Quiche knows it, but not its priority, which matters with the first answer only.
        table.streams.insert(id, stream);
    }

    /// The next stream to read, at most `most` bytes.
    pub fn next_read(&self, most: usize) -> Option<Read> {
        let mut table = self.table.lock();
        while let Some(id) = table.to_read.pop_front() {
            let Some(stream) = table.streams.get_mut(id) else {
                continue;
            };
            stream.listed = false;
            if !stream.wants_reading() {
                continue;
            }
            let bytes = stream.take_partial();
            let room = match stream.demand {
                Some(Demand::Exactly(length)) => {
                    (length as usize).saturating_sub(bytes.len()).min(most)
                }
                _ if bytes.is_empty() => most,
                _ => 0,
            };
            return Some(Read { id, bytes, room });
        }
        None
    }

    /// What reading gave; `unread`: there is more.
    pub fn read(&self, read: Read, fin: bool, unread: bool) -> Option<StreamEvent> {
        let mut table = self.table.lock();
        let stream = table.streams.get_mut(read.id)?;
        stream.fin_read |= fin;
        stream.unread = unread;
        let delivery = stream.delivery(read.bytes);
        table.list(read.id);
        delivery.map(|(bytes, fin)| StreamEvent::Data { bytes, fin })
    }

    /// Whether the turn's share was not all.
    pub fn has_more_to_read(&self) -> bool {
        !self.table.lock().to_read.is_empty()
    }

    // Writing

    /// Quiche takes more of a stream again. False: nobody knows it.
    pub fn writable(&self, id: u64) -> bool {
        let mut table = self.table.lock();
        if !table.streams.contains(id) {
            return false;
        }
        table.schedule(id);
        true
    }

    /// Whether there may be a stream to write.
    pub fn has_writes(&self) -> bool {
        !self.table.lock().to_write.is_empty()
    }

    /// The next stream to write.
    pub fn next_write(&self) -> Option<Write> {
        let mut table = self.table.lock();
        while let Some(id) = table.to_write.pop() {
            let Some(stream) = table.streams.get_mut(id) else {
                continue;
            };
            stream.scheduled = false;
            let told = !stream.last && stream.told_priority == Some(stream.priority);
            if stream.wants_writing() || !told {
                let priority = (!told).then_some(stream.priority);
                return Some(Write { id, priority });
            }
        }
        None
    }

    /// Those that quiche knows, and of which it holds nothing, are to come after all others there, until
    /// more of them is written.
    pub fn make_last(&self) -> Vec<u64> {
        let mut table = self.table.lock();
        table.let_go();
        let idle = table.streams.iter_mut().filter(|(_, stream)| {
            !stream.last && stream.told_priority.is_some() && !stream.held.is_under_way()
        });
        idle.map(|(id, stream)| {
            stream.last = true;
            id
        })
        .collect()
    }

    /// Quiche has been told the stream's priority.
    pub fn prioritised(&self, id: u64, priority: u8) {
        if let Some(stream) = self.table.lock().streams.get_mut(id) {
            stream.told_priority = Some(priority);
            stream.last = false;
        }
    }

    /// A piece of at most `room` bytes; and whether it is the end.
    pub fn take(&self, id: u64, room: usize) -> Option<(Bytes, bool)> {
        let mut table = self.table.lock();
        let stream = table.streams.get_mut(id)?;
        if !stream.wants_writing() || room == 0 {
            return None;
        }
        match stream.take_queued(room) {
            Some(piece) => Some((piece, false)),
            None => Some((Bytes::from_static(&END), true)),
        }
    }

    /// What became of a piece: the rest that quiche did not take; whether it was the end; and what it
    /// holds of it, if anything.
    pub fn taken(
        &self,
        id: u64,
        rest: Option<Bytes>,
        end: bool,
        held: Option<Held>,
    ) -> Option<StreamEvent> {
        let table = &mut *self.table.lock();
        let low = table.low;
        let stream = table.streams.get_mut(id)?;
        if let Some(held) = held {
            stream.held = held;
            if !std::mem::replace(&mut stream.noted, true) {
                table.noted.push(id);
            }
        }
        match rest {
            None if end => stream.sending = Sending::Done,
            Some(rest) if !end => stream.queue().put_back(rest),
            // What comes next is the end again.
            _ => {}
        }
        if stream.waiting && stream.queued() <= low {
            stream.waiting = false;
            return Some(StreamEvent::Room);
        }
        None
    }

    /// Quiche holds nothing of any stream.
    pub fn nothing_under_way(&self) {
        self.table.lock().let_go();
    }

    /// It is this stream's turn again, when the others have had theirs.
    pub fn reschedule(&self, id: u64) {
        self.table.lock().schedule(id);
    }

    // Ends

    /// Both sides may have finished. True, once, when they have.
    pub fn check_closed(&self, id: u64) -> bool {
        let mut table = self.table.lock();
        let Some(stream) = table.streams.get_mut(id) else {
            return false;
        };
        if !stream.received || stream.sending == Sending::Open || stream.reset {
            return false;
        }
        let told = std::mem::replace(&mut stream.closed, true);
        if stream.sending == Sending::Done {
            table.remove(id);
        }
        !told
    }

    /// Whether there is such a stream.
    pub fn knows(&self, id: u64) -> bool {
        self.table.lock().streams.contains(id)
    }

    /// The stream ends here and now.
    pub fn leave(&self, id: u64) -> Option<Left> {
        self.table.lock().remove(id).map(|stream| stream.left())
    }

    /// The same where the peer ends it: nothing, if there is an order that does.
    pub fn left(&self, id: u64) -> Option<Left> {
        let mut table = self.table.lock();
        if table.streams.get(id)?.reset {
            return None;
        }
        table.remove(id).map(|stream| stream.left())
    }
}

impl Table {
    /// The number of one side's stream with this index among those of its kind.
    fn number(&self, opener: Role, kind: StreamKind, index: u64) -> u64 {
        let data_streams = if opener == self.role {
            self.data_streams
        } else {
            self.peer_data_streams
        };
        match kind {
            StreamKind::Bidi => opener.user_stream(data_streams, index),
            StreamKind::Uni => opener.uni_stream(index),
        }
    }

    /// Whether there has been a stream of this number.
    fn has_been(&self, id: u64) -> bool {
        let (opener, kind) = (Role::opener(id), StreamKind::of(id));
        let first = self.number(opener, kind, 0);
        let behind = if opener == self.role {
            self.number(opener, kind, self.next[kind as usize])
        } else {
            self.come[kind as usize] + 1
        };
        (first..behind).contains(&id)
    }

    /// Lists a stream to be read, if it wants to be. True if it does.
    fn list(&mut self, id: u64) -> bool {
        let Some(stream) = self.streams.get_mut(id) else {
            return false;
        };
        let wants = stream.wants_reading();
        if wants && !stream.listed {
            stream.listed = true;
            self.to_read.push_back(id);
        }
        wants
    }

    /// What says that quiche holds nothing of a stream takes more than the rest of an idle one, and goes.
    fn let_go(&mut self) {
        let streams = &mut self.streams;
        self.noted.retain(|&id| {
            let Some(stream) = streams.get_mut(id) else {
                return false;
            };
            stream.noted = stream.held.is_under_way();
            if !stream.noted {
                stream.held = Held::default();
            }
            stream.noted
        });
        self.noted.shrink_to(FEW);
    }

    /// This side of a stream takes nothing more.
    fn finish(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.sending = Sending::Finishing;
            if stream.received {
                self.orders.push_back(Order::Check(id));
            }
        }
        self.schedule(id);
    }

    fn schedule(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(id)
            && !stream.scheduled
            && stream.wants_writing()
        {
            stream.scheduled = true;
            self.to_write.push(stream.priority, id);
        }
    }

    fn remove(&mut self, id: u64) -> Option<Stream> {
        let stream = self.streams.remove(id)?;
        self.ours -= usize::from(Role::opener(id) == self.role);
        Some(stream)
    }
}
