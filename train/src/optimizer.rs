//! The optimizer of a model: Muon for the matrices inside, AdamW for embeddings, head and norms;
//! or AdamW for all.

use std::sync::Mutex;

use compute::Cpu;
use compute::cpu::update::{AdamW, adamw, squared_norm};
use compute::parameters::{Gradients, ParamId, Parameter, Parameters};
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

/// An optimizer with its state.
pub struct Optimizer {
    config: OptimizerConfig,
    /// Steps taken.
    pub steps: u64,
    /// One a parameter, in order.
    pub moments: Vec<Moments>,
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
        Optimizer { config, steps: 0, moments, scratch: Vec::new() }
    }

    /// One step at `share` of the peak rates. Gradients, whose length is `norm`, are first
    /// shortened to the limit.
    pub fn step(
        &mut self,
        cpu: &Cpu,
        parameters: &mut Parameters,
        gradients: &mut Gradients,
        norm: f64,
        share: f64,
    ) {
        self.steps += 1;
        let c = &self.config;
        if c.clip > 0.0 && norm > c.clip {
            let scale = (c.clip / norm) as f32;
            for id in 0..self.moments.len() {
                gradients.get_mut(ParamId(id)).iter_mut().for_each(|g| *g *= scale);
            }
        }
        let muon = Muon {
            lr: (c.matrix_lr * share) as f32,
            momentum: c.momentum as f32,
            weight_decay: c.weight_decay as f32,
        };
        let mut matrices = Vec::new();
        for (i, (p, moments)) in parameters.iter_mut().zip(&mut self.moments).enumerate() {
            let g = gradients.get(ParamId(i));
            let (rows, cols, vector) = (p.value.rows(), p.value.cols(), p.vector);
            match moments {
                Moments::Frozen => {}
                Moments::Muon(m) => {
                    matrices.push(Mutex::new((rows, cols, p.value.f32_mut(), g, m)))
                }
                Moments::AdamW(m, v) => {
                    let s = AdamW {
                        lr: (if vector { c.norm_lr } else { c.lr } * share) as f32,
                        beta1: c.betas[0] as f32,
                        beta2: c.betas[1] as f32,
                        eps: c.eps as f32,
                        weight_decay: if vector { 0.0 } else { c.weight_decay as f32 },
                        step: self.steps,
                    };
                    adamw(cpu, s, p.value.f32_mut(), g, m, v);
                }
            }
        }
        // A matrix a task: within one, products are too small to share among threads.
        self.scratch.resize_with(matrices.len(), Default::default);
        let scratch = &self.scratch;
        cpu.pool.run(matrices.len(), |i| {
            let mut task = matrices[i].lock().unwrap_or_else(|e| e.into_inner());
            let mut scratch = scratch[i].lock().unwrap_or_else(|e| e.into_inner());
            let (rows, cols, w, g, m) = &mut *task;
            muon::step(cpu, muon, *rows, *cols, w, g, m, &mut scratch);
        });
    }
}

impl Optimizer {
    /// Floating-point operations of products in a step: those of Muon.
    pub fn flops(&self, parameters: &Parameters) -> f64 {
        let each = parameters.iter().zip(&self.moments).map(|(p, moments)| match moments {
            Moments::Muon(_) => muon::flops(p.value.rows(), p.value.cols()),
            _ => 0.0,
        });
        each.sum()
    }
}

/// The length of all gradients together.
pub fn norm(cpu: &Cpu, gradients: &Gradients) -> f64 {
    gradients.iter().map(|g| squared_norm(cpu, g)).sum::<f64>().sqrt()
}
