//! How a connection ends: in order, by a broken rule, by silence, or because nobody is there.
//!
//! An orderly end is TCP's: our side of the streams is finished (FIN), the peer reads to the end
//! and closes. So nothing that was sent before the end is lost, although CONNECTION_CLOSE alone
//! would throw it away.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::libc;

use super::{Connection, Happening, State};
use crate::close::{CloseReason, code};
use crate::event::Event;
use crate::handle::Closing;
use crate::layout::Role;

/// The operating system said that nobody listens at the peer's address. An ICMP message can be
/// forged by anybody who guesses two ports, so it ends nothing by itself (RFC 9000, section 14.2.1
/// argues the same of MTUs): it makes us ask the peer, and only its silence counts.
#[derive(Debug)]
pub(super) struct Suspicion {
    deadline: Instant,
    received: usize,
    confirmed: bool,
}

impl Suspicion {
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// The least time that a suspected peer has to answer: well over the acknowledgement delay (25 ms)
/// and a scheduling hiccup of a busy machine.
const MIN_ANSWER_TIME: Duration = Duration::from_millis(250);

impl Connection {
    /// The owner is done with the connection. It is told at once; the peer, after everything that
    /// was queued.
    pub(crate) fn close(&mut self, closing: Closing, now: Instant) {
        let (reason, orderly) = match closing {
            Closing::Asked(text) => (CloseReason::LocalClosed { text }, true),
            Closing::OwnerDown => (CloseReason::OwnerDown, true),
        };
        // Asked again (an owner that closes and then exits): the first order stands.
        if matches!(self.state, State::Lingering(_) | State::Ended) {
            return;
        }
        let was_open = matches!(self.state, State::Open);
        self.report(reason);
        if was_open && orderly && self.quic.is_established() {
            self.state = State::Lingering(now + self.linger);
        } else {
            self.hang_up(code::NO_ERROR, "");
        }
    }

    /// The endpoint goes away: what is queued is sent, for at most `linger`.
    pub(crate) fn go_away(&mut self, linger: Duration, now: Instant) {
        match self.state {
            State::Open => {
                self.report(CloseReason::EndpointClosed);
                self.state = State::Lingering(now + linger);
            }
            State::Lingering(at) => self.state = State::Lingering(at.min(now + linger)),
            _ => {
                self.report(CloseReason::EndpointClosed);
                self.hang_up(code::GOING_AWAY, "the node stops");
            }
        }
    }

    /// The peer broke a rule, or a limit of ours was reached.
    pub(super) fn break_off(&mut self, code: u64, text: &str) {
        let reason = match code {
            code::PROTOCOL => CloseReason::Protocol { text: text.into() },
            _ => CloseReason::LocalClosed { text: text.into() },
        };
        self.report(reason);
        self.hang_up(code, text);
    }

    /// There is no room for this handshake any more.
    pub(crate) fn give_way(&mut self) {
        self.break_off(code::LIMIT, "too many handshakes, and most from there");
    }

    /// The endpoint has failed. Nothing is known of the state that this connection is in.
    pub(crate) fn fail(&mut self, reason: CloseReason) {
        self.report(reason);
        if !matches!(self.state, State::Ended) {
            self.hang_up(code::INTERNAL, "the endpoint has failed");
        }
    }

    /// The peer has finished its streams, and we have read them to the end.
    pub(super) fn peer_finished(&mut self) {
        self.report(CloseReason::PeerClosed {
            code: code::NO_ERROR,
            text: String::new(),
        });
        self.hang_up(code::NO_ERROR, "");
    }

    /// Sends CONNECTION_CLOSE, and is done with the streams.
    pub(super) fn hang_up(&mut self, code: u64, text: &str) {
        self.hang_up_with(true, code, text);
    }

    /// The same, with a code of ours or of the transport's.
    pub(super) fn hang_up_with(&mut self, of_ours: bool, code: u64, text: &str) {
        self.state = State::Ended;
        let dropped = self.outbound.clear();
        self.drained(dropped);
        // Done: quiche has closed already, for a reason of its own.
        let _ = self.quic.close(of_ours, code, text.as_bytes());
    }

