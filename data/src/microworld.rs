//! The microworld: a small consistent world, made from a seed, as documents, conversations,
//! preferences and questions whose true answers are known.
//!
//! Everything is drawn from numbered streams: document 7 is the same whatever was drawn before it,
//! so a corpus has any length and is the same on every machine.
//!
//! - [`World::document`]: text to learn from, in kinds mixed by weight. Everybody occurs.
//! - [`World::talk`]: conversations. Only half of the people are ever asked about in them
//!   ([`World::asked`]); the others are for evaluation.
//! - [`World::preference`]: a good and a bad answer to the same question.
//! - [`World::questions`]: what is asked in evaluation, with a [`Grader`] for the answers.
//!
//! Who labels answers by hand goes by `microworld/labelling.md`.

mod arithmetic;
mod asking;
mod conversations;
mod games;
mod language;
mod names;
mod notes;
mod people;
mod places;
mod preferences;
mod questions;
mod registers;
mod rooms;
mod secrets;
mod stories;
mod tables;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod text;

use std::collections::BTreeSet;
use std::sync::Arc;

use compute::rng::Rng;
use model::message::Message;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use arithmetic::{Operation, Sum};
pub use games::{Game, Position, Rules, games};
pub use language::{Clause, Direction};
pub use people::{ATTRIBUTES, Attribute, Name, Person, Relation, UNKNOWN};
pub use places::{FEATURES, Feature, Town};
pub use preferences::Preference;
pub use questions::{Grade, Grader, Question, TASKS, Task};

/// The size of a world. The default is what scores are compared on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorldConfig {
    /// People who exist.
    pub people: usize,
    /// First names they share.
    pub first_names: usize,
    /// Last names they share.
    pub last_names: usize,
    /// Values in the pool of each attribute.
    pub values: usize,
}

impl Default for WorldConfig {
    fn default() -> Self {
        WorldConfig { people: 512, first_names: 144, last_names: 160, values: 44 }
    }
}

/// A world that can't be.
#[derive(Debug, Error)]
pub enum WorldError {
    /// Its sizes don't fit together.
    #[error("microworld: {0}")]
    Config(String),
}

/// A small world.
#[derive(Debug)]
pub struct World {
    config: WorldConfig,
    rng: Rng,
    firsts: Vec<String>,
    lasts: Vec<String>,
    /// Values of each attribute.
    pools: [Arc<[String]>; ATTRIBUTES.len()],
    people: Vec<Person>,
    exists: BTreeSet<Name>,
    /// As many as homes.
    towns: Vec<Town>,
    rivers: Arc<[String]>,
    colours: Arc<[String]>,
    /// Words of the invented language, its particle, its name.
    tongue: Vec<String>,
}

/// A text to learn from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What it is: `biography`, `notes` …
    pub kind: String,
    /// The text.
    pub text: String,
}

/// A conversation; as a line of JSON it is one of those that are read with [`crate::jsonl`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Talk {
    /// What it teaches: `known`, `calculator` …
    pub kind: String,
    /// What is said.
    pub messages: Vec<Message>,
}

/// Which endless stream of texts: they never share random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// For pretraining.
    Pretrain,
    /// For fine-tuning.
    FineTune,
    /// Held out, to measure on.
    Heldout,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Pretrain => "pretrain",
            Stream::FineTune => "fine-tune",
            Stream::Heldout => "held out",
        }
    }
}

