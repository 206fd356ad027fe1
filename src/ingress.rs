//! What a datagram from the network is, before any connection sees it.

use crate::table::{ID_LEN, Table};

/// The smallest datagram that may open a connection (RFC 9000, section 14.1), or be answered with
/// a Version Negotiation packet (section 6.1): smaller ones could be used for amplification.
pub const MIN_INITIAL: usize = 1200;
/// The shortest connection id that a client may choose for a server (RFC 9000, section 7.2).
const MIN_CLIENT_CHOSEN_ID: usize = 8;

/// What to do with a datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is for this connection.
    Known(usize),
    /// It opens a connection.
    Initial {
        /// The client's id.
        scid: quiche::ConnectionId<'static>,
        /// The id that the client chose for us, or that our Retry packet told it.
        dcid: quiche::ConnectionId<'static>,
        /// The token of a Retry packet.
        token: Vec<u8>,
    },
    /// It is to be answered with a Version Negotiation packet.
    UnknownVersion {
        /// The sender's id.
        scid: quiche::ConnectionId<'static>,
        /// The id that the sender chose for us.
        dcid: quiche::ConnectionId<'static>,
    },
    /// It is dropped.
    Drop(Dropped),
}

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// No QUIC packet, or a truncated header.
    Malformed,
    /// For a connection that does not exist (any more).
    UnknownConnection,
    /// An Initial, or an unknown version, in too small a datagram.
    TooSmall,
    /// An Initial with too short a destination connection id.
    ShortId,
}

/// Says what a datagram is.
pub fn classify(datagram: &mut [u8], table: &Table) -> Arrival {
    let Some(&first) = datagram.first() else {
        return Arrival::Drop(Dropped::Malformed);
    };
    // RFC 8999, section 5.2: in a short header the id follows the first byte, with no length.
    if first & 0x80 == 0 {
        return match datagram.get(1..1 + ID_LEN).map(|id| table.get(id)) {
            None => Arrival::Drop(Dropped::Malformed),
            Some(None) => Arrival::Drop(Dropped::UnknownConnection),
            Some(Some(key)) => Arrival::Known(key),
        };
    }
    let length = datagram.len();
    let Ok(header) = quiche::Header::from_slice(datagram, ID_LEN) else {
        return Arrival::Drop(Dropped::Malformed);
    };
    if let Some(key) = table.get(&header.dcid) {
        return Arrival::Known(key);
    }
    if header.ty == quiche::Type::VersionNegotiation {
        return Arrival::Drop(Dropped::UnknownConnection);
    }
    let known_version = quiche::version_is_supported(header.version);
    if known_version && header.ty != quiche::Type::Initial {
        return Arrival::Drop(Dropped::UnknownConnection);
    }
    if length < MIN_INITIAL {
        return Arrival::Drop(Dropped::TooSmall);
    }
    if !known_version {
        return Arrival::UnknownVersion {
            scid: header.scid.into_owned(),
            dcid: header.dcid.into_owned(),
        };
    }
    if header.dcid.len() < MIN_CLIENT_CHOSEN_ID {
        return Arrival::Drop(Dropped::ShortId);
    }
    Arrival::Initial {
        scid: header.scid.into_owned(),
        dcid: header.dcid.into_owned(),
        token: header.token.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::random_id;
    use proptest::prelude::*;

    fn long(version: u32, dcid: &[u8], scid: &[u8], length: usize) -> Vec<u8> {
        let mut packet = vec![0xc0];
        packet.extend_from_slice(&version.to_be_bytes());
        packet.push(dcid.len() as u8);
        packet.extend_from_slice(dcid);
        packet.push(scid.len() as u8);
        packet.extend_from_slice(scid);
        packet.push(0); // no token
        packet.resize(length, 0);
        packet
    }

    #[test]
    fn a_full_initial_opens_a_connection() {
        let arrival = classify(&mut long(1, &[7; 8], &[1], 1200), &Table::default());
        assert_eq!(
            arrival,
            Arrival::Initial {
                scid: vec![1].into(),
                dcid: vec![7; 8].into(),
                token: vec![],
            }
        );
    }

    #[test]
    fn small_or_short_initials_are_dropped() {
        let table = Table::default();
        assert_eq!(
            classify(&mut long(1, &[7; 8], &[1], 1199), &table),
            Arrival::Drop(Dropped::TooSmall)
        );
        assert_eq!(
            classify(&mut long(1, &[7; 7], &[1], 1200), &table),
            Arrival::Drop(Dropped::ShortId)
        );
        assert_eq!(classify(&mut [], &table), Arrival::Drop(Dropped::Malformed));
    }

    #[test]
    fn an_unknown_version_is_answered_only_when_that_amplifies_nothing() {
        let table = Table::default();
        let version = 0x1a2a_3a4a;
        assert_eq!(
            classify(&mut long(version, &[7; 8], &[9; 5], 1200), &table),
            Arrival::UnknownVersion {
                scid: vec![9; 5].into(),
                dcid: vec![7; 8].into()
            }
        );
        assert_eq!(
            classify(&mut long(version, &[7; 8], &[9; 5], 1100), &table),
            Arrival::Drop(Dropped::TooSmall)
        );
        // A Version Negotiation packet is never answered: two endpoints would never stop.
        assert_eq!(
            classify(&mut long(0, &[7; 8], &[9; 5], 1200), &table),
            Arrival::Drop(Dropped::UnknownConnection)
        );
    }

    #[test]
    fn short_headers_find_their_connection() {
        let mut table = Table::default();
        let id = random_id().unwrap();
        assert!(table.insert(id.clone(), 42));
        let mut packet = vec![0x40];
        packet.extend_from_slice(&id);
        packet.extend_from_slice(&[0; 30]);
        assert_eq!(classify(&mut packet, &table), Arrival::Known(42));
        assert_eq!(
            classify(&mut packet[..10], &table),
            Arrival::Drop(Dropped::Malformed)
        );
        packet[3] ^= 1;
        assert_eq!(
            classify(&mut packet, &table),
            Arrival::Drop(Dropped::UnknownConnection)
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut datagram in prop::collection::vec(any::<u8>(), 0..1500)) {
            classify(&mut datagram, &Table::default());
        }
    }
}
