//! How the event thread ends: because it was told to, or because something went wrong that must not
//! leave anybody waiting, neither the processes here nor the peers.

use std::time::{Duration, Instant};

use mio::Poll;

use super::Driver;
use super::turns::{Failure, Waiting};
use crate::close::CloseReason;
use crate::connection::Happening;
use crate::endpoint::{CommandSender, EndpointCommand};
use crate::event::{Event, Events};
use crate::handle::Command;
use crate::panics;

impl<E: Events> Driver<E> {
    /// The event thread: runs until the endpoint is closed. A panic ends it as well, after every
    /// connection and every peer has been told.
    pub fn run(sender: &CommandSender<E>, poll: Poll, busy_wait: Duration) {
        let mut waiting = Waiting::new(sender, poll, busy_wait);
        let ended = panics::caught(|| waiting.turns()).map_err(Failure::Panic);
        if let Some(driver) = waiting.take_driver() {
            driver.end(ended.flatten());
        }
    }

    fn end(mut self, ended: Result<(), Failure>) {
        let (reason, error) = match ended {
            Ok(()) => (CloseReason::EndpointClosed, None),
            Err(Failure::Io(error)) => {
                let text = format!("waiting for events failed: {error}");
                (CloseReason::io(&error), Some(text))
            }
            Err(Failure::Panic(panic)) => {
                (CloseReason::Internal, Some(format!("a panic: {panic}")))
            }
        };
        // Somebody may have dialled since the last turn; from now on nobody can.
        self.sender.ending();
        let left = self.left_command.take().map(Command::Endpoint);
        let commands = std::iter::from_fn(|| self.commands.try_recv().ok());
        for command in left.into_iter().chain(commands) {
            if let Command::Endpoint(EndpointCommand::Connect {
                handle, mut peer, ..
            }) = command
            {
                handle.end();
                self.events.event(&mut peer, Event::Closed(reason.clone()));
            }
        }
        let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
        for key in keys {
            // The first panic is the one that counts: one of these is most likely the same again,
            // for one connection, and the others are still to be told.
            if error.is_some() {
                let _ = panics::caught(|| self.fail(key, &reason));
            }
            let _ = panics::caught(|| self.abandon(key, &reason));
        }
        self.events.ended(error);
    }

    /// Tells a connection's owner what there is still to tell, and its peer that it has ended.
    fn fail(&mut self, key: usize, reason: &CloseReason) {
        let happenings = self.with(key, |connection| {
            connection.fail(reason.clone());
            std::iter::from_fn(|| connection.happening()).collect()
        });
        let happenings: Vec<Happening> = happenings.unwrap_or_default();
        let kept = std::mem::take(&mut self.entries[key].kept);
        let happenings = kept.into_iter().chain(happenings);
        self.tell(key, happenings, false);
        let entry = &self.entries[key];
        if let Some(connection) = entry.handle.shared().connection.lock().as_mut() {
            connection.send(&mut self.train, Instant::now(), &*self.sender);
        }
    }

    /// Lets go of a connection, and tells its owner if it has not been told.
    fn abandon(&mut self, key: usize, reason: &CloseReason) {
        let entry = &mut self.entries[key];
        entry.handle.end();
        entry.handle.shared().connection.lock().take();
        if let Some(mut peer) = entry.peer.take() {
            self.events.event(&mut peer, Event::Closed(reason.clone()));
        }
    }
}
