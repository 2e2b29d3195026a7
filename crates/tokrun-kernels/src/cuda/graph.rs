//! Steps that only decode are written down and carried out as one, by replaying a graph. Those that were rehearsed when the
//! model was loaded have theirs; of others, kernels are launched one after the other the first time, and captured the second.
//!
//! All that differs from step to step lies in memory at fixed addresses (`stage`), so a graph is right for as long as the
//! same launches come. That is compared word for word each time; where they differ, the graph is dropped.

use std::collections::HashMap;

use super::device::Device;
use super::launches::Launches;
use super::stream::Graph;
use crate::KernelError;

/// Batch sizes to remember; beyond it, all are forgotten.
const GRAPHS_MAX: usize = 256;

/// Which steps should have the same launches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Rows, filled up.
    pub(super) rows: usize,
    /// Rows whose output is wanted, filled up.
    pub(super) chosen: usize,
    /// The first row of output that a token may be drawn from.
    pub(super) drawn_from: Option<usize>,
}

/// The steps that came before.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    known: HashMap<Key, Known>,
    /// Steps that were replayed.
    replayed: u64,
}

#[derive(Debug)]
struct Known {
    launches: Launches,
    /// From the second time on, or the rehearsal. The first time, everything is made that kernels need and that a capture does
    /// not allow.
    graph: Option<Graph>,
}

impl Graphs {
    /// How many steps were replayed so far.
    pub(super) fn replayed(&self) -> u64 {
        self.replayed
    }

    /// Carries out a step; what it reads was copied to the device before. `launches` is empty afterwards.
    pub(super) fn run(&mut self, device: &Device, key: Key, launches: &mut Launches) -> Result<(), KernelError> {
        if let Some(known) = self.known.get_mut(&key).filter(|known| known.launches == *launches) {
            launches.clear();
            let graph = match &mut known.graph {
                Some(graph) => {
                    self.replayed += 1;
                    graph
                }
                none => none.insert(device.capture(|| known.launches.launch(device))?),
            };
            return Ok(graph.launch()?);
        }
        launches.launch(device)?;
        self.remember(key, Known { launches: std::mem::take(launches), graph: None });
        Ok(())
    }

    /// Captures a step that will come. `launches` is empty afterwards.
    pub(super) fn rehearse(&mut self, device: &Device, key: Key, launches: &mut Launches) -> Result<(), KernelError> {
        let launches = std::mem::take(launches);
        let graph = device.capture(|| launches.launch(device))?;
        self.remember(key, Known { launches, graph: Some(graph) });
        Ok(())
    }

    fn remember(&mut self, key: Key, step: Known) {
        if self.known.len() >= GRAPHS_MAX {
            self.known.clear();
        }
        self.known.insert(key, step);
    }
}
