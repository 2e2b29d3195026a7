//! From the shapes of candle's models to one.

use candle_core::Tensor;
use candle_transformers::models::{mamba, mamba2};

use crate::candle::Decoder;

type Result<T> = candle_core::Result<T>;

/// A model, what it keeps beside itself, and how it computes.
#[derive(Clone)]
struct Stepper<M, S> {
    model: M,
    state: S,
    forward: fn(&mut M, &mut S, &Tensor, usize) -> Result<Tensor>,
}

impl<M: Clone + Send + 'static, S: Clone + Send + 'static> Decoder for Stepper<M, S> {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        (self.forward)(&mut self.model, &mut self.state, tokens, position)
    }

    fn fork(&self) -> Option<Box<dyn Decoder>> {
        Some(Box::new(self.clone()))
    }
}

/// A model with its cache beside it.
pub(super) fn with_state<M: Clone + Send + 'static, S: Clone + Send + 'static>(
    model: M,
    state: S,
    forward: fn(&mut M, &mut S, &Tensor, usize) -> Result<Tensor>,
) -> Result<Box<dyn Decoder>> {
    Ok(Box::new(Stepper { model, state, forward }))
}

/// A model with its cache inside.
pub(in crate::candle) fn plain<M: Clone + Send + 'static>(
    model: M,
    forward: fn(&mut M, &mut (), &Tensor, usize) -> Result<Tensor>,
) -> Result<Box<dyn Decoder>> {
    with_state(model, (), forward)
}

/// A model that cannot be copied.
struct Single<M> {
    model: M,
    forward: fn(&mut M, &Tensor, usize) -> Result<Tensor>,
    /// Empties the cache, where candle lets us.
    reset: Option<fn(&mut M)>,
}

impl<M: Send> Decoder for Single<M> {
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        (self.forward)(&mut self.model, tokens, position)
    }

    fn fork(&self) -> Option<Box<dyn Decoder>> {
        None
    }

    fn reset(&mut self) -> bool {
        self.reset.map(|reset| reset(&mut self.model)).is_some()
    }
}

/// A model that cannot be copied, but emptied.
pub(in crate::candle) fn single<M: Send + 'static>(
    model: M,
    forward: fn(&mut M, &Tensor, usize) -> Result<Tensor>,
    reset: fn(&mut M),
) -> Result<Box<dyn Decoder>> {
    Ok(Box::new(Single { model, forward, reset: Some(reset) }))
}

/// A model that can neither be copied nor emptied: it serves one sequence.
pub(in crate::candle) fn once<M: Send + 'static>(
    model: M,
    forward: fn(&mut M, &Tensor, usize) -> Result<Tensor>,
) -> Result<Box<dyn Decoder>> {
    Ok(Box::new(Single { model, forward, reset: None }))
}

/// The state of Mamba, which candle cannot copy.
#[derive(Clone)]
pub(super) struct MambaState {
    pub(super) hs: Vec<Tensor>,
    pub(super) prev_xs: Vec<[Tensor; 4]>,
    pub(super) pos: usize,
}

impl MambaState {
    /// Appends one token, `[1, 1]`.
    pub(super) fn forward(&mut self, model: &mamba::Model, token: &Tensor) -> Result<Tensor> {
        let (hs, prev_xs) = (std::mem::take(&mut self.hs), std::mem::take(&mut self.prev_xs));
        let mut state = mamba::State { hs, prev_xs, pos: self.pos };
        let output = model.forward(&token.squeeze(0)?, &mut state);
        *self = Self { hs: state.hs, prev_xs: state.prev_xs, pos: state.pos };
        output
    }
}

/// The state of Mamba 2, which candle cannot copy either.
#[derive(Clone)]
pub(super) struct Mamba2State {
    pub(super) hs: Vec<Tensor>,
    pub(super) conv_states: Vec<Tensor>,
    pub(super) pos: usize,
}

impl Mamba2State {
    /// Appends one token, `[1, 1]`.
    pub(super) fn forward(&mut self, model: &mamba2::Model, token: &Tensor) -> Result<Tensor> {
        let (hs, conv_states) = (std::mem::take(&mut self.hs), std::mem::take(&mut self.conv_states));
        let mut state = mamba2::State { hs, conv_states, pos: self.pos };
        let output = model.forward(&token.squeeze(0)?, &mut state);
        *self = Self { hs: state.hs, conv_states: state.conv_states, pos: state.pos };
        output
    }
}
