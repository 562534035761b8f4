//! Anthropic's messages and OpenAI's responses say what chat completions say, in their own forms.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Doors, open, start};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";

fn text_of<'a>(events: &'a [Value], kind: &str, key: &str) -> String {
    let deltas = events.iter().filter(|e| e["type"] == kind);
    deltas.map(|e| e.pointer(key).and_then(|v: &'a Value| v.as_str()).unwrap_or_default()).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

/// The same conversation in three forms; all of them end at 30 tokens, or at "and".
fn conversations(seed: u64) -> [Value; 3] {
    let chat = json!({
        "messages": [{"role": "system", "content": "So."}, {"role": "user", "content": "What?"},
            {"role": "assistant", "content": "That."}, {"role": "user", "content": "said and"}],
        "max_tokens": 30, "temperature": 0.9, "seed": seed,
    });
    let messages = json!({
        "system": [{"type": "text", "text": "So.", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": "What?"},
            {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
            {"role": "user", "content": [{"type": "text", "text": "said "}, {"type": "text", "text": "and"}]}],
        "max_tokens": 30, "temperature": 0.9, "seed": seed,
    });
    let responses = json!({
        "instructions": "So.",
        "input": [{"role": "user", "content": "What?"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "That."}]},
            {"role": "user", "content": [{"type": "input_text", "text": "said and"}]}],
        "max_output_tokens": 30, "temperature": 0.9, "seed": seed,
    });
    [chat, messages, responses]
}

#[test]
fn three_forms_have_one_answer() {
    let server = start(2, 8, None);
    for seed in 0..4 {
        let [chat, mut messages, mut responses] = conversations(seed);
        let whole = server.ask(CHAT, chat);
        let said = whole["choices"][0]["message"]["content"].as_str().unwrap();
        let (prompt, generated) =
            (&whole["usage"]["prompt_tokens"], &whole["usage"]["completion_tokens"]);
        let cut = whole["choices"][0]["finish_reason"] == "length";

        let counted = server.ask("/v1/messages/count_tokens", messages.clone());
        assert_eq!(&counted["input_tokens"], prompt);
        let answer = server.ask(MESSAGES, messages.clone());
        assert_eq!(
            (&answer["type"], &answer["content"]),
            (&json!("message"), &json!([{"type": "text", "text": said}]))
        );
        assert_eq!(answer["stop_reason"], if cut { "max_tokens" } else { "end_turn" });
        let usage = &answer["usage"];
        let read = usage["input_tokens"].as_u64().unwrap()
            + usage["cache_read_input_tokens"].as_u64().unwrap();
        assert_eq!((&json!(read), &usage["output_tokens"]), (prompt, generated));
        messages["stream"] = true.into();
        let events = server.named(MESSAGES, &messages);
        assert_eq!(text_of(&events, "content_block_delta", "/delta/text"), said);
        assert_eq!(
            kinds(&events),
            [
                "message_start",
                "ping",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop"
            ]
        );
        assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], answer["stop_reason"]);

        let answer = server.ask(RESPONSES, responses.clone());
        assert_eq!(answer["output"][0]["content"][0]["text"], said);
        assert_eq!(answer["status"], if cut { "incomplete" } else { "completed" });
        assert_eq!(
            (&answer["usage"]["input_tokens"], &answer["usage"]["output_tokens"]),
            (prompt, generated)
        );
        assert_eq!((&answer["instructions"], &answer["temperature"]), (&json!("So."), &json!(0.9)));
        responses["stream"] = true.into();
        let events = server.named(RESPONSES, &responses);
        assert_eq!(text_of(&events, "response.output_text.delta", "/delta"), said);
        let last = if cut { "response.incomplete" } else { "response.completed" };
        assert_eq!(
            kinds(&events),
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                last
            ]
        );
        let numbers: Vec<u64> =
            events.iter().map(|e| e["sequence_number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
        let output = |e: &Value| json!([e["output"][0]["content"], e["usage"]["total_tokens"]]);
        assert_eq!(output(&events.last().unwrap()["response"]), output(&answer));
    }
}

#[test]
fn an_answer_can_be_begun_for_the_assistant() {
    let server = start(1, 4, None);
    let turns =
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "what is "}]);
    let body = json!({"messages": turns, "max_tokens": 9, "seed": 3});
    let mut chat = body.clone();
    chat["continue_final_message"] = true.into();
    let text = server.ask(MESSAGES, body)["content"][0]["text"].clone();
    assert_eq!(text, server.ask(CHAT, chat)["choices"][0]["message"]["content"]);
}

