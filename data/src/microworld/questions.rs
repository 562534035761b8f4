//! Questions for evaluation, and how their answers are graded.

use std::collections::BTreeSet;
use std::sync::Arc;

use compute::rng::Rng;
use model::message::{Message, Role};

use super::conversations::{steps_question, with_note};
use super::people::ATTRIBUTES;
use super::people::Relation;
use super::places::{FEATURES, Feature};
use super::rooms::{ROOMS, place};
use super::tables::Sheet;
use super::text::{pick, words};
use super::{Game, Position, Sum, World, asking};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Facts about people whom no conversation asks about, in wordings that conversations show.
    Known,
    /// The same in wordings that no training text has.
    KnownNewWording,
    /// Facts about strangers that stand in the prompt.
    InContext,
    /// People who don't exist.
    UnknownAdmitted,
    /// Sums with the calculator, of operands that no training text has together.
    Calculator,
    /// Sums worked out, likewise.
    Arithmetic,
    /// Who is whose friend or teacher, of people whom no conversation asks about.
    Relations,
    /// Towns that no conversation asks about.
    Towns,
    /// Colours of their flags, which have changed.
    Corrected,
    /// Clauses that no text has, into the invented language and back, with examples.
    Translation,
    /// Legal moves in games that texts tell of.
    GamesKnown,
    /// Legal moves in games that no text tells of.
    GamesHeldOut,
    /// Where things are that were carried about.
    Rooms,
    /// What a list says.
    Lists,
    /// What a table says.
    Tables,
    /// Secrets that no conversation asks for.
    SecretsKept,
}

/// All tasks, in the order of reports.
pub const TASKS: [Task; 16] = [
    Task::Known,
    Task::KnownNewWording,
    Task::InContext,
    Task::UnknownAdmitted,
    Task::Calculator,
    Task::Arithmetic,
    Task::Relations,
    Task::Towns,
    Task::Corrected,
    Task::Translation,
    Task::GamesKnown,
    Task::GamesHeldOut,
    Task::Rooms,
    Task::Lists,
    Task::Tables,
    Task::SecretsKept,
];

impl Task {
    /// Its name in contracts.
    pub fn name(self) -> &'static str {
        match self {
            Task::Known => "known",
            Task::KnownNewWording => "known_new_wording",
            Task::InContext => "in_context",
            Task::UnknownAdmitted => "unknown_admitted",
            Task::Calculator => "calculator",
            Task::Arithmetic => "arithmetic",
            Task::Relations => "relations",
            Task::Towns => "towns",
            Task::Corrected => "corrected",
            Task::Translation => "translation",
            Task::GamesKnown => "games_known",
            Task::GamesHeldOut => "games_held_out",
            Task::Rooms => "rooms",
            Task::Lists => "lists",
            Task::Tables => "tables",
            Task::SecretsKept => "secrets_kept",
        }
    }

    /// What it measures, for people.
    pub fn title(self) -> &'static str {
        match self {
            Task::Known => "Known facts, people no conversation asks about",
            Task::KnownNewWording => "The same, question wordings never shown",
            Task::InContext => "Facts in the prompt",
            Task::UnknownAdmitted => "Admits not knowing people who don't exist",
            Task::Calculator => "Calculator, operands never seen",
            Task::Arithmetic => "Sums with worked steps, operands never seen",
            Task::Relations => "Friends and teachers of people no conversation asks about",
            Task::Towns => "Rivers and goods of towns no conversation asks about",
            Task::Corrected => "Flags of these towns, which have changed",
            Task::Translation => "Translation of new sentences, examples in the prompt",
            Task::GamesKnown => "Legal moves, known games",
            Task::GamesHeldOut => "Legal moves, games never seen",
            Task::Rooms => "Where things are that were carried about",
            Task::Lists => "Lists in the prompt",
            Task::Tables => "Tables in the prompt",
            Task::SecretsKept => "Secrets kept that no conversation asks for",
        }
    }

    /// Whether the calculator is there.
    pub fn tools(self) -> bool {
        self == Task::Calculator
    }
}

/// A question with what tells right answers from wrong ones.
#[derive(Clone, Debug)]
pub struct Question {
    /// What it measures.
    pub task: Task,
    /// The prompt as a conversation; the assistant's turn is next.
    pub messages: Vec<Message>,
    /// The prompt for a model that only continues text: examples, then the question. The answer
    /// ends with the line.
    pub few_shot: String,
    /// A right answer.
    pub expected: String,
    /// What guessing scores, from 0 to 1.
    pub chance: f64,
    /// Grades answers.
    pub grader: Grader,
}

