//! The VM's atom cache, on several streams.
//!
//! A packet's header refers to atoms by their place in a cache that the receiving VM keeps, of 2,048
//! places; an atom's text is sent with the packet that puts it there ("Distribution Header" in OTP's
//! `erl_ext_dist`). That needs a total order. Here each stream gets a part of the places, which only
//! its packets refer to and fill: then the order within the stream is all that is needed, and the
//! receiving VM need not know. What the sending VM has put where is remembered, so that an atom can
//! be put into another stream's part when one of its packets refers to it for the first time.
//!
//! Nothing but the header changes: a packet's terms refer to atoms by their place in its header.

const PLACES: usize = 2048;
const VERSION: u8 = 131;
const DIST_HEADER: u8 = 68;
const FRAGMENT_FIRST: u8 = 69;
/// In the half byte of a reference: the atom's text follows; the rest of it is the place's high bits.
const NEW: u8 = 8;
/// In the half byte behind those of the references: lengths of texts take two bytes.
const LONG: u8 = 1;

/// What the sending VM has put into one place.
#[derive(Clone, Debug, Default)]
struct Atom {
    /// Never the same twice; 0: nothing yet.
    version: u64,
    text: Box<[u8]>,
}

/// See the module's documentation. It takes up to 64 KiB and the atoms' texts, once the VM refers to
/// atoms.
#[derive(Debug)]
pub struct AtomCache {
    /// Places that each stream has.
    part: usize,
    atoms: Vec<Atom>,
    /// By place: the version that the receiver has there.
    sent: Vec<u64>,
    versions: u64,
    /// Those of the packet that is being put; kept for its memory.
    references: Vec<Reference>,
}

/// One reference of a header.
#[derive(Clone, Copy, Debug)]
struct Reference {
    /// Where it is in the packet.
    at: usize,
    /// The place in the sending VM's cache, and in the receiving one's.
    from: usize,
    to: usize,
    /// The text is to follow.
    new: bool,
}

/// A header that has become longer.
#[derive(Debug, PartialEq, Eq)]
pub struct Longer {
    /// The packet up to the end of its new header.
    pub start: Vec<u8>,
    /// How many bytes of the packet that stands for.
    pub replaced: usize,
}

/// The references of a packet, as they are in its bytes.
struct Header {
    /// Where their number is.
    at: usize,
    count: usize,
    /// Where the first one is, behind the half bytes.
    first: usize,
    long: bool,
}

impl Header {
    /// None: there are no references, or it is cut short.
    fn of(packet: &[u8]) -> Option<Self> {
        let at = match *packet {
            [VERSION, DIST_HEADER, ..] => 2,
            // Behind the sequence and the fragment id, of 8 bytes each.
            [VERSION, FRAGMENT_FIRST, ..] => 18,
            _ => return None,
        };
        let count = usize::from(*packet.get(at)?);
        let first = at + 1 + count / 2 + 1;
        if count == 0 || first > packet.len() {
            return None;
        }
        let mut header = Header {
            at,
            count,
            first,
            long: false,
        };
        header.long = header.half_byte(packet, count) & LONG != 0;
        Some(header)
    }

    fn half_byte(&self, packet: &[u8], index: usize) -> u8 {
        (packet[self.at + 1 + index / 2] >> (index % 2 * 4)) & 0xf
    }

    fn set_half_byte(&self, packet: &mut [u8], index: usize, half: u8) {
        let byte = &mut packet[self.at + 1 + index / 2];
        let shift = index % 2 * 4;
        *byte = (*byte & !(0xf << shift)) | (half << shift);
    }

    /// The next reference and its text, if that follows, and where the one after it is.
    fn read<'a>(&self, packet: &'a [u8], index: usize, at: usize) -> Option<Read<'a>> {
        let half = self.half_byte(packet, index);
        let place = (usize::from(half & !NEW) << 8) | usize::from(*packet.get(at)?);
        if half & NEW == 0 {
            return Some((place, None, at + 1));
        }
        let rest = packet.get(at + 1..)?;
        let (length, rest) = if self.long {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        } else {
            let (&length, rest) = rest.split_first()?;
            (usize::from(length), rest)
        };
        let text = rest.get(..length)?;
        let next = packet.len() - rest.len() + length;
        Some((place, Some(text), next))
    }
}

type Read<'a> = (usize, Option<&'a [u8]>, usize);

