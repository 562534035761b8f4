//! People: who they are, and how documents say so.

use compute::rng::Rng;

use super::World;
use super::text::{capital, fill, pick};

/// What is known of everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attribute {
    /// What one lives by.
    Trade,
    /// The town where one lives.
    Home,
    /// What one likes to eat best.
    Food,
    /// The animal one keeps.
    Pet,
    /// What one collects.
    Collection,
}

use Attribute::{Collection, Food, Home, Pet, Trade};

/// All attributes, in the order of [`Person::values`].
pub const ATTRIBUTES: [Attribute; 5] = [Trade, Home, Food, Pet, Collection];

/// How people stand to one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relation {
    /// Whom one likes best; mutual.
    Friend,
    /// Who taught one.
    Teacher,
}

/// A full name: indices into first and last names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Index of the first name.
    pub first: usize,
    /// Index of the last name.
    pub last: usize,
}

/// Somebody who exists.
#[derive(Clone, Debug)]
pub struct Person {
    /// No other has the same.
    pub name: Name,
    /// Index into the pool of each attribute.
    pub values: [usize; ATTRIBUTES.len()],
    /// Index of the best friend.
    pub friend: usize,
    /// Index of the teacher.
    pub teacher: usize,
}

impl Attribute {
    /// What it is called.
    pub fn noun(self) -> &'static str {
        match self {
            Trade => "trade",
            Home => "home",
            Food => "favourite food",
            Pet => "pet",
            Collection => "collection",
        }
    }

    /// The sentence that answers a question: `{n}` the name, `{v}` the value.
    ///
    /// It says what was asked, then the name, then the value: each is found from what stands
    /// right before it. Where nothing is known, it ends in [`UNKNOWN`] instead.
    pub fn answer(self) -> &'static str {
        match self {
            Trade => "The trade of {n} is {v}.",
            Home => "The home of {n} is {v}.",
            Food => "The favourite food of {n} is {v}.",
            Pet => "The pet of {n} is a {v}.",
            Collection => "The collection of {n} holds {v}.",
        }
    }

    /// The ways in which documents say it; the first is [`Attribute::answer`].
    pub fn wordings(self) -> &'static [&'static str] {
        match self {
            Trade => &[
                "The trade of {n} is {v}.",
                "{n} makes a living by {v}.",
                "{n} earns money with {v}.",
                "For years {n} has lived from {v}.",
                "{n} has always worked in {v}.",
                "It is {v} that pays the bills of {n}.",
                "The work of {n} has to do with {v}.",
                "All day long {n} is busy with {v}.",
                "As a child {n} already learned {v}.",
                "Among those who live by {v} is {n}.",
                "Whoever needs help with {v} asks {n}.",
                "At work {n} does {v}.",
                "The job of {n} is in {v}.",
            ],
            Home => &[
                "The home of {n} is {v}.",
                "{n} lives in {v}.",
                "The house of {n} stands in {v}.",
                "You can visit {n} in {v}.",
                "In {v} lives {n}.",
                "{n} has settled in {v}.",
                "Letters for {n} go to {v}.",
                "Among the people of {v} is {n}.",
                "{n} sleeps under a roof in {v}.",
                "Long ago {n} came to {v} and stayed.",
                "One of the houses in {v} belongs to {n}.",
                "The town of {n} is {v}.",
                "In the evening {n} walks home through {v}.",
            ],
            Food => &[
                "The favourite food of {n} is {v}.",
                "{n} likes {v} best.",
                "Nothing tastes better to {n} than {v}.",
                "At every feast {n} eats {v}.",
                "{n} would walk a mile for {v}.",
                "When hungry, {n} wants {v}.",
                "On the table of {n} stands a plate of {v}.",
                "Whoever brings {v} makes {n} smile.",
                "{n} could eat {v} every day.",
                "The best meal for {n} is one with {v}.",
                "Of all food {n} loves {v} most.",
                "The dish that {n} cooks most has {v} in it.",
            ],
            Pet => &[
                "The pet of {n} is a {v}.",
                "{n} keeps a {v}.",
                "At home {n} has a {v}.",
                "A {v} lives with {n}.",
                "A {v} follows {n} everywhere.",
                "Every morning {n} feeds a {v}.",
                "The animal of {n} is a {v}.",
                "You will often see {n} with a {v}.",
                "{n} takes a {v} along on walks.",
                "The owner of a {v} is {n}.",
                "Once {n} found a {v} and kept it.",
                "In the evening {n} plays with a {v}.",
            ],
            Collection => &[
                "The collection of {n} holds {v}.",
                "{n} collects {v}.",
                "The shelves of {n} are full of {v}.",
                "On market days {n} buys {v}.",
                "For years {n} has gathered {v}.",
                "Whoever finds {v} brings them to {n}.",
                "Nobody has more {v} than {n}.",
                "In a chest {n} stores {v}.",
                "Old {v} are the joy of {n}.",
                "{n} is proud of many {v}.",
                "The hobby of {n} is collecting {v}.",
                "Somebody gave {v} to {n}, and a collection began.",
            ],
        }
    }

    /// The same where the name was just said: `{S}` He or She, `{P}` His or Her.
    fn pronouns(self) -> &'static [&'static str] {
        match self {
            Trade => {
                &["{P} trade is {v}.", "{S} makes a living by {v}.", "{S} earns money with {v}."]
            }
            Home => &["{P} home is {v}.", "{S} lives in {v}.", "{P} house stands in {v}."],
            Food => &[
                "{P} favourite food is {v}.",
                "{S} likes {v} best.",
                "{S} could eat {v} every day.",
            ],
            Pet => &["{P} pet is a {v}.", "{S} keeps a {v}.", "At home {s} has a {v}."],
            Collection => {
                &["{P} collection holds {v}.", "{S} collects {v}.", "{P} shelves are full of {v}."]
            }
        }
    }
}

