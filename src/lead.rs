//! Who takes an endpoint's turns: its event thread, or for a while a guest, a thread that would
//! only wait for what the event thread gives it. Where messages go to and fro each of them would
//! cost two wake-ups, or two threads that ask in vain; a guest that asks for itself answers without any.
//!
//! What is here decides ([`Lead`] between the threads, [`Guest`] for one of them); the turn itself is
//! behind a lock that only the event thread waits for (`endpoint`). So nothing is done twice; and the event
//! thread rests for [`LEASE`] at most after the guest's last turn, whatever has become of that. What must
//! hold is that it does not sleep through what a guest's turn has set: so a guest takes one only while it has
//! the lead, as seen with the lock held, and the event thread looks what there is to wait for after it has ended the
//! lead or found that there is none, with the lock held as well.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::handle::Id;

/// How long after a guest's turn the event thread takes the turns again: a scheduler that has other
/// processes to run, or no processor, does not come back in time. In this time a guest that has
/// nothing else to do comes back some hundred times.
const LEASE: Duration = Duration::from_millis(1);
/// Who has not asked for so long is late.
const LATE: Duration = Duration::from_micros(500);
/// Who has been late for so long in all stays out for a while: its thread has other things to do. It is not
/// once that counts: any thread is without a processor for a millisecond now and then, where it is the event thread that
/// asks as well as a guest.
const AWAY: Duration = Duration::from_millis(10);
/// Being late is forgotten so many times slower than the time passes: meanwhile others wait for up to [`LEASE`].
const FORGOTTEN: u32 = 16;
/// It stays out for so long the first time, and twice as long each time that it happens again soon after, up to
/// [`LONG_OUT`]. A scheduler that many processes keep busy comes back after some 100 ms, in which nobody
/// hands on what the event thread has received meanwhile; that is not to be a part of the time that matters.
const OUT: Duration = Duration::from_millis(100);
/// See [`OUT`].
const LONG_OUT: Duration = Duration::from_millis(6400);
/// It is soon, within so many times what it was out for.
const SOON: u32 = 4;
/// Above so many bytes at once the event thread does it, while the guest looks after what it has got.
const LARGE: usize = 16 << 10;
/// For so long after [`LARGE`] ones, or what else is not for guests: more of it is most likely on its way.
const AFTER_LARGE: Duration = Duration::from_millis(5);

/// What a guest's turn has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Datagrams of so many bytes, 0 for none.
    Bytes(usize),
    /// The turns are somebody else's, or there is something that a guest does not do.
    Leave,
}

/// Whether a guest has the lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It had it before.
    Still,
    Now,
    /// Another one has it.
    No,
}

/// Who takes the turns. See the module's documentation.
pub(crate) struct Lead {
    base: Instant,
    /// The connection whose guest does, plus one; 0: the event thread.
    leader: AtomicU64,
    /// When it last did, in microseconds since `base`.
    last: AtomicU64,
    event_thread: OnceLock<Thread>,
}

impl Lead {
    pub fn new(base: Instant) -> Self {
        Lead {
            base,
            leader: AtomicU64::new(0),
            last: AtomicU64::new(0),
            event_thread: OnceLock::new(),
        }
    }

    /// Whom to wake when a guest leaves.
    pub fn set_event_thread(&self, thread: Thread) {
        // Set once, by who has started it.
        let _ = self.event_thread.set(thread);
    }

    /// Takes the lead for a connection's guest, or keeps it.
    pub fn take(&self, id: Id, now: Instant) -> Taken {
        let me = id.0 + 1;
        match self.leader.load(SeqCst) {
            leader if leader == me => {
                self.last.store(self.micros(now), SeqCst);
                Taken::Still
            }
            0 => {
                // Before the lead is seen. If another guest is quicker, it has its lease from now.
                self.last.store(self.micros(now), SeqCst);
                match self.leader.compare_exchange(0, me, SeqCst, SeqCst) {
                    Ok(_) => Taken::Now,
                    Err(_) => Taken::No,
                }
            }
            _ => Taken::No,
        }
    }

    /// Whether a guest has it.
    pub fn is_taken(&self) -> bool {
        self.leader.load(SeqCst) != 0
    }

    /// Whether this connection's guest has it.
    pub fn is_led_by(&self, id: Id) -> bool {
        self.leader.load(SeqCst) == id.0 + 1
    }

    /// The guest gives the lead back, if it has it.
    pub fn leave(&self, id: Id) {
        let left = self
            .leader
            .compare_exchange(id.0 + 1, 0, SeqCst, SeqCst)
            .is_ok();
        if left && let Some(thread) = self.event_thread.get() {
            thread.unpark();
        }
    }

