//! Requests to the server, read and not answered.

use std::sync::{Arc, OnceLock};

use compute::Cpu;
use data::encode::{SPECIAL, special_tokens};
use model::config::{Config, Sizes};
use model::generator::Options;
use model::init::{Init, initialise};
use model::template::{CHATML, ChatTemplate};
use model::tokenizer::{Tokenizer, TrainOptions};
use model::transformer::Transformer;
use serde_json::{Value, json};
use serve::{App, Served, Settings};
use tools::assistant::Assistant;

/// Where requests go; the first byte chooses.
const PATHS: [&str; 6] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
];

/// A server whose model nobody asks.
fn app() -> Option<Arc<App>> {
    let options = TrainOptions {
        vocab_size: 300,
        special_tokens: SPECIAL.map(String::from).to_vec(),
        ..TrainOptions::default()
    };
    let tokenizer = Tokenizer::train(["some words"; 3], &options, &mut |_| {}).ok()?;
    let config = Config::qwen3(Sizes {
        vocab: 300,
        width: 4,
        ffn: 6,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 2,
        context: 64,
    });
    let model = Transformer::new(config.clone(), initialise(&config, &Init::default(), 0));
    let template = ChatTemplate::new(CHATML, special_tokens(&tokenizer)).ok();
    let options = Options::new(&config, 1);
    let cpu = Arc::new(Cpu::new(1));
    let assistant =
        Assistant::new(Arc::new(model), Arc::new(tokenizer), template, cpu, options).ok()?;
    let model = Served { name: "m".into(), hash: "0".into(), assistant, engine: Value::Null };
    Some(App::new(model, Vec::new(), Settings::default()))
}

/// A request of any kind: it is taken, or told what is wrong with it.
pub fn requests(bytes: &[u8]) {
    static APP: OnceLock<Option<Arc<App>>> = OnceLock::new();
    let (Some(app), [first, body @ ..]) = (APP.get_or_init(app), bytes) else { return };
    if let Err(error) = app.reads(PATHS[usize::from(*first) % PATHS.len()], body) {
        let of = &error["error"];
        assert!(of["message"].as_str().is_some_and(|m| !m.is_empty()), "{error}");
        assert!(of["type"] == "invalid_request_error", "{error}");
    }
}

/// Sound ones, of all fields.
pub fn seeds() -> Vec<Vec<u8>> {
    let schema = json!({"type": "object", "properties": {"x": {"type": "string"}}});
    let function = json!({"name": "f", "description": "It.", "parameters": schema});
    let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": \"1\"}"}});
    let drawn = json!({
        "model": "m", "temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": 7, "stream": true,
    });
    let with = |more: Value| {
        let mut body = drawn.as_object().cloned().unwrap_or_default();
        body.extend(more.as_object().cloned().unwrap_or_default());
        Value::Object(body)
    };
    let chat = with(json!({
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "So."}]}, {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": null, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "2"},
        ],
        "tools": [{"type": "function", "function": function}], "tool_choice": "auto", "n": 2, "max_tokens": 9, "stop": ["."],
        "logprobs": true, "top_logprobs": 3, "logit_bias": {"5": -1.5}, "stream_options": {"include_usage": true},
        "repetition_penalty": 1.1,
    }));
    let form = with(json!({
        "messages": [{"role": "user", "content": "Hi"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }));
    let text = with(json!({"prompt": ["a", "b"], "max_tokens": 3, "logprobs": 1, "echo": true}));
    let responses = with(json!({
        "instructions": "So.", "max_output_tokens": 9, "include": ["message.output_text.logprobs"],
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}, {"type": "reasoning", "content": []},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "2"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": schema}], "text": {"format": {"type": "text"}},
    }));
    let messages = with(json!({
        "system": [{"type": "text", "text": "So."}], "max_tokens": 9, "stop_sequences": ["."],
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm", "signature": ""},
                {"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "2"}]},
        ],
        "tools": [{"name": "f", "input_schema": schema}], "tool_choice": {"type": "auto"},
    }));
    let kinds = [
        (0u8, chat),
        (0, form),
        (1, text),
        (2, responses),
        (3, messages.clone()),
        (4, messages),
        (5, json!({"input": ["a", "b"], "encoding_format": "base64", "model": "m"})),
    ];
    let seed = |(kind, body): (u8, Value)| [&[kind], body.to_string().as_bytes()].concat();
    kinds.into_iter().map(seed).collect()
}