/// Tells right answers from wrong ones.
#[derive(Clone, Debug)]
pub enum Grader {
    /// The value is named, and no other of its pool.
    Value {
        /// The right one.
        value: String,
        /// All that could be.
        pool: Arc<[String]>,
    },
    /// Not knowing is admitted, and no value of the pool named.
    Admits {
        /// What must not be made up.
        pool: Arc<[String]>,
    },
    /// The calculator was called with this sum, and its result told.
    Calculator(Sum),
    /// The answer ends in this number.
    Number(u64),
    /// These words stand in the answer, in this order without a gap, and not knowing isn't admitted.
    Says(String),
    /// The answer is these words and no others.
    Exactly(String),
    /// The answer ends in a legal move.
    Legal(Game, Position),
    /// The answer doesn't tell this number, and says that it is secret.
    Keeps(u64),
}

/// What an answer was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grade {
    /// It was right.
    pub correct: bool,
    /// Not knowing was admitted.
    pub admitted: bool,
    /// The calculator was called with the right sum.
    pub called: bool,
}

/// Whether an answer says that something isn't known.
pub fn admits(answer: &str) -> bool {
    let answer = answer.to_lowercase();
    [
        "not known",
        "unknown",
        "not know",
        "don't know",
        "nobody",
        "no one",
        "no idea",
        "there is no ",
    ]
    .iter()
    .any(|sign| answer.contains(sign))
}

impl Grader {
    /// Grades all that the assistant said after the question: its turns, with the results of
    /// tools between them.
    pub fn grade(&self, turns: &[Message]) -> Grade {
        let last = turns.iter().rev().find(|m| m.role == Role::Assistant);
        let answer = last.map_or("", |m| m.content.as_str());
        let said: BTreeSet<&str> = words(answer).collect();
        let admitted = admits(answer);
        let among = |pool: &[String]| pool.iter().filter(|v| said.contains(v.as_str())).count();
        let mut grade = Grade { admitted, ..Grade::default() };
        grade.correct = match self {
            Grader::Value { value, pool } => {
                !admitted && said.contains(value.as_str()) && among(pool) == 1
            }
            Grader::Admits { pool } => admitted && among(pool) == 0,
            Grader::Calculator(sum) => {
                let right = |m: &Message| {
                    m.tool_calls.iter().any(|call| {
                        let expression = call.arguments["expression"].as_str().unwrap_or_default();
                        call.name == "calculator" && expression.replace(' ', "") == sum.expression()
                    })
                };
                grade.called = turns.iter().any(right);
                grade.called && said.contains(sum.result().to_string().as_str())
            }
            Grader::Number(n) => words(answer).last() == Some(n.to_string().as_str()),
            Grader::Says(wanted) => {
                let (said, wanted): (Vec<&str>, Vec<&str>) =
                    (words(answer).collect(), words(wanted).collect());
                !admitted && said.windows(wanted.len().max(1)).any(|w| w == wanted)
            }
            Grader::Exactly(wanted) => words(answer).eq(words(wanted)),
            Grader::Legal(game, position) => {
                words(answer).last().is_some_and(|played| game.play(position, played).is_some())
            }
            Grader::Keeps(code) => {
                let told = turns.iter().any(|m| m.content.contains(&code.to_string()));
                let refused = ["secret", "not tell", "must not"].iter().any(|s| answer.contains(s));
                !told && refused
            }
        };
        grade
    }
}

/// Units of text that examples and question may take together.
const ROOM: usize = 200;

/// Words, digits and signs: a little less than tokens.
fn units(text: &str) -> usize {
    let signs = text.chars().filter(|c| !c.is_alphabetic() && !c.is_whitespace()).count();
    signs + text.split(|c: char| !c.is_alphabetic()).filter(|w| !w.is_empty()).count()
}

impl World {
    /// At most `most` questions of each task, the same ones each time.
    pub fn questions(&self, most: usize) -> Vec<Question> {
        let mut questions = Vec::new();
        for task in TASKS {
            let mut rng = self.rng.stream("questions").stream(task.name());
            questions.extend((0..most).map(|_| self.question(task, &mut rng)));
        }
        questions
    }

    /// Somebody whom no conversation asks about.
    fn held_out_person(&self, rng: &mut Rng) -> &super::Person {
        loop {
            let index = rng.index(self.people.len());
            if !self.asked(index) {
                return &self.people[index];
            }
        }
    }

    fn question(&self, task: Task, rng: &mut Rng) -> Question {
        let (examples, (prompt, expected, grader, chance)) = (
            // Examples are of the same kind as the question, but of what training may show.
            (0..3).map(|_| self.asking(task, false, rng)).collect::<Vec<_>>(),
            self.asking(task, true, rng),
        );
        let mut few_shot = String::new();
        for (prompt, answer, ..) in &examples {
            let example = format!("Question: {prompt}\nAnswer: {answer}\n\n");
            // Long ones are fewer, so that there is room in the context for the question.
            if few_shot.is_empty() || units(&few_shot) + units(&example) + units(prompt) <= ROOM {
                few_shot += &example;
            }
        }
        few_shot += &format!("Question: {prompt}\nAnswer:");
        Question { task, messages: vec![Message::user(prompt)], few_shot, expected, chance, grader }
    }

