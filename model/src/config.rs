//! The shape of a model: the knobs by which the open families differ, and the table of the families.
//!
//! It is read from `config.json` of a Hugging Face directory (`json`) or from the metadata of a GGUF
//! file (`gguf`). A new family is a row of [`Config::of`], and where its numbers and its weights
//! stand in files ([`places`](crate::weights::places)).

mod gguf;
mod json;
mod rope;

use compute::cpu::gated::Activation;
use thiserror::Error;

pub use rope::Scaling;

/// Most experts of all layers together: each has parameters with names.
const EXPERTS: usize = 1 << 17;

/// Why a configuration can't be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not JSON, or a value of the wrong type.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A family that isn't known here.
    #[error("the family {0:?} is not supported; known: {known}", known = Family::names())]
    Family(String),
    /// A value that is missing, or that no model can have.
    #[error("{0}")]
    Value(String),
}

/// A family of models: a name that other programs know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are what they are called
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    Gemma3,
    Phi3,
    Gpt2,
}

impl Family {
    /// Each with its `model_type`, its class, and its name in GGUF files.
    const ALL: [(Family, &str, &str, &str); 9] = [
        (Family::Llama, "llama", "LlamaForCausalLM", "llama"),
        (Family::Mistral, "mistral", "MistralForCausalLM", "llama"),
        (Family::Qwen2, "qwen2", "Qwen2ForCausalLM", "qwen2"),
        (Family::Qwen3, "qwen3", "Qwen3ForCausalLM", "qwen3"),
        (Family::Qwen3Moe, "qwen3_moe", "Qwen3MoeForCausalLM", "qwen3moe"),
        (Family::Gemma2, "gemma2", "Gemma2ForCausalLM", "gemma2"),
        (Family::Gemma3, "gemma3_text", "Gemma3ForCausalLM", "gemma3"),
        (Family::Phi3, "phi3", "Phi3ForCausalLM", "phi3"),
        (Family::Gpt2, "gpt2", "GPT2LMHeadModel", "gpt2"),
    ];

    fn row(self) -> (Family, &'static str, &'static str, &'static str) {
        Family::ALL[self as usize]
    }

    /// Its `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        self.row().1
    }

    /// The class that loads it in transformers.
    pub fn class(self) -> &'static str {
        self.row().2
    }

    fn names() -> String {
        Family::ALL.map(|(_, name, ..)| name).join(", ")
    }
}

/// A mixture of experts in place of each MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token goes through.
    pub chosen: usize,
    /// Width inside an expert.
    pub width: usize,
    /// Whether the weights of the chosen ones are made to sum to 1.
    pub normalised: bool,
}

/// A decoder-only transformer. Sizes have the names of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What others know it as.
    pub family: Family,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest context, tokens.
    pub max_position_embeddings: usize,
    /// Added under the root of a norm.
    pub rms_norm_eps: f32,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Token that starts a document.
    pub bos_token_id: Option<u32>,
    /// Token that ends an answer.
    pub eos_token_id: Option<u32>,

    /// Whether norms are layer norms with biases instead of RMS norms.
    pub layer_norms: bool,
    /// Whether attention and MLP are normalised after as well as before.
    pub norms_after: bool,
    /// Whether files of safetensors hold norms' weights less 1.
    pub norms_less_one: bool,
    /// Whether each head's queries and keys are normalised.
    pub qk_norm: bool,
    /// Biases of queries, keys and values.
    pub qkv_bias: bool,
    /// Bias of attention's output.
    pub output_bias: bool,
    /// Biases of the MLP.
    pub mlp_bias: bool,
    /// Whether positions are a table that is added to the embedding, instead of rotations.
    pub learned_positions: bool,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Elements of a head that are rotated.
    pub rotary_dim: usize,
    /// How the angles are stretched for longer contexts.
    pub rope_scaling: Scaling,
    /// Base of the rotary angles of local layers, which aren't stretched; `None`: as the others.
    pub local_rope_theta: Option<f64>,
    /// Positions that a local layer sees, its own included.
    pub window: Option<usize>,
    /// Which layers are local; empty: none.
    pub local: Vec<bool>,
    /// Factor of attention's scores.
    pub attention_scale: f32,
    /// Soft limit of attention's scores.
    pub attention_cap: Option<f32>,
    /// Soft limit of logits.
    pub logit_cap: Option<f32>,
    /// Whether embeddings are multiplied by the square root of the width.
    pub scaled_embedding: bool,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Whether the MLP has a gate.
    pub gated: bool,
    /// Experts instead of the MLP.
    pub mixture: Option<Mixture>,
}

