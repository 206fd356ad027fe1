//! What is queued for a connection's streams, and goes to quiche as far as flow control and the
//! congestion window go.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Connection, Happening, State, hello};
use crate::close::code;
use crate::config::Limits;
use crate::event::Event;
use crate::frame::Prefix;
use crate::layout::{CONTROL, CONTROL_URGENCY, Role, data_urgency};
use crate::router::{Route, Router};
use crate::send_queue::SendQueue;

/// All that may wait on our side of the control stream. The handshake's few messages never get
/// here; a peer that gives no credit for them does.
const MAX_CONTROL_OUT: usize = 256 << 10;
/// Ticks are not queued behind this much: they would all say the same.
const ENOUGH_TICKS: usize = 64;

/// The writing side of a connection's streams.
pub(super) struct Outbound {
    control: SendQueue,
    control_opened: bool,
    data: Vec<DataStream>,
    router: Router,
    /// Batches of packets that have no stream yet, because a fence is before them.
    unrouted: VecDeque<Bytes>,
    /// The streams have not been rid of the last fence.
    fenced: bool,
    finished: bool,
}

struct DataStream {
    id: u64,
    queue: SendQueue,
    /// What quiche was told; nothing, before the stream is opened.
    urgency: Option<u8>,
}

impl Outbound {
    pub fn new(role: Role, limits: &Limits) -> Self {
        let mut control = SendQueue::default();
        control.push(hello::packet(limits.data_streams).into());
        Outbound {
            control,
            control_opened: false,
            data: (0..limits.data_streams as u64)
                .map(|index| DataStream {
                    id: role.data_stream(index),
                    queue: SendQueue::default(),
                    urgency: None,
                })
                .collect(),
            router: Router::new(limits.data_streams),
            unrouted: VecDeque::new(),
            fenced: false,
            finished: false,
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

    /// Drops what is queued, and says how many bytes of it were data.
    pub fn clear(&mut self) -> usize {
        self.control.clear();
        let unrouted: usize = self.unrouted.drain(..).map(|batch| batch.len()).sum();
        unrouted + self.data.iter_mut().map(|s| s.queue.clear()).sum::<usize>()
    }
}

impl Connection {
    /// Queues a framed packet for the control stream.
    pub(crate) fn send_control(&mut self, framed: Vec<u8>) {
        self.outbound.control.push(framed.into());
        if self.outbound.control.len() > MAX_CONTROL_OUT {
            self.break_off(code::LIMIT, "the control stream is not being read");
        }
    }

    /// Queues framed packets, each for the data stream that the router says.
    pub(crate) fn send_data(&mut self, framed: Vec<u8>) {
        if !matches!(self.state, State::Open) {
            self.drained(framed.len());
            return;
        }
        if self.outbound.data.len() == 1 {
            self.outbound.data[0].queue.push(framed.into());
            return;
        }
        self.outbound.unrouted.push_back(framed.into());
        self.route();
    }

    /// Gives packets to the streams, up to a fence: what comes after it waits until the streams have
    /// been rid of all that comes before it. The peer reads nothing behind a fence before it has the
    /// whole of it; if that much used up the connection's credit (RFC 9000, section 4.1), what comes
    /// before the fence could never be sent.
    fn route(&mut self) {
        while !self.outbound.fenced
            && let Some(framed) = self.outbound.unrouted.pop_front()
        {
            let rest = self.route_to_fence(framed);
            if !rest.is_empty() {
                self.outbound.unrouted.push_front(rest);
            }
        }
    }

    /// The same for one batch; what is left of it is given back.
    fn route_to_fence(&mut self, framed: Bytes) -> Bytes {
        let loads = self.outbound.data.iter().map(|stream| stream.queue.len());
        self.outbound.router.set_loads(loads);
        // Neighbours for the same stream stay one piece.
        let mut run = 0..0;
        let mut run_stream = 0;
        while let Some(length) = Prefix::Data.get(&framed[run.end..]) {
            let start = run.end + Prefix::Data.size();
            let end = (start + length).min(framed.len());
            match self.outbound.router.route(&framed[start..end]) {
                Route::Stream(stream) => {
                    if stream != run_stream {
                        self.queue(run_stream, framed.slice(run.clone()));
                        run = run.end..run.end;
                        run_stream = stream;
                    }
                    run.end = end;
                }
                Route::Fence => {
                    self.queue(run_stream, framed.slice(run));
                    self.fence(framed.slice(start..end));
                    return framed.slice(end..);
                }
            }
        }
        self.queue(run_stream, framed.slice(run));
        Bytes::new()
    }

    fn queue(&mut self, stream: usize, bytes: Bytes) {
        self.outbound.data[stream].queue.push(bytes);
    }

    /// A fence is a mark on every stream; the first carries its packet.
    fn fence(&mut self, packet: Bytes) {
        let mut mark = Vec::new();
        if !Prefix::put_fence(packet.len(), &mut mark) {
            // Not reached: no packet that long can have been framed (`Prefix::put`).
            return self.break_off(code::LIMIT, "a packet is too long for a fence");
        }
        self.outbound.fenced = true;
        self.queue(0, mark.into());
        self.queue(0, packet);
        let mut empty = Vec::new();
        let _ = Prefix::put_fence(0, &mut empty);
        let empty = Bytes::from(empty);
        // The first mark was counted as the packet's own prefix.
        self.shared
            .send
            .add(empty.len() * (self.outbound.data.len() - 1));
        for stream in 1..self.outbound.data.len() {
            self.queue(stream, empty.clone());
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

    pub(super) fn write(&mut self) {
        if !self.quic.is_established() {
            return;
        }
        self.write_control();
        let mut drained = self.write_streams();
        while self.outbound.fenced && self.outbound.data.iter().all(|s| s.queue.is_empty()) {
            self.outbound.fenced = false;
            self.route();
            drained += self.write_streams();
        }
        if drained > 0 {
            self.drained(drained);
        }
        if matches!(self.state, State::Lingering(_)) {
            self.finish();
        }
    }

    fn write_streams(&mut self) -> usize {
        let mut drained = 0;
        // The congestion window goes to the streams with the least to send first: a short message
        // does not wait behind another sender's long one.
        let mut order: [(usize, usize); crate::layout::MAX_DATA_STREAMS as usize] =
            std::array::from_fn(|index| match self.outbound.data.get(index) {
                Some(stream) if !stream.queue.is_empty() => (stream.queue.len(), index),
                _ => (usize::MAX, index),
            });
        order.sort_unstable();
        for (length, index) in order {
            if length == usize::MAX {
                break;
            }
            drained += self.write_data(index);
        }
        drained
    }

    fn write_control(&mut self) {
        while !self.outbound.control.is_empty() {
            if !self.outbound.control_opened {
                // A server cannot open the control stream; its client's hello does.
                if self.role == Role::Server
                    && !self.quic.stream_writable(CONTROL, 0).unwrap_or(false)
                {
                    return;
                }
                self.prioritise(CONTROL, CONTROL_URGENCY, false);
                self.outbound.control_opened = true;
            }
            let room = self.room(CONTROL, self.outbound.control.len());
            let Some(piece) = self.outbound.control.take(room) else {
                return;
            };
            match self.quic.stream_send_zc(CONTROL, piece.clone(), false) {
                Ok((_, None)) => {}
                Ok((_, Some(rest))) => return self.outbound.control.put_back(rest),
                Err(quiche::Error::Done) => return self.outbound.control.put_back(piece),
                Err(error) => return self.write_failed(CONTROL, error),
            }
        }
    }

    fn write_data(&mut self, index: usize) -> usize {
        let mut drained = 0;
        loop {
            let stream = &mut self.outbound.data[index];
            let id = stream.id;
            if stream.queue.is_empty() {
                break;
            }
            let urgency = data_urgency(stream.queue.len());
            if stream.urgency != Some(urgency) {
                stream.urgency = Some(urgency);
                // Incremental: streams of one urgency take turns.
                self.prioritise(id, urgency, true);
            }
            let room = self.room(id, self.outbound.data[index].queue.len());
            let Some(piece) = self.outbound.data[index].queue.take(room) else {
                break;
            };
            let queue = &mut self.outbound.data[index].queue;
            match self.quic.stream_send_zc(id, piece.clone(), false) {
                Ok((written, rest)) => {
                    drained += written;
                    if let Some(rest) = rest {
                        queue.put_back(rest);
                        break;
                    }
                }
                Err(quiche::Error::Done) => {
                    queue.put_back(piece);
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

    fn prioritise(&mut self, id: u64, urgency: u8, incremental: bool) {
        // It fails only for a stream that is gone; the write that follows says so.
        let _ = self.quic.stream_priority(id, urgency, incremental);
    }

    fn write_failed(&mut self, id: u64, error: quiche::Error) {
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
        if !self.outbound.control_opened {
            // A server whose client never opened the control stream: nothing was ever said.
            return self.hang_up(code::NO_ERROR, "");
        }
        if !self.outbound.is_empty() {
            return;
        }
        self.outbound.finished = true;
        let mut failed = self.quic.stream_send(CONTROL, &[], true).is_err();
        for stream in &self.outbound.data {
            failed |= self.quic.stream_send(stream.id, &[], true).is_err();
        }
        if failed {
            // The streams are gone: there is nothing to deliver in order.
            self.hang_up(code::NO_ERROR, "");
        }
    }
}
