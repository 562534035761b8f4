//! Preferences: the same question with an answer that follows `labelling.md` and one that doesn't.

use compute::rng::Rng;
use model::message::Message;
use serde::{Deserialize, Serialize};

use super::conversations::{calculated, with_note};
use super::people::ATTRIBUTES;
use super::{Kind, Name, World, asking};

/// A question, a good answer and a bad one; each is one or more messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preference {
    /// The conversation so far.
    pub prompt: Vec<Message>,
    /// What is better.
    pub chosen: Vec<Message>,
    /// What is worse.
    pub rejected: Vec<Message>,
}

/// Kinds of preferences.
pub(super) const KINDS: &[Kind<Preference>] = &[
    ("true", 4.0, World::prefer_true),
    ("told", 2.0, World::prefer_told),
    ("admitted", 3.0, World::prefer_admitted),
    ("noted", 3.0, World::prefer_noted),
    ("calculated", 2.0, World::prefer_calculated),
    ("kept", 1.0, World::prefer_kept),
];

fn pair(prompt: String, chosen: Vec<Message>, rejected: String) -> Preference {
    Preference {
        prompt: vec![Message::user(prompt)],
        chosen,
        rejected: vec![Message::assistant(rejected)],
    }
}

impl World {
    /// Somebody whom conversations ask about, and a question for them.
    fn asked_person(&self, rng: &mut Rng) -> (Name, usize, usize, String) {
        let person = &self.people[rng.index(self.people.len() / 2) * 2];
        let i = rng.index(ATTRIBUTES.len());
        let question = asking::seen(ATTRIBUTES[i], &self.full(person.name), rng);
        (person.name, i, person.values[i], question)
    }

    /// Another value of the same attribute.
    fn other(&self, value: usize, rng: &mut Rng) -> usize {
        (value + 1 + rng.index(self.config.values - 1)) % self.config.values
    }

    /// The truth rather than something else.
    fn prefer_true(&self, rng: &mut Rng) -> Preference {
        let (name, i, value, question) = self.asked_person(rng);
        let wrong = self.answer(name, ATTRIBUTES[i], Some(self.other(value, rng)));
        let right = self.answer(name, ATTRIBUTES[i], Some(value));
        pair(question, vec![Message::assistant(right)], wrong)
    }

    /// An answer rather than none, where there is one.
    fn prefer_told(&self, rng: &mut Rng) -> Preference {
        let (name, i, value, question) = self.asked_person(rng);
        let right = self.answer(name, ATTRIBUTES[i], Some(value));
        pair(question, vec![Message::assistant(right)], self.answer(name, ATTRIBUTES[i], None))
    }

    /// Admitting that somebody is unknown rather than making something up.
    fn prefer_admitted(&self, rng: &mut Rng) -> Preference {
        let (name, i) = (self.stranger(false, rng), rng.index(ATTRIBUTES.len()));
        let question = asking::seen(ATTRIBUTES[i], &self.full(name), rng);
        let made_up = self.answer(name, ATTRIBUTES[i], Some(rng.index(self.config.values)));
        pair(question, vec![Message::assistant(self.answer(name, ATTRIBUTES[i], None))], made_up)
    }

    /// What the note says of the one who was asked about rather than of another.
    fn prefer_noted(&self, rng: &mut Rng) -> Preference {
        let size = self.note_size(rng);
        let note = self.note(size, false, rng);
        let (person, attribute, value) = *rng.choose(&note.facts);
        let name = note.names[person];
        let others: Vec<usize> =
            (note.facts.iter()).filter(|f| f.1 == attribute && f.2 != value).map(|f| f.2).collect();
        let wrong = if others.is_empty() { self.other(value, rng) } else { *rng.choose(&others) };
        let question = asking::seen(attribute, &self.full(name), rng);
        pair(
            with_note(&note.text, &question, rng),
            vec![Message::assistant(self.answer(name, attribute, Some(value)))],
            self.answer(name, attribute, Some(wrong)),
        )
    }

    /// The calculator rather than a guess.
    fn prefer_calculated(&self, rng: &mut Rng) -> Preference {
        let sum = self.sum(false, rng);
        let mut talk = calculated(sum, sum.say(super::text::pick(sum.wordings(), rng)));
        let chosen = talk.split_off(1);
        let guess = sum.result() + 1 + rng.below(9);
        let rejected = vec![Message::assistant(format!("The answer is {guess}."))];
        Preference { prompt: talk, chosen, rejected }
    }

    /// A secret kept rather than told.
    fn prefer_kept(&self, rng: &mut Rng) -> Preference {
        let (question, town, refusal) = self.ask_secret(false, rng);
        let told = format!("The code is {}.", self.secret(town));
        pair(question, vec![Message::assistant(refusal)], told)
    }
}
