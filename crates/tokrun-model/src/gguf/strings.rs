//! Many short strings in one piece of memory.

use std::fmt;
use std::sync::Arc;

/// A list of strings. Cloning it is cheap. A vocabulary of its tokens, each in memory of its own, takes four times as much.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings(Arc<Inner>);

#[derive(Default, PartialEq, Eq)]
struct Inner {
    /// All of them, one after the other.
    text: String,
    /// Where each ends in `text`.
    ends: Vec<usize>,
}

impl Strings {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.ends.is_empty()
    }

    /// The string at that place.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.0.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.0.ends[before]);
        Some(&self.0.text[start..end])
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.get(index).expect("the index is below the length"))
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut inner = Inner::default();
        for string in strings {
            inner.text.push_str(string.as_ref());
            inner.ends.push(inner.text.len());
        }
        inner.text.shrink_to_fit();
        Self(Arc::new(inner))
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
