//! A QUIC client that misbehaves towards a real node, for the test suites.
//!
//!     quic_dist_badpeer MODE HOST PORT COOKIE [--name NODE] [--stream ID] [--timeout SECONDS] [--early]
//!
//! It dials the node, does what MODE says, and prints what the node did about it in one line:
//!
//!     application CODE TEXT   CONNECTION_CLOSE by the application (CODE as 0x1)
//!     alert NUMBER            the TLS handshake was refused
//!     transport CODE TEXT     CONNECTION_CLOSE by QUIC
//!     finished                the node ended its control stream, as it does in an orderly end
//!     no-credit STREAM        the stream could not be opened: the node gave no credit for it
//!     nobody                  the port is closed
//!     timeout                 nothing of these came in time (20 s)
//!
//! It exits with 0, after `timeout` with 2, and with 1 when it could not do what was asked (the
//! reason is on stderr). Modes that need an accepted node do the distribution handshake before
//! (`--early`: they don't).

use std::error::Error;
use std::io::ErrorKind;
use std::net::{ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use boring::hash::{MessageDigest, hash};
use boring::ssl::{SslContext, SslContextBuilder, SslMethod, SslVerifyMode};
use quic_dist_engine::config::ALPN;
use quic_dist_engine::identity::{CookieAuthority, NodeIdentity};

type Failure = Box<dyn Error>;

const USAGE: &str = "usage: quic_dist_badpeer MODE HOST PORT COOKIE [--name NODE] [--stream ID] \
[--timeout SECONDS] [--early]
MODE: no-certificate wrong-cookie wrong-alpn garbage-control long-prefix wrong-stream \
stall-handshake silent half-name fin-inside reset-stream";

/// What a node must be able to do for any release from OTP 25 on (`dist_util`'s mandatory flags).
const FLAGS: u64 = 0x4 // extended references
    | 0x10 // fun tags
    | 0x80 // new fun tags
    | 0x100 // extended pids and ports
    | 0x200 // export pointers
    | 0x400 // bit strings
    | 0x800 // new floats
    | 0x2000 // the atom cache
    | 0x1_0000 // UTF-8 atoms
    | 0x2_0000 // maps
    | 0x4_0000 // big creation
    | 0x100_0000 // the handshake of OTP 23
    | 0x200_0000 // unlink ids
    | 0x4_0000_0000; // new containers of OTP 26
const CREATION: u32 = 0x1234_5678;
const CHALLENGE: u32 = 0x0bad_cafe;

struct Options {
    mode: String,
    host: String,
    port: u16,
    cookie: String,
    name: String,
    stream: u64,
    timeout: Duration,
    early: bool,
}

fn options() -> Result<Options, Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or(USAGE);
    let mut options = Options {
        mode: next()?,
        host: next()?,
        port: next()?.parse()?,
        cookie: next()?,
        name: "badpeer@127.0.0.1".into(),
        stream: 8,
        timeout: Duration::from_secs(20),
        early: false,
    };
    while let Ok(argument) = next() {
        match argument.as_str() {
            "--name" => options.name = next()?,
            "--stream" => options.stream = next()?.parse()?,
            "--timeout" => options.timeout = Duration::from_secs(next()?.parse()?),
            "--early" => options.early = true,
            _ => return Err(USAGE.into()),
        }
    }
    Ok(options)
}

/// How it ended.
enum End {
    Told(String),
    Timeout,
}

struct Peer {
    socket: UdpSocket,
    quic: quiche::Connection,
    deadline: Instant,
    /// It receives, and sends nothing more.
    mute: bool,
    control: Vec<u8>,
    finished: bool,
    nobody: bool,
}

