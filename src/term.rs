//! As much of the external term format as the router needs: it walks over the elements of a control
//! message, and reads the id of a pid or port. Anything else, or anything cut short, is `None`.

/// What a process or port is told apart by, within its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// A process.
    Process(Process),
    /// A port, by its number.
    Port(u64),
}

/// A process of this node: the second and third number of its pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// The second.
    pub id: u32,
    /// The third.
    pub serial: u32,
}

const ATOM_CACHE_REF: u8 = 82;
const SMALL_INTEGER: u8 = 97;
const INTEGER: u8 = 98;
const ATOM: u8 = 100;
const PORT: u8 = 102;
const PID: u8 = 103;
const SMALL_TUPLE: u8 = 104;
const SMALL_BIG: u8 = 110;
const NEW_REFERENCE: u8 = 114;
const SMALL_ATOM: u8 = 115;
const ATOM_UTF8: u8 = 118;
const SMALL_ATOM_UTF8: u8 = 119;
const V4_PORT: u8 = 120;
const NEW_PID: u8 = 88;
const NEW_PORT: u8 = 89;
const NEWER_REFERENCE: u8 = 90;

/// The elements of a tuple that have not been walked over yet, and what follows the tuple.
#[derive(Debug)]
pub struct Terms<'a>(&'a [u8]);

impl<'a> Terms<'a> {
    /// The elements of a tuple. No control message has more than 255.
    pub fn of_tuple(bytes: &'a [u8]) -> Option<Self> {
        match bytes {
            [SMALL_TUPLE, _arity, elements @ ..] => Some(Terms(elements)),
            _ => None,
        }
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn drop(&mut self, n: usize) -> Option<()> {
        self.0 = self.0.get(n..)?;
        Some(())
    }

    /// The next element, an integer of one byte.
    pub fn small_integer(&mut self) -> Option<u8> {
        match self.take()? {
            [SMALL_INTEGER, value] => Some(value),
            _ => None,
        }
    }

    /// The next element, a pid or port.
    pub fn sender(&mut self) -> Option<Sender> {
        let [tag] = self.take()?;
        if !matches!(tag, NEW_PID | PID | V4_PORT | NEW_PORT | PORT) {
            return None;
        }
        self.skip_atom()?;
        Some(match tag {
            NEW_PID | PID => Sender::Process(Process {
                id: u32::from_be_bytes(self.take()?),
                serial: u32::from_be_bytes(self.take()?),
            }),
            V4_PORT => Sender::Port(u64::from_be_bytes(self.take()?)),
            _ => Sender::Port(u32::from_be_bytes(self.take()?).into()),
        })
    }

    /// Walks over the next element, if it is one that comes before a sender.
    pub fn skip(&mut self) -> Option<()> {
        let [tag] = self.take()?;
        match tag {
            SMALL_INTEGER => self.drop(1),
            INTEGER => self.drop(4),
            SMALL_BIG => {
                let [length] = self.take()?;
                self.drop(1 + usize::from(length))
            }
            NEW_PID => self.skip_atom().and_then(|()| self.drop(12)),
            PID => self.skip_atom().and_then(|()| self.drop(9)),
            NEWER_REFERENCE | NEW_REFERENCE => {
                let words = usize::from(u16::from_be_bytes(self.take()?));
                let creation = if tag == NEWER_REFERENCE { 4 } else { 1 };
                self.skip_atom()?;
                self.drop(creation + 4 * words)
            }
            _ => None,
        }
    }

    fn skip_atom(&mut self) -> Option<()> {
        let [tag] = self.take()?;
        let length = match tag {
            SMALL_ATOM_UTF8 | SMALL_ATOM => {
                let [length] = self.take()?;
                usize::from(length)
            }
            ATOM_UTF8 | ATOM => usize::from(u16::from_be_bytes(self.take()?)),
            ATOM_CACHE_REF => 1,
            _ => return None,
        };
        self.drop(length)
    }
}
