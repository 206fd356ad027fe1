//! A QUIC client over a UDP socket, driven by hand: what it does wrong is up to the test.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use boring::ssl::{SslContextBuilder, SslVerifyMode};
use quic_dist_engine::config::ALPN;

use super::PATIENCE;

pub struct Raw {
    pub socket: UdpSocket,
    pub quic: quiche::Connection,
    pub to: SocketAddr,
    /// All datagrams that it has sent.
    pub sent: Vec<Vec<u8>>,
}

impl Raw {
    pub fn new(to: SocketAddr, tls: SslContextBuilder) -> Self {
        Self::with_alpn(to, tls, ALPN)
    }

    pub fn with_alpn(to: SocketAddr, tls: SslContextBuilder, alpn: &[u8]) -> Self {
        let version = quiche::PROTOCOL_VERSION;
        let mut config = quiche::Config::with_boring_ssl_ctx_builder(version, tls).unwrap();
        config.set_application_protos(&[alpn]).unwrap();
        config.set_initial_max_data(1 << 20);
        config.set_initial_max_stream_data_bidi_local(1 << 20);
        config.set_initial_max_stream_data_bidi_remote(1 << 20);
        config.set_initial_max_streams_bidi(4);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(5)))
            .unwrap();
        let mut id = [0; 16];
        boring::rand::rand_bytes(&mut id).unwrap();
        let id = quiche::ConnectionId::from_ref(&id);
        let local = socket.local_addr().unwrap();
        Raw {
            quic: quiche::connect(None, &id, local, to, &mut config).unwrap(),
            socket,
            to,
            sent: Vec::new(),
        }
    }

    /// Sends what there is to send.
    pub fn flush(&mut self) {
        let mut buffer = [0; 1500];
        while let Ok((length, _)) = self.quic.send(&mut buffer) {
            // A port that is closed by now says so here; quiche sees to what is lost.
            let _ = self.socket.send_to(&buffer[..length], self.to);
            self.sent.push(buffer[..length].to_vec());
        }
    }

    /// Sends, receives and waits until the condition holds.
    #[track_caller]
    pub fn until(&mut self, what: &str, condition: impl Fn(&mut quiche::Connection) -> bool) {
        let start = Instant::now();
        let mut buffer = vec![0; 65_535];
        while !condition(&mut self.quic) {
            assert!(start.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
            self.flush();
            self.read_into(&mut buffer);
            if self.quic.timeout() == Some(Duration::ZERO) {
                self.quic.on_timeout();
            }
        }
        self.flush();
    }

    /// Takes a datagram that has come, or comes soon.
    pub fn read(&mut self) {
        self.read_into(&mut [0; 65_535]);
    }

    fn read_into(&mut self, buffer: &mut [u8]) {
        if let Ok((length, from)) = self.socket.recv_from(buffer) {
            let to = self.socket.local_addr().unwrap();
            let info = quiche::RecvInfo { from, to };
            // What it cannot take ends it, and shows.
            let _ = self.quic.recv(&mut buffer[..length], info);
        }
    }

    #[track_caller]
    pub fn handshake(&mut self) {
        self.until("the handshake is done", |quic| quic.is_established());
    }

    /// Says hello, and "name" as the first handshake message.
    pub fn say_name(&mut self) {
        let said = b"\0\x02\x01\x04\0\x04name";
        self.quic.stream_send(0, said, false).unwrap();
        self.flush();
    }

    /// Waits for CONNECTION_CLOSE: whether by the application, the code, the text.
    #[track_caller]
    pub fn told(&mut self) -> (bool, u64, String) {
        self.until("it is told of the end", |quic| quic.peer_error().is_some());
        let error = self.quic.peer_error().unwrap();
        let text = String::from_utf8_lossy(&error.reason).into_owned();
        (error.is_app, error.error_code, text)
    }
}

/// The context of a client that lets any server in.
pub fn careless(mut tls: SslContextBuilder) -> SslContextBuilder {
    tls.set_verify(SslVerifyMode::NONE);
    tls
}
