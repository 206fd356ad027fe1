//! Streams of the application's that have ended for it, but not for quiche yet; and how they are
//! cut.
//!
//! A side that wants a stream cut says so on the control stream. Then both sides finish what they
//! send on it, and read what comes to its end and throw it away: quiche forgets a stream, and gives
//! its peer credit for another, only when both directions have come to an end, and what it has been
//! given is within the peer's credit, so it arrives. The last byte says that it was cut: the word
//! may be lost at first, and such an end is not one that anybody is told of.
//!
//! RESET_STREAM and STOP_SENDING (RFC 9000, sections 19.4 and 19.5) would spare that, but quiche 0.30
//! does not get them right. With the first it may send a FIN as well; where that comes first, a
//! stream that was cut looks finished, or, if something is missing before it, is forgotten
//! without a word. After the second nothing can be read, so such a stream is kept until the
//! connection ends, and others are forgotten before anybody has seen why they ended.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{Connection, Quic, notice};
use crate::close::code;
use crate::config::Limits;
use crate::event::StreamEvent;
use crate::layout::{Role, is_uni, user_stream_kind};
use crate::streams::{CUT, Left};

pub(super) const TOO_MANY_CUT: &str = "more streams were cut than can be open";

/// See the module's documentation.
pub(super) struct Departing {
    streams: HashMap<u64, Step>,
    /// How many there are of which the stream, or the word, has not come yet.
    awaited: usize,
    unsaid: usize,
    /// So many can there be of each. The peer has QUIC's credit for no more streams that have not come;
    /// of those that have, it gets credit for others, so we read no more before their word has come.
    most: usize,
}

enum Step {
    /// The peer's word that it is cut has overtaken it.
    Await,
    /// It has overtaken the word. Nobody is told anything until that comes.
    Unsaid,
    /// What comes is thrown away; and whether quiche has not been given the end of our direction.
    Here { sending: bool },
}

impl Departing {
    pub fn new(limits: &Limits) -> Self {
        Departing {
            streams: HashMap::new(),
            awaited: 0,
            unsaid: 0,
            most: 4 * limits.user_streams,
        }
    }

    /// Something has come on a stream. False: it is not departing.
    pub fn readable(&mut self, id: u64, quic: &mut Quic) -> bool {
        let Some(step) = self.streams.get_mut(&id) else {
            return false;
        };
        if let Step::Await = step {
            self.awaited -= 1;
            *step = Step::Here {
                sending: !is_uni(id),
            };
        }
        discard(id, quic);
        true
    }

    /// Finishes what can be finished, and looks which of them have gone.
    pub fn look_after(&mut self, quic: &mut Quic) {
        self.streams.retain(|&id, step| match step {
            Step::Await | Step::Unsaid => true,
            Step::Here { sending } => match quic.stream_capacity(id) {
                Ok(1..) if *sending => {
                    *sending = quic.stream_send(id, &CUT, true).is_err();
                    true
                }
                // Asking also makes quiche forget a stream that the peer has stopped.
                capacity => !matches!(capacity, Err(quiche::Error::InvalidStreamState(_))),
            },
        });
    }

    /// A stream is to be cut when it comes. False: so many cannot be under way.
    fn await_stream(&mut self, id: u64) -> bool {
        if let Entry::Vacant(entry) = self.streams.entry(id) {
            entry.insert(Step::Await);
            self.awaited += 1;
        }
        self.awaited <= self.most
    }

    /// The peer's end of a stream that it has cut has come.
    pub fn cut(&mut self, id: u64) {
        if let Entry::Vacant(entry) = self.streams.entry(id) {
            entry.insert(Step::Unsaid);
            self.unsaid += 1;
        }
    }

    /// Whether the streams are not to be read before a word has come.
    pub fn waits_for_words(&self) -> bool {
        self.unsaid >= self.most
    }

    /// Both have come, or we have cut it ourselves.
    fn depart(&mut self, id: u64, sending: bool) {
        match self.streams.insert(id, Step::Here { sending }) {
            Some(Step::Await) => self.awaited -= 1,
            Some(Step::Unsaid) => self.unsaid -= 1,
            Some(Step::Here { .. }) | None => {}
        }
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }
}

/// Reads to the end of what there is.
fn discard(id: u64, quic: &mut Quic) {
    while let Ok((1.., false)) = quic.stream_discard(id, usize::MAX) {}
}

impl Connection {
    /// Cuts a stream that our side wants no more.
    pub(super) fn abandon(&mut self, id: u64, left: &Left, code: u64) {
        if Role::opener(id) == self.role && !left.opened {
            // The peer has to see an end of it too, or it would wait for this number for ever.
            let _ = self.quic.stream_priority(id, left.priority, true);
            self.opened(id);
        }
        self.send_control(notice::cancel(id, code));
        self.depart(id, left);
    }

    /// The peer has cut a stream.
    pub(super) fn cancelled(&mut self, id: u64, code: u64) {
        let ours = Role::opener(id) == self.role;
        let data_streams = if ours {
            self.outbound.streams()
        } else {
            self.inbound.peer_streams().unwrap_or(0)
        };
        if !self.has_user_streams() || user_stream_kind(id, data_streams).is_none() {
            return;
        }
        if let Some(left) = self.shared.streams.left(id) {
            if !left.closed {
                self.stream_event(id, StreamEvent::Reset(code));
            }
            self.depart(id, &left);
        } else if !ours
            && !self.shared.streams.knows(id)
            && !self.quic.stream_closed(id)
            && !self.user.departing.await_stream(id)
        {
            self.break_off(code::PROTOCOL, TOO_MANY_CUT);
        }
    }

    fn depart(&mut self, id: u64, left: &Left) {
        discard(id, &mut self.quic);
        self.user.departing.depart(id, left.sending);
    }
}
