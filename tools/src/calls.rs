//! The forms in which models write calls of tools. A model's chat template shows which one it learned.

mod pythonic;
mod xml;

use model::message::ToolCall;
use serde_json::{Map, Value, json};

use crate::grammar::bounded;

/// A form of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Of Hermes and Qwen: `<tool_call>{"name": …, "arguments": …}</tool_call>`.
    Tags,
    /// Of Qwen3-Coder: `<tool_call><function=…><parameter=…>…</parameter></function></tool_call>`.
    Xml,
    /// Of Llama 3, the whole message: `{"name": …, "parameters": …}`, perhaps after `<|python_tag|>`.
    Llama,
    /// Of Mistral: `[TOOL_CALLS][{"name": …, "arguments": …}]`, later `[TOOL_CALLS]name[ARGS]{…}`.
    Mistral,
    /// Of Llama 4, the whole message: `[name(key="value"), …]`, perhaps after `<|python_start|>`.
    Pythonic,
}

impl Format {
    /// The form that a chat template, Jinja's source, writes.
    pub fn of(template: &str) -> Format {
        let has = |text: &str| template.contains(text);
        if has("<tool_call>") && has("<function=") {
            Format::Xml
        } else if has("<tool_call>") {
            Format::Tags
        } else if has("[TOOL_CALLS]") {
            Format::Mistral
        } else if has("<|python_start|>") || has("func_name1(") {
            Format::Pythonic
        } else if has("<|python_tag|>") || has("\"parameters\": ") {
            Format::Llama
        } else {
            Format::Tags
        }
    }

    /// What begins a call.
    pub fn open(self) -> &'static str {
        match self {
            Format::Tags | Format::Xml => "<tool_call>",
            Format::Llama => "<|python_tag|>",
            Format::Mistral => "[TOOL_CALLS]",
            Format::Pythonic => "<|python_start|>",
        }
    }

    /// What ends it, if it isn't the end of the message.
    pub fn close(self) -> Option<&'static str> {
        match self {
            Format::Tags | Format::Xml => Some("</tool_call>"),
            Format::Pythonic => Some("<|python_end|>"),
            Format::Llama | Format::Mistral => None,
        }
    }

    /// What begins a message that is a call from its first character on.
    pub fn bare(self) -> Option<char> {
        match self {
            Format::Tags | Format::Xml | Format::Mistral => None,
            Format::Llama => Some('{'),
            Format::Pythonic => Some('['),
        }
    }

    /// The calls in what stands between; `None` if it can't be read. `tools`: definitions in OpenAI's layout, for types
    /// that the form doesn't show.
    pub fn read(self, body: &str, tools: Option<&Value>) -> Option<Vec<ToolCall>> {
        let body = body.trim();
        match self {
            Format::Xml if body.starts_with("<function=") => xml::read(body, tools),
            Format::Tags | Format::Xml => Some(vec![serde_json::from_str(body).ok()?]),
            Format::Llama => several(body),
            Format::Mistral => match body.starts_with('[') {
                true => serde_json::from_str(body).ok().filter(|calls: &Vec<_>| !calls.is_empty()),
                false => named(body),
            },
            Format::Pythonic => pythonic::read(body),
        }
    }

    /// Rules of a grammar, in Lark's syntax as llguidance reads it, whose `call` is a call of one of these tools, by
    /// name and schema of arguments.
    pub fn rules(self, tools: &[(&str, Value)]) -> String {
        let json = |key: &str| {
            let call = |(t, (name, arguments)): (usize, &(&str, Value))| {
                let place = format!("/anyOf/{t}/properties/{key}");
                json!({
                    "type": "object",
                    "properties": {"name": {"const": name}, key: moved(arguments, &place)},
                    "required": ["name", key],
                    "additionalProperties": false,
                })
            };
            let calls: Vec<Value> = tools.iter().enumerate().map(call).collect();
            format!("call: %json {}\n", bounded(json!({"anyOf": calls})))
        };
        match self {
            Format::Tags | Format::Mistral => json("arguments"),
            Format::Llama => json("parameters"),
            Format::Xml => xml::rules(tools),
            Format::Pythonic => pythonic::rules(tools),
        }
    }
}

