//! What is fuzzed: bytes of strangers and peers into what reads them, and what must hold whatever
//! they are. `fuzz/` has the programs, each of a line; the tests below run its corpus.
//!
//! In `fuzz/` quiche is built with its feature `fuzzing`: packets are not encrypted, so that what is
//! mutated are frames and not keys. In the tests they are, and most of what the targets `endpoint`
//! and `connection` make up is dropped; they show that the corpus is read and does no harm.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use crate::admission::{Admission, Verdict};
use crate::atom_cache::{self, AtomCache};
use crate::config::{self, Limits};
use crate::connection::{Connection, Happening, Quic, Train, hello, notice};
use crate::event::Event;
use crate::frame::{FrameReader, Frames, Prefix};
use crate::handle::{Closing, ConnectionCommand, Shared};
use crate::identity::{Choice, CookieAuthority, NodeIdentity, PeerCertificate};
use crate::ingress::{Arrival, MIN_INITIAL, classify};
use crate::layout::Role;
use crate::router::{Route, Router};
use crate::table::{ID_LEN, Table, random_id};
use crate::term::Terms;

/// A target: its name, which is that of its program and of its corpus, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("endpoint", endpoint),
    ("connection", connection),
    ("framing", framing),
    ("packets", packets),
    ("control", control),
    ("certificate", certificate),
];

fn identity(cookie: &[u8]) -> NodeIdentity {
    CookieAuthority::derive(cookie)
        .and_then(|authority| NodeIdentity::mint(&authority, "node@192.0.2.1"))
        .expect("an identity can be made")
}

static IDENTITY: LazyLock<NodeIdentity> = LazyLock::new(|| identity(b"fuzz"));
/// Of the cookie that is set for one other node, and of one that is set nowhere.
static OTHER: LazyLock<Arc<NodeIdentity>> = LazyLock::new(|| Arc::new(identity(b"other")));
static UNKNOWN: LazyLock<NodeIdentity> = LazyLock::new(|| identity(b"unknown"));

fn choice() -> Arc<Choice> {
    let choice = Choice::default();
    let others = vec![("other@192.0.2.9".to_owned(), Some(OTHER.clone()))];
    choice
        .set_own(&IDENTITY)
        .and_then(|()| choice.set_others(others, 0))
        .expect("the cookies can be set");
    Arc::new(choice)
}

thread_local! {
    /// What one test asks, another one need not answer.
    static CHOICE: Arc<Choice> = choice();
    static CONFIGS: RefCell<(quiche::Config, quiche::Config)> = {
        let config = |role| {
            let tls = match role {
                Role::Client => IDENTITY.client_context(),
                Role::Server => CHOICE.with(|choice| IDENTITY.server_context_or(choice)),
            };
            let tls = tls.expect("a context can be made");
            config::quic(&limits(), role, tls).expect("a configuration can be made")
        };
        RefCell::new((config(Role::Client), config(Role::Server)))
    };
}

const CLIENT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 1001));
const SERVER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 1002));

fn limits() -> Limits {
    Limits {
        max_frame: 1 << 20,
        user_streams: 8,
        ..Limits::default()
    }
}

/// One end of a connection, as the event thread would have it.
struct End {
    connection: Connection,
    train: Train,
    address: SocketAddr,
    over: bool,
}

impl End {
    /// Its certificate is the own cookie's, whatever authority it says that it goes by.
    fn client(called: &NodeIdentity) -> Option<Self> {
        let id = random_id().ok()?;
        let mut quic: Quic = CONFIGS
            .with_borrow_mut(|(config, _)| {
                quiche::connect_with_buffer_factory(None, &id, CLIENT, SERVER, config)
            })
            .ok()?;
        let tls: &mut boring::ssl::SslRef = quic.as_mut();
        tls.set_hostname(&called.server_name().ok()??).ok()?;
        Some(End::of(quic, Role::Client, CLIENT))
    }

    fn server() -> Option<Self> {
        let id = random_id().ok()?;
        let quic = CONFIGS.with_borrow_mut(|(_, config)| {
            quiche::accept_with_buf_factory(&id, None, SERVER, CLIENT, config)
        });
        let mut end = End::of(quic.ok()?, Role::Server, SERVER);
        end.connection.set_choice(CHOICE.with(Arc::clone));
        Some(end)
    }

    fn of(quic: Quic, role: Role, address: SocketAddr) -> Self {
        let limits = limits();
        let shared = Shared::new(role, &limits);
        End {
            connection: Connection::new(quic, role, &limits, shared, Instant::now()),
            train: Train::default(),
            address,
            over: false,
        }
    }