/// The terms of a packet whose header is a distribution header or that of a first fragment.
pub fn terms(packet: &[u8]) -> Option<&[u8]> {
    let Some(header) = Header::of(packet) else {
        return match *packet {
            [VERSION, DIST_HEADER, 0, ref terms @ ..] => Some(terms),
            [VERSION, FRAGMENT_FIRST, ..] if packet.get(18) == Some(&0) => Some(&packet[19..]),
            _ => None,
        };
    };
    let mut at = header.first;
    for index in 0..header.count {
        (_, _, at) = header.read(packet, index, at)?;
    }
    packet.get(at..)
}

impl AtomCache {
    /// For this many streams, 1 to 16.
    pub fn new(streams: usize) -> Self {
        AtomCache {
            part: PLACES / streams.max(1),
            atoms: Vec::new(),
            sent: Vec::new(),
            versions: 0,
            references: Vec::new(),
        }
    }

    /// Takes the VM's next packet, which is to go on this stream, and makes its header right for
    /// that: in place, if it stays as long as it is. A header that no VM makes stays as it is, for
    /// the other VM to refuse.
    pub fn put(&mut self, stream: usize, packet: &mut [u8]) -> Option<Longer> {
        let header = Header::of(packet)?;
        if self.atoms.is_empty() {
            self.atoms.resize(PLACES, Atom::default());
            self.sent.resize(PLACES, 0);
        }
        self.references.clear();
        let mut longer = false;
        let mut at = header.first;
        for index in 0..header.count {
            let (from, text, next) = header.read(packet, index, at)?;
            if let Some(text) = text {
                self.versions += 1;
                self.atoms[from] = Atom {
                    version: self.versions,
                    text: text.into(),
                };
            }
            let version = self.atoms[from].version;
            if version == 0 {
                return None;
            }
            let to = stream * self.part + from % self.part;
            let new = text.is_some() || self.sent[to] != version;
            self.sent[to] = version;
            longer |= new && text.is_none();
            self.references.push(Reference { at, from, to, new });
            at = next;
        }
        if longer {
            return Some(self.longer(packet, &header, at));
        }
        for (index, reference) in self.references.iter().enumerate() {
            header.set_half_byte(packet, index, reference.half_byte());
            packet[reference.at] = reference.low_byte();
        }
        None
    }

    fn longer(&self, packet: &[u8], header: &Header, end: usize) -> Longer {
        let mut start = packet[..=header.at].to_vec();
        start.resize(header.first, 0);
        let text = |reference: &Reference| &*self.atoms[reference.from].text;
        let long = self.references.iter().any(|r| r.new && text(r).len() > 255);
        header.set_half_byte(&mut start, header.count, if long { LONG } else { 0 });
        for (index, reference) in self.references.iter().enumerate() {
            header.set_half_byte(&mut start, index, reference.half_byte());
            start.push(reference.low_byte());
            if reference.new {
                let text = text(reference);
                // No text is longer than its two-byte length in a packet.
                let [high, low] = (text.len() as u16).to_be_bytes();
                if long {
                    start.push(high);
                }
                start.push(low);
                start.extend_from_slice(text);
            }
        }
        Longer {
            start,
            replaced: end,
        }
    }
}

impl Reference {
    fn half_byte(&self) -> u8 {
        // A place has 11 bits.
        (self.to >> 8) as u8 | if self.new { NEW } else { 0 }
    }

    fn low_byte(&self) -> u8 {
        self.to as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashSet, VecDeque};

    /// What a VM does with its cache when it receives: the texts that a packet's terms refer to.
    struct Receiver(Vec<Option<Vec<u8>>>);

    impl Receiver {
        fn take(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
            let Some(header) = Header::of(packet) else {
                return Vec::new();
            };
            let mut at = header.first;
            (0..header.count)
                .map(|index| {
                    let (place, text, next) = header.read(packet, index, at).unwrap();
                    at = next;
                    if let Some(text) = text {
                        self.0[place] = Some(text.to_vec());
                    }
                    self.0[place].clone().expect("an atom that was sent")
                })
                .collect()
        }
    }

    /// What a VM does when it sends, each atom in a place of its own, which others have as well; one
    /// packet refers to a place once.
    struct Sender(Vec<Option<usize>>);

    fn place(atom: usize) -> usize {
        atom * 5 % PLACES
    }

    fn text(atom: usize) -> Vec<u8> {
        let long = if atom.is_multiple_of(7) { 300 } else { 1 };
        format!("{atom}").repeat(long).into_bytes()
    }

