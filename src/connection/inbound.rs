//! What is read from a connection's streams, as far as the receive budget goes, and becomes events.

use bytes::BufMut;

use super::notice::{self, Notice};
use super::{Connection, Happening, State, hello};
use crate::close::code;
use crate::config::Limits;
use crate::event::Event;
use crate::frame::{FrameReader, Frames, Prefix};
use crate::layout::{CONTROL, MAX_DATA_STREAMS, Role};
use crate::packets::{self, Allocate, Arriving, Packets};

/// One event holds at most this many bytes of a data stream, or one packet if that is longer.
const READ_BATCH: usize = 256 << 10;
/// A data stream with less than this to read is served before the others.
const SHORT: usize = 16 << 10;
/// All that a peer may ever send on the control stream, ticks excluded: a distribution handshake
/// takes some hundred bytes, and what comes later has no meaning.
const MAX_CONTROL_IN: usize = 256 << 10;

/// The reading side of a connection's streams.
pub(super) struct Inbound {
    /// Somebody owns the connection.
    pub reads_control: bool,
    /// Somebody takes data.
    pub reads_data: bool,
    control: FrameReader,
    control_taken: usize,
    control_ended: bool,
    /// How many data streams the peer writes, once its hello has come.
    peer_streams: Option<usize>,
    data: Vec<DataStream>,
    /// Which of the long data streams is served next.
    next: usize,
    max_frame: usize,
    pub allocate: Allocate,
}

struct DataStream {
    id: u64,
    reader: FrameReader,
    /// The packet that comes now, if it is a large one. Then the reader has nothing.
    arriving: Option<Arriving>,
    /// The last one was: of the next, the prefix is read first.
    large: bool,
    /// The peer's last byte has been read.
    finished: bool,
    /// The reader stands behind a fence, which carries this packet, until all streams do.
    fence: Option<Vec<u8>>,
    /// The reader's tail may hold whole packets: it stood behind a fence, or this is an empty one.
    uncut: bool,
}

impl DataStream {
    /// Everything that the peer sent on it has been cut into packets.
    fn ended(&self) -> bool {
        self.finished && self.fence.is_none() && !self.uncut
    }

    fn at_boundary(&self) -> bool {
        self.arriving.is_none() && self.reader.at_boundary()
    }
}

/// What reading one stream gave.
struct Read {
    bytes: Vec<u8>,
    grown: bool,
    last: bool,
}

impl Inbound {
    pub fn new(role: Role, limits: &Limits) -> Self {
        Inbound {
            reads_control: false,
            reads_data: false,
            control: FrameReader::new(Prefix::Control, usize::from(u16::MAX)),
            control_taken: 0,
            control_ended: false,
            peer_streams: None,
            data: (0..MAX_DATA_STREAMS)
                .map(|index| DataStream {
                    id: role.peer().data_stream(index),
                    reader: FrameReader::new(Prefix::Data, limits.max_frame),
                    arriving: None,
                    large: false,
                    finished: false,
                    fence: None,
                    uncut: false,
                })
                .collect(),
            next: 0,
            max_frame: limits.max_frame,
            allocate: packets::on_heap,
        }
    }

    /// How many data streams the peer writes, once that is known.
    pub fn peer_streams(&self) -> Option<usize> {
        self.peer_streams
    }

    /// Whether the peer has finished all its streams.
    fn finished(&self) -> bool {
        self.control_ended
            && match self.peer_streams {
                Some(n) if self.reads_data => self.data[..n].iter().all(DataStream::ended),
                // Nobody has ever taken data: there was no distribution handshake to its end.
                _ => true,
            }
    }
}

impl Connection {
    pub(super) fn read(&mut self) {
        if self.inbound.reads_control {
            self.read_control_stream();
        }
        if let (true, Some(streams)) = (self.inbound.reads_data, self.inbound.peer_streams) {
            while self.read_data_streams(streams) || self.pass_fence(streams) {}
            // With streams of the application's, others than those announced are those.
            if self.quic.is_readable() && !self.has_user_streams() {
                self.check_other_streams(streams);
            }
        }
        // Asking each stream costs a look-up; where nothing is left to read, none of them is astray.
        if self.quic.is_readable() {
            self.check_own_streams();
        }
        // What was read may have ended it: nothing is told after the end.
        if !matches!(self.state, State::Open) {
            return;
        }
        if let (true, true, Some(streams)) = (
            self.has_user_streams(),
            self.inbound.reads_data,
            self.inbound.peer_streams,
        ) {
            self.read_user_streams(streams);
        }
        // The peer has ended its side in order, and we have all that it sent (`docs/protocol.md`,
        // "The end of a connection").
        if matches!(self.state, State::Open) && self.inbound.finished() {
            self.peer_finished();
        }
    }

