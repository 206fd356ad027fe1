//! The engine's log lines as messages to the process that owns the endpoint, which gives them to
//! `logger`.

use log::{LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use rustler::env::OwnedEnv;
use rustler::{Encoder, LocalPid};

use crate::exit;
use crate::terms::{self, atoms};

static RECEIVER: Mutex<Option<LocalPid>> = Mutex::new(None);

struct ToErlang;

/// Takes the log lines of the engine; once, however often the NIF is loaded.
pub fn install() {
    // An error means that it has been installed before.
    if log::set_logger(&ToErlang).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Who gets the lines from now on.
pub fn send_to(pid: LocalPid) {
    *RECEIVER.lock() = Some(pid);
}

impl Log for ToErlang {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // quiche's own lines are about packets, and a peer decides how many there are.
        metadata.level() <= LevelFilter::Info && metadata.target().starts_with("quic_dist")
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) || exit::exiting() {
            return;
        }
        let Some(to) = *RECEIVER.lock() else { return };
        let level = match record.level() {
            log::Level::Error => atoms::error(),
            log::Level::Warn => atoms::warning(),
            _ => atoms::info(),
        };
        let text = record.args().to_string();
        let send = move || {
            // An error means that the receiver is gone, and the endpoint with it.
            let _ = OwnedEnv::new().send_and_clear(&to, |env| {
                (atoms::quic_dist_log(), level, terms::text(env, &text)).encode(env)
            });
        };
        // The VM lets only threads that are not its own send from outside a process.
        if std::thread::current().name() == Some("quic_dist") {
            send();
        } else {
            std::thread::spawn(send);
        }
    }

    fn flush(&self) {}
}