/// The parameters that a schema of arguments tells: name, schema, and whether it is required.
fn parameters(arguments: &Value) -> Vec<(&str, &Value, bool)> {
    let object = meant(arguments, arguments);
    let required = object["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|r| r.iter().any(|r| r == name));
    let all = object["properties"].as_object().into_iter().flatten();
    all.map(|(name, schema)| (&name[..], meant(schema, arguments), is_required(name))).collect()
}

/// The schema that another one of `arguments` refers to, if it does nothing else.
fn meant<'a>(schema: &'a Value, arguments: &'a Value) -> &'a Value {
    let mut schema = schema;
    // References can go round in circles.
    for _ in 0..16 {
        let place = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#'));
        let Some(next) = place.and_then(|place| arguments.pointer(place)) else { break };
        schema = next;
    }
    schema
}

/// A parameter's schema as one of its own: what it refers to in `arguments` goes with it.
fn alone(schema: &Value, arguments: &Value) -> Value {
    let mut own = moved(schema, "/$defs/arguments");
    if own != *schema {
        own["$defs"] = json!({"arguments": moved(arguments, "/$defs/arguments")});
    }
    bounded(own)
}

/// A schema whose root is to be at `place` of another one: its references (`#/…`) are to find what they did.
fn moved(schema: &Value, place: &str) -> Value {
    let each = |map: &Map<String, Value>| -> Map<String, Value> {
        map.iter().map(|(name, schema)| (name.clone(), moved(schema, place))).collect()
    };
    let keyword = |(key, value): (&String, &Value)| {
        let value = match (&key[..], value) {
            ("$ref", Value::String(to)) => match to.strip_prefix('#') {
                Some(inside) => format!("#{place}{inside}").into(),
                None => value.clone(),
            },
            ("const" | "enum" | "default" | "examples", data) => data.clone(),
            // Keys of these are names, not keywords.
            (
                "properties" | "patternProperties" | "dependentSchemas" | "$defs" | "definitions",
                Value::Object(named),
            ) => each(named).into(),
            _ => moved(value, place),
        };
        (key.clone(), value)
    };
    match schema {
        Value::Object(map) => Value::Object(map.iter().map(keyword).collect()),
        Value::Array(all) => all.iter().map(|schema| moved(schema, place)).collect(),
        other => other.clone(),
    }
}

/// A text in a grammar.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// Llama's: objects, one after the other, perhaps with `;` between them.
fn several(body: &str) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let mut call = stream.next()?.ok()?;
        let after = stream.byte_offset();
        let object = call.as_object_mut()?;
        if let Some(parameters) = object.remove("parameters") {
            object.insert("arguments".into(), parameters);
        }
        calls.push(serde_json::from_value(call).ok()?);
        rest = rest.get(after..)?.trim_start_matches(|c: char| c == ';' || c.is_whitespace());
    }
    (!calls.is_empty()).then_some(calls)
}

/// Mistral's later one: a name, perhaps the call's, and an object.
fn named(body: &str) -> Option<Vec<ToolCall>> {
    let (name, arguments) = body.split_at(body.find('{')?);
    let name = name.trim_end().trim_end_matches("[ARGS]");
    let name = name.split("[CALL_ID]").next().unwrap_or_default().trim();
    let arguments: Value = serde_json::from_str(arguments).ok()?;
    let simple = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    let is_name = !name.is_empty() && name.chars().all(simple);
    is_name.then(|| vec![ToolCall { name: name.into(), arguments }])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: Value) -> ToolCall {
        ToolCall { name: name.into(), arguments }
    }

    #[test]
    fn reads_what_models_write() {
        let weather = || call("weather", json!({"city": "Paris"}));
        let time = || call("time", json!({}));
        for (format, body, calls) in [
            (
                Format::Tags,
                r#"{"name": "weather", "arguments": {"city": "Paris"}}"#,
                vec![weather()],
            ),
            (
                Format::Llama,
                r#"{"name": "weather", "parameters": {"city": "Paris"}}"#,
                vec![weather()],
            ),
            (
                Format::Llama,
                r#"{"name": "weather", "parameters": {"city": "Paris"}}; {"name": "time", "parameters": {}}"#,
                vec![weather(), time()],
            ),
            (
                Format::Mistral,
                r#" [{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "time", "arguments": {}}]"#,
                vec![weather(), time()],
            ),
            (Format::Mistral, r#"weather[ARGS]{"city": "Paris"}"#, vec![weather()]),
            (Format::Mistral, r#"weather[CALL_ID]a1b2[ARGS]{"city": "Paris"}"#, vec![weather()]),
            (Format::Pythonic, r#"[weather(city="Paris"), time()]"#, vec![weather(), time()]),
        ] {
            assert_eq!(format.read(body, None).as_ref(), Some(&calls), "{format:?} {body}");
        }
        for (format, body) in [
            (Format::Tags, "{"),
            (Format::Llama, r#"{"name": 1}"#),
            (Format::Llama, "print(1)"),
            (Format::Llama, ""),
            (Format::Mistral, "[]"),
            (Format::Mistral, "two words{}"),
            (Format::Mistral, "{}"),
        ] {
            assert_eq!(format.read(body, None), None, "{format:?} {body}");
        }
    }

    #[test]
    fn templates_show_their_form() {
        for (template, format) in [
            (model::template::CHATML, Format::Tags),
            ("{{- '[TOOL_CALLS] [' }}", Format::Mistral),
            ("{{- '<|python_tag|>' + builtin }}", Format::Llama),
            ("Return calls as [func_name1(params_name1=value)]", Format::Pythonic),
            ("<tool_call>\n<function=' + name", Format::Xml),
            ("{{ messages }}", Format::Tags),
        ] {
            assert_eq!(Format::of(template), format);
        }
    }
}
