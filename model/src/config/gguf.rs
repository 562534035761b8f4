//! The metadata of a GGUF file. Keys: ggml's `docs/gguf.md`, and what llama.cpp writes.

use super::{Config, ConfigError, Family, Mixture, Scaling};
use crate::gguf::{Contents, Value};
use crate::weights::{GgufFiles, Tensors};

fn wrong<T>(text: String) -> Result<T, ConfigError> {
    Err(ConfigError::Value(text))
}

/// The values of a file's architecture.
struct Values<'a> {
    contents: &'a Contents,
    architecture: &'a str,
}

impl<'a> Values<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.contents.metadata.get(&format!("{}.{key}", self.architecture))
    }

    fn count(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| n.try_into().ok()) {
                Some(n) => Ok(Some(n)),
                None => wrong(format!("{}.{key} is no count: {value:?}", self.architecture)),
            },
        }
    }

    fn need(&self, key: &str) -> Result<usize, ConfigError> {
        let missing = || ConfigError::Value(format!("{}.{key} is missing", self.architecture));
        self.count(key)?.ok_or_else(missing)
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }
}

impl Config {
    /// Reads and checks the configuration of GGUF files.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub fn from_gguf<B: AsRef<[u8]>>(files: &GgufFiles<B>) -> Result<Config, ConfigError> {
        let contents = files.contents();
        let text = |key: &str| contents.metadata.get(key).and_then(|v| v.as_str());
        let Some(architecture) = text("general.architecture") else {
            return wrong("general.architecture is missing".into());
        };
        let Some((family, ..)) = Family::ALL.into_iter().find(|row| row.3 == architecture) else {
            return Err(ConfigError::Family(architecture.into()));
        };
        let values = Values { contents, architecture };
        let Some(&[rows, _]) = files.shape("token_embd.weight") else {
            return wrong("the tensor token_embd.weight is missing, or no matrix".into());
        };
        let base = Config::of(family);
        let heads = values.need("attention.head_count")?;
        let eps = values
            .number("attention.layer_norm_rms_epsilon")
            .or(values.number("attention.layer_norm_epsilon"));
        let id = |key: &str| {
            let id = contents.metadata.get(&format!("tokenizer.ggml.{key}"))?.as_u64()?;
            u32::try_from(id).ok()
        };
        let mut config = Config {
            vocab_size: rows,
            hidden_size: values.need("embedding_length")?,
            intermediate_size: values.need("feed_forward_length")?,
            num_hidden_layers: values.need("block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: values.count("attention.head_count_kv")?.unwrap_or(heads),
            head_dim: values.count("attention.key_length")?.unwrap_or(0),
            max_position_embeddings: values.need("context_length")?,
            rms_norm_eps: eps.map_or(base.rms_norm_eps, |eps| eps as f32),
            tie_word_embeddings: files.shape("output.weight").is_none(),
            bos_token_id: id("bos_token_id"),
            eos_token_id: id("eos_token_id"),
            rope_theta: values.number("rope.freq_base").unwrap_or(base.rope_theta),
            rotary_dim: values.count("rope.dimension_count")?.unwrap_or(0),
            ..base
        };
        if config.head_dim == 0 && matches!(family, Family::Gemma2 | Family::Gemma3) {
            config.head_dim = 256;
        }
        let mut config = config.settle();
        if family == Family::Llama {
            // Some of this family have biases.
            let has = |name: &str| files.shape(&format!("blk.0.{name}.bias")).is_some();
            config.qkv_bias = has("attn_q");
            config.output_bias = has("attn_output");
            config.mlp_bias = has("ffn_down");
        }
        if family == Family::Qwen3Moe {
            config.mixture = Some(Mixture {
                experts: values.need("expert_count")?,
                chosen: values.need("expert_used_count")?,
                width: values.need("expert_feed_forward_length")?,
                normalised: true,
            });
        }
        gemma(&values, &mut config)?;
        rope(&values, files, &mut config)?;
        config.check()?;
        Ok(config)
    }
}

/// What Gemma's layers see, and its soft limits. What no key tells is as llama.cpp has it.
fn gemma(values: &Values<'_>, config: &mut Config) -> Result<(), ConfigError> {
    let layers = config.num_hidden_layers.min(1 << 12);
    let every = match config.family {
        Family::Gemma2 => 2,
        Family::Gemma3 => 6,
        _ => return Ok(()),
    };
    config.window = values.count("attention.sliding_window")?;
    if config.window.is_some() {
        config.local = (0..layers).map(|i| (i + 1) % every != 0).collect();
    }
    let largest = match config.family {
        Family::Gemma2 => 46,
        _ => 62,
    };
    if layers == largest {
        // Of the 27B models the scale is that of the width, not of a head.
        let width = config.hidden_size as f32 / config.num_attention_heads as f32;
        config.attention_scale = 1.0 / width.sqrt();
    }
    let cap = |key: &str, usual: Option<f32>| values.number(key).map(|x| x as f32).or(usual);
    let usual = config.family == Family::Gemma2;
    config.attention_cap = cap("attn_logit_softcapping", usual.then_some(50.0));
    config.logit_cap = cap("final_logit_softcapping", usual.then_some(30.0));
    if config.family == Family::Gemma3 {
        config.local_rope_theta = Some(values.number("rope.freq_base_swa").unwrap_or(1e4));
    }
    Ok(())
}

fn rope(
    values: &Values<'_>,
    tensors: &impl Tensors,
    config: &mut Config,
) -> Result<(), ConfigError> {
    let kind = values.get("rope.scaling.type").and_then(|v| v.as_str()).unwrap_or("none");
    let factor = || match values.number("rope.scaling.factor") {
        Some(factor) => Ok(factor),
        None => wrong("rope.scaling.factor is missing".into()),
    };
    let original = values.count("rope.scaling.original_context_length")?;
    let scale = values.number("rope.scaling.attn_factor").unwrap_or(1.0);
    config.rope_scaling = match kind {
        "none" | "longrope" => Scaling::None,
        "linear" => Scaling::Linear { factor: factor()? },
        "yarn" => Scaling::Yarn {
            factor: factor()?,
            fast: values.number("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
            slow: values.number("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
            original: original.unwrap_or(config.max_position_embeddings) as f64,
            scale: scale * (0.1 * libm::log(factor()?) + 1.0),
        },
        other => {
            return wrong(format!(
                "rope scaling of type {other:?} is not supported; known: linear, yarn, longrope"
            ));
        }
    };
    for name in ["rope_freqs.weight", "rope_factors_short.weight"] {
        let Some(shape) = tensors.shape(name) else { continue };
        let Ok(factors) = tensors.rows(name, 0..1, shape[shape.len() - 1]) else { continue };
        let factors = factors.into_iter().map(f64::from).collect();
        config.rope_scaling = Scaling::Each { factors, scale };
        if let (Some(original), "rope_factors_short.weight") = (original, name) {
            // Beyond it other factors count: see `json`.
            config.max_position_embeddings = config.max_position_embeddings.min(original);
        }
    }
    Ok(())
}
