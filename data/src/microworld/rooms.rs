//! Rooms: things are carried from one to another, and the question is where they are.

use compute::rng::Rng;

use super::World;
use super::text::{fill, listed, pick};

/// Where things can be.
pub const ROOMS: [&str; 10] =
    ["kitchen", "cellar", "attic", "hall", "garden", "barn", "study", "porch", "stable", "tower"];
/// What can be carried.
pub const OBJECTS: [&str; 12] =
    ["key", "cup", "lamp", "book", "hat", "bell", "map", "box", "ring", "ball", "rope", "knife"];

const MOVES: &[&str] = &[
    "{n} takes the {o} to the {r}.",
    "{n} carries the {o} to the {r}.",
    "{n} puts the {o} in the {r}.",
    "Then {n} moves the {o} to the {r}.",
    "Now {n} leaves the {o} in the {r}.",
    "The {o} is brought to the {r} by {n}.",
];

const QUESTIONS: &[&str] = &[
    "Where is the {o}?",
    "Where is the {o} now?",
    "In which room is the {o}?",
    "Tell me where the {o} is.",
    "I am looking for the {o}. Where is it?",
    "Where do I find the {o}?",
];

/// The sentence that answers.
const ANSWER: &str = "The {o} is in the {r}.";

/// What happened, and where things are in the end.
pub(super) struct Scene {
    /// The text.
    pub text: String,
    /// Object and room, as indices.
    pub places: Vec<(usize, usize)>,
}

pub(super) fn place(object: usize, room: usize) -> String {
    fill(ANSWER, &[("o", OBJECTS[object]), ("r", ROOMS[room])])
}

impl World {
    /// Things, where they are at first, and how they are moved.
    pub(super) fn scene(&self, rng: &mut Rng) -> Scene {
        let objects = 2 + rng.index(3);
        let rooms = rng.sample(ROOMS.len(), 4);
        let mut places: Vec<(usize, usize)> = rng
            .sample(OBJECTS.len(), objects)
            .into_iter()
            .map(|o| (o, *rng.choose(&rooms)))
            .collect();
        let first: Vec<String> = (places.iter())
            .map(|&(o, r)| format!("the {} is in the {}", OBJECTS[o], ROOMS[r]))
            .collect();
        let mut sentences = vec![format!("At first {}.", listed(&first))];
        for _ in 0..2 + rng.index(5) {
            let moved = rng.index(objects);
            let room = loop {
                let room = *rng.choose(&rooms);
                if room != places[moved].1 {
                    break room;
                }
            };
            places[moved].1 = room;
            let name = rng.choose(&self.firsts);
            let object = OBJECTS[places[moved].0];
            sentences
                .push(fill(pick(MOVES, rng), &[("n", name), ("o", object), ("r", ROOMS[room])]));
        }
        Scene { text: sentences.join(" "), places }
    }

    /// Document: a scene, and where everything is in the end.
    pub(super) fn rooms(&self, rng: &mut Rng) -> String {
        let Scene { text, mut places } = self.scene(rng);
        rng.shuffle(&mut places);
        let ends: Vec<String> = places.iter().map(|&(o, r)| place(o, r)).collect();
        format!("{text}\nIn the end: {}", ends.join(" "))
    }

    /// A question for an object.
    pub(super) fn ask_room(&self, object: usize, rng: &mut Rng) -> String {
        fill(pick(QUESTIONS, rng), &[("o", OBJECTS[object])])
    }
}
