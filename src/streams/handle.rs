//! What other threads ask of the application's streams.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::stream::{Sending, Stream};
use super::{Demand, Order, StreamInfo, Streams, Table};
use crate::handle::Handle;
use crate::layout::StreamKind;

/// What was sent is in the stream's queue, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// All of it is.
    Taken,
    /// Nothing of it is: the queue is full.
    Full,
}

/// Why something cannot be done with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamError {
    /// The connection, or this direction of the stream, has ended.
    Closed,
    /// There is no such stream, or it has ended.
    Unknown,
    /// As many streams are open as this side or the peer allows.
    Limit,
    /// A datagram that fits no packet.
    TooLong,
}

impl Streams {
    fn with<T>(
        &self,
        id: u64,
        action: impl FnOnce(&mut Table, u64) -> T,
    ) -> Result<T, StreamError> {
        let mut table = self.table.lock();
        if !table.open {
            return Err(StreamError::Closed);
        }
        match table.streams.get(id) {
            Some(stream) if !stream.reset => Ok(action(&mut table, id)),
            _ => Err(StreamError::Unknown),
        }
    }

    fn open(&self, kind: StreamKind, priority: u8) -> Result<u64, StreamError> {
        let mut table = self.table.lock();
        if !table.open {
            return Err(StreamError::Closed);
        }
        let id = table.number(table.role, kind, table.next[kind as usize]);
        if table.ours >= table.most || id / 4 >= table.allowed[kind as usize] {
            return Err(StreamError::Limit);
        }
        table.next[kind as usize] += 1;
        table.ours += 1;
        let stream = Stream::new(priority, true, kind == StreamKind::Bidi);
        table.streams.insert(id, stream);
        Ok(id)
    }

    /// True: this side ends now. It may have ended before, and with it the stream.
    fn finish(&self, id: u64) -> Result<bool, StreamError> {
        let mut table = self.table.lock();
        if !table.open {
            return Err(StreamError::Closed);
        }
        match table.streams.get(id) {
            Some(stream) if !stream.reset && stream.sending == Sending::Open => {
                table.finish(id);
                Ok(true)
            }
            None if !table.has_been(id) => Err(StreamError::Unknown),
            _ => Ok(false),
        }
    }

    /// True once, until the event thread has come by.
    fn signal(&self) -> bool {
        !std::mem::replace(&mut self.table.lock().signalled, true)
    }
}

fn stream(table: &mut Table, id: u64) -> Result<&mut Stream, StreamError> {
    table.streams.get_mut(id).ok_or(StreamError::Unknown)
}

impl Handle {
    fn streams(&self) -> &Streams {
        &self.shared().streams
    }

    /// The event thread has something to do for a stream.
    fn wake_for_streams(&self) {
        if self.streams().signal() {
            self.resume();
        }
    }

    /// Opens a stream. The peer learns of it with the first data or its end.
    pub fn open_stream(&self, uni: bool, priority: u8) -> Result<u64, StreamError> {
        let kind = if uni {
            StreamKind::Uni
        } else {
            StreamKind::Bidi
        };
        self.streams().open(kind, priority)
    }

    /// Queues data, and with `fin` the end of this side after it. The end alone is
    /// [`Handle::finish_stream`]. Large data is not copied: it is kept until the peer has acknowledged it.
    pub fn send_stream(
        &self,
        id: u64,
        data: impl Into<Bytes>,
        fin: bool,
    ) -> Result<Sent, StreamError> {
        let data = data.into();
        if fin && data.is_empty() {
            return self.finish_stream(id).map(|()| Sent::Taken);
        }
        let length = data.len();
        let sent = self.streams().with(id, |table, id| {
            let high = table.high;
            let stream = stream(table, id)?;
            if stream.sending != Sending::Open {
                return Err(StreamError::Closed);
            }
            if stream.queued() >= high {
                return Ok(Sent::Full);
            }
            stream.queue().push(data);
            if fin {
                table.finish(id);
            } else {
                table.schedule(id);
            }
            Ok(Sent::Taken)
        })??;
        if sent == Sent::Taken && length > 0 {
            self.write_streams(length);
        }
        Ok(sent)
    }

    /// Ends this side, however full the queue is; nothing is left to do if it has ended, or the
    /// stream has. (Who has said all there is to say need not know whether the other side has.)
    pub fn finish_stream(&self, id: u64) -> Result<(), StreamError> {
        if self.streams().finish(id)? {
            self.write_streams(0);
        }
        Ok(())
    }

