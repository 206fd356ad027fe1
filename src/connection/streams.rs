//! The streams of a connection: what is read from them becomes events, as far as the receive
//! budget goes; what is queued for them goes to quiche, as far as flow control and the congestion
//! window go.

use bytes::BufMut;

use super::{Connection, Happening, State};
use crate::close::code;
use crate::config::Limits;
use crate::event::Event;
use crate::frame::{FrameReader, Frames, Prefix};
use crate::layout::{CONTROL, CONTROL_URGENCY, DATA_URGENCY, MAX_DATA_STREAMS, Role};
use crate::send_queue::SendQueue;

/// Data streams that each side writes, until several streams can keep Erlang's order of signals.
pub(super) const DATA_STREAMS: u64 = 1;

/// One event holds at most this many bytes of a data stream, or one packet if that is longer.
const READ_BATCH: usize = 256 << 10;
/// All that a peer may ever send on the control stream, ticks excluded: a distribution handshake
/// takes some hundred bytes, and what comes later has no meaning.
const MAX_CONTROL_IN: usize = 256 << 10;
/// All that may wait on our side of the control stream. The handshake's few messages never get
/// here; a peer that gives no credit for them does.
const MAX_CONTROL_OUT: usize = 256 << 10;
/// Ticks are not queued behind this much: they would all say the same.
const ENOUGH_TICKS: usize = 64;

/// The streams' own state.
pub(super) struct Streams {
    pub reads_control: bool,
    pub reads_data: bool,
    control_in: FrameReader,
    control_taken: usize,
    control_ended: bool,
    data_in: Vec<DataIn>,
    control_out: SendQueue,
    data_out: SendQueue,
    control_opened: bool,
    data_opened: bool,
    finished: bool,
}

struct DataIn {
    id: u64,
    reader: FrameReader,
    ended: bool,
}

impl Streams {
    pub fn new(role: Role, limits: &Limits) -> Self {
        Streams {
            reads_control: false,
            reads_data: false,
            control_in: FrameReader::new(Prefix::Control, usize::from(u16::MAX)),
            control_taken: 0,
            control_ended: false,
            data_in: (0..MAX_DATA_STREAMS)
                .map(|index| DataIn {
                    id: role.peer().data_stream(index),
                    reader: FrameReader::new(Prefix::Data, limits.max_frame),
                    ended: false,
                })
                .collect(),
            control_out: SendQueue::default(),
            data_out: SendQueue::default(),
            control_opened: false,
            data_opened: false,
            finished: false,
        }
    }

    /// Drops what is queued, and says how many bytes of it were data.
    pub fn clear(&mut self) -> usize {
        self.control_out.clear();
        self.data_out.clear()
    }
}

/// What reading one stream gave.
enum Read {
    Nothing,
    Bytes(Vec<u8>),
    /// The peer's last bytes on this stream.
    Last(Vec<u8>),
}

impl Connection {
    /// Queues a framed packet for the control stream.
    pub(crate) fn send_control(&mut self, framed: Vec<u8>) {
        self.streams.control_out.push(framed);
        if self.streams.control_out.len() > MAX_CONTROL_OUT {
            self.break_off(code::LIMIT, "the control stream is not being read");
        }
    }

    /// Queues framed packets for the data stream.
    pub(crate) fn send_data(&mut self, framed: Vec<u8>) {
        if matches!(self.state, State::Open) {
            self.streams.data_out.push(framed);
        } else {
            self.drained(framed.len());
        }
    }

    /// An empty packet on the control stream, and a PING.
    pub(crate) fn tick(&mut self) {
        if !self.quic.is_established() {
            return;
        }
        if self.streams.control_out.len() < ENOUGH_TICKS {
            self.streams
                .control_out
                .push(vec![0; Prefix::Control.size()]);
        }
        // It fails only where the connection has no path, that is, at its end.
        let _ = self.quic.send_ack_eliciting();
    }

