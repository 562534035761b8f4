//! Named weights and their gradients.

use crate::Cpu;
use crate::cpu::update::squared_norm;
use crate::tape::{Sums, ended};
use crate::tensor::Tensor;

/// Which parameter of a [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(pub usize);

/// A weight: a vector is one row, a linear layer's is `[out, in]`.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its name in a Hugging Face checkpoint.
    pub name: String,
    /// Its f32 elements.
    pub value: Tensor,
    /// Whether it has one dimension in a checkpoint (else two).
    pub vector: bool,
    /// Whether training changes it.
    pub trainable: bool,
}

/// The weights of a model.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    list: Vec<Parameter>,
}

impl Parameters {
    /// Adds one.
    pub fn add(&mut self, parameter: Parameter) -> ParamId {
        self.list.push(parameter);
        ParamId(self.list.len() - 1)
    }

    /// All, in order of their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Parameter> {
        self.list.iter()
    }

    /// All, to change. Whoever changes values tells the workspace
    /// ([`Workspace::weights_changed`](crate::tape::Workspace::weights_changed)).
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = &mut Parameter> {
        self.list.iter_mut()
    }

    /// One.
    pub fn get(&self, id: ParamId) -> &Parameter {
        &self.list[id.0]
    }

    /// One, to change. As for [`Parameters::iter_mut`].
    pub fn get_mut(&mut self, id: ParamId) -> &mut Parameter {
        &mut self.list[id.0]
    }

    /// Removes all from the `count`th on.
    pub fn truncate(&mut self, count: usize) {
        self.list.truncate(count);
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.list.iter().map(|p| p.value.len()).sum()
    }

    /// Elements of one.
    pub(crate) fn f32(&self, id: ParamId) -> &[f32] {
        self.list[id.0].value.f32()
    }
}

/// The gradient of every trainable parameter; empty for the others.
///
/// In main memory, or on the card of the workspace that made them
/// ([`Workspace::gradients`](crate::tape::Workspace::gradients)), where they stay.
#[derive(Debug)]
pub struct Gradients {
    /// In main memory, if they are there.
    list: Option<Vec<Vec<f32>>>,
    /// Sums of passes on a card.
    on_card: Sums,
}

const ON_CARD: &str = "gradients that stay on a card";

impl Gradients {
    /// Zeros in main memory for every trainable parameter.
    pub fn zeros(parameters: &Parameters) -> Gradients {
        let zeros = |p: &Parameter| vec![0.0; if p.trainable { p.value.len() } else { 0 }];
        let list = Some(parameters.iter().map(zeros).collect());
        Gradients { list, on_card: Sums::default() }
    }

    pub(crate) fn to_stay_on_card() -> Gradients {
        Gradients { list: None, on_card: Sums::default() }
    }

    /// Whether they stay on a card, so that nobody reads them here.
    pub fn stay_on_card(&self) -> bool {
        self.list.is_none()
    }

    /// Sums on a card, to add to.
    pub(crate) fn on_card(&mut self) -> &mut Sums {
        &mut self.on_card
    }

    /// Adds what passes summed on a card to what is in main memory, unless it stays there.
    pub(crate) fn hand_on(&mut self) -> Result<(), cuda::Error> {
        self.list.as_mut().map_or(Ok(()), |list| self.on_card.hand_on(list))
    }

    /// Sets all to zero.
    pub fn clear(&mut self) {
        self.list.iter_mut().flatten().for_each(|g| g.fill(0.0));
        ended(self.on_card.clear());
    }

    /// The length of all together.
    pub fn norm(&self, cpu: &Cpu) -> f64 {
        match &self.list {
            Some(list) => list.iter().map(|g| squared_norm(cpu, g)).sum::<f64>().sqrt(),
            None => ended(self.on_card.norm()),
        }
    }

    /// The gradient of one parameter, with its elements.
    ///
    /// # Panics
    /// As [`Gradients::iter`].
    pub fn get(&self, id: ParamId) -> &[f32] {
        match &self.list {
            Some(list) => &list[id.0],
            None => panic!("{ON_CARD}"),
        }
    }

    /// The same, to change.
    ///
    /// # Panics
    /// As [`Gradients::iter`].
    pub fn get_mut(&mut self, id: ParamId) -> &mut Vec<f32> {
        match &mut self.list {
            Some(list) => &mut list[id.0],
            None => panic!("{ON_CARD}"),
        }
    }

    /// All, in order of their ids.
    ///
    /// # Panics
    /// If they stay on a card.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Vec<f32>> {
        match &self.list {
            Some(list) => list.iter(),
            None => panic!("{ON_CARD}"),
        }
    }
}
