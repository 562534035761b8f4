use proptest::prelude::*;
use serde_json::json;

use super::*;

fn store() -> (tempfile::TempDir, Conversations) {
    let dir = tempfile::tempdir().unwrap();
    let store = Conversations::open(&dir.path().join("new/chat.db")).unwrap();
    (dir, store)
}

fn user<'a>(parent: Option<&'a str>, content: &'a str) -> Said<'a> {
    Said { parent, role: "user", content, ..Said::default() }
}

fn piece(content: &str) -> Piece {
    let tokens = vec![json!([content, -0.5, [["x", -1.0]]])];
    Piece { content: content.into(), tokens, ..Piece::default() }
}

#[test]
fn an_answer_is_there_before_its_end_and_after_a_crash() {
    let (dir, store) = store();
    let c = store.create("", "About", &json!({"system": "So."})).unwrap();
    let asked = store.say(None, &c.id, &user(None, "Why?")).unwrap();
    let answer = store.begin(None, &c.id, Some(&asked.id), &json!({"model": "m"})).unwrap();
    for part in ["Be", "cause", " \"so\"."] {
        store.piece(&answer, &piece(part)).unwrap();
    }
    let thought = Piece { reasoning: "Hm.".into(), ..Piece::default() };
    store.piece(&answer, &thought).unwrap();
    let read = |store: &Conversations| store.message(None, &answer.id).unwrap();
    let now = read(&store);
    assert_eq!((now.content.as_str(), now.state.as_str()), ("Because \"so\".", "writing"));
    assert_eq!(now.reasoning_content, "Hm.");
    // Somebody else who opens the file doesn't end what is being written.
    let other = Conversations::open(&dir.path().join("new/chat.db")).unwrap();
    assert_eq!(read(&other).state, "writing");
    drop((store, other));
    let store = Conversations::open(&dir.path().join("new/chat.db")).unwrap();
    let cut = read(&store);
    assert_eq!((cut.content.as_str(), cut.state.as_str()), ("Because \"so\".", "cut"));
    let tokens: Value = serde_json::from_str(&store.tokens(None, &answer.id).unwrap()).unwrap();
    assert_eq!(tokens[2], json!([" \"so\".", -0.5, [["x", -1.0]]]));
    assert_eq!(store.search(None, "becau").unwrap().len(), 1);
}

#[test]
fn a_person_sees_nothing_of_anothers() {
    let (_dir, store) = store();
    let c = store.create("Ann", "Secret", &json!({})).unwrap();
    let m = store.say(Some("Ann"), &c.id, &user(None, "A secret word")).unwrap();
    let eve = Some("Eve");
    assert!(store.list(eve, None).unwrap().is_empty());
    assert!(store.search(eve, "secret").unwrap().is_empty());
    assert!(store.judged(eve).unwrap().is_empty());
    store.conversation(eve, &c.id).unwrap_err();
    store.message(eve, &m.id).unwrap_err();
    store.tokens(eve, &m.id).unwrap_err();
    store.say(eve, &c.id, &user(Some(&m.id), "I")).unwrap_err();
    store.begin(eve, &c.id, Some(&m.id), &json!({})).unwrap_err();
    store.judge(eve, &m.id, 1, "").unwrap_err();
    store.change(eve, &c.id, Some("Mine"), None).unwrap_err();
    store.remove(eve, &c.id).unwrap_err();
    assert_eq!(store.messages(&c.id).unwrap(), [m]);
    assert_eq!(store.list(Some("Ann"), None).unwrap().len(), 1);
    assert_eq!(store.list(None, None).unwrap().len(), 1);
}

