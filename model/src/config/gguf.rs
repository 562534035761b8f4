//! The metadata of a GGUF file. Keys: ggml's `docs/gguf.md`, and what llama.cpp writes.

use super::{Config, ConfigError, Family, Mixture, Scaling};
use crate::gguf::{Contents, Head, Item, Value};
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
        Config::from_metadata(files.contents(), files)
    }

    /// The same, of which the metadata and the shapes of tensors are known.
    pub(crate) fn from_metadata(
        contents: &Contents,
        files: &impl Tensors,
    ) -> Result<Config, ConfigError> {
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

impl Config {
    /// As GGUF can say it, without a change to what the model computes, and what is to be told of
    /// that. What it can't say at all stays: whoever writes it reads it back and compares.
    pub(crate) fn for_gguf(&self) -> (Config, Option<String>) {
        let mut config = Config { bos_token_id: None, eos_token_id: None, ..self.clone() };
        let mut note = None;
        if config.family == Family::Mistral {
            config.family = Family::Llama;
        }
        let gemma = matches!(config.family, Family::Gemma2 | Family::Gemma3);
        if !config.local.contains(&true) {
            config.window = None;
        }
        match config.window {
            Some(window) if !gemma => {
                // Up to there, all that is before is in the window.
                config.window = None;
                if window < config.max_position_embeddings {
                    config.max_position_embeddings = window;
                    note = Some(format!(
                        "GGUF has no sliding window for {}: the context ends with the window, after \
                         {window} tokens",
                        self.family.model_type()
                    ));
                }
            }
            _ => {}
        }
        if config.window.is_none() {
            config.local.clear();
        }
        let single = |x: f64| f64::from(x as f32);
        config.rope_theta = single(config.rope_theta);
        config.local_rope_theta = config.local_rope_theta.map(single);
        config.rope_scaling = match config.rope_scaling.clone() {
            Scaling::None => Scaling::None,
            Scaling::Linear { factor } => Scaling::Linear { factor: single(factor) },
            Scaling::Llama3 { .. } => {
                let factors = config.divisors().into_iter().map(single).collect();
                Scaling::Each { factors, scale: 1.0 }
            }
            Scaling::Yarn { factor, fast, slow, original, scale } => Scaling::Yarn {
                factor: single(factor),
                fast: single(fast),
                slow: single(slow),
                original,
                scale: single(scale),
            },
            Scaling::Each { factors, scale } => Scaling::Each {
                factors: factors.into_iter().map(single).collect(),
                scale: single(scale),
            },
        };
        (config, note)
    }

    /// Factors of rotary frequencies, and the tensors that hold them.
    pub(crate) fn rope_tensors(&self) -> (&'static [&'static str], Vec<f32>) {
        match &self.rope_scaling {
            Scaling::Each { factors, .. } => {
                let names: &[&str] = match self.family {
                    Family::Phi3 => &["rope_factors_long.weight", "rope_factors_short.weight"],
                    _ => &["rope_freqs.weight"],
                };
                (names, factors.iter().map(|x| *x as f32).collect())
            }
            _ => (&[], Vec::new()),
        }
    }

    /// Writes the metadata, of a configuration made by [`Config::for_gguf`].
    pub(crate) fn write_gguf(&self, head: &mut Head) {
        let architecture = self.family.row().3;
        let count = |n: usize| Item::U32(n as u32);
        let number = |x: f64| Item::F32(x as f32);
        head.set("general.architecture", Item::Text(architecture.into()));
        let mut set = |key: &str, item: Item| head.set(format!("{architecture}.{key}"), item);
        set("vocab_size", count(self.vocab_size));
        set("context_length", count(self.max_position_embeddings));
        set("embedding_length", count(self.hidden_size));
        set("block_count", count(self.num_hidden_layers));
        set("feed_forward_length", count(self.intermediate_size));
        set("attention.head_count", count(self.num_attention_heads));
        let eps = Item::F32(self.rms_norm_eps);
        if self.layer_norms {
            set("attention.layer_norm_epsilon", eps);
        } else {
            set("attention.layer_norm_rms_epsilon", eps);
        }
        if !self.learned_positions {
            set("attention.head_count_kv", count(self.num_key_value_heads));
            set("attention.key_length", count(self.head_dim));
            set("attention.value_length", count(self.head_dim));
            set("rope.dimension_count", count(self.rotary_dim));
            set("rope.freq_base", number(self.rope_theta));
        }
        if let Some(theta) = self.local_rope_theta {
            set("rope.freq_base_swa", number(theta));
        }
        if let Some(window) = self.window {
            set("attention.sliding_window", count(window));
        }
        if let Some(cap) = self.attention_cap {
            set("attn_logit_softcapping", Item::F32(cap));
        }
        if let Some(cap) = self.logit_cap {
            set("final_logit_softcapping", Item::F32(cap));
        }
        if let Some(m) = &self.mixture {
            set("expert_count", count(m.experts));
            set("expert_used_count", count(m.chosen));
            set("expert_feed_forward_length", count(m.width));
        }
        let scale = match &self.rope_scaling {
            Scaling::None | Scaling::Llama3 { .. } => 1.0,
            Scaling::Linear { factor } => {
                set("rope.scaling.type", Item::Text("linear".into()));
                set("rope.scaling.factor", number(*factor));
                1.0
            }
            Scaling::Yarn { factor, fast, slow, original, scale } => {
                set("rope.scaling.type", Item::Text("yarn".into()));
                set("rope.scaling.factor", number(*factor));
                set("rope.scaling.original_context_length", count(original.round() as usize));
                set("rope.scaling.yarn_beta_fast", number(*fast));
                set("rope.scaling.yarn_beta_slow", number(*slow));
                scale / (0.1 * libm::log(*factor) + 1.0)
            }
            Scaling::Each { scale, .. } => {
                if self.family == Family::Phi3 {
                    let context = count(self.max_position_embeddings);
                    set("rope.scaling.original_context_length", context);
                }
                *scale
            }
        };
        if (scale - 1.0).abs() > 1e-6 {
            set("rope.scaling.attn_factor", number(scale));
        }
    }

    /// Which value is another in `other`; numbers that are as good as equal are equal.
    pub(crate) fn difference(&self, other: &Config) -> Option<String> {
        let numbers = |config: &Config| {
            let mut config = config.clone();
            let rounded = |x: f64| (x * 1e5).round() / 1e5;
            config.attention_scale = rounded(config.attention_scale.into()) as f32;
            if let Scaling::Yarn { scale, .. } = &mut config.rope_scaling {
                *scale = rounded(*scale);
            }
            format!("{config:#?}")
        };
        let (mine, theirs) = (numbers(self), numbers(other));
        let mut lines = mine.lines().zip(theirs.lines()).filter(|(mine, theirs)| mine != theirs);
        let said = |line: &str| line.trim().trim_end_matches(',').to_string();
        lines.next().map(|(mine, theirs)| format!("{}, read as {}", said(mine), said(theirs)))
    }
}
