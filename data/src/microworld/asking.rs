//! How people are asked about: wordings that conversations show, and others that only evaluation
//! uses. Documents have none of them.

use compute::rng::Rng;

use super::text::{capital, fill, pick};
use super::{Attribute, Relation};

/// Around the name of the thing asked for: "the trade of Mira Tolan".
const FRAMES: &[&str] = &[
    "What is {x}?",
    "Tell me {x}.",
    "Please tell me {x}.",
    "Can you tell me {x}?",
    "Could you name {x}?",
    "Name {x}.",
    "Give me {x}.",
    "I need {x}.",
    "I would like to know {x}.",
    "Do you know {x}?",
    "Say, what is {x}?",
    "What do you know about {x}?",
    "I am looking for {x}.",
    "Quick, what is {x}?",
    "Hello, I want to ask for {x}.",
    "A question: what is {x}?",
    "I forgot {x}. What is it?",
    "{X}?",
    "{X}, please.",
];

/// Around a clause: "where Mira Tolan lives".
const CLAUSE_FRAMES: &[&str] = &[
    "Tell me {x}.",
    "Please tell me {x}.",
    "Can you tell me {x}?",
    "Could you say {x}?",
    "Do you know {x}?",
    "I would like to know {x}.",
    "I wonder {x}.",
    "I forgot {x}.",
    "Somebody asked me {x}.",
    "Say {x}.",
    "I want to find out {x}.",
];

/// Around a question in lower case: "where does Mira Tolan live?"
const QUESTION_FRAMES: &[&str] = &[
    "Say, {x}",
    "Quick, {x}",
    "Hello, {x}",
    "A question: {x}",
    "Please tell me: {x}",
    "Excuse me, {x}",
];

/// Around a name, and one word for the thing asked for.
const TOPIC_FRAMES: &[&str] = &[
    "It is about {n}. What is the {x}?",
    "Here is a name: {n}. I need the {x}.",
    "Take {n}. Which {x} is it?",
    "Look up {n} for me and tell me the {x}.",
    "One thing about {n}: the {x}?",
    "I know {n}, but not the {x}.",
    "The name is {n}. The {x} is what I want.",
    "Think of {n}. What {x} comes to mind?",
    "Somebody spoke of {n}. Which {x} was it?",
    "What {x} has {n}?",
    "Which {x} has {n}?",
    "Regarding {n}, tell me the {x}.",
];

/// Said before a question, sometimes.
const BEFORE: &[&str] = &[
    "I am writing a book.",
    "Good morning.",
    "My aunt wants to know.",
    "This is for a friend.",
    "Listen.",
    "I have a question.",
    "We had a talk at the market.",
    "Help me.",
];

/// Said after a question, sometimes.
const AFTER: &[&str] = &[
    "Thank you.",
    "It is important.",
    "I have to know.",
    "Take your time.",
    "Please.",
    "Tell me.",
];

/// How one thing is asked for.
struct Phrases {
    /// Words, for [`TOPIC_FRAMES`].
    words: &'static [&'static str],
    /// Nouns, for [`FRAMES`].
    things: &'static [&'static str],
    /// Clauses, for [`CLAUSE_FRAMES`].
    clauses: &'static [&'static str],
    /// Questions, alone or in [`QUESTION_FRAMES`].
    questions: &'static [&'static str],
    /// Only in evaluation.
    heldout: &'static [&'static str],
}

