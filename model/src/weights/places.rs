//! Where the parameters of each family lie in files: the maps of names.

use std::ops::Range;

use crate::config::{Config, Family};
use crate::transformer::shapes;

/// How files name things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Safetensors of a Hugging Face directory.
    HuggingFace,
    /// GGUF.
    Gguf,
}

/// Where a parameter lies in a file, and what has to be done to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The parameter's name here.
    pub name: String,
    /// Its shape here.
    pub shape: Vec<usize>,
    /// The file's tensor.
    pub tensor: String,
    /// The shape of that.
    pub whole: Vec<usize>,
    /// Which rows of it (as a matrix whose last dimension is a row; of a vector, which elements).
    pub rows: Range<usize>,
    /// Whether it lies there with rows for columns; `rows` are its columns then.
    pub turned: bool,
    /// What is added to every element.
    pub plus: f32,
    /// Heads whose halves lie interleaved, row by row.
    pub interleaved: Option<usize>,
}

/// The places of all parameters, in the order of [`shapes`].
pub fn places(c: &Config, layout: Layout) -> Vec<Place> {
    shapes(c)
        .into_iter()
        .map(|(name, shape)| {
            let rows = shape[0];
            let whole = shape.clone();
            let tensor = name.clone();
            let place = Place {
                name,
                shape,
                tensor,
                whole,
                rows: 0..rows,
                turned: false,
                plus: 0.0,
                interleaved: None,
            };
            match layout {
                Layout::HuggingFace => hugging_face(c, place),
                Layout::Gguf => gguf(c, place),
            }
        })
        .collect()
}

