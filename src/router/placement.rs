//! Which stream a sender has. A sender that is seen for the first time gets the stream with the
//! least to send, so that who has little to say does not share one with who has much; after that it
//! keeps it, for its signals would overtake each other otherwise. Who begins with a long packet gets one
//! of the second half of the streams, anybody else one of the first (of an odd number, the one in the
//! middle is in both): who sends much begins so mostly, and an idle stream's load says nothing of whose
//! it is.
//!
//! A hash of the sender would need no memory, but puts a quarter of all senders behind any one that
//! sends without end.

use std::collections::HashMap;

use crate::term::Sender;

/// Who begins with a packet of this size or more is taken for one who sends much.
const LONG: usize = 16 << 10;

/// See the module's documentation.
#[derive(Debug)]
pub struct Placement {
    limit: usize,
    senders: HashMap<Sender, u8>,
    /// Bytes that each stream has to send, and how many senders it was given.
    streams: Vec<(usize, usize)>,
}

impl Placement {
    /// Nobody has a place on these streams, of which there are at most 16; at most `limit` will.
    pub fn new(streams: usize, limit: usize) -> Self {
        Placement {
            limit,
            senders: HashMap::new(),
            streams: vec![(0, 0); streams],
        }
    }

    /// Sets what each stream has to send.
    pub fn set_loads(&mut self, loads: impl Iterator<Item = usize>) {
        for (stream, load) in self.streams.iter_mut().zip(loads) {
            stream.0 = load;
        }
    }

    /// A stream has this much more to send.
    pub fn add(&mut self, stream: usize, bytes: usize) {
        self.streams[stream].0 += bytes;
    }

    /// The stream of a sender, if it has one.
    pub fn known(&self, sender: Sender) -> Option<usize> {
        self.senders.get(&sender).copied().map(usize::from)
    }

    /// The stream of a sender that has this much to send; none if no more can be remembered.
    pub fn of(&mut self, sender: Sender, bytes: usize) -> Option<usize> {
        let stream = match self.senders.get(&sender) {
            Some(&stream) => usize::from(stream),
            None if self.senders.len() >= self.limit => return None,
            None => {
                let all = self.streams.len();
                let half = match bytes {
                    LONG.. => all / 2..all,
                    _ => 0..all.div_ceil(2),
                };
                let lightest = half.min_by_key(|&s| self.streams[s])?;
                self.senders.insert(sender, u8::try_from(lightest).ok()?);
                self.streams[lightest].1 += 1;
                lightest
            }
        };
        self.add(stream, bytes);
        Some(stream)
    }

    /// Forgets all senders but these.
    pub fn start_anew(&mut self, keep: impl Iterator<Item = Sender>) {
        let mut before = std::mem::take(&mut self.senders);
        for stream in &mut self.streams {
            stream.1 = 0;
        }
        for sender in keep {
            if let Some(stream) = before.remove(&sender) {
                self.senders.insert(sender, stream);
                self.streams[usize::from(stream)].1 += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_sender_gets_the_stream_with_the_least_to_send_and_keeps_it() {
        let mut placement = Placement::new(6, 10);
        placement.set_loads([1000, 10, 500, 0, 0, 0].into_iter());
        assert_eq!(placement.of(Sender::Port(1), 1000), Some(1));
        assert_eq!(placement.of(Sender::Port(2), 1), Some(2));
        assert_eq!(
            placement.of(Sender::Port(3), 1),
            Some(2),
            "501 is less than 1000"
        );
        placement.set_loads([0, 1 << 20, 0, 0, 0, 0].into_iter());
        assert_eq!(placement.of(Sender::Port(1), 1), Some(1), "it stays");
        assert_eq!(
            placement.of(Sender::Port(4), 1),
            Some(0),
            "fewer senders than 2"
        );
    }

    #[test]
    fn who_begins_long_shares_no_stream_with_who_begins_short() {
        for streams in 1..=16 {
            let mut placement = Placement::new(streams, 100);
            for id in 0..100 {
                let long = id % 3 == 0;
                let stream = placement.of(Sender::Port(id), if long { LONG } else { LONG - 1 });
                let place = 2 * stream.unwrap() + 1;
                assert!(place == streams || (place > streams) == long);
            }
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut placement = Placement::new(4, 1000);
        for id in 0..1000 {
            assert!(placement.of(Sender::Port(id), 1).is_some());
        }
        assert_eq!(placement.of(Sender::Port(u64::MAX), 1), None);
        assert!(
            placement.of(Sender::Port(7), 1).is_some(),
            "who has a place"
        );
        let before = placement.of(Sender::Port(9), 1);
        placement.start_anew([Sender::Port(9), Sender::Port(u64::MAX)].into_iter());
        assert_eq!(placement.senders.len(), 1);
        placement.set_loads([9, 9, 9, 9].into_iter());
        assert_eq!(
            placement.of(Sender::Port(9), 1),
            before,
            "it was in the midst of a message"
        );
    }
}
