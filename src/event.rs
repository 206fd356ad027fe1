//! What the engine tells the world, and the one trait through which it does.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::close::CloseReason;
use crate::connection::Path;
use crate::frame::Frames;
use crate::handle::Handle;
use crate::packets::{self, Allocate, Packets};
use crate::term::Process;

/// What happens to a connection.
#[derive(Debug)]
pub enum Event {
    /// The TLS handshake of a connection that we dialled is complete.
    Connected,
    /// Packets of the control stream (never ticks).
    Control(Frames),
    /// Packets of the data streams. They count as unconsumed until [`Handle::consumed`] gives their
    /// bytes ([`Packets::len`]) back.
    Data(Packets),
    /// The send queue is at its low mark, after [`crate::SendStatus::Busy`].
    Writable,
    /// The stream of a process has little to send of what that sent ([`crate::Batch::tell_when_low`]).
    Low(Process),
    /// Something happened to a stream of the application's.
    Stream(u64, StreamEvent),
    /// Datagrams of the application's.
    Datagrams(Vec<Vec<u8>>),
    /// The connection's packets go another way from now on: an address has changed.
    Moved {
        /// The way before.
        from: Path,
        /// The way now.
        to: Path,
    },
    /// Nothing is heard from a peer that we dialled, though something was asked: discovery may know where
    /// it is ([`Handle::seek`]).
    Silent {
        /// How often this was told before, since something was heard.
        asked: u32,
    },
    /// The connection has ended, and with it all its streams. Nothing comes after it.
    Closed(CloseReason),
}

/// What happens to a stream of the application's.
#[derive(Debug)]
pub enum StreamEvent {
    /// The peer has opened it.
    Incoming,
    /// Data, and whether it is the last; once for each demand. Nothing more is read of the stream
    /// until [`Handle::stream_delivered`] or [`Handle::put_back_stream`].
    Data {
        /// What has come.
        bytes: Bytes,
        /// Nothing comes after it.
        fin: bool,
    },
    /// There is room in its queue, after [`crate::streams::Sent::Full`].
    Room,
    /// It has been reset, by either side. Nothing comes after it.
    Reset(u64),
    /// Both sides have finished. Nothing comes after it.
    Closed,
}

/// The receiver of the engine's events. All calls come from the endpoint's event thread, or from a thread
/// that is within [`Handle::ask`], one after the other, and must not block: no other connection is served
/// meanwhile. Nor may they call [`Handle::ask`].
pub trait Events: Send + 'static {
    /// What the receiver knows a connection by.
    type Peer: Send;

    /// Where large packets are to lie.
    const ALLOCATE: Allocate = packets::on_heap;

    /// A peer that dialled us has completed the TLS handshake, its certificate verified. Its
    /// streams are not read until [`Handle::read_control`].
    fn incoming(&mut self, handle: &Handle, from: SocketAddr) -> Self::Peer;

    /// A peer that dialled us failed before [`Events::incoming`].
    fn refused(&mut self, from: SocketAddr, reason: &CloseReason);

    /// Somebody who dials goes by a cookie that is not known here. Whether there will be an answer, by
    /// [`crate::Endpoint::set_others`] with the number of this question: until then the handshake is held.
    fn unknown_cookie(&mut self, _question: u64) -> bool {
        false
    }

    /// The event thread ends, and calls this, after every connection was told: because the endpoint was closed, or
    /// for this reason.
    fn ended(&mut self, error: Option<String>);

    /// Something happened to a connection.
    fn event(&mut self, peer: &mut Self::Peer, event: Event);
}