fn phrases(attribute: Attribute) -> Phrases {
    match attribute {
        Attribute::Trade => Phrases {
            words: &["trade", "job", "work", "profession", "occupation"],
            things: &[
                "the trade of {n}",
                "the job of {n}",
                "the work of {n}",
                "the profession of {n}",
                "the occupation of {n}",
            ],
            clauses: &[
                "what {n} does for a living",
                "how {n} earns money",
                "what trade {n} has",
                "what job {n} has",
                "what {n} works in",
                "what kind of work {n} does",
            ],
            questions: &[
                "what does {n} do for a living?",
                "how does {n} earn money?",
                "what trade does {n} have?",
                "what job does {n} have?",
                "what does {n} work in?",
                "what kind of work does {n} do?",
                "which trade is that of {n}?",
                "what does {n} do all day at work?",
            ],
            heldout: &[
                "Which job is done by {n}?",
                "I met {n} and never asked about work. What is the trade?",
                "By what work does {n} live?",
                "My list says {n}, but the job is missing. Fill it in.",
                "As to {n}: which occupation?",
                "Is there a trade that {n} follows, and which?",
                "Let me hear what sort of job {n} goes to every day.",
                "Money has to come from somewhere. In the case of {n}, from which work?",
            ],
        },
        Attribute::Home => Phrases {
            words: &["home", "town", "place", "house", "home town"],
            things: &[
                "the home of {n}",
                "the town of {n}",
                "the place where {n} lives",
                "the home town of {n}",
                "the address of {n}",
            ],
            clauses: &[
                "where {n} lives",
                "in which town {n} lives",
                "where the house of {n} is",
                "where {n} is at home",
                "which town {n} lives in",
                "where I can visit {n}",
            ],
            questions: &[
                "where does {n} live?",
                "in which town does {n} live?",
                "where is the house of {n}?",
                "where is {n} at home?",
                "which town does {n} live in?",
                "where can I visit {n}?",
                "where do I find {n}?",
                "in what place does {n} live?",
            ],
            heldout: &[
                "Which town has {n} among its people?",
                "I have a letter for {n}. Where should it go?",
                "To which town must I travel to see {n}?",
                "My list says {n}, but the town is missing. Fill it in.",
                "As to {n}: which town?",
                "Is there a town that {n} calls home, and which?",
                "Let me hear where {n} has a house.",
                "Everybody lives somewhere. In the case of {n}, in which place?",
            ],
        },
        Attribute::Food => Phrases {
            words: &["food", "favourite food", "dish", "favourite dish", "meal"],
            things: &[
                "the favourite food of {n}",
                "the favourite dish of {n}",
                "the food that {n} likes best",
                "the best food for {n}",
                "the favourite meal of {n}",
            ],
            clauses: &[
                "what {n} likes to eat",
                "what food {n} likes best",
                "which food {n} loves",
                "what {n} eats most gladly",
                "what I should cook for {n}",
                "what {n} wants to eat",
            ],
            questions: &[
                "what does {n} like to eat?",
                "what food does {n} like best?",
                "which food does {n} love?",
                "what is best to cook for {n}?",
                "what should I cook for {n}?",
                "what does {n} want to eat?",
                "which dish does {n} like most?",
                "what does {n} eat most gladly?",
            ],
            heldout: &[
                "Which food makes {n} happy?",
                "I invited {n} to dinner. What food should there be?",
                "With which dish can I please {n}?",
                "My list says {n}, but the favourite food is missing. Fill it in.",
                "As to {n}: which food?",
                "Is there a food that {n} loves, and which?",
                "Let me hear what {n} would like on the plate.",
                "Everybody has to eat. In the case of {n}, what is liked most?",
            ],
        },
        Attribute::Pet => Phrases {
            words: &["pet", "animal", "kind of animal", "animal at home"],
            things: &[
                "the pet of {n}",
                "the animal of {n}",
                "the animal that {n} keeps",
                "the pet that {n} has",
                "the kind of animal that {n} owns",
            ],
            clauses: &[
                "what pet {n} has",
                "which animal {n} keeps",
                "what kind of animal {n} owns",
                "what animal lives with {n}",
                "which pet belongs to {n}",
                "what {n} keeps as a pet",
            ],
            questions: &[
                "what pet does {n} have?",
                "which animal does {n} keep?",
                "what kind of animal does {n} own?",
                "what animal lives with {n}?",
                "which pet belongs to {n}?",
                "what does {n} keep as a pet?",
                "what animal does {n} have at home?",
                "which animal does {n} take care of?",
            ],
            heldout: &[
                "Which animal is kept by {n}?",
                "I hear noises from the house of {n}. What animal is it?",
                "By which animal is {n} followed?",
                "My list says {n}, but the pet is missing. Fill it in.",
                "As to {n}: which animal?",
                "Is there a pet that {n} feeds, and which?",
                "Let me hear what animal waits for {n} at home.",
                "Nobody lives alone. In the case of {n}, with which animal?",
            ],
        },
        Attribute::Collection => Phrases {
            words: &[
                "collection",
                "hobby",
                "kind of collection",
                "things on the shelves",
                "collected things",
            ],
            things: &[
                "the collection of {n}",
                "the hobby of {n}",
                "the things that {n} collects",
                "the objects that {n} gathers",
                "the kind of things {n} collects",
            ],
            clauses: &[
                "what {n} collects",
                "which things {n} collects",
                "what the collection of {n} holds",
                "what {n} gathers",
                "what kind of collection {n} has",
                "what is on the shelves of {n}",
            ],
            questions: &[
                "what does {n} collect?",
                "which things does {n} collect?",
                "what is in the collection of {n}?",
                "what does {n} gather?",
                "what kind of collection does {n} have?",
                "what is on the shelves of {n}?",
                "what objects does {n} collect?",
                "which things does {n} store at home?",
            ],
            heldout: &[
                "Which things are collected by {n}?",
                "I look for a gift for {n}. What would fit the collection?",
                "With which things are the shelves of {n} filled?",
                "My list says {n}, but the collection is missing. Fill it in.",
                "As to {n}: which collection?",
                "Is there something that {n} collects, and what?",
                "Let me hear what {n} has gathered over the years.",
                "Everybody has a hobby. In the case of {n}, which things does it take?",
            ],
        },
    }
}

