//! A peer that says any frames it likes: it has been through the handshake as a quiche client, and
//! then makes its packets itself (RFC 9001, section 5). What comes for it nobody acknowledges.

use std::io::Write;

use boring::hash::hmac_sha256;
use boring::symm::{self, Cipher};

use super::intruder::Intruder;
use super::*;
use crate::table::ID_LEN;

const TAG: usize = 16;
/// Of a packet's number, and of its sample behind that (RFC 9001, section 5.4.2).
const NUMBER: usize = 4;
/// Far above those that quiche has given.
const FIRST: u32 = 1000;

/// What protects the packets of one side.
struct Keys {
    packet: Vec<u8>,
    nonce: Vec<u8>,
    header: Vec<u8>,
}

impl Keys {
    /// RFC 9001, section 5.1, for TLS_AES_128_GCM_SHA256.
    fn new(log: &str, whose: &str) -> Self {
        let line = log.lines().find(|line| line.starts_with(whose)).unwrap();
        let hex = line.rsplit(' ').next().unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
        let secret: Vec<u8> = (0..hex.len() / 2).map(byte).collect();
        assert_eq!(secret.len(), 32, "another cipher was chosen");
        let expand = |label: &str, length: u8| {
            let label = format!("tls13 quic {label}");
            let mut info = vec![0, length, label.len() as u8];
            info.extend_from_slice(label.as_bytes());
            info.extend_from_slice(&[0, 1]);
            hmac_sha256(&secret, &info).unwrap()[..length.into()].to_vec()
        };
        Keys {
            packet: expand("key", 16),
            nonce: expand("iv", 12),
            header: expand("hp", 16),
        }
    }

    fn nonce(&self, number: u32) -> Vec<u8> {
        let mut nonce = self.nonce.clone();
        for (byte, number) in nonce[12 - NUMBER..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }

    fn mask(&self, packet: &[u8], number_at: usize) -> Vec<u8> {
        let sample = &packet[number_at + NUMBER..][..16];
        symm::encrypt(Cipher::aes_128_ecb(), &self.header, None, sample).unwrap()
    }

    fn seal(&self, id: &[u8], number: u32, frames: &[u8]) -> Vec<u8> {
        let mut packet = [&[0x43][..], id, &number.to_be_bytes()].concat();
        let mut tag = [0; TAG];
        let (key, nonce) = (&self.packet, self.nonce(number));
        let cipher = Cipher::aes_128_gcm();
        let sealed =
            symm::encrypt_aead(cipher, key, Some(&nonce), &packet, frames, &mut tag).unwrap();
        packet.extend_from_slice(&sealed);
        packet.extend_from_slice(&tag);
        let mask = self.mask(&packet, 1 + id.len());
        packet[0] ^= mask[0] & 0x1f;
        for (byte, mask) in packet[1 + id.len()..][..NUMBER].iter_mut().zip(&mask[1..]) {
            *byte ^= mask;
        }
        packet
    }

    /// The frames of a packet whose number is below 2^16.
    fn open(&self, mut packet: Vec<u8>) -> Vec<u8> {
        let at = 1 + ID_LEN;
        let mask = self.mask(&packet, at);
        packet[0] ^= mask[0] & 0x1f;
        let size = usize::from(packet[0] & 3) + 1;
        let mut number = 0;
        for (byte, mask) in packet[at..][..size].iter_mut().zip(&mask[1..]) {
            *byte ^= mask;
            number = number << 8 | u32::from(*byte);
        }
        let (header, rest) = packet.split_at(at + size);
        let (sealed, tag) = rest.split_at(rest.len() - TAG);
        let nonce = self.nonce(number);
        let cipher = Cipher::aes_128_gcm();
        symm::decrypt_aead(cipher, &self.packet, Some(&nonce), header, sealed, tag).unwrap()
    }
}

/// What quiche writes its keys to.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(super) struct Forger {
    pub side: Side,
    ours: Keys,
    theirs: Keys,
    id: Vec<u8>,
    number: u32,
}

impl Forger {
    /// It dials us with a good certificate, is let in, and says hello.
    pub fn new(limits: &Limits) -> Self {
        let log = Log::default();
        let mut config = quic_config(limits, Role::Client);
        config.log_keys();
        let mut intruder = Intruder::dialling(limits, &mut config);
        intruder.quic.set_keylog(Box::new(log.clone()));
        intruder.enter();
        intruder.greet();
        let log = String::from_utf8(log.0.lock().clone()).unwrap();
        Forger {
            id: intruder.quic.destination_id().to_vec(),
            side: intruder.side,
            ours: Keys::new(&log, "SERVER_TRAFFIC_SECRET_0"),
            theirs: Keys::new(&log, "CLIENT_TRAFFIC_SECRET_0"),
            number: FIRST,
        }
    }

    /// Sends a packet with these frames.
    pub fn say(&mut self, frames: &[u8]) {
        self.say_from(CLIENT, frames);
    }

    pub fn say_from(&mut self, from: SocketAddr, frames: &[u8]) {
        self.number += 1;
        let mut packet = self.theirs.seal(&self.id, self.number, frames);
        self.side.connection.receive(&mut packet, from, SERVER);
    }

    /// Our side's turn: the packets that it sends, each as its frames.
    pub fn our_turn(&mut self) -> Vec<Vec<u8>> {
        self.side.work(Instant::now());
        let packets = self.side.datagrams().into_iter();
        packets.map(|(packet, _)| self.ours.open(packet)).collect()
    }
}
