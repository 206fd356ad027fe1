//! What is queued for a connection's streams, and goes to quiche as far as flow control and the
//! congestion window go.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use super::flight::Held;
use super::hello::Hello;
use super::in_the_way::LAST;
use super::{Connection, Happening, State};
use crate::atom_cache::{AtomCache, Longer};
use crate::batch::{Batch, LOW};
use crate::close::code;
use crate::config::Limits;
use crate::event::Event;
use crate::frame::Prefix;
use crate::layout::{CONTROL, CONTROL_URGENCY, Role, data_urgency};
use crate::router::{Route, Router};
use crate::send_queue::SendQueue;
use crate::term::Process;

/// All that may wait on our side of the control stream. The handshake's few messages never get
/// here; a peer that gives no credit for them does.
const MAX_CONTROL_OUT: usize = 256 << 10;
/// Ticks are not queued behind this much: they would all say the same.
const ENOUGH_TICKS: usize = 64;
/// A stream with no more than this to send does not wait for what is on its way ([`super::flight`]).
const SHORT: usize = 16 << 10;
/// How long a stream counts as one with more after it had.
const LONG: Duration = Duration::from_millis(50);
/// The streams with more take turns of this.
const TURN: usize = 256 << 10;

/// The writing side of a connection's streams.
pub(super) struct Outbound {
    control: SendQueue,
    /// What quiche was told; nothing, before the stream is opened.
    control_urgency: Option<u8>,
    control_held: Held,
    data: Vec<DataStream>,
    router: Router,
    atoms: AtomCache,
    /// Batches of packets that have no stream yet, because a fence is before them.
    unrouted: VecDeque<Batch>,
    /// The streams have not been rid of the last fence.
    fenced: bool,
    finished: bool,
    /// Which of the streams with much to send is served next.
    next: usize,
}

struct DataStream {
    id: u64,
    queue: SendQueue,
    /// What quiche was told; nothing, before the stream is opened.
    urgency: Option<u8>,
    held: Held,
    /// It had much to send then.
    long_at: Option<Instant>,
    /// How many bytes have been queued on it, ever.
    given: u64,
    /// Who is to be told, and how many bytes had been queued with what it sent last: in that order.
    waiting: VecDeque<(Process, u64)>,
}

impl DataStream {
    fn push(&mut self, bytes: Bytes) {
        self.given += bytes.len() as u64;
        self.queue.push(bytes);
    }

    /// Whether it had much to send a moment ago: what is short now is the end of that, or stands behind it.
    fn was_long(&self, now: Instant) -> bool {
        self.long_at.is_some_and(|at| now < at + LONG)
    }

    /// Who is next to be told: little of what it sent is left to send, and of what was before it.
    fn low(&mut self) -> Option<Process> {
        let sent = self.given - self.queue.len() as u64;
        let &(process, until) = self.waiting.front()?;
        let is_low = until.saturating_sub(sent) <= LOW as u64;
        is_low.then(|| self.waiting.pop_front()).map(|_| process)
    }
}

impl Outbound {
    pub fn new(role: Role, limits: &Limits) -> Self {
        let mut control = SendQueue::default();
        let hello = Hello {
            data_streams: limits.data_streams,
            user_streams: limits.user_streams,
        };
        control.push(hello.packet().into());
        Outbound {
            control,
            control_urgency: None,
            control_held: Held::default(),
            data: (0..limits.data_streams as u64)
                .map(|index| DataStream {
                    id: role.data_stream(index),
                    queue: SendQueue::default(),
                    urgency: None,
                    held: Held::default(),
                    long_at: None,
                    given: 0,
                    waiting: VecDeque::new(),
                })
                .collect(),
            router: Router::new(limits.data_streams),
            atoms: AtomCache::new(limits.data_streams),
            unrouted: VecDeque::new(),
            fenced: false,
            finished: false,
            next: 0,
        }
    }

    /// How many data streams this side writes.
    pub fn streams(&self) -> usize {
        self.data.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.control.is_empty()
            && self.unrouted.is_empty()
            && self.data.iter().all(|s| s.queue.is_empty())
    }

    /// Whether the control stream is taken well enough for more to be queued on it.
    pub fn has_control_room(&self) -> bool {
        self.control.len() < MAX_CONTROL_OUT / 2
    }

    /// Those of which quiche holds nothing are to come after all others there, until more of them is written.
    pub fn make_last(&mut self) -> Vec<u64> {
        let control = (CONTROL, &mut self.control_urgency, &self.control_held);
        let data = self.data.iter_mut();
        let streams = data.map(|stream| (stream.id, &mut stream.urgency, &stream.held));
        streams
            .chain([control])
            .filter(|(_, told, held)| told.is_some_and(|told| told != LAST) && !held.is_under_way())
            .map(|(id, told, _)| {
                *told = Some(LAST);
                id
            })
            .collect()
    }

