//! `config.json` of a Hugging Face directory.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Config, ConfigError, Family, Mixture, Scaling};
use compute::cpu::gated::Activation;

/// What is read of the file. Families have several names for one thing.
#[derive(Deserialize)]
struct File {
    #[serde(alias = "n_embd")]
    hidden_size: Option<usize>,
    #[serde(alias = "n_inner")]
    intermediate_size: Option<usize>,
    #[serde(alias = "n_layer")]
    num_hidden_layers: Option<usize>,
    #[serde(alias = "n_head")]
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: Option<usize>,
    #[serde(alias = "n_positions")]
    max_position_embeddings: Option<usize>,
    #[serde(alias = "layer_norm_epsilon")]
    rms_norm_eps: Option<f32>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
    #[serde(alias = "activation_function")]
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    scale_attn_weights: Option<bool>,
    #[serde(alias = "num_local_experts")]
    num_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    moe_intermediate_size: Option<usize>,
    norm_topk_prob: Option<bool>,
    decoder_sparse_step: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
    quantization_config: Option<Value>,
}

/// One id or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl Ids {
    fn first(&self) -> Option<u32> {
        match self {
            Ids::One(id) => Some(*id),
            Ids::Several(ids) => ids.first().copied(),
        }
    }
}

fn wrong<T>(text: String) -> Result<T, ConfigError> {
    Err(ConfigError::Value(text))
}

impl Config {
    /// Reads and checks the text of `config.json`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(text: &str) -> Result<Config, ConfigError> {
        #[derive(Deserialize)]
        struct Top {
            model_type: String,
            text_config: Option<Value>,
        }
        let top: Top = serde_json::from_str(text)?;
        let name = match top.model_type.as_str() {
            // With its images, of which nothing is read.
            "gemma3" => "gemma3_text",
            name => name,
        };
        let Some((family, ..)) = Family::ALL.into_iter().find(|row| row.1 == name) else {
            return Err(ConfigError::Family(top.model_type));
        };
        let file: File = match top.text_config {
            Some(part) => serde_json::from_value(part)?,
            None => serde_json::from_str(text)?,
        };
        let config = file.config(family)?;
        config.check()?;
        Ok(config)
    }
}

impl File {
    fn config(self, family: Family) -> Result<Config, ConfigError> {
        let base = Config::of(family);
        let need = |name: &str, value: Option<usize>| {
            value.ok_or_else(|| ConfigError::Value(format!("{name} is missing")))
        };
        if self.quantization_config.is_some() {
            return wrong("quantization_config: safetensors are read in F32, F16 and BF16".into());
        }
        let gemma3 = family == Family::Gemma3;
        let or_gemma3 = |value: Option<usize>, default| value.or(gemma3.then_some(default));
        let width = need("hidden_size", self.hidden_size)?;
        let layers = need("num_hidden_layers", self.num_hidden_layers)?;
        let heads = need("num_attention_heads", or_gemma3(self.num_attention_heads, 8))?;
        let context = or_gemma3(self.max_position_embeddings, 131_072);
        let mut config = Config {
            vocab_size: need("vocab_size", or_gemma3(self.vocab_size, 262_208))?,
            hidden_size: width,
            intermediate_size: match (self.intermediate_size, family) {
                (None, Family::Gpt2) => 4 * width,
                (size, _) => need("intermediate_size", size)?,
            },
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: or_gemma3(self.num_key_value_heads, 4).unwrap_or(heads),
            head_dim: match self.head_dim {
                Some(size) => size,
                None if matches!(family, Family::Gemma2 | Family::Gemma3) => 256,
                None => 0,
            },
            max_position_embeddings: need("max_position_embeddings", context)?,
            rms_norm_eps: self.rms_norm_eps.unwrap_or(base.rms_norm_eps),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(base.tie_word_embeddings),
            bos_token_id: self.bos_token_id.as_ref().and_then(Ids::first),
            eos_token_id: self.eos_token_id.as_ref().and_then(Ids::first),
            ..base
        }
        .settle();
        self.activation(&mut config)?;
        self.attention(&mut config)?;
        self.windows(&mut config)?;
        self.rope(&mut config)?;
        if family == Family::Qwen3Moe {
            if self.decoder_sparse_step.is_some_and(|step| step != 1)
                || self.mlp_only_layers.as_ref().is_some_and(|layers| !layers.is_empty())
            {
                return wrong(
                    "layers without experts among those with (mlp_only_layers) are not supported"
                        .into(),
                );
            }
            config.mixture = Some(Mixture {
                experts: need("num_experts", self.num_experts)?,
                chosen: need("num_experts_per_tok", self.num_experts_per_tok)?,
                width: need("moe_intermediate_size", self.moe_intermediate_size)?,
                normalised: self.norm_topk_prob.unwrap_or(false),
            });
        }
        Ok(config)
    }

