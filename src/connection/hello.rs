//! The first packet each way on the control stream: what the ends have to know of each other before
//! the distribution handshake.

use crate::frame::Prefix;
use crate::layout::MAX_DATA_STREAMS;

/// Goes up when a peer that does not know the new version must not go on.
const VERSION: u8 = 1;

/// Our hello, with its prefix.
pub fn packet(data_streams: usize) -> Vec<u8> {
    let data_streams = u8::try_from(data_streams).unwrap_or(1);
    let mut packet = Vec::new();
    // Two bytes always fit.
    let _ = Prefix::Control.put(2, &mut packet);
    packet.extend_from_slice(&[VERSION, data_streams]);
    packet
}

/// The number of data streams in the peer's hello. What follows it is for later versions to say.
pub fn read(packet: &[u8]) -> Option<usize> {
    match *packet {
        [VERSION, data_streams, ..] => {
            let data_streams = usize::from(data_streams);
            (1..=MAX_DATA_STREAMS as usize)
                .contains(&data_streams)
                .then_some(data_streams)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_says_how_many_data_streams() {
        for n in 1..=16 {
            assert_eq!(read(&packet(n)[2..]), Some(n));
        }
        assert_eq!(read(&[1, 4, 99]), Some(4), "later versions may say more");
        for bad in [&[][..], &[1], &[0, 4], &[2, 4], &[1, 0], &[1, 17]] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