    /// Drops what is queued, and says how many bytes of it were data.
    pub fn clear(&mut self) -> usize {
        self.control.clear();
        let unrouted: usize = self.unrouted.drain(..).map(|b| b.len()).sum();
        unrouted + self.data.iter_mut().map(|s| s.queue.clear()).sum::<usize>()
    }
}

impl Connection {
    /// Queues a framed packet for the control stream.
    pub(crate) fn send_control(&mut self, framed: Vec<u8>) {
        // Our side of the stream may have its end already.
        if matches!(self.state, State::Lingering(_) | State::Ended) {
            return;
        }
        self.outbound.control.push(framed.into());
        if self.outbound.control.len() > MAX_CONTROL_OUT {
            self.break_off(code::LIMIT, "the control stream is not being read");
        }
    }

    /// Queues packets, each for the data stream that the router says.
    pub(crate) fn send_data(&mut self, batch: Batch) {
        if !matches!(self.state, State::Open) {
            self.drained(batch.len());
            return;
        }
        self.outbound.unrouted.push_back(batch);
        self.route();
    }

    /// Gives packets to the streams, up to a fence: what comes after it waits until the streams have
    /// been rid of all that comes before it. The peer reads nothing behind a fence before it has the
    /// whole of it; if that much used up the connection's credit (RFC 9000, section 4.1), what comes
    /// before the fence could never be sent.
    fn route(&mut self) {
        while !self.outbound.fenced
            && let Some(mut batch) = self.outbound.unrouted.pop_front()
        {
            self.route_to_fence(&mut batch);
            if batch.is_empty() {
                self.wait(batch.take_waiting());
            } else {
                self.outbound.unrouted.push_front(batch);
            }
        }
    }

    /// These wait until their streams have little to send of what is queued now. What others send after
    /// them does not count: who never waits would else make them wait without end. Who waits already, and
    /// has more queued by now, waits for that too.
    fn wait(&mut self, waiting: Vec<Process>) {
        for process in waiting {
            match self.outbound.router.stream_of(process) {
                Some(stream) => {
                    let stream = &mut self.outbound.data[stream];
                    stream.waiting.retain(|&(other, _)| other != process);
                    stream.waiting.push_back((process, stream.given));
                }
                // A fence has made all start anew.
                None => self.low(process),
            }
        }
    }

    fn low(&mut self, process: Process) {
        if matches!(self.state, State::Open) {
            let event = Event::Low(process);
            self.happenings.push_back(Happening::Event(event));
        }
    }

    /// The same for one batch.
    fn route_to_fence(&mut self, batch: &mut Batch) {
        if self.outbound.data.len() == 1 {
            return self.queue(0, batch, usize::MAX);
        }
        let loads = self.outbound.data.iter().map(|stream| stream.queue.len());
        self.outbound.router.set_loads(loads);
        // Neighbours for the same stream stay one piece.
        let mut run = 0;
        let mut run_stream = 0;
        while let Some(place) = batch.packet(run) {
            let head = batch.head(&place);
            let (stream, fence) = match self.outbound.router.route_long(head, place.length) {
                Route::Stream(stream) => (stream, false),
                Route::Fence => (0, true),
            };
            let longer = self.outbound.atoms.put(stream, head);
            let as_it_is = !fence && longer.is_none();
            if as_it_is && stream == run_stream {
                run = place.end;
                continue;
            }
            self.queue(run_stream, batch, run);
            let packet = place.end - run;
            run_stream = stream;
            if as_it_is {
                run = packet;
                continue;
            }
            run = 0;
            let mut pieces = Vec::new();
            batch.take(packet, |piece| pieces.push(piece));
            let length = self.put_header(&mut pieces, place.length, longer);
            if fence {
                return self.fence(pieces, length);
            }
            let mut prefix = Vec::with_capacity(Prefix::Data.size());
            if !Prefix::Data.put(length, &mut prefix) {
                return self.break_off(code::LIMIT, "a packet is too long for its prefix");
            }
            self.push(stream, prefix.into());
            pieces
                .into_iter()
                .for_each(|piece| self.push(stream, piece));
        }
        self.queue(run_stream, batch, run);
    }

