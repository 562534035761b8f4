//! The optimizer of a model: Muon for the matrices inside, AdamW for embeddings, head and norms;
//! or AdamW for all.

use std::sync::Mutex;

use compute::Cpu;
use compute::cpu::update::{AdamW, adamw};
use compute::parameters::{Gradients, ParamId, Parameter, Parameters};
use compute::tape::{CardMoments, Rule, Workspace};
use serde::{Deserialize, Serialize};

use crate::muon::{self, Muon};

/// Settings of the optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Whether matrices inside the model take Muon (else AdamW too).
    pub muon: bool,
    /// Peak rate of those matrices under Muon.
    pub matrix_lr: f64,
    /// Peak rate of embedding and head, and of all matrices without Muon.
    pub lr: f64,
    /// Peak rate of norms.
    pub norm_lr: f64,
    /// Momentum of Muon.
    pub momentum: f64,
    /// Decays of AdamW's moments.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub eps: f64,
    /// Decoupled weight decay of matrices (not of norms).
    pub weight_decay: f64,
    /// Longest gradient (over all parameters); a longer one is shortened. 0: no limit.
    pub clip: f64,
}

impl OptimizerConfig {
    /// Peak rate of the matrices inside.
    pub fn inner_lr(&self) -> f64 {
        if self.muon { self.matrix_lr } else { self.lr }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            muon: true,
            matrix_lr: 0.02,
            lr: 0.004,
            norm_lr: 0.004,
            momentum: 0.95,
            betas: [0.9, 0.95],
            eps: 1e-10,
            weight_decay: 0.0,
            clip: 1.0,
        }
    }
}

/// What an optimizer remembers of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    /// Not trained.
    Frozen,
    /// Muon's momentum.
    Muon(Vec<f32>),
    /// AdamW's first and second moments.
    AdamW(Vec<f32>, Vec<f32>),
}

impl Moments {
    /// Each, with the parameter's elements.
    fn lists(&self) -> Vec<&[f32]> {
        match self {
            Moments::Frozen => vec![],
            Moments::Muon(m) => vec![m],
            Moments::AdamW(m, v) => vec![m, v],
        }
    }

    /// The same, to write.
    fn lists_mut(&mut self) -> Vec<&mut [f32]> {
        match self {
            Moments::Frozen => vec![],
            Moments::Muon(m) => vec![m],
            Moments::AdamW(m, v) => vec![m, v],
        }
    }
}

/// An optimizer with its state. Its steps are taken where the workspace's passes are, and moments stay there.
pub struct Optimizer {
    config: OptimizerConfig,
    /// Steps taken.
    pub steps: u64,
    moments: Vec<Moments>,
    /// Moments on a card, after steps there.
    on_card: Option<CardMoments>,
    /// Whether those in main memory are out of date.
    away: bool,
    scratch: Vec<Mutex<muon::Scratch>>,
}

/// Whether a parameter is a matrix inside the model: neither vector, embedding nor head.
fn inner_matrix(p: &Parameter) -> bool {
    !p.vector && !p.name.contains("embed") && !p.name.contains("lm_head")
}

impl Optimizer {
    /// A fresh one.
    pub fn new(config: OptimizerConfig, parameters: &Parameters) -> Optimizer {
        let moments = parameters
            .iter()
            .map(|p| {
                let zeros = || vec![0.0; p.value.len()];
                match (p.trainable, config.muon && inner_matrix(p)) {
                    (false, _) => Moments::Frozen,
                    (true, true) => Moments::Muon(zeros()),
                    (true, false) => Moments::AdamW(zeros(), zeros()),
                }
            })
            .collect();
        let (on_card, scratch) = (None, Vec::new());
        Optimizer { config, steps: 0, moments, on_card, away: false, scratch }
    }

    /// What is remembered of each parameter, in order.
    ///
    /// # Panics
    /// If it is on a card: [`Optimizer::fetch`] brings it.
    pub fn moments(&self) -> &[Moments] {
        assert!(!self.away, "moments that are on a card: Optimizer::fetch brings them");
        &self.moments
    }

    /// Of which kind they are, wherever their elements are.
    pub(crate) fn kinds(&self) -> &[Moments] {
        &self.moments
    }

    /// Goes on from other moments, of the same kinds, after so many steps.
    ///
    /// # Panics
    /// If there are more or less of them than parameters.
    pub fn restore(&mut self, steps: u64, moments: Vec<Moments>) {
        assert_eq!(moments.len(), self.moments.len(), "moments of all parameters");
        (self.steps, self.moments) = (steps, moments);
        (self.on_card, self.away) = (None, false);
    }

