//! Streams that are in the way of others. quiche (0.30) goes through the streams that have something to
//! send in the order of their urgency, and breaks off at one of which there is nothing to emit. There
//! may be such a one: its data was to be repeated, and was acknowledged before that. It stays where it
//! is until it has something to send again, and whatever is behind it is not sent: once nothing is on
//! its way any more, never.
//!
//! Such a stream is out of the way behind all others. It loses nothing there as long as all of its data
//! is acknowledged; and where that is not so, the rest of it is on its way, and is to be acknowledged or
//! repeated, and then it is in nobody's way.

use std::time::{Duration, Instant};

use super::Connection;

/// After all others: no stream that has something to say has this urgency.
pub(super) const LAST: u8 = 255;
/// While there is data that is not acknowledged, so often what may be in its way is put out of it: mostly
/// for nothing, which does no harm and costs little. No silence tells when it would help: what is before
/// the obstacle goes on, and so do acknowledgements.
const EVERY: Duration = Duration::from_millis(200);

impl Connection {
    /// The next packet that quiche makes, if there is one.
    pub(super) fn next_packet(&mut self, out: &mut [u8]) -> Option<(usize, quiche::SendInfo)> {
        let packet = self.quic.send(out).ok();
        let stands_still = packet.is_none()
            && self.flight.under_way() > 0
            && self.quic.timeout_instant().is_none();
        if stands_still && self.clear_the_way() {
            return self.quic.send(out).ok();
        }
        packet
    }

    /// The same where something is on its way still, or a path that was left has a timer, which may be
    /// minutes long.
    pub(super) fn watch_the_way(&mut self, now: Instant) {
        match self.way_deadline() {
            Some(at) if at > now => return,
            Some(_) => _ = self.clear_the_way(),
            None => {}
        }
        self.clear_at = (self.flight.under_way() > 0).then(|| now + EVERY);
    }

    /// When [`Connection::watch_the_way`] wants to be called.
    pub(super) fn way_deadline(&self) -> Option<Instant> {
        self.clear_at.filter(|_| self.flight.under_way() > 0)
    }

    /// All streams of which quiche holds nothing come after those of which it does, until there is
    /// something again. Whether there were any.
    fn clear_the_way(&mut self) -> bool {
        let mut idle = self.outbound.make_last();
        idle.extend(self.shared.streams.make_last());
        for &id in &idle {
            self.prioritise(id, LAST, true);
        }
        !idle.is_empty()
    }
}