    fn activation(&self, config: &mut Config) -> Result<(), ConfigError> {
        let Some(name) = self.hidden_activation.as_deref().or(self.hidden_act.as_deref()) else {
            return Ok(());
        };
        config.activation = match name {
            "silu" | "swish" => Activation::Silu,
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::Gelu,
            // What Gemma's first files said, and what they meant.
            "gelu" if config.activation == Activation::Gelu => Activation::Gelu,
            _ => {
                return wrong(format!(
                    "the activation {name:?} is not supported; known: silu, gelu_pytorch_tanh, gelu_new"
                ));
            }
        };
        Ok(())
    }

    fn attention(&self, config: &mut Config) -> Result<(), ConfigError> {
        match (config.family, self.attention_bias) {
            (Family::Llama, Some(true)) => (config.qkv_bias, config.output_bias) = (true, true),
            (_, Some(true)) => {
                return wrong("attention_bias is true, which is not supported".into());
            }
            _ => {}
        }
        config.mlp_bias |= self.mlp_bias.unwrap_or(false);
        if self.scale_attn_by_inverse_layer_idx == Some(true)
            || self.scale_attn_weights == Some(false)
        {
            return wrong("scores scaled by layer, or not at all, are not supported".into());
        }
        if let Some(scalar) = self.query_pre_attn_scalar {
            config.attention_scale = (1.0 / scalar.sqrt()) as f32;
        }
        config.attention_cap = self.attn_logit_softcapping;
        config.logit_cap = self.final_logit_softcapping;
        Ok(())
    }

    fn windows(&self, config: &mut Config) -> Result<(), ConfigError> {
        let layers = config.num_hidden_layers.min(1 << 12);
        let Some(window) = self.sliding_window else { return Ok(()) };
        let every: Box<dyn Fn(usize) -> bool> = match config.family {
            Family::Mistral | Family::Phi3 => Box::new(|_| true),
            Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => {
                let first = self.max_window_layers.unwrap_or(0);
                let used = self.use_sliding_window.unwrap_or(false);
                Box::new(move |i| used && i >= first)
            }
            Family::Gemma2 => Box::new(|i| i % 2 == 0),
            Family::Gemma3 => {
                let pattern = self.sliding_window_pattern.unwrap_or(6).max(1);
                Box::new(move |i| (i + 1) % pattern != 0)
            }
            Family::Llama | Family::Gpt2 => return Ok(()),
        };
        config.window = Some(window);
        config.local = match &self.layer_types {
            None => (0..layers).map(every).collect(),
            Some(types) => {
                let mut local = Vec::new();
                for kind in types {
                    local.push(match kind.as_str() {
                        "full_attention" => false,
                        "sliding_attention" => true,
                        other => return wrong(format!("layer_types: {other:?} is not supported")),
                    });
                }
                local
            }
        };
        Ok(())
    }

