//! Byte-pair encoding over tables that are quick to build and small.
//!
//! The library's own keeps every token twice, each in memory of its own, and takes longer to build than most models take
//! to load. What becomes of a text is the same, down to the order of merges of equal rank.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use tokrun_model::TokenId;
use tokrun_model::gguf::Strings;

/// A vocabulary and the pairs that are merged.
#[derive(Debug)]
pub(super) struct Pairs {
    table: TokenTable,
    merges: HashMap<(TokenId, TokenId), Merge, RandomState>,
    /// What follows those settings is GPT-2's way, that of byte-level models.
    pub(super) settings: Settings,
}

/// How models differ.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settings {
    /// A word that is a token as a whole is taken as it is.
    pub(super) ignore_merges: bool,
    /// A character that is no token is spelled as `<0x0A>`, byte by byte, if those are.
    pub(super) byte_fallback: bool,
    /// What stands for characters that are no token, all that follow each other together; they are dropped without it.
    pub(super) unknown: Option<TokenId>,
}

/// What a pair becomes, the lowest rank first.
#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: u32,
    merged: TokenId,
}

/// A part of a word, linked to its neighbours. One that was merged into the part before has no length.
#[derive(Clone, Copy, Debug)]
struct Part {
    token: TokenId,
    bytes: usize,
    before: Option<usize>,
    after: Option<usize>,
}

impl Pairs {
    pub(super) fn new(table: TokenTable, settings: Settings) -> Self {
        Self { table, merges: HashMap::default(), settings }
    }

    /// Merges are added from the lowest rank to the highest: of a pair that comes twice, the last one counts.
    pub(super) fn add_merges(&mut self, merges: impl ExactSizeIterator<Item = (TokenId, TokenId, TokenId)>) {
        self.merges.reserve(merges.len());
        let ranked = merges.zip(0..).map(|((left, right, merged), rank)| ((left, right), Merge { rank, merged }));
        self.merges.extend(ranked);
    }

    pub(super) fn table(&self) -> &TokenTable {
        &self.table
    }

    /// The tokens of a word, each with the number of its bytes.
    pub(super) fn tokens(&self, word: &str) -> Vec<(TokenId, usize)> {
        if self.settings.ignore_merges
            && let Some(token) = self.table.id(word)
        {
            return vec![(token, word.len())];
        }
        let mut parts = self.characters(word);
        self.merge(&mut parts);
        parts.into_iter().filter(|part| part.bytes > 0).map(|part| (part.token, part.bytes)).collect()
    }

    /// One part a character.
    fn characters(&self, word: &str) -> Vec<Part> {
        let mut parts = Vec::with_capacity(word.len());
        let mut add = |token, bytes| {
            let index = parts.len();
            parts.push(Part { token, bytes, before: index.checked_sub(1), after: Some(index + 1) });
        };
        let mut unknown_bytes = 0;
        let mut spelling = [0; 4];
        for character in word.chars() {
            let bytes = character.len_utf8();
            if let Some(token) = self.table.id(character.encode_utf8(&mut spelling)) {
                if let Some(unknown) = self.settings.unknown.filter(|_| unknown_bytes > 0) {
                    add(unknown, std::mem::take(&mut unknown_bytes));
                }
                add(token, bytes);
            } else if let Some(tokens) = self.spelled_bytes(&spelling[..bytes]) {
                tokens.into_iter().for_each(|token| add(token, 1));
            } else {
                unknown_bytes += bytes;
            }
        }
        if let Some(unknown) = self.settings.unknown.filter(|_| unknown_bytes > 0) {
            add(unknown, unknown_bytes);
        }
        if let Some(last) = parts.last_mut() {
            last.after = None;
        }
        parts
    }

    /// The tokens of bytes that are no token together, if each of them has one.
    fn spelled_bytes(&self, bytes: &[u8]) -> Option<Vec<TokenId>> {
        if !self.settings.byte_fallback {
            return None;
        }
        bytes.iter().map(|byte| self.table.id(&format!("<0x{byte:02X}>"))).collect()
    }

    /// Merges pairs, of the lowest rank first and of equal ones the leftmost, until none is left.
    fn merge(&self, parts: &mut [Part]) {
        let pair = |parts: &[Part], left: usize| {
            let right = parts[left].after?;
            self.merges.get(&(parts[left].token, parts[right].token)).copied()
        };
        let candidate =
            |parts: &[Part], left: usize| pair(parts, left).map(|merge| Reverse((merge.rank, left, merge.merged)));
        let mut queue: BinaryHeap<_> = (0..parts.len()).filter_map(|left| candidate(parts, left)).collect();
        while let Some(Reverse((_, left, merged))) = queue.pop() {
            // One of the two may have been merged with another part since.
            if parts[left].bytes == 0 || pair(parts, left).is_none_or(|merge| merge.merged != merged) {
                continue;
            }
            let right = parts[left].after.expect("it has a pair");
            let Part { bytes, after, .. } = parts[right];
            parts[right].bytes = 0;
            parts[left] = Part { token: merged, bytes: parts[left].bytes + bytes, after, ..parts[left] };
            if let Some(after) = after {
                parts[after].before = Some(left);
            }
            queue.extend(parts[left].before.and_then(|before| candidate(parts, before)));
            queue.extend(candidate(parts, left));
        }
    }
}

/// Tokens by spelling and by number.
#[derive(Debug)]
pub(super) struct TokenTable {
    tokens: Strings,
    /// Tokens in use: those behind are no part of it.
    used: usize,
    /// Open addressing: the number of a token lies in the first free place from its hash on. A power of two, at most
    /// half full.
    places: Vec<TokenId>,
    hasher: RandomState,
}

/// Marks a free place.
const FREE: TokenId = TokenId::MAX;

impl TokenTable {
    /// Of the first `used` of `tokens`. An empty one cannot be told from another, and is left out. `None` if one comes
    /// twice.
    pub(super) fn new(tokens: &Strings, used: usize) -> Option<Self> {
        let places = vec![FREE; (2 * used.max(1)).next_power_of_two()];
        let mut table = Self { tokens: tokens.clone(), used, places, hasher: RandomState::default() };
        for (token, id) in tokens.iter().take(used).zip(0..).filter(|(token, _)| !token.is_empty()) {
            let place = table.place(token);
            if table.places[place] != FREE {
                return None;
            }
            table.places[place] = id;
        }
        Some(table)
    }

    /// The token of that spelling.
    pub(super) fn id(&self, token: &str) -> Option<TokenId> {
        Some(self.places[self.place(token)]).filter(|id| *id != FREE)
    }

    /// How a token is spelled.
    pub(super) fn token(&self, id: TokenId) -> Option<&str> {
        let index = usize::try_from(id).ok().filter(|index| *index < self.used)?;
        self.tokens.get(index).filter(|token| !token.is_empty())
    }

    /// All with their numbers.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, TokenId)> {
        self.tokens.iter().take(self.used).zip(0..).filter(|(token, _)| !token.is_empty())
    }

    /// Where a token lies, or would.
    fn place(&self, token: &str) -> usize {
        let mask = self.places.len() - 1;
        let mut place = self.hasher.hash_one(token) as usize & mask;
        while self.places[place] != FREE && self.tokens.get(self.places[place] as usize) != Some(token) {
            place = (place + 1) & mask;
        }
        place
    }
}

#[cfg(test)]
mod tests;
