//! Streams that are in the way of others. quiche (0.30) goes through the streams that have something to
//! send in the order of their urgency, and breaks off at one of which there is nothing to emit. There
//! may be such a one: its data was to be repeated, and was acknowledged before that. It stays where it
//! is until it has something to send again, and whatever is behind it is not sent: once nothing is on
//! its way any more, never.

use std::time::{Duration, Instant};

use super::{Connection, State};

/// After all others: no stream that has something to say has this urgency.
const LAST: u8 = 255;
/// Streams of one urgency take turns, one each time that quiche finds nothing to send. So often it is asked
/// again at once.
const ATTEMPTS: usize = 32;
/// A connection that has something to say is not silent for so long, unless it waits for answers on a
/// long path, or on a dead one. Then the streams are put into another order for nothing.
const SILENCE: Duration = Duration::from_millis(200);

/// What is known of streams that are in the way.
#[derive(Debug, Default)]
pub(super) struct Obstruction {
    /// There may be one, until all data is acknowledged.
    suspected: bool,
    /// A packet was made since `silent` was set.
    pub packet: bool,
    /// Nothing has been sent since, though not all data is acknowledged.
    silent: Option<Instant>,
}

impl Connection {
    /// The next packet that quiche makes, if there is one.
    pub(super) fn next_packet(&mut self, out: &mut [u8]) -> Option<(usize, quiche::SendInfo)> {
        let packet = self.quic.send(out).ok();
        if packet.is_some() {
            return packet;
        }
        if self.flight.under_way() > 0 && self.quic.timeout_instant().is_none() {
            // Nothing is on its way, so no answer will come.
            self.clear_the_way();
        }
        if !self.obstruction.suspected {
            return None;
        }
        (0..ATTEMPTS).find_map(|_| self.quic.send(out).ok())
    }

    /// The same where a path has a timer still, which tells nothing: one that was left has its own,
    /// up to minutes long.
    pub(super) fn watch_the_way(&mut self, now: Instant) {
        let packet = std::mem::take(&mut self.obstruction.packet);
        if self.flight.under_way() == 0 {
            self.obstruction = Obstruction::default();
            return;
        }
        if packet || self.obstruction.silent.is_none() {
            self.obstruction.silent = Some(now);
        } else if self.way_deadline().is_some_and(|at| at <= now) {
            self.obstruction.silent = Some(now);
            self.clear_the_way();
        }
    }

    /// When [`Connection::watch_the_way`] wants to be called.
    pub(super) fn way_deadline(&self) -> Option<Instant> {
        let silent = self
            .obstruction
            .silent
            .filter(|_| self.flight.under_way() > 0);
        silent.map(|silent| silent + SILENCE)
    }

    /// All streams that have nothing to send, as far as is known here, come after those that have,
    /// until they have something again.
    fn clear_the_way(&mut self) {
        let own = self.outbound.make_last(LAST);
        for id in own.into_iter().chain(self.shared.streams.make_last(LAST)) {
            self.prioritise(id, LAST, true);
        }
        // The control stream is before all others, and is out of the way with what it sends. Where our
        // side is done, that is its end.
        if !std::mem::replace(&mut self.obstruction.suspected, true)
            && matches!(self.state, State::Open)
        {
            self.tick();
            self.write_control();
        }
    }
}