    /// Takes the prefix off a packet in pieces, and gives it its header, which may have become longer;
    /// that is counted. How long it is now.
    fn put_header(
        &mut self,
        pieces: &mut Vec<Bytes>,
        length: usize,
        longer: Option<Longer>,
    ) -> usize {
        // The first piece has the prefix, the header and the control message.
        let Some(first) = pieces.first_mut() else {
            return 0;
        };
        first.advance(Prefix::Data.size());
        let Some(Longer { start, replaced }) = longer else {
            return length;
        };
        first.advance(replaced);
        let more = start.len() - replaced;
        pieces.insert(0, start.into());
        self.shared.send.add(more);
        length + more
    }

    /// Queues the first inline bytes of a batch, with their parts.
    fn queue(&mut self, stream: usize, batch: &mut Batch, inline: usize) {
        let stream = &mut self.outbound.data[stream];
        batch.take(inline, |piece| stream.push(piece));
    }

    fn push(&mut self, stream: usize, bytes: Bytes) {
        self.outbound.data[stream].push(bytes);
    }

    /// A fence is a mark on every stream; the first carries its packet.
    fn fence(&mut self, packet: Vec<Bytes>, length: usize) {
        let mut mark = Vec::new();
        if !Prefix::put_fence(length, &mut mark) {
            return self.break_off(code::LIMIT, "a packet is too long for a fence");
        }
        self.outbound.fenced = true;
        self.push(0, mark.into());
        packet.into_iter().for_each(|piece| self.push(0, piece));
        let mut empty = Vec::new();
        let _ = Prefix::put_fence(0, &mut empty);
        let empty = Bytes::from(empty);
        // The first mark was counted as the packet's own prefix.
        self.shared
            .send
            .add(empty.len() * (self.outbound.data.len() - 1));
        for stream in 1..self.outbound.data.len() {
            self.push(stream, empty.clone());
        }
    }

    /// An empty packet on the control stream, and a PING.
    pub(crate) fn tick(&mut self) {
        if !self.quic.is_established() {
            return;
        }
        if self.outbound.control.len() < ENOUGH_TICKS {
            self.outbound
                .control
                .push(Bytes::from_static(&[0; Prefix::Control.size()]));
        }
        // It fails only where the connection has no path, that is, at its end.
        let _ = self.quic.send_ack_eliciting();
    }

    pub(super) fn write(&mut self, now: Instant) {
        if !self.quic.is_established() {
            return;
        }
        self.follow_orders();
        self.write_control();
        let mut drained = self.write_streams(now);
        while self.outbound.fenced && self.outbound.data.iter().all(|s| s.queue.is_empty()) {
            self.outbound.fenced = false;
            self.route();
            drained += self.write_streams(now);
        }
        if drained > 0 {
            self.drained(drained);
        }
        for index in 0..self.outbound.data.len() {
            while let Some(process) = self.outbound.data[index].low() {
                self.low(process);
            }
        }
        self.write_user_streams(now);
        self.watch_the_way(now);
        if matches!(self.state, State::Lingering(_)) {
            self.finish();
        }
    }

    /// How much long data may be given to QUIC. Who has only little to send does not pay for the path's
    /// figures.
    pub(super) fn flight_room(&mut self, now: Instant) -> usize {
        if !self.flight.is_known(now) {
            let Some(path) = self.quic.path_stats().find(|path| path.active) else {
                return 0;
            };
            self.flight.learn(now, path.delivery_rate, path.min_rtt);
        }
        self.flight.room()
    }

    fn write_streams(&mut self, now: Instant) -> usize {
        let mut drained = 0;
        let streams = self.outbound.data.len();
        // A short message does not wait behind another sender's long one.
        for index in 0..streams {
            if self.outbound.data[index].queue.len() <= SHORT {
                drained += self.write_data(index, SHORT, now);
            }
        }
        // What may be on its way is not always enough for all: the next time it is the next one's.
        let mut index = self.outbound.next;
        let mut idle = 0;
        while idle < streams {
            let given = self.write_data(index, TURN, now);
            drained += given;
            index = (index + 1) % streams;
            if given > 0 {
                self.outbound.next = index;
                idle = 0;
            } else {
                idle += 1;
            }
        }
        drained
    }

    pub(super) fn write_control(&mut self) {
        while !self.outbound.control.is_empty() {
            // A server cannot open the control stream; its client's hello does.
            if self.outbound.control_urgency.is_none()
                && self.role == Role::Server
                && !self.quic.stream_writable(CONTROL, 0).unwrap_or(false)
            {
                return;
            }
            let room = self.room(CONTROL, self.outbound.control.len());
            let Some(piece) = self.outbound.control.take(room) else {
                return;
            };
            self.hurry_control();
            let counted = self.flight.piece(piece.clone());
            let held = counted.held();
            match self.quic.stream_send_zc(CONTROL, counted, false) {
                Ok((written, rest)) => {
                    if written > 0 {
                        self.outbound.control_held = held;
                    }
                    match rest {
                        None => self.urgent = true,
                        Some(rest) => return self.outbound.control.put_back(rest.bytes()),
                    }
                }
                Err(quiche::Error::Done) => return self.outbound.control.put_back(piece),
                Err(error) => return self.write_failed(CONTROL, error),
            }
        }
    }

