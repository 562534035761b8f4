//! The server by its own door: answers are the same whoever else asks, and what is wrong is named.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use common::{Doors, Server, app, open, start};
use proptest::prelude::*;
use serde_json::{Value, json};
use serve::{Keys, PerMinute, Receipt, ReplayError};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn question(i: usize) -> Value {
    let text = format!("What is {}?", "said and ".repeat(i % 9));
    let mut body = json!({
        "model": "tiny", "seed": i, "max_tokens": 20 + i, "temperature": 0.8,
        "messages": [{"role": "system", "content": "So."}, {"role": "user", "content": text}],
    });
    if i.is_multiple_of(3) {
        body["temperature"] = 0.into();
    }
    body
}

/// What of an answer the request alone decides.
fn choices(answer: &Value) -> String {
    json!([answer["choices"], answer["seed"], answer["usage"]["completion_tokens"]]).to_string()
}

#[test]
fn the_same_request_has_the_same_answer_whoever_else_asks() {
    let (one, two) = (start(1, 40, None), start(2, 40, None));
    let alone: Vec<String> = (0..16).map(|i| choices(&one.ask(CHAT, question(i)))).collect();
    assert!(alone.windows(2).all(|pair| pair[0] != pair[1]));
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let two = &two;
            let asked: Vec<_> = (0..16)
                .map(|i| scope.spawn(move || choices(&two.ask(CHAT, question(i)))))
                .collect();
            for (i, asked) in asked.into_iter().enumerate() {
                assert_eq!(asked.join().unwrap(), alone[i], "{i}");
            }
        });
    }
}

#[test]
fn streams_say_the_same() {
    let server = start(2, 40, None);
    for i in 0..6 {
        let mut body = question(i);
        body["logprobs"] = true.into();
        body["top_logprobs"] = 2.into();
        let whole = server.ask(CHAT, body.clone());
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let chunks = server.stream(CHAT, &body);
        let delta = |key: &str| -> String {
            chunks.iter().filter_map(|c| c["choices"][0]["delta"][key].as_str()).collect()
        };
        assert_eq!(
            (delta("content"), delta("role")),
            (
                whole["choices"][0]["message"]["content"].as_str().unwrap().into(),
                "assistant".into()
            )
        );
        let told: Vec<Value> = (chunks.iter())
            .filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array().cloned())
            .flatten()
            .collect();
        assert_eq!(json!(told), whole["choices"][0]["logprobs"]["content"]);
        assert_eq!(
            chunks.last().unwrap()["usage"]["completion_tokens"],
            whole["usage"]["completion_tokens"]
        );
        let reasons: Vec<&Value> = chunks
            .iter()
            .map(|c| &c["choices"][0]["finish_reason"])
            .filter(|r| !r.is_null())
            .collect();
        assert_eq!(reasons, [&whole["choices"][0]["finish_reason"]]);
    }
    let text = json!({"prompt": ["what is", "said"], "n": 2, "max_tokens": 8, "seed": 3, "temperature": 1.5, "logprobs": 1});
    let whole = server.ask(TEXT, text.clone());
    assert_eq!(whole["choices"].as_array().unwrap().len(), 4);
    let mut body = text;
    body["stream"] = true.into();
    let chunks = server.stream(TEXT, &body);
    for i in 0..4 {
        let said: String = (chunks.iter())
            .map(|c| &c["choices"][0])
            .filter(|c| c["index"] == i)
            .filter_map(|c| c["text"].as_str())
            .collect();
        assert_eq!(said, whole["choices"][i]["text"].as_str().unwrap());
    }
    // Side by side.
    let indices: Vec<u64> =
        chunks.iter().filter_map(|c| c["choices"][0]["index"].as_u64()).collect();
    assert!(!indices[4..].is_sorted(), "{indices:?}");
}

