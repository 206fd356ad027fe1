//! Which stream carries what, and how urgent it is: the stream layout of `docs/protocol.md`, as
//! the specification gives it.
//!
//! Stream 0 is the control stream. Data goes from the connection's client on streams 4, 8, 12, 16
//! and so on, and from its server on 1, 5, 9, 13 and so on, as many as each side says in its hello:
//! bidirectional by their ids (RFC 9000, section 2.1), but each is written by the side that opened
//! it only. The application's own streams come after those that their side has said it has (20 and
//! 17 with four data streams); its unidirectional ones are 2, 6, 10 and 3, 7, 11 and so on.

/// The control stream: the distribution handshake, then ticks.
pub const CONTROL: u64 = 0;
/// The data streams that a side may have.
pub const MAX_DATA_STREAMS: u64 = 16;

/// Urgency of the control stream (lower is served first).
pub const CONTROL_URGENCY: u8 = 0;

/// Urgency of a data stream with this many bytes to send, 4 to 6: the streams of short messages
/// are served before those of long ones.
pub fn data_urgency(queued: usize) -> u8 {
    match queued {
        0..=0xffff => 4,
        0x1_0000..=0xf_ffff => 5,
        _ => 6,
    }
}

/// Bidirectional streams that a client opens: the control stream and its data streams.
pub const CLIENT_STREAMS: u64 = 1 + MAX_DATA_STREAMS;
/// Bidirectional streams that a server opens: its data streams.
pub const SERVER_STREAMS: u64 = MAX_DATA_STREAMS;

/// The directions of a stream of the application's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Both.
    Bidi,
    /// From the side that opened it.
    Uni,
}

impl StreamKind {
    /// That of the stream with this id (RFC 9000, section 2.1).
    pub fn of(id: u64) -> StreamKind {
        if is_uni(id) {
            StreamKind::Uni
        } else {
            StreamKind::Bidi
        }
    }
}

/// Whether the stream with this id has one direction.
pub fn is_uni(id: u64) -> bool {
    id & 2 != 0
}

/// What kind of stream of the application's has this id, if one has; its opener has that many data
/// streams.
pub fn user_stream_kind(id: u64, data_streams: usize) -> Option<StreamKind> {
    let kind = StreamKind::of(id);
    let first = Role::opener(id).user_stream(data_streams, 0);
    (kind == StreamKind::Uni || id >= first).then_some(kind)
}

/// Which end of the QUIC connection a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It dialled.
    Client,
    /// It was dialled.
    Server,
}

impl Role {
    /// The other end.
    pub fn peer(self) -> Role {
        match self {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        }
    }

    /// The id of data stream `index` (0 to [`MAX_DATA_STREAMS`] - 1) that this side writes.
    pub fn data_stream(self, index: u64) -> u64 {
        match self {
            Role::Client => 4 * (index + 1),
            Role::Server => 4 * index + 1,
        }
    }

    /// The side that opens the stream with this id.
    pub fn opener(id: u64) -> Role {
        if id & 1 == 0 {
            Role::Client
        } else {
            Role::Server
        }
    }

    /// The id of bidirectional stream `index` of the application's, of this side.
    pub fn user_stream(self, data_streams: usize, index: u64) -> u64 {
        self.data_stream(data_streams as u64 + index)
    }

    /// The id of unidirectional stream `index` of this side.
    pub fn uni_stream(self, index: u64) -> u64 {
        4 * index
            + match self {
                Role::Client => 2,
                Role::Server => 3,
            }
    }

    /// The index of the data stream with this id, if this side writes one of that id.
    pub fn data_index(self, id: u64) -> Option<u64> {
        let index = match self {
            Role::Client if id.is_multiple_of(4) => (id / 4).checked_sub(1)?,
            Role::Server if id % 4 == 1 => id / 4,
            _ => return None,
        };
        (index < MAX_DATA_STREAMS).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_specification_s() {
        let ids = |role: Role| -> Vec<u64> {
            (0..MAX_DATA_STREAMS).map(|i| role.data_stream(i)).collect()
        };
        assert_eq!(ids(Role::Client)[..4], [4, 8, 12, 16]);
        assert_eq!(ids(Role::Server)[..4], [1, 5, 9, 13]);
    }

    #[test]
    fn the_application_s_streams_come_after() {
        let ids = |f: &dyn Fn(u64) -> u64| -> Vec<u64> { (0..3).map(f).collect() };
        assert_eq!(ids(&|i| Role::Client.user_stream(4, i)), [20, 24, 28]);
        assert_eq!(ids(&|i| Role::Server.user_stream(4, i)), [17, 21, 25]);
        assert_eq!(ids(&|i| Role::Client.user_stream(16, i)), [68, 72, 76]);
        assert_eq!(ids(&|i| Role::Client.uni_stream(i)), [2, 6, 10]);
        assert_eq!(ids(&|i| Role::Server.uni_stream(i)), [3, 7, 11]);
        for id in [0, 4, 16, 1, 13] {
            assert_eq!(user_stream_kind(id, 4), None, "{id}");
        }
        for id in [20, 24, 17, 21] {
            assert_eq!(user_stream_kind(id, 4), Some(StreamKind::Bidi), "{id}");
        }
        for id in [2, 3, 6] {
            assert_eq!(user_stream_kind(id, 4), Some(StreamKind::Uni), "{id}");
        }
    }

    #[test]
    fn ids_and_indexes_agree() {
        for role in [Role::Client, Role::Server] {
            let known: Vec<u64> = (0..100)
                .filter(|&id| role.data_index(id).is_some())
                .collect();
            for id in &known {
                let index = role.data_index(*id).unwrap();
                assert_eq!(role.data_stream(index), *id);
                assert_eq!(role.peer().data_index(*id), None);
            }
            assert_eq!(known.len() as u64, MAX_DATA_STREAMS);
        }
        assert_eq!(Role::Client.data_index(CONTROL), None);
    }
}
