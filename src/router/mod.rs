//! Which data stream an outgoing packet takes.
//!
//! The rule, argued in `docs/protocol.md`: every signal of one sender takes the same stream, and a
//! signal whose sender cannot be told is fenced, that is, ordered against every stream. A sender
//! takes the stream that has the least to send when it is first seen ([`placement`]). It reads the
//! bytes that the VM made (distribution header and control message, OTP's `erl_dist_protocol`)
//! where they lie; whatever it does not know is fenced as well.

use std::collections::HashMap;

use crate::atom_cache;
use crate::term::{Process, Sender, Terms};

mod placement;
#[cfg(any(test, feature = "counterexamples"))]
mod wrong;

use placement::Placement;

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The data stream of this index.
    Stream(usize),
    /// After everything before it, and before everything after it, on every stream.
    Fence,
}

/// Fragmented messages under way that are remembered. The VM names them by the sending process, so
/// there are as many as processes that send large messages at once. Above it they are forgotten:
/// their remaining fragments are fenced, which is slow and right.
const MAX_SEQUENCES: usize = 65_536;

/// Senders that are remembered, about 2 MB. Those of a busy node come and go, and nobody tells us
/// when one has gone; the one that finds no place makes all start anew, which takes a fence.
const MAX_SENDERS: usize = 65_536;

const VERSION: u8 = 131;
const DIST_HEADER: u8 = 68;
const FRAGMENT_FIRST: u8 = 69;
const FRAGMENT_NEXT: u8 = 70;
const PASS_THROUGH: u8 = 112;

/// A fragmented message under way.
#[derive(Clone, Copy, Debug)]
struct Sequence {
    /// Where its remaining fragments go.
    route: Route,
    sender: Option<Sender>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Router {
    streams: usize,
    placement: Placement,
    sequences: HashMap<u64, Sequence>,
    #[cfg(feature = "counterexamples")]
    wrong: Option<wrong::Wrong>,
}

impl Router {
    /// A router over this many streams.
    pub fn new(streams: usize) -> Self {
        Router {
            streams: streams.max(1),
            placement: Placement::new(streams.max(1), MAX_SENDERS),
            sequences: HashMap::new(),
            #[cfg(feature = "counterexamples")]
            wrong: wrong::Wrong::of_environment(streams.max(1)),
        }
    }

    /// One that remembers fewer senders.
    #[cfg(test)]
    fn remembering(senders: usize, streams: usize) -> Self {
        Router {
            placement: Placement::new(streams, senders),
            ..Router::new(streams)
        }
    }

    /// Tells how many bytes each stream has to send, for senders that are new.
    pub fn set_loads(&mut self, loads: impl Iterator<Item = usize>) {
        self.placement.set_loads(loads);
    }

    /// The stream of a process, if it has one.
    pub fn stream_of(&self, process: Process) -> Option<usize> {
        if self.streams == 1 {
            return Some(0);
        }
        self.placement.known(Sender::Process(process))
    }

    /// Where this packet goes.
    #[cfg(test)]
    fn route(&mut self, packet: &[u8]) -> Route {
        self.route_long(packet, packet.len())
    }

    /// Where a packet of this length goes that begins so: with its header and its control message.
    pub fn route_long(&mut self, packet: &[u8], length: usize) -> Route {
        if self.streams == 1 {
            return Route::Stream(0);
        }
        #[cfg(feature = "counterexamples")]
        if let Some(wrong) = &mut self.wrong {
            return wrong.route(packet);
        }
        match *packet {
            [VERSION, DIST_HEADER, ..] => {
                let sender = atom_cache::terms(packet).and_then(sender);
                self.of(sender, length).0
            }
            [PASS_THROUGH, VERSION, ref control @ ..] => self.of(sender(control), length).0,
            [VERSION, FRAGMENT_FIRST, ref rest @ ..] => self.first_fragment(rest, packet, length),
            [VERSION, FRAGMENT_NEXT, ref rest @ ..] => self.next_fragment(rest, length),
            // Nothing at all: the VM makes no such packet, and a fence could not carry it.
            [] => Route::Stream(0),
            _ => Route::Fence,
        }
    }

