//! The bar of a download; without a terminal, nothing but its notes.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
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
        let bar = match total_bytes {
            Some(total) => ProgressBar::new(total).with_style(
                ProgressStyle::with_template("{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
                    .expect("the template is constant"),
            ),
            None => ProgressBar::new_spinner().with_style(
                ProgressStyle::with_template("{prefix} {spinner} {bytes} {elapsed}").expect("the template is constant"),
            ),
        };
        bar.set_prefix(file.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        self.with(|slot| *slot = Some(bar));
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
