//! Panics that are caught, with all that is known of them: text, place and backtrace. Only the hook
//! that runs where the panic happens knows the last two, so it keeps them for the thread that catches.

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

/// How much of a report is kept, in bytes: it becomes one log entry.
const MAX_REPORT: usize = 16 << 10;

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static REPORT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has the reports made, once for the process. Panics that [`caught`] does not catch go where they
/// went before.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if CATCHING.get() {
                REPORT.set(Some(report(info)));
            } else {
                before(info);
            }
        }));
    });
}

/// Does something, and says what its panic was if it panics. For what is not used afterwards, or is
/// known to bear it.
pub(crate) fn caught<T>(action: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(action));
    CATCHING.set(outer);
    result.map_err(|panic| {
        let report = REPORT.take();
        report.unwrap_or_else(|| text(&*panic).to_owned())
    })
}

fn report(info: &PanicHookInfo) -> String {
    let place = info.location().map(ToString::to_string);
    let mut report = format!(
        "{} at {}\n{}",
        text(info.payload()),
        place.as_deref().unwrap_or("an unknown place"),
        Backtrace::force_capture()
    );
    let end = report.floor_char_boundary(MAX_REPORT);
    report.truncate(end);
    report
}

fn text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of unknown cause")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn what_goes_wrong(number: usize) -> usize {
        [1, 2, 3][std::hint::black_box(number)]
    }

    #[test]
    fn a_report_names_the_text_the_place_and_who_called() {
        install();
        install();
        assert_eq!(caught(|| what_goes_wrong(1)), Ok(2));
        let report = caught(|| what_goes_wrong(7)).unwrap_err();
        assert!(report.contains("the index is 7"), "{report}");
        assert!(report.contains(file!()), "{report}");
        assert!(report.contains("what_goes_wrong"), "{report}");
        assert!(report.len() <= MAX_REPORT);
    }
}
