//! A live request as the scheduler sees it: a row of tokens, of which the model has the first ones.

use std::collections::VecDeque;
use std::sync::Arc;

use tokrun_model::TokenId;

use super::drafter::Drafter;
use super::{Applied, Job, Work};
use crate::blocks::Chain;
use crate::request::Finish;

/// Steps that a running sequence may wait for its reader before it gives way to one that could run.
const STALLED_STEPS_MAX: usize = 16;

/// Tokens in a step under way.
#[derive(Debug)]
struct Part {
    /// Past the last of them; 0 if nothing of it is of use any more.
    end: usize,
    /// Those of them that the tenant was charged for.
    charged: usize,
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) job: Job,
    /// In the order of their coming; the oldest is the least.
    pub(super) arrival: u64,
    /// Its place in line: its arrival, or that of a less urgent request of its tenant.
    pub(super) place: u64,
    /// Prompt and output.
    pub(super) tokens: Vec<TokenId>,
    /// The first ones that were handed out, the token to come among them; guesses are not.
    pub(super) fed: usize,
    /// The first ones that the model surely has.
    pub(super) computed: usize,
    /// What is to be computed for it in the steps under way.
    under_way: VecDeque<Part>,
    /// Tokens that the steps under way sample, guesses that come true not counted.
    pub(super) to_come: usize,
    /// Guesses in the step under way that were not checked yet.
    guesses: VecDeque<TokenId>,
    /// The first ones that its tenant was charged for or got from the cache; more than `fed` after a preemption.
    pub(super) charged: usize,
    /// Prompt tokens that were found in the cache before the first token was sampled.
    pub(super) cached: usize,
    acknowledged: u64,
    /// Where it lies in a paged cache, while it runs.
    pub(super) chain: Option<Chain>,
    pub(super) drafter: Drafter,
    /// Steps in which it could have run and got nothing, since it last got something.
    pub(super) passed_over: usize,
    /// Steps since its reader last let it run.
    pub(super) stalled: usize,
    /// The last step left it with work that it could have done.
    pub(super) undone: bool,
}

impl Sequence {
    pub(super) fn new(mut job: Job, arrival: u64) -> Self {
        Self {
            tokens: std::mem::take(&mut job.prompt),
            job,
            arrival,
            place: arrival,
            fed: 0,
            computed: 0,
            under_way: VecDeque::new(),
            to_come: 0,
            guesses: VecDeque::new(),
            charged: 0,
            cached: 0,
            acknowledged: 0,
            chain: None,
            drafter: Drafter::new(),
            passed_over: 0,
            stalled: 0,
            undone: false,
        }
    }

    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.job.prompt_tokens
    }

    /// Tokens that may be sampled before the reader must catch up.
    pub(super) fn window_left(&self, window_tokens: u64) -> usize {
        let ahead = ((self.generated() + self.to_come) as u64).saturating_sub(self.acknowledged);
        usize::try_from(window_tokens.saturating_sub(ahead)).unwrap_or(usize::MAX)
    }

    /// Tokens left to feed: a rest of the prompt, or the one that was or will be sampled last.
    pub(super) fn pending(&self) -> usize {
        self.length() - self.fed
    }

    /// Tokens that can be fed in one step: one to come only by itself.
    pub(super) fn feedable(&self) -> usize {
        if self.awaits_token() { self.pending() } else { self.tokens.len() - self.fed }
    }

    /// All that it has is handed out, and more is to come.
    pub(super) fn awaits_token(&self) -> bool {
        self.fed == self.tokens.len() && self.to_come > 0
    }

    /// Tokens it has, with the one to come.
    pub(super) fn length(&self) -> usize {
        self.tokens.len() + self.to_come
    }

    /// Whether the token to come is its last one in any case.
    pub(super) fn is_complete(&self) -> bool {
        self.generated() + self.to_come >= self.job.max_new_tokens
    }

    /// Whether guesses are being checked: nobody knows yet where it goes on.
    pub(super) fn is_guessing(&self) -> bool {
        !self.guesses.is_empty()
    }

    /// Whether it feeds no more than the token that was sampled last.
    pub(super) fn decodes(&self) -> bool {
        self.pending() == 1 && self.generated() + self.to_come > 0
    }

    pub(super) fn gives_way(&self) -> bool {
        self.stalled >= STALLED_STEPS_MAX
    }

    pub(super) fn acknowledge(&mut self, total_tokens: u64) {
        self.acknowledged = self.acknowledged.max(total_tokens);
    }

    /// It no longer runs: nothing of it is in the model.
    pub(super) fn suspend(&mut self) -> Option<Chain> {
        (self.fed, self.computed, self.passed_over, self.stalled) = (0, 0, 0, 0);
        self.under_way.iter_mut().for_each(|part| part.end = 0);
        self.chain.take()
    }

    /// Published blocks made it skip to token `found`.
    pub(super) fn skip_to(&mut self, found: usize) {
        if found > self.fed {
            if self.generated() == 0 && found > self.charged {
                self.cached += found - self.charged.max(self.fed);
            }
            self.fed = found;
            self.computed = self.computed.max(found);
            self.charged = self.charged.max(found);
        }
    }

    /// Hands out its next `count` tokens and `guesses` at what follows them.
    pub(super) fn plan(&mut self, count: usize, guesses: &[TokenId]) -> Work {
        let (start, end) = (self.fed, self.fed + count);
        self.under_way.push_back(Part { end, charged: end.saturating_sub(self.charged.max(start)) });
        let to_come = self.awaits_token();
        let samples = end == self.length();
        self.fed = end;
        self.to_come += usize::from(samples);
        self.charged = self.charged.max(end);
        self.passed_over = 0;
        self.guesses = guesses.iter().copied().collect();
        let tokens = if to_come { vec![0] } else { [&self.tokens[start..end], guesses].concat() };
        Work {
            request_id: self.job.request_id,
            start,
            tokens,
            to_come,
            guesses: guesses.len(),
            blocks: self.chain.as_ref().map_or_else(Arc::default, Chain::share),
            samples,
        }
    }

    /// The earliest step under way is done: the model has what it computed.
    pub(super) fn step_done(&mut self) {
        let end = self.under_way.pop_front().map_or(0, |part| part.end);
        self.computed = self.computed.max(end);
    }

    /// Tokens under way that its tenant was charged for.
    pub(super) fn charged_under_way(&self) -> usize {
        self.under_way.iter().map(|part| part.charged).sum()
    }

    /// Takes a sampled token, the first of a step or one after a guess that came true.
    pub(super) fn take(&mut self, token: TokenId) -> Applied {
        self.tokens.push(token);
        self.to_come = self.to_come.saturating_sub(1);
        let guess = self.guesses.pop_front();
        let came_true = guess == Some(token);
        if guess.is_some() {
            self.drafter.learn(came_true);
        }
        if came_true {
            self.fed += 1;
            self.computed += 1;
            self.charged += 1;
        }
        let finish = if self.job.end_tokens.contains(&token) {
            Some(Finish::Stop)
        } else if self.generated() >= self.job.max_new_tokens {
            Some(Finish::Length)
        } else {
            None
        };
        let samples_again = came_true && finish.is_none();
        let mut rejected = 0;
        if !samples_again {
            rejected = self.guesses.len() + usize::from(guess.is_some() && !came_true);
            self.guesses.clear();
        }
        Applied { finish, samples_again, rejected }
    }

    /// Who keeps its place when there is not enough for all: the least.
    pub(super) fn rank(&self, served: u64) -> (u64, u64) {
        (served, self.place)
    }
}