    /// A turn of the event thread: what there is to send.
    fn turn(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.connection.work(now);
        while let Some(happening) = self.connection.happening() {
            assert!(!self.over, "something came after the end: {happening:?}");
            match happening {
                Happening::Incoming | Happening::Event(Event::Connected) => {
                    self.connection.read_control();
                    self.connection.read_data();
                }
                Happening::Event(Event::Closed(_)) | Happening::Refused(_) | Happening::Stray => {
                    self.over = true
                }
                Happening::Event(_) | Happening::Session(..) => {}
            }
        }
        while self.connection.retired_id().is_some() {}
        assert!(self.connection.new_ids().len() <= 8);
        let mut out = Vec::new();
        let trains = if self.connection.is_held() { 0 } else { 64 };
        for _ in 0..trains {
            let Some(transmit) = self.connection.transmit(&mut self.train, 8) else {
                break;
            };
            let bytes = self.train.bytes(&transmit);
            out.extend(bytes.chunks(transmit.segment).map(<[u8]>::to_vec));
        }
        // Who goes by an authority that is not known is held until its next turn.
        let choice = CHOICE.with(Arc::clone);
        if choice.has_question() {
            choice.give_up(choice.question());
        }
        out
    }

    fn take(&mut self, datagrams: Vec<Vec<u8>>, from: SocketAddr) {
        for mut datagram in datagrams {
            self.connection.receive(&mut datagram, from, self.address);
        }
    }

    /// However it was treated, it comes to an end when it is told to.
    fn finish(mut self, now: Instant) {
        let asked = ConnectionCommand::Close(Closing::OwnerDown);
        self.connection.command(asked, now);
        for seconds in [0, 5, 10, 15] {
            self.turn(now + Duration::from_secs(seconds));
        }
        assert!(self.connection.is_over(), "it does not end");
    }
}

/// Datagrams of a stranger: lengths (2 bytes each) and what they hold. Those that open a connection
/// do, and the others that come after them are for that one.
pub fn endpoint(data: &[u8]) {
    let now = Instant::now();
    let Ok(admission) = Admission::new(&limits(), now) else {
        return;
    };
    let mut table = Table::default();
    let mut end: Option<End> = None;
    for chunk in chunks(data) {
        let mut datagram = chunk.to_vec();
        match classify(&mut datagram, &table) {
            Arrival::Initial { dcid, token, .. } => {
                assert!(datagram.len() >= MIN_INITIAL && dcid.len() >= 8);
                match admission.decide(CLIENT, &dcid, &token, now) {
                    Verdict::Accept(original) => assert!(original.is_none() && token.is_empty()),
                    Verdict::BadToken => assert!(!token.is_empty()),
                    other => panic!("{other:?} though nobody was there"),
                }
                if end.is_none() {
                    end = End::server();
                    assert!(table.insert(dcid, 0));
                }
            }
            Arrival::Known(_) => assert!(end.is_some()),
            Arrival::UnknownVersion { .. } => assert!(datagram.len() >= MIN_INITIAL),
            Arrival::Drop(_) => continue,
        }
        if let Some(end) = &mut end {
            end.take(vec![datagram], CLIENT);
            end.turn(now);
        }
    }
    if let Some(end) = end {
        end.finish(now);
    }
}

/// What a peer with a good certificate says after the handshake: frames, whole datagrams, and what
/// our side does meanwhile, one after the other.
pub fn connection(data: &[u8]) {
    let (Some(mut client), Some(mut server)) = (End::client(&IDENTITY), End::server()) else {
        return;
    };
    let mut now = Instant::now();
    let mut id = None;
    for _ in 0..8 {
        let said = client.turn(now);
        let short = said.iter().rfind(|datagram| datagram[0] & 0x80 == 0);
        id = short.map(|datagram| datagram[1..=ID_LEN].to_vec()).or(id);
        server.take(said, CLIENT);
        client.take(server.turn(now), SERVER);
    }
    let id = id.expect("the handshake is done");
    let mut number = 0x1000_u32;
    for chunk in chunks(data).take(64) {
        let Some((&what, bytes)) = chunk.split_first() else {
            continue;
        };
        match what % 8 {
            // Frames in a packet of the peer's.
            0..=3 => {
                number += 1 + u32::from(what >> 4);
                let mut datagram = [&[0x43][..], &id, &number.to_be_bytes(), bytes].concat();
                datagram.extend_from_slice(&[0; 16]);
                let from = if what & 8 == 0 {
                    CLIENT
                } else {
                    (CLIENT.ip(), 2000).into()
                };
                server.take(vec![datagram], from);
            }
            4 => server.take(vec![bytes.to_vec()], CLIENT),
            5 => {
                let mut framed = Vec::new();
                assert!(Prefix::Data.put(bytes.len(), &mut framed));
                framed.extend_from_slice(bytes);
                server.connection.send_data(framed.into());
            }
            6 => now += Duration::from_millis(10 * bytes.len() as u64),
            _ => server.connection.command(ConnectionCommand::Tick, now),
        }
        let said = server.turn(now);
        // The peer itself acknowledges what it gets, but says nothing of its own.
        if what & 4 == 0 {
            client.take(said, SERVER);
        }
    }
    server.finish(now);
}