    fn hurry_control(&mut self) {
        let told = self.outbound.control_urgency.replace(CONTROL_URGENCY);
        if told != Some(CONTROL_URGENCY) {
            self.prioritise(CONTROL, CONTROL_URGENCY, false);
        }
    }

    /// Gives QUIC at most this much of a stream; how much it was.
    fn write_data(&mut self, index: usize, most: usize, now: Instant) -> usize {
        let mut drained = 0;
        while drained < most {
            let stream = &self.outbound.data[index];
            let id = stream.id;
            let queued = stream.queue.len();
            if queued == 0 {
                break;
            }
            let mut room = self.room(id, queued).min(most - drained);
            if queued > SHORT {
                self.outbound.data[index].long_at = Some(now);
                room = room.min(self.flight_room(now));
            }
            let stream = &mut self.outbound.data[index];
            let was_long = stream.was_long(now);
            let Some(bytes) = stream.queue.take(room) else {
                break;
            };
            let piece = self.flight.piece(bytes.clone());
            let held = piece.held();
            let urgency = data_urgency(queued);
            if stream.urgency.replace(urgency) != Some(urgency) {
                // Incremental: streams of one urgency take turns.
                self.prioritise(id, urgency, true);
            }
            let sent = self.quic.stream_send_zc(id, piece, false);
            let stream = &mut self.outbound.data[index];
            let queue = &mut stream.queue;
            match sent {
                Ok((written, rest)) => {
                    drained += written;
                    self.urgent |= written > 0;
                    if written > 0 {
                        stream.held = held;
                    }
                    if written > 0 && queued <= SHORT && !was_long {
                        self.flight.short_message(now);
                    }
                    if let Some(rest) = rest {
                        queue.put_back(rest.bytes());
                        break;
                    }
                }
                Err(quiche::Error::Done) => {
                    queue.put_back(bytes);
                    break;
                }
                Err(error) => {
                    self.write_failed(id, error);
                    break;
                }
            }
        }
        drained
    }

    /// How much of `length` bytes a stream takes now. Given more than the connection's credit,
    /// quiche sends DATA_BLOCKED, and again at each attempt: two ends would never come to rest.
    fn room(&mut self, id: u64, length: usize) -> usize {
        match self.quic.stream_capacity(id) {
            Ok(capacity) => capacity.min(length),
            // Stopped, or not opened yet: the write says which.
            Err(_) => length,
        }
    }

    pub(super) fn prioritise(&mut self, id: u64, urgency: u8, incremental: bool) {
        // It fails only for a stream that is gone; the write that follows says so.
        let _ = self.quic.stream_priority(id, urgency, incremental);
    }

    pub(super) fn write_failed(&mut self, id: u64, error: quiche::Error) {
        let text = match error {
            quiche::Error::StreamStopped(_) => format!("stream {id} was stopped"),
            quiche::Error::StreamLimit => format!("no credit to open stream {id}"),
            error => format!("stream {id} cannot be written: {error}"),
        };
        self.break_off(code::PROTOCOL, &text);
    }

    /// Queued data has left the queue; the owner is told when it may go on.
    pub(super) fn drained(&mut self, bytes: usize) {
        if self.shared.send.sub(bytes) && matches!(self.state, State::Open) {
            self.happenings.push_back(Happening::Event(Event::Writable));
        }
    }

    /// Ends our side of the streams, once everything queued for them has been taken: the peer,
    /// having read to the end, closes the connection.
    fn finish(&mut self) {
        if self.outbound.finished {
            return;
        }
        if self.outbound.control_urgency.is_none() {
            // A server whose client never opened the control stream: nothing was ever said.
            return self.hang_up(code::NO_ERROR, "");
        }
        if !self.outbound.is_empty() {
            return;
        }
        self.outbound.finished = true;
        // They may have been put last, where an empty end would not be missed.
        self.hurry_control();
        let mut failed = self.quic.stream_send(CONTROL, &[], true).is_err();
        for index in 0..self.outbound.data.len() {
            let id = self.outbound.data[index].id;
            self.prioritise(id, data_urgency(0), true);
            failed |= self.quic.stream_send(id, &[], true).is_err();
        }
        if failed {
            // The streams are gone: there is nothing to deliver in order.
            self.hang_up(code::NO_ERROR, "");
        }
    }
}
