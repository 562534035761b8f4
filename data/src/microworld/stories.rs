//! Stories: small happenings, told in a few sentences.

use compute::rng::Rng;

use super::rooms::{OBJECTS, ROOMS};
use super::text::{fill, pick};
use super::{Attribute, World};

/// How stories go; each part is one of some sentences.
const PLOTS: &[&[&[&str]]] = &[
    // Something is lost and found.
    &[
        &["One morning {a} could not find the {o}.", "On a cold day {a} lost the {o}."],
        &["It was not in the {r}.", "{a} looked in the {r}, but it was not there."],
        &["So {a} asked {b} for help.", "Then {b} came by and looked as well."],
        &["A {p} had carried it to the {q}.", "It had fallen behind a chest in the {q}."],
        &["{a} was glad and gave {b} some {f}.", "They laughed and ate {f} together."],
    ],
    // A trip to the market.
    &[
        &[
            "On a market day {a} and {b} walked to {t}.",
            "Early in the morning {a} took {b} to {t}.",
        ],
        &["They wanted to buy {f}.", "{b} had a basket for {f}."],
        &["On the way it began to rain.", "On the way they met a {p}."],
        &["There was no more {f} when they came.", "There was plenty of {f} for little money."],
        &[
            "So they bought a {o} instead and went home.",
            "In the evening they cooked for all their friends.",
        ],
    ],
    // A storm.
    &[
        &["One night a storm came to {t}.", "In autumn the wind blew hard in {t}."],
        &["It tore the roof off the house of {a}.", "A tree fell on the barn of {a}."],
        &["{b} heard it and came with a rope.", "The whole street came to help, {b} first."],
        &[
            "They saved the {p} and carried the {o} to the {r}.",
            "Together they brought the {p} and the {o} into the {r}.",
        ],
        &["Since then {a} and {b} are friends.", "The next day {a} baked a cake for {b}."],
    ],
    // A promise.
    &[
        &["Once {a} promised {b} a {p}.", "For a long time {b} had wished for a {p}."],
        &["But {a} had no money.", "But in {t} nobody sold one."],
        &["So {a} worked all summer in the {r}.", "So {a} sold the old {o}."],
        &[
            "When the day came, {b} could not believe it.",
            "On a Sunday {a} came with a box, and something moved in it.",
        ],
        &["The {p} likes {f}.", "Now the {p} follows {b} everywhere."],
    ],
    // A quarrel.
    &[
        &[
            "Last winter {a} and {b} quarrelled about a {o}.",
            "Nobody knows why {a} and {b} quarrelled.",
        ],
        &["{a} said that it was in the {r}.", "{b} did not want to speak any more."],
        &["For a week they did not greet each other.", "Even the {p} of {a} was sad."],
        &["Then {a} found it in the {q}.", "Then somebody from {t} told them to be wise."],
        &["They shook hands and ate {f}.", "Now they laugh about it."],
    ],
];

impl World {
    /// Document: a story.
    pub(super) fn story(&self, rng: &mut Rng) -> String {
        let names = rng.sample(self.firsts.len(), 2);
        let rooms = rng.sample(ROOMS.len(), 2);
        let mut value = |attribute| rng.choose(self.pool(attribute)).as_str();
        let (food, pet, town) =
            (value(Attribute::Food), value(Attribute::Pet), value(Attribute::Home));
        let values = [
            ("a", self.firsts[names[0]].as_str()),
            ("b", self.firsts[names[1]].as_str()),
            ("r", ROOMS[rooms[0]]),
            ("q", ROOMS[rooms[1]]),
            ("o", *rng.choose(&OBJECTS)),
            ("f", food),
            ("p", pet),
            ("t", town),
        ];
        let plot = *rng.choose(PLOTS);
        let sentences: Vec<String> = plot.iter().map(|s| fill(pick(s, rng), &values)).collect();
        sentences.join(" ")
    }
}
