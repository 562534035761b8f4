//! A start from which copying is learned soon: an induction head (Olsson et al. 2022) written into
//! the first two layers of a new model, in the manner of mimetic initialisation (Trockman and
//! Kolter 2023).
//!
//! The residual stream is cut into a direction that all tokens share, a slot, and the rest, which
//! holds token identities. A head of the first layer attends one position back, by rotating the
//! shared direction, and writes that token's identity into the slot. A head of the second layer
//! compares its own token's identity with the slots, and copies the identity of the token that it
//! finds: what followed the last time. Slow rotations only are used to compare, so that distance
//! matters little.

use compute::rng::Rng;

use crate::config::Config;

/// Share of a token's embedding that all tokens have in common.
const SHARED: f32 = 0.5;
/// Size of what the two heads write, in embeddings.
const WRITTEN: f32 = 1.5;

/// Where things lie in the residual stream: orthonormal rows `[hidden_size]`.
pub(crate) struct Stream {
    shared: Vec<f32>,
    slot: Vec<Vec<f32>>,
    identity: Vec<Vec<f32>>,
}

/// Dot product in f64, in order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

impl Stream {
    /// Cuts up the stream; `None` if it is too narrow for it, or has too few layers.
    pub(crate) fn new(c: &Config, rng: &mut Rng) -> Option<Stream> {
        let (d, hd) = (c.hidden_size, c.head_dim);
        if d < 2 * hd || c.num_hidden_layers < 2 {
            return None;
        }
        // Gram–Schmidt on random vectors.
        let mut basis: Vec<Vec<f32>> = Vec::new();
        while basis.len() < d {
            let mut v: Vec<f32> = (0..d).map(|_| rng.normal()).collect();
            for _ in 0..2 {
                for b in &basis {
                    let along = dot(&v, b);
                    v.iter_mut().zip(b).for_each(|(v, b)| *v -= along * b);
                }
            }
            let norm = dot(&v, &v).sqrt();
            v.iter_mut().for_each(|v| *v /= norm);
            basis.push(v);
        }
        let shared = basis.pop()?;
        let slot = basis.split_off(basis.len() - hd);
        Some(Stream { shared, slot, identity: basis })
    }

    /// Moves an embedding out of the slot, and gives it the shared direction. `std`: of its
    /// elements.
    pub(crate) fn embed(&self, row: &mut [f32], std: f32) {
        for b in self.slot.iter().chain([&self.shared]) {
            let along = dot(row, b);
            row.iter_mut().zip(b).for_each(|(x, b)| *x -= along * b);
        }
        let size = SHARED * std * (row.len() as f32).sqrt();
        row.iter_mut().zip(&self.shared).for_each(|(x, b)| *x += size * b);
    }

    /// Writes the heads' part of a matrix of layer 0 or 1. `std`: of the embedding's elements.
    pub(crate) fn write(&self, c: &Config, name: &str, matrix: &mut [f32], std: f32) {
        let (d, hd, half) = (c.hidden_size, c.head_dim, c.head_dim / 2);
        let turn = |i: usize| libm::pow(c.rope_theta, -2.0 * i as f64 / hd as f64);
        // Rotations fast enough to tell neighbours apart, and slow enough to hardly turn.
        let fast: Vec<usize> = (0..half).filter(|i| turn(*i) >= 0.1).collect();
        let slow: Vec<usize> = (0..half)
            .filter(|i| turn(*i) * c.max_position_embeddings as f64 <= 2.5)
            .flat_map(|i| [i, i + half])
            .collect();
        let mut set = |row: usize, from: &[f32], scale: f32| {
            matrix[row * d..(row + 1) * d].iter_mut().zip(from).for_each(|(m, x)| *m = x * scale);
        };
        match name {
            "model.layers.0.self_attn.q_proj.weight" => {
                (0..hd).for_each(|r| set(r, &[0.0].repeat(d), 0.0));
                for i in fast {
                    set(i, &self.shared, libm::cos(turn(i)) as f32);
                    set(i + half, &self.shared, -libm::sin(turn(i)) as f32);
                }
            }
            "model.layers.0.self_attn.k_proj.weight" => {
                (0..hd).for_each(|r| set(r, &[0.0].repeat(d), 0.0));
                fast.into_iter().for_each(|i| set(i, &self.shared, 1.0));
            }
            "model.layers.1.self_attn.q_proj.weight" => {
                (0..hd).for_each(|r| set(r, &[0.0].repeat(d), 0.0));
                slow.iter().zip(&self.identity).for_each(|(r, from)| set(*r, from, 1.0));
            }
            "model.layers.1.self_attn.k_proj.weight" => {
                (0..hd).for_each(|r| set(r, &[0.0].repeat(d), 0.0));
                slow.iter().zip(&self.slot).for_each(|(r, from)| set(*r, from, 1.0));
            }
            "model.layers.0.self_attn.v_proj.weight" | "model.layers.1.self_attn.v_proj.weight" => {
                (0..hd).zip(&self.identity).for_each(|(r, from)| set(r, from, 1.0));
            }
            "model.layers.0.self_attn.o_proj.weight" | "model.layers.1.self_attn.o_proj.weight" => {
                let to = if name.contains(".0.") { &self.slot } else { &self.identity };
                let cols = c.query_width();
                for (j, to) in to.iter().take(hd).enumerate() {
                    for (r, x) in to.iter().enumerate() {
                        matrix[r * cols + j] = x * std * WRITTEN;
                    }
                }
            }
            _ => {}
        }
    }
}
