//! The transformer, written once: training, scoring and generation all go through [`Transformer::layers`].

use std::rc::Rc;
use std::sync::Arc;

use compute::Span;
use compute::cpu::attention::{AttentionShape, CachedSpan};
use compute::cpu::heads::Rope;
use compute::kv::{KvError, KvPages, KvSequence, KvType};
use compute::parameters::{ParamId, Parameters};
use compute::tape::{Experts, Head, Linear, Loss, NewRows, Tape, Var, Workspace};

use crate::config::Config;

/// A decoder-only transformer with its weights.
#[derive(Clone, Debug)]
pub struct Transformer {
    config: Config,
    /// The weights, by their names in a Hugging Face checkpoint.
    pub parameters: Parameters,
    embedding: ParamId,
    /// Learned positions, where there are any.
    positions: Option<ParamId>,
    layers: Vec<Layer>,
    norm: Norm,
    head: Head,
    /// Rotary positions of the layers that see everything, and of the local ones.
    ropes: [Arc<Rope>; 2],
}

/// The parameters of one layer.
#[derive(Clone, Debug)]
struct Layer {
    attention_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<ParamId>,
    k_norm: Option<ParamId>,
    after_attention: Option<Norm>,
    mlp_norm: Norm,
    mlp: Mlp,
    after_mlp: Option<Norm>,
}

impl Layer {
    fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        let Layer { q, k, v, o, mlp, .. } = self;
        let mlp = match mlp {
            Mlp::Dense { gate, up, down } => [gate.as_mut(), Some(up), Some(down)],
            Mlp::Experts(_) => [None, None, None],
        };
        [q, k, v, o].into_iter().chain(mlp.into_iter().flatten())
    }
}

/// What comes between two norms beside attention.
#[derive(Clone, Debug)]
enum Mlp {
    Dense { gate: Option<Linear>, up: Linear, down: Linear },
    Experts(Experts),
}

/// A norm: RMS without a bias, layer norm with one.
#[derive(Clone, Copy, Debug)]
struct Norm {
    weight: ParamId,
    bias: Option<ParamId>,
}