/// A stream's bytes, cut as they may come: they give the same packets however they are cut.
pub fn framing(data: &[u8]) {
    let Some((&[kind, cut], bytes)) = data.split_first_chunk() else {
        return;
    };
    let prefix = if kind & 1 == 0 {
        Prefix::Control
    } else {
        Prefix::Data
    };
    let limit = 1 << (kind >> 3 & 15);
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut reader = FrameReader::new(prefix, limit);
        let mut got = Vec::new();
        for piece in pieces {
            let mut next = reader.take_tail();
            next.extend_from_slice(piece);
            // Behind a fence there may be more at once.
            loop {
                let Ok(cut) = reader.cut(next) else {
                    return (got, true);
                };
                got.extend(cut.frames.iter().map(<[u8]>::to_vec));
                let Some(fence) = cut.fence else { break };
                got.push(fence);
                next = reader.take_tail();
            }
            assert!(got.iter().all(|packet| packet.len() <= limit));
        }
        (got, false)
    };
    let (whole, refused) = read(&mut std::iter::once(bytes));
    let (pieces, refused_too) = read(&mut bytes.chunks(usize::from(cut).max(1)));
    assert_eq!(refused, refused_too);
    // What comes in one piece with a prefix over the limit is not looked at.
    assert!(if refused {
        pieces.starts_with(&whole)
    } else {
        pieces == whole
    });
}

/// Packets as the own VM gives them: a wrong one is sent wrongly, and does nothing else.
pub fn packets(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else {
        return;
    };
    let streams = usize::from(kind & 15) + 1;
    let (mut router, mut cache) = (Router::new(streams), AtomCache::new(streams));
    for chunk in chunks(rest) {
        let stream = match router.route_long(chunk, chunk.len()) {
            Route::Stream(index) => index,
            Route::Fence => 0,
        };
        assert!(stream < streams);
        if let Some(mut terms) = atom_cache::terms(chunk).and_then(Terms::of_tuple) {
            let _ = (terms.small_integer(), terms.sender(), terms.skip());
        }
        let mut packet = chunk.to_vec();
        if let Some(longer) = cache.put(stream, &mut packet) {
            packet.splice(..longer.replaced, longer.start);
        }
        // Only the header is another one.
        assert_eq!(atom_cache::terms(&packet), atom_cache::terms(chunk));
    }
}

/// Packets of the control stream that are our own.
pub fn control(data: &[u8]) {
    if let Some(said) = hello::read(data) {
        assert!((1..=16).contains(&said.data_streams));
        let again = said.packet();
        let mut reader = FrameReader::new(Prefix::Control, 100);
        let frames: Frames = reader.cut(again).expect("it is short").frames;
        assert_eq!(frames.iter().next().and_then(hello::read), Some(said));
    }
    if let Some(notice::Notice::Cancel(id, code)) = notice::read(data) {
        let again = notice::cancel(id, code);
        assert!(again.len() == data.len() + 2 && again[2..] == *data);
    }
}

/// A certificate, in DER: whatever is in it, the name is one that could be a node's.
pub fn certificate(data: &[u8]) {
    let Some(certificate) = PeerCertificate::read(data) else {
        return;
    };
    if let Some(name) = certificate.node() {
        assert!(name.chars().count() <= 255, "{name:?}");
        assert!(!name.chars().any(char::is_control), "{name:?}");
        let _ = certificate.is_for(name);
    }
    assert!(!certificate.whose().chars().any(char::is_control));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    assert_eq!(
        certificate.left(now).is_none(),
        certificate.out_of_time(now).is_some()
    );
}

/// Pieces, each behind its length (2 bytes), as far as they go.
fn chunks(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (piece, next) = rest.split_at(length);
        data = next;
        Some(piece)
    })
}

