//! How much long data may be on its way to the peer: what decides, and what counts it.
//!
//! A congestion window grows until something is lost, and what is lost last is the room in the
//! buffers on the way (on loopback, in the peer's socket): they would always be full, and a short
//! message would wait behind all that is in them, however urgent. So long data is given to QUIC only
//! as far as it takes to keep the path busy: twice what the path has delivered in a round trip
//! without queues (BBR's gain, draft-ietf-ccwg-bbr, section 2.8), and what it delivers while a thread
//! of the peer's waits for a processor. If the path can do more, that doubles with each round trip;
//! where the congestion window is less, it is the limit as before.
//!
//! While there are short messages beside the long data, the peer's thread does not get that much to
//! wait with: what is on its way is what they wait behind. (Then the rate that is measured is what that
//! allows, and long data may get slower than the path is; it has its due again when they end.)

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// What may always be on its way: enough to find out what the path can do.
const ALWAYS: usize = 256 << 10;
/// How long a thread waits for a processor.
const WAIT: Duration = Duration::from_millis(1);
/// The same beside short messages.
const ALWAYS_BESIDE_SHORT: usize = 128 << 10;
const WAIT_BESIDE_SHORT: Duration = Duration::from_micros(25);
/// After a short message, so long another is expected.
const TALK: Duration = Duration::from_millis(50);
/// How long the best delivery rate is remembered, at least: quiche tells that of the last packets
/// only, and while an application has little to say, that is little.
const REMEMBERED: Duration = Duration::from_secs(2);

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Flight {
    /// The best rate, in bytes a second, since `since`, and in the time before.
    best: [u64; 2],
    since: Option<Instant>,
    /// How much may be on its way, and when that was found out.
    most: usize,
    at: Option<Instant>,
    under_way: Arc<AtomicUsize>,
    /// Who sends short messages does so until then.
    talk_until: Option<Instant>,
}

impl Flight {
    /// Whether it is known how much may be on its way at this time.
    pub fn is_known(&self, now: Instant) -> bool {
        self.at == Some(now)
    }

    /// How much more may be given to QUIC.
    pub fn room(&self) -> usize {
        self.most.saturating_sub(self.under_way())
    }

    /// Data that QUIC holds, sent or not: the peer has not acknowledged it.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Relaxed)
    }

    /// A short message is sent, by who sends no long ones.
    pub fn short_message(&mut self, now: Instant) {
        self.talk_until = Some(now + TALK);
    }

    /// Whether there are short messages, which wait behind what is on its way.
    pub fn is_beside_short(&self, now: Instant) -> bool {
        self.talk_until.is_some_and(|until| now < until)
    }

    /// Takes the figures of the path in use.
    pub fn learn(&mut self, now: Instant, rate: u64, min_rtt: Option<Duration>) {
        self.at = Some(now);
        if self.since.is_none_or(|since| now >= since + REMEMBERED) {
            self.best = [0, self.best[0]];
            self.since = Some(now);
        }
        self.best[0] = self.best[0].max(rate);
        let best = u128::from(self.best[0].max(self.best[1]));
        let (always, wait) = if self.is_beside_short(now) {
            (ALWAYS_BESIDE_SHORT, WAIT_BESIDE_SHORT)
        } else {
            (ALWAYS, WAIT)
        };
        let time = 2 * min_rtt.unwrap_or_default() + wait;
        self.most = usize::try_from(best * time.as_micros() / 1_000_000)
            .unwrap_or(usize::MAX)
            .max(always);
    }

    /// Counts this as under way until QUIC lets go of it: until the peer has acknowledged it and all
    /// before it, or its stream has been reset.
    pub fn piece(&self, bytes: Bytes) -> Piece {
        self.under_way.fetch_add(bytes.len(), Relaxed);
        Piece::new(bytes, Some(self.under_way.clone()))
    }
}

/// What QUIC's streams are written with: QUIC keeps a piece until it is acknowledged, so what is sent
/// is not copied on its way into a stream.
///
/// It is as small as can be: a stream on which something was sent once has room for four of them in
/// QUIC, for good.
#[derive(Clone, Debug)]
pub struct Piece(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    /// How many of the bytes it is.
    length: AtomicUsize,
    under_way: Option<Arc<AtomicUsize>>,
}

impl Piece {
    fn new(bytes: Bytes, under_way: Option<Arc<AtomicUsize>>) -> Self {
        Piece(Arc::new(Kept {
            length: AtomicUsize::new(bytes.len()),
            bytes,
            under_way,
        }))
    }

    pub fn bytes(&self) -> Bytes {
        self.0.bytes.slice(..self.0.length.load(Relaxed))
    }