    /// Our side is done, and nobody takes what still comes. When the peer is done as well, there is
    /// nothing to wait for: it does not read either.
    pub(super) fn discard(&mut self) {
        let control_ended = self.discard_stream(CONTROL);
        self.inbound.control_ended |= control_ended;
        for index in 0..self.inbound.data.len() {
            let finished = self.discard_stream(self.inbound.data[index].id);
            self.inbound.data[index].finished |= finished;
        }
        let streams = self.inbound.peer_streams.unwrap_or(1);
        if self.inbound.control_ended && self.inbound.data[..streams].iter().all(|s| s.finished) {
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
            let tail = self.inbound.control.take_tail();
            let read = self.read_stream(CONTROL, tail);
            if !read.grown && !read.last {
                self.inbound.control.restore(read.bytes);
                return;
            }
            match self.inbound.control.cut(read.bytes) {
                Ok(cut) => self.control_frames(cut.frames),
                // Not reached: two bytes cannot exceed a limit of 65,535.
                Err(_) => self.break_off(code::PROTOCOL, "a control packet is too long"),
            }
            if read.last {
                self.inbound.control_ended = true;
                if !self.inbound.control.at_boundary() {
                    self.break_off(code::PROTOCOL, "the control stream ended inside a packet");
                }
                return;
            }
        }
    }

    fn control_frames(&mut self, mut frames: Frames) {
        if self.inbound.peer_streams.is_none() && !frames.ranges.is_empty() {
            let first = frames.ranges.remove(0);
            let Some(hello) = hello::read(&frames.bytes[first]) else {
                self.break_off(code::PROTOCOL, "not a hello that this version understands");
                return;
            };
            self.inbound.peer_streams = Some(hello.data_streams);
            let streams = &self.shared.streams;
            streams.peer_says(hello.data_streams, hello.user_streams);
        }
        // Ticks have said what they had to say by arriving.
        frames.ranges.retain(|range| !range.is_empty());
        if frames.ranges.is_empty() {
            return;
        }
        frames
            .ranges
            .retain(|range| !self.noticed(&frames.bytes[range.clone()]));
        if frames.ranges.is_empty() {
            return;
        }
        self.inbound.control_taken += frames.iter().map(<[u8]>::len).sum::<usize>();
        if self.inbound.control_taken > MAX_CONTROL_IN {
            self.break_off(code::PROTOCOL, "too much on the control stream");
            return;
        }
        self.happen(Event::Control(frames));
    }

    /// Whether a packet of the control stream was for this layer.
    fn noticed(&mut self, packet: &[u8]) -> bool {
        match notice::read(packet) {
            None => return false,
            Some(Notice::Cancel(id, code)) => self.cancelled(id, code),
            // What a later version says is not needed to understand this one.
            Some(Notice::Unknown) => {}
        }
        true
    }

    /// A batch of each data stream, of those first that have little: what one sender has sent at
    /// length takes neither the budget nor the time of another's short message. Whether there may be
    /// more.
    fn read_data_streams(&mut self, streams: usize) -> bool {
        let mut long = [false; MAX_DATA_STREAMS as usize];
        let mut more = false;
        for (index, long) in long.iter_mut().enumerate().take(streams) {
            let stream = &self.inbound.data[index];
            // Most of them have nothing, most of the time.
            if !stream.uncut && !self.quic.stream_readable(stream.id) {
                continue;
            }
            *long = self.quic.stream_readable_len(stream.id, SHORT) >= SHORT;
            if !*long {
                more |= self.read_data_stream(index);
            }
        }
        // The budget is not always enough for all: the next time it is the next one's.
        let first = self.inbound.next;
        for index in (first..streams).chain(0..first) {
            if long[index] && !self.shared.receive.must_wait() {
                self.inbound.next = (index + 1) % streams;
                more |= self.read_data_stream(index);
            }
        }
        more
    }

