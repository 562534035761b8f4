//! Tools for models whose chat template has no words for them: definitions, calls and results become text of messages,
//! in the form of Hermes.

use model::message::{Message, Role};
use serde_json::{Value, json};

/// Whether a template, Jinja's source, looks at tools.
pub fn knows_tools(template: &str) -> bool {
    template.contains("tools") || template.contains("tool_call")
}

/// The messages, with tools as text. `tools`: definitions in OpenAI's layout.
pub fn with_tools(messages: &[Message], tools: &Value) -> Vec<Message> {
    let mut told = Vec::new();
    for message in messages {
        let mut message = message.clone();
        for call in std::mem::take(&mut message.tool_calls) {
            if !message.content.is_empty() {
                message.content.push('\n');
            }
            let call = json!({"name": call.name, "arguments": call.arguments});
            message.content += &format!("<tool_call>\n{call}\n</tool_call>");
        }
        if message.role == Role::Tool {
            let result = format!("<tool_response>\n{}\n</tool_response>", message.content);
            // Results of one turn are one message: many templates want users and assistants to take turns.
            if let Some(last) = told.last_mut().filter(|m: &&mut Message| is_result(m)) {
                last.content += &format!("\n{result}");
                continue;
            }
            message = Message::user(result);
        }
        told.push(message);
    }
    let definitions: Vec<String> =
        tools.as_array().into_iter().flatten().map(Value::to_string).collect();
    let instructions = format!(
        "You can call functions. Their definitions, one a line:\n{}\n\nTo call one, write\n<tool_call>\n\
         {{\"name\": \"its name\", \"arguments\": {{\"argument\": \"value\"}}}}\n</tool_call>\n\
         and stop. The result comes back between <tool_response> and </tool_response>.",
        definitions.join("\n")
    );
    match told.first_mut().filter(|m| m.role == Role::System) {
        Some(system) => system.content += &format!("\n\n{instructions}"),
        None => told.insert(0, Message::system(instructions)),
    }
    told
}

fn is_result(message: &Message) -> bool {
    message.role == Role::User && message.content.starts_with("<tool_response>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_become_text() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let messages = [
            Message::user("Go."),
            Message { content: "So:".into(), ..Message::call("f", json!({"x": 1})) },
            Message::tool("one"),
            Message::tool("two"),
        ];
        let told = with_tools(&messages, &tools);
        let roles: Vec<&str> = told.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert!(told[0].content.contains(r#""function":{"name":"f"}"#));
        let call = "So:\n<tool_call>\n{\"name\":\"f\",\"arguments\":{\"x\":1}}\n</tool_call>";
        assert_eq!((&told[2].content[..], told[2].tool_calls.len()), (call, 0));
        let results =
            "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>";
        assert_eq!(told[3].content, results);
        let system = [Message::system("Be kind."), Message::user("?")];
        assert!(with_tools(&system, &tools)[0].content.starts_with("Be kind.\n\nYou can call"));
        assert!(knows_tools(model::template::CHATML) && !knows_tools("{{ messages[0].content }}"));
    }
}
