//! Compared with the library's own byte-pair encoding.

use proptest::prelude::*;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::*;

/// Letters, the bytes that `é` is spelled with (not those of `ñ`), what stands for the unknown, and what random merges
/// make of them: pairs of any two tokens so far, so that several ways lead to one spelling.
fn model(merges: &[(usize, usize)]) -> (Vec<String>, Vec<(usize, usize)>) {
    let mut tokens: Vec<String> =
        ["<unk>", "a", "b", "c", "d", "<0xC3>", "<0xA9>"].into_iter().map(str::to_owned).collect();
    let mut made = Vec::new();
    for (left, right) in merges {
        // What stands for the unknown and for bytes is never merged.
        let mergeable: Vec<usize> = (0..tokens.len()).filter(|index| !tokens[*index].starts_with('<')).collect();
        let (left, right) = (mergeable[left % mergeable.len()], mergeable[right % mergeable.len()]);
        let merged = format!("{}{}", tokens[left], tokens[right]);
        if merged.len() > 12 {
            continue;
        }
        if !tokens.contains(&merged) {
            tokens.push(merged);
        }
        made.push((left, right));
    }
    (tokens, made)
}

proptest! {
    #[test]
    fn words_become_what_the_library_makes_of_them(
        merges in prop::collection::vec((0usize..64, 0usize..64), 0..60),
        words in prop::collection::vec("[abcdéñx]{0,40}", 1..8),
        (ignore_merges, byte_fallback, knows_unknown) in any::<(bool, bool, bool)>(),
    ) {
        let (tokens, made) = model(&merges);
        let id = |token: &str| tokens.iter().position(|known| known == token).expect("it is one") as TokenId;
        let text = |(left, right): &(usize, usize)| (tokens[*left].clone(), tokens[*right].clone());

        let vocabulary: Vec<(String, TokenId)> = tokens.iter().cloned().zip(0..).collect();
        let library = BPE::builder()
            .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), made.iter().map(text).collect())
            .ignore_merges(ignore_merges)
            .byte_fallback(byte_fallback)
            .fuse_unk(true);
        let library = if knows_unknown { library.unk_token("<unk>".to_owned()) } else { library };
        let library = library.build().expect("it is well formed");

        let table = TokenTable::new(&tokens.iter().collect(), tokens.len()).expect("no token comes twice");
        let settings = Settings { ignore_merges, byte_fallback, unknown: knows_unknown.then_some(0) };
        let mut pairs = Pairs::new(table, settings);
        let merged = made.iter().map(|(left, right)| {
            (*left as TokenId, *right as TokenId, id(&format!("{}{}", tokens[*left], tokens[*right])))
        });
        pairs.add_merges(merged.collect::<Vec<_>>().into_iter());

        for word in &words {
            let expected: Vec<(TokenId, usize)> = library
                .tokenize(word)
                .expect("every word can be tokenized")
                .into_iter()
                .map(|token| (token.id, token.offsets.1 - token.offsets.0))
                .collect();
            prop_assert_eq!(pairs.tokens(word), expected, "{:?}", word);
        }
    }
}

#[test]
fn tokens_are_found_by_spelling_and_by_number() {
    let tokens = ["", "a", "bc", "padding"].into_iter().collect();
    let table = TokenTable::new(&tokens, 3).expect("no token comes twice");
    assert_eq!((table.id("a"), table.id("bc"), table.id("padding"), table.id("")), (Some(1), Some(2), None, None));
    assert_eq!((table.token(0), table.token(2), table.token(3)), (None, Some("bc"), None));
    assert_eq!(table.entries().collect::<Vec<_>>(), [("a", 1), ("bc", 2)]);
    assert!(TokenTable::new(&["x", "y", "x"].into_iter().collect(), 3).is_none(), "one comes twice");
}

/// Long words are what a heap is for: a naive search would take minutes.
#[test]
fn a_long_word_is_encoded_in_no_time() {
    let tokens = ["a", "aa", "aaaa"].into_iter().collect();
    let mut pairs = Pairs::new(TokenTable::new(&tokens, 3).expect("no token comes twice"), Settings::default());
    pairs.add_merges([(0, 0, 1), (1, 1, 2)].into_iter());
    let made = pairs.tokens(&"a".repeat(400_003));
    assert_eq!(made.len(), 100_000 + 2);
    assert_eq!(made[100_000..], [(1, 2), (0, 1)]);
}
