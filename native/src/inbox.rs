//! What has come for a connection's controller, until it takes it.
//!
//! It is sent a message, and then takes until nothing is left: what comes meanwhile needs no message of
//! its own. One from a thread that is not a scheduler's costs more than its sending, for the VM frees
//! it on a thread of its own, which has to be woken; that is also why the message has the packets with
//! it and does not only say that there are some. What is taken becomes binaries where they are used,
//! while the event thread goes on.
//!
//! While it asks the engine for more it is sent no message either: it comes back by itself.
//!
//! It has no limit of its own: the engine reads no more than the receive budget and one batch.

use std::collections::VecDeque;

use parking_lot::Mutex;
use quic_dist_engine::{Handle, Packets};

/// What the controller takes at once. To make binaries of it takes some 50 µs, of packets of 100
/// bytes half a millisecond.
const TAKE: usize = 256 << 10;

/// See the module's documentation. Its lock is held for moves only.
#[derive(Default)]
pub struct Inbox(Mutex<Content>);

#[derive(Default)]
struct Content {
    packets: VecDeque<Packets>,
    /// The controller was sent a message, and has not left since.
    told: bool,
    /// Bytes that it got last, and is done with when it comes again.
    taken: usize,
}

impl Inbox {
    /// Puts packets behind those that are there. If the controller waits for a message, it is to
    /// get them with it, and they are given back.
    pub fn put(&self, packets: Packets) -> Option<Packets> {
        let mut content = self.0.lock();
        if content.told {
            content.packets.push_back(packets);
            return None;
        }
        content.told = true;
        content.taken = packets.len();
        Some(packets)
    }

    /// Takes what comes first, and gives the receive budget back what was taken before. If there is
    /// nothing, it says how many bytes those were.
    pub fn take(&self, handle: &Handle) -> Result<Vec<Packets>, usize> {
        self.take_or(handle, false)
    }

    /// The same; if there is nothing, and the controller does not come back by itself, what comes from now
    /// on is told.
    pub fn take_or_leave(&self, handle: &Handle, comes_back: bool) -> Result<Vec<Packets>, usize> {
        self.take_or(handle, !comes_back)
    }

    fn take_or(&self, handle: &Handle, leave: bool) -> Result<Vec<Packets>, usize> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        let before = {
            let mut content = self.0.lock();
            while bytes < TAKE
                && let Some(packets) = content.packets.pop_front()
            {
                bytes += packets.len();
                taken.push(packets);
            }
            if taken.is_empty() && leave {
                content.told = false;
            }
            std::mem::replace(&mut content.taken, bytes)
        };
        if before > 0 {
            handle.consumed(before);
        }
        if taken.is_empty() {
            return Err(before);
        }
        Ok(taken)
    }
}