#[test]
fn a_stop_string_is_told_where_it_is_asked_for() {
    let server = start(1, 8, None);
    let [_, mut messages, _] = conversations(1);
    let said = server.ask(MESSAGES, messages.clone());
    let said = said["content"][0]["text"].as_str().unwrap();
    let stop: String = said.chars().skip(3).take(2).collect();
    messages["stop_sequences"] = json!([stop]);
    let answer = server.ask(MESSAGES, messages);
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("stop_sequence"), &json!(stop))
    );
    assert_eq!(answer["content"][0]["text"], said.split(&stop).next().unwrap());
}

#[test]
fn tools_are_called_and_their_results_read() {
    let server = open(1, 8, Doors { calls: true, ..Doors::default() });
    let schema = json!({"type": "object", "properties": {"expression": {"type": "string"}}});
    let mut messages = json!({
        "max_tokens": 100, "messages": [{"role": "user", "content": "What is 6*7?"}],
        "tools": [{"name": "calculator", "description": "Calculates.", "input_schema": schema}],
    });
    let answer = server.ask(MESSAGES, messages.clone());
    assert_eq!(answer["stop_reason"], "tool_use");
    let call = &answer["content"][0];
    assert_eq!(
        (&call["type"], &call["name"], &call["input"]),
        (&json!("tool_use"), &json!("calculator"), &json!({"expression": "6*7"}))
    );
    messages["stream"] = true.into();
    let events = server.named(MESSAGES, &messages);
    let arguments = text_of(&events, "content_block_delta", "/delta/partial_json");
    assert_eq!(serde_json::from_str::<Value>(&arguments).unwrap(), call["input"]);
    messages["stream"] = false.into();
    let counted = |messages: &Value| {
        server.ask("/v1/messages/count_tokens", messages.clone())["input_tokens"].as_u64().unwrap()
    };
    let before = counted(&messages);
    let turns = messages["messages"].as_array_mut().unwrap();
    turns.push(json!({"role": "assistant", "content": answer["content"]}));
    turns.push(json!({"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "42"}]}]}));
    assert!(counted(&messages) > before + 10);

    let mut responses = json!({
        "input": "What is 6*7?",
        "tools": [{"type": "function", "name": "calculator", "parameters": schema}],
    });
    let answer = server.ask(RESPONSES, responses.clone());
    let call = &answer["output"][0];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&call["type"], &arguments),
        (&json!("function_call"), &json!({"expression": "6*7"}))
    );
    responses["stream"] = true.into();
    let events = server.named(RESPONSES, &responses);
    assert_eq!(
        text_of(&events, "response.function_call_arguments.delta", "/delta"),
        call["arguments"].as_str().unwrap()
    );
    responses["stream"] = false.into();
    let first = answer["usage"]["input_tokens"].as_u64().unwrap();
    responses["input"] = json!([{"role": "user", "content": "What is 6*7?"}, call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "42"}]);
    assert!(
        server.ask(RESPONSES, responses)["usage"]["input_tokens"].as_u64().unwrap() > first + 10
    );
}

