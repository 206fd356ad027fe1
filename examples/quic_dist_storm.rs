//! A storm of connection attempts on one node, from addresses that are not the sender's: for the
//! test suites.
//!
//!     quic_dist_storm PORT ADDRESSES PER_SECOND SECONDS
//!
//! It sends Initial packets that are good in every way (each with a ClientHello and connection ids
//! of its own) to 127.0.0.1:PORT, in turn from so many addresses of 127.1.0.0/16 and the following,
//! which are all this machine's own, and never answers. Its last line is what it sent:
//!
//!     sent DATAGRAMS in MILLISECONDS ms

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use boring::ssl::{SslContext, SslMethod};
use quic_dist_engine::config::ALPN;
use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};

type Failure = Box<dyn Error>;

const USAGE: &str = "usage: quic_dist_storm PORT ADDRESSES PER_SECOND SECONDS";
/// How many attempts are made beforehand: making one costs more than sending it.
const ATTEMPTS: usize = 10_000;

/// The first datagrams of so many attempts.
fn attempts(to: SocketAddr) -> Result<Vec<Vec<u8>>, Failure> {
    let tls = SslContext::builder(SslMethod::tls())?;
    let version = quiche::PROTOCOL_VERSION;
    let mut config = quiche::Config::with_boring_ssl_ctx_builder(version, tls)?;
    config.set_application_protos(&[ALPN])?;
    let from = SocketAddr::from(([127, 0, 0, 1], 1));
    let mut made = Vec::with_capacity(ATTEMPTS);
    for _ in 0..ATTEMPTS {
        let mut id = [0; 16];
        boring::rand::rand_bytes(&mut id)?;
        let id = quiche::ConnectionId::from_ref(&id);
        let mut quic = quiche::connect(None, &id, from, to, &mut config)?;
        let mut datagram = vec![0; 1200];
        let (length, _) = quic.send(&mut datagram)?;
        datagram.truncate(length);
        made.push(datagram);
    }
    Ok(made)
}

fn source(number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + number).into()
}

fn run() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or(USAGE);
    let to = SocketAddr::from(([127, 0, 0, 1], next()?.parse()?));
    let (addresses, rate, seconds): (u32, u32, u64) =
        (next()?.parse()?, next()?.parse()?, next()?.parse()?);
    let attempts = attempts(to)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
    println!("ready");
    let start = Instant::now();
    let (mut sent, mut number) = (0_u64, 0_u32);
    while start.elapsed() < Duration::from_secs(seconds) {
        // As many as are due: a pause is made up for, at twice the rate at most. All at once would not
        // be a storm but a buffer that overflows.
        let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        let due = due.min(sent + u64::from(rate / 500).max(1));
        while sent < due {
            let contents = &attempts[sent as usize % attempts.len()];
            let transmit = Transmit {
                destination: to,
                ecn: None,
                contents,
                segment_size: None,
                src_ip: Some(source(number)),
            };
            state.try_send(UdpSockRef::from(&socket), &transmit)?;
            number = (number + 1) % addresses;
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("sent {sent} in {} ms", start.elapsed().as_millis());
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quic_dist_storm: {error}");
            ExitCode::FAILURE
        }
    }
}
