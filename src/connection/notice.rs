//! What the ends tell each other on the control stream besides the distribution's own messages, all
//! of which begin with a letter.

use crate::frame::Prefix;

/// Tells our messages from the distribution's.
const MARK: u8 = 0xff;
const CANCEL: u8 = 1;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A stream of the application's is to be cut, with this code.
    Cancel(u64, u64),
    /// A later version's.
    Unknown,
}

/// The message, with its prefix, that asks the peer to cut a stream.
pub fn cancel(id: u64, code: u64) -> Vec<u8> {
    let mut packet = Vec::with_capacity(20);
    // Eighteen bytes always fit.
    let _ = Prefix::Control.put(18, &mut packet);
    packet.extend_from_slice(&[MARK, CANCEL]);
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(&code.to_be_bytes());
    packet
}

/// What a packet of the control stream says, if it is one of ours.
pub fn read(packet: &[u8]) -> Option<Notice> {
    let (&MARK, rest) = packet.split_first()? else {
        return None;
    };
    let notice = match rest.split_first_chunk::<9>() {
        Some(([CANCEL, id @ ..], code)) => match <[u8; 8]>::try_from(code) {
            Ok(code) => Notice::Cancel(u64::from_be_bytes(*id), u64::from_be_bytes(code)),
            Err(_) => Notice::Unknown,
        },
        _ => Notice::Unknown,
    };
    Some(notice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_says_what_it_was_made_to() {
        let packet = cancel(20, 1 << 40);
        assert_eq!(read(&packet[2..]), Some(Notice::Cancel(20, 1 << 40)));
    }

    #[test]
    fn others_are_not_ours_or_not_known() {
        for theirs in [&b"Nname"[..], b"sok", b""] {
            assert_eq!(read(theirs), None);
        }
        for unknown in [
            &[0xff][..],
            &[0xff, 2, 1],
            &[0xff, 1, 5],
            &cancel(1, 2)[2..19],
        ] {
            assert_eq!(read(unknown), Some(Notice::Unknown), "{unknown:?}");
        }
    }
}