#[test]
fn what_cannot_be_is_named() {
    let (_dir, store) = store();
    let c = store.create("", "One", &json!({})).unwrap();
    let other = store.create("", "Two", &json!({})).unwrap();
    let there = store.say(None, &other.id, &user(None, "Hi")).unwrap();
    let long = "x".repeat(CONTENT + 1);
    for (said, field) in [
        (user(Some("none"), "Hi"), "parent"),
        (user(Some(&there.id), "Hi"), "parent"),
        (user(None, &long), "content"),
        (Said { role: "robot", ..user(None, "Hi") }, "role"),
    ] {
        let error = store.say(None, &c.id, &said).unwrap_err();
        assert!(error.to_string().starts_with(field), "{error}");
    }
    assert!(store.messages(&c.id).unwrap().is_empty());
    store.create("", "", &json!({})).unwrap_err();
    store.create("", "A", &json!([])).unwrap_err();
    store.judge(None, &there.id, 2, "").unwrap_err();
    store.remove(None, &other.id).unwrap();
    assert!(store.search(None, "hi").unwrap().is_empty());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    std::fs::write(&path, "My notes, which are no database, and stay as they are. ".repeat(40))
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(Conversations::open(&path).err().unwrap().to_string().contains("damaged"));
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let later = dir.path().join("later.db");
    drop(Conversations::open(&later).unwrap());
    let db = rusqlite::Connection::open(&later).unwrap();
    db.pragma_update(None, "user_version", 9).unwrap();
    assert!(Conversations::open(&later).err().unwrap().to_string().contains("version 9"));
}

#[test]
fn thumbs_become_preferences() {
    let (_dir, store) = store();
    let c = store.create("", "Colours", &json!({})).unwrap();
    let asked = store.say(None, &c.id, &user(None, "A colour?")).unwrap();
    let answer = |text: &str, thumb: i64| {
        let asked_with = json!({"model": "m", "system": "Be kind."});
        let answer = store.begin(None, &c.id, Some(&asked.id), &asked_with).unwrap();
        store.piece(&answer, &piece(text)).unwrap();
        let end = End { state: "stop".into(), seed: Some(7), ..End::default() };
        store.end(&answer, &end).unwrap();
        store.judge(None, &answer.id, thumb, "").unwrap();
    };
    answer("Red.", 1);
    answer("Dog.", -1);
    answer("Cat.", -1);
    answer("Blue.", 0);
    let before = json!([
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "A colour?"}
    ]);
    let pair = |bad: &str| {
        json!({
            "prompt": before, "chosen": [{"role": "assistant", "content": "Red."}],
            "rejected": [{"role": "assistant", "content": bad}]
        })
    };
    assert_eq!(store.preferences(&c.id).unwrap(), [pair("Dog."), pair("Cat.")]);
    let judgements = store.judgements(&c.id).unwrap();
    assert_eq!(judgements.len(), 3);
    assert_eq!(judgements[0]["messages"][2], json!({"role": "assistant", "content": "Red."}));
    assert_eq!((&judgements[0]["thumb"], &judgements[0]["seed"]), (&json!(1), &json!(7)));
    assert_eq!(store.judged(None).unwrap(), [c.id]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever is said comes back as it was, and is found by its words; whatever is searched for is no error.
    #[test]
    fn what_is_said_is_kept(said in prop::collection::vec((any::<String>(), 0usize..8), 1..12), words in any::<String>()) {
        let (dir, store) = store();
        let c = store.create("", "A", &json!({})).unwrap();
        let mut kept: Vec<Message> = Vec::new();
        for (i, (content, parent)) in said.iter().enumerate() {
            let parent = kept.get(*parent).map(|m| m.id.clone());
            if i % 2 == 0 {
                let said = user(parent.as_deref(), content);
                kept.push(store.say(None, &c.id, &said).unwrap());
            } else {
                let answer = store.begin(None, &c.id, parent.as_deref(), &json!({})).unwrap();
                for part in content.split_inclusive(' ') {
                    store.piece(&answer, &piece(part)).unwrap();
                }
                store.end(&answer, &End { state: "stop".into(), ..End::default() }).unwrap();
                kept.push(store.message(None, &answer.id).unwrap());
            }
            prop_assert_eq!(&kept[i].content, content);
            prop_assert_eq!(&kept[i].parent, &parent);
        }
        prop_assert_eq!(&store.messages(&c.id).unwrap(), &kept);
        store.search(None, &words).unwrap();
        drop(store);
        let store = Conversations::open(&dir.path().join("new/chat.db")).unwrap();
        prop_assert_eq!(&store.messages(&c.id).unwrap(), &kept);
        for message in kept.iter().filter(|m| m.content.is_ascii()) {
            if let Some(word) = message.content.split(|c: char| !c.is_alphanumeric()).find(|w| !w.is_empty()) {
                prop_assert_eq!(store.search(None, word).unwrap().len(), 1, "{}", word);
            }
        }
    }
}
