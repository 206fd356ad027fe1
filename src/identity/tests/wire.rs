//! A handshake of quiche with quiche, whose datagrams are carried by hand.

use std::net::SocketAddr;

use boring::ssl::SslContextBuilder;
use boring::x509::X509VerifyError;

use super::peer_name;

/// What one side has to say when all datagrams have been delivered.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) established: bool,
    pub(super) local_error: Option<(bool, u64, Vec<u8>)>,
    pub(super) peer_error: Option<(bool, u64, Vec<u8>)>,
    pub(super) recv_error: Option<quiche::Error>,
    pub(super) peer_name: Option<String>,
    pub(super) verified: Result<(), X509VerifyError>,
    pub(super) echoed: bool,
    /// A ticket came: the next connection can be resumed.
    pub(super) resumable: bool,
}

struct End {
    connection: quiche::Connection,
    address: SocketAddr,
    recv_error: Option<quiche::Error>,
    echoed: bool,
}

impl End {
    fn new(context: SslContextBuilder, server: bool) -> Self {
        let mut config =
            quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, context).unwrap();
        config.set_application_protos(&[b"test"]).unwrap();
        config.set_initial_max_data(1000);
        config.set_initial_max_stream_data_bidi_local(1000);
        config.set_initial_max_stream_data_bidi_remote(1000);
        config.set_initial_max_streams_bidi(1);
        let client_address = "127.0.0.1:1".parse().unwrap();
        let server_address = "127.0.0.1:2".parse().unwrap();
        let id = quiche::ConnectionId::from_ref(if server { b"server-0" } else { b"client-0" });
        let (connection, address) = if server {
            let it = quiche::accept(&id, None, server_address, client_address, &mut config);
            (it, server_address)
        } else {
            let it = quiche::connect(None, &id, client_address, server_address, &mut config);
            (it, client_address)
        };
        Self {
            connection: connection.unwrap(),
            address,
            recv_error: None,
            echoed: false,
        }
    }

    /// Delivers all that this end has to say; how many datagrams that was.
    fn deliver_to(&mut self, to: &mut End) -> usize {
        let mut buffer = [0; 1500];
        let mut count = 0;
        while let Ok((length, _)) = self.connection.send(&mut buffer) {
            count += 1;
            let info = quiche::RecvInfo {
                from: self.address,
                to: to.address,
            };
            if let Err(error) = to.connection.recv(&mut buffer[..length], info) {
                to.recv_error.get_or_insert(error);
            }
        }
        count
    }

    fn side(mut self) -> Side {
        let report = |e: &quiche::ConnectionError| (e.is_app, e.error_code, e.reason.clone());
        Side {
            established: self.connection.is_established(),
            local_error: self.connection.local_error().map(report),
            peer_error: self.connection.peer_error().map(report),
            recv_error: self.recv_error,
            peer_name: self.connection.peer_cert().and_then(peer_name),
            verified: self.connection.as_mut().verify_result(),
            echoed: self.echoed,
            resumable: self.connection.session().is_some(),
        }
    }
}

/// Runs a handshake to its end and sends a byte over and back, if it gets so far. (client,
/// server)
pub(super) fn run(client: SslContextBuilder, server: SslContextBuilder) -> (Side, Side) {
    let mut client = End::new(client, false);
    let mut server = End::new(server, true);
    let mut byte = [0; 1];
    for _ in 0..50 {
        let sent = client.deliver_to(&mut server) + server.deliver_to(&mut client);
        let c = &mut client.connection;
        let s = &mut server.connection;
        if c.is_established() && c.stream_capacity(0).is_err() {
            let _ = c.stream_send(0, b"x", false);
        }
        if s.is_established() && s.stream_recv(0, &mut byte) == Ok((1, false)) {
            server.echoed = s.stream_send(0, b"y", false).is_ok();
        }
        if c.is_established() && c.stream_recv(0, &mut byte) == Ok((1, false)) {
            client.echoed = true;
        }
        if sent == 0 && client.echoed == server.echoed {
            break;
        }
    }
    (client.side(), server.side())
}
