//! A link between two network namespaces that has a rate, a delay, a queue and losses, for
//! benchmarks and fault tests on kernels that have no netem: two TUN devices and this process.
//!
//! ```text
//! quic_dist_link --name NAME [--rate 100mbit] [--delay 10ms] [--queue BYTES] [--loss PERCENT]
//!                [--mtu 1500]
//! ```
//!
//! It makes the namespaces NAME-a and NAME-b (those that an earlier run left are removed), and says
//! `ready NAME-a 10.77.X.1 NAME-b 10.77.X.2`. Rate, delay (one way), queue and loss are those of
//! each direction. Without `--queue` it takes 100 ms at the rate, 256 KiB at least; 4 MiB without a
//! rate. Commands come as lines, and each is answered by `ok` or `error ...`:
//!
//! * `loss PERCENT`, `rate RATE`, `rate none`, `delay TIME`, `queue BYTES`
//! * `down`, `up`: both directions, or one of them: `down a2b`, `up b2a`. What is on its way when
//!   the link goes down is lost.
//! * `counters`: a line for each direction, before the `ok`.
//!
//! At the end of its input, or at SIGTERM, SIGINT or SIGHUP, it removes the namespaces and prints
//! the counters.

use std::array;
use std::collections::VecDeque;
use std::env;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;

type Failure = Box<dyn Error + Send + Sync>;

/// The device has this name in both namespaces.
const DEVICE: &str = "link0";
/// The kernel's own queue before the TUN device. What overflows there is in no counter of ours, so
/// it is large enough for the time that this process may have to wait for a processor.
const DEVICE_QUEUE: &str = "10000";
/// Packets read from one device per wake-up: the other direction must not wait for long.
const BURST: usize = 64;
const MAX_PACKET: usize = 65_535;
const QUEUE_WITHOUT_RATE: usize = 4 << 20;
const LEAST_QUEUE: usize = 256 << 10;
const RATES: [(&str, f64); 4] = [("bit", 1.0), ("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)];
const TIMES: [(&str, f64); 3] = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
/// Keeps sums of times far from overflow.
const HOUR: f64 = 3600.0;
const RUN: &str = "/run/netns";
const DIRECTIONS: [&str; 2] = ["a2b", "b2a"];

nix::ioctl_write_ptr_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);

fn main() -> Result<(), Failure> {
    let (name, mtu, line) = parse(env::args().skip(1))?;
    // Before the namespaces are made: a signal that comes while they are must not leave them there.
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    ends.thread_block()?;
    let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC)?;

    let names = ["a", "b"].map(|end| format!("{name}-{end}"));
    drop(Namespaces(names.clone())); // those of an earlier run
    let namespaces = Namespaces(names);
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let subnet = 1 + hasher.hash_one((&name, process::id())) % 250;
    let [ip_a, ip_b] = [1, 2].map(|host| format!("10.77.{subnet}.{host}"));
    let [a, b] = &namespaces.0;
    let tuns = [make_tun(a, &ip_a, mtu)?, make_tun(b, &ip_b, mtu)?];
    say(&format!("ready {a} {ip_a} {b} {ip_b}"));

    // The seeds come of the name: the same losses in each run of a test.
    let seeds = [1, 2].map(|lane| hasher.hash_one((&name, lane)));
    let mut lanes = seeds.map(|seed| Lane::new(line.clone(), seed));
    let result = carry(&tuns, &signals, &mut lanes);
    drop(namespaces);
    say_counters(&lanes);
    result
}

