//! The transformer, written once: training, scoring and generation all go through [`Transformer::layers`].

use std::rc::Rc;
use std::sync::Arc;

use compute::Span;
use compute::cpu::attention::{AttentionShape, CachedSpan};
use compute::cpu::heads::Rope;
use compute::kv::{KvPages, KvSequence};
use compute::parameters::{ParamId, Parameters};
use compute::tape::{Loss, Tape, Var, Workspace};

use crate::config::Config;

/// A decoder-only transformer with its weights.
#[derive(Clone, Debug)]
pub struct Transformer {
    config: Config,
    /// The weights, by their names in a Hugging Face checkpoint.
    pub parameters: Parameters,
    embedding: ParamId,
    layers: Vec<Layer>,
    norm: ParamId,
    head: ParamId,
    rope: Arc<Rope>,
}

/// The parameters of one layer.
#[derive(Clone, Copy, Debug)]
struct Layer {
    attention_norm: ParamId,
    q: ParamId,
    k: ParamId,
    v: ParamId,
    o: ParamId,
    q_norm: ParamId,
    k_norm: ParamId,
    mlp_norm: ParamId,
    gate: ParamId,
    up: ParamId,
    down: ParamId,
}

/// Where attention finds earlier positions.
enum Past<'a> {
    /// In the batch itself: whole sequences.
    Batch(Rc<[Span]>),
    /// In pages.
    Pages(&'a mut KvPages, Vec<CachedSpan<'a>>),
}

/// New tokens of one sequence and what is kept of it.
pub struct Step<'a> {
    /// The next tokens.
    pub tokens: &'a [u32],
    /// Pages with room for them; its length grows by theirs.
    pub kv: &'a mut KvSequence,
}