/// A question in a wording that conversations show.
pub fn seen(attribute: Attribute, name: &str, rng: &mut Rng) -> String {
    let mut question = plain(attribute, name, rng);
    if rng.chance(0.15) {
        question = format!("{} {question}", pick(BEFORE, rng));
    }
    if rng.chance(0.15) {
        question = format!("{question} {}", pick(AFTER, rng));
    }
    question
}

/// The question itself.
fn plain(attribute: Attribute, name: &str, rng: &mut Rng) -> String {
    let phrases = phrases(attribute);
    let (frames, inner): (&[&str], _) = match rng.index(4) {
        0 => (FRAMES, pick(phrases.things, rng)),
        1 => (CLAUSE_FRAMES, pick(phrases.clauses, rng)),
        2 => (TOPIC_FRAMES, pick(phrases.words, rng)),
        _ => {
            let question = pick(phrases.questions, rng);
            if rng.chance(0.6) {
                return fill(&capital(question), &[("n", name)]);
            }
            (QUESTION_FRAMES, question)
        }
    };
    let x = fill(inner, &[("n", name)]);
    fill(pick(frames, rng), &[("x", &x), ("X", &capital(&x)), ("n", name)])
}

/// A question in a wording that no training text has.
pub fn heldout(attribute: Attribute, name: &str, rng: &mut Rng) -> String {
    fill(pick(phrases(attribute).heldout, rng), &[("n", name)])
}

/// A question for a friend or a teacher.
pub fn related(relation: Relation, name: &str, rng: &mut Rng) -> String {
    let things: &[&str] = match relation {
        Relation::Friend => &["the best friend of {n}", "the friend of {n}"],
        Relation::Teacher => &["the teacher of {n}", "the person who taught {n}"],
    };
    let frames = [
        "Who is {x}?",
        "Tell me the name of {x}.",
        "Do you know who is {x}?",
        "I would like to know {x}.",
        "Please name {x}.",
    ];
    fill(pick(&frames, rng), &[("x", &fill(pick(things, rng), &[("n", name)]))])
}

/// Every wording of an attribute that conversations show, or that they don't, with `{n}`.
#[cfg(test)]
pub fn all(attribute: Attribute, held: bool) -> Vec<String> {
    let phrases = phrases(attribute);
    if held {
        return phrases.heldout.iter().map(|w| (*w).to_string()).collect();
    }
    let mut all: Vec<String> = phrases.questions.iter().map(|q| capital(q)).collect();
    for (frames, inner) in [
        (TOPIC_FRAMES, phrases.words),
        (FRAMES, phrases.things),
        (CLAUSE_FRAMES, phrases.clauses),
        (QUESTION_FRAMES, phrases.questions),
    ] {
        for frame in frames {
            all.extend(
                inner.iter().map(|x| fill(frame, &[("x", x), ("X", &capital(x)), ("n", "{n}")])),
            );
        }
    }
    all
}