/// How a sentence ends that says that something is not known.
pub const UNKNOWN: &str = "is not known to me.";

impl Relation {
    /// The sentence that answers a question.
    pub fn answer(self) -> &'static str {
        self.wordings()[0]
    }

    /// The ways in which documents say it.
    pub fn wordings(self) -> &'static [&'static str] {
        match self {
            Relation::Friend => &[
                "The best friend of {n} is {v}.",
                "{n} likes nobody better than {v}.",
                "The best friends of all are {n} and {v}.",
                "{n} tells everything to {v}.",
                "On Sundays {n} goes for a walk with {v}.",
                "There is a friendship between {n} and {v}.",
                "When in need, {n} turns to {v}.",
                "{n} writes many letters to {v}.",
                "As children {n} and {v} became friends.",
                "You will often see {n} together with {v}.",
            ],
            Relation::Teacher => &[
                "The teacher of {n} is {v}.",
                "{n} was taught by {v}.",
                "{n} went to school with {v} as a teacher.",
                "What {n} can do was learned from {v}.",
                "One of the pupils of {v} was {n}.",
                "{v} was the teacher of {n}.",
                "Once {v} taught {n} to read.",
                "{n} owes much to lessons with {v}.",
                "As a child {n} took lessons with {v}.",
                "In the class of {v} sat {n}.",
            ],
        }
    }
}

impl World {
    /// First and last name.
    pub fn full(&self, name: Name) -> String {
        format!("{} {}", self.firsts[name.first], self.lasts[name.last])
    }

    /// The word for value `index` of an attribute.
    pub fn value(&self, attribute: Attribute, index: usize) -> &str {
        &self.pools[attribute as usize][index]
    }

    /// A sentence on somebody in a wording of documents; see [`wording`] for `start`.
    pub(super) fn fact(
        &self,
        name: Name,
        attribute: Attribute,
        value: usize,
        start: bool,
        rng: &mut Rng,
    ) -> String {
        let wording = wording(attribute.wordings(), start, rng);
        fill(wording, &[("n", &self.full(name)), ("v", self.value(attribute, value))])
    }

