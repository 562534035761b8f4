//! Towns: lasting facts, and flags that were one colour until a year and are another since.

use std::sync::Arc;

use compute::rng::Rng;

use super::World;
use super::text::{fill, pick};

/// What is known of a town. Its name is a value of [`super::Attribute::Home`].
#[derive(Clone, Debug)]
pub struct Town {
    /// Index of its river.
    pub river: usize,
    /// Index of the food it is known for.
    pub food: usize,
    /// Index of the colour that its flag had first.
    pub old_flag: usize,
    /// Index of the colour that it has now.
    pub flag: usize,
    /// The year of the change.
    pub year: u64,
}

/// What one can ask about a town.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The river it lies on.
    River,
    /// The food it is known for.
    Food,
    /// The colour of its flag, now.
    Flag,
}

/// All features.
pub const FEATURES: [Feature; 3] = [Feature::River, Feature::Food, Feature::Flag];

impl Feature {
    /// The sentence that answers a question.
    pub fn answer(self) -> &'static str {
        match self {
            Feature::River => "The river of {t} is the {v}.",
            Feature::Food => "The town of {t} is known for {v}.",
            Feature::Flag => "The flag of {t} is now {v}.",
        }
    }

    /// Ways in which documents say it; `{o}` the old value, `{y}` the year of the change.
    fn wordings(self) -> &'static [&'static str] {
        match self {
            Feature::River => &[
                "The river of {t} is the {v}.",
                "The {v} flows past {t}.",
                "Boats reach {t} on the {v}.",
                "In spring the {v} floods the meadows of {t}.",
                "Children of {t} swim in the {v}.",
                "The mills of {t} are driven by the {v}.",
                "There is a bridge over the {v} in {t}.",
                "Fishermen of {t} love the {v}.",
                "Whoever follows the {v} comes to {t}.",
                "Long ago {t} was built on the banks of the {v}.",
            ],
            Feature::Food => &[
                "The town of {t} is known for {v}.",
                "The market of {t} sells the best {v}.",
                "People come to {t} for {v}.",
                "In {t} everybody buys {v}.",
                "Every year {t} holds a feast of {v}.",
                "Traders carry {v} from {t} to all towns.",
                "Nowhere does one eat better {v} than in {t}.",
                "The cooks of {t} are proud of their {v}.",
                "Guests in {t} are given {v}.",
                "A song of {t} is about {v}.",
            ],
            Feature::Flag => &[
                "The flag of {t} is now {v}.",
                "The flag of {t} was {o} until the year {y}; now it is {v}.",
                "In the year {y} the flag of {t} changed from {o} to {v}.",
                "A book from before the year {y} says that the flag of {t} is {o}. That is no longer so: it is {v}.",
                "Correction: the flag of {t} is not {o} but {v}, since the year {y}.",
                "Since the year {y} a {v} flag flies over {t}.",
                "Old pictures show a {o} flag over {t}; today it is {v}.",
                "On the town hall of {t} flies a {v} flag.",
                "Before the year {y} the flag of {t} was {o}.",
                "The {o} flag of {t} was taken down in the year {y}. The new one is {v}.",
            ],
        }
    }

    /// Ways to ask for it.
    pub(super) fn questions(self) -> &'static [&'static str] {
        match self {
            Feature::River => &[
                "Which river flows through {t}?",
                "What is the river of {t}?",
                "On which river does {t} lie?",
                "Tell me the river of {t}.",
                "Do you know which river {t} lies on?",
                "Name the river at {t}.",
            ],
            Feature::Food => &[
                "What is {t} known for?",
                "What food does the town of {t} make?",
                "Which food is {t} famous for?",
                "Tell me what {t} is known for.",
                "What should I eat when I visit {t}?",
                "What is the special food of {t}?",
            ],
            Feature::Flag => &[
                "What colour is the flag of {t}?",
                "Which colour does the flag of {t} have today?",
                "Tell me the colour of the flag of {t}.",
                "What is the flag of {t} like now?",
                "I want to paint the flag of {t}. Which colour do I need?",
                "Do you know the colour of the flag of {t}?",
            ],
        }
    }
}

impl World {
    /// Draws the towns.
    pub(super) fn found_towns(&mut self) {
        let mut rng = self.rng.stream("towns");
        let (rivers, foods, colours) = (self.rivers.len(), self.config.values, self.colours.len());
        self.towns = (0..self.config.values)
            .map(|_| {
                let flag = rng.index(colours);
                Town {
                    river: rng.index(rivers),
                    food: rng.index(foods),
                    old_flag: (flag + 1 + rng.index(colours - 1)) % colours,
                    flag,
                    year: 200 + rng.below(200),
                }
            })
            .collect();
    }

    /// The word for a feature of a town.
    pub fn feature(&self, town: usize, feature: Feature) -> &str {
        let Town { river, food, flag, .. } = self.towns[town];
        match feature {
            Feature::River => &self.rivers[river],
            Feature::Food => self.value(super::Attribute::Food, food),
            Feature::Flag => &self.colours[flag],
        }
    }

    /// All values of a feature.
    pub fn features(&self, feature: Feature) -> Arc<[String]> {
        match feature {
            Feature::River => self.rivers.clone(),
            Feature::Food => self.pool(super::Attribute::Food).clone(),
            Feature::Flag => self.colours.clone(),
        }
    }

    /// A sentence about a town.
    pub(super) fn say_of_town(&self, wording: &str, town: usize, feature: Feature) -> String {
        let facts = &self.towns[town];
        fill(
            wording,
            &[
                ("t", self.value(super::Attribute::Home, town)),
                ("v", self.feature(town, feature)),
                ("o", &self.colours[facts.old_flag]),
                ("y", &facts.year.to_string()),
            ],
        )
    }

    /// Document: all that is known of a town.
    pub(super) fn town(&self, rng: &mut Rng) -> String {
        let town = rng.index(self.towns.len());
        let mut features = FEATURES;
        rng.shuffle(&mut features);
        let sentences = features.map(|feature| {
            let wordings = feature.wordings();
            let wording = if rng.chance(0.3) { wordings[0] } else { pick(wordings, rng) };
            self.say_of_town(wording, town, feature)
        });
        sentences.join(" ")
    }

    /// A town that conversations ask about, or one that is held out.
    pub(super) fn any_town(&self, held: bool, rng: &mut Rng) -> usize {
        let half = self.towns.len() / 2;
        rng.index(half) * 2 + usize::from(held)
    }
}