impl Config {
    /// A member of a family before its sizes are known.
    pub fn of(family: Family) -> Config {
        let llama = Config {
            family,
            vocab_size: 0,
            hidden_size: 0,
            intermediate_size: 0,
            num_hidden_layers: 0,
            num_attention_heads: 0,
            num_key_value_heads: 0,
            head_dim: 0,
            max_position_embeddings: 0,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            bos_token_id: None,
            eos_token_id: None,
            layer_norms: false,
            norms_after: false,
            norms_less_one: false,
            qk_norm: false,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            learned_positions: false,
            rope_theta: 1e4,
            rotary_dim: 0,
            rope_scaling: Scaling::None,
            local_rope_theta: None,
            window: None,
            local: Vec::new(),
            attention_scale: 0.0,
            attention_cap: None,
            logit_cap: None,
            scaled_embedding: false,
            activation: Activation::Silu,
            gated: true,
            mixture: None,
        };
        let gemma = Config {
            norms_after: true,
            norms_less_one: true,
            scaled_embedding: true,
            activation: Activation::Gelu,
            tie_word_embeddings: true,
            ..llama.clone()
        };
        match family {
            Family::Llama | Family::Mistral | Family::Phi3 => llama,
            Family::Qwen2 => Config { qkv_bias: true, ..llama },
            Family::Qwen3 | Family::Qwen3Moe => Config { qk_norm: true, ..llama },
            Family::Gemma2 => gemma,
            Family::Gemma3 => Config { qk_norm: true, rope_theta: 1e6, ..gemma },
            Family::Gpt2 => Config {
                layer_norms: true,
                qkv_bias: true,
                output_bias: true,
                mlp_bias: true,
                learned_positions: true,
                activation: Activation::Gelu,
                gated: false,
                tie_word_embeddings: true,
                ..llama
            },
        }
    }

    /// Sets what follows from the sizes, where the file didn't tell.
    fn settle(mut self) -> Config {
        if self.head_dim == 0 && self.num_attention_heads > 0 {
            self.head_dim = self.hidden_size / self.num_attention_heads;
        }
        if self.rotary_dim == 0 {
            self.rotary_dim = self.head_dim;
        }
        if self.attention_scale == 0.0 && self.head_dim > 0 {
            self.attention_scale = 1.0 / (self.head_dim as f32).sqrt();
        }
        self
    }

    /// A `qwen3` of these sizes: what is trained here.
    pub fn qwen3(sizes: Sizes) -> Config {
        let Sizes { vocab, width, ffn, layers, heads, kv_heads, head_dim, context } = sizes;
        let config = Config {
            vocab_size: vocab,
            hidden_size: width,
            intermediate_size: ffn,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: context,
            ..Config::of(Family::Qwen3)
        };
        config.settle()
    }

    /// Checks that the numbers fit each other.
    ///
    /// # Errors
    /// Names the value that doesn't.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail = |text: String| Err(ConfigError::Value(text));
        let counts = [
            ("vocab_size", self.vocab_size, 1 << 22),
            ("hidden_size", self.hidden_size, 1 << 17),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 24),
        ];
        for (name, value, limit) in counts {
            if value == 0 || value > limit {
                return fail(format!("{name} is {value}; it must be from 1 to {limit}"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return fail(format!(
                "num_key_value_heads ({}) does not divide num_attention_heads ({})",
                self.num_key_value_heads, self.num_attention_heads
            ));
        }
        let (rotated, head) = (self.rotary_dim, self.head_dim);
        if !self.learned_positions && (!rotated.is_multiple_of(2) || rotated == 0 || rotated > head)
        {
            return fail(format!(
                "{rotated} elements of a head of {head} are rotated; an even number of them has to be"
            ));
        }
        for theta in [Some(self.rope_theta), self.local_rope_theta].into_iter().flatten() {
            if !(theta.is_finite() && theta > 0.0) {
                return fail(format!("rope_theta is {theta}; it must be positive"));
            }
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return fail(format!("rms_norm_eps is {}; it must not be negative", self.rms_norm_eps));
        }
        let caps = [self.attention_cap, self.logit_cap, Some(self.attention_scale)];
        if let Some(x) = caps.into_iter().flatten().find(|x| !(x.is_finite() && *x > 0.0)) {
            return fail(format!("a factor or soft limit of scores is {x}; it must be positive"));
        }
        if self.window == Some(0) {
            return fail("sliding_window is 0; a layer has to see something".into());
        }
        if !self.local.is_empty() && self.local.len() != self.num_hidden_layers {
            return fail(format!(
                "{} layers are called local or not, but there are {}",
                self.local.len(),
                self.num_hidden_layers
            ));
        }
        if let Some(m) = &self.mixture {
            let (experts, chosen) = (m.experts, m.chosen);
            if experts == 0 || experts > 1 << 12 || chosen == 0 || chosen > experts {
                return fail(format!("{chosen} of {experts} experts can't be chosen"));
            }
            if experts * self.num_hidden_layers > EXPERTS {
                return fail(format!(
                    "{experts} experts in each of {} layers; at most {EXPERTS} in all are read",
                    self.num_hidden_layers
                ));
            }
            if m.width == 0 || m.width > 1 << 20 {
                return fail(format!("an expert is {} wide", m.width));
            }
        }
        self.rope_scaling.check(self)
    }

    /// Positions that a layer sees, its own included; `None`: all.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.window.filter(|_| self.is_local(layer))
    }

    /// Whether a layer is local.
    pub fn is_local(&self, layer: usize) -> bool {
        self.local.get(layer).copied().unwrap_or(false)
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together.
    pub fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

/// The sizes of a model that is trained here.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the MLP.
    pub ffn: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest context, tokens.
    pub context: usize,
}