    /// A batch of a data stream; whether there may be more.
    fn read_data_stream(&mut self, index: usize) -> bool {
        // Above the budget nothing is read: the stream's flow control window fills, and the peer
        // stops. `Handle::consumed` brings us back.
        if !matches!(self.state, State::Open)
            || !self.wants(index)
            || self.shared.receive.must_wait()
        {
            return false;
        }
        let mut packets = Packets::default();
        let more = self.read_packets(index, &mut packets);
        // Broken off: nothing comes after the end.
        if !matches!(self.state, State::Open) {
            return false;
        }
        let stream = &self.inbound.data[index];
        if stream.ended() && !stream.at_boundary() {
            let text = format!("stream {} ended inside a packet", stream.id);
            self.break_off(code::PROTOCOL, &text);
            return false;
        }
        self.deliver(packets);
        more
    }

    /// Reads a batch of packets; whether there may be more.
    fn read_packets(&mut self, index: usize, packets: &mut Packets) -> bool {
        while packets.len() < READ_BATCH && self.wants(index) {
            let stream = &mut self.inbound.data[index];
            let more = if stream.arriving.is_some() {
                self.read_large(index, packets)
            } else if stream.large && !stream.uncut {
                self.read_prefix(index)
            } else {
                self.read_small(index, packets)
            };
            if !more {
                return false;
            }
        }
        true
    }

    /// More of a large packet.
    fn read_large(&mut self, index: usize, packets: &mut Packets) -> bool {
        let stream = &mut self.inbound.data[index];
        let Some(mut arriving) = stream.arriving.take() else {
            return true;
        };
        let read = self.quic.stream_recv_buf(stream.id, arriving.room());
        let came = match read {
            Ok((length, last)) => {
                stream.finished |= last;
                length
            }
            Err(error) => {
                stream.arriving = Some(arriving);
                self.read_failed(index, error);
                return false;
            }
        };
        match arriving.came(came) {
            Ok(memory) => packets.put_large(memory),
            Err(arriving) => stream.arriving = Some(arriving),
        }
        true
    }

    /// The next packet's prefix alone, where that is likely to be a large one's.
    fn read_prefix(&mut self, index: usize) -> bool {
        let stream = &mut self.inbound.data[index];
        let mut prefix = stream.reader.take_tail();
        let room = Prefix::Data.size().saturating_sub(prefix.len());
        let read = self
            .quic
            .stream_recv_buf(stream.id, (&mut prefix).limit(room));
        match read {
            Ok((_, last)) => stream.finished |= last,
            Err(error) => {
                stream.reader.restore(prefix);
                self.read_failed(index, error);
                return false;
            }
        }
        let (limit, allocate) = (self.inbound.max_frame, self.inbound.allocate);
        stream.arriving = Arriving::begun(&prefix, limit, allocate);
        if stream.arriving.is_none() {
            stream.large = prefix.len() < Prefix::Data.size();
            stream.uncut = !stream.large;
            stream.reader.restore(prefix);
        }
        true
    }

    fn read_failed(&mut self, index: usize, error: quiche::Error) {
        // Done: nothing more now. Anything else has ended the connection inside quiche.
        if matches!(error, quiche::Error::StreamReset(_)) {
            let text = format!("stream {} was reset", self.inbound.data[index].id);
            self.break_off(code::PROTOCOL, &text);
        }
    }

