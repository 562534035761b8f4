//! The OpenAPI document tells what requests are read for, and nothing else.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::{Doors, app, start};
use serde_json::{Map, Value, json};
use serve::openapi;

/// What the server is made of, as far as it has names of paths and fields.
const SOURCES: [&str; 7] = [
    include_str!("../src/lib.rs"),
    include_str!("../src/fields.rs"),
    include_str!("../src/chat.rs"),
    include_str!("../src/completions.rs"),
    include_str!("../src/embeddings.rs"),
    include_str!("../src/messages.rs"),
    include_str!("../src/responses.rs"),
];

/// All that stands between quotes, if every byte of it is fine.
fn quoted(fine: impl Fn(u8) -> bool + Copy) -> BTreeSet<&'static str> {
    let words = SOURCES.iter().flat_map(|source| source.split('"'));
    words.filter(|w| !w.is_empty() && w.bytes().all(fine)).collect()
}

/// The properties of a schema, those of schemas that it refers to among them.
fn properties(document: &Value, schema: &Value) -> Map<String, Value> {
    let mut all = Map::new();
    if let Some(at) = schema["$ref"].as_str() {
        all.extend(properties(document, document.pointer(&at[1..]).unwrap()));
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        all.extend(properties(document, part));
    }
    all.extend(schema["properties"].as_object().cloned().unwrap_or_default());
    all
}

/// The least that each path takes.
fn least(path: &str) -> Value {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    match path {
        "/v1/chat/completions" => json!({"messages": messages}),
        "/v1/completions" => json!({"prompt": "Hi"}),
        "/v1/responses" | "/v1/embeddings" => json!({"input": "Hi"}),
        _ => json!({"messages": messages, "max_tokens": 3}),
    }
}

#[test]
fn paths_are_those_of_the_server() {
    let server = start(1, 4, None);
    let document = openapi();
    let told: BTreeSet<&str> =
        document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let there = quoted(|b| b.is_ascii_lowercase() || b"/_.1".contains(&b));
    assert_eq!(told, there.into_iter().filter(|p| p.starts_with('/') && p.len() > 1).collect());
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let head = format!("{} {path} HTTP/1.1\r\nHost: localhost", method.to_uppercase());
            assert!(![404, 405].contains(&server.raw(&head, "").0), "{method} {path}");
        }
    }
    let (status, _, body) = server.raw("GET /openapi.json HTTP/1.1\r\nHost: localhost", "");
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, document));
}

/// A field is read if it can be wrong: it is told of exactly if it can.
#[test]
fn fields_are_those_that_are_read() {
    let document = openapi();
    let app = app(1, 4, &mut Doors::default());
    let words = quoted(|b| b.is_ascii_lowercase() || b == b'_');
    for (path, methods) in document["paths"].as_object().unwrap() {
        let schema = &methods["post"]["requestBody"]["content"]["application/json"]["schema"];
        if schema.is_null() {
            continue;
        }
        let told = properties(&document, schema);
        assert!(told.len() > 3, "{path}");
        assert_eq!(app.reads(path, least(path).to_string().as_bytes()), Ok(()));
        // What only goes with something else, and what may be anything.
        let mut base = least(path);
        let free = |name: &str| match name {
            "tool_choice" | "max_tokens" if path.ends_with("count_tokens") => true,
            "metadata" | "parallel_tool_calls" => path == "/v1/responses",
            "ignore_eos" => false,
            _ => false,
        };
        if path == "/v1/chat/completions" {
            base["logprobs"] = true.into();
        }
        let names: BTreeSet<&str> =
            words.iter().copied().chain(told.keys().map(String::as_str)).collect();
        for name in names {
            let wrong = [json!([[{"no": []}]]), json!(-3.5e300)].into_iter().any(|value| {
                let mut body = base.clone();
                body[name] = value;
                let error = app.reads(path, body.to_string().as_bytes()).err();
                error.is_some_and(|e| {
                    let param = e["error"]["param"].as_str().unwrap_or_default();
                    param == name
                        || param.starts_with(&format!("{name}."))
                        || param.starts_with(&format!("{name}["))
                })
            });
            let expected = told.contains_key(name) && !free(name);
            assert!(
                wrong == expected || free(name),
                "{path}: {name} is read: {wrong}; told: {expected}"
            );
        }
    }
}
