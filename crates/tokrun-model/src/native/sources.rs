//! Finds every tensor of a decoder, and checks that there are no others, before the first weight is read.

use tokrun_kernels::WeightType;

use super::architecture::{Architecture, Experts, Layer, Norms, QueryKeyNorms};
use super::weights::{Matrix, Weights};
use crate::ModelError;

/// The norm weights of queries and of keys.
pub(super) type NormPair = (Vec<f32>, Vec<f32>);

/// The weights of a decoder: vectors as they are, matrices to be read.
pub(super) struct Sources<'a> {
    pub(super) embedding: Matrix<'a>,
    pub(super) layers: Vec<LayerSources<'a>>,
    pub(super) norm: Vec<f32>,
    /// None where it is the embedding.
    pub(super) head: Option<Matrix<'a>>,
}

/// Those of one layer.
pub(super) struct LayerSources<'a> {
    pub(super) attention_norm: Option<Vec<f32>>,
    /// Query, key and value: one matrix or three.
    pub(super) qkv: Vec<Matrix<'a>>,
    pub(super) query_key_norms: Option<NormPair>,
    pub(super) output: Matrix<'a>,
    pub(super) attention_post_norm: Option<Vec<f32>>,
    pub(super) feed_forward_norm: Option<Vec<f32>>,
    pub(super) feed_forward: FeedForwardSources<'a>,
    pub(super) feed_forward_post_norm: Option<Vec<f32>>,
}

/// One feed-forward block, or several and who chooses among them.
pub(super) enum FeedForwardSources<'a> {
    Dense(BlockSources<'a>),
    Mixture { router: Matrix<'a>, experts: Vec<BlockSources<'a>> },
}

/// A gated feed-forward block.
pub(super) struct BlockSources<'a> {
    pub(super) gate: Matrix<'a>,
    pub(super) up: Matrix<'a>,
    pub(super) down: Matrix<'a>,
}

impl<'a> Sources<'a> {
    /// Finds what a decoder of this architecture consists of.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen, of a type that is not computed in, or left over.
    pub(super) fn find(architecture: &Architecture, weights: &'a dyn Weights) -> Result<Self, ModelError> {
        let finder = Finder { architecture, weights };
        let hidden = architecture.hidden;
        let head = if architecture.tied {
            None
        } else {
            Some(weights.tensor("output.weight", &[architecture.vocab_size, hidden])?)
        };
        let layers = architecture.layers.iter().enumerate().map(|(index, layer)| finder.layer(index, *layer));
        let sources = Self {
            embedding: weights.tensor("token_embd.weight", &[architecture.embedded_tokens, hidden])?,
            layers: layers.collect::<Result<_, _>>()?,
            norm: finder.norm("output_norm", hidden)?,
            head,
        };
        weights.refuse_left_over()?;
        Ok(sources)
    }
}

impl Sources<'_> {
    /// All matrices.
    pub(super) fn matrices(&self) -> Vec<&Matrix<'_>> {
        let outer = std::iter::once(&self.embedding).chain(&self.head);
        outer.chain(self.layers.iter().flat_map(LayerSources::matrices)).collect()
    }

    /// Which projections keep the type of the file where they were to become 8-bit floats.
    pub(super) fn not_rounded(&self) -> Option<String> {
        let projections: Vec<_> = self.layers.iter().flat_map(LayerSources::projections).collect();
        let kept: Vec<_> = projections.iter().filter(|matrix| matrix.weight_type != WeightType::FP8).collect();
        let first = kept.first()?;
        Some(format!(
            "{} of {} projections stay {}: their rows are not whole blocks of {} (one has {})",
            kept.len(),
            projections.len(),
            first.weight_type.name(),
            WeightType::FP8.block_size(),
            first.columns
        ))
    }
}

impl<'a> LayerSources<'a> {
    fn matrices(&self) -> Vec<&Matrix<'a>> {
        let mut matrices = self.projections();
        if let FeedForwardSources::Mixture { router, .. } = &self.feed_forward {
            matrices.push(router);
        }
        matrices
    }

    fn projections(&self) -> Vec<&Matrix<'a>> {
        let blocks = match &self.feed_forward {
            FeedForwardSources::Dense(block) => std::slice::from_ref(block),
            FeedForwardSources::Mixture { experts, .. } => &experts[..],
        };
        let blocks = blocks.iter().flat_map(|block| [&block.gate, &block.up, &block.down]);
        self.qkv.iter().chain([&self.output]).chain(blocks).collect()
    }
}

struct Finder<'a, 'b> {
    architecture: &'b Architecture,
    weights: &'a dyn Weights,
}

