//! Distribution packets as the VM makes them, for tests.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    pub id: u32,
    pub serial: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct Name(pub &'static str);

/// Flags of ALTACT_SIG_SEND (OTP 28, `dist.h`).
pub const PRIORITY: u8 = 1;
pub const TOKEN: u8 = 2;
pub const ALIAS: u8 = 4;
pub const NAME: u8 = 8;
pub const EXIT: u8 = 16;

/// Whom such a signal is for.
#[derive(Clone, Copy, Debug)]
pub enum Alternate {
    Alias,
    Pid(Process),
}

/// The elements of a control message.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    elements: Vec<Vec<u8>>,
}

pub struct Example {
    pub operation: u8,
    pub bytes: Vec<u8>,
}

fn atom(name: &str) -> Vec<u8> {
    let mut bytes = vec![119, name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

fn pid(process: Process) -> Vec<u8> {
    let mut bytes = vec![88];
    bytes.extend(atom("a@127.0.0.1"));
    bytes.extend(process.id.to_be_bytes());
    bytes.extend(process.serial.to_be_bytes());
    bytes.extend(1234u32.to_be_bytes());
    bytes
}

fn reference() -> Vec<u8> {
    let mut bytes = vec![90, 0, 3];
    bytes.extend(atom("b@127.0.0.1"));
    bytes.extend([0; 16]);
    bytes
}

fn big() -> Vec<u8> {
    vec![110, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8]
}

impl Packet {
    pub fn new() -> Self {
        Packet::default()
    }

    fn of(mut self, operation: u8, elements: Vec<Vec<u8>>) -> Self {
        self.elements = vec![vec![97, operation]];
        self.elements.extend(elements);
        self
    }

    pub fn link(self, from: Process, to: Process) -> Self {
        self.of(1, vec![pid(from), pid(to)])
    }

    pub fn send(self, to: Process) -> Self {
        self.of(2, vec![atom(""), pid(to)])
    }

    pub fn reg_send(self, from: Process, to: Name) -> Self {
        self.of(6, vec![pid(from), atom(""), atom(to.0)])
    }

    pub fn group_leader(self, leader: Process, to: Process) -> Self {
        self.of(7, vec![pid(leader), pid(to)])
    }

    pub fn monitor_exit(self, from: Process, to: Process) -> Self {
        self.of(28, vec![pid(from), pid(to), reference()])
    }

    pub fn monitor_exit_of_name(self, from: Name, to: Process) -> Self {
        self.of(28, vec![atom(from.0), pid(to), reference()])
    }

    pub fn send_sender(self, from: Process, to: Process) -> Self {
        self.of(22, vec![pid(from), pid(to)])
    }

    pub fn alias_send(self, from: Process) -> Self {
        self.of(33, vec![pid(from), reference()])
    }

    /// A message (and, with `EXIT`, an exit signal) of OTP 28: to an alias, or urgent, or both.
    pub fn alternate(self, flags: u8, from: Process, to: Alternate) -> Self {
        let to = match to {
            Alternate::Alias => reference(),
            Alternate::Pid(to) => pid(to),
        };
        self.of(37, vec![vec![97, flags], pid(from), to])
    }

    pub fn spawn_reply(self, to: Process, child: Process) -> Self {
        self.of(31, vec![reference(), pid(to), vec![97, 3], pid(child)])
    }

    pub fn spawn_reply_error(self, to: Process) -> Self {
        self.of(31, vec![reference(), pid(to), vec![97, 0], atom("badopt")])
    }

    pub fn unknown(self, operation: u8, from: Process) -> Self {
        self.of(operation, vec![pid(from)])
    }

    fn control(&self) -> Vec<u8> {
        let mut bytes = vec![104, self.elements.len() as u8];
        bytes.extend(self.elements.concat());
        bytes
    }

    /// In one piece, with some payload.
    pub fn whole(&self) -> Vec<u8> {
        let mut bytes = vec![131, 68, 0];
        bytes.extend(self.control());
        bytes.extend(b"\x6b\x00\x05hello");
        bytes
    }

    /// The first of `count` fragments.
    pub fn fragment(&self, sequence: Process, count: u64) -> Vec<u8> {
        let mut bytes = vec![131, 69];
        bytes.extend(sequence_id(sequence).to_be_bytes());
        bytes.extend(count.to_be_bytes());
        bytes.push(0);
        bytes.extend(self.control());
        bytes
    }
}

/// The VM names a sequence by the sending process.
fn sequence_id(process: Process) -> u64 {
    0xffff_0000_0000 | u64::from(process.id)
}

pub fn next_fragment(sequence: Process, fragment: u64) -> Vec<u8> {
    let mut bytes = vec![131, 70];
    bytes.extend(sequence_id(sequence).to_be_bytes());
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([0xab; 40]);
    bytes
}

/// Every operation of OTP 25 to 28 that names its sender, as `me` sends it.
pub fn every_signal_of(me: Process, you: Process) -> Vec<Example> {
    let token = || vec![104, 1, 97, 0];
    let mfa = || [vec![104, 3], atom("m"), atom("f"), vec![97, 0]].concat();
    let first =
        |operation: u8, more: Vec<Vec<u8>>| (operation, [vec![pid(me), pid(you)], more].concat());
    let mut list = vec![
        first(1, vec![]),
        first(3, vec![atom("normal")]),
        first(4, vec![]),
        (6, vec![pid(me), atom(""), atom("server")]),
        first(8, vec![atom("kill")]),
        first(13, vec![token(), atom("normal")]),
        (16, vec![pid(me), atom(""), atom("server"), token()]),
        first(18, vec![token(), atom("kill")]),
        first(19, vec![reference()]),
        (19, vec![pid(me), atom("server"), reference()]),
        first(20, vec![reference()]),
        first(21, vec![reference(), atom("normal")]),
        first(22, vec![]),
        first(23, vec![token()]),
        first(24, vec![]),
        first(25, vec![token()]),
        first(26, vec![]),
        first(27, vec![token()]),
        first(28, vec![reference()]),
        (29, vec![reference(), pid(me), pid(you), mfa(), vec![106]]),
        (
            30,
            vec![reference(), pid(me), pid(you), mfa(), vec![106], token()],
        ),
        (31, vec![reference(), pid(you), vec![97, 1], pid(me)]),
        (
            32,
            vec![reference(), pid(you), vec![97, 1], pid(me), token()],
        ),
        (33, vec![pid(me), reference()]),
        (34, vec![pid(me), reference(), token()]),
        (35, vec![vec![97, 5], pid(me), pid(you)]),
        (35, vec![vec![98, 0, 1, 0, 0], pid(me), pid(you)]),
        (35, vec![big(), pid(me), pid(you)]),
        (36, vec![big(), pid(me), pid(you)]),
    ];
    // All that OTP 28 makes of it: messages with and without a token, then exit signals, which
    // have none.
    let plain = |flags: u8, to: Vec<u8>| (37, vec![vec![97, flags], pid(me), to]);
    let traced = |flags: u8, to: Vec<u8>| (37, vec![vec![97, flags | TOKEN], pid(me), to, token()]);
    list.extend([
        plain(ALIAS, reference()),
        traced(ALIAS, reference()),
        plain(PRIORITY | ALIAS, reference()),
        traced(PRIORITY | ALIAS, reference()),
        plain(PRIORITY, pid(you)),
        traced(PRIORITY, pid(you)),
        plain(PRIORITY | NAME, atom("server")),
        traced(PRIORITY | NAME, atom("server")),
        plain(EXIT | ALIAS, reference()),
        plain(EXIT | PRIORITY | ALIAS, reference()),
        plain(EXIT | PRIORITY, pid(you)),
    ]);
    list.sort_by_key(|(operation, _)| *operation);
    list.into_iter()
        .map(|(operation, elements)| Example {
            operation,
            bytes: Packet::new().of(operation, elements).whole(),
        })
        .collect()
}
