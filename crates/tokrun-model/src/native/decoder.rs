//! The forward pass of every family, written once over the operations of a backend.

use tokrun_kernels::sampling::Draw;
use tokrun_kernels::{Activation, Attention, Backend, Consumer, Expert, KernelError, Norm, Routing, Step, Store};

use super::architecture::{Architecture, Layer as LayerPlan, Norms, QueryKeyNorms};
use super::sources::{BlockSources, FeedForwardSources, LayerSources, Sources};
use super::weights::Matrix;

/// How many rows a step may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) rows: usize,
    /// Of them, those whose logits are wanted: a row of logits is as wide as the vocabulary.
    pub(super) logits: usize,
}

/// A decoder whose weights are packed for one backend.
pub(super) struct Decoder<B: Backend> {
    embedding: B::Linear,
    embedding_scale: f32,
    activation: Activation,
    layers: Vec<Layer<B>>,
    norm: Norm,
    /// None where it is the embedding.
    head: Option<B::Linear>,
    logit_softcap: Option<f32>,
}

struct Layer<B: Backend> {
    attention_norm: Option<Norm>,
    qkv: B::Linear,
    /// Over all query heads and all key heads at once.
    row_norms: Option<(Norm, Norm)>,
    attention: Attention,
    output: B::Linear,
    attention_post_norm: Option<Norm>,
    feed_forward_norm: Option<Norm>,
    feed_forward: FeedForward<B>,
    feed_forward_post_norm: Option<Norm>,
}

enum FeedForward<B: Backend> {
    Dense { gated: B::Gated, down: B::Linear },
    Mixture { router: B::Linear, routing: Routing, experts: Vec<Expert<B>> },
}

/// Activations of a step.
pub(super) struct Buffers<B: Backend> {
    /// The residual stream.
    stream: B::Rows,
    /// What a block adds to it, where that is normalised first.
    added: Option<B::Rows>,
    qkv: B::Rows,
    attended: B::Rows,
    router: Option<B::Rows>,
    input: B::Encoded,
    attended_input: B::Encoded,
    gated: Option<B::Encoded>,
    /// The rows whose logits are wanted.
    last: B::Rows,
    logits: B::Rows,
}

impl<B: Backend> Buffers<B> {
    /// Room for the largest step.
    pub(super) fn new(backend: &mut B, architecture: &Architecture, room: Room) -> Result<Self, KernelError> {
        let rows = room.rows;
        let (hidden, queries) = (architecture.hidden, architecture.query_width());
        let post_norms = architecture.norms != Norms::Before;
        let dense = architecture.experts.is_none() || architecture.layers.iter().any(|layer| !layer.mixture);
        let experts = architecture.experts.map(|experts| experts.count);
        Ok(Self {
            stream: backend.rows(rows, hidden)?,
            added: post_norms.then(|| backend.rows(rows, hidden)).transpose()?,
            qkv: backend.rows(rows, queries + 2 * architecture.key_width())?,
            attended: backend.rows(rows, queries)?,
            router: experts.map(|experts| backend.rows(rows, experts)).transpose()?,
            input: backend.encoded(rows, hidden)?,
            attended_input: backend.encoded(rows, queries)?,
            gated: dense.then(|| backend.encoded(rows, architecture.feed_forward)).transpose()?,
            last: backend.rows(room.logits, hidden)?,
            logits: backend.rows(room.logits, architecture.vocab_size)?,
        })
    }

    /// Draws from what [`Decoder::head`] computed last, a token from each of the first rows.
    pub(super) fn sample(&self, backend: &mut B, draws: &[Draw]) {
        backend.sample(&self.logits, 0, draws);
    }

    /// What [`Decoder::head`] computed last, `[rows, vocab_size]`, the rows from `first` on.
    pub(super) fn logits(&self, backend: &mut B, first: usize) -> &[f32] {
        backend.read_from(&self.logits, first)
    }
}

