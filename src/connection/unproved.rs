//! How much a server sends to an address that nobody has proved (RFC 9000, section 8.1): three times
//! what came from there. quiche (0.30) keeps to that but for the bytes that it pads a datagram with an
//! Initial packet with, which are most of one that is sent again.

/// RFC 9000, section 8.1.
const FACTOR: usize = 3;
/// What is kept for CONNECTION_CLOSE: repetitions leave enough to tell a peer that stalls so.
pub(super) const LAST_WORD: usize = 256;

/// What has come from the address, and what was sent there.
#[derive(Debug, Default)]
pub(super) struct Unproved {
    received: usize,
    sent: usize,
}

impl Unproved {
    pub fn received(&mut self, bytes: usize) {
        self.received += bytes;
    }

    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
    }

    /// What may still be sent; the last is for the last.
    pub fn room(&self, has_ended: bool) -> usize {
        let kept = if has_ended { 0 } else { LAST_WORD };
        (FACTOR * self.received).saturating_sub(self.sent + kept)
    }
}

/// How many packets a datagram has (RFC 9000, section 12.2) up to its first Handshake packet. quiche
/// takes them in their order, and none behind one that is not genuine: if it has taken as many, that
/// one was, and who has made it has read what we have sent to its address. (0-RTT packets, which it may
/// take later, are not allowed here.)
pub(super) fn until_handshake(mut datagram: &[u8]) -> Option<usize> {
    let mut packets = 0;
    while let Some((&first, rest)) = datagram.split_first() {
        packets += 1;
        let kind = first >> 4 & 0x03;
        if first & 0x80 == 0 || kind == RETRY {
            break;
        }
        if kind == HANDSHAKE {
            return Some(packets);
        }
        let (_version, rest) = rest.split_at_checked(4)?;
        let (_to, rest) = counted(rest)?;
        let (_from, rest) = counted(rest)?;
        let rest = match kind {
            INITIAL => {
                let (token, rest) = varint(rest)?;
                rest.get(token..)?
            }
            _ => rest,
        };
        let (length, rest) = varint(rest)?;
        datagram = rest.get(length..)?;
    }
    None
}

/// Long packet types (RFC 9000, section 17.2).
const INITIAL: u8 = 0;
const HANDSHAKE: u8 = 2;
const RETRY: u8 = 3;

/// Bytes behind one that says how many.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    rest.split_at_checked(length.into())
}

/// RFC 9000, section 16.
fn varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (value, rest) = bytes.split_at_checked(1 << (bytes.first()? >> 6))?;
    let value = value
        .iter()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    let kept = value & u64::MAX >> (64 - 8 * (bytes.len() - rest.len()) + 2);
    Some((usize::try_from(kept).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn long(kind: u8, token: Option<usize>, payload: usize) -> Vec<u8> {
        let mut packet = vec![0xc0 | kind << 4, 0, 0, 0, 1, 2, 7, 7, 3, 8, 8, 8];
        if let Some(length) = token {
            packet.push(u8::try_from(length).unwrap());
            packet.resize(packet.len() + length, 9);
        }
        packet.extend_from_slice(&(0x4000 | u16::try_from(payload).unwrap()).to_be_bytes());
        packet.resize(packet.len() + payload, 6);
        packet
    }

    #[test]
    fn packets_are_counted_up_to_the_first_of_the_handshake() {
        let (initial, handshake, short) = (
            long(INITIAL, Some(20), 300),
            long(HANDSHAKE, None, 40),
            vec![0x40, 1, 2, 3],
        );
        let counted = |packets: &[&Vec<u8>]| {
            let datagram: Vec<u8> = packets.iter().copied().flatten().copied().collect();
            until_handshake(&datagram)
        };
        assert_eq!(counted(&[&initial]), None);
        assert_eq!(counted(&[&short]), None);
        assert_eq!(counted(&[&initial, &initial]), None);
        assert_eq!(counted(&[&short, &handshake]), None);
        assert_eq!(counted(&[&long(RETRY, None, 10), &handshake]), None);
        assert_eq!(counted(&[&handshake]), Some(1));
        assert_eq!(counted(&[&initial, &handshake]), Some(2));
        assert_eq!(counted(&[&initial, &initial, &handshake, &short]), Some(3));
        // Padding.
        assert_eq!(counted(&[&initial, &vec![0; 100], &handshake]), None);
        assert_eq!(counted(&[&handshake, &vec![0; 100]]), Some(1));
        for cut in 1..initial.len() {
            assert_eq!(until_handshake(&initial[..cut]), None);
        }
    }

    #[test]
    fn lengths_are_read() {
        // RFC 9000, appendix A.1.
        let read = |bytes: &[u8]| varint(bytes).map(|(value, rest)| (value, rest.len()));
        let eight = [0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c];
        assert_eq!(read(&eight), Some((151_288_809_941_952_652, 0)));
        assert_eq!(read(&[0x9d, 0x7f, 0x3e, 0x7d, 1]), Some((494_878_333, 1)));
        assert_eq!(read(&[0x7b, 0xbd]), Some((15_293, 0)));
        assert_eq!(read(&[0x25, 1, 2]), Some((37, 2)));
        assert_eq!(read(&eight[..7]), None);
        assert_eq!(read(&[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_will_do(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = until_handshake(&bytes);
        }
    }
}
