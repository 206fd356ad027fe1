//! What a peer may send before somebody here takes data.
//!
//! It has a certificate by then, but where that is not the cookie's it may not have the cookie, and
//! until `dist_util` has asked for that, nobody reads what it sends on other streams than the control
//! stream. QUIC's windows hold it back too late: it has credit for some 4,000 streams of 256 KiB, and
//! what comes in pieces of a byte costs 22 times what it took to send.

use super::Connection;

/// Above it, what comes is lost, as where a socket's buffer is full: not the connection.
///
/// A peer of good faith may send as much, if it is the one that was dialled: it sends as fast as it can from
/// the end of the distribution handshake on, while our processor may do something else for seconds. (Its
/// distribution data alone is no more than the windows of its data streams: 1 MiB of four, where there are
/// streams of the application's.) So it is not to be cut off; it repeats what is lost when there is
/// somebody to take it, which may be as long after that as it was before.
///
/// Nothing is lost that the handshake needs. Who dials begins to send when it has our last word, and so
/// we have its own. Who is dialled begins when it has said the last word, and if that is lost, it would
/// be lost again behind so much; but it is repeated a round trip later, before everything else, and in
/// that time a connection that begins sends far less.
const MOST: u64 = 2 << 20;

impl Connection {
    /// Only what is the peer's own counts: others may send to our port as well.
    pub(super) fn is_too_early(&self) -> bool {
        if self.inbound.reads_data {
            return false;
        }
        // Of all that there were; quiche's figure for the connection takes a walk over its streams.
        let received: u64 = self.quic.path_stats().map(|path| path.recv_bytes).sum();
        received > MOST
    }
}
