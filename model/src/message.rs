//! Messages of a conversation, in the JSONL layout that OpenAI's API and Hugging Face's trainers share:
//!
//! ```json
//! {"role": "assistant", "content": "…", "tool_calls": [{"type": "function", "function": {"name": "…", "arguments": {}}}]}
//! ```
//!
//! Written in one way, read in the ways that occur: arguments as an object or as a string that holds
//! one, a call with or without its `function` wrapper, content as a string, `null`, or text parts.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::{Value, json};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The name that templates and files use.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// A tool that the model asks to run, with its arguments (a JSON object).
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// A JSON object, its keys in the order written.
    pub arguments: Value,
}

/// One message. Plain text; nothing in it is ever a special token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; may be empty beside tool calls.
    #[serde(default, deserialize_with = "content")]
    pub content: String,
    /// What an assistant thought before; templates may show it.
    #[serde(
        rename = "reasoning_content",
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "content"
    )]
    pub reasoning: String,
    /// Calls of an assistant's turn, after its content.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_empty")]
    pub tool_calls: Vec<ToolCall>,
}

impl Message {
    /// A message of text alone.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message { role, content: content.into(), reasoning: String::new(), tool_calls: Vec::new() }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// A user's message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// An assistant's message.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// A tool's result.
    pub fn tool(content: impl Into<String>) -> Self {
        Self::new(Role::Tool, content)
    }

    /// An assistant's message that calls one tool.
    pub fn call(name: impl Into<String>, arguments: Value) -> Self {
        let call = ToolCall { name: name.into(), arguments };
        Message { tool_calls: vec![call], ..Self::assistant("") }
    }
}

impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json!({"type": "function", "function": {"name": self.name, "arguments": self.arguments}})
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ToolCall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Call {
            name: String,
            #[serde(default = "empty_object")]
            arguments: Value,
        }
        fn empty_object() -> Value {
            json!({})
        }
        let mut value = Value::deserialize(deserializer)?;
        if let Some(function) = value.get_mut("function") {
            value = function.take();
        }
        let Call { name, mut arguments } = serde_json::from_value(value)
            .map_err(|e| D::Error::custom(format!("a tool call has a name and arguments: {e}")))?;
        if let Value::String(text) = &arguments {
            arguments = serde_json::from_str(text).map_err(|e| {
                D::Error::custom(format!("arguments of the call of {name:?} are not JSON: {e}"))
            })?;
        }
        if !arguments.is_object() {
            return Err(D::Error::custom(format!(
                "arguments of the call of {name:?} are not a JSON object"
            )));
        }
        Ok(ToolCall { name, arguments })
    }
}

/// A string, `null`, or OpenAI's list of parts, of which only text can be read.
fn content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Parts(Vec<Part>),
    }
    #[derive(Deserialize)]
    struct Part {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        text: String,
    }
    match Option::<Content>::deserialize(deserializer)? {
        None => Ok(String::new()),
        Some(Content::Text(text)) => Ok(text),
        Some(Content::Parts(parts)) => match parts.iter().find(|part| part.kind != "text") {
            Some(part) => Err(D::Error::custom(format!(
                "content has a part of type {:?}; only text can be read",
                part.kind
            ))),
            None => Ok(parts.into_iter().map(|part| part.text).collect()),
        },
    }
}

/// A list, or `null` for an empty one.
fn or_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Message, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn writes_what_hugging_face_reads() {
        let message = Message::call("calculator", json!({"expression": "12*34"}));
        assert_eq!(
            serde_json::to_string(&message).unwrap(),
            r#"{"role":"assistant","content":"","tool_calls":[{"type":"function","function":{"name":"calculator","arguments":{"expression":"12*34"}}}]}"#
        );
        assert_eq!(
            serde_json::to_string(&Message::user("Hi")).unwrap(),
            r#"{"role":"user","content":"Hi"}"#
        );
    }

    #[test]
    fn reads_the_layouts_that_occur() {
        let expected = Message::call("f", json!({"b": 1, "a": "x"}));
        for text in [
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"b\":1,\"a\":\"x\"}"}}]}"#,
            r#"{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"b":1,"a":"x"}}}]}"#,
            r#"{"role":"assistant","content":"","tool_calls":[{"name":"f","arguments":{"b":1,"a":"x"}}]}"#,
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        let parts =
            r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#;
        assert_eq!(read(parts).unwrap(), Message::user("ab"));
        assert_eq!(
            read(r#"{"role":"user","content":"a","tool_calls":null}"#).unwrap(),
            Message::user("a")
        );
    }

    #[test]
    fn says_what_it_cannot_read() {
        for (text, why) in [
            (r#"{"role":"robot","content":""}"#, "robot"),
            (r#"{"role":"user","content":[{"type":"image_url"}]}"#, "image_url"),
            (r#"{"role":"assistant","tool_calls":[{"name":"f","arguments":"{"}]}"#, "not JSON"),
            (r#"{"role":"assistant","tool_calls":[{"name":"f","arguments":[1]}]}"#, "not a JSON"),
            (r#"{"role":"assistant","tool_calls":[{"arguments":{}}]}"#, "name"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_message_survives_its_file(content in ".*", name in "[a-z_]{1,8}", key in ".*", value in ".*") {
            let mut message = Message::call(name, json!({key: value}));
            message.content = content;
            let line = serde_json::to_string(&message).unwrap();
            proptest::prop_assert!(!line.contains('\n'));
            proptest::prop_assert_eq!(read(&line).unwrap(), message);
        }
    }
}
