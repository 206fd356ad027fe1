//! The first packet each way on the control stream: what the ends have to know of each other before
//! the distribution handshake.

use crate::frame::Prefix;
use crate::layout::MAX_DATA_STREAMS;

/// Goes up when a peer that does not know the new version must not go on.
const VERSION: u8 = 1;

/// What an end says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The data streams that it writes.
    pub data_streams: usize,
    /// The streams of the application's that its peer may have open.
    pub user_streams: usize,
}

impl Hello {
    /// The packet, with its prefix.
    pub fn packet(self) -> Vec<u8> {
        let data_streams = u8::try_from(self.data_streams).unwrap_or(1);
        let user_streams = u32::try_from(self.user_streams).unwrap_or(u32::MAX);
        let mut packet = Vec::new();
        // Six bytes always fit.
        let _ = Prefix::Control.put(6, &mut packet);
        packet.extend_from_slice(&[VERSION, data_streams]);
        packet.extend_from_slice(&user_streams.to_be_bytes());
        packet
    }
}

/// The peer's hello. What follows is for later versions to say; an early one says nothing of the
/// application's streams.
pub fn read(packet: &[u8]) -> Option<Hello> {
    let [VERSION, data_streams, rest @ ..] = packet else {
        return None;
    };
    let data_streams = usize::from(*data_streams);
    let user_streams = rest
        .first_chunk()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes) as usize);
    (1..=MAX_DATA_STREAMS as usize)
        .contains(&data_streams)
        .then_some(Hello {
            data_streams,
            user_streams,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_says_how_many_data_streams() {
        for data_streams in 1..=16 {
            let hello = Hello {
                data_streams,
                user_streams: 1000 * data_streams,
            };
            assert_eq!(read(&hello.packet()[2..]), Some(hello));
        }
        let short = Hello {
            data_streams: 4,
            user_streams: 0,
        };
        assert_eq!(read(&[1, 4]), Some(short));
        assert_eq!(read(&[1, 4, 99]), Some(short));
        let long = [1, 4, 0, 0, 0, 0, 99];
        assert_eq!(read(&long), Some(short), "later versions may say more");
        for bad in [&[][..], &[1], &[0, 4], &[2, 4], &[1, 0], &[1, 17]] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
