//! Notes on strangers, in documents and in prompts: what stands in front of one is looked up there.

use compute::rng::Rng;

use super::people::ATTRIBUTES;
use super::text::pick;
use super::{Attribute, Name, World};

/// What is written of some strangers.
pub(super) struct Note {
    /// Who they are.
    pub names: Vec<Name>,
    /// What is said of them: index into `names`, attribute, value.
    pub facts: Vec<(usize, Attribute, usize)>,
    /// The text.
    pub text: String,
}

impl World {
    /// A note on `n` strangers.
    pub(super) fn note(&self, n: usize, reserved: bool, rng: &mut Rng) -> Note {
        let names = self.strangers(n, reserved, rng);
        let most = if n <= 2 { 3 } else { 2 };
        let mut facts = Vec::new();
        // One attribute of all, or some of each.
        let same = n > 1 && rng.chance(0.4);
        let attributes = rng.sample(ATTRIBUTES.len(), ATTRIBUTES.len());
        for person in 0..n {
            let count = if same { 1 } else { 1 + rng.index(most) };
            let mine = if same { attributes.clone() } else { rng.sample(ATTRIBUTES.len(), count) };
            for &i in &mine[..count] {
                // Two values of an attribute differ, or there were nothing to tell apart.
                let value = loop {
                    let value = rng.index(self.config.values);
                    let taken =
                        |f: &(usize, Attribute, usize)| (f.1, f.2) == (ATTRIBUTES[i], value);
                    if n >= self.config.values || !facts.iter().any(taken) {
                        break value;
                    }
                };
                facts.push((person, ATTRIBUTES[i], value));
            }
        }
        if rng.chance(0.5) {
            rng.shuffle(&mut facts);
        }
        let sentences: Vec<String> = (facts.iter().enumerate())
            .map(|(i, &(p, a, v))| self.fact(names[p], a, v, i == 0, rng))
            .collect();
        Note { text: sentences.join(" "), names, facts }
    }

    /// How many people a note is about.
    pub(super) fn note_size(&self, rng: &mut Rng) -> usize {
        1 + rng.weighted(&[3.0, 3.0, 3.0, 2.0, 1.5, 1.0])
    }

    /// Document: a note, and what follows from it.
    pub(super) fn notes(&self, rng: &mut Rng) -> String {
        let n = self.note_size(rng);
        let note = self.note(n, false, rng);
        let mut facts = note.facts.clone();
        rng.shuffle(&mut facts);
        let answers: Vec<String> =
            facts.iter().map(|&(p, a, v)| self.answer(note.names[p], a, Some(v))).collect();
        let opening = pick(&["It follows:", "In short:", "To sum up:", "Once more:"], rng);
        format!("{}\n{opening} {}", note.text, answers.join(" "))
    }
}
