//! Points in a stream that can be waited for, and pieces of it that can be replayed.
#![expect(unsafe_code, reason = "says that a graph may move between threads")]

use std::fmt;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaEvent, CudaGraph};

use super::device::Device;
use super::error::{Asked, CudaError};

/// A point in the device's stream.
pub(crate) struct Event {
    event: CudaEvent,
    device: Device,
    /// What was issued before it.
    issued: u64,
}

impl Event {
    /// Moves it to what was asked for so far.
    ///
    /// # Errors
    /// When an earlier kernel failed.
    pub(crate) fn record(&mut self) -> Result<(), CudaError> {
        self.issued = self.device.shared.order.issued();
        self.event.record(&self.device.shared.stream).asked("an event")
    }

    /// Waits until the device has come to it; not at all where it was never recorded.
    ///
    /// # Errors
    /// When an earlier kernel failed.
    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        self.event.synchronize().asked("to finish")?;
        self.device.shared.order.complete(self.issued);
        Ok(())
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event after {}", self.issued)
    }
}

/// Launches that were captured, ready to be launched together. They keep the addresses they were given: the buffers must
/// still be there.
pub(crate) struct Graph {
    graph: CudaGraph,
}

// SAFETY: the driver's graphs may be used from any thread, one at a time, which `!Sync` holds callers to.
unsafe impl Send for Graph {}

impl Graph {
    /// Puts its launches on the stream it was captured from.
    ///
    /// # Errors
    /// When an earlier kernel failed.
    pub(crate) fn launch(&self) -> Result<(), CudaError> {
        self.graph.launch().asked("a graph's launch")
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Graph")
    }
}

impl Device {
    /// An event that was not recorded yet.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(crate) fn event(&self) -> Result<Event, CudaError> {
        let event = self.shared.context.new_event(None).asked("an event")?;
        Ok(Event { event, device: self.clone(), issued: 0 })
    }

    /// Turns the launches of `work` into a graph, without running them. Nothing may be allocated, freed or waited for
    /// meanwhile, and nothing copied from or to the host.
    ///
    /// # Errors
    /// What `work` answers; or when it did what a graph cannot hold, or nothing at all.
    pub(crate) fn capture<E: From<CudaError>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        let stream = &self.shared.stream;
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).asked("to capture")?;
        self.shared.capturing.store(true, SeqCst);
        let done = work();
        self.shared.capturing.store(false, SeqCst);
        let captured = stream.end_capture(CUgraphInstantiate_flags(0)).asked("a graph");
        done?;
        let nothing = || CudaError::Refused { what: "a graph", code: "nothing was launched".to_owned() };
        let graph = captured?.ok_or_else(nothing)?;
        graph.upload().asked("a graph")?;
        Ok(Graph { graph })
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.shared.capturing.load(SeqCst)
    }

    /// How long the device takes for `work`. By its own clock; by the host's with drivers before CUDA 12.8, which lack the
    /// call.
    ///
    /// # Errors
    /// What `work` answers, or when the driver refuses.
    pub(crate) fn time(&self, work: impl FnOnce() -> Result<(), CudaError>) -> Result<Duration, CudaError> {
        self.synchronise()?;
        let event = || self.shared.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).asked("an event");
        let (start, end, clock) = (event()?, event()?, Instant::now());
        start.record(&self.shared.stream).asked("an event")?;
        work()?;
        end.record(&self.shared.stream).asked("an event")?;
        self.synchronise()?;
        if super::driver_version().asked("its version")? < (12, 8) {
            return Ok(clock.elapsed());
        }
        let ms = start.elapsed_ms(&end).asked("a time")?;
        Ok(Duration::from_secs_f64(f64::from(ms) / 1e3))
    }
}
