//! What is read from a connection's streams, as far as the receive budget goes, and becomes events.

use bytes::BufMut;

use super::{Connection, State, hello};
use crate::close::code;
use crate::config::Limits;
use crate::event::Event;
use crate::frame::{FrameReader, Frames, Prefix};
use crate::layout::{CONTROL, MAX_DATA_STREAMS, Role};
use crate::router;

/// One event holds at most this many bytes of a data stream, or one packet if that is longer.
const READ_BATCH: usize = 256 << 10;
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
}

struct DataStream {
    id: u64,
    reader: FrameReader,
    /// The peer's last byte has been read.
    finished: bool,
    /// The reader stands behind a fence, which carries this packet, until all streams do.
    fence: Option<Vec<u8>>,
    /// The reader's tail may hold whole packets: it stood behind a fence.
    resumed: bool,
}

impl DataStream {
    /// Everything that the peer sent on it has been cut into packets.
    fn ended(&self) -> bool {
        self.finished && self.fence.is_none() && !self.resumed
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
                    finished: false,
                    fence: None,
                    resumed: false,
                })
                .collect(),
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
            loop {
                for index in 0..streams {
                    self.read_data_stream(index);
                }
                if !self.pass_fence(streams) {
                    break;
                }
            }
            if self.quic.is_readable() {
                self.check_other_streams(streams);
            }
        }
        // Asking each stream costs a look-up; where nothing is left to read, none of them is astray.
        if self.quic.is_readable() {
            self.check_own_streams();
        }
        if !matches!(self.state, State::Open) {
            return;
        }
        // The peer has ended its side in order, and we have all that it sent (`docs/protocol.md`,
        // "The end of a connection").
        if self.inbound.finished() {
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
            self.inbound.peer_streams = hello::read(&frames.bytes[first]);
            if self.inbound.peer_streams.is_none() {
                self.break_off(code::PROTOCOL, "not a hello that this version understands");
                return;
            }
        }
        // Ticks have said what they had to say by arriving.
        frames.ranges.retain(|range| !range.is_empty());
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

    fn read_data_stream(&mut self, index: usize) {
        // Above the budget nothing is read: the stream's flow control window fills, and the peer
        // stops. `Handle::consumed` brings us back.
        while matches!(self.state, State::Open)
            && self.wants(index)
            && !self.shared.receive.must_wait()
        {
            let stream = &mut self.inbound.data[index];
            let id = stream.id;
            let tail = stream.reader.take_tail();
            let resumed = std::mem::take(&mut stream.resumed);
            let read = self.read_stream(id, tail);
            let stream = &mut self.inbound.data[index];
            stream.finished |= read.last;
            if !read.grown && !read.last && !resumed {
                stream.reader.restore(read.bytes);
                return;
            }
            let cut = match stream.reader.cut(read.bytes) {
                Ok(cut) => cut,
                Err(too_long) => {
                    let text = format!(
                        "a packet of {} bytes on stream {id}, {} is the limit",
                        too_long.length, too_long.limit
                    );
                    self.break_off(code::PROTOCOL, &text);
                    return;
                }
            };
            stream.fence = cut.fence;
            if stream.ended() && !stream.reader.at_boundary() {
                let text = format!("stream {id} ended inside a packet");
                self.break_off(code::PROTOCOL, &text);
                return;
            }
            self.deliver(cut.frames);
        }
    }

    fn wants(&self, index: usize) -> bool {
        let stream = &self.inbound.data[index];
        stream.fence.is_none() && !stream.ended()
    }

    fn deliver(&mut self, frames: Frames) {
        // The VM takes it on trust that nobody refers to an atom cache that was not agreed on.
        if !self.has_atom_cache() && frames.iter().any(router::refers_to_atom_cache) {
            return self.bad_packet("atom cache references, though there is no atom cache");
        }
        if !frames.ranges.is_empty() {
            self.shared.receive.add(frames.bytes.len());
            self.happen(Event::Data(frames));
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
            stream.resumed = true;
            match stream.fence.take() {
                Some(packet) if !packet.is_empty() => {
                    let start = frames.bytes.len();
                    frames.bytes.extend_from_slice(&packet);
                    frames.ranges.push(start..frames.bytes.len());
                }
                _ => {}
            }
        }
        self.deliver(frames);
        true
    }

    /// It needs a total order, and so takes part only with one data stream each way.
    fn has_atom_cache(&self) -> bool {
        self.outbound.streams() == 1 && self.inbound.peer_streams == Some(1)
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