    /// Older files have `rope_theta` and `rope_scaling`; newer ones `rope_parameters`, for Gemma 3 one
    /// for each kind of layer.
    fn rope(&self, config: &mut Config) -> Result<(), ConfigError> {
        let (mut all, mut local) = (self.rope_scaling.clone(), None);
        config.rope_theta = self.rope_theta.unwrap_or(config.rope_theta);
        if config.family == Family::Gemma3 {
            config.local_rope_theta = Some(self.rope_local_base_freq.unwrap_or(1e4));
        }
        if let Some(parameters) = &self.rope_parameters {
            let of = |kind: &str| parameters.get(kind).filter(|part| part.is_object()).cloned();
            match of("full_attention") {
                Some(full) => (all, local) = (Some(full), of("sliding_attention")),
                None => all = Some(parameters.clone()),
            }
        }
        if let Some(theta) = local.as_ref().and_then(|l| l["rope_theta"].as_f64()) {
            config.local_rope_theta = Some(theta);
        }
        let part = self
            .partial_rotary_factor
            .or(all.as_ref().and_then(|a| a["partial_rotary_factor"].as_f64()));
        if let Some(part) = part {
            config.rotary_dim = (config.head_dim as f64 * part) as usize;
        }
        if let Some(all) = all.filter(|all| !all.is_null()) {
            config.rope_theta = all["rope_theta"].as_f64().unwrap_or(config.rope_theta);
            self.scaling(&all, config)?;
        }
        Ok(())
    }

    fn scaling(&self, s: &Value, config: &mut Config) -> Result<(), ConfigError> {
        let number = |key: &str| {
            s[key]
                .as_f64()
                .ok_or_else(|| ConfigError::Value(format!("rope_scaling: {key} is missing")))
        };
        let context = config.max_position_embeddings as f64;
        let original = s["original_max_position_embeddings"]
            .as_f64()
            .or(self.original_max_position_embeddings.map(|n| n as f64));
        let kind = s["rope_type"].as_str().or(s["type"].as_str()).unwrap_or("default");
        config.rope_scaling = match kind {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: number("factor")? },
            "llama3" => Scaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original: number("original_max_position_embeddings")?,
            },
            "yarn" => {
                let factor = number("factor")?;
                let scale = 0.1 * libm::log(factor) + 1.0;
                Scaling::Yarn {
                    factor,
                    fast: s["beta_fast"].as_f64().unwrap_or(32.0),
                    slow: s["beta_slow"].as_f64().unwrap_or(1.0),
                    original: original.unwrap_or(context),
                    scale: s["attention_factor"].as_f64().unwrap_or(scale),
                }
            }
            "longrope" | "su" => {
                let original = original.unwrap_or(context);
                let factor = context / original;
                let scale = match s["attention_factor"].as_f64() {
                    Some(scale) => scale,
                    None if factor <= 1.0 => 1.0,
                    None => (1.0 + libm::log(factor) / libm::log(original)).sqrt(),
                };
                // There are factors for contexts up to the original one, and others beyond, which
                // change what was computed before: the context ends there.
                config.max_position_embeddings = original.min(context) as usize;
                let factors = s["short_factor"].as_array().map(|list| list.iter());
                let factors: Option<Vec<f64>> = factors.and_then(|mut list| {
                    list.try_fold(Vec::new(), |mut all, x| {
                        all.push(x.as_f64()?);
                        Some(all)
                    })
                });
                match factors {
                    Some(factors) => Scaling::Each { factors, scale },
                    None => return wrong("rope_scaling: short_factor is missing".into()),
                }
            }
            other => {
                return wrong(format!(
                    "rope_scaling of type {other:?} is not supported; known: linear, llama3, yarn, longrope"
                ));
            }
        };
        Ok(())
    }
}

/// A number as it is written, not as the nearest f64.
fn short(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_default()
}

impl Config {
    /// The text of a `config.json` beside weights of type `dtype` (as torch calls it). It may be that
    /// some of the model can't be said there: who needs to know reads it back and compares.
    pub fn to_json(&self, dtype: &str) -> String {
        let mut file = match self.family {
            Family::Gpt2 => self.gpt2(),
            _ => self.usual(),
        };
        file["bos_token_id"] = json!(self.bos_token_id);
        file["eos_token_id"] = json!(self.eos_token_id);
        file["torch_dtype"] = json!(dtype);
        format!("{file:#}\n")
    }

