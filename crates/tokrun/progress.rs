//! The bars of downloads, of loading and of requests; without a terminal, nothing but a download's notes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokrun_model::LoadProgress;
use tokrun_model::pull::PullProgress;

/// Draws on stderr.
pub(crate) struct Bar(Mutex<Option<ProgressBar>>);

impl Bar {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Option<ProgressBar>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl PullProgress for Bar {
    fn begin(&self, file: &str, total_bytes: Option<u64>) {
        // indicatif hides itself where stderr is no terminal.
        let shown = match total_bytes {
            Some(total) => bar(total),
            None => ProgressBar::new_spinner().with_style(
                ProgressStyle::with_template("{prefix} {spinner} {bytes} {elapsed}").expect("the template is constant"),
            ),
        };
        shown.set_prefix(file.to_owned());
        shown.enable_steady_tick(Duration::from_millis(200));
        self.with(|slot| *slot = Some(shown));
    }

    fn advance(&self, bytes: u64) {
        self.with(|slot| {
            if let Some(bar) = slot {
                bar.inc(bytes);
            }
        });
    }

    fn note(&self, message: &str) {
        self.with(|slot| match slot {
            Some(bar) if !bar.is_hidden() => bar.suspend(|| say!("{message}")),
            _ => say!("{message}"),
        });
    }

    fn end(&self) {
        self.with(|slot| {
            if let Some(bar) = slot.take() {
                bar.finish_and_clear();
            }
        });
    }
}

/// What loads in less time needs no bar.
const PATIENCE: Duration = Duration::from_millis(300);

/// Shows how far the weights of a model are read, until they are loaded.
pub(crate) fn show_load(model: &str, weight_bytes: u64, progress: &LoadProgress, is_loaded: &AtomicBool) {
    let (begun, mut shown) = (Instant::now(), None);
    while !is_loaded.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        if begun.elapsed() >= PATIENCE {
            let shown = shown.get_or_insert_with(|| bar(weight_bytes).with_prefix(model.to_owned()));
            shown.set_position(progress.bytes_read().min(weight_bytes));
        }
    }
    if let Some(shown) = shown {
        shown.finish_and_clear();
    }
}

/// How many of so many requests have ended; of endlessly many, if it is a matter of time.
pub(crate) fn requests(total: Option<usize>) -> ProgressBar {
    let (shown, template) = match total {
        Some(total) => (ProgressBar::new(total as u64), "{wide_bar} {pos}/{len} requests {per_sec} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {pos} requests {per_sec} {elapsed}"),
    };
    let shown = shown.with_style(ProgressStyle::with_template(template).expect("the template is constant"));
    shown.enable_steady_tick(Duration::from_millis(200));
    shown
}

fn bar(total_bytes: u64) -> ProgressBar {
    let template = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is constant");
    ProgressBar::new(total_bytes).with_style(style)
}
