//! Turns: what came is taken (commands, datagrams, deadlines), and the connections concerned work and
//! send. The event thread waits in between, or rests while a guest takes them ([`crate::lead`]).

use std::io;
use std::time::{Duration, Instant};

use mio::Poll;

use super::{ADDRESSES, Driver, SOCKET, bump};
use crate::endpoint::{CommandSender, Counters};
use crate::event::Events;
use crate::lead::Asked;
use crate::panics;

/// How often the event thread asks at least, whatever else runs in between.
const BUSY_ROUNDS: usize = 3;
/// It asks for so many times `busy_wait` after a wait that was shorter than that; and so does a guest.
const PATIENCE: u32 = 3;

/// How long who has just heard something asks for more.
pub(crate) fn patience(busy_wait: Duration) -> Duration {
    busy_wait * PATIENCE
}

/// Why there are no more turns.
pub(super) enum Failure {
    Io(io::Error),
    Panic(String),
}

/// The event thread's part, which needs no connection: it waits.
pub(super) struct Waiting<'a, E: Events> {
    poll: Poll,
    events: mio::Events,
    sender: &'a CommandSender<E>,
    counters: &'a Counters,
    busy_wait: Duration,
    /// The last wait was a short one.
    lively: bool,
    /// One whose turn has failed.
    failed: Option<Box<Driver<E>>>,
}

impl<'a, E: Events> Waiting<'a, E> {
    pub fn new(sender: &'a CommandSender<E>, poll: Poll, busy_wait: Duration) -> Self {
        Waiting {
            poll,
            events: mio::Events::with_capacity(8),
            sender,
            counters: &sender.counters,
            busy_wait,
            lively: true,
            failed: None,
        }
    }

    /// Takes turns until the endpoint is closed.
    pub fn turns(&mut self) -> Result<(), Failure> {
        loop {
            let now = Instant::now();
            let rest = self.sender.lead.rest(now);
            match rest {
                // Others than the socket may have something to tell, hence a turn once a lease.
                Some(rest) => {
                    bump(&self.counters.wake_ups, 1);
                    std::thread::park_timeout(rest);
                    self.ask(Some(Duration::ZERO))?;
                }
                None => {
                    let wait = match &*self.sender.turn.lock() {
                        Some(driver) if !driver.is_done(now) => driver.wait(now),
                        _ => return Ok(()),
                    };
                    self.wait(wait, now)?;
                }
            }
            let mut turn = self.sender.turn.lock();
            let Some(driver) = turn.as_mut() else {
                return Ok(());
            };
            let events = &self.events;
            let turned = panics::caught(|| {
                driver.woken(events)?;
                driver.turn()
            });
            if let Err(failure) = turned.map_err(Failure::Panic).flatten() {
                // Before anybody else gets the lock.
                self.failed = turn.take();
                return Err(failure);
            }
        }
    }

    /// The driver, for its end: from now on there are no turns, of guests neither.
    pub fn take_driver(&mut self) -> Option<Box<Driver<E>>> {
        let failed = self.failed.take();
        failed.or_else(|| self.sender.turn.lock().take())
    }

    /// Waits for something to do. For a moment it asks again and again, and lets other threads run
    /// in between: to fall asleep and be woken takes longer, and who has just been spoken to often
    /// hears more at once.
    ///
    /// Where falling asleep would make two ends that talk in turns so slow that they fall asleep each
    /// time, the moment is a longer one: it must not be the sleep that decides whether to sleep.
    fn wait(&mut self, wait: Option<Duration>, now: Instant) -> Result<(), Failure> {
        if wait == Some(Duration::ZERO) {
            return self.ask(wait);
        }
        let long = patience(self.busy_wait);
        if !long.is_zero() {
            let moment = if self.lively { long } else { self.busy_wait };
            for round in 0.. {
                self.ask(Some(Duration::ZERO))?;
                let waited = now.elapsed();
                if !self.events.is_empty()
                    || self.sender.is_notified()
                    || self.sender.lead.is_taken()
                    || wait.is_some_and(|wait| waited >= wait)
                {
                    return Ok(());
                }
                if round >= BUSY_ROUNDS && waited >= moment {
                    break;
                }
                bump(&self.counters.yields, 1);
                std::thread::yield_now();
            }
        }
        self.sender.sleeps(true);
        let wait = if self.sender.is_notified() || self.sender.lead.is_taken() {
            Some(Duration::ZERO)
        } else {
            bump(&self.counters.wake_ups, 1);
            // Nobody sets another deadline meanwhile: a guest wakes this thread first.
            let now = Instant::now();
            let turn = self.sender.turn.lock();
            turn.as_ref().and_then(|driver| driver.wait(now))
        };
        let asked = self.ask(wait);
        self.sender.sleeps(false);
        self.lively = now.elapsed() < long;
        asked
    }

