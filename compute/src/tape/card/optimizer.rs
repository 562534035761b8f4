//! Steps of an optimizer on a card: what it remembers of parameters is there, with the gradients and the weights, so
//! that nothing of a model's size moves. [`Workspace::fetch`] and [`CardMoments::read`] bring it to main memory.

pub use cuda::ops::optimizer::Muon;
use cuda::ops::optimizer::{self, Gradient, Scratch};

use super::*;
use crate::cpu::update::AdamW;
use crate::parameters::Gradients;
use crate::tape::Workspace;

/// How a parameter takes a step.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Of two moments: the first and the second.
    AdamW(AdamW),
    /// Of one: the momentum.
    Muon(Muon),
}

/// What an optimizer remembers of parameters, on a card.
pub struct CardMoments {
    /// By parameter, each of its elements.
    list: Vec<Vec<Buffer<f32>>>,
    scratch: Scratch,
}

impl CardMoments {
    /// Those of all `parameters`, as they are in main memory: none, one (Muon's momentum) or two (AdamW's). `None` if
    /// the workspace is on no card.
    ///
    /// # Panics
    /// As a pass, if the card fails.
    pub fn upload(
        ws: &Workspace,
        parameters: &Parameters,
        moments: &[Vec<&[f32]>],
    ) -> Option<CardMoments> {
        let gpu = &ws.card.as_ref()?.gpu;
        let upload = |m: &&[f32]| gpu.upload(m, "moments of an optimizer");
        let all = moments.iter().map(|list| list.iter().map(upload).collect());
        let matrices = parameters.iter().zip(moments).filter(|(_, list)| list.len() == 1);
        let shapes = matrices.map(|(p, _)| [p.value.rows(), p.value.cols()]);
        Some(CardMoments { list: ended(all.collect()), scratch: ended(Scratch::new(gpu, shapes)) })
    }

    /// The `i`th moment of a parameter, into main memory.
    ///
    /// # Panics
    /// As a pass, if the card fails. If there is no such moment, or it has more or less elements.
    pub fn read(&self, id: ParamId, i: usize, to: &mut [f32]) {
        ended(self.list[id.0][i].slice().read_into(to));
    }
}

impl Workspace {
    /// Gradients for passes to add to, zeros: where the passes are computed.
    pub fn gradients(&self, parameters: &Parameters) -> Gradients {
        match self.card {
            Some(_) => Gradients::to_stay_on_card(),
            None => Gradients::zeros(parameters),
        }
    }

    /// One step of the parameters that have a rule, on the card. Gradients are multiplied by `factor`. The newest
    /// weights are on the card from then on, for passes of this workspace; [`Workspace::fetch`] brings them to main
    /// memory.
    ///
    /// # Panics
    /// As a pass, if the card fails. If the workspace is on none, or gradients are in main memory.
    pub fn step_on_card(
        &mut self,
        parameters: &mut Parameters,
        gradients: &mut Gradients,
        moments: &mut CardMoments,
        factor: f32,
        rules: &[Option<Rule>],
    ) {
        assert!(gradients.stay_on_card(), "gradients that are in main memory");
        let card = there(&mut self.card);
        // They would see the new weights, but have memory that training can use.
        card.steps.forget();
        let factor = ended(card.gpu.upload(&[factor], "what gradients are multiplied by"));
        for (i, rule) in rules.iter().enumerate() {
            let Some(rule) = rule else { continue };
            let sums = gradients.on_card();
            ended(card.step(parameters, sums, moments, &factor, ParamId(i), rule));
            parameters.get_mut(ParamId(i)).value.leave();
        }
    }

    /// Brings weights whose newest values are on the card to main memory; the card keeps them, too.
    ///
    /// # Panics
    /// As a pass, if the card fails. If they are on another workspace's.
    pub fn fetch(&mut self, parameters: &mut Parameters) {
        for (i, p) in parameters.iter_mut().enumerate() {
            if p.value.device() == Device::Card {
                let newest = self.card.as_mut().and_then(|card| card.newest(ParamId(i)));
                let Some(newest) = newest else { panic!("{}: {ELSEWHERE}", p.name) };
                p.value.come_back().into_iter().for_each(|to| ended(newest.read_into(to)));
            }
        }
    }
}

impl Card {
    /// A parameter that has newer values here than in main memory, to be brought there now.
    fn newest(&mut self, id: ParamId) -> Option<Slice<'_, f32>> {
        let weight = self.weights.get_mut(id.0).filter(|w| w.newest && !w.stale)?;
        weight.newest = false;
        weight.plain.as_ref().map(Buffer::slice)
    }

    fn step(
        &mut self,
        parameters: &Parameters,
        sums: &mut Sums,
        moments: &mut CardMoments,
        factor: &Buffer<f32>,
        id: ParamId,
        rule: &Rule,
    ) -> Result<(), Error> {
        let gpu = self.gpu.clone();
        self.plain(parameters, id)?;
        let Weight { plain: Some(plain), half, newest, .. } = &mut self.weights[id.0] else {
            return Ok(());
        };
        *newest = true;
        let bf16 = half.as_mut().map(Buffer::slice_mut);
        let x = optimizer::Parameter { value: plain.slice_mut(), bf16 };
        let value = sums.of(&gpu, parameters, id)?.slice();
        let g = Gradient { value, factor: Some(factor.slice()) };
        let value = &parameters.get(id).value;
        match (rule, &mut moments.list[id.0][..]) {
            (Rule::AdamW(s), [m, v]) => {
                let AdamW { lr, beta1, beta2, eps, weight_decay, step } = *s;
                let s = optimizer::AdamW { lr, beta1, beta2, eps, weight_decay, step };
                optimizer::adamw(&gpu, s, x, g, m.slice_mut(), v.slice_mut())
            }
            (Rule::Muon(s), [momentum]) => {
                let (shape, scratch) = ([value.rows(), value.cols()], &mut moments.scratch);
                optimizer::muon(&gpu, *s, shape, x, g, momentum.slice_mut(), scratch)
            }
            (rule, m) => panic!("{} moments for {rule:?}", m.len()),
        }
    }
}