#[test]
fn what_is_wrong_is_named_in_the_form_of_who_asks() {
    let server = start(1, 4, None);
    let hi = json!([{"role": "user", "content": "Hi"}]);
    let image = json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]);
    for (body, named) in [
        (json!({"messages": hi}), "max_tokens"),
        (json!({"max_tokens": 3}), "messages"),
        (json!({"max_tokens": 3, "messages": []}), "messages"),
        (json!({"max_tokens": 0, "messages": hi}), "max_tokens"),
        (json!({"max_tokens": 3, "messages": image}), "messages[0].content[0]"),
        (json!({"max_tokens": 3, "messages": [{"role": "robot", "content": ""}]}), "messages[0]"),
        (
            json!({"max_tokens": 3, "messages": [hi[0], {"role": "assistant", "content": [
                {"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]}),
            "messages",
        ),
        (json!({"max_tokens": 3, "messages": hi, "stop_sequences": [""]}), "stop_sequences"),
        (json!({"max_tokens": 3, "messages": hi, "temperature": -1}), "temperature"),
        (json!({"max_tokens": 3, "messages": hi, "tools": [{"name": "f"}]}), "tools[0]"),
        (
            json!({"max_tokens": 3, "messages": hi, "tools": [{"type": "bash_20250124", "name": "bash"}]}),
            "tools[0]",
        ),
        (json!({"max_tokens": 3, "messages": hi, "tool_choice": "any"}), "tool_choice"),
    ] {
        let (status, answer) = server.post(MESSAGES, &body);
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.starts_with(&format!("{named}:")), "{body}: {answer}");
        assert_eq!(
            (&answer["type"], &answer["error"]["type"]),
            (&json!("error"), &json!("invalid_request_error"))
        );
    }
    let (status, answer) =
        server.post(MESSAGES, &json!({"model": "claude", "max_tokens": 3, "messages": hi}));
    assert_eq!((status, &answer["error"]["type"]), (404, &json!("not_found_error")));
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 3}), "input"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0]"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0]",
        ),
        (json!({"input": "Hi", "max_output_tokens": 0}), "max_output_tokens"),
        (json!({"input": "Hi", "max_output_tokens": "all"}), "max_output_tokens"),
        (json!({"input": "Hi", "previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"input": "Hi", "store": true}), "store"),
        (json!({"input": "Hi", "tools": [{"type": "web_search"}]}), "tools[0]"),
        (json!({"input": "Hi", "include": ["file_search_call.results"]}), "include"),
        (json!({"input": "Hi", "truncation": "auto"}), "truncation"),
    ] {
        let (status, answer) = server.post(RESPONSES, &body);
        assert_eq!(
            (status, answer["error"]["param"].as_str()),
            (400, Some(param)),
            "{body}: {answer}"
        );
    }
}

#[test]
fn texts_are_vectors_of_length_one_whoever_else_asks() {
    let server = start(2, 8, None);
    let ask = |body: Value| server.ask("/v1/embeddings", body);
    let texts = ["what is said", "what is not", &"said and ".repeat(60)];
    let alone: Vec<Value> = texts
        .iter()
        .map(|text| ask(json!({"input": text}))["data"][0]["embedding"].clone())
        .collect();
    let [chat, _, _] = conversations(1);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| server.ask(CHAT, chat.clone()));
        }
        let together = ask(json!({"input": texts}));
        for (i, alone) in alone.iter().enumerate() {
            assert_eq!(
                (&together["data"][i]["embedding"], &together["data"][i]["index"]),
                (alone, &json!(i))
            );
            let numbers: Vec<f64> =
                alone.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            assert!((numbers.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
        }
        assert!(together["usage"]["prompt_tokens"].as_u64().unwrap() > 60);
    });
    assert_ne!(alone[0], alone[1]);
    // f32 numbers in base64: 4 bytes each, 4 letters for 3 bytes.
    let encoded = ask(json!({"input": texts[0], "encoding_format": "base64"}));
    let letters = encoded["data"][0]["embedding"].as_str().unwrap().len();
    assert_eq!(letters, (4 * alone[0].as_array().unwrap().len()).div_ceil(3) * 4);
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": ["a", 3]}), "input"),
        (json!({"input": [[1], []]}), "input[1]"),
        (json!({"input": [100_000]}), "input"),
        (json!({"input": "x ".repeat(5000)}), "input"),
        (json!({"input": "Hi", "dimensions": 8}), "dimensions"),
        (json!({"input": "Hi", "encoding_format": "int8"}), "encoding_format"),
    ] {
        let (status, answer) = server.post("/v1/embeddings", &body);
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some(param)), "{answer}");
    }
}