    pub(super) fn read(&mut self) {
        if self.streams.reads_control {
            self.read_control_stream();
        }
        if self.streams.reads_data {
            for index in 0..self.streams.data_in.len() {
                self.read_data_stream(index);
            }
        }
        self.check_own_streams();
        if !matches!(self.state, State::Open) {
            return;
        }
        // The peer has ended its side in order, and we have all that it sent (`docs/protocol.md`,
        // "The end of a connection").
        let all_data = self.streams.data_in[..DATA_STREAMS as usize]
            .iter()
            .all(|stream| stream.ended);
        if self.streams.control_ended && (all_data || !self.streams.reads_data) {
            self.peer_finished();
        }
    }

    /// A data stream is written by the side that opened it only.
    fn check_own_streams(&mut self) {
        for index in 0..MAX_DATA_STREAMS {
            let id = self.role.data_stream(index);
            if self.quic.stream_readable(id) {
                let text = format!("data on stream {id}, which is not the peer's to write");
                self.break_off(code::PROTOCOL, &text);
                return;
            }
        }
    }

    /// Our side is done, and nobody takes what still comes. When the peer is done as well, there is
    /// nothing to wait for: it does not read either.
    pub(super) fn discard(&mut self) {
        let control_ended = self.discard_stream(CONTROL);
        self.streams.control_ended |= control_ended;
        for index in 0..self.streams.data_in.len() {
            let ended = self.discard_stream(self.streams.data_in[index].id);
            self.streams.data_in[index].ended |= ended;
        }
        if self.streams.control_ended && self.streams.data_in[0].ended {
            self.hang_up(code::NO_ERROR, "");
        }
    }

    fn discard_stream(&mut self, id: u64) -> bool {
        while self.quic.stream_readable(id) {
            match self.quic.stream_discard(id, READ_BATCH) {
                Ok((_, true)) => return true,
                Ok((_, false)) => {}
                Err(_) => break,
            }
        }
        false
    }

    fn read_control_stream(&mut self) {
        loop {
            let buffer = self.streams.control_in.take_tail();
            let (bytes, last) = match self.read_stream(CONTROL, buffer) {
                Read::Nothing => return,
                Read::Bytes(bytes) => (bytes, false),
                Read::Last(bytes) => (bytes, true),
            };
            match self.streams.control_in.cut(bytes) {
                Ok(frames) => self.control_frames(frames),
                // Not reached: two bytes cannot exceed a limit of 65,535.
                Err(_) => self.break_off(code::PROTOCOL, "a control packet is too long"),
            }
            if last {
                self.streams.control_ended = true;
                if !self.streams.control_in.at_boundary() {
                    self.break_off(code::PROTOCOL, "the control stream ended inside a packet");
                }
                return;
            }
        }
    }

    fn control_frames(&mut self, mut frames: Frames) {
        frames.ranges.retain(|range| !range.is_empty());
        if frames.ranges.is_empty() {
            return;
        }
        self.streams.control_taken += frames.iter().map(<[u8]>::len).sum::<usize>();
        if self.streams.control_taken > MAX_CONTROL_IN {
            self.break_off(code::PROTOCOL, "too much on the control stream");
            return;
        }
        self.happen(Event::Control(frames));
    }

    fn read_data_stream(&mut self, index: usize) {
        let id = self.streams.data_in[index].id;
        // Above the budget nothing is read: the stream's flow control window fills, and the peer
        // stops. `Handle::consumed` brings us back.
        while matches!(self.state, State::Open) && !self.shared.receive.must_wait() {
            let buffer = self.streams.data_in[index].reader.take_tail();
            let (bytes, last) = match self.read_stream(id, buffer) {
                Read::Nothing => return,
                Read::Bytes(bytes) => (bytes, false),
                Read::Last(bytes) => (bytes, true),
            };
            let stream = &mut self.streams.data_in[index];
            match stream.reader.cut(bytes) {
                Ok(frames) if frames.ranges.is_empty() => {}
                Ok(frames) => {
                    self.shared.receive.add(frames.bytes.len());
                    self.happen(Event::Data(frames));
                }
                Err(too_long) => {
                    let text = format!(
                        "a packet of {} bytes on stream {id}, {} is the limit",
                        too_long.length, too_long.limit
                    );
                    self.break_off(code::PROTOCOL, &text);
                    return;
                }
            }
            if last {
                let stream = &mut self.streams.data_in[index];
                stream.ended = true;
                if !stream.reader.at_boundary() {
                    let text = format!("stream {id} ended inside a packet");
                    self.break_off(code::PROTOCOL, &text);
                }
                return;
            }
        }
    }

