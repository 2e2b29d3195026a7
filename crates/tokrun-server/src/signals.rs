//! What the system says to a server.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;

use crate::app::App;

/// Every signal that says to end.
pub(crate) fn to_end() -> io::Result<broadcast::Receiver<()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (sender, receiver) = broadcast::channel(16);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            // Nobody hears it once the server has ended.
            let _ = sender.send(());
        }
    });
    Ok(receiver)
}

/// Has what is read once read again, whenever SIGHUP says so.
pub(crate) fn reload(app: &Arc<App>) -> io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    let app = Arc::clone(app);
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            let app = Arc::clone(&app);
            // One that panics has said so; what was read before stays.
            let _ = tokio::task::spawn_blocking(move || app.reload()).await;
        }
    });
    Ok(())
}
