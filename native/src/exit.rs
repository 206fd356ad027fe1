//! What happens when the operating system process ends with endpoints open: `erlang:halt/0,1,2`
//! runs no Erlang code, and UDP has no kernel that would say goodbye for us as TCP's does. So the
//! C library's exit handlers do: each endpoint ends its connections in order, for a moment.
//!
//! SIGKILL and a crash leave no such moment; then the peers learn it from the ICMP messages that
//! their next packet meets, or from ticks (`docs/protocol.md`, "The end of a connection").

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use quic_dist_engine::Endpoint;

use crate::events::NifEvents;

/// How long what is queued may take to reach the peers.
const LINGER: Duration = Duration::from_millis(300);
const WAIT: Duration = Duration::from_millis(500);

static EXITING: AtomicBool = AtomicBool::new(false);
static ENDPOINTS: Mutex<Vec<Weak<Endpoint<NifEvents>>>> = Mutex::new(Vec::new());

/// Whether the process is ending: from now on the VM must not be called.
pub fn exiting() -> bool {
    EXITING.load(Ordering::Acquire)
}

/// Remembers an endpoint until it is gone.
pub fn register(endpoint: &Arc<Endpoint<NifEvents>>) {
    let mut endpoints = ENDPOINTS.lock();
    endpoints.retain(|known| known.strong_count() > 0);
    endpoints.push(Arc::downgrade(endpoint));
}

/// Asks the C library to call us; once, however often the NIF is loaded.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `at_exit` is a plain function that takes nothing and does not unwind. The library
        // stays loaded while handlers can run: glibc runs those of a library before it unloads it.
        let registered = unsafe { libc::atexit(at_exit) };
        if registered != 0 {
            log::error!("no exit handler: peers will not be told when this node halts");
        }
    });
}

extern "C" fn at_exit() {
    EXITING.store(true, Ordering::Release);
    // A panic must not leave this function; nothing in it is known to panic.
    let _ = std::panic::catch_unwind(|| {
        // `try_lock`: a thread that was stopped while it held the lock would hold it forever.
        let Some(mut endpoints) = ENDPOINTS.try_lock() else {
            return;
        };
        let open: Vec<_> = endpoints.drain(..).filter_map(|e| e.upgrade()).collect();
        for endpoint in &open {
            endpoint.start_close(LINGER);
        }
        for endpoint in &open {
            endpoint.wait_closed(WAIT);
        }
        // Their destructors have nothing left to do.
        std::mem::forget(open);
    });
}