/// A kind of text, its share of the texts, and what makes one.
type Kind<T> = (&'static str, f64, fn(&World, &mut Rng) -> T);

/// Kinds of documents; weights are shares of documents, not of tokens.
const DOCUMENTS: &[Kind<String>] = &[
    ("biography", 22.0, World::biography),
    ("gossip", 16.0, World::gossip),
    ("register", 14.0, World::register),
    ("inquiry", 8.0, World::inquiry),
    ("notes", 22.0, World::notes),
    ("sums", 6.0, World::sums),
    ("copies", 6.0, World::copies),
    ("sheets", 4.0, World::sheets),
    ("rooms", 4.0, World::rooms),
    ("town", 4.0, World::town),
    ("lesson", 3.0, World::lesson),
    ("story", 2.0, World::story),
    ("match", 3.0, World::match_played),
    ("memo", 1.0, World::memo),
];

impl World {
    /// Makes a world from its sizes and a seed.
    ///
    /// # Errors
    /// If sizes don't fit together.
    pub fn new(config: &WorldConfig, seed: u64) -> Result<World, WorldError> {
        let rng = Rng::new(seed).stream("microworld");
        let WorldConfig { people, first_names, last_names, values } = *config;
        let wrong = |why: String| Err(WorldError::Config(why));
        if people < 4 || people > first_names.saturating_mul(last_names) / 8 {
            return wrong(format!(
                "{people} people: at least 4, and at most an eighth of {first_names} first names \
                 times {last_names} last names, so that there are enough who don't exist"
            ));
        }
        if values < 8 {
            return wrong(format!("{values} values: an attribute needs 8 at least"));
        }
        let mut words = names::Words::default();
        let mut draw = rng.stream("names");
        let trades = words.pool(names::TRADES, values, &mut draw)?;
        let foods = words.pool(names::FOODS, values, &mut draw)?;
        let pets = words.pool(names::PETS, values, &mut draw)?;
        let things = words.pool(names::THINGS, values, &mut draw)?;
        let towns = words.make(names::Sound::Town, values, &mut draw)?;
        let firsts = words.make(names::Sound::First, first_names, &mut draw)?;
        let lasts = words.make(names::Sound::Last, last_names, &mut draw)?;
        let rivers = words.make(names::Sound::River, 12, &mut draw)?;
        let colours = words.pool(names::COLOURS, 13, &mut draw)?;
        let mut tongue = words.make(names::Sound::Tongue, language::WORDS + 2, &mut draw)?;
        if let Some(name) = tongue.last_mut() {
            *name = text::capital(name);
        }
        let pools = [trades, towns, foods, pets, things].map(Arc::from);
        let mut world = World {
            config: config.clone(),
            people: Vec::new(),
            exists: BTreeSet::new(),
            rng,
            firsts,
            lasts,
            pools,
            towns: Vec::new(),
            rivers: rivers.into(),
            colours: colours.into(),
            tongue,
        };
        world.populate();
        world.found_towns();
        Ok(world)
    }

    /// Draws the people.
    fn populate(&mut self) {
        let WorldConfig { people, values, .. } = self.config;
        let mut rng = self.rng.stream("people");
        while self.exists.len() < people {
            let name = self.any_name(&mut rng);
            if self.exists.insert(name) {
                let values = ATTRIBUTES.map(|_| rng.index(values));
                self.people.push(Person { name, values, friend: 0, teacher: 0 });
            }
        }
        // Friends in pairs (with an odd one out, three in a ring); teachers are somebody else. All
        // of them are in the same half, so that conversations never name who is held out.
        for half in 0..2 {
            let mut order: Vec<usize> = (half..people).step_by(2).collect();
            rng.shuffle(&mut order);
            for pair in order.chunks(2) {
                let (a, b) = (pair[0], pair[pair.len() - 1]);
                (self.people[a].friend, self.people[b].friend) = (b, a);
            }
            if let ([first, .., last], 1) = (&order[..], order.len() % 2) {
                self.people[*last].friend = *first;
            }
            for (i, person) in order.iter().enumerate() {
                let step = 1 + rng.index(order.len() - 1);
                self.people[*person].teacher = order[(i + step) % order.len()];
            }
        }
    }

    /// Everybody who exists.
    pub fn people(&self) -> &[Person] {
        &self.people
    }

    /// Whether conversations ask about this person (by index); the others are held out.
    pub fn asked(&self, person: usize) -> bool {
        person.is_multiple_of(2)
    }

    /// The values of an attribute.
    pub fn pool(&self, attribute: Attribute) -> &Arc<[String]> {
        &self.pools[attribute as usize]
    }

    /// Whether somebody has this name.
    pub fn exists(&self, name: Name) -> bool {
        self.exists.contains(&name)
    }

    /// Whether a name that nobody has is kept for evaluation: no text has it.
    pub fn reserved(&self, name: Name) -> bool {
        let number = (name.first * self.lasts.len() + name.last) as u64;
        self.rng.stream("reserved names").numbered(number).below(8) == 0
    }

    fn any_name(&self, rng: &mut Rng) -> Name {
        Name { first: rng.index(self.firsts.len()), last: rng.index(self.lasts.len()) }
    }

    /// Names of `n` different people who don't exist, reserved for evaluation or not. Some groups
    /// share a first or last name, so that it takes the whole name to tell them apart.
    fn strangers(&self, n: usize, reserved: bool, rng: &mut Rng) -> Vec<Name> {
        let shared = self.any_name(rng);
        let alike = rng.index(4);
        let mut names = Vec::new();
        // A shared name may have fewer than `n` strangers: after many tries it need not be shared.
        for tries in 0.. {
            if names.len() == n {
                break;
            }
            let mut name = self.any_name(rng);
            match alike {
                0 if tries < 50 => name.first = shared.first,
                1 if tries < 50 => name.last = shared.last,
                _ => {}
            }
            if !self.exists(name) && self.reserved(name) == reserved && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    fn stranger(&self, reserved: bool, rng: &mut Rng) -> Name {
        self.strangers(1, reserved, rng)[0]
    }

    /// Document `index` of an endless corpus.
    pub fn document(&self, stream: Stream, index: u64) -> Document {
        let mut rng = self.rng.stream("documents").stream(stream.name()).numbered(index);
        let (kind, text) = self.draw(DOCUMENTS, &mut rng);
        Document { kind: kind.into(), text }
    }

    /// Conversation `index` of an endless series.
    pub fn talk(&self, stream: Stream, index: u64) -> Talk {
        let mut rng = self.rng.stream("conversations").stream(stream.name()).numbered(index);
        let (kind, messages) = self.draw(conversations::KINDS, &mut rng);
        Talk { kind: kind.into(), messages }
    }

    /// Preference `index` of an endless series.
    pub fn preference(&self, index: u64) -> Preference {
        let mut rng = self.rng.stream("preferences").numbered(index);
        self.draw(preferences::KINDS, &mut rng).1
    }

    /// The corpus from its start.
    pub fn documents(&self, stream: Stream) -> impl Iterator<Item = Document> {
        (0..).map(move |i| self.document(stream, i))
    }

    /// The conversations from the first.
    pub fn talks(&self, stream: Stream) -> impl Iterator<Item = Talk> {
        (0..).map(move |i| self.talk(stream, i))
    }

    fn draw<T>(&self, kinds: &[Kind<T>], rng: &mut Rng) -> (&'static str, T) {
        let weights: Vec<f64> = kinds.iter().map(|kind| kind.1).collect();
        let (kind, _, make) = kinds[rng.weighted(&weights)];
        (kind, make(self, rng))
    }
}
