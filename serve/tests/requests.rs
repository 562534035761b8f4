//! Requests of every kind: whatever they hold, they are taken or refused, and what they may hold has an end.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, OnceLock};

use common::{Doors, Server, app, start};
use proptest::prelude::*;
use serde_json::{Value, json};
use serve::App;

const PATHS: [&str; 6] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
];

/// The least that each takes, with an end that is near.
fn least(path: &str) -> Value {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    match path {
        "/v1/chat/completions" => json!({"messages": messages, "max_tokens": 2}),
        "/v1/completions" => json!({"prompt": "Hi", "max_tokens": 2}),
        "/v1/embeddings" => json!({"input": "Hi"}),
        "/v1/responses" => json!({"input": "Hi", "max_output_tokens": 2}),
        _ => json!({"messages": messages, "max_tokens": 2}),
    }
}

/// Names of fields of any request.
const FIELDS: [&str; 42] = [
    "encoding_format",
    "dimensions",
    "messages",
    "prompt",
    "input",
    "system",
    "instructions",
    "tools",
    "tool_choice",
    "stream_options",
    "n",
    "stop",
    "max_tokens",
    "max_output_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "model",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "echo",
    "response_format",
    "priority",
    "ignore_eos",
    "repetition_penalty",
    "text",
    "include",
    "store",
    "truncation",
    "metadata",
    "stop_sequences",
    "thinking",
    "mcp_servers",
    "suffix",
    "best_of",
    "functions",
    "audio",
    "parallel_tool_calls",
];

/// What could stand in a request: words that mean something here more often than others.
fn anything() -> impl Strategy<Value = Value> {
    const WORDS: [&str; 24] = [
        "user",
        "assistant",
        "system",
        "tool",
        "text",
        "function",
        "auto",
        "none",
        "required",
        "any",
        "type",
        "role",
        "content",
        "name",
        "input_schema",
        "arguments",
        "tool_use",
        "tool_result",
        "function_call",
        "json_schema",
        "schema",
        "regex",
        "Hi",
        "{}",
    ];
    let word = || prop::sample::select(&WORDS[..]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..20).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((word(), inner), 0..5).prop_map(|pairs| pairs
                .into_iter()
                .map(|(k, v)| (k.to_string(), v))
                .collect::<Value>()),
        ]
    })
}

fn body(path: &str, fields: Vec<(&'static str, Value)>) -> Value {
    let mut body = least(path);
    for (name, value) in fields {
        body[name] = value;
    }
    body
}

fn fields() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    prop::collection::vec((prop::sample::select(&FIELDS[..]), anything()), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// What is wrong is told in words, and it is the client's.
    #[test]
    fn requests_are_taken_or_refused(path in prop::sample::select(&PATHS[..]), fields in fields()) {
        static APP: OnceLock<Arc<App>> = OnceLock::new();
        let app = APP.get_or_init(|| app(1, 4, &mut Doors::default()));
        if let Err(error) = app.reads(path, body(path, fields).to_string().as_bytes()) {
            let error = &error["error"];
            prop_assert_eq!(&error["type"], "invalid_request_error");
            prop_assert!(!error["message"].as_str().unwrap().is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is asked, somebody answers in JSON or events, and it is not the server's fault.
    #[test]
    fn no_request_is_the_servers_fault(path in prop::sample::select(&PATHS[..]), fields in fields()) {
        static SERVER: OnceLock<Server> = OnceLock::new();
        let server = SERVER.get_or_init(|| start(1, 80, None));
        let mut body = body(path, fields);
        // Nobody waits for a long answer.
        for name in ["max_tokens", "max_output_tokens", "max_completion_tokens"] {
            if body[name].as_u64().is_none_or(|n| n > 20) {
                body[name] = 2.into();
            }
        }
        let (status, _, text) = server.raw(&format!("POST {path} HTTP/1.1\r\nHost: localhost"), &body.to_string());
        prop_assert!(status < 500, "{}: {}", body, text);
        prop_assert!(serde_json::from_str::<Value>(&text).is_ok() || text.contains("data: "), "{}", text);
    }
}

#[test]
fn everything_has_an_end() {
    let app = app(1, 4, &mut Doors::default());
    let refused = |path: &str, body: String| {
        let error = app.reads(path, body.as_bytes()).unwrap_err();
        let text = |key: &str| error["error"][key].as_str().unwrap_or_default().to_string();
        (text("param"), text("message"))
    };
    for path in PATHS {
        // Depth, of what is read and what isn't.
        for deep in
            ["[".repeat(100_000), format!("{{\"a\":{}1{}}}", "[".repeat(5000), "]".repeat(5000))]
        {
            let (_, message) = refused(path, deep);
            assert!(message.contains("recursion limit"), "{message}");
        }
    }
    let hi = json!({"role": "user", "content": "Hi"});
    let tool = |i: usize| json!({"type": "function", "function": {"name": format!("f{i}")}});
    let many = |n: usize| json!({"messages": vec![hi.clone(); n], "max_tokens": 3}).to_string();
    assert_eq!(app.reads(PATHS[0], many(4096).as_bytes()), Ok(()));
    for path in [PATHS[0], PATHS[3]] {
        let (param, message) = refused(path, many(4097));
        assert!(param == "messages" && message.contains("4097"), "{message}");
    }
    let tools: Vec<Value> = (0..129).map(tool).collect();
    let (param, message) = refused(PATHS[0], json!({"messages": [hi], "tools": tools}).to_string());
    assert!(param == "tools" && message.contains("129"), "{message}");
    let names = |n: usize| vec!["x"; n];
    assert_eq!(
        refused(PATHS[0], json!({"messages": [hi], "stop": names(17)}).to_string()).0,
        "stop"
    );
    assert_eq!(
        refused(
            PATHS[3],
            json!({"messages": [hi], "max_tokens": 3, "stop_sequences": names(17)}).to_string()
        )
        .0,
        "stop_sequences"
    );
    assert_eq!(refused(PATHS[1], json!({"prompt": names(65)}).to_string()).0, "prompt");
    assert_eq!(refused(PATHS[1], json!({"prompt": "x", "n": 5}).to_string()).0, "n");
    assert_eq!(
        refused(
            PATHS[0],
            json!({"messages": [hi], "logprobs": true, "top_logprobs": 21}).to_string()
        )
        .0,
        "top_logprobs"
    );
}
