use proptest::prelude::*;

use super::*;

const BLOCK: usize = 4;

fn blocks(count: usize) -> Blocks {
    Blocks::new(Paging { block_tokens: BLOCK, blocks: count, block_bytes: 1 }, true)
}

/// A chain whose every token was computed.
fn computed(blocks: &mut Blocks, salt: u64, tokens: &[TokenId]) -> Chain {
    let mut chain = blocks.begin(salt, tokens, 0).expect("there is room");
    blocks.publish(&mut chain, tokens);
    chain
}

fn row(tokens: usize) -> Vec<TokenId> {
    (0..tokens as TokenId).collect()
}

#[test]
fn equal_beginnings_share_their_full_blocks() {
    let mut blocks = blocks(10);
    let first = computed(&mut blocks, 0, &row(10));
    assert_eq!(first.blocks(), [0, 1, 2]);
    let mut other = row(10);
    other[6] = 99;
    let second = computed(&mut blocks, 0, &other);
    assert_eq!(second.blocks(), [0, 3, 4], "the second block differs, so all that follows does");
    assert_eq!(blocks.published_tokens(&second), 8);
    blocks.release(first);
    assert_eq!((blocks.available(), blocks.idle()), (7, 1), "one is published, one never was, one is held");
    blocks.release(second);
    assert_eq!((blocks.available(), blocks.idle()), (10, 3));
}

#[test]
fn the_last_token_is_always_computed() {
    let mut blocks = blocks(10);
    let first = computed(&mut blocks, 0, &row(8));
    let again = blocks.begin(0, &row(8), 0).expect("there is room");
    assert_eq!(blocks.published_tokens(&again), 4);
    assert_eq!(again.blocks(), [0, 2]);
    let longer = blocks.begin(0, &row(9), 0).expect("there is room");
    assert_eq!(longer.blocks(), [0, 1, 3]);
    [first, again, longer].into_iter().for_each(|chain| blocks.release(chain));
}

#[test]
fn who_computes_the_same_at_the_same_time_ends_up_with_one_copy() {
    let mut blocks = blocks(10);
    let mut first = blocks.begin(0, &row(9), 0).expect("there is room");
    let mut second = blocks.begin(0, &row(9), 0).expect("there is room");
    assert_eq!((first.blocks(), second.blocks()), (&[0, 1, 2][..], &[3, 4, 5][..]));
    blocks.publish(&mut first, &row(9)[..5]);
    // It has computed a part of its first block only.
    blocks.adopt(&mut second, &row(9));
    assert_eq!(second.blocks(), [0, 4, 5]);
    blocks.publish(&mut second, &row(9));
    blocks.publish(&mut first, &row(9));
    assert_eq!((first.blocks(), second.blocks()), (&[0, 4, 2][..], &[0, 4, 5][..]));
    assert_eq!(blocks.available(), 6);
}

#[test]
fn a_salt_keeps_strangers_apart() {
    let mut blocks = blocks(10);
    let first = computed(&mut blocks, 1, &row(9));
    let second = blocks.begin(2, &row(9), 0).expect("there is room");
    assert_eq!(blocks.published_tokens(&second), 0);
    let third = blocks.begin(1, &row(9), 0).expect("there is room");
    assert_eq!(third.blocks()[..2], first.blocks()[..2]);
}

#[test]
fn what_was_let_go_longest_ago_is_taken_back_first_and_ends_before_beginnings() {
    let mut blocks = blocks(6);
    let old = computed(&mut blocks, 0, &row(12));
    let new = computed(&mut blocks, 7, &row(12));
    blocks.release(old);
    blocks.release(new);
    assert_eq!(blocks.idle(), 6);
    let stranger = blocks.begin(9, &row(13), 0).expect("there is room");
    assert_eq!(stranger.blocks(), [2, 1, 0, 5], "the old chain from its end, then the end of the new one");
    blocks.release(stranger);
    let again = blocks.begin(7, &row(12), 0).expect("there is room");
    assert_eq!(again.blocks()[..2], [3, 4]);
    assert_eq!(blocks.published_tokens(&again), 8);
}

