//! A man in the middle that knows the cookie, for tests of signal order: it stands between two
//! nodes, ends both QUIC connections, and passes the bytes of each stream on to the stream of the
//! same id, some streams later than others.
//!
//! ```text
//! quic_dist_holdproxy --listen 127.0.0.1:0 --to 127.0.0.1:PORT --dialling A@HOST --dialled B@HOST
//!                     [--hold STREAM:MS]... [--rotate MS] [--streams N] [--random SEED:MAXMS]
//! ```
//!
//! * The cookie is in the environment variable `HOLDPROXY_COOKIE`.
//! * `--hold 4:1500`: what comes on stream 4 goes on 1,500 ms later. A data stream is written by
//!   the side that opened it only, so the id says the direction: 4, 8, 12, ... are of the node that
//!   dials, 1, 5, 9, ... of the node that is dialled. The control stream (0) is held both ways.
//! * `--rotate MS`: in each period of that length, one in N data streams (`--streams`, 4 by
//!   default) of each side stands still, each in its turn.
//! * `--random SEED:MAXMS`: each piece that comes on a data stream takes up to MAXMS to go on. The
//!   order inside a stream is kept, as it is always.
//!
//! The first line of its output is `listening PORT`. It takes one connection, ends when that does
//! or when its input is closed, and says at the end how many pieces it passed on, and how many of
//! them late.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::process::exit;
use std::time::{Duration, Instant};

use boring::ssl::SslContextBuilder;
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};
use quic_dist_engine::config::ALPN;
use quic_dist_engine::identity::{CookieAuthority, NodeIdentity};
use quic_dist_engine::layout::{CLIENT_STREAMS, MAX_DATA_STREAMS, SERVER_STREAMS};

type Failure = Box<dyn Error>;

/// Of one stream, this much waits in here at most; then it is not read, and flow control stops its
/// sender.
const MAX_WAITING: usize = 8 << 20;
const STREAM_WINDOW: u64 = 4 << 20;
/// For all streams together: one that is held must not stop the others.
const CONNECTION_WINDOW: u64 = STREAM_WINDOW * 2 * MAX_DATA_STREAMS;
const PIECE: usize = 64 << 10;
const MAX_PACKET: usize = 16_383;
const CONTROL: u64 = 0;

fn main() {
    if let Err(failure) = run() {
        eprintln!("quic_dist_holdproxy: {failure}");
        exit(1);
    }
}

/// When what comes now on a stream goes on.
struct Plan {
    started: Instant,
    hold: HashMap<u64, Duration>,
    rotate: Option<Duration>,
    streams: u64,
    random: Option<(u64, Duration)>,
}

impl Plan {
    fn due(&mut self, id: u64, now: Instant) -> Instant {
        if let Some(&hold) = self.hold.get(&id) {
            return now + hold;
        }
        if id == CONTROL {
            return now;
        }
        if let Some((state, max)) = &mut self.random {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            return now + max.mul_f64((*state >> 40) as f64 / (1u64 << 24) as f64);
        }
        if let Some(period) = self.rotate {
            let turn = (now - self.started).as_micros() / period.as_micros();
            // 4, 8, 12, ... and 1, 5, 9, ...: neighbours have neighbouring turns.
            if u128::from(id / 4 % self.streams) == turn % u128::from(self.streams) {
                return self.started + period * u32::try_from(turn + 1).unwrap_or(u32::MAX);
            }
        }
        now
    }
}

/// One stream in one direction.
#[derive(Default)]
struct Pipe {
    waiting: VecDeque<Piece>,
    bytes: usize,
}

struct Piece {
    due: Instant,
    bytes: Vec<u8>,
    sent: usize,
    last: bool,
}

#[derive(Default)]
struct Counts {
    passed: u64,
    late: u64,
}

/// A connection to one of the nodes, with its socket.
struct Side {
    socket: UdpSocket,
    local: SocketAddr,
    quic: Option<quiche::Connection>,
    /// What the node sent, by stream.
    pipes: HashMap<u64, Pipe>,
}

impl Side {
    fn open(address: SocketAddr, poll: &Poll, token: Token) -> io::Result<Self> {
        let mut socket = UdpSocket::bind(address)?;
        let local = socket.local_addr()?;
        poll.registry()
            .register(&mut socket, token, Interest::READABLE)?;
        Ok(Side {
            socket,
            local,
            quic: None,
            pipes: HashMap::new(),
        })
    }

