//! Streams that are in the way of others. quiche (0.30) goes through the streams that have something to
//! send in the order of their urgency, and breaks off at one of which there is nothing to emit. There
//! may be such a one: its data was to be repeated, and was acknowledged before that. It stays where it
//! is until it has something to send again, and whatever is behind it is not sent: once nothing is on
//! its way any more, never.
//!
//! Such a stream is out of the way behind all others. Only where all of its data is acknowledged does it
//! lose nothing there, and once nothing is on its way any more, that is so: what is not acknowledged is
//! to be sent, or repeated.

use std::time::{Duration, Instant};

use super::Connection;

/// After all others: no stream that has something to say has this urgency.
const LAST: u8 = 255;
/// A connection that has something to say is not silent for so long, unless it waits for answers on a
/// long path, or on a dead one. Then what is done here is for nothing, and does no harm.
const SILENCE: Duration = Duration::from_millis(200);

/// For how long nothing has been sent.
#[derive(Debug, Default)]
pub(super) struct Silence {
    since: Option<Instant>,
    /// A packet was made after that.
    pub broken: bool,
}

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

    /// The same where there is a timer, which does not tell whether it will help: a path that was left has
    /// its own, up to minutes long.
    pub(super) fn watch_the_way(&mut self, now: Instant) {
        let broken = std::mem::take(&mut self.silence.broken);
        if self.flight.under_way() == 0 {
            self.silence.since = None;
        } else if broken || self.silence.since.is_none() {
            self.silence.since = Some(now);
        } else if self.silence_deadline().is_some_and(|at| at <= now) {
            self.silence.since = Some(now);
            self.clear_the_way();
        }
    }

    /// When [`Connection::watch_the_way`] wants to be called.
    pub(super) fn silence_deadline(&self) -> Option<Instant> {
        let since = self.silence.since.filter(|_| self.flight.under_way() > 0);
        since.map(|since| since + SILENCE)
    }

    /// All streams of which quiche holds nothing come after those of which it does, until there is
    /// something again. Whether there were any.
    fn clear_the_way(&mut self) -> bool {
        let mut idle = self.outbound.make_last(LAST);
        idle.extend(self.shared.streams.make_last(LAST));
        for &id in &idle {
            self.prioritise(id, LAST, true);
        }
        !idle.is_empty()
    }
}