    /// What there is, to be cut into packets. If the last one is large and has not all come, it goes on
    /// as one of these.
    fn read_small(&mut self, index: usize, packets: &mut Packets) -> bool {
        let stream = &mut self.inbound.data[index];
        let id = stream.id;
        let tail = stream.reader.take_tail();
        let uncut = std::mem::take(&mut stream.uncut);
        let read = self.read_stream(id, tail);
        let stream = &mut self.inbound.data[index];
        stream.finished |= read.last;
        if !read.grown && !read.last && !uncut {
            stream.reader.restore(read.bytes);
            return false;
        }
        let cut = match stream.reader.cut(read.bytes) {
            Ok(cut) => cut,
            Err(too_long) => {
                let text = format!(
                    "a packet of {} bytes on stream {id}, {} is the limit",
                    too_long.length, too_long.limit
                );
                self.break_off(code::PROTOCOL, &text);
                return false;
            }
        };
        stream.fence = cut.fence;
        packets.put(cut.frames);
        // Behind a fence nothing is looked at.
        if stream.fence.is_none() {
            let tail = stream.reader.take_tail();
            let (limit, allocate) = (self.inbound.max_frame, self.inbound.allocate);
            stream.arriving = Arriving::begun(&tail, limit, allocate);
            match stream.arriving {
                Some(_) => stream.large = true,
                None => stream.reader.restore(tail),
            }
        }
        true
    }

    fn wants(&self, index: usize) -> bool {
        let stream = &self.inbound.data[index];
        stream.fence.is_none() && !stream.ended()
    }

    /// What has come on several streams is one event: one costs more than what most of them have.
    fn deliver(&mut self, packets: Packets) {
        if packets.is_empty() {
            return;
        }
        self.shared.receive.add(packets.len());
        match self.happenings.back_mut() {
            Some(Happening::Event(Event::Data(before)))
                if before.len() + packets.len() <= READ_BATCH =>
            {
                before.append(packets);
            }
            _ => self.happen(Event::Data(packets)),
        }
    }

    /// When every stream stands behind a fence it is the same one: its packet is delivered, after
    /// everything before it and before everything after it. True if there was one.
    ///
    /// A stream that has ended has no fence to come; a peer that leaves one out of a fence is stuck
    /// by its own doing, and harms nobody else.
    fn pass_fence(&mut self, streams: usize) -> bool {
        let data = &mut self.inbound.data[..streams];
        if !data.iter().all(|stream| stream.fence.is_some()) {
            return false;
        }
        let mut frames = Frames::default();
        for stream in data {
            stream.uncut = true;
            match stream.fence.take() {
                Some(packet) if !packet.is_empty() => {
                    let start = frames.bytes.len();
                    frames.bytes.extend_from_slice(&packet);
                    frames.ranges.push(start..frames.bytes.len());
                }
                _ => {}
            }
        }
        let mut packets = Packets::default();
        packets.put(frames);
        self.deliver(packets);
        true
    }

    /// A data stream is written by the side that opened it only.
    fn check_own_streams(&mut self) {
        let stray = (0..self.outbound.streams() as u64)
            .map(|index| self.role.data_stream(index))
            .find(|&id| self.quic.stream_readable(id));
        if let Some(id) = stray {
            let text = format!("data on stream {id}, which is not the peer's to write");
            self.break_off(code::PROTOCOL, &text);
        }
    }

    /// The transport gives credit for as many data streams as any peer may write; this one has
    /// said how many it does.
    fn check_other_streams(&mut self, streams: usize) {
        let stray = self.inbound.data[streams..]
            .iter()
            .map(|stream| stream.id)
            .find(|&id| self.quic.stream_readable(id));
        if let Some(id) = stray {
            let text = format!("data on stream {id}, which was not announced");
            self.break_off(code::PROTOCOL, &text);
        }
    }

    /// Reads a stream into the end of `bytes`.
    fn read_stream(&mut self, id: u64, mut bytes: Vec<u8>) -> Read {
        let before = bytes.len();
        let mut last = false;
        while self.quic.stream_readable(id) && bytes.len() - before < READ_BATCH {
            let room = READ_BATCH - (bytes.len() - before);
            let readable = self.quic.stream_readable_len(id, room);
            bytes.reserve(readable);
            match self.quic.stream_recv_buf(id, (&mut bytes).limit(room)) {
                Ok((_, true)) => {
                    last = true;
                    break;
                }
                Ok((_, false)) => {}
                Err(quiche::Error::StreamReset(_)) => {
                    let text = format!("stream {id} was reset");
                    self.break_off(code::PROTOCOL, &text);
                    break;
                }
                // Done: nothing more now. Anything else has ended the connection inside quiche.
                Err(_) => break,
            }
        }
        Read {
            grown: bytes.len() > before,
            bytes,
            last,
        }
    }
}