    /// Takes what the network has; the first datagram that may open a connection opens ours.
    fn receive(&mut self, buffer: &mut [u8], server: &mut quiche::Config) -> Result<(), Failure> {
        loop {
            let (length, from) = match self.socket.recv_from(buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // A node that is gone: the connection's timers, or the other node, end us.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error.into()),
            };
            let datagram = &mut buffer[..length];
            let quic = match &mut self.quic {
                Some(quic) => quic,
                None => {
                    let header = quiche::Header::from_slice(datagram, quiche::MAX_CONN_ID_LEN)?;
                    if header.ty != quiche::Type::Initial {
                        continue;
                    }
                    let quic = quiche::accept(&random_id()?, None, self.local, from, server)?;
                    self.quic.insert(quic)
                }
            };
            // What goes wrong ends the connection, and that is seen there.
            let to = self.local;
            let _ = quic.recv(datagram, quiche::RecvInfo { from, to });
        }
    }

    fn send(&mut self, buffer: &mut [u8]) -> Result<(), Failure> {
        let Some(quic) = &mut self.quic else {
            return Ok(());
        };
        while let Ok((length, info)) = quic.send(buffer) {
            // A full socket, or a node that is gone: a lost packet, for QUIC to repair.
            let _ = self.socket.send_to(&buffer[..length], info.to);
        }
        Ok(())
    }

    /// Reads the streams, and says when each piece goes on.
    fn read(&mut self, plan: &mut Plan, now: Instant, counts: &mut Counts) {
        let Some(quic) = &mut self.quic else {
            return;
        };
        for id in quic.readable() {
            let pipe = self.pipes.entry(id).or_default();
            while pipe.bytes < MAX_WAITING {
                let mut bytes = vec![0; PIECE];
                let Ok((length, last)) = quic.stream_recv(id, &mut bytes) else {
                    break;
                };
                bytes.truncate(length);
                bytes.shrink_to_fit();
                let before = pipe.waiting.back().map(|piece| piece.due);
                let due = plan.due(id, now).max(before.unwrap_or(now));
                counts.passed += 1;
                counts.late += u64::from(due > now);
                pipe.bytes += length;
                pipe.waiting.push_back(Piece {
                    due,
                    bytes,
                    sent: 0,
                    last,
                });
                if last {
                    break;
                }
            }
        }
    }

    /// Passes on what is due, as far as flow control goes.
    fn pass_on(&mut self, to: &mut Side, now: Instant) {
        let Some(quic) = to.quic.as_mut().filter(|quic| quic.is_established()) else {
            return;
        };
        for (&id, pipe) in &mut self.pipes {
            while let Some(piece) = pipe.waiting.front_mut().filter(|piece| piece.due <= now) {
                let rest = &piece.bytes[piece.sent..];
                match quic.stream_send(id, rest, piece.last) {
                    Ok(n) => {
                        piece.sent += n;
                        pipe.bytes -= n;
                        if n < rest.len() {
                            break;
                        }
                        pipe.waiting.pop_front();
                    }
                    Err(_) => break,
                }
            }
        }
    }

    /// When the next of what was not due yet will be. What was waits for the network.
    fn next_due(&self, passed_on: Instant) -> Option<Instant> {
        self.pipes
            .values()
            .filter_map(|pipe| Some(pipe.waiting.front()?.due))
            .filter(|&due| due > passed_on)
            .min()
    }

    fn has_ended(&self) -> bool {
        self.quic.as_ref().is_some_and(|quic| {
            quic.is_closed() || quic.is_draining() || quic.local_error().is_some()
        })
    }
}