/// `model.layers.3.mlp.up_proj.weight` is `(3, "mlp.up_proj", "weight")`.
fn layer(name: &str) -> Option<(usize, &str, &str)> {
    let (number, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    Some((number.parse().ok()?, part, kind))
}

impl Place {
    /// Whether a quantised tensor can be taken as it is: a matrix whose rows are the file's.
    pub fn stays_quantised(&self) -> bool {
        self.shape.len() == 2 && !self.turned && self.plus == 0.0
    }

    /// A part of a tensor that holds several: rows from `start` of `all`.
    fn part(mut self, tensor: String, start: usize, all: usize) -> Place {
        self.tensor = tensor;
        self.whole[0] = all;
        self.rows = start..start + self.shape[0];
        self
    }

    fn called(mut self, tensor: String) -> Place {
        self.tensor = tensor;
        self
    }

    /// Rows for columns, as GPT-2 has its matrices.
    fn turned(mut self) -> Place {
        if self.shape.len() == 2 {
            self.whole.reverse();
            self.turned = true;
        }
        self
    }
}

/// Start of queries, keys or values among the rows of all three.
fn of_three(c: &Config, part: &str) -> (usize, usize) {
    let (q, kv) = (c.query_width(), c.key_width());
    let start = match part {
        "self_attn.q_proj" => 0,
        "self_attn.k_proj" => q,
        _ => q + kv,
    };
    (start, q + 2 * kv)
}

fn hugging_face(c: &Config, mut place: Place) -> Place {
    let name = place.name.clone();
    if c.norms_less_one && place.shape.len() == 1 && name.contains("norm") {
        place.plus = 1.0;
    }
    let parts = layer(&name);
    match (c.family, parts) {
        (
            Family::Phi3,
            Some((i, part @ ("self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj"), kind)),
        ) => {
            let (start, all) = of_three(c, part);
            place.part(format!("model.layers.{i}.self_attn.qkv_proj.{kind}"), start, all)
        }
        (Family::Phi3, Some((i, part @ ("mlp.gate_proj" | "mlp.up_proj"), kind))) => {
            let f = c.intermediate_size;
            let start = if part == "mlp.up_proj" { f } else { 0 };
            place.part(format!("model.layers.{i}.mlp.gate_up_proj.{kind}"), start, 2 * f)
        }
        (Family::Gpt2, None) => place.called(match name.as_str() {
            "model.embed_tokens.weight" => "transformer.wte.weight".into(),
            "model.embed_positions.weight" => "transformer.wpe.weight".into(),
            "model.norm.weight" => "transformer.ln_f.weight".into(),
            "model.norm.bias" => "transformer.ln_f.bias".into(),
            _ => name,
        }),
        (Family::Gpt2, Some((i, part, kind))) => {
            let called = |part: &str| format!("transformer.h.{i}.{part}.{kind}");
            match part {
                "input_layernorm" => place.called(called("ln_1")),
                "post_attention_layernorm" => place.called(called("ln_2")),
                "self_attn.o_proj" => place.called(called("attn.c_proj")).turned(),
                "mlp.up_proj" => place.called(called("mlp.c_fc")).turned(),
                "mlp.down_proj" => place.called(called("mlp.c_proj")).turned(),
                _ => {
                    let (start, all) = of_three(c, part);
                    place.part(called("attn.c_attn"), start, all).turned()
                }
            }
        }
        _ => place,
    }
}

fn gguf(c: &Config, mut place: Place) -> Place {
    let name = place.name.clone();
    let Some((i, part, kind)) = layer(&name) else {
        return place.called(match name.as_str() {
            "model.embed_tokens.weight" => "token_embd.weight".into(),
            "model.embed_positions.weight" => "position_embd.weight".into(),
            "lm_head.weight" => "output.weight".into(),
            _ => name.replace("model.norm", "output_norm"),
        });
    };
    let called = |part: &str| format!("blk.{i}.{part}.{kind}");
    if let Some((expert, matrix)) =
        part.strip_prefix("mlp.experts.").and_then(|p| p.split_once('.'))
    {
        // All experts' matrices in one tensor.
        let (expert, rows) = (expert.parse().unwrap_or(0), place.shape[0]);
        let experts = c.mixture.as_ref().map_or(0, |m| m.experts);
        let stacked = match matrix {
            "gate_proj" => "ffn_gate_exps",
            "up_proj" => "ffn_up_exps",
            _ => "ffn_down_exps",
        };
        let mut place = place.part(called(stacked), expert * rows, 0);
        place.whole = vec![experts, rows, place.shape[1]];
        return place;
    }
    // llama.cpp has the halves of this family's heads interleaved.
    let llama = matches!(c.family, Family::Llama | Family::Mistral);
    let three = matches!(c.family, Family::Phi3 | Family::Gpt2);
    match part {
        "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" if three => {
            let (start, all) = of_three(c, part);
            place.part(called("attn_qkv"), start, all)
        }
        "self_attn.q_proj" => {
            place.interleaved = llama.then_some(c.num_attention_heads);
            place.called(called("attn_q"))
        }
        "self_attn.k_proj" => {
            place.interleaved = llama.then_some(c.num_key_value_heads);
            place.called(called("attn_k"))
        }
        "self_attn.v_proj" => place.called(called("attn_v")),
        "mlp.gate_proj" | "mlp.up_proj" if c.family == Family::Phi3 => {
            let f = c.intermediate_size;
            place.part(called("ffn_up"), if part == "mlp.up_proj" { f } else { 0 }, 2 * f)
        }
        _ => place.called(called(match part {
            "input_layernorm" => "attn_norm",
            "post_attention_layernorm" if c.norms_after => "post_attention_norm",
            "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
            "post_feedforward_layernorm" => "post_ffw_norm",
            "self_attn.q_norm" => "attn_q_norm",
            "self_attn.k_norm" => "attn_k_norm",
            "self_attn.o_proj" => "attn_output",
            "mlp.gate" => "ffn_gate_inp",
            "mlp.gate_proj" => "ffn_gate",
            "mlp.up_proj" => "ffn_up",
            _ => "ffn_down",
        })),
    }
}
