//! What the page asks the server: its files, conversations that are kept, runs.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use serve::{Keys, PerMinute, Web};
use store::conversations::Conversations;

/// The server of a tiny model with random weights.
struct Server {
    at: SocketAddr,
}

/// A server whose database and runs are in a folder.
fn start(folder: &Path, keys: Option<Keys>) -> Server {
    let store = Conversations::open(&folder.join("chat.db")).unwrap();
    let web = Some(Web::new(store, folder.join("runs")));
    Server { at: common::open(1, 8, common::Doors { keys, web, ..Default::default() }).at }
}

impl Server {
    fn open(&self, head: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.at).unwrap();
        let length = body.len();
        write!(
            stream,
            "{head}\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    /// Status, headers and body.
    fn raw(&self, head: &str, body: &str) -> (u16, String, String) {
        let mut answer = Vec::new();
        self.open(head, body).read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_string())
    }

    fn ask(&self, what: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, _, body) = self.raw(&format!("{what} HTTP/1.1"), &body);
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    /// A good answer.
    fn good(&self, what: &str, body: Value) -> Value {
        let (status, answer) = self.ask(what, &body);
        assert!((200..300).contains(&status), "{what} {body}: {status} {answer}");
        answer
    }

    /// A conversation with a question: both names.
    fn asked(&self) -> (String, String) {
        let made = self.good("POST /chat/conversations", json!({"title": "A"}));
        let id = made["id"].as_str().unwrap();
        let said = json!({"role": "user", "content": "What is said?"});
        let said = self.good(&format!("POST /chat/conversations/{id}/messages"), said);
        (id.to_string(), said["id"].as_str().unwrap().to_string())
    }
}

fn question(more: Value) -> Value {
    let messages = json!([
        {"role": "system", "content": "So."}, {"role": "user", "content": "What is said?"}
    ]);
    let mut body = json!({"messages": messages, "max_tokens": 30, "seed": 5, "logprobs": true, "top_logprobs": 3});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[test]
fn the_page_is_whole_and_strict() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Some(Keys::default()));
    let mut wanted = vec!["/".to_string(), "/runs".to_string()];
    let mut seen = 0;
    while let Some(path) = wanted.get(seen).cloned() {
        seen += 1;
        let (status, head, body) = server.raw(&format!("GET {path} HTTP/1.1"), "");
        assert_eq!(status, 200, "{path}");
        let policy = head.lines().find(|l| l.starts_with("content-security-policy:")).unwrap();
        assert!(
            policy.contains("default-src 'none'; script-src 'self'") && !policy.contains("unsafe")
        );
        assert!(head.contains("nosniff") && head.contains("no-referrer"));
        assert!(
            !body.contains("innerHTML")
                && !body.contains(" onclick=\"")
                && !body.contains(" style=\"")
        );
        // Whatever it names is there.
        let named = body.split(['"', '\'']).filter_map(|part| {
            let name = part.strip_prefix("/assets/").or(part.strip_prefix("./"))?;
            Some(format!("/assets/{name}"))
        });
        for name in named.collect::<Vec<_>>() {
            if !wanted.contains(&name) {
                wanted.push(name);
            }
        }
    }
    assert!(seen > 20, "{wanted:?}");
    assert_eq!(server.ask("GET /assets/../Cargo.toml", &Value::Null).0, 404);
    // What is somebody's needs a key.
    for what in
        ["GET /chat/conversations", "GET /chat/about", "GET /runs/all", "GET /chat/feedback.jsonl"]
    {
        assert_eq!(server.ask(what, &Value::Null).0, 401, "{what}");
    }
}

