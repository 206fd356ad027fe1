//! What the engine tells the world, and the one trait through which it does.

use std::net::SocketAddr;

use crate::close::CloseReason;
use crate::frame::Frames;
use crate::handle::Handle;

/// Packets of one data stream, in the order of that stream.
pub type Packets = Frames;

/// What happens to a connection.
#[derive(Debug)]
pub enum Event {
    /// The TLS handshake of a connection that we dialled is complete.
    Connected,
    /// Packets of the control stream (never ticks).
    Control(Frames),
    /// Packets of a data stream. They count as unconsumed until [`Handle::consumed`] gives their
    /// bytes ([`Packets`]' whole length, prefixes included) back.
    Data(Packets),
    /// The send queue is at its low mark, after [`crate::SendStatus::Busy`].
    Writable,
    /// The connection has ended. Nothing comes after it.
    Closed(CloseReason),
}

/// The receiver of the engine's events. All calls come from the endpoint's event thread, and must
/// not block: no other connection is served meanwhile.
pub trait Events: Send + 'static {
    /// What the receiver knows a connection by.
    type Peer: Send;

    /// A peer that dialled us has completed the TLS handshake, its certificate verified. Its
    /// streams are not read until [`Handle::read_control`].
    fn incoming(&mut self, handle: &Handle, from: SocketAddr) -> Self::Peer;

    /// A peer that dialled us failed before [`Events::incoming`].
    fn refused(&mut self, from: SocketAddr, reason: &CloseReason);

    /// The event thread ends, after every connection was told: because the endpoint was closed, or
    /// for this reason.
    fn ended(&mut self, error: Option<String>);

    /// Something happened to a connection.
    fn event(&mut self, peer: &mut Self::Peer, event: Event);
}