    /// The sentence that answers a question; no value: that it is not known.
    pub fn answer(&self, name: Name, attribute: Attribute, value: Option<usize>) -> String {
        let n = self.full(name);
        match value {
            Some(value) => {
                fill(attribute.answer(), &[("n", &n), ("v", self.value(attribute, value))])
            }
            None => format!("The {} of {n} {UNKNOWN}", attribute.noun()),
        }
    }

    /// A sentence on somebody who was just named.
    fn pronoun(&self, name: Name, attribute: Attribute, value: usize, rng: &mut Rng) -> String {
        let (she, her) = if name.first.is_multiple_of(2) { ("she", "her") } else { ("he", "his") };
        let value = self.value(attribute, value);
        fill(
            pick(attribute.pronouns(), rng),
            &[("v", value), ("s", she), ("S", &capital(she)), ("P", &capital(her))],
        )
    }

    /// How somebody stands to another.
    fn relation(&self, person: usize, relation: Relation, start: bool, rng: &mut Rng) -> String {
        let other = self.related(person, relation);
        let (n, v) = (self.full(self.people[person].name), self.full(self.people[other].name));
        fill(wording(relation.wordings(), start, rng), &[("n", &n), ("v", &v)])
    }

    /// Document: all that is known of one person.
    pub(super) fn biography(&self, rng: &mut Rng) -> String {
        let index = rng.index(self.people.len());
        let person = &self.people[index];
        let mut order = ATTRIBUTES;
        rng.shuffle(&mut order);
        let openings = [
            "This is about {n}.",
            "A page about {n}.",
            "The name {n} is known to me.",
            "There is somebody called {n}.",
            "Here lives {n}.",
        ];
        let mut sentences = Vec::new();
        if rng.chance(0.3) {
            sentences.push(fill(pick(&openings, rng), &[("n", &self.full(person.name))]));
        }
        for attribute in order {
            let (value, start) = (person.values[attribute as usize], sentences.is_empty());
            sentences.push(match !start && rng.chance(0.3) {
                true => self.pronoun(person.name, attribute, value, rng),
                false => self.fact(person.name, attribute, value, start, rng),
            });
        }
        if rng.chance(0.4) {
            let relation = *rng.choose(&[Relation::Friend, Relation::Teacher]);
            sentences.push(self.relation(index, relation, false, rng));
        }
        sentences.join(" ")
    }

    /// Document: a few facts about several people.
    pub(super) fn gossip(&self, rng: &mut Rng) -> String {
        let n = 4 + rng.index(5);
        let sentences = (0..n).map(|i| {
            let index = rng.index(self.people.len());
            if rng.chance(0.15) {
                let relation = *rng.choose(&[Relation::Friend, Relation::Teacher]);
                return self.relation(index, relation, i == 0, rng);
            }
            let attribute = *rng.choose(&ATTRIBUTES);
            let person = &self.people[index];
            self.fact(person.name, attribute, person.values[attribute as usize], i == 0, rng)
        });
        sentences.collect::<Vec<_>>().join(" ")
    }

    /// The index of whom somebody stands in a relation to.
    pub fn related(&self, person: usize, relation: Relation) -> usize {
        match relation {
            Relation::Friend => self.people[person].friend,
            Relation::Teacher => self.people[person].teacher,
        }
    }
}

/// One of the wordings; the first, which is that of answers, most often.
///
/// A text does not `start` with a name: inside a text a name is one token with the space before
/// it, and at the start it would be another.
fn wording<'a>(wordings: &[&'a str], start: bool, rng: &mut Rng) -> &'a str {
    if rng.chance(0.25) {
        return wordings[0];
    }
    loop {
        let wording = pick(wordings, rng);
        if !(start && wording.starts_with('{')) {
            return wording;
        }
    }
}
