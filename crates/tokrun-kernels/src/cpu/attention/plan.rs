//! How a call is cut into pieces for the threads. No result depends on it.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use super::segment::SEGMENT_TOKENS;
use crate::{Attention, KV_BLOCK_TOKENS, Span};

/// Queries, times heads of a group, that are computed together: what they share is loaded once for all of them.
const QUERY_HEADS: usize = 16;
/// Units for each thread from which on they are not cut.
const UNITS_A_THREAD: usize = 4;

/// The pieces of one call.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) units: Vec<Unit>,
    pub(super) items: Vec<Item>,
    /// The blocks that are stored to before anything else; none where each unit stores its one row itself.
    pub(super) written: Vec<Written>,
    /// Queries a unit has at most, times heads of a group.
    pub(super) queries_max: usize,
    /// Results of segments, one for each query and head, that must be kept.
    pub(super) parts: usize,
    /// Scores to compute: query heads times the tokens they see.
    pub(super) scores: usize,
}

/// Consecutive queries of a sequence, with the query heads of one key-value head.
pub(super) struct Unit {
    pub(super) span: usize,
    pub(super) kv_head: usize,
    /// Rows of the queries in the step.
    pub(super) rows: Range<usize>,
    /// Position of the first of them.
    pub(super) start: usize,
    /// The segments that any of them sees.
    pub(super) segments: Range<usize>,
    /// Items of this unit that are not finished.
    pub(super) unfinished: AtomicUsize,
    /// Where the results of its segments are kept, if it is cut: `[segments, queries]` from here.
    pub(super) parts: usize,
}

/// What one thread does at a time: some segments of a unit.
pub(super) struct Item {
    pub(super) unit: usize,
    pub(super) segments: Range<usize>,
}

/// Rows of a step that go to one block.
pub(super) struct Written {
    pub(super) span: usize,
    pub(super) rows: Range<usize>,
    /// Position of the first of them.
    pub(super) start: usize,
}

/// The first position that a token at `position` sees.
#[inline(always)]
pub(super) fn first_seen(position: usize, window_tokens: Option<usize>) -> usize {
    window_tokens.map_or(0, |window| (position + 1).saturating_sub(window.max(1)))
}

impl Plan {
    pub(super) fn make(&mut self, attention: &Attention, spans: &[Span], threads: usize) {
        let group = attention.heads / attention.kv_heads;
        self.units.clear();
        self.items.clear();
        self.written.clear();
        (self.queries_max, self.parts, self.scores) = (0, 0, 0);

        for (index, span) in spans.iter().enumerate() {
            self.add_units(attention, group, index, span);
        }
        if spans.iter().any(|span| span.rows.len() > 1) {
            for (index, span) in spans.iter().enumerate() {
                for (start, rows) in cut(span, KV_BLOCK_TOKENS) {
                    self.written.push(Written { span: index, rows, start });
                }
            }
        }
        let whole = threads == 1 || self.units.len() >= UNITS_A_THREAD * threads;
        self.add_items(whole, group);
    }

    fn add_units(&mut self, attention: &Attention, group: usize, index: usize, span: &Span) {
        // A power of two, so that no unit lies in two segments.
        let queries = (QUERY_HEADS / group).max(1);
        let queries = 1 << queries.ilog2().min(3);
        for (start, rows) in cut(span, queries) {
            let first = first_seen(start, attention.window_tokens);
            let end = start + rows.len();
            let segments = first / SEGMENT_TOKENS..(end - 1) / SEGMENT_TOKENS + 1;
            self.queries_max = self.queries_max.max(rows.len() * group);
            self.scores += rows.len() * attention.heads * (end - first);
            for kv_head in 0..attention.kv_heads {
                let (rows, segments) = (rows.clone(), segments.clone());
                let unfinished = AtomicUsize::new(segments.len());
                self.units.push(Unit { span: index, kv_head, rows, start, segments, unfinished, parts: 0 });
            }
        }
    }

    fn add_items(&mut self, whole: bool, group: usize) {
        for (index, unit) in self.units.iter_mut().enumerate() {
            if whole {
                self.items.push(Item { unit: index, segments: unit.segments.clone() });
                continue;
            }
            unit.parts = self.parts;
            self.parts += unit.segments.len() * unit.rows.len() * group;
            let segments = unit.segments.clone().map(|segment| segment..segment + 1);
            self.items.extend(segments.map(|segments| Item { unit: index, segments }));
        }
    }
}

/// Cuts the rows of a span at positions that are multiples of `size`: the first position of each piece, and its rows.
fn cut(span: &Span, size: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let Span { rows, start, .. } = span;
    let (first_row, start, end) = (rows.start, *start, start + rows.len());
    let pieces = (start / size..end.div_ceil(size)).map(move |piece| {
        let piece = (piece * size).max(start)..((piece + 1) * size).min(end);
        (piece.start, first_row + piece.start - start..first_row + piece.end - start)
    });
    pieces.filter(|(_, rows)| !rows.is_empty())
}