impl Peer {
    fn new(options: &Options) -> Result<Self, Failure> {
        let to = (options.host.as_str(), options.port)
            .to_socket_addrs()?
            .next()
            .ok_or("the host has no address")?;
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        // Connected, the socket reports a closed port.
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        let mut config =
            quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls(options)?)?;
        let alpn = if options.mode == "wrong-alpn" {
            b"h3"
        } else {
            ALPN
        };
        config.set_application_protos(&[alpn])?;
        config.set_initial_max_data(1 << 20);
        config.set_initial_max_stream_data_bidi_local(1 << 20);
        config.set_initial_max_stream_data_bidi_remote(1 << 20);
        config.set_initial_max_streams_bidi(4);
        let mut id = [0; 16];
        boring::rand::rand_bytes(&mut id)?;
        let id = quiche::ConnectionId::from_ref(&id);
        Ok(Peer {
            quic: quiche::connect(None, &id, socket.local_addr()?, to, &mut config)?,
            socket,
            deadline: Instant::now() + options.timeout,
            mute: false,
            control: Vec::new(),
            finished: false,
            nobody: false,
        })
    }

    fn flush(&mut self) {
        let mut buffer = [0; 1500];
        while let Ok((length, _)) = self.quic.send(&mut buffer) {
            if let Err(error) = self.socket.send(&buffer[..length]) {
                self.nobody |= error.kind() == ErrorKind::ConnectionRefused;
            }
        }
    }

    fn turn(&mut self) -> Result<(), Failure> {
        if !self.mute {
            self.flush();
        }
        let mut buffer = vec![0; 65_535];
        match self.socket.recv(&mut buffer) {
            Ok(length) => {
                let info = quiche::RecvInfo {
                    from: self.socket.peer_addr()?,
                    to: self.socket.local_addr()?,
                };
                // What it cannot take ends the connection inside quiche, and the deadline us.
                let _ = self.quic.recv(&mut buffer[..length], info);
            }
            Err(error) => self.nobody |= error.kind() == ErrorKind::ConnectionRefused,
        }
        if self.quic.timeout() == Some(Duration::ZERO) {
            self.quic.on_timeout();
        }
        while let Some(stream) = self.quic.stream_readable_next() {
            while let Ok((length, last)) = self.quic.stream_recv(stream, &mut buffer) {
                if stream == 0 {
                    self.control.extend_from_slice(&buffer[..length]);
                    self.finished |= last;
                }
            }
        }
        Ok(())
    }

    /// Whether the node ended it.
    fn end(&self) -> Option<End> {
        if let Some(error) = self.quic.peer_error() {
            let text = String::from_utf8_lossy(&error.reason);
            let code = error.error_code;
            return Some(End::Told(match (error.is_app, code) {
                (true, _) => format!("application {code:#x} {text}"),
                (false, 0x100..=0x1ff) => format!("alert {}", code - 0x100),
                (false, _) => format!("transport {code:#x} {text}"),
            }));
        }
        if self.finished {
            return Some(End::Told("finished".into()));
        }
        if self.nobody {
            return Some(End::Told("nobody".into()));
        }
        (Instant::now() >= self.deadline).then_some(End::Timeout)
    }

    /// Goes on until the condition holds (`None`), or the node ends it.
    fn until(&mut self, condition: impl Fn(&mut Self) -> bool) -> Result<Option<End>, Failure> {
        while !condition(self) {
            if let Some(end) = self.end() {
                return Ok(Some(end));
            }
            self.turn()?;
        }
        Ok(None)
    }

    fn wait_for_end(&mut self) -> Result<End, Failure> {
        let end = self.until(|_| false)?;
        // Polite at least in this: the node need not wait for us.
        if !self.mute {
            let _ = self.quic.close(true, 0, b"");
            self.flush();
        }
        Ok(end.unwrap_or(End::Timeout))
    }

    fn send_control(&mut self, packet: &[u8]) -> Result<(), Failure> {
        let length = u16::try_from(packet.len())?.to_be_bytes();
        self.quic
            .stream_send(0, &[&length[..], packet].concat(), false)?;
        Ok(())
    }

    /// The next packet of the control stream; `Err` when the node ends it first.
    fn control(&mut self) -> Result<Result<Vec<u8>, End>, Failure> {
        loop {
            if let Some(prefix) = self.control.first_chunk::<2>() {
                let end = 2 + usize::from(u16::from_be_bytes(*prefix));
                if end > 2 && self.control.len() >= end {
                    return Ok(Ok(self.control.drain(..end).skip(2).collect()));
                }
                if end == 2 {
                    // A tick.
                    self.control.drain(..2);
                    continue;
                }
            }
            let had = self.control.len();
            if let Some(end) = self.until(|peer| peer.control.len() > had)? {
                return Ok(Err(end));
            }
        }
    }

    /// The distribution handshake of `erl_dist_protocol`, to its end.
    fn become_a_node(&mut self, options: &Options) -> Result<Option<End>, Failure> {
        self.send_control(&send_name(&options.name)?)?;
        // The node's hello.
        if let Err(end) = self.control()? {
            return Ok(Some(end));
        }
        let status = match self.control()? {
            Ok(status) => status,
            Err(end) => return Ok(Some(end)),
        };
        if !status.starts_with(b"sok") {
            return Err(format!("status {}", String::from_utf8_lossy(&status)).into());
        }
        let challenge = match self.control()? {
            Ok(challenge) => challenge,
            Err(end) => return Ok(Some(end)),
        };
        // 'N', flags (8), challenge (4), creation (4), name.
        let challenge = challenge
            .strip_prefix(b"N")
            .and_then(|rest| rest.get(8..12))
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_be_bytes)
            .ok_or("the challenge is none")?;
        let digest = digest(&options.cookie, challenge)?;
        self.send_control(&[b"r", &CHALLENGE.to_be_bytes()[..], &digest].concat())?;
        let ack = match self.control()? {
            Ok(ack) => ack,
            Err(end) => return Ok(Some(end)),
        };
        let expected = [b"a", &self::digest(&options.cookie, CHALLENGE)?[..]].concat();
        if ack != expected {
            return Err("the node's digest is wrong".into());
        }
        Ok(None)
    }
}