fn run() -> Result<(), Failure> {
    let (listen, to, [dialling, dialled], mut plan) = arguments()?;
    let cookie = std::env::var("HOLDPROXY_COOKIE")?;
    // Each node meets the other's name: who knows the cookie can sign any.
    let authority = CookieAuthority::derive(cookie.as_bytes())?;
    let as_dialled = NodeIdentity::mint(&authority, &dialled)?;
    let as_dialling = NodeIdentity::mint(&authority, &dialling)?;
    let mut server = config(as_dialled.server_context()?, CLIENT_STREAMS)?;
    let mut client = config(as_dialling.client_context()?, SERVER_STREAMS)?;

    let mut poll = Poll::new()?;
    let mut near = Side::open(listen, &poll, Token(0))?;
    let mut far = Side::open(SocketAddr::new(listen.ip(), 0), &poll, Token(1))?;
    println!("listening {}", near.local.port());
    std::thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        exit(0);
    });

    let mut events = Events::with_capacity(8);
    let mut buffer = vec![0; 65_535];
    let mut counts = Counts::default();
    let mut passed_on = Instant::now();
    loop {
        let now = Instant::now();
        let wake = [&near, &far]
            .into_iter()
            .flat_map(|side| {
                let timer = side.quic.as_ref().and_then(|quic| quic.timeout_instant());
                [timer, side.next_due(passed_on)]
            })
            .flatten()
            .min();
        // Rounded up: a poll that ends just before the time would end again and again.
        let wait = wake.map(|at| at.saturating_duration_since(now) + Duration::from_micros(500));
        match poll.poll(&mut events, wait) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => result?,
        }
        for side in [&mut near, &mut far] {
            side.receive(&mut buffer, &mut server)?;
        }
        if near.quic.is_some() && far.quic.is_none() {
            let quic = quiche::connect(None, &random_id()?, far.local, to, &mut client)?;
            far.quic = Some(quic);
        }
        let now = Instant::now();
        for side in [&mut near, &mut far] {
            if let Some(quic) = &mut side.quic
                && quic.timeout_instant().is_some_and(|at| at <= now)
            {
                quic.on_timeout();
            }
            side.read(&mut plan, now, &mut counts);
        }
        near.pass_on(&mut far, now);
        far.pass_on(&mut near, now);
        passed_on = now;
        let ended = near.has_ended() || far.has_ended();
        if ended {
            end(&mut near, &mut far);
        }
        for side in [&mut near, &mut far] {
            side.send(&mut buffer[..MAX_PACKET])?;
        }
        if ended {
            println!("passed {} late {}", counts.passed, counts.late);
            return Ok(());
        }
    }
}

/// Tells each node how the other's connection ended.
fn end(near: &mut Side, far: &mut Side) {
    let reason = |side: &Side| {
        let quic = side.quic.as_ref()?;
        let error = quic.peer_error().or_else(|| quic.local_error())?;
        Some((error.is_app, error.error_code, error.reason.clone()))
    };
    let reasons = [reason(far), reason(near)];
    for (side, reason) in [near, far].into_iter().zip(reasons) {
        if let (Some(quic), Some((is_app, code, text))) = (&mut side.quic, reason) {
            // It fails for the one that has ended.
            let _ = quic.close(is_app, code, &text);
        }
    }
}

fn config(tls: SslContextBuilder, streams: u64) -> Result<quiche::Config, quiche::Error> {
    let mut config = quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls)?;
    config.set_application_protos(&[ALPN])?;
    config.set_max_recv_udp_payload_size(65_527);
    config.set_max_send_udp_payload_size(MAX_PACKET);
    config.discover_pmtu(true);
    config.set_initial_max_data(CONNECTION_WINDOW);
    config.set_max_connection_window(CONNECTION_WINDOW);
    config.set_initial_max_stream_data_bidi_local(STREAM_WINDOW);
    config.set_initial_max_stream_data_bidi_remote(STREAM_WINDOW);
    config.set_max_stream_window(STREAM_WINDOW);
    config.set_initial_max_streams_bidi(streams);
    config.enable_pacing(false);
    Ok(config)
}

fn random_id() -> Result<quiche::ConnectionId<'static>, Failure> {
    let mut id = vec![0; 16];
    boring::rand::rand_bytes(&mut id)?;
    Ok(quiche::ConnectionId::from_vec(id))
}

fn arguments() -> Result<(SocketAddr, SocketAddr, [String; 2], Plan), Failure> {
    let mut listen = None;
    let mut to = None;
    let mut names = [String::new(), String::new()];
    let mut plan = Plan {
        started: Instant::now(),
        hold: HashMap::new(),
        rotate: None,
        streams: 4,
        random: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} takes a value"))?;
        let pair = |value: &str| -> Result<(u64, Duration), Failure> {
            let (first, millis) = value
                .split_once(':')
                .ok_or(format!("{name} takes two numbers with a colon between"))?;
            Ok((first.parse()?, Duration::from_millis(millis.parse()?)))
        };
        match name.as_str() {
            "--listen" => listen = Some(value.parse()?),
            "--to" => to = Some(value.parse()?),
            "--dialling" => names[0] = value,
            "--dialled" => names[1] = value,
            "--hold" => plan.hold.extend([pair(&value)?]),
            "--rotate" => plan.rotate = Some(Duration::from_millis(value.parse::<u64>()?.max(1))),
            "--streams" => plan.streams = value.parse::<u64>()?.max(1),
            "--random" => plan.random = Some(pair(&value)?),
            _ => return Err(format!("no option is called {name}").into()),
        }
    }
    Ok((
        listen.ok_or("--listen is missing")?,
        to.ok_or("--to is missing")?,
        names,
        plan,
    ))
}
