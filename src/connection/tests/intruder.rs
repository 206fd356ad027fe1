//! One of our connections against a quiche connection that the test drives as it likes.

use super::*;

pub(super) struct Intruder {
    pub quic: quiche::Connection,
    pub side: Side,
    /// Where the intruder is.
    address: SocketAddr,
    pub ahead: Duration,
}

impl Intruder {
    /// It dials us.
    pub fn dialling(limits: &Limits, config: &mut quiche::Config) -> Self {
        let id = random_id().unwrap();
        Intruder {
            quic: quiche::connect(None, &id, CLIENT, SERVER, config).unwrap(),
            side: Side::server(limits),
            address: CLIENT,
            ahead: Duration::ZERO,
        }
    }

    /// It dials us with a good certificate, is let in, and announces four data streams.
    pub fn in_as_client(limits: &Limits) -> Self {
        let mut intruder = Self::silent(limits);
        intruder.greet();
        intruder
    }

    /// It dials us with a good certificate, is let in, and says nothing.
    pub fn silent(limits: &Limits) -> Self {
        let mut intruder = Self::dialling(limits, &mut quic_config(limits, Role::Client));
        intruder.enter();
        intruder
    }

    /// We dial it.
    pub fn in_as_server(limits: &Limits) -> Self {
        let mut config = quic_config(limits, Role::Server);
        let id = random_id().unwrap();
        let mut intruder = Intruder {
            quic: quiche::accept(&id, None, SERVER, CLIENT, &mut config).unwrap(),
            side: Side::client(limits),
            address: SERVER,
            ahead: Duration::ZERO,
        };
        intruder.enter();
        intruder.greet();
        intruder
    }

    pub fn enter(&mut self) {
        self.until("it is in", |it| {
            it.quic.is_established() && it.side.established
        });
        self.settle();
    }

    /// Says hello, as every peer has to before anything else.
    pub fn greet(&mut self) {
        let hello = super::super::hello::Hello {
            data_streams: 4,
            user_streams: 0,
        };
        self.quic.stream_send(0, &hello.packet(), false).unwrap();
        self.settle();
    }

    pub fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    /// Our side's turn; what it sends reaches the intruder.
    pub fn our_turn(&mut self) -> bool {
        let now = self.now();
        self.side.work(now);
        let datagrams = self.side.datagrams();
        let moved = !datagrams.is_empty();
        let from = self.side.address();
        for (mut datagram, to) in datagrams {
            // It may well be in no state to take it.
            let _ = self.quic.recv(&mut datagram, RecvInfo { from, to });
        }
        moved
    }

    /// The datagrams that the intruder has to send.
    pub fn its_datagrams(&mut self) -> Vec<Vec<u8>> {
        if self
            .quic
            .timeout_instant()
            .is_some_and(|at| at <= Instant::now())
        {
            self.quic.on_timeout();
        }
        let mut datagrams = Vec::new();
        let mut buffer = vec![0; 16_383];
        while let Ok((length, _)) = self.quic.send(&mut buffer) {
            datagrams.push(buffer[..length].to_vec());
        }
        datagrams
    }

    pub fn its_turn(&mut self) -> bool {
        let datagrams = self.its_datagrams();
        let moved = !datagrams.is_empty();
        for mut datagram in datagrams {
            let to = self.side.address();
            self.side
                .connection
                .receive(&mut datagram, self.address, to);
        }
        moved
    }

    #[track_caller]
    pub fn until(&mut self, what: &str, condition: impl Fn(&Intruder) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "not in {PATIENCE:?}: {what} (we: {:?}, it: {:?})",
                self.side.ended(),
                self.quic.peer_error()
            );
            if !(self.its_turn() | self.our_turn()) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    pub fn settle_briefly(&mut self) {
        while self.its_turn() | self.our_turn() {}
    }

    pub fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < QUIET_STEPS {
            if self.its_turn() | self.our_turn() {
                quiet = 0;
            } else {
                quiet += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Waits for the end, and says what the intruder was told: whether by the application, the
    /// code, the text.
    #[track_caller]
    pub fn told(&mut self) -> (bool, u64, String) {
        self.until("it is told of the end", |it| {
            it.quic.peer_error().is_some() && it.side.ended().is_some()
        });
        let error = self.quic.peer_error().unwrap();
        let text = String::from_utf8(error.reason.clone()).unwrap();
        let told = (error.is_app, error.error_code, text);
        self.until("nothing is left of it", |it| it.side.connection.is_over());
        told
    }
}
