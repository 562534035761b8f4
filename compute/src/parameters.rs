//! Named weights and their gradients.

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
#[derive(Clone, Debug)]
pub struct Gradients {
    list: Vec<Vec<f32>>,
}

impl Gradients {
    /// Zeros for every trainable parameter.
    pub fn zeros(parameters: &Parameters) -> Gradients {
        let zeros = |p: &Parameter| vec![0.0; if p.trainable { p.value.len() } else { 0 }];
        Gradients { list: parameters.iter().map(zeros).collect() }
    }

    /// Sets all to zero.
    pub fn clear(&mut self) {
        self.list.iter_mut().for_each(|g| g.fill(0.0));
    }

    /// The gradient of one parameter, with its elements.
    pub fn get(&self, id: ParamId) -> &[f32] {
        &self.list[id.0]
    }

    /// The same, to change.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Vec<f32> {
        &mut self.list[id.0]
    }

    /// All, in order of their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Vec<f32>> {
        self.list.iter()
    }
}
