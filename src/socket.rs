//! The UDP socket: trains out, batches in (`quinn-udp`: GSO, GRO, `recvmmsg`, don't-fragment), and
//! what the operating system reports about peers (ICMP, by the socket's error queue).

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::libc;
use parking_lot::RwLock;
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};

use crate::connection::Transmit;

/// Datagram buffers per system call. With GRO each may hold a whole train.
const BUFFERS: usize = 4;
const BUFFER: usize = 65_535;
/// The kernel is asked for this much buffer in each direction; it gives what its limits allow.
const KERNEL_BUFFER: usize = 4 << 20;

/// See the module's documentation.
pub(crate) struct Socket {
    io: UdpSocket,
    /// What has been found out about sending; behind a lock only to be found out anew.
    state: RwLock<UdpSocketState>,
    local: SocketAddr,
}

/// What one receiving call gave.
#[derive(Default)]
pub(crate) struct Batch {
    buffers: Vec<Box<[u8]>>,
    metas: [RecvMeta; BUFFERS],
}

impl Batch {
    pub fn new() -> Self {
        Batch {
            buffers: (0..BUFFERS)
                .map(|_| vec![0; BUFFER].into_boxed_slice())
                .collect(),
            metas: [RecvMeta::default(); BUFFERS],
        }
    }

    /// How many buffers one call fills at most.
    pub fn capacity(&self) -> usize {
        BUFFERS.min(quinn_udp::BATCH_SIZE)
    }

    /// The datagrams of the first `count` buffers, each with its source, and its destination where
    /// the system tells it.
    pub fn datagrams(
        &mut self,
        count: usize,
    ) -> impl Iterator<Item = (&mut [u8], SocketAddr, Option<IpAddr>)> {
        self.buffers
            .iter_mut()
            .zip(&self.metas)
            .take(count)
            .flat_map(|(buffer, meta)| {
                buffer[..meta.len]
                    .chunks_mut(meta.stride.max(1))
                    .map(|datagram| (datagram, meta.addr, meta.dst_ip))
            })
    }
}

impl Socket {
    /// Binds the socket.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let io = bind(address)?;
        let state = UdpSocketState::new(UdpSockRef::from(&io))?;
        state.enable_transport_errors(UdpSockRef::from(&io))?;
        for result in [
            state.set_send_buffer_size(UdpSockRef::from(&io), KERNEL_BUFFER),
            state.set_recv_buffer_size(UdpSockRef::from(&io), KERNEL_BUFFER),
        ] {
            if let Err(error) = result {
                log::info!("the kernel's socket buffers stay as they are: {error}");
            }
        }
        let local = io.local_addr()?;
        let state = RwLock::new(state);
        Ok(Socket { io, state, local })
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Has the poll tell when datagrams come. That there is room to send is asked for only when
    /// there was none ([`Socket::watch_room`]): Linux tells it after every packet that leaves.
    pub fn watch(&self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(
            &mut SourceFd(&self.io.as_raw_fd()),
            token,
            Interest::READABLE,
        )
    }