#[test]
fn what_is_wrong_is_named() {
    let server = start(1, 4, None);
    let hi = json!([{"role": "user", "content": "Hi"}]);
    for (body, param) in [
        (json!({}), "messages"),
        (json!({"messages": "Hi"}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "robot", "content": ""}]}), "messages[0]"),
        (json!({"messages": hi, "temperature": -1}), "temperature"),
        (json!({"messages": hi, "temperature": "hot"}), "temperature"),
        (json!({"messages": hi, "top_p": 0}), "top_p"),
        (json!({"messages": hi, "n": 5}), "n"),
        (json!({"messages": hi, "max_tokens": 0}), "max_tokens"),
        (json!({"messages": hi, "max_tokens": 100_000}), "messages"),
        (json!({"messages": hi, "stop": [""]}), "stop"),
        (json!({"messages": hi, "logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"messages": hi, "top_logprobs": 3}), "top_logprobs"),
        (json!({"messages": hi, "presence_penalty": 3}), "presence_penalty"),
        (json!({"messages": hi, "response_format": {"type": "poem"}}), "response_format"),
        (
            json!({"messages": hi, "response_format": {"type": "regex", "regex": "("}}),
            "response_format",
        ),
        (
            json!({"messages": hi, "response_format": {"type": "json_schema", "json_schema": {}}}),
            "response_format",
        ),
        (json!({"messages": hi, "tool_choice": "required"}), "tool_choice"),
        (json!({"messages": hi, "priority": -1}), "priority"),
        (json!({"messages": hi, "tools": 3}), "tools"),
    ] {
        let (status, answer) = server.post(CHAT, &body);
        assert_eq!(
            (status, answer["error"]["param"].as_str()),
            (400, Some(param)),
            "{body}: {answer}"
        );
    }
    let (status, answer) = server.post(CHAT, &json!({"model": "gpt", "messages": hi}));
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
    let (status, answer) = server.post(TEXT, &json!({"prompt": [1000]}));
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("prompt")), "{answer}");
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(200_000)}]});
    assert_eq!(server.post(CHAT, &long).0, 413);
    let local = "HTTP/1.1\r\nHost: localhost";
    let status = |head: &str, body: &str| {
        let (status, _, body) = server.raw(head, body);
        assert!(serde_json::from_str::<Value>(&body).is_ok(), "{head}: {body}");
        status
    };
    assert_eq!(status(&format!("POST {CHAT} {local}"), "{"), 400);
    assert_eq!(status(&format!("POST {CHAT} {local}"), "[]"), 400);
    assert_eq!(status(&format!("GET {CHAT} {local}"), ""), 405);
    assert_eq!(status(&format!("GET /v1/nothing {local}"), ""), 404);
    assert_eq!(status(&format!("GET /v1/models {local}"), ""), 200);
    assert_eq!(status("GET /v1/models HTTP/1.1\r\nHost: evil.example", ""), 403);
    assert_eq!(status("GET /v1/models HTTP/1.1\r\nHost: models.example:80", ""), 200);
    assert_eq!(status(&format!("GET /v1/models {local}\r\nOrigin: http://evil.example"), ""), 403);
    let (_, _, metrics) = server.raw(&format!("GET /metrics {local}"), "");
    assert!(metrics.contains("vllm:num_requests_running 0"), "{metrics}");
}

/// Random weights say anything, so what they say in a form is due to the form.
#[test]
fn answers_keep_to_their_form() {
    let server = start(2, 40, None);
    let said = |body: &Value| {
        let answer = server.ask(CHAT, body.clone());
        let choice = &answer["choices"][0];
        assert_ne!(choice["finish_reason"], "length", "{answer}");
        choice["message"].clone()
    };
    for i in 0..8 {
        let mut body = question(i);
        body["max_tokens"] = 300.into();
        body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "type": "object", "properties": {"yes": {"type": "boolean"}, "of": {"enum": ["a", "bc"]}},
            "required": ["yes", "of"], "additionalProperties": false
        }}});
        let content = said(&body)["content"].as_str().unwrap().to_string();
        let value: Value = serde_json::from_str(&content).unwrap();
        assert!(value["yes"].is_boolean() && value["of"].is_string(), "{content}");
        body["response_format"] = json!({"type": "regex", "regex": "[0-9]{3}(a|b)"});
        let content = said(&body)["content"].as_str().unwrap().to_string();
        assert!(content.len() == 4 && content[..3].parse::<u32>().is_ok(), "{content}");
        body.as_object_mut().unwrap().remove("response_format");

        let function = |name: &str| {
            json!({"type": "function", "function": {"name": name, "parameters": {
                "type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false
            }}})
        };
        body["tools"] = json!([function("one"), function("other")]);
        for choice in
            [json!("required"), json!({"type": "function", "function": {"name": "other"}})]
        {
            body["tool_choice"] = choice.clone();
            let message = said(&body);
            let call = &message["tool_calls"][0]["function"];
            assert!(choice == "required" || call["name"] == "other", "{message}");
            let arguments = call["arguments"].as_str().unwrap();
            assert!([1, 2].map(|n| json!({"n": n}).to_string()).contains(&arguments.to_string()));
            // A stream has the same call.
            body["stream"] = true.into();
            let chunks = server.stream(CHAT, &body);
            let calls: Vec<&Value> = chunks
                .iter()
                .map(|c| &c["choices"][0]["delta"]["tool_calls"][0])
                .filter(|c| !c.is_null())
                .collect();
            assert_eq!(
                (calls.len(), &calls[0]["function"], &calls[0]["index"]),
                (1, call, &json!(0))
            );
            body["stream"] = false.into();
        }
        // Types inside of others, as clients tell them.
        body["tools"] = json!([{"type": "function", "function": {"name": "one", "parameters": {
            "$defs": {"N": {"enum": [1, 2]}}, "type": "object", "properties": {"n": {"$ref": "#/$defs/N"}},
            "required": ["n"], "additionalProperties": false
        }}}]);
        body["tool_choice"] = "required".into();
        let call = &said(&body)["tool_calls"][0]["function"]["arguments"];
        assert!(["{\"n\":1}", "{\"n\":2}"].contains(&call.as_str().unwrap()), "{call}");
        body["tools"][0]["function"]["parameters"]["properties"]["n"]["$ref"] = "#/gone".into();
        let (status, answer) = server.post(CHAT, &body);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!("tool_choice")), "{answer}");
    }
}

