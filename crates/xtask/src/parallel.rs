//! Work on all processors.

use std::sync::Mutex;
use std::thread;

use anyhow::Result;

/// `work` on each item, their results in the order of the items; the first error ends it.
pub(crate) fn map<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let queue = Mutex::new(items.into_iter().enumerate());
    let next = || queue.lock().expect("no worker panics").next();
    let worker = || -> Result<Vec<(usize, R)>> {
        let mut done = Vec::new();
        while let Some((index, item)) = next() {
            match work(item) {
                Ok(result) => done.push((index, result)),
                Err(error) => {
                    queue.lock().expect("no worker panics").by_ref().for_each(drop);
                    return Err(error);
                }
            }
        }
        Ok(done)
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let mut done = Vec::new();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("workers return errors").map(|part| done.extend(part)))
    })?;
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}