    /// Also, or no longer, has the poll tell when there is room to send.
    pub fn watch_room(&self, registry: &Registry, token: Token, room: bool) -> io::Result<()> {
        let interest = if room {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        registry.reregister(&mut SourceFd(&self.io.as_raw_fd()), token, interest)
    }

    pub fn max_segments(&self) -> usize {
        self.state.read().max_gso_segments()
    }

    /// Sends a train. `WouldBlock` means that it has not been sent; whatever else goes wrong is a
    /// lost packet, for QUIC to repair.
    pub fn send(&self, bytes: &[u8], transmit: &Transmit) -> io::Result<()> {
        self.state.read().try_send(
            UdpSockRef::from(&self.io),
            &quinn_udp::Transmit {
                destination: transmit.to,
                ecn: None,
                contents: bytes,
                segment_size: Some(transmit.segment),
                src_ip: (!transmit.from.ip().is_unspecified()).then(|| transmit.from.ip()),
            },
        )
    }

    /// Receives a batch, and says how many of its buffers were filled.
    pub fn receive(&self, batch: &mut Batch) -> io::Result<usize> {
        let mut slices = batch.buffers.iter_mut().map(|b| IoSliceMut::new(b));
        let mut slices: [IoSliceMut; BUFFERS] =
            std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        self.state
            .read()
            .recv(UdpSockRef::from(&self.io), &mut slices, &mut batch.metas)
    }

    /// Takes one address from the error queue at which the system says nobody listens.
    ///
    /// `quinn-udp` reads this queue too, but gives the address of the host that complained; which
    /// of its ports it was takes the destination, which only the message's name has.
    pub fn refused(&self) -> Option<Refusal> {
        errors::next(&self.io)
    }

    /// The address that datagrams to `peer` leave from: the socket's own, or, when that is the
    /// wildcard, what the routing table says.
    pub fn local_for(&self, peer: SocketAddr) -> io::Result<SocketAddr> {
        if !self.local.ip().is_unspecified() {
            return Ok(self.local);
        }
        let probe = UdpSocket::bind(SocketAddr::new(self.local.ip(), 0))?;
        // Connecting a UDP socket sends nothing; it asks for a route.
        probe.connect(peer)?;
        Ok(SocketAddr::new(probe.local_addr()?.ip(), self.local.port()))
    }

    /// Whether datagrams to `peer` can leave from `local`. Where the system cannot be asked, they may.
    pub fn is_usable(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        UdpSocket::bind(SocketAddr::new(local.ip(), 0))
            .and_then(|probe| probe.connect(peer))
            .map_or_else(|error| is_no_answer(&error), |()| true)
    }

    /// Finds out anew what can be done in sending. `quinn-udp` takes EINVAL for a kernel without GSO,
    /// and never tries again; Linux also says it of a source address that is gone.
    pub fn renew(&self) {
        // An error leaves things as they are.
        if let Ok(state) = UdpSocketState::new(UdpSockRef::from(&self.io)) {
            *self.state.write() = state;
        }
    }
}

/// Whether the system has found no means to be asked, in place of an answer: a route may be there for all
/// that. It is asked again where something is to be sent and cannot be (`connection::refusals`).
fn is_no_answer(error: &io::Error) -> bool {
    let none = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error
        .raw_os_error()
        .is_some_and(|errno| none.contains(&errno))
}

/// An IPv6 socket takes IPv6 only, so that a node can listen on the same port with one of each.
fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Type};
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// One entry of the error queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nobody listens at this address.
    At(SocketAddr),
    /// Something else: an unreachable network, a packet over the path MTU. QUIC's own timers and
    /// probes deal with it.
    Other,
}

#[cfg(target_os = "linux")]
mod errors {
    use super::Refusal;
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
    use std::io::IoSliceMut;
    use std::net::SocketAddr;
    use std::os::fd::AsRawFd;

    pub fn next(io: &impl AsRawFd) -> Option<Refusal> {
        let mut byte = [0; 1];
        let mut slices = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!([u8; 128], [u8; 128]);
        let message = recvmsg::<SockaddrStorage>(
            io.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
        )
        // EAGAIN: the queue is empty.
        .ok()?;
        let refused = message.cmsgs().ok()?.any(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, _)
            | ControlMessageOwned::Ipv6RecvErr(error, _) => {
                error.ee_errno == nix::errno::Errno::ECONNREFUSED as u32
            }
            _ => false,
        });
        match message.address.as_ref().and_then(address) {
            Some(to) if refused => Some(Refusal::At(to)),
            _ => Some(Refusal::Other),
        }
    }

    fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
        let v4 = storage
            .as_sockaddr_in()
            .map(|&a| std::net::SocketAddrV4::from(a).into());
        let v6 = || {
            storage
                .as_sockaddr_in6()
                .map(|&a| std::net::SocketAddrV6::from(a).into())
        };
        v4.or_else(v6)
    }
}

#[cfg(not(target_os = "linux"))]
mod errors {
    /// Elsewhere there is no error queue; a dead peer is found by its silence.
    pub fn next<T>(_io: &T) -> Option<super::Refusal> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transmit(socket: &Socket, to: SocketAddr, length: usize, segment: usize) -> Transmit {
        Transmit {
            to,
            from: socket.local(),
            length,
            segment,
        }
    }