    fn gpt2(&self) -> Value {
        json!({
            "architectures": [self.family.class()],
            "model_type": self.family.model_type(),
            "vocab_size": self.vocab_size,
            "n_embd": self.hidden_size,
            "n_inner": self.intermediate_size,
            "n_layer": self.num_hidden_layers,
            "n_head": self.num_attention_heads,
            "n_positions": self.max_position_embeddings,
            "layer_norm_epsilon": short(self.rms_norm_eps),
            "activation_function": "gelu_new",
            "tie_word_embeddings": self.tie_word_embeddings,
        })
    }

    fn usual(&self) -> Value {
        let mut file = json!({
            "architectures": [self.family.class()],
            "model_type": self.family.model_type(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": short(self.rms_norm_eps),
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.family == Family::Llama && self.qkv_bias,
        });
        let activation = match self.activation {
            Activation::Silu => "silu",
            Activation::Gelu => "gelu_pytorch_tanh",
        };
        let gemma = matches!(self.family, Family::Gemma2 | Family::Gemma3);
        file[if gemma { "hidden_activation" } else { "hidden_act" }] = json!(activation);
        if self.mlp_bias {
            file["mlp_bias"] = json!(true);
        }
        if self.rotary_dim != self.head_dim {
            file["partial_rotary_factor"] = json!(self.rotary_dim as f64 / self.head_dim as f64);
        }
        if gemma {
            // The scale is 1 over the root of a number, nearly always a whole one.
            let scalar = 1.0 / f64::from(self.attention_scale).powi(2);
            let whole = scalar.round();
            let near = (scalar - whole).abs() < 1e-5 * whole;
            file["query_pre_attn_scalar"] = json!(if near { whole } else { scalar });
            file["attn_logit_softcapping"] = json!(self.attention_cap.map(short));
            file["final_logit_softcapping"] = json!(self.logit_cap.map(short));
        }
        if let Some(theta) = self.local_rope_theta {
            file["rope_local_base_freq"] = json!(theta);
        }
        if let Some(window) = self.window.filter(|_| self.local.contains(&true)) {
            file["sliding_window"] = json!(window);
            let kind = |local: &bool| if *local { "sliding_attention" } else { "full_attention" };
            if self.local.contains(&false) || gemma {
                file["layer_types"] = self.local.iter().map(kind).collect();
            }
            if matches!(self.family, Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe) {
                file["use_sliding_window"] = json!(true);
                file["max_window_layers"] = json!(0);
            }
        } else if matches!(self.family, Family::Mistral | Family::Phi3 | Family::Gemma2) {
            // Where it isn't there, these have one.
            file["sliding_window"] = Value::Null;
        }
        if let Some(m) = &self.mixture {
            file["num_experts"] = json!(m.experts);
            file["num_experts_per_tok"] = json!(m.chosen);
            file["moe_intermediate_size"] = json!(m.width);
            file["norm_topk_prob"] = json!(m.normalised);
            file["decoder_sparse_step"] = json!(1);
            file["mlp_only_layers"] = json!([]);
        }
        self.write_scaling(&mut file);
        file
    }

    fn write_scaling(&self, file: &mut Value) {
        let context = self.max_position_embeddings;
        file["rope_scaling"] = match &self.rope_scaling {
            Scaling::None => return,
            Scaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Scaling::Llama3 { factor, low, high, original } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original.round() as u64,
            }),
            Scaling::Yarn { factor, fast, slow, original, scale } => json!({
                "rope_type": "yarn",
                "factor": factor,
                "beta_fast": fast,
                "beta_slow": slow,
                "attention_factor": scale,
                "original_max_position_embeddings": original.round() as u64,
            }),
            Scaling::Each { factors, scale } => {
                if self.family == Family::Phi3 {
                    file["original_max_position_embeddings"] = json!(context);
                }
                json!({
                    "rope_type": "longrope",
                    "factor": 1.0,
                    "short_factor": factors,
                    "long_factor": factors,
                    "attention_factor": scale,
                    "original_max_position_embeddings": context,
                })
            }
        };
    }
}
