//! Streams that are in the way of others. quiche (0.30) goes through the streams that have something to
//! send in the order of their urgency, and breaks off at one of which there is nothing to emit. There
//! may be such a one: its data was to be repeated, and was acknowledged before that. It stays where it
//! is until it has something to send again, and whatever is behind it is not sent: once nothing is on
//! its way any more, never.

use super::{Connection, State};

/// After all others: no stream that has something to say has this urgency.
const LAST: u8 = 255;
/// Streams of one urgency take turns, one each time that quiche finds nothing to send. So often it is asked
/// again at once.
const ATTEMPTS: usize = 32;

impl Connection {
    /// The next packet that quiche makes, if there is one.
    pub(super) fn next_packet(&mut self, out: &mut [u8]) -> Option<(usize, quiche::SendInfo)> {
        let packet = self.quic.send(out).ok();
        if packet.is_some() || !self.clear_the_way() {
            return packet;
        }
        (0..ATTEMPTS).find_map(|_| self.quic.send(out).ok())
    }

    /// Something may be in the way where quiche holds data that is not acknowledged, and nothing is on its
    /// way. Then all streams that have nothing to send, as far as is known
    /// here, come after those that have, until they have something again. True until all data is
    /// acknowledged.
    fn clear_the_way(&mut self) -> bool {
        if self.flight.under_way() == 0 {
            self.obstructed = false;
        } else if matches!(self.state, State::Open) && self.quic.timeout_instant().is_none() {
            self.obstructed = true;
            let own = self.outbound.make_last(LAST);
            for id in own.into_iter().chain(self.shared.streams.make_last(LAST)) {
                self.prioritise(id, LAST, true);
            }
            // The control stream is before all others, and is out of the way with what it sends.
            self.tick();
            self.write_control();
        }
        self.obstructed
    }
}