impl<'a> Finder<'a, '_> {
    fn layer(&self, index: usize, layer: Layer) -> Result<LayerSources<'a>, ModelError> {
        let (architecture, hidden) = (self.architecture, self.architecture.hidden);
        let name = |part: &str| format!("blk.{index}.{part}");
        let norm = |part: &str, wanted: bool| -> Result<Option<Vec<f32>>, ModelError> {
            if wanted { self.norm(&name(part), hidden).map(Some) } else { Ok(None) }
        };
        let (before, after) = (architecture.norms != Norms::After, architecture.norms != Norms::Before);
        let feed_forward = match architecture.experts.filter(|_| layer.mixture) {
            Some(experts) => self.mixture(index, experts)?,
            None => FeedForwardSources::Dense(self.dense(index)?),
        };
        Ok(LayerSources {
            attention_norm: norm("attn_norm", before)?,
            qkv: self.qkv(index)?,
            query_key_norms: self.query_key_norms(index)?,
            output: self.matrix(
                &name("attn_output"),
                [hidden, architecture.query_width()],
                architecture.output_bias,
            )?,
            attention_post_norm: norm("post_attention_norm", after)?,
            feed_forward_norm: norm("ffn_norm", before)?,
            feed_forward,
            feed_forward_post_norm: norm("post_ffw_norm", after)?,
        })
    }

    fn qkv(&self, layer: usize) -> Result<Vec<Matrix<'a>>, ModelError> {
        let (queries, keys) = (self.architecture.query_width(), self.architecture.key_width());
        let parts = [("attn_q", queries), ("attn_k", keys), ("attn_v", keys)];
        let fused = [("attn_qkv", queries + 2 * keys)];
        let parts = if self.architecture.fused { &fused[..] } else { &parts };
        let matrix = |&(part, rows): &(&str, usize)| {
            self.matrix(&format!("blk.{layer}.{part}"), [rows, self.architecture.hidden], self.architecture.qkv_bias)
        };
        parts.iter().map(matrix).collect()
    }

    fn query_key_norms(&self, layer: usize) -> Result<Option<NormPair>, ModelError> {
        let architecture = self.architecture;
        let (queries, keys) = match architecture.query_key_norms {
            QueryKeyNorms::Nothing => return Ok(None),
            QueryKeyNorms::Heads => (architecture.head_dim, architecture.head_dim),
            QueryKeyNorms::Rows => (architecture.query_width(), architecture.key_width()),
        };
        let query = self.norm(&format!("blk.{layer}.attn_q_norm"), queries)?;
        Ok(Some((query, self.norm(&format!("blk.{layer}.attn_k_norm"), keys)?)))
    }

    fn dense(&self, layer: usize) -> Result<BlockSources<'a>, ModelError> {
        let (hidden, width) = (self.architecture.hidden, self.architecture.feed_forward);
        let matrix = |part: &str, shape: [usize; 2]| self.matrix(&format!("blk.{layer}.{part}"), shape, false);
        let (gate, up) = if self.architecture.fused {
            let both = matrix("ffn_up", [width.saturating_mul(2), hidden])?;
            (both.part(0..width), both.part(width..2 * width))
        } else {
            (matrix("ffn_gate", [width, hidden])?, matrix("ffn_up", [width, hidden])?)
        };
        Ok(BlockSources { gate, up, down: matrix("ffn_down", [hidden, width])? })
    }

    /// Experts lie in one tensor for all, or in one for each.
    fn mixture(&self, layer: usize, experts: Experts) -> Result<FeedForwardSources<'a>, ModelError> {
        let hidden = self.architecture.hidden;
        let all = |part: &str, [rows, columns]: [usize; 2]| -> Result<Vec<Matrix<'a>>, ModelError> {
            let stacked = format!("blk.{layer}.{part}_exps.weight");
            if self.weights.has(&stacked) {
                let tensor = self.weights.tensor(&stacked, &[experts.count, rows, columns])?;
                return Ok((0..experts.count).map(|expert| tensor.part(expert * rows..(expert + 1) * rows)).collect());
            }
            let each = |expert| self.matrix(&format!("blk.{layer}.{part}.{expert}"), [rows, columns], false);
            (0..experts.count).map(each).collect()
        };
        let (inner, outer) = ([experts.feed_forward, hidden], [hidden, experts.feed_forward]);
        let blocks = all("ffn_gate", inner)?.into_iter().zip(all("ffn_up", inner)?).zip(all("ffn_down", outer)?);
        Ok(FeedForwardSources::Mixture {
            router: self.matrix(&format!("blk.{layer}.ffn_gate_inp"), [experts.count, hidden], false)?,
            experts: blocks.map(|((gate, up), down)| BlockSources { gate, up, down }).collect(),
        })
    }

    fn matrix(&self, name: &str, shape: [usize; 2], bias: bool) -> Result<Matrix<'a>, ModelError> {
        let mut matrix = self.weights.tensor(&format!("{name}.weight"), &shape)?;
        if bias {
            matrix.bias = Some(self.weights.vector(&format!("{name}.bias"), shape[0])?);
        }
        Ok(matrix)
    }

    /// The factors of a norm.
    fn norm(&self, name: &str, width: usize) -> Result<Vec<f32>, ModelError> {
        let mut weight = self.weights.vector(&format!("{name}.weight"), width)?;
        if self.architecture.norm_offset != 0.0 {
            weight.iter_mut().for_each(|value| *value += self.architecture.norm_offset);
        }
        Ok(weight)
    }
}