#[test]
fn models_of_different_kinds_answer_side_by_side() {
    let server = open(2, 8, Doors { both: true, ..Doors::default() });
    let alone = [start(2, 8, None), open(2, 8, Doors { calls: true, ..Doors::default() })];
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (server, alone) = (&server, &alone);
            scope.spawn(move || {
                let expected = alone[i % 2].ask(CHAT, question(i));
                let mut body = question(i);
                body["model"] = ["tiny", "caller"][i % 2].into();
                let answer = server.ask(CHAT, body);
                assert_eq!(choices(&answer), choices(&expected));
            });
        }
    });
    let names = server.raw("GET /v1/models HTTP/1.1\r\nHost: localhost", "").2;
    assert!(names.contains("tiny") && names.contains("caller"), "{names}");
}

#[test]
fn answers_can_be_made_again_from_their_receipts() {
    let (server, other) = (start(2, 8, None), app(1, 8, &mut Doors::default()));
    let mut body = question(3);
    body["temperature"] = 1.2.into();
    body.as_object_mut().unwrap().remove("seed");
    body["n"] = 2.into();
    body["receipt"] = "full".into();
    let answer = server.ask(CHAT, body.clone());
    let receipt = Receipt::read(&answer.to_string()).unwrap();
    let replayed = serve::replay(&other, &receipt, None).unwrap();
    assert_eq!(replayed.differences, [""; 0]);
    let said = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["message"]["content"].as_str().unwrap());
    assert_eq!(replayed.answers, said.collect::<Vec<_>>());

    // The last chunk of each streamed answer has one, too; whoever kept the request needs no more.
    body["receipt"] = "short".into();
    body["stream"] = true.into();
    let chunks = server.stream(CHAT, &body);
    let last = |c: &&Value| !c["receipt"].is_null() && c["choices"][0]["index"] == 1;
    let last = chunks.iter().find(last).unwrap();
    let receipt = Receipt::read(&last.to_string()).unwrap();
    assert!(matches!(serve::replay(&other, &receipt, None), Err(ReplayError::NoRequest)));
    let replayed = serve::replay(&other, &receipt, Some(body.to_string().into_bytes())).unwrap();
    assert_eq!((replayed.differences.len(), replayed.answers.len()), (0, 1));

    // Other forms have them as well.
    for (path, body) in [
        ("/v1/responses", json!({"input": "Hi", "max_output_tokens": 9, "receipt": "full"})),
        (
            "/v1/messages",
            json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "receipt": "full"}),
        ),
    ] {
        let answer = server.ask(path, body);
        let receipt = Receipt::read(&answer.to_string()).unwrap();
        let replayed = serve::replay(&other, &receipt, None).unwrap();
        assert_eq!(replayed.differences, [""; 0], "{path}");
        assert!(
            answer.to_string().contains(&Value::from(replayed.answers[0].as_str()).to_string())
        );
    }

    let texts = json!({"input": ["Hi", "there"], "receipt": "full"});
    let mut vectors = server.ask("/v1/embeddings", texts);
    for different in [0, 1] {
        let receipt = Receipt::read(&vectors.to_string()).unwrap();
        let replayed = serve::replay(&other, &receipt, None).unwrap();
        assert_eq!(replayed.differences.len(), different, "{:?}", replayed.differences);
        vectors["receipt"]["answers"][1]["blake3"] = "1".into();
    }

    // What isn't the same is told.
    let mut forged = last["receipt"].clone();
    forged["model_blake3"] = "1".into();
    forged["answers"][0]["seed"] = 5.into();
    let receipt = Receipt::read(&forged.to_string()).unwrap();
    body["messages"][0]["content"] = "Other.".into();
    let replayed = serve::replay(&other, &receipt, Some(body.to_string().into_bytes())).unwrap();
    let told = replayed.differences.join("\n");
    for what in ["request", "model", "prompt", "answer 1"] {
        assert!(told.contains(what), "{what}: {told}");
    }
    assert!(Receipt::read("{}").is_err());
}

