//! Guesses what a sequence says next, from what it said before: prompt lookup decoding (Saxena 2023). A text that repeats
//! itself or its prompt often goes on as it did the last time; a model checks several guesses in one step for little more
//! than the price of one token.
//!
//! How many tokens to guess follows from how often the guesses for this sequence came true.

use tokrun_model::TokenId;

/// Tokens guessed in one step at most.
const LENGTH_MAX: usize = 8;
/// The last tokens that must have occurred before, at least and at most.
const MATCH_TOKENS: std::ops::RangeInclusive<usize> = 2..=4;
/// What one more row costs, as a share of a step with one row: a step reads all weights once for all its rows.
const ROW_COST: f64 = 0.3;
/// How fast experience replaces what was assumed.
const LEARNING_RATE: f64 = 0.15;
/// Steps without a guess, before one is tried again.
const PAUSE_STEPS: u32 = 32;

#[derive(Debug)]
pub(super) struct Drafter {
    /// The share of guesses that come true.
    acceptance: f64,
    /// Steps until the next trial while guessing does not pay.
    pause: u32,
}

impl Drafter {
    pub(super) fn new() -> Self {
        Self { acceptance: 0.4, pause: PAUSE_STEPS }
    }

    /// What `tokens` may be followed by, at most `room` tokens; often nothing.
    pub(super) fn guess(&mut self, tokens: &[TokenId], room: usize) -> Vec<TokenId> {
        let length = self.length().min(room);
        let distance = if length == 0 { None } else { last_occurrence(tokens) };
        let Some(distance) = distance else { return Vec::new() };
        let start = tokens.len() - distance;
        (0..length).map(|index| tokens[start + index % distance]).collect()
    }

    /// Whether it would guess if it knew the next token, as far as `tokens`, those before it, tell.
    pub(super) fn expects(&mut self, tokens: &[TokenId]) -> bool {
        if self.best_length() == 0 {
            self.pause = (self.pause - 1).max(1);
        }
        (self.best_length() > 0 || self.pause == 1) && last_occurrence(tokens).is_some()
    }

    /// A guess was checked.
    pub(super) fn learn(&mut self, came_true: bool) {
        let outcome = if came_true { 1.0 } else { 0.0 };
        self.acceptance += LEARNING_RATE * (outcome - self.acceptance);
    }

    /// The length that promises the most tokens for the time; now and then 1 where none pays.
    fn length(&mut self) -> usize {
        let best = self.best_length();
        if best == 0 {
            self.pause -= 1;
            if self.pause == 0 {
                self.pause = PAUSE_STEPS;
                return 1;
            }
        }
        best
    }

    /// The length that promises the most tokens for the time.
    fn best_length(&self) -> usize {
        let (mut best, mut best_speed) = (0, 1.0);
        let (mut tokens, mut chance) = (1.0, 1.0);
        for length in 1..=LENGTH_MAX {
            chance *= self.acceptance;
            tokens += chance;
            let speed = tokens / (1.0 + ROW_COST * length as f64);
            if speed > best_speed {
                (best, best_speed) = (length, speed);
            }
        }
        best
    }
}

/// How far back the last tokens occurred before: the longest such match, of equal ones the latest.
fn last_occurrence(tokens: &[TokenId]) -> Option<usize> {
    let (&last, before) = tokens.split_last()?;
    let mut best = None;
    let mut best_length = *MATCH_TOKENS.start() - 1;
    for (index, _) in before.iter().enumerate().rev().filter(|(_, token)| **token == last) {
        let pairs = before[..index].iter().rev().zip(before.iter().rev());
        let length = 1 + pairs.take(MATCH_TOKENS.end() - 1).take_while(|(earlier, now)| earlier == now).count();
        if length > best_length {
            (best, best_length) = (Some(before.len() - index), length);
        }
        if length == *MATCH_TOKENS.end() {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repetition_is_continued() {
        let mut drafter = Drafter { acceptance: 0.95, pause: 1 };
        assert_eq!(drafter.guess(&[1, 2, 3, 4, 9, 8, 1, 2], 8), [3, 4, 9, 8, 1, 2, 3, 4]);
        assert_eq!(drafter.guess(&[1, 2, 3, 4, 9, 8, 1, 2], 3), [3, 4, 9]);
        assert_eq!(drafter.guess(&[5, 5, 5], 2), [5, 5]);
        assert_eq!(drafter.guess(&[1, 2, 7, 1, 2, 8, 1, 2], 1), [8], "the latest of equals");
        assert_eq!(drafter.guess(&[3, 1, 2, 7, 4, 1, 2, 8, 3, 1, 2], 1), [7], "the longest match");
        assert_eq!(drafter.guess(&[1, 2, 3, 2], 4), [] as [TokenId; 0], "one token is too little");
        assert_eq!(drafter.guess(&[1], 4), [] as [TokenId; 0]);
    }

    #[test]
    fn it_guesses_more_when_guesses_come_true_and_rarely_when_they_do_not() {
        let mut drafter = Drafter::new();
        let row = [7; 20];
        let guesses = |drafter: &mut Drafter| drafter.guess(&row, 100).len();
        assert_eq!(guesses(&mut drafter), 1, "it starts small");
        (0..30).for_each(|_| drafter.learn(true));
        assert_eq!(guesses(&mut drafter), LENGTH_MAX);
        (0..30).for_each(|_| drafter.learn(false));
        let trials: usize = (0..10 * PAUSE_STEPS).map(|_| guesses(&mut drafter)).sum();
        assert_eq!(trials, 10);
        (0..3).for_each(|_| drafter.learn(true));
        assert_eq!(guesses(&mut drafter), 1, "it finds out that times have changed");
    }
}