impl Transformer {
    /// Puts weights to their places. `parameters` come in the order and the shapes of
    /// [`shapes`]: see [`init`](crate::init) and [`weights`](crate::weights).
    ///
    /// # Panics
    /// If they don't.
    pub fn new(config: Config, parameters: Parameters) -> Transformer {
        let mut next = 0;
        for (p, (name, shape)) in parameters.iter().zip(shapes(&config)) {
            assert!(p.name == name, "parameter {} where {name} belongs", p.name);
            assert_eq!(p.value.len(), shape.iter().product::<usize>(), "elements of {name}");
        }
        let mut take = || {
            next += 1;
            ParamId(next - 1)
        };
        let embedding = take();
        let layers = (0..config.num_hidden_layers)
            .map(|_| Layer {
                attention_norm: take(),
                q: take(),
                k: take(),
                v: take(),
                o: take(),
                q_norm: take(),
                k_norm: take(),
                mlp_norm: take(),
                gate: take(),
                up: take(),
                down: take(),
            })
            .collect();
        let norm = take();
        let head = if config.tie_word_embeddings { embedding } else { take() };
        assert_eq!(parameters.iter().len(), next, "number of parameters");
        let rope = Rope::new(config.max_position_embeddings, config.head_dim, config.rope_theta);
        Transformer { config, parameters, embedding, layers, norm, head, rope: Arc::new(rope) }
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn attention_shape(&self) -> AttentionShape {
        let c = &self.config;
        AttentionShape {
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            window: None,
        }
    }

    /// Token ids to the last layer's normalised output, `[tokens, hidden_size]`.
    fn layers(
        &self,
        tape: &mut Tape<'_>,
        tokens: &[u32],
        positions: &Rc<[u32]>,
        mut past: Past<'_>,
    ) -> Var {
        let shape = self.attention_shape();
        let eps = self.config.rms_norm_eps;
        let mut x = tape.embedding(self.embedding, &Rc::from(tokens));
        for (i, layer) in self.layers.iter().enumerate() {
            let h = tape.rms_norm(x, layer.attention_norm, eps);
            let q = tape.linear(h, layer.q);
            let k = tape.linear(h, layer.k);
            let v = tape.linear(h, layer.v);
            let q = tape.heads(q, Some(layer.q_norm), eps, &self.rope, positions);
            let k = tape.heads(k, Some(layer.k_norm), eps, &self.rope, positions);
            let a = match &mut past {
                Past::Batch(spans) => tape.attention(q, k, v, shape, spans),
                Past::Pages(pages, spans) => {
                    tape.attention_cached(q, k, v, &shape, i, spans, pages)
                }
            };
            x = tape.linear_add(a, layer.o, x);

            let h = tape.rms_norm(x, layer.mlp_norm, eps);
            let gate = tape.linear(h, layer.gate);
            let up = tape.linear(h, layer.up);
            let m = tape.swiglu(gate, up);
            x = tape.linear_add(m, layer.down, x);
        }
        tape.rms_norm(x, self.norm, eps)
    }

    /// Nats of every target, rows `[tokens]`; on a recording tape, gradients of
    /// `sum(weights * nats)` are ready for [`Tape::backward`]. Rows of different spans don't see
    /// each other; positions count from each span's start.
    pub fn loss(
        &self,
        tape: &mut Tape<'_>,
        tokens: &[u32],
        targets: &[u32],
        spans: &[Span],
        weights: &[f32],
    ) -> Loss {
        let positions: Rc<[u32]> = spans.iter().flat_map(|s| 0..s.len as u32).collect();
        assert_eq!(positions.len(), tokens.len(), "rows of all spans");
        let h = self.layers(tape, tokens, &positions, Past::Batch(Rc::from(spans)));
        tape.cross_entropy(h, self.head, targets, weights)
    }

    /// Nats of every target (0 where it is [`compute::IGNORE`]) without gradients.
    pub fn loss_rows(
        &self,
        ws: &mut Workspace,
        tokens: &[u32],
        targets: &[u32],
        spans: &[Span],
    ) -> Vec<f32> {
        self.loss(&mut ws.compute(&self.parameters), tokens, targets, spans, &[]).rows
    }

    /// Runs new tokens of several sequences, whose keys and values go to `pages`. Returns logits,
    /// `[steps, vocab]` for the last token of each, or with `all_rows` `[tokens of all, vocab]`.
    ///
    /// # Panics
    /// If a sequence's pages have no room, or it would pass the longest context.
    pub fn forward_cached(
        &self,
        ws: &mut Workspace,
        pages: &mut KvPages,
        steps: &mut [Step<'_>],
        all_rows: bool,
    ) -> Vec<f32> {
        let mut tokens = Vec::new();
        let mut positions = Vec::new();
        let mut spans = Vec::new();
        for step in steps.iter() {
            let (start, past) = (tokens.len(), step.kv.len);
            let end = past + step.tokens.len();
            assert!(end <= self.config.max_position_embeddings, "longer than the context");
            spans.push((Span { start, len: step.tokens.len() }, past));
            tokens.extend_from_slice(step.tokens);
            positions.extend(past as u32..end as u32);
        }
        let logits = {
            let cached = spans
                .iter()
                .zip(steps.iter())
                .map(|(&(rows, past), s)| CachedSpan { rows, past, pages: &s.kv.pages })
                .collect();
            let mut tape = ws.compute(&self.parameters);
            let past = Past::Pages(pages, cached);
            let h = self.layers(&mut tape, &tokens, &Rc::from(positions), past);
            let rows: Vec<usize> = if all_rows {
                (0..tokens.len()).collect()
            } else {
                spans.iter().map(|(s, _)| s.start + s.len - 1).collect()
            };
            tape.logits(h, &rows, self.head)
        };
        for step in steps {
            step.kv.len += step.tokens.len();
        }
        logits
    }
}

/// The parameters of a configuration in order: name and shape (`[out, in]`, or one number for a
/// vector).
pub fn shapes(c: &Config) -> Vec<(String, Vec<usize>)> {
    let (d, f, q, kv) = (c.hidden_size, c.intermediate_size, c.query_width(), c.key_width());
    let mut list = vec![("model.embed_tokens.weight".to_string(), vec![c.vocab_size, d])];
    for i in 0..c.num_hidden_layers {
        let parts: [(&str, Vec<usize>); 11] = [
            ("input_layernorm", vec![d]),
            ("self_attn.q_proj", vec![q, d]),
            ("self_attn.k_proj", vec![kv, d]),
            ("self_attn.v_proj", vec![kv, d]),
            ("self_attn.o_proj", vec![d, q]),
            ("self_attn.q_norm", vec![c.head_dim]),
            ("self_attn.k_norm", vec![c.head_dim]),
            ("post_attention_layernorm", vec![d]),
            ("mlp.gate_proj", vec![f, d]),
            ("mlp.up_proj", vec![f, d]),
            ("mlp.down_proj", vec![d, f]),
        ];
        list.extend(parts.map(|(name, shape)| (format!("model.layers.{i}.{name}.weight"), shape)));
    }
    list.push(("model.norm.weight".into(), vec![d]));
    if !c.tie_word_embeddings {
        list.push(("lm_head.weight".into(), vec![c.vocab_size, d]));
    }
    list
}