/// What to begin with, by target: one of each kind of thing that comes in good order.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let framed = |pieces: &[&[u8]]| -> Vec<u8> {
        let put = |piece: &&[u8]| [&(piece.len() as u16).to_be_bytes()[..], piece].concat();
        pieces.iter().flat_map(put).collect()
    };
    let first = |called: &NodeIdentity| -> Vec<Vec<u8>> {
        End::client(called).map_or(Vec::new(), |mut end| end.turn(Instant::now()))
    };
    let calls = [&IDENTITY, &**OTHER, &UNKNOWN].map(first);
    let calls = calls
        .each_ref()
        .map(|first| -> Vec<&[u8]> { first.iter().map(Vec::as_slice).collect() });
    let [first, other, unknown] = &calls;
    let probe = [&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8][..], &[7; 1200]].concat();
    // RFC 9000, section 19, each behind what `connection` reads.
    let frames: [&[u8]; 14] = [
        b"\0\x0a\0\x08\0\x06\x01\x04\0\0\0\x08",
        b"\0\x0a\x04\x07\0\0\0\x03\x83\x44\0",
        b"\0\x0e\x04\x07\x03\x80\0\0\0",
        b"\0\x0a\x14\x03abc\x0b\x02\x01x",
        b"\0\x04\x14\x01\x05\x05\x14\x01",
        b"\0\x02\x05\0\0\x05\x06\0\x04abcd\x01",
        b"\0\x10\x7f\xff\x11\x04\x7f\xff\x12\x10\x13\x10\x14\x20\x15\x04\x20\x16\x10",
        b"\0\x18\x01\0\x08abcdefgh0123456789abcdef",
        b"\0\x19\0\x1a01234567\x1b01234567",
        b"\x08\x1a76543210",
        b"\0\x31\x03abc\x30defg",
        b"\x05\x83\x44\0\x68\x03\x61\x02",
        b"\x06....................",
        b"\0\x1d\0\x03end\x1c\0\0\0",
    ];
    let stream = b"\0\0\0\x03abc\x80\0\0\0\0\0\0\0\0\0\x01x";
    let vm: [&[u8]; 4] = [
        b"\x83\x44\0\x68\x03\x61\x16Xw\x01a\0\0\0\x01\0\0\0\0\0\0\0\x01\x6a",
        b"\x83\x44\x02\x98\0\x05hello\x01\x03bye\x68\x03\x61\x02R\0X\x52\0\0\0\0\x01",
        b"\x83\x45\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\x68\x02\x61\x16",
        b"\x83\x46\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01rest",
    ];
    let said = hello::Hello {
        data_streams: 4,
        user_streams: 8,
    };
    let context = IDENTITY.client_context().map(|builder| builder.build());
    let certificate = context
        .ok()
        .and_then(|context| context.certificate()?.to_der().ok())
        .unwrap_or_default();
    vec![
        ("endpoint", framed(first)),
        ("endpoint", framed(&[&probe, &first.concat()])),
        ("endpoint", framed(other)),
        ("endpoint", framed(&[&unknown[..], &unknown[..]].concat())),
        ("connection", framed(&frames)),
        ("connection", framed(&frames[..3])),
        ("framing", [&[0xff, 3][..], stream].concat()),
        (
            "framing",
            [&[0xf0, 1][..], &said.packet(), &notice::cancel(4, 5)].concat(),
        ),
        ("packets", [&[3][..], &framed(&vm)].concat()),
        ("control", said.packet().split_off(2)),
        ("control", notice::cancel(20, 7).split_off(2)),
        ("certificate", certificate),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// For each target.
    const SHORT: Duration = Duration::from_secs(2);

    /// The first that is read of what a stranger says, after QUIC's own, is by which authority.
    #[test]
    fn what_strangers_say_is_read() {
        for (called, held) in [(&*IDENTITY, false), (&OTHER, false), (&UNKNOWN, true)] {
            let (mut client, mut server) = (End::client(called).unwrap(), End::server().unwrap());
            let now = Instant::now();
            server.take(client.turn(now), CLIENT);
            let answer = server.turn(now);
            assert_eq!(answer.is_empty(), held);
            // Nobody knows a better answer.
            assert!(!answer.is_empty() || !server.turn(now).is_empty());
        }
    }

    /// Every file of the corpus, whole, and then for a short time what is made of them: bytes changed here
    /// and there, the end cut off, the end of another one behind it.
    #[test]
    fn the_corpus_does_no_harm() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |n: usize| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state >> 16) as usize % n.max(1)
        };
        for (name, target) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
            let files = std::fs::read_dir(folder.join(name)).unwrap();
            let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
            files.sort();
            assert!(!files.is_empty(), "{name} has no corpus");
            let corpus: Vec<_> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
            corpus.iter().for_each(|data| target(data));
            let start = Instant::now();
            while start.elapsed() < SHORT {
                let mut data = corpus[below(corpus.len())].clone();
                for _ in 0..below(8) {
                    let at = below(data.len());
                    if let Some(byte) = data.get_mut(at) {
                        *byte = below(256) as u8;
                    }
                }
                data.truncate(below(2 * data.len()));
                let other = &corpus[below(corpus.len())];
                data.extend_from_slice(&other[below(4 * other.len()).min(other.len())..]);
                target(&data);
            }
        }
    }
}