    fn write_streams(&self, length: usize) {
        if !self.write_at_once(length) {
            self.wake_for_streams();
        }
    }

    /// Whether there is room in the queue. If not, [`crate::StreamEvent::Room`] says when, or
    /// another event that the stream has ended.
    pub fn stream_has_room(&self, id: u64) -> Result<bool, StreamError> {
        self.streams().with(id, |table, id| {
            let high = table.high;
            let stream = stream(table, id)?;
            if stream.sending != Sending::Open {
                return Err(StreamError::Closed);
            }
            let full = stream.queued() >= high;
            // Others who wait go on waiting, until the queue is at its low mark.
            stream.waiting |= full;
            Ok(!full)
        })?
    }

    /// Asks for one delivery ([`crate::StreamEvent::Data`]), or for none any more.
    pub fn demand_stream(&self, id: u64, demand: Option<Demand>) -> Result<(), StreamError> {
        let wake = self.streams().with(id, |table, id| {
            stream(table, id)?.demand = demand;
            Ok(table.list(id))
        })??;
        if wake {
            self.wake_for_streams();
        }
        Ok(())
    }

    /// A delivery has been taken; `fin`: it was the last. `demand`: for the next.
    pub fn stream_delivered(&self, id: u64, fin: bool, demand: Option<Demand>) {
        let wake = self.streams().with(id, |table, id| {
            let stream = stream(table, id)?;
            stream.in_flight = false;
            stream.demand = demand;
            stream.received |= fin;
            if fin && stream.sending != Sending::Open {
                table.orders.push_back(Order::Check(id));
                return Ok(true);
            }
            Ok::<_, StreamError>(table.list(id))
        });
        if let Ok(Ok(true)) = wake {
            self.wake_for_streams();
        }
    }

    /// A delivery that nobody wants any more.
    pub fn put_back_stream(&self, id: u64, bytes: &[u8], fin: bool) {
        // A stream that has ended has nobody to deliver to.
        let _ = self.streams().with(id, |table, id| {
            stream(table, id).map(|stream| stream.put_back(bytes, fin))
        });
    }

    /// Ends both directions. [`crate::StreamEvent::Reset`] follows.
    pub fn reset_stream(&self, id: u64, code: u64) -> Result<(), StreamError> {
        self.streams().with(id, |table, id| {
            stream(table, id)?.reset = true;
            table.orders.push_back(Order::Reset(id, code));
            Ok(())
        })??;
        self.write_streams(0);
        Ok(())
    }

    /// Sets the priority of what is sent from now on.
    pub fn set_stream_priority(&self, id: u64, priority: u8) -> Result<(), StreamError> {
        self.streams().with(id, |table, id| {
            let stream = stream(table, id)?;
            let before = std::mem::replace(&mut stream.priority, priority);
            let scheduled = stream.scheduled;
            // What quiche has been given goes by the new priority too, once it is told.
            let tell = scheduled || stream.told_priority.is_some();
            stream.scheduled = tell;
            if scheduled {
                table.to_write.remove(before, id);
            }
            if tell {
                table.to_write.push(priority, id);
            }
            Ok(())
        })??;
        self.wake_for_streams();
        Ok(())
    }

    /// The streams that have not ended.
    pub fn streams_info(&self) -> Vec<StreamInfo> {
        let table = self.streams().table.lock();
        let info = |(id, stream): (u64, &Stream)| stream.info(id);
        table.streams.iter().map(info).collect()
    }

    /// One of them.
    pub fn stream_info(&self, id: u64) -> Option<StreamInfo> {
        let table = self.streams().table.lock();
        table.streams.get(id).map(|stream| stream.info(id))
    }

    /// Queues a datagram (RFC 9221); when the queue is full the oldest is lost.
    pub fn send_datagram(&self, datagram: Vec<u8>) -> Result<(), StreamError> {
        let length = datagram.len();
        if length > self.datagram_size()? {
            return Err(StreamError::TooLong);
        }
        self.streams().table.lock().datagrams.push(datagram);
        self.write_streams(length);
        Ok(())
    }

    /// The longest datagram that fits a packet now.
    pub fn datagram_size(&self) -> Result<usize, StreamError> {
        if self.is_closed() {
            return Err(StreamError::Closed);
        }
        Ok(self.streams().datagram_size.load(Relaxed))
    }
}