    /// For the event thread: how long it may rest. None: the turns are its own, and if a guest's lease has
    /// ended, they are now.
    pub fn rest(&self, now: Instant) -> Option<Duration> {
        let leader = self.leader.load(SeqCst);
        if leader == 0 {
            return None;
        }
        let end = Duration::from_micros(self.last.load(SeqCst)) + LEASE;
        let left = (self.base + end).saturating_duration_since(now);
        if left.is_zero() {
            let _ = self.leader.compare_exchange(leader, 0, SeqCst, SeqCst);
            return None;
        }
        Some(left)
    }

    fn micros(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.base);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

/// Whether a thread that waits for a connection's data asks for it itself meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    /// Since when it asks and nothing has come.
    since: Option<Instant>,
    /// When it last asked, if it has not left since.
    last: Option<Instant>,
    /// Before that time it does not ask.
    out_until: Option<Instant>,
    /// For how long it has been late, as of then.
    late: Option<(Instant, Duration)>,
    /// When it was last noticed that it was kept away, and how long it stayed out for it.
    kept_away: Option<(Instant, Duration)>,
}

impl Guest {
    /// Whether it may ask now. `got`: bytes that it was given last. False: it has left.
    pub fn may_ask(&mut self, got: usize, now: Instant) -> bool {
        if got > LARGE {
            self.stay_out(now + AFTER_LARGE);
        } else if let Some(last) = self.last
            && now > last + LATE
        {
            self.is_late(now - last, now);
        }
        if self.out_until.is_some_and(|until| now < until) {
            self.leave();
            return false;
        }
        self.out_until = None;
        self.last = Some(now);
        true
    }

    /// It has asked, at `now`. Whether it asks again: until nothing has come for `patience`. Otherwise it has left.
    pub fn asked(&mut self, asked: Asked, patience: Duration, now: Instant) -> bool {
        let stays = match asked {
            Asked::Leave => {
                // Somebody else's turns, a handshake, a stream of the application's: most likely not the last.
                self.stay_out(now + AFTER_LARGE);
                false
            }
            Asked::Bytes(0) => now < *self.since.get_or_insert(now) + patience,
            Asked::Bytes(bytes) => {
                self.since = Some(now);
                if bytes > LARGE {
                    self.stay_out(now + AFTER_LARGE);
                }
                bytes <= LARGE
            }
        };
        // From now on: what it has done itself does not keep it away.
        self.last = Some(now);
        if !stays {
            self.leave();
        }
        stays
    }

    fn is_late(&mut self, by: Duration, now: Instant) {
        let before = self.late.map_or(Duration::ZERO, |(then, late)| {
            late.saturating_sub((now - then) / FORGOTTEN)
        });
        if before + by > AWAY {
            self.late = None;
            self.is_kept_away(now);
        } else {
            self.late = Some((now, before + by));
        }
    }

    fn is_kept_away(&mut self, now: Instant) {
        let out = match self.kept_away {
            Some((at, out)) if now < at + out * SOON => LONG_OUT.min(out * 2),
            _ => OUT,
        };
        self.kept_away = Some((now, out));
        self.stay_out(now + out);
    }

    fn stay_out(&mut self, until: Instant) {
        self.out_until = self.out_until.max(Some(until));
    }