impl<B: Backend> Decoder<B> {
    /// Packs the weights.
    pub(super) fn pack(
        backend: &mut B,
        architecture: &Architecture,
        sources: &Sources<'_>,
    ) -> Result<Self, KernelError> {
        let ropes: Vec<_> = architecture.ropes.iter().map(|rope| backend.add_rope(rope.clone())).collect();
        let layers = architecture.layers.iter().zip(&sources.layers).map(|(plan, sources)| {
            let attention = Attention {
                heads: architecture.heads,
                kv_heads: architecture.kv_heads,
                head_dim: architecture.head_dim,
                scale: architecture.attention_scale,
                softcap: architecture.attention_softcap,
                window_tokens: plan.window_tokens,
                rope: plan.rope.map(|rope| ropes[rope]),
                head_norms: None,
            };
            Layer::pack(backend, architecture, *plan, attention, sources)
        });
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
            embedding: pack(backend, &sources.embedding)?,
            embedding_scale: architecture.embedding_scale,
            activation: architecture.activation,
            norm: norm(architecture, &sources.norm),
            head: sources.head.as_ref().map(|head| pack(backend, head)).transpose()?,
            logit_softcap: architecture.logit_softcap,
        })
    }

    /// Computes the layers for the rows of a step, and stores their keys and values. Some rows may get tokens that the step
    /// before drew: see [`Backend::feed`].
    pub(super) fn layers(
        &self,
        backend: &mut B,
        step: &Step,
        drawn: &[(usize, usize)],
        kv: &mut B::Kv,
        buffers: &mut Buffers<B>,
    ) {
        backend.begin(step);
        backend.feed(drawn);
        backend.embed(&self.embedding, self.embedding_scale, &mut buffers.stream);
        for (index, layer) in self.layers.iter().enumerate() {
            layer.attend(backend, index, kv, buffers);
            layer.feed_forward(backend, self.activation, buffers);
        }
    }

    /// Computes the logits after the given rows of the step; once a step, for all rows that are wanted.
    pub(super) fn head(&self, backend: &mut B, rows: &[usize], buffers: &mut Buffers<B>) {
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        backend.select(&buffers.stream, rows, &mut buffers.last);
        backend.encode(&buffers.last, Some(&self.norm), Consumer::Linear(head), &mut buffers.input);
        backend.linear(&buffers.input, head, Store::Set, &mut buffers.logits);
        if let Some(cap) = self.logit_softcap {
            backend.softcap(&mut buffers.logits, cap);
        }
    }
}

impl<B: Backend> Layer<B> {
    fn pack(
        backend: &mut B,
        architecture: &Architecture,
        plan: LayerPlan,
        mut attention: Attention,
        sources: &LayerSources<'_>,
    ) -> Result<Self, KernelError> {
        let norm = |weight: &Vec<f32>| norm(architecture, weight);
        let query_key = sources.query_key_norms.as_ref().map(|(query, key)| (norm(query), norm(key)));
        let by_head = architecture.query_key_norms == QueryKeyNorms::Heads;
        let (head_norms, row_norms) = if by_head { (query_key, None) } else { (None, query_key) };
        attention.head_norms = head_norms;
        let qkv: Vec<_> = sources.qkv.iter().map(Matrix::as_source).collect();
        Ok(Self {
            attention_norm: sources.attention_norm.as_ref().map(norm),
            qkv: backend.pack_linear(&qkv)?,
            row_norms,
            attention,
            output: pack(backend, &sources.output)?,
            attention_post_norm: sources.attention_post_norm.as_ref().map(norm),
            feed_forward_norm: sources.feed_forward_norm.as_ref().map(norm),
            feed_forward: FeedForward::pack(backend, architecture, plan, &sources.feed_forward)?,
            feed_forward_post_norm: sources.feed_forward_post_norm.as_ref().map(norm),
        })
    }