    /// Where a signal of this sender goes, and where what follows it of the same sender does.
    fn of(&mut self, sender: Option<Sender>, length: usize) -> (Route, Route) {
        let Some(sender) = sender else {
            return (Route::Fence, Route::Fence);
        };
        if let Some(stream) = self.placement.of(sender, length) {
            return (Route::Stream(stream), Route::Stream(stream));
        }
        // All places are taken. Behind a fence everybody may have another one, but those in the
        // midst of a message; so this signal is made one.
        let under_way = self.sequences.values().filter_map(|s| s.sender);
        self.placement.start_anew(under_way);
        match self.placement.of(sender, length) {
            Some(stream) => (Route::Fence, Route::Stream(stream)),
            None => (Route::Fence, Route::Fence),
        }
    }

    fn first_fragment(&mut self, rest: &[u8], packet: &[u8], length: usize) -> Route {
        let Some((sequence, fragment)) = fragment_header(rest) else {
            return Route::Fence;
        };
        let sender = atom_cache::terms(packet).and_then(sender);
        let (first, route) = self.of(sender, length);
        if fragment > 1 {
            if self.sequences.len() >= MAX_SEQUENCES {
                self.sequences.clear();
            }
            self.sequences.insert(sequence, Sequence { route, sender });
        }
        first
    }

    fn next_fragment(&mut self, rest: &[u8], length: usize) -> Route {
        let Some((sequence, fragment)) = fragment_header(rest) else {
            return Route::Fence;
        };
        // Fragments are counted down to 1.
        let known = if fragment > 1 {
            self.sequences.get(&sequence).copied()
        } else {
            self.sequences.remove(&sequence)
        };
        let route = known.map_or(Route::Fence, |sequence| sequence.route);
        if let Route::Stream(stream) = route {
            self.placement.add(stream, length);
        }
        route
    }
}

/// Sequence id and fragment id.
fn fragment_header(rest: &[u8]) -> Option<(u64, u64)> {
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (fragment, _) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*sequence), u64::from_be_bytes(*fragment)))
}

/// The process that sends a fragmented message, by its first fragment's header and control message.
pub fn process(first_fragment: &[u8]) -> Option<Process> {
    match atom_cache::terms(first_fragment).and_then(sender)? {
        Sender::Process(process) => Some(process),
        Sender::Port(_) => None,
    }
}

/// The process or port whose signal a control message is, if it says so.
fn sender(control: &[u8]) -> Option<Sender> {
    let mut terms = Terms::of_tuple(control)?;
    let operation = terms.small_integer()?;
    let before = match operation {
        // LINK, EXIT, UNLINK, REG_SEND, EXIT2, and the same with a trace token; MONITOR_P,
        // DEMONITOR_P, MONITOR_P_EXIT; SEND_SENDER; PAYLOAD_EXIT, PAYLOAD_EXIT2,
        // PAYLOAD_MONITOR_P_EXIT; ALIAS_SEND. The sender comes first. Of an exit that is monitored
        // by name it is the name, which says nothing of the process that had it.
        1 | 3 | 4 | 6 | 8 | 13 | 16 | 18 | 19..=28 | 33 | 34 => 0,
        // SPAWN_REQUEST: after the request's reference. UNLINK_ID and its ACK: after the id.
        // ALTACT_SIG_SEND (OTP 28): after the flags, whatever they say.
        29 | 30 | 35..=37 => 1,
        // SPAWN_REPLY: the result is the new process, whose first signal this is. (An error is
        // no process, and of nobody's making.)
        31 | 32 => 3,
        // SEND has no sender; a message that makes its node dial is one. GROUP_LEADER has the new
        // leader where the sender should be. The rest is unknown.
        _ => return None,
    };
    for _ in 0..before {
        terms.skip()?;
    }
    terms.sender()
}

#[cfg(test)]
mod tests;