    fn wait<T>(mut poll: impl FnMut() -> Option<T>) -> T {
        for _ in 0..500 {
            if let Some(value) = poll() {
                return value;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("nothing came for 5 s");
    }

    #[test]
    fn a_train_arrives_as_its_packets() {
        let a = Socket::open("127.0.0.1:0".parse().unwrap()).unwrap();
        let b = Socket::open("127.0.0.1:0".parse().unwrap()).unwrap();
        let bytes: Vec<u8> = (0..2500u32).map(|i| (i / 1000) as u8).collect();
        let train = transmit(&a, b.local(), bytes.len(), 1000);
        if a.max_segments() > 1 {
            a.send(&bytes, &train).unwrap();
        } else {
            for chunk in bytes.chunks(1000) {
                a.send(chunk, &train).unwrap();
            }
        }
        let mut batch = Batch::new();
        let mut got = Vec::new();
        wait(|| {
            if let Ok(count) = b.receive(&mut batch) {
                got.extend(batch.datagrams(count).map(|(d, from, to)| {
                    assert_eq!(from, a.local());
                    assert_eq!(to, Some(b.local().ip()));
                    d.to_vec()
                }));
            }
            (got.len() == 3).then_some(())
        });
        assert_eq!(got.concat(), bytes);
        assert_eq!(got[2].len(), 500);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_closed_port_is_reported_with_its_address() {
        let a = Socket::open("127.0.0.1:0".parse().unwrap()).unwrap();
        let gone = {
            let closed = Socket::open("127.0.0.1:0".parse().unwrap()).unwrap();
            closed.local()
        };
        a.send(b"anybody there?", &transmit(&a, gone, 14, 14))
            .unwrap();
        assert_eq!(wait(|| a.refused()), Refusal::At(gone));
        assert_eq!(a.refused(), None);
    }

    #[test]
    fn a_wildcard_socket_knows_where_it_sends_from() {
        let socket = Socket::open("0.0.0.0:0".parse().unwrap()).unwrap();
        let local = socket.local_for("127.0.0.1:9".parse().unwrap()).unwrap();
        assert_eq!(local.ip().to_string(), "127.0.0.1");
        assert_eq!(local.port(), socket.local().port());
    }

    #[test]
    fn both_families_share_a_port() {
        let v4 = Socket::open("0.0.0.0:0".parse().unwrap()).unwrap();
        let v6 = SocketAddr::new("::".parse().unwrap(), v4.local().port());
        assert_eq!(Socket::open(v6).unwrap().local(), v6);
    }

    #[test]
    fn a_taken_port_says_so() {
        let socket = Socket::open("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = Socket::open(socket.local()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    /// In a process of its own, for the limit is a process's.
    #[test]
    fn without_descriptors_no_way_is_taken_for_gone() {
        const ALONE: &str = "QUIC_DIST_TEST_NO_DESCRIPTORS";
        let this = "socket::tests::without_descriptors_no_way_is_taken_for_gone";
        if std::env::var_os(ALONE).is_none() {
            let alone = std::process::Command::new("sh")
                .args(["-c", "ulimit -n 64 && exec \"$0\" --exact \"$1\""])
                .arg(std::env::current_exe().unwrap())
                .arg(this)
                .env(ALONE, "")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&alone.stdout);
            assert!(
                alone.status.success() && said.contains("1 passed"),
                "{said}"
            );
            return;
        }
        let socket = Socket::open("0.0.0.0:0".parse().unwrap()).unwrap();
        let ours = SocketAddr::from(([127, 0, 0, 1], socket.local().port()));
        // RFC 5737: nobody has it.
        let gone = SocketAddr::from(([192, 0, 2, 1], socket.local().port()));
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        assert!(socket.is_usable(ours, peer) && !socket.is_usable(gone, peer));
        let mut files = Vec::new();
        let error = loop {
            match std::fs::File::open("/dev/null") {
                Ok(file) => files.push(file),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert!(socket.is_usable(ours, peer) && socket.is_usable(gone, peer));
        let error = socket.local_for(peer).unwrap_err();
        let reason = crate::CloseReason::io(&error);
        assert_eq!(reason, crate::CloseReason::Io(libc::EMFILE));
        drop(files);
        assert!(socket.is_usable(ours, peer) && !socket.is_usable(gone, peer));
    }
}
