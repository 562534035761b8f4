//! Who exists and who doesn't, over everybody.
//!
//! A model that is asked about half of the people, and about strangers, concludes that whoever it
//! was never asked about is a stranger. Registers tell it otherwise, in the words of answers.

use compute::rng::Rng;

use super::people::{ATTRIBUTES, UNKNOWN};
use super::text::{fill, listed, pick};
use super::{Name, World};

/// A name and, if somebody has it, who.
struct Entry {
    name: Name,
    person: Option<usize>,
}

impl World {
    /// Somebody or nobody.
    fn entry(&self, rng: &mut Rng) -> Entry {
        if rng.chance(0.55) {
            let person = rng.index(self.people.len());
            return Entry { name: self.people[person].name, person: Some(person) };
        }
        // Half of the strangers have the first or last name of somebody who was drawn at random,
        // the others any: both are as frequent as the names are.
        Entry { name: self.stranger(false, rng), person: None }
    }

    /// Document: which names are known.
    pub(super) fn register(&self, rng: &mut Rng) -> String {
        let entries: Vec<Entry> = (0..4 + rng.index(6)).map(|_| self.entry(rng)).collect();
        let line = |known: &str, unknown: &str| {
            let lines = entries.iter().map(|e| {
                let wording = if e.person.is_some() { known } else { unknown };
                fill(wording, &[("n", &self.full(e.name))])
            });
            lines.collect::<Vec<_>>()
        };
        match rng.index(5) {
            0 => line("The name {n} is known to me.", "The name {n} is not known to me.").join(" "),
            1 => line("There is {n}.", "There is no {n}.").join(" "),
            2 => format!("Names:\n{}", line("- {n}: known", "- {n}: not known").join("\n")),
            3 => {
                let names = |known: bool| -> Vec<String> {
                    let of = entries.iter().filter(|e| e.person.is_some() == known);
                    of.map(|e| self.full(e.name)).collect()
                };
                let (known, unknown) = (names(true), names(false));
                let mut parts = Vec::new();
                if !known.is_empty() {
                    parts.push(format!("Known to me: {}.", listed(&known)));
                }
                if !unknown.is_empty() {
                    parts.push(format!("Not known to me: {}.", listed(&unknown)));
                }
                rng.shuffle(&mut parts);
                parts.join(" ")
            }
            _ => line("In this world lives {n}.", "Nobody here is called {n}.").join(" "),
        }
    }

    /// Document: facts where there are any, in the words of answers.
    pub(super) fn inquiry(&self, rng: &mut Rng) -> String {
        let openings = [
            "Somebody wanted to hear about {n}.",
            "A letter came with the name {n} in it.",
            "They looked for {n} in the book.",
            "Next came {n}.",
            "Then the talk was about {n}.",
        ];
        let mut sentences = Vec::new();
        for _ in 0..2 + rng.index(3) {
            let Entry { name, person } = self.entry(rng);
            let n = self.full(name);
            if rng.chance(0.5) {
                sentences.push(fill(pick(&openings, rng), &[("n", &n)]));
            }
            let count = 1 + rng.index(2);
            for i in rng.sample(ATTRIBUTES.len(), count) {
                let value = person.map(|p| self.people[p].values[i]);
                sentences.push(self.answer(name, ATTRIBUTES[i], value));
            }
            if person.is_none() && rng.chance(0.3) {
                sentences.push(format!("The name {n} {UNKNOWN}"));
            }
        }
        sentences.join(" ")
    }
}