    impl Sender {
        fn packet(&mut self, atoms: &[usize], fragment: bool, terms: &[u8]) -> Vec<u8> {
            let mut packet = vec![
                VERSION,
                if fragment {
                    FRAGMENT_FIRST
                } else {
                    DIST_HEADER
                },
            ];
            packet.extend_from_slice(if fragment { &[1; 16] } else { &[] });
            packet.push(atoms.len() as u8);
            let header = Header {
                at: packet.len() - 1,
                count: atoms.len(),
                first: packet.len() + atoms.len() / 2 + 1,
                long: false,
            };
            if !atoms.is_empty() {
                packet.resize(header.first, 0);
                header.set_half_byte(&mut packet, atoms.len(), LONG);
            }
            for (index, &atom) in atoms.iter().enumerate() {
                let place = place(atom);
                let new = self.0[place] != Some(atom);
                self.0[place] = Some(atom);
                let half = (place >> 8) as u8 | if new { NEW } else { 0 };
                header.set_half_byte(&mut packet, index, half);
                packet.push(place as u8);
                if new {
                    packet.extend((text(atom).len() as u16).to_be_bytes());
                    packet.extend(text(atom));
                }
            }
            packet.extend_from_slice(terms);
            packet
        }
    }

    proptest! {
        /// However the streams overtake each other, the receiver finds the atoms that were meant.
        #[test]
        fn the_streams_may_overtake_each_other(
            streams in 1usize..17,
            packets in prop::collection::vec(
                (0usize..16, prop::collection::vec(0usize..3000, 0..20), any::<bool>(), any::<bool>()),
                1..200,
            ),
        ) {
            let mut sender = Sender(vec![None; PLACES]);
            let mut receiver = Receiver(vec![None; PLACES]);
            let mut cache = AtomCache::new(streams);
            let mut queues = vec![VecDeque::new(); streams];
            let mut deliver = |queue: &mut VecDeque<(Vec<u8>, Vec<usize>, [u8; 2])>| {
                while let Some((packet, atoms, end)) = queue.pop_front() {
                    let texts: Vec<_> = atoms.iter().map(|&a| text(a)).collect();
                    prop_assert_eq!(receiver.take(&packet), texts);
                    prop_assert_eq!(terms(&packet), Some(&end[..]));
                }
                Ok(())
            };
            for (number, (stream, atoms, fragment, later)) in packets.into_iter().enumerate() {
                let stream = stream % streams;
                let mut places = HashSet::new();
                let mut atoms = atoms;
                atoms.retain(|&atom| places.insert(place(atom)));
                let end = (number as u16).to_be_bytes();
                let mut packet = sender.packet(&atoms, fragment, &end);
                if let Some(longer) = cache.put(stream, &mut packet) {
                    packet.splice(..longer.replaced, longer.start);
                }
                queues[stream].push_back((packet, atoms, end));
                if !later {
                    deliver(&mut queues[stream])?;
                }
            }
            for queue in &mut queues {
                deliver(queue)?;
            }
        }

        /// No bytes whatever make it panic, and what it cannot read it leaves alone.
        #[test]
        fn garbage_is_left_alone(mut bytes in prop::collection::vec(any::<u8>(), 0..200), tag in prop::sample::select(vec![68u8, 69])) {
            bytes.splice(0..0, [VERSION, tag]);
            let before = bytes.clone();
            let readable = terms(&bytes).is_some();
            let longer = AtomCache::new(4).put(1, &mut bytes);
            prop_assert!(readable || (longer.is_none() && bytes == before));
        }
    }

    #[test]
    fn on_one_stream_nothing_changes() {
        let mut sender = Sender(vec![None; PLACES]);
        let mut cache = AtomCache::new(1);
        for atoms in [[1, 2, 3], [1, 2, 4]] {
            let packet = sender.packet(&atoms, false, b"terms");
            let mut put = packet.clone();
            assert_eq!(cache.put(0, &mut put), None);
            assert_eq!(put, packet);
        }
    }

    #[test]
    fn a_text_is_sent_once_on_each_stream() {
        let mut sender = Sender(vec![None; PLACES]);
        let mut cache = AtomCache::new(4);
        let sizes: Vec<usize> = [0, 1, 1, 0, 1]
            .into_iter()
            .map(|stream| {
                let mut packet = sender.packet(&[6], false, &[]);
                let longer = cache.put(stream, &mut packet);
                longer.map_or(packet.len(), |longer| longer.start.len())
            })
            .collect();
        assert_eq!(sizes, [8, 7, 5, 5, 5]);
    }
}