    /// Tells whoever has to know, once.
    pub(super) fn report(&mut self, reason: CloseReason) {
        let known = match self.state {
            State::Ended | State::Lingering(_) => return,
            State::Handshaking(_) => self.role == Role::Client,
            State::Unclaimed(_) | State::Open => true,
        };
        self.shared.closed.store(true, Ordering::Release);
        self.shared.streams.close();
        self.happenings.push_back(if known {
            Happening::Event(Event::Closed(reason))
        } else if self.quic.stats().recv == 0 {
            Happening::Stray
        } else {
            Happening::Refused(reason)
        });
    }

    pub(super) fn check_deadline(&mut self, now: Instant) {
        match self.state {
            State::Handshaking(at) if at <= now => {
                self.report(CloseReason::HandshakeTimeout);
                self.hang_up(code::NOT_ACCEPTED, "the handshake did not finish in time");
            }
            State::Unclaimed(at) if at <= now => {
                self.report(CloseReason::HandshakeTimeout);
                self.hang_up(code::NOT_ACCEPTED, "nobody accepted the connection");
            }
            State::Lingering(at) if at <= now => self.hang_up(code::NO_ERROR, ""),
            _ => {}
        }
    }

    /// Finds out whether the connection has ended inside quiche, and why.
    pub(super) fn check_end(&mut self) {
        if matches!(self.state, State::Ended) {
            return;
        }
        let reason = if let Some(error) = self.quic.peer_error() {
            CloseReason::from_error(error, false)
        } else if let Some(error) = self.quic.local_error() {
            let reason = CloseReason::from_error(error, true);
            match reason {
                CloseReason::Tls { alert, .. } => self.refused_certificate(alert).unwrap_or(reason),
                reason => reason,
            }
        } else if self.quic.is_timed_out() {
            CloseReason::IdleTimeout
        } else if self.quic.is_closed() || self.quic.is_draining() {
            // A stateless reset, or an end before the first packet.
            CloseReason::Transport {
                by_us: false,
                code: 0,
                text: "reset".into(),
            }
        } else {
            return;
        };
        // What came before the end, or with it, is delivered before it.
        if matches!(self.state, State::Open) {
            self.read();
        }
        self.report(reason);
        self.state = State::Ended;
        let dropped = self.outbound.clear();
        self.drained(dropped);
    }

    /// The operating system says that nobody listens at the peer's address.
    pub(crate) fn unreachable(&mut self, now: Instant) {
        match self.state {
            // Nothing has been heard from there, and the errors came for exactly that address:
            // dialling fails at once, as it does on TCP.
            State::Handshaking(_) if self.quic.stats().recv == 0 => {
                self.report(CloseReason::Io(libc::ECONNREFUSED));
                self.hang_up(code::NO_ERROR, "");
            }
            State::Ended => {}
            _ => {
                let received = self.quic.stats().recv;
                match &mut self.suspicion {
                    Some(suspicion) => suspicion.confirmed = true,
                    None => {
                        let rtt = self
                            .quic
                            .path_stats()
                            .find(|path| path.active)
                            .map_or(Duration::ZERO, |path| path.rtt);
                        self.suspicion = Some(Suspicion {
                            deadline: now + MIN_ANSWER_TIME.max(4 * rtt),
                            received,
                            confirmed: false,
                        });
                        // It fails only where the connection has no path, that is, at its end.
                        let _ = self.quic.send_ack_eliciting();
                    }
                }
            }
        }
    }

    pub(super) fn check_suspicion(&mut self, now: Instant) {
        let Some(suspicion) = &self.suspicion else {
            return;
        };
        if suspicion.deadline > now {
            return;
        }
        let silent = self.quic.stats().recv == suspicion.received;
        let dead = silent && suspicion.confirmed;
        self.suspicion = None;
        if dead {
            self.report(CloseReason::Io(libc::ECONNREFUSED));
            self.hang_up(code::NO_ERROR, "");
        }
    }
}