    fn leave(&mut self) {
        self.since = None;
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_micros(300);
    const MICRO: Duration = Duration::from_micros(1);

    #[test]
    fn one_guest_leads_at_a_time_and_the_event_thread_rests_meanwhile() {
        let start = Instant::now();
        let lead = Lead::new(start);
        assert_eq!(lead.rest(start), None);
        assert_eq!(lead.take(Id(0), start), Taken::Now);
        assert_eq!(lead.take(Id(0), start + 10 * MICRO), Taken::Still);
        assert_eq!(lead.take(Id(1), start + 10 * MICRO), Taken::No);
        assert_eq!(lead.rest(start + 10 * MICRO), Some(LEASE));
        lead.leave(Id(1));
        assert!(
            lead.rest(start + 10 * MICRO).is_some(),
            "it was not its own"
        );
        lead.leave(Id(0));
        assert_eq!(lead.rest(start + 10 * MICRO), None);
        assert_eq!(lead.take(Id(1), start + 10 * MICRO), Taken::Now);
    }

    #[test]
    fn the_lead_of_who_does_not_come_back_ends() {
        let start = Instant::now();
        let lead = Lead::new(start);
        assert_eq!(lead.take(Id(0), start), Taken::Now);
        assert_eq!(lead.rest(start + LEASE - MICRO), Some(MICRO));
        assert!(lead.is_led_by(Id(0)), "until it is noticed");
        assert_eq!(lead.rest(start + LEASE), None);
        assert!(!lead.is_led_by(Id(0)), "no turn for who comes too late");
        assert_eq!(lead.take(Id(1), start + LEASE), Taken::Now, "it is free");
        assert_eq!(
            lead.take(Id(0), start + LEASE),
            Taken::No,
            "and was not kept for it"
        );
    }

    #[test]
    fn leaving_wakes_the_event_thread() {
        let lead = std::sync::Arc::new(Lead::new(Instant::now()));
        let rests = std::thread::spawn(std::thread::park);
        lead.set_event_thread(rests.thread().clone());
        lead.leave(Id(7));
        assert!(!rests.is_finished(), "nobody had the lead");
        assert_eq!(lead.take(Id(7), Instant::now()), Taken::Now);
        lead.leave(Id(7));
        assert!(rests.join().is_ok());
    }

    #[test]
    fn a_guest_asks_until_its_patience_ends() {
        let start = Instant::now();
        let mut guest = Guest::default();
        let mut now = start;
        for bytes in [0, 0, 100, 0, LARGE, 0] {
            assert!(guest.may_ask(100, now));
            assert!(guest.asked(Asked::Bytes(bytes), PATIENCE, now), "{bytes}");
            now += PATIENCE - MICRO;
        }
        assert!(guest.may_ask(0, now));
        assert!(!guest.asked(Asked::Bytes(0), PATIENCE, now + 2 * MICRO));
        assert!(guest.may_ask(100, now + AWAY * 2), "a message has woken it");
        assert!(guest.asked(Asked::Bytes(0), PATIENCE, now + AWAY * 2));
        let now = now + AWAY * 2;
        assert!(!guest.asked(Asked::Leave, PATIENCE, now));
        assert!(!guest.may_ask(0, now + AFTER_LARGE - MICRO));
        assert!(guest.may_ask(0, now + AFTER_LARGE));
        let mut guest = Guest::default();
        assert!(guest.may_ask(0, start));
        assert!(
            !guest.asked(Asked::Bytes(0), Duration::ZERO, start),
            "no patience"
        );
    }

    #[test]
    fn large_data_is_the_event_threads() {
        let start = Instant::now();
        let mut guest = Guest::default();
        assert!(!guest.may_ask(LARGE + 1, start));
        assert!(!guest.may_ask(0, start + AFTER_LARGE - MICRO));
        let now = start + AFTER_LARGE;
        assert!(guest.may_ask(LARGE, now));
        assert!(!guest.asked(Asked::Bytes(LARGE + 1), PATIENCE, now));
        assert!(!guest.may_ask(0, now + AFTER_LARGE - MICRO));
        assert!(guest.may_ask(0, now + AFTER_LARGE));
    }

    /// A guest whose thread has other things to do for `late` each time: how often it may ask, and when it may
    /// no longer.
    fn asks(guest: &mut Guest, late: Duration, mut now: Instant) -> (u32, Instant) {
        let mut times = 0;
        while times < 1000 && guest.may_ask(0, now) {
            times += 1;
            assert!(guest.asked(Asked::Bytes(1), PATIENCE, now));
            now += late;
        }
        (times, now)
    }

    #[test]
    fn who_is_late_now_and_then_stays_a_guest() {
        let mut guest = Guest::default();
        let mut now = Instant::now();
        assert_eq!(asks(&mut guest, LATE, now).0, 1000, "in time");
        let mut guest = Guest::default();
        for _ in 0..1000 {
            let (times, then) = asks(&mut guest, LATE, now);
            assert_eq!(times, 1000, "late once in half a second");
            now = then + AWAY - LATE;
        }
        // A turn of its own that takes long is none of others.
        let mut guest = Guest::default();
        assert!(guest.may_ask(0, now));
        now += AWAY * 3;
        assert!(guest.asked(Asked::Bytes(1), PATIENCE, now));
        assert!(guest.may_ask(0, now + LATE));
    }

    #[test]
    fn who_has_other_things_to_do_is_no_guest() {
        let mut guest = Guest::default();
        let (times, mut now) = asks(&mut guest, AWAY * 2 / 5, Instant::now());
        assert_eq!(times, 3, "4 ms, 7.75, and 11.5 are too much");
        for out in [1, 2, 4, 8, 16, 32, 64, 64, 64].map(|times| OUT * times) {
            assert!(!guest.may_ask(0, now + out - MICRO), "{out:?}");
            let again = asks(&mut guest, AWAY + MICRO, now + out);
            assert_eq!(again.0, 1, "{out:?}");
            now = again.1;
        }
        // Not again for a while: then it may be another reason.
        now += LONG_OUT * (SOON + 1);
        let again = asks(&mut guest, AWAY + MICRO, now);
        assert_eq!(again.0, 1);
        assert!(!guest.may_ask(0, again.1 + OUT - MICRO));
        assert!(guest.may_ask(0, again.1 + OUT));
    }
}