fn tls(options: &Options) -> Result<SslContextBuilder, Failure> {
    let cookie = match options.mode.as_str() {
        "no-certificate" => {
            let mut tls = SslContext::builder(SslMethod::tls())?;
            tls.set_verify(SslVerifyMode::NONE);
            return Ok(tls);
        }
        "wrong-cookie" => format!("{}, but another one", options.cookie),
        _ => options.cookie.clone(),
    };
    let authority = CookieAuthority::derive(cookie.as_bytes())?;
    let mut tls = NodeIdentity::mint(&authority, &options.name)?.client_context()?;
    if options.mode == "wrong-cookie" {
        // The node is to be the one that refuses.
        tls.set_verify(SslVerifyMode::NONE);
    }
    Ok(tls)
}

fn send_name(name: &str) -> Result<Vec<u8>, Failure> {
    Ok([
        b"N",
        &FLAGS.to_be_bytes()[..],
        &CREATION.to_be_bytes(),
        &u16::try_from(name.len())?.to_be_bytes(),
        name.as_bytes(),
    ]
    .concat())
}

fn digest(cookie: &str, challenge: u32) -> Result<Vec<u8>, Failure> {
    let text = format!("{cookie}{challenge}");
    Ok(hash(MessageDigest::md5(), text.as_bytes())?.to_vec())
}

fn run(options: &Options) -> Result<End, Failure> {
    let mut peer = Peer::new(options)?;
    if options.mode == "stall-handshake" {
        peer.flush();
        peer.mute = true;
        return peer.wait_for_end();
    }
    if let Some(end) = peer.until(|peer| peer.quic.is_established())? {
        return Ok(end);
    }
    let as_a_node = matches!(
        options.mode.as_str(),
        "long-prefix" | "wrong-stream" | "fin-inside" | "reset-stream"
    );
    if !matches!(
        options.mode.as_str(),
        "no-certificate" | "wrong-cookie" | "wrong-alpn" | "silent"
    ) {
        // Hello: version 1, four data streams.
        peer.send_control(&[1, 4])?;
    }
    if as_a_node
        && !options.early
        && let Some(end) = peer.become_a_node(options)?
    {
        return Ok(end);
    }
    match options.mode.as_str() {
        // The node has not judged our certificate yet; it will.
        "no-certificate" | "wrong-cookie" | "wrong-alpn" | "silent" => {}
        "garbage-control" => {
            let mut garbage = [0; 300];
            boring::rand::rand_bytes(&mut garbage)?;
            peer.send_control(&garbage)?;
            peer.quic.stream_send(0, &garbage, false)?;
        }
        "half-name" => {
            let name = send_name(&options.name)?;
            let length = u16::try_from(name.len())?.to_be_bytes();
            peer.quic.stream_send(0, &length, false)?;
            peer.quic.stream_send(0, &name[..name.len() / 2], false)?;
        }
        "long-prefix" => {
            peer.quic.stream_send(4, &[0xff; 4], false)?;
        }
        "wrong-stream" => {
            let packet = b"\0\0\0\x08surprise";
            match peer.quic.stream_send(options.stream, packet, false) {
                Ok(_) => {}
                Err(quiche::Error::StreamLimit) => {
                    return Ok(End::Told(format!("no-credit {}", options.stream)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        "fin-inside" => {
            peer.quic.stream_send(4, &[0, 0, 0, 9, 1, 2], true)?;
        }
        "reset-stream" => {
            peer.quic.stream_send(4, &[0, 0, 0, 9, 1, 2], false)?;
            peer.flush();
            peer.quic.stream_shutdown(4, quiche::Shutdown::Write, 77)?;
        }
        _ => return Err(USAGE.into()),
    }
    peer.wait_for_end()
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(End::Told(what)) => {
            println!("{what}");
            ExitCode::SUCCESS
        }
        Ok(End::Timeout) => {
            println!("timeout");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