/// As lm-evaluation-harness asks for the likelihood of a continuation.
#[test]
fn prompts_are_echoed() {
    let server = start(2, 8, None);
    let ask = |prompt: Value, max: u32| {
        let body = json!({"prompt": prompt, "max_tokens": max, "temperature": 0, "logprobs": 1, "echo": true});
        server.ask(TEXT, body)["choices"][0].clone()
    };
    let whole = ask("what is said".into(), 4);
    assert!(whole["text"].as_str().unwrap().starts_with("what is said"));
    let told = |choice: &Value, key: &str| choice["logprobs"][key].as_array().unwrap().clone();
    let (tokens, own) = (told(&whole, "tokens"), told(&whole, "token_logprobs"));
    assert!(own[0].is_null() && own[1..].iter().all(|p| p.as_f64().unwrap() <= 0.0));
    let text: String = tokens.iter().filter_map(Value::as_str).collect();
    assert!(text.ends_with(whole["text"].as_str().unwrap()));
    let nothing = ask("what is said".into(), 0);
    let n = tokens.len() - 4;
    assert_eq!(told(&nothing, "token_logprobs"), own[..n]);
    // The answer's tokens as part of a prompt are as likely as they were as an answer.
    let again = ask(json!(whole["text"]), 0);
    if told(&again, "tokens") == tokens {
        assert_eq!(told(&again, "token_logprobs"), own);
    }
}

#[test]
fn keys_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    let key = Keys::add(&path, "Ann").unwrap();
    let server = start(1, 4, Some(Keys::read(&path, PerMinute::default()).unwrap()));
    let get = |path: &str, key: &str| {
        server
            .raw(
                &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}"),
                "",
            )
            .0
    };
    assert_eq!(
        (get("/v1/models", &key), get("/v1/models", "hg-0"), get("/metrics", "")),
        (200, 401, 401)
    );
    assert_eq!(get("/health", ""), 200);
}

#[test]
fn too_many_are_told_to_come_again_and_who_leaves_makes_room() {
    let server = start(1, 1, None);
    let mut body = question(0);
    body["max_tokens"] = 400.into();
    body["stream"] = true.into();
    let body = body.to_string();
    let head = "Host: localhost";
    let mut first = TcpStream::connect(server.at).unwrap();
    write!(first, "POST {CHAT} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .unwrap();
    let mut some = [0; 200];
    first.read_exact(&mut some).unwrap();
    let (status, headers, answer) = server.raw(&format!("POST {CHAT} HTTP/1.1\r\n{head}"), &body);
    // It may have ended already: then there is room.
    assert!(status == 200 || headers.contains("retry-after: 1") && status == 503, "{answer}");
    drop(first);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while server.post(CHAT, &question(1)).0 != 200 {
        assert!(std::time::Instant::now() < until, "the place of who left is free again");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the fields hold, the answer is JSON, and a 5xx is nobody's.
    #[test]
    fn no_request_is_the_servers_fault(field in 0..12usize, value in prop_oneof![
        any::<i64>().prop_map(Value::from), any::<f64>().prop_map(Value::from), ".{0,20}".prop_map(Value::from),
        Just(json!([])), Just(json!({})), Just(json!([[1]])), Just(json!({"a": [null]})), Just(json!(true)),
    ]) {
        static SERVER: std::sync::OnceLock<Server> = std::sync::OnceLock::new();
        let server = SERVER.get_or_init(|| start(1, 8, None));
        let names = ["messages", "temperature", "top_p", "top_k", "n", "stop", "seed", "logit_bias", "tools", "max_tokens", "stream_options", "logprobs"];
        let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3});
        body[names[field]] = value;
        let (status, answer) = server.post(CHAT, &body);
        prop_assert!(status < 500, "{}: {}", body, answer);
    }
}