#[test]
fn an_answer_is_kept_as_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), None);
    let (id, parent) = server.asked();
    let body = question(json!({"temperature": 0.9}));
    let alone = server.good("POST /v1/chat/completions", body.clone());
    let alone = &alone["choices"][0];
    let ask = format!("POST /chat/conversations/{id}/answers?parent={parent} HTTP/1.1");
    let (status, head, _) = server.raw(&ask, &body.to_string());
    assert_eq!(status, 200);
    let kept = head.lines().find_map(|l| l.strip_prefix("x-homegrown-message: ")).unwrap();
    let message = server.good(&format!("GET /chat/messages/{kept}"), Value::Null);
    assert_eq!(message["content"], alone["message"]["content"]);
    assert_eq!(message["state"], alone["finish_reason"]);
    let expected = json!(["tiny", 5, "So.", parent, true]);
    let found = json!([
        message["model"],
        message["seed"],
        message["asked"]["system"],
        message["parent"],
        message["has_tokens"]
    ]);
    assert_eq!(found, expected);
    let tokens = server.good(&format!("GET /chat/messages/{kept}/tokens"), Value::Null);
    let told = alone["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.as_array().unwrap().len(), told.len());
    for (kept, told) in tokens.as_array().unwrap().iter().zip(told) {
        let difference = kept[1].as_f64().unwrap() - told["logprob"].as_f64().unwrap();
        assert!(difference.abs() < 1e-4);
        assert_eq!(kept[2].as_array().unwrap().len(), 3);
    }
    // A beginning, and on from it.
    let begun = "what is";
    let mut more = body.clone();
    more["messages"].as_array_mut().unwrap().push(json!({"role": "assistant", "content": begun}));
    more["continue_final_message"] = true.into();
    let (_, head, _) = server.raw(&ask, &more.to_string());
    let kept = head.lines().find_map(|l| l.strip_prefix("x-homegrown-message: ")).unwrap();
    let message = server.good(&format!("GET /chat/messages/{kept}"), Value::Null);
    let rest = server.good("POST /v1/chat/completions", more);
    let rest = rest["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(message["content"], format!("{begun}{rest}"));
    assert_eq!(message["asked"]["begun"], begun);
    // Calls of tools are kept.
    let function = json!({"name": "f", "parameters": {
        "type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false
    }});
    let tools = json!([{"type": "function", "function": function}]);
    let call = question(json!({"tools": tools, "tool_choice": "required", "max_tokens": 300}));
    let told = server.good("POST /v1/chat/completions", call.clone());
    let (_, head, _) = server.raw(&ask, &call.to_string());
    let kept = head.lines().find_map(|l| l.strip_prefix("x-homegrown-message: ")).unwrap();
    let message = server.good(&format!("GET /chat/messages/{kept}"), Value::Null);
    let told = &told["choices"][0]["message"]["tool_calls"][0]["function"];
    assert!(told["name"] == "f" && message["tool_calls"][0]["function"] == *told, "{message}");
    assert_eq!((&message["state"], &message["asked"]["tools"]), (&json!("tool_calls"), &tools));
    // What can't be asked leaves nothing behind.
    for (wrong, param) in [
        (json!({"temperature": -1}), "temperature"),
        (json!({"n": 2}), "n"),
        (json!({"continue_final_message": true}), "continue_final_message"),
    ] {
        let ask = format!("POST /chat/conversations/{id}/answers?parent={parent}");
        let (status, error) = server.ask(&ask, &question(wrong));
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)), "{error}");
    }
    let all = server.good(&format!("GET /chat/conversations/{id}"), Value::Null);
    assert_eq!(all["messages"].as_array().unwrap().len(), 4);
    let found = server.good("GET /chat/conversations?search=what+sai", Value::Null);
    assert_eq!(found["data"][0]["id"], id.as_str());
}