    fn ask(&mut self, wait: Option<Duration>) -> Result<(), Failure> {
        bump(&self.counters.poll_calls, 1);
        match self.poll.poll(&mut self.events, wait) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(Failure::Io(error)),
            _ => Ok(()),
        }
    }
}

impl<E: Events> Driver<E> {
    /// The endpoint was closed, and its last connection has ended or had its time.
    fn is_done(&self, now: Instant) -> bool {
        self.closing
            .is_some_and(|at| at <= now || self.entries.is_empty())
    }

    /// How long nothing is to be done.
    fn wait(&self, now: Instant) -> Option<Duration> {
        if self.readable
            || !self.to_serve.is_empty()
            || !self.left.is_empty()
            || self.left_command.is_some()
            || self.failed.is_some()
        {
            return Some(Duration::ZERO);
        }
        let question = self.choice.has_question().then_some(self.next_question);
        [self.timers.next(), self.closing, question]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.saturating_duration_since(now))
    }

    /// What the system has told.
    fn woken(&mut self, events: &mio::Events) -> Result<(), Failure> {
        let mut rerouted = false;
        for event in events {
            rerouted |= event.token() == ADDRESSES;
            if event.token() == SOCKET {
                self.readable |= event.is_readable() || event.is_error();
                if event.is_error() {
                    self.read_errors();
                }
                if event.is_writable() {
                    self.watch_room(false)?;
                    for key in std::mem::take(&mut self.blocked) {
                        self.list(key);
                    }
                }
            }
        }
        if rerouted {
            self.addresses_changed();
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), Failure> {
        if let Some(failure) = self.failed.take() {
            return Err(failure);
        }
        if self.sender.is_notified() {
            self.take_commands();
        }
        if !self.guest {
            self.receive_left();
        }
        if self.readable {
            self.receive();
        }
        let now = Instant::now();
        while let Some(key) = self.timers.pop(now) {
            self.list(key);
        }
        self.serve();
        self.ask(now);
        if !self.blocked.is_empty() {
            self.watch_room(true)?;
        }
        Ok(())
    }

    fn watch_room(&self, wanted: bool) -> Result<(), Failure> {
        bump(&self.counters.poll_calls, 1);
        self.socket
            .watch_room(&self.registry, SOCKET, wanted)
            .map_err(Failure::Io)
    }

    /// Whether a guest may serve a connection. Handshakes take too long for its thread. And who gets what an
    /// application's stream brings gets all of it from one thread: the VM keeps the order of one sender's
    /// messages only, and to it a scheduler is another sender than the event thread.
    pub(super) fn is_for_guests(&self, key: usize) -> bool {
        let entry = self.entries.get(key);
        entry.is_none_or(|entry| entry.up && entry.kept.is_empty())
    }

    /// Whether there is something that guests do not do.
    fn has_left(&self) -> bool {
        self.failed.is_some()
            || self.left_command.is_some()
            || !self.left.is_empty()
            || !self.blocked.is_empty()
            || !self.to_serve.iter().all(|&key| self.is_for_guests(key))
    }

    /// A turn on a guest's thread, which is never to be kept for long. What goes wrong here ends the event
    /// thread, as if it had gone wrong there.
    pub(crate) fn guest_turn(&mut self) -> Asked {
        if self.has_left() {
            return Asked::Leave;
        }
        bump(&self.counters.guest_turns, 1);
        let before = self.received;
        self.guest = true;
        // It does not hear from the poll.
        self.readable = true;
        let turned = panics::caught(|| self.turn());
        self.guest = false;
        match turned {
            Ok(Ok(())) if self.has_left() => Asked::Leave,
            Ok(Ok(())) => Asked::Bytes(self.received.wrapping_sub(before)),
            Ok(Err(failure)) => self.fails(failure),
            Err(panic) => self.fails(Failure::Panic(panic)),
        }
    }

    fn fails(&mut self, failure: Failure) -> Asked {
        self.failed = Some(failure);
        Asked::Leave
    }
}
