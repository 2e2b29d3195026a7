//! Which block of a paged cache belongs to whom, and what it holds. It does no I/O and reads no clock.
//!
//! A sequence holds a [`Chain`] of blocks. A block that its sequence has filled is published: sequences that begin alike
//! take it over instead of computing it, and nobody writes to it any more. It is found by what it holds and by the
//! published block before it, or the salt before the first: both are compared in full, so a hit is never a coincidence.
//!
//! Blocks that nobody holds are blank, or idle: published, and taken back when no blank one is left, the one let go
//! longest ago first. A chain is let go from its end, so a block is never taken back before those that follow it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokrun_model::{BlockId, Paging, TokenId};

#[cfg(test)]
mod tests;

/// All blocks of one executor.
#[derive(Debug)]
pub(crate) struct Blocks {
    block_tokens: usize,
    /// Whether filled blocks are published at all.
    shares: bool,
    /// By number.
    blocks: Vec<Block>,
    blank: Vec<BlockId>,
    /// By when they were let go.
    idle: BTreeMap<u64, BlockId>,
    published: HashMap<Content, BlockId>,
    /// Numbers events, each once.
    events: u64,
}

/// The blocks of one sequence, in order; the first ones may be shared.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Shared with the steps that are planned; these see it as it was.
    blocks: Arc<Vec<BlockId>>,
    /// So many of them are published.
    published: usize,
    /// What the next one to be published follows.
    tip: Before,
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// Chains that it is part of.
    holders: usize,
    /// When it was let go; of meaning while it is idle.
    idle_since: u64,
    publication: Option<Publication>,
}

#[derive(Clone, Debug)]
struct Publication {
    content: Content,
    /// Never given twice, so nothing can follow a block that was taken back.
    number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Content {
    before: Before,
    tokens: Box<[TokenId]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Before {
    Nothing { salt: u64 },
    Block { number: u64 },
}

impl Blocks {
    /// All blank; filled ones are shared only with `shares`.
    pub(crate) fn new(paging: Paging, shares: bool) -> Self {
        // A block that cannot be named by its type cannot be used.
        let count = BlockId::try_from(paging.blocks).unwrap_or(BlockId::MAX);
        Self {
            block_tokens: paging.block_tokens,
            shares,
            blocks: vec![Block::default(); count as usize],
            blank: (0..count).rev().collect(),
            idle: BTreeMap::new(),
            published: HashMap::new(),
            events: 0,
        }
    }

    /// A chain for `tokens`, with what is published of it in place and room for the rest; `None` when fewer than
    /// `reserve` blocks would be left for others. The last token is never found: its logits must be computed.
    pub(crate) fn begin(&mut self, salt: u64, tokens: &[TokenId], reserve: usize) -> Option<Chain> {
        let mut chain = Chain { blocks: Arc::default(), published: 0, tip: Before::Nothing { salt } };
        self.adopt(&mut chain, tokens);
        let fits = self.missing(&chain, tokens.len()) + reserve <= self.available();
        if fits && self.grow(&mut chain, tokens.len()) {
            return Some(chain);
        }
        self.release(chain);
        None
    }

    /// Puts published blocks in place of those that the sequence of `tokens` has yet to fill.
    pub(crate) fn adopt(&mut self, chain: &mut Chain, tokens: &[TokenId]) {
        while (chain.published + 1) * self.block_tokens < tokens.len() {
            let Some(&twin) = self.published.get(&self.next_content(chain, tokens)) else { return };
            self.take_over(chain, twin);
        }
    }

    /// Makes room for `tokens` tokens in all; false, and nothing is changed, when there are not enough blocks.
    pub(crate) fn grow(&mut self, chain: &mut Chain, tokens: usize) -> bool {
        let missing = self.missing(chain, tokens);
        if missing > self.available() {
            return false;
        }
        for _ in 0..missing {
            let block = self.take().expect("so many are available");
            Arc::make_mut(&mut chain.blocks).push(block);
        }
        true
    }

    /// The model has computed `tokens`, all that the sequence has from its beginning: blocks that they fill are
    /// published. One that was published meanwhile by a sequence that began alike is taken over.
    pub(crate) fn publish(&mut self, chain: &mut Chain, tokens: &[TokenId]) {
        while self.shares && (chain.published + 1) * self.block_tokens <= tokens.len() {
            let content = self.next_content(chain, tokens);
            match self.published.get(&content) {
                Some(&twin) => self.take_over(chain, twin),
                None => {
                    let (block, number) = (chain.blocks[chain.published], self.next_event());
                    self.published.insert(content.clone(), block);
                    self.blocks[block as usize].publication = Some(Publication { content, number });
                    chain.tip = Before::Block { number };
                    chain.published += 1;
                }
            }
        }
    }

    /// Lets go of a chain, from its end.
    pub(crate) fn release(&mut self, chain: Chain) {
        chain.blocks.iter().rev().for_each(|block| self.let_go(*block));
    }

    /// Tokens at the beginning of a chain that are published, and so computed.
    pub(crate) fn published_tokens(&self, chain: &Chain) -> usize {
        chain.published * self.block_tokens
    }

    /// Blocks there are.
    pub(crate) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that a chain could get.
    pub(crate) fn available(&self) -> usize {
        self.blank.len() + self.idle.len()
    }

    /// Blocks that nobody holds, kept for what they hold.
    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Blocks that a chain lacks for `tokens` tokens in all.
    pub(crate) fn missing(&self, chain: &Chain, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens).saturating_sub(chain.blocks.len())
    }

    fn next_content(&self, chain: &Chain, tokens: &[TokenId]) -> Content {
        let start = chain.published * self.block_tokens;
        Content { before: chain.tip, tokens: tokens[start..start + self.block_tokens].into() }
    }

    /// Puts a published block next in a chain, in place of one that was to hold the same.
    fn take_over(&mut self, chain: &mut Chain, block: BlockId) {
        let Block { holders, idle_since, publication } = &mut self.blocks[block as usize];
        if *holders == 0 {
            self.idle.remove(idle_since);
        }
        *holders += 1;
        let number = publication.as_ref().expect("it was found as published").number;
        let blocks = Arc::make_mut(&mut chain.blocks);
        match blocks.get_mut(chain.published) {
            Some(own) => {
                let own = std::mem::replace(own, block);
                self.let_go(own);
            }
            None => blocks.push(block),
        }
        chain.tip = Before::Block { number };
        chain.published += 1;
    }

    /// A blank block, or the one that is idle longest.
    fn take(&mut self) -> Option<BlockId> {
        let id = self.blank.pop().or_else(|| self.idle.pop_first().map(|(_, id)| id))?;
        let block = &mut self.blocks[id as usize];
        block.holders = 1;
        if let Some(publication) = block.publication.take() {
            self.published.remove(&publication.content);
        }
        Some(id)
    }

    fn let_go(&mut self, id: BlockId) {
        let event = self.next_event();
        let block = &mut self.blocks[id as usize];
        block.holders -= 1;
        if block.holders > 0 {
            return;
        }
        if block.publication.is_some() {
            block.idle_since = event;
            self.idle.insert(event, id);
        } else {
            self.blank.push(id);
        }
    }

    fn next_event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }
}

impl Chain {
    /// The blocks in order, as they are now.
    pub(crate) fn share(&self) -> Arc<Vec<BlockId>> {
        Arc::clone(&self.blocks)
    }

    #[cfg(test)]
    pub(crate) fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }
}