/// Where attention finds earlier positions.
enum Past<'a> {
    /// In the batch itself: whole sequences.
    Batch(Rc<[Span]>),
    /// In pages.
    Pages(&'a mut KvPages, &'a [CachedSpan<'a>]),
}

/// New tokens of one sequence and what is kept of it.
pub struct Step<'a> {
    /// The next tokens.
    pub tokens: &'a [u32],
    /// Of so many of them, the last ones, logits are wanted.
    pub logits: usize,
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
        for (p, (name, shape)) in parameters.iter().zip(shapes(&config)) {
            assert!(p.name == name, "parameter {} where {name} belongs", p.name);
            assert_eq!(p.value.len(), shape.iter().product::<usize>(), "elements of {name}");
        }
        let c = &config;
        let mut next = Next(0);
        let embedding = next.one();
        let positions = next.if_any(c.learned_positions);
        let layers = (0..c.num_hidden_layers)
            .map(|_| Layer {
                attention_norm: next.norm(c),
                q: next.linear(c.qkv_bias),
                k: next.linear(c.qkv_bias),
                v: next.linear(c.qkv_bias),
                o: next.linear(c.output_bias),
                q_norm: next.if_any(c.qk_norm),
                k_norm: next.if_any(c.qk_norm),
                after_attention: c.norms_after.then(|| next.norm(c)),
                mlp_norm: next.norm(c),
                mlp: match &c.mixture {
                    None => Mlp::Dense {
                        gate: c.gated.then(|| next.linear(c.mlp_bias)),
                        up: next.linear(c.mlp_bias),
                        down: next.linear(c.mlp_bias),
                    },
                    Some(m) => Mlp::Experts(Experts {
                        router: next.one(),
                        experts: (0..m.experts).map(|_| [0; 3].map(|_| next.one())).collect(),
                        chosen: m.chosen,
                        normalised: m.normalised,
                    }),
                },
                after_mlp: c.norms_after.then(|| next.norm(c)),
            })
            .collect();
        let norm = next.norm(c);
        let weight = if c.tie_word_embeddings { embedding } else { next.one() };
        assert_eq!(parameters.iter().len(), next.0, "number of parameters");
        let head = Head { weight, cap: c.logit_cap };
        let ropes = [false, true].map(|local| Arc::new(c.rope(local)));
        Transformer { config, parameters, embedding, positions, layers, norm, head, ropes }
    }

    /// The linear layers of attention and of dense MLPs, in order, with the parameters.
    pub(crate) fn linears(&mut self) -> (impl Iterator<Item = &mut Linear>, &mut Parameters) {
        (self.layers.iter_mut().flat_map(Layer::linears), &mut self.parameters)
    }

    /// Makes the longest context shorter: memory for it is taken when generating.
    pub fn limit_context(&mut self, tokens: usize) {
        let most = &mut self.config.max_position_embeddings;
        *most = tokens.clamp(1, *most);
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Pages for its keys and values.
    ///
    /// # Errors
    /// [`KvError::TooLarge`] if there is no memory for them.
    pub fn pages(&self, kind: KvType, pages: usize) -> Result<KvPages, KvError> {
        let c = &self.config;
        let made =
            KvPages::new(kind, c.num_hidden_layers, c.num_key_value_heads, c.head_dim, pages)?;
        // Systems promise more than there is, and pages are touched late: what can't fit is refused now.
        let bytes = made.bytes();
        match store::available_memory() {
            Some(available) if bytes as u64 > available => Err(KvError::TooLarge { pages, bytes }),
            _ => Ok(made),
        }
    }

    /// What keys and values are stored as, if nobody says otherwise: 16 bits if weights have no more, as integers, or, where
    /// products have to be exact, as halves, which attention multiplies in f32.
    pub fn kv_type(&self, exact: bool) -> KvType {
        match self.parameters.iter().any(|p| p.value.strips().is_some()) {
            true if exact => KvType::F16,
            true => KvType::Q16,
            false => KvType::F32,
        }
    }

    fn attention_shape(&self, layer: usize) -> AttentionShape {
        let c = &self.config;
        AttentionShape {
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            scale: c.attention_scale,
            window: c.window_of(layer),
            cap: c.attention_cap,
        }
    }

    fn norm(&self, tape: &mut Tape<'_>, x: Var, norm: Norm) -> Var {
        let eps = self.config.rms_norm_eps;
        match norm.bias {
            Some(bias) => tape.layer_norm(x, norm.weight, bias, eps),
            None => tape.rms_norm(x, norm.weight, eps),
        }
    }

    /// Token ids to the last layer's normalised output, `[tokens, hidden_size]`.
    fn layers<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        tokens: &Rc<[u32]>,
        positions: &Rc<[u32]>,
        mut past: Past<'_>,
    ) -> Var {
        let c = &self.config;
        let mut x = tape.embedding(self.embedding, tokens);
        if c.scaled_embedding {
            x = tape.scale(x, (c.hidden_size as f32).sqrt());
        }
        if let Some(table) = self.positions {
            let positions = tape.embedding(table, positions);
            x = tape.add(x, positions);
        }
        for i in 0..self.layers.len() {
            x = match &mut past {
                Past::Batch(spans) => {
                    let (positions, spans) = (Rc::clone(positions), Rc::clone(spans));
                    tape.again(x, move |tape, x| {
                        self.layer(tape, x, i, &positions, &mut Past::Batch(Rc::clone(&spans)))
                    })
                }
                pages => self.layer(tape, x, i, positions, pages),
            };
            tape.keep_only(x);
        }
        self.norm(tape, x, self.norm)
    }

    /// The residual stream through layer `i`, `[tokens, hidden_size]`.
    fn layer(
        &self,
        tape: &mut Tape<'_>,
        x: Var,
        i: usize,
        positions: &Rc<[u32]>,
        past: &mut Past<'_>,
    ) -> Var {
        let (c, layer) = (&self.config, &self.layers[i]);
        let h = self.norm(tape, x, layer.attention_norm);
        let mut q = tape.linear(h, layer.q);
        let mut k = tape.linear(h, layer.k);
        let v = tape.linear(h, layer.v);
        if self.positions.is_none() {
            let rope = &self.ropes[usize::from(c.is_local(i))];
            q = tape.heads(q, layer.q_norm, c.rms_norm_eps, rope, positions);
            k = tape.heads(k, layer.k_norm, c.rms_norm_eps, rope, positions);
        }
        let shape = self.attention_shape(i);
        let a = match past {
            Past::Batch(spans) => tape.attention(q, k, v, shape, spans),
            Past::Pages(pages, spans) => tape.attention_cached(q, k, v, &shape, i, spans, pages),
        };
        let x = self.onto(tape, x, a, Some(layer.o), layer.after_attention);

        let h = self.norm(tape, x, layer.mlp_norm);
        let (m, down) = match &layer.mlp {
            Mlp::Dense { gate, up, down } => {
                let gate = gate.map(|gate| tape.linear(h, gate));
                let up = tape.linear(h, *up);
                let m = match gate {
                    Some(gate) => tape.gated(c.activation, gate, Some(up)),
                    None => tape.gated(c.activation, up, None),
                };
                (m, Some(*down))
            }
            Mlp::Experts(experts) => (tape.experts(h, experts, c.activation), None),
        };
        self.onto(tape, x, m, down, layer.after_mlp)
    }

    /// Adds what attention or the MLP made to the residual stream, through its last matrix and its
    /// norm, if it has them.
    fn onto(
        &self,
        tape: &mut Tape<'_>,
        x: Var,
        made: Var,
        matrix: Option<Linear>,
        norm: Option<Norm>,
    ) -> Var {
        match (matrix, norm) {
            (Some(matrix), None) => tape.linear_add(made, matrix, x),
            (matrix, norm) => {
                let made = matrix.map_or(made, |matrix| tape.linear(made, matrix));
                let made = norm.map_or(made, |norm| self.norm(tape, made, norm));
                tape.add(x, made)
            }
        }
    }

    /// Nats of every target, rows `[tokens]`; on a recording tape, gradients of
    /// `sum(weights * nats)` are ready for [`Tape::backward`]. Rows of different spans don't see
    /// each other; positions count from each span's start.
    pub fn loss<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        tokens: &[u32],
        targets: &[u32],
        spans: &[Span],
        weights: &[f32],
    ) -> Loss {
        let positions: Rc<[u32]> = spans.iter().flat_map(|s| 0..s.len as u32).collect();
        assert_eq!(positions.len(), tokens.len(), "rows of all spans");
        let h = self.layers(tape, &Rc::from(tokens), &positions, Past::Batch(Rc::from(spans)));
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
    /// step after step, `[rows that are wanted, vocab]`.
    ///
    /// # Panics
    /// If a sequence's pages have no room, or it would pass the longest context.
    pub fn forward_cached(
        &self,
        ws: &mut Workspace,
        pages: &mut KvPages,
        steps: &mut [Step<'_>],
    ) -> Vec<f32> {
        self.cached(steps, |new| {
            ws.compute(&self.parameters).step(new, pages, self.head, |tape, pages| {
                self.layers(tape, new.tokens, new.positions, Past::Pages(pages, new.spans))
            })
        })
    }

    /// The same up to the head: the last layer's normalised outputs of all new tokens, `[tokens, hidden_size]`.
    ///
    /// # Panics
    /// As [`Transformer::forward_cached`].
    pub fn hidden_cached(
        &self,
        ws: &mut Workspace,
        pages: &mut KvPages,
        steps: &mut [Step<'_>],
    ) -> Vec<f32> {
        self.cached(steps, |new| {
            let mut tape = ws.compute(&self.parameters);
            let past = Past::Pages(pages, new.spans);
            let h = self.layers(&mut tape, new.tokens, new.positions, past);
            tape.read(h)
        })
    }

    /// Has `run` run new tokens of several sequences, together.
    fn cached(
        &self,
        steps: &mut [Step<'_>],
        run: impl FnOnce(&NewRows<'_>) -> Vec<f32>,
    ) -> Vec<f32> {
        let mut tokens = Vec::new();
        let mut positions = Vec::new();
        let mut spans = Vec::new();
        let mut wanted = Vec::new();
        for step in steps.iter() {
            let (start, past) = (tokens.len(), step.kv.len);
            let end = past + step.tokens.len();
            assert!(end <= self.config.max_position_embeddings, "longer than the context");
            spans.push((Span { start, len: step.tokens.len() }, past));
            tokens.extend_from_slice(step.tokens);
            wanted.extend(tokens.len().saturating_sub(step.logits).max(start)..tokens.len());
            positions.extend(past as u32..end as u32);
        }
        let out = {
            let spans: Vec<_> = spans
                .iter()
                .zip(steps.iter())
                .map(|(&(rows, past), s)| CachedSpan { rows, past, pages: &s.kv.pages })
                .collect();
            let (tokens, positions) = (Rc::from(tokens), Rc::from(positions));
            run(&NewRows { tokens: &tokens, positions: &positions, spans: &spans, wanted: &wanted })
        };
        for step in steps {
            step.kv.len += step.tokens.len();
        }
        out
    }
}

/// The parameters in order.
struct Next(usize);

impl Next {
    fn one(&mut self) -> ParamId {
        self.0 += 1;
        ParamId(self.0 - 1)
    }

    fn if_any(&mut self, any: bool) -> Option<ParamId> {
        any.then(|| self.one())
    }

    fn linear(&mut self, bias: bool) -> Linear {
        Linear { weight: self.one(), bias: self.if_any(bias), adapter: None }
    }

    fn norm(&mut self, c: &Config) -> Norm {
        Norm { weight: self.one(), bias: self.if_any(c.layer_norms) }
    }
}

/// The parameters of a configuration in order: name and shape (`[out, in]`, or one number for a
/// vector).
pub fn shapes(c: &Config) -> Vec<(String, Vec<usize>)> {
    let (d, f, q, kv) = (c.hidden_size, c.intermediate_size, c.query_width(), c.key_width());
    let mut list = vec![("model.embed_tokens.weight".to_string(), vec![c.vocab_size, d])];
    if c.learned_positions {
        list.push(("model.embed_positions.weight".into(), vec![c.max_position_embeddings, d]));
    }
    let mut add = |name: String, shape: &[usize], bias: bool| {
        list.push((format!("{name}.weight"), shape.to_vec()));
        if bias {
            list.push((format!("{name}.bias"), vec![shape[0]]));
        }
    };
    // Where there are norms after attention and the MLP too, their names shift.
    let (after, mlp_norm) = ("post_attention_layernorm", "pre_feedforward_layernorm");
    for i in 0..c.num_hidden_layers {
        let mut add = |name: &str, shape: &[usize], bias: bool| {
            add(format!("model.layers.{i}.{name}"), shape, bias);
        };
        add("input_layernorm", &[d], c.layer_norms);
        add("self_attn.q_proj", &[q, d], c.qkv_bias);
        add("self_attn.k_proj", &[kv, d], c.qkv_bias);
        add("self_attn.v_proj", &[kv, d], c.qkv_bias);
        add("self_attn.o_proj", &[d, q], c.output_bias);
        if c.qk_norm {
            add("self_attn.q_norm", &[c.head_dim], false);
            add("self_attn.k_norm", &[c.head_dim], false);
        }
        if c.norms_after {
            add(after, &[d], c.layer_norms);
        }
        add(if c.norms_after { mlp_norm } else { after }, &[d], c.layer_norms);
        match &c.mixture {
            None => {
                if c.gated {
                    add("mlp.gate_proj", &[f, d], c.mlp_bias);
                }
                add("mlp.up_proj", &[f, d], c.mlp_bias);
                add("mlp.down_proj", &[d, f], c.mlp_bias);
            }
            Some(m) => {
                add("mlp.gate", &[m.experts, d], false);
                for e in 0..m.experts {
                    for (part, shape) in [
                        ("gate_proj", [m.width, d]),
                        ("up_proj", [m.width, d]),
                        ("down_proj", [d, m.width]),
                    ] {
                        add(&format!("mlp.experts.{e}.{part}"), &shape, false);
                    }
                }
            }
        }
        if c.norms_after {
            add("post_feedforward_layernorm", &[d], c.layer_norms);
        }
    }
    add("model.norm".into(), &[d], c.layer_norms);
    if !c.tie_word_embeddings {
        add("lm_head".into(), &[c.vocab_size, d], false);
    }
    list
}