    /// Says later whether QUIC still holds it.
    pub fn held(&self) -> Held {
        Held(Arc::downgrade(&self.0))
    }
}

/// Whether QUIC holds anything of a stream, by the piece that it was given last: it lets go of a
/// stream's pieces in their order, or of all at once. None was given by default.
#[derive(Debug, Default)]
pub struct Held(Weak<Kept>);

impl Held {
    pub fn is_under_way(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Kept {
    fn lets_go_of(&self, length: usize) {
        if let Some(under_way) = &self.under_way {
            under_way.fetch_sub(length, Relaxed);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.lets_go_of(self.length.load(Relaxed));
    }
}

/// Not counted: the rest that does not go into a stream.
impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Piece::new(bytes, None)
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes[..self.0.length.load(Relaxed)]
    }
}

impl quiche::BufSplit for Piece {
    /// What QUIC does not take comes back, and is not under way.
    fn split_at(&mut self, at: usize) -> Self {
        let rest = self.bytes().split_off(at);
        self.0.length.store(at, Relaxed);
        self.0.lets_go_of(rest.len());
        rest.into()
    }
}

/// For quiche.
#[derive(Clone, Debug, Default)]
pub struct Pieces;

impl quiche::BufFactory for Pieces {
    type Buf = Piece;
    type DgramBuf = Vec<u8>;

    fn buf_from_slice(bytes: &[u8]) -> Piece {
        Bytes::copy_from_slice(bytes).into()
    }

    fn dgram_buf_from_slice(bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quiche::BufSplit;

    const MS: Duration = Duration::from_millis(1);

    fn room(flight: &mut Flight, now: Instant, rate: u64, rtt: Duration) -> usize {
        flight.learn(now, rate, Some(rtt));
        flight.room()
    }

    #[test]
    fn a_path_gets_twice_what_it_has_delivered_in_a_round_trip() {
        let mut flight = Flight::default();
        let now = Instant::now();
        flight.learn(now, 0, None);
        assert_eq!(flight.room(), ALWAYS, "nothing is known");
        let loopback = room(&mut flight, now, 1_000_000_000, MS / 20);
        assert_eq!(loopback, 1_100_000);
        let mut far = Flight::default();
        assert_eq!(room(&mut far, now, 12_500_000, 20 * MS), 512_500);
        assert_eq!(room(&mut far, now, 100_000_000, 100 * MS), 20_100_000);
    }

    #[test]
    fn beside_short_messages_less_is_on_its_way() {
        let mut flight = Flight::default();
        let now = Instant::now();
        flight.short_message(now);
        let loopback = room(&mut flight, now, 2_000_000_000, MS / 20);
        assert_eq!(loopback, 250_000);
        let mut far = Flight::default();
        far.short_message(now);
        assert_eq!(room(&mut far, now, 12_500_000, 20 * MS), 500_312);
        assert_eq!(
            room(&mut flight, now + TALK, 2_000_000_000, MS / 20),
            2_200_000,
            "there are no more of them"
        );
    }

    #[test]
    fn the_best_rate_is_remembered_for_a_while_and_forgotten() {
        let mut flight = Flight::default();
        let start = Instant::now();
        let rtt = 100 * MS;
        let much = room(&mut flight, start, 100_000_000, rtt);
        assert_eq!(much, 20_100_000);
        assert_eq!(room(&mut flight, start + REMEMBERED, 10, rtt), much);
        assert_eq!(room(&mut flight, start + 2 * REMEMBERED, 10, rtt), ALWAYS);
    }

    #[test]
    fn what_quic_holds_is_under_way() {
        let mut flight = Flight::default();
        flight.learn(Instant::now(), 0, None);
        assert!(!Held::default().is_under_way());
        let mut piece = flight.piece(Bytes::from(vec![0; 1000]));
        let held = piece.held();
        let short = Piece::from(Bytes::from_static(b"short"));
        assert_eq!(flight.room(), ALWAYS - 1000);
        let rest = piece.split_at(600);
        assert_eq!((piece.as_ref().len(), rest.as_ref().len()), (600, 400));
        assert_eq!(flight.room(), ALWAYS - 600);
        // quiche splits what it sends again
        let half = piece.clone();
        drop(piece);
        assert_eq!(flight.room(), ALWAYS - 600);
        assert!(held.is_under_way());
        drop((half, rest, short));
        assert_eq!(flight.room(), ALWAYS);
        assert!(!held.is_under_way());
        let _more = flight.piece(Bytes::from(vec![0; 2 * ALWAYS]));
        assert_eq!(flight.room(), 0);
    }
}
