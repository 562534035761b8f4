//! The shape of a model: `config.json` of a Hugging Face directory.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a configuration can't be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not JSON, or a value is missing or of the wrong type.
    #[error("config.json: {0}")]
    Json(#[from] serde_json::Error),
    /// A family that isn't known here.
    #[error("config.json: model_type {0:?} is not supported; known: qwen3")]
    Family(String),
    /// A value that no model can have.
    #[error("config.json: {0}")]
    Value(String),
}

/// A `qwen3` configuration: pre-norm decoder, grouped-query attention with RMS-normed queries and
/// keys, rotary positions, SwiGLU. Field names are those of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Class names that load it elsewhere.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// The family.
    pub model_type: String,
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
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Biases on q, k, v (none here).
    #[serde(default)]
    pub attention_bias: bool,
    /// Activation of the gate.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Token that starts a document.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// Token that ends an answer.
    #[serde(default)]
    pub eos_token_id: Option<u32>,
    /// Type of the stored weights.
    #[serde(default = "float32")]
    pub torch_dtype: String,
}

fn silu() -> String {
    "silu".into()
}

fn float32() -> String {
    "float32".into()
}

impl Config {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(text: &str) -> Result<Config, ConfigError> {
        #[derive(Deserialize)]
        struct Family {
            model_type: String,
        }
        let family: Family = serde_json::from_str(text)?;
        if family.model_type != "qwen3" {
            return Err(ConfigError::Family(family.model_type));
        }
        let config: Config = serde_json::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// The text of `config.json`.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
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
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!(
                "head_dim is {}; rotary positions need an even one",
                self.head_dim
            ));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return fail(format!("rope_theta is {}; it must be positive", self.rope_theta));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return fail(format!("rms_norm_eps is {}; it must not be negative", self.rms_norm_eps));
        }
        if self.attention_bias {
            return fail("attention_bias is true, which is not supported".into());
        }
        if self.hidden_act != "silu" {
            return fail(format!("hidden_act {:?} is not supported; known: silu", self.hidden_act));
        }
        Ok(())
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