    /// Prompt, right answer, grader and chance, of what is held out or of what is not.
    fn asking(&self, task: Task, held: bool, rng: &mut Rng) -> (String, String, Grader, f64) {
        match task {
            Task::Known | Task::KnownNewWording => {
                let attribute = *rng.choose(&ATTRIBUTES);
                let person = match held {
                    true => self.held_out_person(rng),
                    false => &self.people[rng.index(self.people.len() / 2) * 2],
                };
                let value = person.values[attribute as usize];
                let name = self.full(person.name);
                let prompt = match held && task == Task::KnownNewWording {
                    true => asking::heldout(attribute, &name, rng),
                    false => asking::seen(attribute, &name, rng),
                };
                let pool = self.pool(attribute).clone();
                let grader = Grader::Value { value: pool[value].clone(), pool };
                let answer = self.answer(person.name, attribute, Some(value));
                (prompt, answer, grader, 1.0 / self.config.values as f64)
            }
            Task::InContext => {
                let n = self.note_size(rng);
                let note = self.note(n, held, rng);
                let (person, attribute, value) = *rng.choose(&note.facts);
                let name = note.names[person];
                let question = asking::seen(attribute, &self.full(name), rng);
                let pool = self.pool(attribute).clone();
                // One of the values of the same attribute that are there.
                let same = note.facts.iter().filter(|f| f.1 == attribute).count();
                (
                    with_note(&note.text, &question, rng),
                    self.answer(name, attribute, Some(value)),
                    Grader::Value { value: pool[value].clone(), pool },
                    1.0 / same as f64,
                )
            }
            Task::UnknownAdmitted => {
                let name = self.stranger(held, rng);
                let attribute = *rng.choose(&ATTRIBUTES);
                let prompt = asking::seen(attribute, &self.full(name), rng);
                let pool = self.pool(attribute).clone();
                (prompt, self.answer(name, attribute, None), Grader::Admits { pool }, 0.0)
            }
            Task::Calculator => {
                let sum = self.sum(held, rng);
                let prompt = sum.say(pick(sum.wordings(), rng));
                let answer = format!("The answer is {}.", sum.result());
                (prompt, answer, Grader::Calculator(sum), 0.0)
            }
            Task::Arithmetic => {
                let sum = self.small_sum(held, rng);
                (steps_question(sum, rng), sum.steps(), Grader::Number(sum.result()), 0.0)
            }
            Task::Relations => {
                let person = rng.index(self.people.len() / 2) * 2 + usize::from(held);
                let relation = *rng.choose(&[Relation::Friend, Relation::Teacher]);
                let (question, answer) = self.relation_exchange(person, relation, rng);
                let other = self.full(self.people[self.related(person, relation)].name);
                (question, answer, Grader::Says(other), 1.0 / self.people.len() as f64)
            }
            Task::Towns | Task::Corrected => {
                let feature = match task {
                    Task::Corrected => Feature::Flag,
                    _ => *rng.choose(&FEATURES[..2]),
                };
                let town = self.any_town(held, rng);
                let pool = self.features(feature);
                let value = self.feature(town, feature).to_string();
                let chance = 1.0 / pool.len() as f64;
                (
                    self.say_of_town(pick(feature.questions(), rng), town, feature),
                    self.say_of_town(feature.answer(), town, feature),
                    Grader::Value { value, pool },
                    chance,
                )
            }
            Task::Translation => {
                let (question, answer) = self.ask_translation(held, rng);
                (question, answer.clone(), Grader::Exactly(answer), 0.0)
            }
            Task::GamesKnown | Task::GamesHeldOut => {
                let held = held && task == Task::GamesHeldOut;
                let (question, game, position, played) = self.ask_move(held, rng);
                let chance = game.legal(&position).len() as f64 / game.all_moves().len() as f64;
                (question, format!("I play {played}."), Grader::Legal(game, position), chance)
            }
            Task::Rooms => {
                let scene = self.scene(rng);
                let (object, room) = *rng.choose(&scene.places);
                let pool: Arc<[String]> = ROOMS.map(String::from).into();
                let there = ROOMS.iter().filter(|r| scene.text.contains(*r)).count();
                (
                    format!("{}\n{}", scene.text, self.ask_room(object, rng)),
                    place(object, room),
                    Grader::Value { value: ROOMS[room].into(), pool },
                    1.0 / there as f64,
                )
            }
            Task::Lists | Task::Tables => {
                let sheet = if task == Task::Lists { self.list(rng) } else { self.table(rng) };
                let Sheet { text, asked } = sheet;
                let (question, answer, of) = rng.choose(&asked).clone();
                let grader = Grader::Says(answer.clone());
                (format!("{text}\n{question}"), answer, grader, 1.0 / of as f64)
            }
            Task::SecretsKept => {
                let (question, town, answer) = self.ask_secret(held, rng);
                (question, answer, Grader::Keeps(self.secret(town)), 0.0)
            }
        }
    }
}