#[test]
fn too_few_blocks_change_nothing() {
    let mut blocks = blocks(4);
    let mut chain = computed(&mut blocks, 0, &row(9));
    assert!(blocks.begin(1, &row(5), 0).is_none());
    assert!(blocks.begin(0, &row(10), 1).is_none(), "two are shared, but the reserve is not left");
    assert!(!blocks.grow(&mut chain, 17));
    assert_eq!((blocks.available(), chain.blocks().len()), (1, 3));
    let shared = blocks.begin(0, &row(10), 0).expect("two are shared");
    assert_eq!(blocks.available(), 0);
    blocks.release(shared);
    assert!(blocks.grow(&mut chain, 16));
    assert_eq!(blocks.available(), 0);
}

#[test]
fn without_sharing_nothing_is_kept() {
    let mut blocks = Blocks::new(Paging { block_tokens: BLOCK, blocks: 4, block_bytes: 1 }, false);
    let chain = computed(&mut blocks, 0, &row(9));
    assert_eq!(blocks.published_tokens(&chain), 0);
    blocks.release(chain);
    assert_eq!((blocks.available(), blocks.idle()), (4, 0));
}

#[derive(Clone, Debug)]
enum Event {
    /// Of a salt, with tokens of a small alphabet so that beginnings agree.
    Begin(u64, Vec<TokenId>),
    Grow(usize, Vec<TokenId>),
    Adopt(usize),
    Publish(usize),
    Release(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let tokens = || prop::collection::vec(0..2_u32, 1..24);
    prop_oneof![
        3 => (0..2_u64, tokens()).prop_map(|(salt, tokens)| Event::Begin(salt, tokens)),
        2 => (0..8_usize, tokens()).prop_map(|(nth, tokens)| Event::Grow(nth, tokens)),
        1 => (0..8_usize).prop_map(Event::Adopt),
        3 => (0..8_usize).prop_map(Event::Publish),
        2 => (0..8_usize).prop_map(Event::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_block_is_accounted_for_and_holds_what_its_chains_say(events in prop::collection::vec(event(), 1..60)) {
        let mut blocks = blocks(12);
        let mut chains: Vec<(Chain, u64, Vec<TokenId>)> = Vec::new();
        // What a published block really holds: salt and tokens from the very beginning.
        let mut truth: BTreeMap<BlockId, (u64, Vec<TokenId>)> = BTreeMap::new();
        for event in events {
            match event {
                Event::Begin(salt, tokens) => {
                    if let Some(chain) = blocks.begin(salt, &tokens, 0) {
                        prop_assert!(blocks.published_tokens(&chain) < tokens.len());
                        chains.push((chain, salt, tokens));
                    }
                }
                Event::Grow(nth, more) => if let Some((chain, _, tokens)) = chains.get_mut(nth) {
                    let grown = [tokens.as_slice(), &more].concat();
                    if blocks.grow(chain, grown.len()) {
                        *tokens = grown;
                    }
                },
                Event::Adopt(nth) => if let Some((chain, _, tokens)) = chains.get_mut(nth) {
                    blocks.adopt(chain, tokens);
                },
                Event::Publish(nth) => if let Some((chain, salt, tokens)) = chains.get_mut(nth) {
                    let before = chain.published;
                    let own: Vec<BlockId> = chain.blocks().to_vec();
                    blocks.publish(chain, tokens);
                    for index in before..chain.published {
                        // It has just been written by this sequence, unless a published one took its place.
                        if chain.blocks()[index] == own[index] {
                            truth.insert(own[index], (*salt, tokens[..(index + 1) * BLOCK].to_vec()));
                        }
                    }
                },
                Event::Release(nth) => if nth < chains.len() {
                    blocks.release(chains.remove(nth).0);
                },
            }
            let mut holders = [0; 12];
            for (chain, salt, tokens) in &chains {
                prop_assert!(chain.blocks().len() * BLOCK >= tokens.len());
                for (index, block) in chain.blocks().iter().enumerate() {
                    holders[*block as usize] += 1;
                    if index < chain.published {
                        prop_assert_eq!(&truth[block], &(*salt, tokens[..(index + 1) * BLOCK].to_vec()));
                    }
                }
                for block in &chain.blocks()[chain.published..] {
                    prop_assert_eq!(blocks.blocks[*block as usize].holders, 1, "what is written to belongs to one");
                }
            }
            for (block, holders) in blocks.blocks.iter().zip(holders) {
                prop_assert_eq!(block.holders, holders);
            }
            let held = holders.iter().filter(|holders| **holders > 0).count();
            prop_assert_eq!(held + blocks.available(), blocks.total());
        }
    }
}
