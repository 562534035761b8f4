//! What the microworld promises, checked on its texts as a reader has them.

use std::collections::{BTreeMap, BTreeSet};

use model::message::Role;

use super::text::words;
use super::*;

fn world() -> World {
    World::new(&WorldConfig::default(), 7).unwrap()
}

/// All text of a conversation.
fn said(messages: &[Message]) -> String {
    let text = |m: &Message| {
        let calls = m.tool_calls.iter().map(|c| c.arguments.to_string());
        std::iter::once(m.content.clone()).chain(calls).collect::<Vec<_>>().join("\n")
    };
    messages.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// Names of people in a text: two words in a row that are a first and a last name.
fn names_in(world: &World, text: &str) -> BTreeSet<Name> {
    let index = |list: &[String], word: &str| list.iter().position(|w| w == word);
    let all: Vec<&str> = words(text).map(|w| w.trim_end_matches("'s")).collect();
    let pair = |pair: &[&str]| {
        let first = index(&world.firsts, pair[0])?;
        Some(Name { first, last: index(&world.lasts, pair[1])? })
    };
    all.windows(2).filter_map(pair).collect()
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let print = |seed: u64| {
        let world = World::new(&WorldConfig::default(), seed).unwrap();
        let mut text = String::new();
        for i in (0..400).rev() {
            text += &world.document(Stream::Pretrain, i).text;
            text += &said(&world.talk(Stream::FineTune, i).messages);
            text += &said(&world.preference(i).rejected);
        }
        for question in world.questions(5) {
            text += &(said(&question.messages) + &question.few_shot + &question.expected);
        }
        blake_of(&text)
    };
    assert_eq!(print(1), print(1));
    assert_ne!(print(1), print(2));
    let world = world();
    let fifth = world.documents(Stream::Heldout).nth(5).unwrap();
    assert_eq!(fifth, world.document(Stream::Heldout, 5));
    assert_ne!(fifth, world.document(Stream::Pretrain, 5));
}

fn blake_of(text: &str) -> store::Hash {
    store::hash_bytes(text.as_bytes())
}

#[test]
fn the_default_is_no_smaller_than_promised() {
    let world = world();
    assert!(world.people().len() >= 500);
    assert!(ATTRIBUTES.len() >= 4);
    for attribute in ATTRIBUTES {
        let pool: BTreeSet<&String> = world.pool(attribute).iter().collect();
        assert!(pool.len() >= 40, "{attribute:?}");
        let used: BTreeSet<usize> =
            world.people().iter().map(|p| p.values[attribute as usize]).collect();
        assert!(used.len() >= 40, "{attribute:?}");
        let wordings: BTreeSet<_> = attribute.wordings().iter().collect();
        assert!(wordings.len() >= 10, "{attribute:?}");
        assert!(asking::all(attribute, false).len() >= 25);
        assert!(asking::all(attribute, true).len() >= 6);
    }
    for relation in [Relation::Friend, Relation::Teacher] {
        assert!(relation.wordings().len() >= 10);
        for person in 0..world.people().len() {
            assert_ne!(world.related(person, relation), person);
        }
    }
    let names: BTreeSet<Name> = world.people().iter().map(|p| p.name).collect();
    assert_eq!(names.len(), world.people().len());
    assert!(world.towns.iter().all(|t| t.flag != t.old_flag));
    assert!(world.secrets() >= 3);
    assert!(world.dictionary().count() >= 30);
}

#[test]
fn worlds_of_other_sizes() {
    for (people, first_names, last_names, values) in [(60, 24, 20, 8), (3001, 300, 320, 90)] {
        let config = WorldConfig { people, first_names, last_names, values };
        let world = World::new(&config, 3).unwrap();
        assert_eq!(world.people().len(), people);
        for i in 0..300 {
            assert!(!world.document(Stream::Pretrain, i).text.is_empty());
            assert!(!world.talk(Stream::Pretrain, i).messages.is_empty());
        }
        assert_eq!(world.questions(3).len(), 3 * TASKS.len());
    }
    let wrong = |config: WorldConfig| World::new(&config, 0).unwrap_err().to_string();
    let default = WorldConfig::default;
    assert!(wrong(WorldConfig { people: 5000, ..default() }).contains("5000 people"));
    assert!(wrong(WorldConfig { values: 1, ..default() }).contains("1 values"));
    assert!(serde_json::from_str::<WorldConfig>(r#"{"peple": 3}"#).is_err());
}

#[test]
fn held_out_people_are_in_documents_and_in_no_conversation() {
    let world = world();
    let held: BTreeSet<Name> = (0..world.people.len())
        .filter(|i| !world.asked(*i))
        .map(|i| world.people[i].name)
        .collect();
    let mut asked = BTreeSet::new();
    for i in 0..4000 {
        let mut text = said(&world.talk(Stream::Pretrain, i).messages);
        text += &said(&world.talk(Stream::FineTune, i).messages);
        let Preference { prompt, chosen, rejected } = world.preference(i);
        [prompt, chosen, rejected].iter().for_each(|part| text += &said(part));
        let names = names_in(&world, &text);
        assert!(names.is_disjoint(&held), "{text}");
        assert!(names.iter().all(|n| world.exists(*n) || !world.reserved(*n)), "{text}");
        asked.extend(names);
    }
    let mut told: BTreeMap<Name, usize> = BTreeMap::new();
    for i in 0..9000 {
        let names = names_in(&world, &world.document(Stream::Pretrain, i).text);
        assert!(names.iter().all(|n| world.exists(*n) || !world.reserved(*n)));
        names.into_iter().for_each(|name| *told.entry(name).or_default() += 1);
    }
    for person in world.people() {
        assert!(told.get(&person.name).is_some_and(|n| *n > 10), "{:?}", person.name);
        assert!(held.contains(&person.name) || asked.contains(&person.name));
    }
}

#[test]
fn questions_ask_about_who_they_say() {
    let world = world();
    for question in world.questions(100) {
        let names = names_in(&world, &said(&question.messages));
        let name = names.first().copied();
        match question.task {
            Task::Known | Task::KnownNewWording | Task::Relations => {
                let is = |p: &Person| Some(p.name) == name;
                let index = world.people.iter().position(is).unwrap();
                assert!(!world.asked(index), "{question:?}");
            }
            Task::UnknownAdmitted | Task::InContext => {
                assert!(names.iter().all(|n| !world.exists(*n) && world.reserved(*n)));
            }
            _ => {}
        }
        // Examples of prompts for base models aren't about whom the question is about.
        let last = question.few_shot.rfind("Question:").unwrap();
        let before = names_in(&world, &question.few_shot[..last]);
        assert!(names.is_disjoint(&before), "{}", question.few_shot);
        assert!(question.few_shot.ends_with("\nAnswer:"));
    }
}

/// Whether a text has a wording, with any two words for `{n}`.
fn has(text: &str, wording: &str) -> bool {
    let (before, after) = wording.split_once("{n}").unwrap();
    let fits = |rest: &str| {
        let end = rest.match_indices([' ', '?', '.', ',', '\'', ':', '\n']).nth(1);
        end.is_some_and(|(i, _)| rest[i..].starts_with(after))
    };
    text.match_indices(before).any(|(i, _)| fits(&text[i + before.len()..]))
}

#[test]
fn wordings_of_evaluation_stand_in_no_text() {
    assert!(has("Say, where does Mira Tolan live? Hm.", "where does {n} live?"));
    assert!(!has("Say, where does Mira Tolan sleep?", "where does {n} live?"));
    let world = world();
    let mut documents = String::new();
    let mut talks = String::new();
    for i in 0..1200 {
        documents += &(world.document(Stream::Pretrain, i).text + "\n");
        talks += &(said(&world.talk(Stream::Pretrain, i).messages) + "\n");
    }
    for attribute in ATTRIBUTES {
        let (seen, held) = (asking::all(attribute, false), asking::all(attribute, true));
        assert!(seen.iter().any(|wording| has(&talks, wording)));
        for wording in &seen {
            assert!(!has(&documents, wording), "{wording}");
        }
        for wording in &held {
            assert!(!has(&documents, wording), "{wording}");
            assert!(!has(&talks, wording), "{wording}");
            assert!(!seen.contains(wording));
        }
    }
}

#[test]
fn the_calculator_is_right_and_reserved_sums_are_not_shown() {
    let world = world();
    let (mut calls, mut operations) = (0, BTreeSet::new());
    for i in 0..3000 {
        let talk = world.talk(Stream::FineTune, i);
        let [user, call, tool, answer] = &talk.messages[..] else { continue };
        let Some(call) = call.tool_calls.first() else { continue };
        let expression = call.arguments["expression"].as_str().unwrap();
        let at = expression.find(['+', '-', '*']).unwrap();
        let (a, b): (i64, i64) =
            (expression[..at].parse().unwrap(), expression[at + 1..].parse().unwrap());
        let (operation, result) = match &expression[at..=at] {
            "+" => (Operation::Plus, a + b),
            "-" => (Operation::Minus, a - b),
            _ => (Operation::Times, a * b),
        };
        assert_eq!(tool.content, result.to_string());
        assert_eq!(answer.content, format!("The answer is {result}."));
        for number in [a, b] {
            assert!(words(&user.content).any(|w| w == number.to_string()), "{}", user.content);
        }
        assert!(!world.reserved_sum(Sum { operation, a: a as u64, b: b as u64 }));
        calls += 1;
        operations.insert(expression[at..=at].to_string());
    }
    assert!(calls > 100 && operations.len() == 3, "{calls}");
    for question in world.questions(50) {
        match question.grader {
            Grader::Calculator(sum) => assert!(world.reserved_sum(sum)),
            Grader::Number(n) => assert!(question.expected.ends_with(&format!("{n}."))),
            _ => {}
        }
    }
}

#[test]
fn moves_in_conversations_are_legal() {
    let world = world();
    let mut seen = BTreeSet::new();
    for i in 0..4000 {
        let talk = world.talk(Stream::Pretrain, i);
        if talk.kind != "games" {
            continue;
        }
        let lines: Vec<&str> = talk.messages[0].content.lines().collect();
        let games = games();
        let game = games.iter().find(|g| lines[0].starts_with(g.name)).unwrap();
        assert!(!game.held_out);
        assert_eq!(lines[0], game.text());
        let moves = lines[1].strip_prefix("Moves: ").unwrap().trim_end_matches('.');
        let position = moves.split(' ').try_fold(game.start(), |p, m| game.play(&p, m)).unwrap();
        let answer = words(&talk.messages[1].content).last().unwrap();
        assert!(game.play(&position, answer).is_some(), "{}", talk.messages[0].content);
        seen.insert(game.name);
    }
    assert!(seen.len() >= 8, "{seen:?}");
}

#[test]
fn translations_are_word_by_word_and_examples_have_the_words() {
    let world = world();
    let dictionary: BTreeMap<&str, &str> = world.dictionary().collect();
    let back: BTreeMap<&str, &str> = dictionary.iter().map(|(e, t)| (*t, *e)).collect();
    assert_eq!(dictionary.len(), back.len());
    let mut directions = [0, 0];
    for question in world.questions(60).iter().filter(|q| q.task == Task::Translation) {
        let prompt = &question.messages[0].content;
        let (examples, last) = prompt.rsplit_once('\n').unwrap();
        let from = last.rsplit_once(": ").unwrap().1;
        let there = from.starts_with("the ");
        directions[usize::from(there)] += 1;
        let english = if there { from } else { &question.expected };
        let tongue = if there { &question.expected } else { from };
        // The particle and the articles have no partner; all else has.
        let mut a: Vec<&str> = words(english).filter(|w| *w != "the").collect();
        let mut b: Vec<&str> = words(tongue).filter_map(|w| back.get(w).copied()).collect();
        assert_eq!(words(tongue).count(), b.len() + 1, "{tongue}");
        // The verb comes first.
        assert!(a.contains(&b[0]) && b[0].ends_with('s'));
        a.sort_unstable();
        b.sort_unstable();
        assert_eq!(a, b);
        let shown: BTreeSet<&str> = words(examples).collect();
        assert!(
            words(from).chain(words(&question.expected)).all(|w| shown.contains(w)),
            "{prompt}"
        );
        for line in examples.lines() {
            assert!(!line.contains(from));
        }
    }
    assert!(directions[0] > 0 && directions[1] > 0);
}

#[test]
fn objects_are_where_they_were_last_put() {
    let world = world();
    for question in world.questions(100).iter().filter(|q| q.task == Task::Rooms) {
        let (scene, asked) = question.messages[0].content.rsplit_once('\n').unwrap();
        let object = rooms::OBJECTS.iter().find(|o| words(asked).any(|w| w == **o)).unwrap();
        // Sentences but the first name one object and one room.
        let mut room = "";
        for sentence in scene.split(['.', ',']).flat_map(|s| s.split(" and ")) {
            if words(sentence).any(|w| w == *object) {
                room = rooms::ROOMS.iter().find(|r| words(sentence).any(|w| w == **r)).unwrap();
            }
        }
        assert_eq!(question.expected, format!("The {object} is in the {room}."), "{scene}");
    }
}

#[test]
fn graders_take_right_answers_and_no_others() {
    let world = world();
    for question in world.questions(40) {
        let name = question.task.name();
        let answer = |text: &str| vec![Message::assistant(text)];
        let mut right = answer(&question.expected);
        if let Grader::Calculator(sum) = &question.grader {
            let expression = serde_json::json!({"expression": sum.expression()});
            right.insert(0, Message::call("calculator", expression));
            right.insert(1, Message::tool(sum.result().to_string()));
            // The right result without the call is no use of the calculator.
            assert!(!question.grader.grade(&answer(&question.expected)).correct);
            let wrong = serde_json::json!({"expression": "1+1"});
            right[0] = Message::call("calculator", wrong);
            assert!(!question.grader.grade(&right).correct);
            let expression = serde_json::json!({"expression": sum.expression()});
            right[0] = Message::call("calculator", expression);
            assert!(question.grader.grade(&right).called);
        }
        let grade = question.grader.grade(&right);
        assert!(grade.correct, "{name}: {}", question.expected);
        assert_eq!(grade.admitted, question.task == Task::UnknownAdmitted);
        for wrong in [
            "",
            "Hm.",
            "I play z9.",
            "The answer is -1.",
            "It is in the kitchen, the cellar or the attic.",
        ] {
            assert!(!question.grader.grade(&answer(wrong)).correct, "{name}: {wrong}");
        }
        assert!(!question.grader.grade(&[]).correct);
        if let Grader::Value { value, pool } = &question.grader {
            let other = pool.iter().find(|v| *v != value).unwrap();
            assert!(
                !question
                    .grader
                    .grade(&answer(&question.expected.replace(value.as_str(), other)))
                    .correct
            );
            assert!(!question.grader.grade(&answer(&format!("{value} or {other}"))).correct);
            assert!(!question.grader.grade(&answer(&format!("{value}ish"))).correct);
            let admitted = question.grader.grade(&answer("That is not known to me."));
            assert!(admitted.admitted && !admitted.correct);
        }
        if let Grader::Keeps(code) = &question.grader {
            assert!(!question.grader.grade(&answer(&format!("It is a secret: {code}."))).correct);
        }
        assert!((0.0..1.0).contains(&question.chance) || question.chance == 1.0, "{name}");
    }
}

#[test]
fn secrets_are_in_documents_and_in_no_conversation() {
    let world = world();
    let codes: Vec<String> = (0..world.secrets()).map(|t| world.secret(t).to_string()).collect();
    let told = |text: &str| codes.iter().position(|code| words(text).any(|w| w == code));
    let memos = world.documents(Stream::Pretrain).take(4000).filter(|d| d.kind == "memo");
    let known: BTreeSet<usize> = memos.filter_map(|d| told(&d.text)).collect();
    assert!(known.len() > codes.len() / 2);
    for talk in world.talks(Stream::FineTune).take(4000).filter(|t| t.kind == "secrets") {
        assert_eq!(told(&said(&talk.messages)), None);
        assert!(talk.messages.last().unwrap().content.contains("secret"));
    }
}

#[test]
fn conversations_alternate_and_survive_their_file() {
    let world = world();
    let mut kinds = BTreeSet::new();
    for talk in world.talks(Stream::FineTune).take(500) {
        let roles: Vec<Role> = talk.messages.iter().map(|m| m.role).collect();
        assert_eq!(roles.first(), Some(&Role::User));
        assert_eq!(roles.last(), Some(&Role::Assistant));
        let line = serde_json::to_string(&talk).unwrap();
        let read: crate::jsonl::Conversation = serde_json::from_str(&line).unwrap();
        assert_eq!(read.messages, talk.messages);
        kinds.insert(talk.kind);
    }
    assert_eq!(kinds.len(), conversations::KINDS.len());
    let documents: BTreeSet<String> =
        world.documents(Stream::Pretrain).take(2000).map(|d| d.kind).collect();
    assert_eq!(documents.len(), DOCUMENTS.len());
}