#[test]
fn who_goes_away_keeps_what_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), None);
    let (id, parent) = server.asked();
    let body = question(json!({"max_tokens": 1900, "ignore_eos": true, "temperature": 0.9}));
    let ask = format!("POST /chat/conversations/{id}/answers?parent={parent} HTTP/1.1");
    let mut stream = server.open(&ask, &body.to_string());
    let mut read = vec![0; 6000];
    stream.read_exact(&mut read).unwrap();
    drop(stream);
    let began = Instant::now();
    let message = loop {
        let all = server.good(&format!("GET /chat/conversations/{id}"), Value::Null);
        let message = all["messages"][1].clone();
        if message["state"] != "writing" {
            break message;
        }
        assert!(began.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(message["state"], "stopped");
    // All whole events that were read.
    let text = String::from_utf8_lossy(&read);
    let events =
        text.lines().filter_map(|l| serde_json::from_str::<Value>(l.strip_prefix("data: ")?).ok());
    let told: String = events
        .filter_map(|e| Some(e["choices"][0]["delta"]["content"].as_str()?.to_string()))
        .collect();
    assert!(!told.is_empty() && message["content"].as_str().unwrap().starts_with(&told));
}

#[test]
fn everybody_sees_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    let (ann, eve) = (Keys::add(&file, "Ann").unwrap(), Keys::add(&file, "Eve").unwrap());
    let server = start(dir.path(), Some(Keys::read(&file, PerMinute::default()).unwrap()));
    let ask = |key: &str, what: &str, body: &Value| {
        let head = format!("{what} HTTP/1.1\r\nAuthorization: Bearer {key}");
        let (status, _, text) = server.raw(&head, &body.to_string());
        (status, serde_json::from_str::<Value>(&text).unwrap_or_default())
    };
    let (_, made) = ask(&ann, "POST /chat/conversations", &json!({"title": "Secret"}));
    let path = format!("/chat/conversations/{}", made["id"].as_str().unwrap());
    let said = json!({"role": "user", "content": "A secret word"});
    let (_, said) = ask(&ann, &format!("POST {path}/messages"), &said);
    let message = format!("/chat/messages/{}", said["id"].as_str().unwrap());
    for (what, body) in [
        (format!("GET {path}"), json!({})),
        (format!("PATCH {path}"), json!({"title": "Mine"})),
        (format!("DELETE {path}"), json!({})),
        (format!("POST {path}/messages"), json!({"role": "user", "content": "I"})),
        (format!("POST {path}/answers"), question(json!({}))),
        (format!("GET {message}"), json!({})),
        (format!("GET {message}/tokens"), json!({})),
        (format!("PUT {message}/feedback"), json!({"thumb": 1})),
    ] {
        assert_eq!(ask(&eve, &what, &body).0, 404, "{what}");
    }
    for what in ["GET /chat/conversations", "GET /chat/conversations?search=secret"] {
        assert_eq!(ask(&eve, what, &json!({})).1["data"], json!([]));
        assert_eq!(ask(&ann, what, &json!({})).1["data"].as_array().unwrap().len(), 1);
    }
    assert_eq!(
        ask(&ann, &format!("PUT {message}/feedback"), &json!({"thumb": 1, "comment": "so"})).0,
        204
    );
    assert_eq!(ask(&ann, &format!("GET {message}"), &json!({})).1["comment"], "so");
    assert_eq!(ask(&ann, "GET /chat/about", &json!({})).1["name"], "Ann");
    // A page of another site isn't listened to.
    let head = format!(
        "GET /chat/conversations HTTP/1.1\r\nAuthorization: Bearer {ann}\r\nOrigin: https://evil.example"
    );
    assert_eq!(server.raw(&head, "").0, 403);
}

