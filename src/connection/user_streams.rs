//! The application's own streams, between their table ([`crate::streams`]) and quiche.
//!
//! They come after the distribution's: what they write goes to quiche after it, with a higher
//! urgency number, and what they read is read after it, a bounded share in a turn.

use std::cell::Cell;
use std::time::Instant;

use bytes::BufMut;

use super::departing::Departing;
use super::in_the_way::LAST;
use super::{Connection, Happening, State};
use crate::close::code;
use crate::config::Limits;
use crate::event::{Event, StreamEvent};
use crate::layout::{CONTROL, Role, user_stream_kind};
use crate::streams::{CUT, Order, Read, Write};

/// One delivery holds at most this many bytes, unless more was asked for.
const READ_BATCH: usize = 256 << 10;
/// What all of them together read in a turn.
const READ_TURN: usize = 1 << 20;
/// What one stream writes before the next of its priority gets its turn.
const WRITE_TURN: usize = 64 << 10;
/// What all of them together write in a turn: more than leaves in it.
const WRITE_ALL: usize = 512 << 10;

/// What the connection knows of them, besides their table.
pub(super) struct UserStreams {
    pub departing: Departing,
    /// Whether there may be any.
    enabled: bool,
    /// Numbers of the latest of ours that quiche knows, plus one; bidirectional, unidirectional.
    opened: [u64; 2],
    datagrams_told: u64,
    /// The credit that the table was told of: streams as above, and a datagram's length.
    allowed: Option<(u64, u64, usize)>,
}

/// Why reading stopped.
enum Stop {
    /// Enough was read; there may be more.
    Enough,
    /// Nothing more is there now.
    Empty,
    /// The peer has finished.
    Fin,
    /// The peer has cut the stream.
    Cut,
    /// The peer has ended it as no stream of the application's ends.
    Broken,
}

impl UserStreams {
    pub fn new(limits: &Limits) -> Self {
        UserStreams {
            departing: Departing::new(limits),
            enabled: limits.user_streams > 0,
            opened: [0, 0],
            datagrams_told: 0,
            allowed: None,
        }
    }
}

impl Connection {
    pub(super) fn has_user_streams(&self) -> bool {
        self.user.enabled
    }

    /// How many streams of ours the peer allows by now, and how long a datagram may be.
    pub(super) fn learn_credit(&mut self) {
        let Some(peer) = self.quic.peer_transport_params() else {
            return;
        };
        let [bidi, uni] = self.user.opened;
        let bidi = match bidi {
            0 => peer.initial_max_streams_bidi,
            opened => opened + self.quic.peer_streams_left_bidi(),
        };
        let uni = match uni {
            0 => peer.initial_max_streams_uni,
            opened => opened + self.quic.peer_streams_left_uni(),
        };
        let datagram = self.datagram_size();
        let allowed = Some((bidi, uni, datagram));
        // Nobody else tells the table; its lock is not for each datagram that comes.
        if std::mem::replace(&mut self.user.allowed, allowed) != allowed {
            self.shared.streams.allow(bidi, uni, datagram);
        }
    }

    pub(super) fn stream_event(&mut self, id: u64, event: StreamEvent) {
        self.happenings
            .push_back(Happening::Event(Event::Stream(id, event)));
    }

    // Reading

    /// Finds out what has come, and reads what somebody waits for.
    pub(super) fn read_user_streams(&mut self, peer_data_streams: usize) {
        while let Some(id) = self.quic.stream_readable_next() {
            self.arrived(id, peer_data_streams);
        }
        let mut room = READ_TURN;
        while room > 0
            && matches!(self.state, State::Open)
            && !self.user.departing.waits_for_words()
            && let Some(read) = self.shared.streams.next_read(READ_BATCH)
        {
            room = room.saturating_sub(read.room);
            self.read_user_stream(read);
        }
        // A broken rule is the end: nothing is told after it.
        if !matches!(self.state, State::Open) {
            return;
        }
        self.read_datagrams();
        // More of them in the next turn, which comes at once.
        self.again |=
            self.shared.streams.has_more_to_read() && !self.user.departing.waits_for_words();
    }