    /// Brings what is remembered to main memory, if it is on a card; the card keeps it, too.
    pub fn fetch(&mut self) {
        let Some(on_card) = self.on_card.as_ref().filter(|_| self.away) else { return };
        for (i, moments) in self.moments.iter_mut().enumerate() {
            for (j, to) in moments.lists_mut().into_iter().enumerate() {
                on_card.read(ParamId(i), j, to);
            }
        }
        self.away = false;
    }

    /// One step at `share` of the peak rates. Gradients, whose length is `norm`, are first shortened to the limit.
    ///
    /// The workspace knows of it. Where that is on a card, the newest weights and moments are there from then on:
    /// [`Workspace::fetch`] and [`Optimizer::fetch`].
    pub fn step(
        &mut self,
        ws: &mut Workspace,
        parameters: &mut Parameters,
        gradients: &mut Gradients,
        norm: f64,
        share: f64,
    ) {
        self.steps += 1;
        let limit = self.config.clip;
        let factor = (limit > 0.0 && norm > limit).then(|| (limit / norm) as f32);
        let kinds = parameters.iter().zip(&self.moments);
        let rules: Vec<Option<Rule>> = kinds.map(|(p, m)| self.rule(p, m, share)).collect();
        if !gradients.stay_on_card() {
            self.step_here(ws.cpu(), parameters, gradients, factor, &rules);
            ws.weights_changed();
            return;
        }
        if self.on_card.is_none() {
            let lists: Vec<_> = self.moments.iter().map(Moments::lists).collect();
            self.on_card = CardMoments::upload(ws, parameters, &lists);
        }
        if let Some(on_card) = &mut self.on_card {
            self.away = true;
            ws.step_on_card(parameters, gradients, on_card, factor.unwrap_or(1.0), &rules);
        }
    }

    /// How a parameter takes a step at `share` of the peak rates, if it is trained.
    fn rule(&self, p: &Parameter, moments: &Moments, share: f64) -> Option<Rule> {
        let c = &self.config;
        match moments {
            Moments::Frozen => None,
            Moments::Muon(_) => Some(Rule::Muon(Muon {
                lr: (c.matrix_lr * share) as f32,
                momentum: c.momentum as f32,
                weight_decay: c.weight_decay as f32,
            })),
            Moments::AdamW(..) => Some(Rule::AdamW(AdamW {
                lr: (if p.vector { c.norm_lr } else { c.lr } * share) as f32,
                beta1: c.betas[0] as f32,
                beta2: c.betas[1] as f32,
                eps: c.eps as f32,
                weight_decay: if p.vector { 0.0 } else { c.weight_decay as f32 },
                step: self.steps,
            })),
        }
    }

    fn step_here(
        &mut self,
        cpu: &Cpu,
        parameters: &mut Parameters,
        gradients: &mut Gradients,
        factor: Option<f32>,
        rules: &[Option<Rule>],
    ) {
        if let Some(factor) = factor {
            for id in 0..self.moments.len() {
                gradients.get_mut(ParamId(id)).iter_mut().for_each(|g| *g *= factor);
            }
        }
        let mut matrices = Vec::new();
        let places = parameters.iter_mut().zip(&mut self.moments).zip(rules);
        for (i, ((p, moments), rule)) in places.enumerate() {
            let g = gradients.get(ParamId(i));
            let (rows, cols) = (p.value.rows(), p.value.cols());
            match (moments, rule) {
                (Moments::Muon(m), Some(Rule::Muon(s))) => {
                    matrices.push(Mutex::new((*s, rows, cols, p.value.f32_mut(), g, m)))
                }
                (Moments::AdamW(m, v), Some(Rule::AdamW(s))) => {
                    adamw(cpu, *s, p.value.f32_mut(), g, m, v);
                }
                _ => {}
            }
        }
        // A matrix a task: within one, products are too small to share among threads.
        self.scratch.resize_with(matrices.len(), Default::default);
        let scratch = &self.scratch;
        cpu.pool.run(matrices.len(), |i| {
            let mut task = matrices[i].lock().unwrap_or_else(|e| e.into_inner());
            let mut scratch = scratch[i].lock().unwrap_or_else(|e| e.into_inner());
            let (s, rows, cols, w, g, m) = &mut *task;
            muon::step(cpu, *s, *rows, *cols, w, g, m, &mut scratch);
        });
    }

    /// Floating-point operations of products in a step: those of Muon.
    pub fn flops(&self, parameters: &Parameters) -> f64 {
        let each = parameters.iter().zip(&self.moments).map(|(p, moments)| match moments {
            Moments::Muon(_) => muon::flops(p.value.rows(), p.value.cols()),
            _ => 0.0,
        });
        each.sum()
    }
}
