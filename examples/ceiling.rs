//! How fast the engine alone can be: one connection between two processes on loopback.
//!
//! `ceiling [--mtu N] [--seconds N]` starts itself a second time as the receiver, sends packets of
//! 64 KiB, as the VM does, on the data stream for as long as asked and half a second more, and prints MB/s as the receiver counted
//! them after that half second.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use quic_dist_engine::identity::{CookieAuthority, NodeIdentity};
use quic_dist_engine::{Batch, CloseReason, Endpoint, Event, Events, Handle, Limits, SendStatus};

/// As in the NIF.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PACKET: usize = 64 << 10;
/// Packets that are given to the engine at once.
const BATCH: usize = 4;
/// What comes so soon after the first is not counted, as in the rows of the benchmark.
const WARM_UP: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(20);

struct Channels {
    incoming: Sender<(Handle, Receiver<Event>)>,
}

impl Events for Channels {
    type Peer = Sender<Event>;

    fn incoming(&mut self, handle: &Handle, _: SocketAddr) -> Sender<Event> {
        let (sender, events) = unbounded();
        // Nobody listens when the measurement is over.
        let _ = self.incoming.send((handle.clone(), events));
        sender
    }

    fn refused(&mut self, from: SocketAddr, reason: &CloseReason) {
        eprintln!("{from} was refused: {reason}");
    }

    fn ended(&mut self, error: Option<String>) {
        if let Some(error) = error {
            eprintln!("the endpoint ended: {error}");
        }
    }

    fn event(&mut self, peer: &mut Sender<Event>, event: Event) {
        // As above.
        let _ = peer.send(event);
    }
}

type Failure = Box<dyn std::error::Error>;
type Incoming = Receiver<(Handle, Receiver<Event>)>;

fn open(mtu: usize) -> Result<(Endpoint<Channels>, Incoming), Failure> {
    let limits = Limits {
        max_udp_payload: mtu,
        ..Limits::default()
    };
    let identity = NodeIdentity::mint(&CookieAuthority::derive(b"ceiling")?, "ceiling@127.0.0.1")?;
    let (sender, incoming) = unbounded();
    let channels = Channels { incoming: sender };
    let endpoint = Endpoint::open("127.0.0.1:0".parse()?, Arc::new(identity), limits, channels)?;
    Ok((endpoint, incoming))
}

/// Prints its port, then takes one connection, and prints what it counted when that ends.
fn receive(mtu: usize) -> Result<(), Failure> {
    let (endpoint, incoming) = open(mtu)?;
    println!("{}", endpoint.local().port());
    std::io::stdout().flush()?;
    let (handle, events) = incoming.recv_timeout(PATIENCE)?;
    handle.read_control().map_err(|e| format!("{e:?}"))?;
    handle.read_data().map_err(|e| format!("{e:?}"))?;
    let mut bytes = 0;
    let mut packets = 0;
    let mut first = None;
    let mut warm = None;
    let mut last = Instant::now();
    loop {
        match events.recv_timeout(PATIENCE)? {
            Event::Data(got) => {
                last = Instant::now();
                if warm.is_some() {
                    bytes += got.len();
                    packets += got.iter().count();
                } else if last - *first.get_or_insert(last) >= WARM_UP {
                    warm = Some(last);
                }
                handle.consumed(got.len());
            }
            Event::Closed(reason) => {
                let took = last - warm.ok_or("too little came")?;
                let rate = bytes as f64 / 1e6 / took.as_secs_f64();
                println!("{rate:.0} MB/s: {packets} packets of 64 KiB in {took:.2?} ({reason})");
                return Ok(());
            }
            _ => {}
        }
    }
}

fn send(mtu: usize, seconds: u64) -> Result<(), Failure> {
    let mut receiver = Command::new(std::env::current_exe()?)
        .args(["--receive", "--mtu", &mtu.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(receiver.stdout.take().ok_or("no pipe")?).lines();
    let port: u16 = lines.next().ok_or("the receiver died")??.parse()?;
    let (endpoint, _incoming) = open(mtu)?;
    let (sender, events) = unbounded();
    let handle = endpoint
        .connect(SocketAddr::from(([127, 0, 0, 1], port)), None, |_| sender)
        .map_err(|e| format!("{e:?}"))?;
    match events.recv_timeout(PATIENCE)? {
        Event::Connected => handle.read_control().map_err(|e| format!("{e:?}"))?,
        other => return Err(format!("not connected: {other:?}").into()),
    }
    // Nothing comes, but who takes no data is sent 2 MiB at most, acknowledgements included (`src/connection/early.rs`).
    handle.read_data().map_err(|e| format!("{e:?}"))?;
    let bytes = Bytes::from(vec![0x5a; PACKET]);
    let start = Instant::now();
    while start.elapsed() < WARM_UP + Duration::from_secs(seconds) {
        let mut batch = Batch::default();
        for _ in 0..BATCH {
            if !batch.begin(PACKET, PACKET) {
                return Err("the packet has no prefix".into());
            }
            batch.add_part(bytes.clone());
        }
        let status = handle.send_data(batch).map_err(|e| format!("{e:?}"))?;
        if status == SendStatus::Busy {
            // The receiver may not get a processor for a while, which is told too.
            loop {
                match events.recv_timeout(PATIENCE)? {
                    Event::Writable => break,
                    Event::Closed(reason) => return Err(format!("closed: {reason}").into()),
                    _ => {}
                }
            }
        }
    }
    let info = handle
        .info()
        .map_err(|e| format!("{e:?}"))?
        .recv_timeout(PATIENCE)?;
    handle.close("measured");
    println!(
        "MTU {}, smoothed RTT {:?}, {} of {} packets lost",
        info.mtu, info.srtt, info.packets_lost, info.packets_sent
    );
    for line in lines {
        println!("{}", line?);
    }
    receiver.wait()?;
    Ok(())
}

fn main() -> Result<(), Failure> {
    let (mut mtu, mut seconds, mut receiver) = (16_000, 5, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or("a value is missing");
        match argument.as_str() {
            "--mtu" => mtu = value()?.parse()?,
            "--seconds" => seconds = value()?.parse()?,
            "--receive" => receiver = true,
            _ => return Err("usage: ceiling [--mtu N] [--seconds N]".into()),
        }
    }
    if receiver {
        receive(mtu)
    } else {
        send(mtu, seconds)
    }
}