    fn arrived(&mut self, id: u64, peer_data_streams: usize) {
        let ours = Role::opener(id) == self.role;
        let data_streams = if ours {
            self.outbound.streams()
        } else {
            peer_data_streams
        };
        // The distribution's streams are asked one by one.
        let Some(kind) = user_stream_kind(id, data_streams) else {
            return;
        };
        if self.user.departing.readable(id, &mut self.quic) || self.shared.streams.readable(id) {
            return;
        }
        // What quiche still knows of ours and nobody here does has come to the peer's end.
        if !ours {
            self.shared.streams.incoming(id, kind);
            self.stream_event(id, StreamEvent::Incoming);
        }
    }

    fn read_user_stream(&mut self, mut read: Read) {
        let id = read.id;
        let stop = self.fill(&mut read);
        if let Stop::Broken = stop {
            let text = format!("stream {id} was reset, or ended without its last byte");
            return self.break_off(code::PROTOCOL, &text);
        }
        if let Stop::Cut = stop {
            self.user.departing.cut(id);
        }
        let fin = matches!(stop, Stop::Fin);
        let unread = matches!(stop, Stop::Enough) && self.quic.stream_readable(id);
        if let Some(event) = self.shared.streams.read(read, fin, unread) {
            self.stream_event(id, event);
        }
    }

    fn fill(&mut self, read: &mut Read) -> Stop {
        let mut room = read.room;
        loop {
            // One byte more than was asked for may be the last, which is nobody's, and says that what
            // was asked for is all. If it is not, it is kept.
            if room == 0 {
                if self.quic.stream_readable_len(read.id, 2) != 1 {
                    return Stop::Enough;
                }
                room = 1;
            }
            let readable = self.quic.stream_readable_len(read.id, room);
            read.bytes.reserve(readable);
            match self
                .quic
                .stream_recv_buf(read.id, (&mut read.bytes).limit(room))
            {
                Ok((0, true)) | Err(quiche::Error::StreamReset(_)) => return Stop::Broken,
                Ok((_, true)) => {
                    let cut = read.bytes.ends_with(&CUT);
                    read.bytes.truncate(read.bytes.len() - 1);
                    return if cut { Stop::Cut } else { Stop::Fin };
                }
                Ok((length, false)) => room -= length.min(room),
                // Done: nothing more now. Anything else has ended the connection inside quiche.
                Err(_) => return Stop::Empty,
            }
        }
    }

    fn read_datagrams(&mut self) {
        if self.quic.dgram_recv_queue_len() == 0 {
            return;
        }
        let datagrams: Vec<Vec<u8>> =
            std::iter::from_fn(|| self.quic.dgram_recv_buf().ok()).collect();
        self.user.datagrams_told += datagrams.len() as u64;
        self.happen(Event::Datagrams(datagrams));
    }

    /// Datagrams that came and were not told, because too many came at once.
    pub(super) fn datagrams_missed(&self, received: u64) -> u64 {
        received.saturating_sub(self.user.datagrams_told)
    }

    // Writing

    pub(super) fn write_user_streams(&mut self, now: Instant) {
        if !self.user.enabled {
            return;
        }
        while let Some(id) = self.quic.stream_writable_next() {
            if !self.shared.streams.writable(id) {
                // If the peer has stopped it, against our rules, this makes quiche forget it.
                let _ = self.quic.stream_capacity(id);
            }
        }
        if self.flight.under_way() == 0 {
            self.shared.streams.nothing_under_way();
        }
        let mut room = WRITE_ALL;
        // The control stream is always there, so its room is that of the congestion window.
        while room > 0
            && self.shared.streams.has_writes()
            && self.quic.stream_capacity(CONTROL).unwrap_or(0) > 0
            && self.flight_room(now) > 0
            && let Some(write) = self.shared.streams.next_write()
        {
            room = room.saturating_sub(self.write_user_stream(&write, now));
        }
        self.write_datagrams();
        self.user.departing.look_after(&mut self.quic);
    }

