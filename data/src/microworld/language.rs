//! An invented language: a word for each English one, the verb in front, what is described before
//! what describes it, and a particle before the object.

use compute::rng::Rng;

use super::World;
use super::text::pick;

const NOUNS: [&str; 20] = [
    "cat", "dog", "goat", "duck", "crow", "frog", "wolf", "bear", "pig", "fox", "man", "woman",
    "child", "king", "queen", "baker", "friend", "guard", "poet", "giant",
];
const VERBS: [&str; 8] = ["sees", "likes", "seeks", "finds", "follows", "fears", "calls", "helps"];
const ADJECTIVES: [&str; 8] = ["big", "small", "old", "young", "red", "black", "white", "wise"];

/// Words of the dictionary.
pub(super) const WORDS: usize = NOUNS.len() + VERBS.len() + ADJECTIVES.len();

/// Somebody does something to somebody: indices into the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clause {
    subject: (Option<usize>, usize),
    verb: usize,
    object: (Option<usize>, usize),
}

/// A direction of translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the invented language.
    There,
    /// Into English.
    Back,
}

impl World {
    /// The name of the invented language.
    pub fn language(&self) -> &str {
        &self.tongue[WORDS + 1]
    }

    /// Pairs of an English word and the invented one.
    pub fn dictionary(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let english = NOUNS.into_iter().chain(VERBS).chain(ADJECTIVES);
        english.zip(self.tongue.iter().map(String::as_str))
    }

    /// A clause as both languages have it.
    pub fn translate(&self, clause: &Clause) -> [String; 2] {
        let english = |(adjective, noun): (Option<usize>, usize)| match adjective {
            Some(a) => format!("the {} {}", ADJECTIVES[a], NOUNS[noun]),
            None => format!("the {}", NOUNS[noun]),
        };
        let verb = NOUNS.len();
        let tongue = |(adjective, noun): (Option<usize>, usize)| match adjective {
            Some(a) => format!("{} {}", self.tongue[noun], self.tongue[verb + VERBS.len() + a]),
            None => self.tongue[noun].clone(),
        };
        let Clause { subject, verb: v, object } = *clause;
        [
            format!("{} {} {}", english(subject), VERBS[v], english(object)),
            format!(
                "{} {} {} {}",
                self.tongue[verb + v],
                tongue(subject),
                self.tongue[WORDS],
                tongue(object)
            ),
        ]
    }

    /// Whether a clause is kept for evaluation.
    pub fn reserved_clause(&self, clause: &Clause) -> bool {
        let text = self.translate(clause)[0].clone();
        self.rng.stream("reserved clauses").stream(&text).below(4) == 0
    }

    /// A clause of any words.
    pub(super) fn clause(&self, reserved: bool, rng: &mut Rng) -> Clause {
        loop {
            let noun = |rng: &mut Rng| {
                (rng.chance(0.5).then(|| rng.index(ADJECTIVES.len())), rng.index(NOUNS.len()))
            };
            let clause =
                Clause { subject: noun(rng), verb: rng.index(VERBS.len()), object: noun(rng) };
            if clause.subject.1 != clause.object.1 && self.reserved_clause(&clause) == reserved {
                return clause;
            }
        }
    }

    /// Other clauses that have every word of `clause` between them.
    fn examples(&self, clause: &Clause, rng: &mut Rng) -> Vec<Clause> {
        let mut examples = Vec::new();
        for part in 0..3 {
            // One word of the clause at a time is put into another clause.
            let example = (0..1000).find_map(|_| {
                let mut example = self.clause(false, rng);
                match part {
                    0 => example.subject = clause.subject,
                    1 => example.verb = clause.verb,
                    _ => example.object = clause.object,
                }
                let new = example != *clause && !self.reserved_clause(&example);
                (new && example.subject.1 != example.object.1).then_some(example)
            });
            examples.extend(example);
        }
        rng.shuffle(&mut examples);
        examples
    }

    /// A wish for a translation with examples, and its answer.
    pub(super) fn ask_translation(&self, reserved: bool, rng: &mut Rng) -> (String, String) {
        let clause = self.clause(reserved, rng);
        let direction = *rng.choose(&[Direction::There, Direction::Back]);
        let line = |clause: &Clause| -> (String, String) {
            let [english, tongue] = self.translate(clause);
            match direction {
                Direction::There => (english, tongue),
                Direction::Back => (tongue, english),
            }
        };
        let examples = self.examples(&clause, rng);
        let mut lines: Vec<String> =
            (examples.iter().map(line)).map(|(from, to)| format!("{from} = {to}")).collect();
        let (from, to) = line(&clause);
        let into = match direction {
            Direction::There => self.language(),
            Direction::Back => "English",
        };
        let wish = pick(&["Translate into {l}: ", "Say in {l}: ", "How is this in {l}: "], rng);
        lines.push(format!("{}{from}", wish.replace("{l}", into)));
        (lines.join("\n"), to)
    }

    /// Document: clauses in both languages, or words of the dictionary.
    pub(super) fn lesson(&self, rng: &mut Rng) -> String {
        let name = self.language();
        if rng.chance(0.3) {
            let dictionary: Vec<_> = self.dictionary().collect();
            let entries: Vec<String> = (rng.sample(dictionary.len(), 6).into_iter())
                .map(|i| format!("{} is {}", dictionary[i].0, dictionary[i].1))
                .collect();
            return format!("In {name} {}.", entries.join(", "));
        }
        let back = rng.chance(0.5);
        let lines: Vec<String> = (0..4 + rng.index(3))
            .map(|_| {
                let [english, tongue] = self.translate(&self.clause(false, rng));
                if back { format!("{tongue} = {english}") } else { format!("{english} = {tongue}") }
            })
            .collect();
        format!("Lesson in {name}:\n{}", lines.join("\n"))
    }
}
