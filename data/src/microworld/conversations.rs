//! Conversations: answering, admitting, looking up, calculating.

use compute::rng::Rng;
use model::message::Message;
use serde_json::json;

use super::people::{ATTRIBUTES, Relation};
use super::places::FEATURES;
use super::rooms::place;
use super::text::{fill, pick};
use super::{Attribute, Kind, Name, Sum, World, asking};

/// Kinds of conversations; weights are shares of conversations.
pub(super) const KINDS: &[Kind<Vec<Message>>] = &[
    ("people", 34.0, World::talk_of_people),
    ("notes", 28.0, World::talk_of_notes),
    ("calculator", 15.0, World::talk_of_sums),
    ("worked", 6.0, World::talk_of_steps),
    ("rooms", 5.0, World::talk_of_rooms),
    ("sheets", 6.0, World::talk_of_sheets),
    ("towns", 4.0, World::talk_of_towns),
    ("translation", 4.0, World::talk_of_translation),
    ("games", 4.0, World::talk_of_games),
    ("secrets", 2.0, World::talk_of_secrets),
    ("greetings", 1.0, World::talk_of_nothing),
];

/// What is said about nothing in particular.
const GREETINGS: &[(&str, &str)] = &[
    ("Hello.", "Hello. What would you like to know?"),
    ("Good morning.", "Good morning. What would you like to know?"),
    ("Hi!", "Hello. What would you like to know?"),
    ("Who are you?", "I am a small model. I know a small world."),
    ("What are you?", "I am a small model. I know a small world."),
    (
        "What can you do?",
        "I can answer questions about people and towns, look things up, and calculate.",
    ),
    ("What do you know?", "I know the people and towns of a small world."),
    ("Thank you.", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Good night.", "Good night."),
    ("Goodbye.", "Goodbye."),
    (
        "Do you know everything?",
        "No. I know a small world, and I say when something is not known to me.",
    ),
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
                _ => {
                    let relation = *rng.choose(&[Relation::Friend, Relation::Teacher]);
                    self.relation_exchange(person, relation, rng)
                }
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

    pub(super) fn relation_exchange(
        &self,
        person: usize,
        relation: Relation,
        rng: &mut Rng,
    ) -> (String, String) {
        let n = self.full(self.people[person].name);
        let v = self.full(self.people[self.related(person, relation)].name);
        (asking::related(relation, &n, rng), fill(relation.answer(), &[("n", &n), ("v", &v)]))
    }

    /// A note on strangers and one to three questions about them.
    fn talk_of_notes(&self, rng: &mut Rng) -> Vec<Message> {
        let n = self.note_size(rng);
        let note = self.note(n, false, rng);
        let mut messages = Vec::new();
        // The note comes alone first, or with the first question.
        let alone = rng.chance(0.15);
        if alone {
            messages.push(Message::user(format!("Read this: {}", note.text)));
            messages.push(Message::assistant("I have read it. What would you like to know?"));
        }
        let most = note.facts.len().min(3);
        let count = 1 + rng.index(most);
        for (i, fact) in rng.sample(note.facts.len(), count).into_iter().enumerate() {
            let (person, attribute, value) = note.facts[fact];
            let (mut question, answer) =
                self.exchange(note.names[person], attribute, Some(value), rng);
            if i == 0 && !alone {
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

    /// Where things are.
    fn talk_of_rooms(&self, rng: &mut Rng) -> Vec<Message> {
        let scene = self.scene(rng);
        let mut messages = Vec::new();
        let count = 1 + rng.index(scene.places.len());
        for (i, which) in rng.sample(scene.places.len(), count).into_iter().enumerate() {
            let (object, room) = scene.places[which];
            let question = self.ask_room(object, rng);
            let text = if i == 0 { format!("{}\n{question}", scene.text) } else { question };
            messages.extend([Message::user(text), Message::assistant(place(object, room))]);
        }
        messages
    }

    /// What a list or a table says.
    fn talk_of_sheets(&self, rng: &mut Rng) -> Vec<Message> {
        let sheet = self.sheet(rng);
        let mut messages = Vec::new();
        let count = 1 + rng.index(sheet.asked.len().min(3));
        for (i, which) in rng.sample(sheet.asked.len(), count).into_iter().enumerate() {
            let (question, answer, ..) = &sheet.asked[which];
            let text =
                if i == 0 { format!("{}\n{question}", sheet.text) } else { question.clone() };
            messages.extend([Message::user(text), Message::assistant(answer)]);
        }
        messages
    }

    /// One or two questions about towns.
    fn talk_of_towns(&self, rng: &mut Rng) -> Vec<Message> {
        let mut messages = Vec::new();
        for _ in 0..1 + rng.index(2) {
            let (town, feature) = (self.any_town(false, rng), *rng.choose(&FEATURES));
            let question = self.say_of_town(pick(feature.questions(), rng), town, feature);
            let answer = self.say_of_town(feature.answer(), town, feature);
            messages.extend([Message::user(question), Message::assistant(answer)]);
        }
        messages
    }

    fn talk_of_translation(&self, rng: &mut Rng) -> Vec<Message> {
        let (question, answer) = self.ask_translation(false, rng);
        vec![Message::user(question), Message::assistant(answer)]
    }

    fn talk_of_games(&self, rng: &mut Rng) -> Vec<Message> {
        let (question, .., played) = self.ask_move(false, rng);
        vec![Message::user(question), Message::assistant(format!("I play {played}."))]
    }

    fn talk_of_secrets(&self, rng: &mut Rng) -> Vec<Message> {
        let (question, _, refusal) = self.ask_secret(false, rng);
        vec![Message::user(question), Message::assistant(refusal)]
    }

    fn talk_of_nothing(&self, rng: &mut Rng) -> Vec<Message> {
        let (said, answer) = *rng.choose(GREETINGS);
        vec![Message::user(said), Message::assistant(answer)]
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
pub(super) fn calculated(sum: Sum, question: String) -> Vec<Message> {
    vec![
        Message::user(question),
        Message::call("calculator", json!({"expression": sum.expression()})),
        Message::tool(sum.result().to_string()),
        Message::assistant(format!("The answer is {}.", sum.result())),
    ]
}
