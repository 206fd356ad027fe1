//! A path whose MTU shrinks: large packets vanish, and nobody says so (a black hole, RFC 8899,
//! section 4.3). quiche looks for a path MTU once, and goes on sending what it found.
//!
//! After two probe time-outs in a row with nothing acknowledged, packets are as small as any path takes
//! them. When one of those is acknowledged, quiche is to look for the MTU anew: if the path had only
//! stopped for a while, it finds the old one at once.

/// Probe time-outs in a row that make a suspicion: one is an ordinary loss.
const SUSPICIOUS: usize = 2;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct BlackHole {
    /// Probe time-outs that quiche has counted so far, and those since the last acknowledgement.
    timeouts: usize,
    in_a_row: usize,
    /// Bytes that had been acknowledged at the last of them.
    acked: u64,
}

impl BlackHole {
    /// Whether packets are to be small.
    pub fn is_suspected(&self) -> bool {
        self.in_a_row >= SUSPICIOUS
    }

    /// Whether it takes a look at what has been acknowledged to go on.
    pub fn wants_acked(&self, timeouts: usize) -> bool {
        timeouts != self.timeouts || self.is_suspected()
    }

    /// Packets go another way, which has its own count.
    pub fn elsewhere(&mut self, timeouts: usize) {
        self.timeouts = timeouts;
        self.in_a_row = 0;
    }

    /// Takes quiche's counts; true: small packets get through, and the MTU is to be looked for.
    pub fn observe(&mut self, timeouts: usize, acked: u64) -> bool {
        let progress = acked > self.acked;
        let found = progress && self.is_suspected();
        if progress {
            self.in_a_row = 0;
        }
        self.in_a_row += timeouts.saturating_sub(self.timeouts);
        self.timeouts = timeouts;
        self.acked = acked;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_packet_is_no_black_hole() {
        let mut hole = BlackHole::default();
        for round in 1..10 {
            assert!(hole.wants_acked(round));
            assert!(!hole.observe(round, round as u64 * 1000));
            assert!(!hole.is_suspected());
            assert!(!hole.wants_acked(round));
        }
    }

    #[test]
    fn silence_is_suspected_and_an_answer_to_small_packets_settles_it() {
        let mut hole = BlackHole::default();
        assert!(!hole.observe(1, 1000));
        assert!(!hole.observe(2, 1000));
        assert!(hole.is_suspected());
        assert!(!hole.observe(3, 1000));
        assert!(hole.wants_acked(3));
        assert!(hole.observe(3, 2000));
        assert!(!hole.is_suspected());
    }
}
