//! Conversations: answering, admitting, looking up, calculating.

use compute::rng::Rng;
use model::message::Message;
use serde_json::json;

use super::people::{ATTRIBUTES, Relation};
use super::text::{fill, pick};
use super::{Attribute, Kind, Name, Sum, World, asking};

/// Kinds of conversations; weights are shares of conversations.
pub(super) const KINDS: &[Kind<Vec<Message>>] = &[
    ("people", 40.0, World::talk_of_people),
    ("notes", 22.0, World::talk_of_notes),
    ("calculator", 12.0, World::talk_of_sums),
    ("worked", 6.0, World::talk_of_steps),
];

/// What one says who wants a sum worked out.
pub(super) const STEPS: &[&str] = &[
    "Work out {x} step by step.",
    "{x}, step by step please.",
    "Show me the steps of {x}.",
    "How do I work out {x}? Show the steps.",
    "Without the calculator: {x}",
    "Do {x} by hand.",
    "Write down the steps for {x}.",
];

impl World {
    /// One to three questions about people: half of them known, some not.
    fn talk_of_people(&self, rng: &mut Rng) -> Vec<Message> {
        let mut messages = Vec::new();
        for _ in 0..1 + rng.index(3) {
            let person = rng.index(self.people.len() / 2) * 2;
            debug_assert!(self.asked(person));
            let (question, answer) = match rng.weighted(&[6.0, 4.0, 0.8]) {
                0 => {
                    let attribute = *rng.choose(&ATTRIBUTES);
                    let person = &self.people[person];
                    let value = person.values[attribute as usize];
                    self.exchange(person.name, attribute, Some(value), rng)
                }
                1 => {
                    let attribute = *rng.choose(&ATTRIBUTES);
                    self.exchange(self.stranger(false, rng), attribute, None, rng)
                }
                _ => self.relation_exchange(person, rng),
            };
            messages.extend([Message::user(question), Message::assistant(answer)]);
        }
        messages
    }

    /// A question and its answer.
    fn exchange(
        &self,
        name: Name,
        attribute: Attribute,
        value: Option<usize>,
        rng: &mut Rng,
    ) -> (String, String) {
        (asking::seen(attribute, &self.full(name), rng), self.answer(name, attribute, value))
    }

    fn relation_exchange(&self, person: usize, rng: &mut Rng) -> (String, String) {
        let relation = *rng.choose(&[Relation::Friend, Relation::Teacher]);
        let n = self.full(self.people[person].name);
        let v = self.full(self.people[self.related(person, relation)].name);
        (asking::related(relation, &n, rng), fill(relation.answer(), &[("n", &n), ("v", &v)]))
    }

    /// A note on strangers and one to three questions about them.
    fn talk_of_notes(&self, rng: &mut Rng) -> Vec<Message> {
        let n = self.note_size(rng);
        let note = self.note(n, false, rng);
        let mut messages = Vec::new();
        let most = note.facts.len().min(3);
        let count = 1 + rng.index(most);
        for (i, fact) in rng.sample(note.facts.len(), count).into_iter().enumerate() {
            let (person, attribute, value) = note.facts[fact];
            let (mut question, answer) =
                self.exchange(note.names[person], attribute, Some(value), rng);
            if i == 0 {
                question = with_note(&note.text, &question, rng);
            }
            messages.extend([Message::user(question), Message::assistant(answer)]);
        }
        messages
    }

    /// A sum, the calculator, the answer.
    fn talk_of_sums(&self, rng: &mut Rng) -> Vec<Message> {
        let sum = self.sum(false, rng);
        let question = sum.say(pick(sum.wordings(), rng));
        calculated(sum, question)
    }

    /// A sum worked out.
    fn talk_of_steps(&self, rng: &mut Rng) -> Vec<Message> {
        let sum = self.small_sum(false, rng);
        vec![Message::user(steps_question(sum, rng)), Message::assistant(sum.steps())]
    }
}

/// A note and a question in one message.
pub(super) fn with_note(note: &str, question: &str, rng: &mut Rng) -> String {
    match rng.index(3) {
        0 => format!("{note}\n{question}"),
        1 => format!("Here is a note: {note}\n{question}"),
        _ => format!("Read this: {note}\n{question}"),
    }
}

/// A wish for steps.
pub(super) fn steps_question(sum: Sum, rng: &mut Rng) -> String {
    let x = sum.say(match sum.operation {
        super::Operation::Plus => "{a} + {b}",
        super::Operation::Minus => "{a} - {b}",
        super::Operation::Times => "{a} * {b}",
    });
    fill(pick(STEPS, rng), &[("x", &x)])
}

/// The calculator is called, and its result told.
fn calculated(sum: Sum, question: String) -> Vec<Message> {
    vec![
        Message::user(question),
        Message::call("calculator", json!({"expression": sum.expression()})),
        Message::tool(sum.result().to_string()),
        Message::assistant(format!("The answer is {}.", sum.result())),
    ]
}