    /// Reads a stream into the end of `buffer`. Where there is nothing to read, the buffer goes
    /// back to where it came from by way of its reader.
    fn read_stream(&mut self, id: u64, buffer: Vec<u8>) -> Read {
        let mut buffer = buffer;
        let before = buffer.len();
        let mut last = false;
        while self.quic.stream_readable(id) && buffer.len() - before < READ_BATCH {
            let room = READ_BATCH - (buffer.len() - before);
            let readable = self.quic.stream_readable_len(id, room);
            buffer.reserve(readable);
            match self.quic.stream_recv_buf(id, (&mut buffer).limit(room)) {
                Ok((_, true)) => {
                    last = true;
                    break;
                }
                Ok((_, false)) => {}
                Err(quiche::Error::StreamReset(_)) => {
                    let text = format!("stream {id} was reset");
                    self.break_off(code::PROTOCOL, &text);
                    return Read::Nothing;
                }
                // Done: nothing more now. Anything else has ended the connection inside quiche.
                Err(_) => break,
            }
        }
        if last {
            Read::Last(buffer)
        } else if buffer.len() > before {
            Read::Bytes(buffer)
        } else {
            self.put_back(id, buffer);
            Read::Nothing
        }
    }

    fn put_back(&mut self, id: u64, tail: Vec<u8>) {
        let reader = if id == CONTROL {
            &mut self.streams.control_in
        } else {
            match self.streams.data_in.iter_mut().find(|s| s.id == id) {
                Some(stream) => &mut stream.reader,
                None => return,
            }
        };
        reader.restore(tail);
    }

    pub(super) fn write(&mut self) {
        if !self.quic.is_established() {
            return;
        }
        self.write_control();
        let drained = self.write_data();
        if drained > 0 {
            self.drained(drained);
        }
        if matches!(self.state, State::Lingering(_)) {
            self.finish();
        }
    }

    fn write_control(&mut self) {
        while !self.streams.control_out.is_empty() {
            if !self.streams.control_opened {
                // A server cannot open the control stream; its client's first message does.
                if self.role == Role::Server
                    && !self.quic.stream_writable(CONTROL, 0).unwrap_or(false)
                {
                    return;
                }
                self.prioritise(CONTROL, CONTROL_URGENCY);
                self.streams.control_opened = true;
            }
            let room = self.room(CONTROL, self.streams.control_out.front().len());
            if room == 0 {
                return;
            }
            match self
                .quic
                .stream_send(CONTROL, &self.streams.control_out.front()[..room], false)
            {
                Ok(0) | Err(quiche::Error::Done) => return,
                Ok(n) => self.streams.control_out.advance(n),
                Err(error) => return self.write_failed(CONTROL, error),
            }
        }
    }

    fn write_data(&mut self) -> usize {
        let id = self.role.data_stream(0);
        let mut drained = 0;
        while !self.streams.data_out.is_empty() {
            if !self.streams.data_opened {
                self.prioritise(id, DATA_URGENCY);
                self.streams.data_opened = true;
            }
            let room = self.room(id, self.streams.data_out.front().len());
            if room == 0 {
                break;
            }
            match self
                .quic
                .stream_send(id, &self.streams.data_out.front()[..room], false)
            {
                Ok(0) | Err(quiche::Error::Done) => break,
                Ok(n) => {
                    self.streams.data_out.advance(n);
                    drained += n;
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

    fn prioritise(&mut self, id: u64, urgency: u8) {
        // It fails only for a stream that is gone; the write that follows says so.
        let _ = self.quic.stream_priority(id, urgency, false);
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
        if self.streams.finished
            || !self.streams.control_out.is_empty()
            || !self.streams.data_out.is_empty()
        {
            return;
        }
        self.streams.finished = true;
        let id = self.role.data_stream(0);
        let control = self.quic.stream_send(CONTROL, &[], true);
        let data = self.quic.stream_send(id, &[], true);
        if control.is_err() || data.is_err() {
            // A server whose client never opened the control stream, or streams that are gone:
            // there is nothing to deliver in order.
            self.hang_up(code::NO_ERROR, "");
        }
    }
}