    fn attend(&self, backend: &mut B, index: usize, kv: &mut B::Kv, buffers: &mut Buffers<B>) {
        let Attention { heads, kv_heads, head_dim, .. } = self.attention;
        let consumer = Consumer::Linear(&self.qkv);
        backend.encode(&buffers.stream, self.attention_norm.as_ref(), consumer, &mut buffers.input);
        backend.linear(&buffers.input, &self.qkv, Store::Set, &mut buffers.qkv);
        if let Some((query, key)) = &self.row_norms {
            let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
            backend.norm(&mut buffers.qkv, 0..queries, query);
            backend.norm(&mut buffers.qkv, queries..queries + keys, key);
        }
        backend.attention(index, &self.attention, &buffers.qkv, kv, &mut buffers.attended);
        backend.encode(&buffers.attended, None, Consumer::Linear(&self.output), &mut buffers.attended_input);
        let (stream, added) = (&mut buffers.stream, buffers.added.as_mut());
        add(backend, &buffers.attended_input, &self.output, self.attention_post_norm.as_ref(), stream, added);
    }

    fn feed_forward(&self, backend: &mut B, activation: Activation, buffers: &mut Buffers<B>) {
        let norm = self.feed_forward_norm.as_ref();
        match &self.feed_forward {
            FeedForward::Dense { gated, down } => {
                let hidden = buffers.gated.as_mut().expect("a decoder with dense blocks has a buffer for them");
                backend.encode(&buffers.stream, norm, Consumer::Gated(gated), &mut buffers.input);
                backend.gated(&buffers.input, gated, activation, down, hidden);
                let (stream, added) = (&mut buffers.stream, buffers.added.as_mut());
                add(backend, hidden, down, self.feed_forward_post_norm.as_ref(), stream, added);
            }
            FeedForward::Mixture { router, routing, experts } => {
                let choice = buffers.router.as_mut().expect("a decoder with experts has a buffer for their router");
                backend.encode(&buffers.stream, norm, Consumer::Linear(router), &mut buffers.input);
                backend.linear(&buffers.input, router, Store::Set, choice);
                backend.encode(&buffers.stream, norm, Consumer::Expert(&experts[0]), &mut buffers.input);
                backend.moe(&buffers.input, choice, *routing, activation, experts, &mut buffers.stream);
            }
        }
    }
}

impl<B: Backend> FeedForward<B> {
    fn pack(
        backend: &mut B,
        architecture: &Architecture,
        plan: LayerPlan,
        sources: &FeedForwardSources<'_>,
    ) -> Result<Self, KernelError> {
        match (sources, architecture.experts.filter(|_| plan.mixture)) {
            (FeedForwardSources::Mixture { router, experts }, Some(of)) => {
                let routing = Routing { experts_per_token: of.per_token, normalise: of.normalise };
                let expert = |block: &BlockSources<'_>, backend: &mut B| {
                    let (gated, down) = pack_block(backend, block)?;
                    Ok::<_, KernelError>(Expert { gated, down })
                };
                let experts = experts.iter().map(|block| expert(block, backend)).collect::<Result<_, _>>()?;
                Ok(Self::Mixture { router: pack(backend, router)?, routing, experts })
            }
            (FeedForwardSources::Dense(block), None) => {
                let (gated, down) = pack_block(backend, block)?;
                Ok(Self::Dense { gated, down })
            }
            _ => unreachable!("sources follow the plan"),
        }
    }
}

/// Adds a product to the residual stream, normalised first where the family does that.
fn add<B: Backend>(
    backend: &mut B,
    input: &B::Encoded,
    weights: &B::Linear,
    norm: Option<&Norm>,
    stream: &mut B::Rows,
    added: Option<&mut B::Rows>,
) {
    match (norm, added) {
        (Some(norm), Some(added)) => {
            backend.linear(input, weights, Store::Set, added);
            backend.add_norm(stream, added, norm);
        }
        _ => backend.linear(input, weights, Store::Add, stream),
    }
}

fn pack<B: Backend>(backend: &mut B, matrix: &Matrix<'_>) -> Result<B::Linear, KernelError> {
    backend.pack_linear(&[matrix.as_source()])
}

fn pack_block<B: Backend>(backend: &mut B, block: &BlockSources<'_>) -> Result<(B::Gated, B::Linear), KernelError> {
    let gated = backend.pack_gated(block.gate.as_source(), block.up.as_source())?;
    Ok((gated, pack(backend, &block.down)?))
}

fn norm(architecture: &Architecture, weight: &[f32]) -> Norm {
    Norm { weight: weight.into(), epsilon: architecture.epsilon }
}