    /// To be done before the control stream is written: that is where most of them go.
    pub(super) fn follow_orders(&mut self) {
        // What the control stream does not take now waits.
        while self.outbound.has_control_room()
            && let Some(order) = self.shared.streams.order()
        {
            match order {
                Order::Reset(id, code) => {
                    if let Some(left) = self.shared.streams.leave(id) {
                        self.urgent = true;
                        self.abandon(id, &left, code);
                        if !left.closed {
                            self.stream_event(id, StreamEvent::Reset(code));
                        }
                    }
                }
                Order::Check(id) => self.check_closed(id),
            }
        }
    }

    fn check_closed(&mut self, id: u64) {
        if self.shared.streams.check_closed(id) {
            self.stream_event(id, StreamEvent::Closed);
        }
    }

    /// One turn of one stream; how many bytes it wrote.
    fn write_user_stream(&mut self, write: &Write, now: Instant) -> usize {
        let id = write.id;
        if let Some(priority) = write.priority {
            // Incremental: streams of one priority take turns. It makes quiche know the stream; its
            // number has been within the peer's limit when it was given.
            let urgency = priority.min(LAST - 1);
            let known = self.quic.stream_priority(id, urgency, true);
            if let Err(error) = known {
                log::debug!("stream {id} cannot be opened: {error}");
                return 0;
            }
            self.shared.streams.prioritised(id, priority);
            self.opened(id);
        }
        let mut written = 0;
        while written < WRITE_TURN {
            let room = match self.quic.stream_capacity(id) {
                Ok(capacity) => capacity
                    .min(WRITE_TURN - written)
                    .min(self.flight_room(now)),
                Err(error) => {
                    self.write_failed(id, error);
                    return written;
                }
            };
            let Some((piece, last)) = self.shared.streams.take(id, room) else {
                break;
            };
            let length = piece.len();
            let counted = self.flight.piece(piece.clone());
            let held = counted.held();
            let rest = match self.quic.stream_send_zc(id, counted, last) {
                Ok((_, rest)) => rest.map(|rest| rest.bytes()),
                Err(quiche::Error::Done) => Some(piece),
                Err(error) => {
                    self.write_failed(id, error);
                    return written;
                }
            };
            self.urgent = true;
            let all = rest.is_none();
            let taken = length - rest.as_ref().map_or(0, |rest| rest.len());
            written += taken;
            let held = (taken > 0).then_some(held);
            if let Some(event) = self.shared.streams.taken(id, rest, last, held) {
                self.stream_event(id, event);
            }
            if last || !all {
                break;
            }
        }
        self.check_closed(id);
        // Where the stream's own window is full, quiche says when it is writable again.
        if written > 0 || self.flight_room(now) == 0 || self.quic.stream_capacity(CONTROL) == Ok(0)
        {
            self.shared.streams.reschedule(id);
        }
        written
    }

    pub(super) fn opened(&mut self, id: u64) {
        if Role::opener(id) == self.role {
            let opened = &mut self.user.opened[usize::from(id & 2 != 0)];
            *opened = (*opened).max((id >> 2) + 1);
        }
    }

    fn write_datagrams(&mut self) {
        while let Some(datagram) = self.shared.streams.datagram() {
            if self.quic.is_dgram_send_queue_full() {
                // The oldest goes.
                let first = Cell::new(true);
                self.quic.dgram_purge_outgoing(|_| first.replace(false));
                self.shared.streams.datagram_lost();
            }
            self.urgent = true;
            // The path's MTU may have shrunk meanwhile.
            if self.quic.dgram_send_buf(datagram).is_err() {
                self.shared.streams.datagram_lost();
            }
        }
    }

    /// Whether a turn of the connection's is due at once.
    pub(crate) fn wants_turn(&mut self) -> bool {
        std::mem::take(&mut self.again) && matches!(self.state, State::Open)
    }
}