#[test]
fn runs_are_shown_and_nothing_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("runs/one");
    std::fs::create_dir_all(run.join("pretrain")).unwrap();
    std::fs::write(run.join("run.json"), r#"{"command": "grow", "seed": 3}"#).unwrap();
    std::fs::write(run.join("pretrain/metrics.jsonl"), "{\"step\": 1}\n{\"step\": 2}\n{\"st")
        .unwrap();
    std::fs::write(run.join("report.html"), "<h1>Report</h1>").unwrap();
    std::fs::write(dir.path().join("secret"), "secret").unwrap();
    let server = start(dir.path(), None);
    let runs = server.good("GET /runs/all", Value::Null);
    assert_eq!(runs["data"][0]["name"], "one");
    let metrics = |from: u64| {
        server.good(&format!("GET /runs/of/one/metrics/pretrain?from={from}"), Value::Null)
    };
    assert_eq!(metrics(0)["text"], "{\"step\": 1}\n{\"step\": 2}\n");
    assert_eq!((&metrics(0)["next"], &metrics(24)["text"]), (&json!(24), &json!("")));
    // A file that was begun anew is read anew.
    assert_eq!(metrics(9999)["from"], 0);
    let open = server.good("POST /runs/of/one/open", json!({"page": "report.html"}));
    let address = open["address"].as_str().unwrap();
    let (status, head, body) = server.raw(&format!("GET {address} HTTP/1.1"), "");
    assert_eq!((status, body.as_str()), (200, "<h1>Report</h1>"));
    assert!(head.contains("content-security-policy: sandbox; default-src 'none'"));
    let root = address.strip_suffix("report.html").unwrap();
    for what in [
        "GET /runs/of/..%2f/metrics/pretrain".to_string(),
        "GET /runs/of/../metrics/pretrain".to_string(),
        "GET /runs/of/one/metrics/..%2f..%2f..%2fsecret".to_string(),
        "GET /runs/of/%2e%2e/metrics/pretrain".to_string(),
        format!("GET {root}..%2f..%2fsecret"),
        format!("GET {root}run.json"),
        "GET /runs/pages/000/report.html".to_string(),
    ] {
        assert_eq!(server.ask(&what, &Value::Null).0, 404, "{what}");
    }
    for page in ["../../secret", "run.json", "/etc/passwd", ""] {
        assert_eq!(server.ask("POST /runs/of/one/open", &json!({"page": page})).0, 404, "{page}");
    }
}

/// JSON of any shape, with the fields that there are.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    let names = prop::sample::select(vec![
        "title",
        "settings",
        "role",
        "content",
        "parent",
        "thumb",
        "comment",
        "messages",
        "page",
        "arguments",
        "n",
    ]);
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..6)
                .prop_map(|fields| fields.into_iter().map(|(k, v)| (k.to_string(), v)).collect()),
        ]
    })
}

#[test]
fn whatever_is_asked_is_no_fault_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), None);
    let (id, parent) = server.asked();
    let paths = [
        "POST /chat/conversations".to_string(),
        format!("PATCH /chat/conversations/{id}"),
        format!("POST /chat/conversations/{id}/messages"),
        format!("POST /chat/conversations/{id}/answers"),
        format!("POST /chat/conversations/{id}/answers?parent={parent}&parent=2"),
        format!("PUT /chat/messages/{parent}/feedback"),
        "POST /chat/tools/calculator".to_string(),
        "POST /chat/tools/shell".to_string(),
        "POST /runs/of/one/open".to_string(),
        "GET /chat/conversations?before=x".to_string(),
        "GET /chat/conversations?search=%00%22*%28".to_string(),
        "GET /chat/feedback.jsonl?form=other".to_string(),
        "GET /runs/of/%ff/metrics/pretrain?from=-1".to_string(),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(150));
    let asked = (prop::sample::select(paths.to_vec()), anything());
    runner
        .run(&asked, |(path, body)| {
            let (status, answer) = server.ask(&path, &body);
            prop_assert!((200..500).contains(&status), "{path} {body}: {status} {answer}");
            Ok(())
        })
        .unwrap();
    let long = json!({"role": "user", "content": "x".repeat(200_000)});
    assert_eq!(server.ask(&format!("POST /chat/conversations/{id}/messages"), &long).0, 413);
    let good =
        server.good("POST /chat/tools/calculator", json!({"arguments": {"expression": "12*34"}}));
    assert_eq!(good["content"], "408");
}
