//! Who is signed in to the dashboard.
//!
//! A page shows a key, or a one-time link, once, and gets a session's secret, which it keeps in its tab's own storage and
//! sends with each request, as programs send keys. It is no cookie: those go along by themselves, to every port of a host,
//! so that a page of another program on this machine could act with one, or be sent it. What a browser never sends by
//! itself needs no defence against forged requests. The key itself is kept nowhere in the browser.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A day's work.
pub(crate) const LIFE: Duration = Duration::from_secs(12 * 3600);

/// Sessions at once; the one that ends first makes room.
const SESSIONS_MAX: usize = 10_000;

/// How the secret of a session begins.
pub(crate) const PREFIX: &str = "tks-";

/// All of them. They end with the server.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<String, Session>>);

struct Session {
    key_id: String,
    ends: Instant,
}

impl Sessions {
    /// Signs in whoever showed a key. Returns the session's secret.
    pub(crate) fn begin(&self, key_id: &str) -> String {
        // Two times 122 random bits.
        let secret = format!("{PREFIX}{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        let now = Instant::now();
        let mut sessions = self.lock();
        sessions.retain(|_, session| session.ends > now);
        if sessions.len() >= SESSIONS_MAX {
            let first = sessions.iter().min_by_key(|(_, session)| session.ends).map(|(secret, _)| secret.clone());
            first.map(|secret| sessions.remove(&secret));
        }
        sessions.insert(secret.clone(), Session { key_id: key_id.to_owned(), ends: now + LIFE });
        secret
    }

    /// The id of the key that somebody signed in with.
    pub(crate) fn key_id(&self, secret: &str) -> Option<String> {
        let sessions = self.lock();
        sessions.get(secret).filter(|session| session.ends > Instant::now()).map(|session| session.key_id.clone())
    }

    /// Signs out.
    pub(crate) fn end(&self, secret: &str) {
        self.lock().remove(secret);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_known_until_it_ends() {
        let sessions = Sessions::default();
        let (ada, bob) = (sessions.begin("ada's"), sessions.begin("bob's"));
        assert_ne!(ada, bob);
        assert_eq!(sessions.key_id(&ada).as_deref(), Some("ada's"));
        sessions.end(&ada);
        assert_eq!((sessions.key_id(&ada), sessions.key_id(&bob).as_deref()), (None, Some("bob's")));
    }

    #[test]
    fn there_are_never_too_many() {
        let sessions = Sessions::default();
        let first = sessions.begin("first");
        (0..SESSIONS_MAX).for_each(|_| drop(sessions.begin("next")));
        assert_eq!((sessions.key_id(&first), sessions.lock().len()), (None, SESSIONS_MAX));
    }
}