fn carry(tuns: &[File; 2], signals: &SignalFd, lanes: &mut [Lane; 2]) -> Result<(), Failure> {
    let (input, [a, b]) = (io::stdin(), tuns);
    let (mut commands, mut buffer) = (Vec::new(), vec![0; MAX_PACKET]);
    loop {
        let now = Instant::now();
        for (lane, mut to) in lanes.iter_mut().zip([b, a]) {
            while let Some(packet) = lane.take(now) {
                // A device that was set down is a fault of the link, not the end of it.
                if to.write(&packet).is_err() {
                    lane.counters.refused += 1;
                }
            }
        }
        let due = lanes.iter().filter_map(Lane::due).min();
        let waits_for = [a.as_fd(), b.as_fd(), input.as_fd(), signals.as_fd()];
        let mut polled = waits_for.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // Not `poll`: a millisecond is eight packets at 100 Mbit/s.
        let timeout = due.map(|due| TimeSpec::from_duration(due.duration_since(now)));
        // No handler for a signal is installed, so nothing interrupts it.
        ppoll(&mut polled, timeout, None)?;
        let [from_a, from_b, command, signal] = polled.map(|fd| fd.any().unwrap_or(true));
        if signal {
            return Ok(());
        }
        let now = Instant::now();
        for ((mut from, ready), lane) in tuns.iter().zip([from_a, from_b]).zip(lanes.iter_mut()) {
            for _ in 0..if ready { BURST } else { 0 } {
                match from.read(&mut buffer) {
                    Ok(length) => lane.put(now, &buffer[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(format!("{DEVICE}: {error}").into()),
                }
            }
        }
        if command {
            // Not through `Stdin`: what it keeps in its own buffer, `ppoll` does not see.
            match nix::unistd::read(&input, &mut buffer)? {
                0 => return Ok(()),
                length => commands.extend_from_slice(&buffer[..length]),
            }
            while let Some(end) = commands.iter().position(|byte| *byte == b'\n') {
                let command: Vec<u8> = commands.drain(..=end).collect();
                match obey(&String::from_utf8_lossy(&command), lanes, now) {
                    Ok(()) => say("ok"),
                    Err(failure) => say(&format!("error {failure}")),
                }
            }
        }
    }
}

fn obey(command: &str, lanes: &mut [Lane; 2], now: Instant) -> Result<(), Failure> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words[..] {
        ["counters"] => say_counters(lanes),
        [word @ ("down" | "up"), ref which @ ..]
            if which.iter().all(|name| DIRECTIONS.contains(name)) =>
        {
            for (name, lane) in DIRECTIONS.iter().zip(lanes) {
                if which.is_empty() || which.contains(name) {
                    lane.set_down(word == "down");
                }
            }
        }
        [key, value] => {
            let mut line = lanes[0].line.clone();
            line.set(key, value)?;
            let set = |lane: &mut Lane| lane.change(now, line.clone());
            lanes.iter_mut().for_each(set);
        }
        _ => return Err(format!("not a command: {command:?}").into()),
    }
    Ok(())
}

/// What can be set of a direction.
#[derive(Clone, Default)]
struct Line {
    /// Bits per second.
    rate: Option<u64>,
    delay: Duration,
    queue: Option<usize>,
    loss: f64, // 0 to 1
}

impl Line {
    fn set(&mut self, key: &str, value: &str) -> Result<(), Failure> {
        match (key, value) {
            ("rate", "none") => self.rate = None,
            // 1 bit/s is as good as nothing, and can be divided by.
            ("rate", _) => self.rate = Some(number(value, &RATES)?.max(1.0) as u64),
            ("delay", _) => {
                self.delay = Duration::from_secs_f64(number(value, &TIMES)?.min(HOUR));
            }
            ("queue", _) => self.queue = Some(value.parse()?),
            ("loss", _) => self.loss = number(value, &[("", 0.01)])?,
            _ => return Err(format!("unknown: {key}").into()),
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Counters {
    taken: u64,
    taken_bytes: u64,
    passed: u64,
    passed_bytes: u64,
    lost: u64,
    overflow: u64,
    /// What came while the link was down, and what it had on the way when it went down.
    down: u64,
    refused: u64,
}

/// One direction of the link: decides which packets come through, and when. It never reads a clock.
#[derive(Default)]
struct Lane {
    line: Line,
    down: bool,
    random: u64,
    /// Packets that wait to be sent at the rate, or are being sent, and when they came.
    waiting: VecDeque<(Instant, Vec<u8>)>,
    waiting_bytes: usize,
    /// When the last packet that is no longer in `waiting` had been sent.
    free_at: Option<Instant>,
    /// Packets that have been sent, and when they arrive.
    flying: VecDeque<(Instant, Vec<u8>)>,
    flying_bytes: usize,
    counters: Counters,
}

impl Lane {
    fn new(line: Line, seed: u64) -> Self {
        let random = seed | 1; // xorshift stays at 0 for ever
        Lane {
            line,
            random,
            ..Lane::default()
        }
    }

    fn put(&mut self, now: Instant, packet: &[u8]) {
        self.counters.taken += 1;
        self.counters.taken_bytes += packet.len() as u64;
        self.advance(now);
        if self.down {
            self.counters.down += 1;
        } else if self.is_lost() {
            self.counters.lost += 1;
        } else if self.is_full(packet.len()) {
            self.counters.overflow += 1;
        } else {
            self.waiting.push_back((now, packet.to_vec()));
            self.waiting_bytes += packet.len();
        }
    }

    fn is_full(&self, more: usize) -> bool {
        // With a rate, what flies is no part of the queue, and it is bounded by rate x delay.
        // Without one nothing waits, and only this bounds it.
        let counts_flying = self.line.rate.is_none();
        let held = self.waiting_bytes + usize::from(counts_flying) * self.flying_bytes;
        // One packet always fits, however small the queue: it is on the wire, not in the queue.
        let limit = match (self.line.queue, self.line.rate) {
            (Some(queue), _) => queue,
            (None, Some(rate)) => LEAST_QUEUE.max((rate / 80) as usize),
            (None, None) => QUEUE_WITHOUT_RATE,
        };
        held > 0 && held + more > limit
    }

    /// The next packet that has arrived at the other end.
    fn take(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.advance(now);
        self.flying.front().filter(|(due, _)| *due <= now)?;
        let (_, packet) = self.flying.pop_front()?;
        self.flying_bytes -= packet.len();
        self.counters.passed += 1;
        self.counters.passed_bytes += packet.len() as u64;
        Some(packet)
    }

    /// When `take` has something, if nothing else happens.
    fn due(&self) -> Option<Instant> {
        let flying = self.flying.front().map(|(due, _)| *due);
        flying.or_else(|| self.head_sent().map(|sent| sent + self.line.delay))
    }

    /// When the first of the packets that wait has been sent. By the times of the packets, not by
    /// those of the wake-ups: a late one costs no throughput.
    fn head_sent(&self) -> Option<Instant> {
        let (came, packet) = self.waiting.front()?;
        let bits = packet.len() as u64 * 8;
        let nanos = self.line.rate.map_or(0, |rate| bits * 1_000_000_000 / rate);
        Some(self.free_at.max(Some(*came))? + Duration::from_nanos(nanos))
    }

    fn advance(&mut self, now: Instant) {
        while let Some(sent) = self.head_sent().filter(|sent| *sent <= now)
            && let Some((_, packet)) = self.waiting.pop_front()
        {
            self.waiting_bytes -= packet.len();
            self.flying_bytes += packet.len();
            self.free_at = Some(sent);
            self.flying.push_back((sent + self.line.delay, packet));
        }
    }

    /// What was sent before stays as it was; what waits goes by the new values, from now on.
    fn change(&mut self, now: Instant, line: Line) {
        self.advance(now);
        self.free_at = self.free_at.max(Some(now));
        self.line = line;
    }

    fn set_down(&mut self, down: bool) {
        self.down = down;
        if down {
            self.counters.down += (self.waiting.len() + self.flying.len()) as u64;
            self.waiting.clear();
            self.flying.clear();
            (self.waiting_bytes, self.flying_bytes, self.free_at) = (0, 0, None);
        }
    }

    fn is_lost(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // The upper 53 bits: so many a double has, and they are the better ones.
        ((self.random >> 11) as f64) < self.line.loss * (1u64 << 53) as f64
    }
}

/// Both network namespaces; they go when this does.
struct Namespaces([String; 2]);

impl Drop for Namespaces {
    fn drop(&mut self) {
        let exists = |name: &&String| Path::new(RUN).join(name).exists();
        for name in self.0.iter().filter(exists) {
            if let Err(failure) = ip(&format!("netns del {name}")) {
                eprintln!("quic_dist_link: {failure}");
            }
        }
    }
}

fn make_tun(name: &str, address: &str, mtu: u32) -> Result<File, Failure> {
    ip(&format!("netns add {name}"))?;
    ip(&format!("-n {name} link set lo up"))?;
    ip(&format!("-n {name} tuntap add dev {DEVICE} mode tun"))?;
    ip(&format!("-n {name} addr add {address}/24 dev {DEVICE}"))?;
    let set = format!("-n {name} link set {DEVICE}");
    // Without it the kernel looks for IPv6 routers, which the counters would show. A kernel without
    // IPv6 does not know the setting, and does not need it.
    let _ = ip(&format!("{set} addrgenmode none"));
    ip(&format!("{set} txqueuelen {DEVICE_QUEUE} mtu {mtu} up"))?;
    let namespace = File::open(Path::new(RUN).join(name))?;
    // On a thread of its own, which is in that namespace from then on.
    let opened = thread::spawn(move || open_tun(namespace)).join();
    opened.map_err(|_| "the thread panicked")?
}

fn open_tun(namespace: File) -> Result<File, Failure> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let mut open = OpenOptions::new();
    let open = open.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = open.open("/dev/net/tun")?;
    let mut name = DEVICE.bytes();
    let ifr_name = array::from_fn(|_| name.next().unwrap_or(0) as libc::c_char);
    let ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags };
    let request = libc::ifreq { ifr_name, ifr_ifru };
    // SAFETY: the file is open, and `request` is a whole `ifreq` that outlives the call; its name
    // ends with a zero, and of the union TUNSETIFF reads the flags, which are set.
    unsafe { tun_set_interface(file.as_raw_fd(), &request) }?;
    Ok(file)
}

fn ip(arguments: &str) -> Result<(), Failure> {
    let mut command = Command::new("ip");
    // Our input is not for it.
    command.args(arguments.split(' ')).stdin(Stdio::null());
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {arguments}: {}", said.trim()).into())
}

/// Who started us may be gone: that must not leave the namespaces there, as a panic would.
fn say(line: &str) {
    let mut output = io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

fn say_counters(lanes: &[Lane; 2]) {
    for (name, lane) in DIRECTIONS.iter().zip(lanes) {
        say(&format!("{name} {:?}", lane.counters));
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(String, u32, Line), Failure> {
    let (mut name, mut mtu, mut line) = (String::new(), 1500, Line::default());
    while let (Some(option), value) = (arguments.next(), arguments.next()) {
        let value = value.ok_or("an option without a value")?;
        match option.strip_prefix("--").unwrap_or_default() {
            "name" => name = value,
            "mtu" => mtu = value.parse()?,
            key => line.set(key, &value)?,
        }
    }
    // It becomes a part of a path.
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || !name.bytes().all(fits) {
        return Err("--name: letters, digits, - and _".into());
    }
    Ok((name, mtu, line))
}

fn number(value: &str, units: &[(&str, f64)]) -> Result<f64, Failure> {
    let is_unit = |c: char| !c.is_ascii_digit() && c != '.';
    let (digits, unit) = value.split_at(value.find(is_unit).unwrap_or(value.len()));
    let unit = units.iter().find(|(name, _)| *name == unit);
    match (digits.parse::<f64>(), unit) {
        (Ok(number), Some((_, unit))) => Ok(number * unit),
        _ => Err(format!("not understood: {value:?}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn lane(settings: &str) -> (Lane, Instant) {
        let mut line = Line::default();
        for (key, value) in settings.split(", ").filter_map(|pair| pair.split_once(' ')) {
            line.set(key, value).unwrap();
        }
        (Lane::new(line, 7), Instant::now())
    }

    fn arrivals(lane: &mut Lane, start: Instant) -> Vec<Duration> {
        let mut arrivals = Vec::new();
        while let Some(due) = lane.due() {
            arrivals.extend(lane.take(due).map(|_| due - start));
        }
        arrivals
    }

    #[test]
    fn packets_take_their_time_on_the_line_and_then_the_delay() {
        let (mut lane, now) = lane("rate 8mbit, delay 10ms");
        lane.put(now, &[0; 1000]);
        lane.put(now, &[0; 2000]);
        assert!(lane.take(now + 10 * MS).is_none());
        lane.put(now + 7 * MS, &[0; 1000]);
        assert_eq!(arrivals(&mut lane, now), [11 * MS, 13 * MS, 18 * MS]);
    }

    #[test]
    fn the_queue_holds_what_waits_and_not_what_flies() {
        let (mut lane, now) = lane("rate 8mbit, delay 1s, queue 3000");
        (0..4).for_each(|_| lane.put(now, &[0; 1000]));
        assert_eq!(lane.counters.overflow, 1);
        (0..4).for_each(|_| lane.put(now + 2 * MS, &[0; 1000]));
        assert_eq!(lane.counters.overflow, 3);
        assert_eq!(arrivals(&mut lane, now).len(), 5);
    }

    #[test]
    fn losses_are_as_many_as_asked_for_and_the_same_each_time() {
        let losses = |settings| {
            let (mut lane, _) = lane(settings);
            (0..100_000).filter(|_| lane.is_lost()).collect::<Vec<_>>()
        };
        let some = losses("loss 2");
        assert!((1800..2200).contains(&some.len()), "{}", some.len());
        assert_eq!(some, losses("loss 2"));
        assert_eq!(
            (losses("loss 0").len(), losses("loss 100").len()),
            (0, 100_000)
        );
    }
}
