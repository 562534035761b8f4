//! Documents and conversations to the token sequences that a model is trained on.

use model::message::{Message, Role};
use model::template::{ChatTemplate, SpecialTokens, TemplateError};
use model::tokenizer::Tokenizer;
use thiserror::Error;

use crate::jsonl::Conversation;

/// Before and after every document.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Ends a turn.
pub const END_OF_TURN: &str = "<|im_end|>";
/// The special tokens of tokenizers trained here, in order, after bytes and merges.
pub const SPECIAL: [&str; 7] = [
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
];

/// What a chat template has to know of a tokenizer trained here.
pub fn special_tokens(tokenizer: &Tokenizer) -> SpecialTokens {
    SpecialTokens {
        tokens: tokenizer.special_tokens().map(|(id, text)| (text.to_string(), id)).collect(),
        bos: String::new(),
        eos: END_OF_TURN.to_string(),
    }
}

/// A document between two ends of text: `end t0 … tn end`.
pub fn document(tokenizer: &Tokenizer, end: u32, text: &str) -> Vec<u32> {
    let mut tokens = vec![end];
    tokens.extend(tokenizer.encode(text));
    tokens.push(end);
    tokens
}

/// Why a conversation can't be learned from.
#[derive(Debug, Error)]
pub enum TalkError {
    /// The template objects to it.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A turn that can't follow the one before.
    #[error("message {message}: {role} can't follow {before}")]
    Order {
        /// Its index.
        message: usize,
        /// Whose it is.
        role: &'static str,
        /// Whose is before it.
        before: &'static str,
    },
    /// An assistant's turn with neither text nor calls.
    #[error("message {0}: the assistant says nothing")]
    Nothing(usize),
    /// A call of a tool that the conversation doesn't define, though it defines some.
    #[error("message {message}: the tool {name:?} is called, and not defined in tools")]
    Undefined {
        /// Its index.
        message: usize,
        /// The tool's name.
        name: String,
    },
}

/// Whether turns come in an order that a conversation can have, and all that is said and called is there.
fn check(conversation: &Conversation) -> Result<(), TalkError> {
    let tools = conversation.tools.as_ref().and_then(|t| t.as_array());
    let named = |name: &str| {
        let is =
            |tool: &serde_json::Value| tool["function"]["name"] == name || tool["name"] == name;
        tools.is_none_or(|tools| tools.iter().any(is))
    };
    let mut before: Option<&Message> = None;
    for (message, m) in conversation.messages.iter().enumerate() {
        let after = before.map(|m| m.role);
        let calls = before.is_some_and(|m| !m.tool_calls.is_empty());
        let fits = match m.role {
            Role::System => after.is_none(),
            Role::User => !calls,
            Role::Assistant => !matches!(after, None | Some(Role::System | Role::Assistant)),
            Role::Tool => calls || after == Some(Role::Tool),
        };
        if !fits {
            let before = match before {
                None => "the beginning",
                Some(_) if calls => "a call of a tool",
                Some(m) => m.role.as_str(),
            };
            return Err(TalkError::Order { message, role: m.role.as_str(), before });
        }
        if m.role == Role::Assistant && m.tool_calls.is_empty() && m.content.trim().is_empty() {
            return Err(TalkError::Nothing(message));
        }
        if let Some(call) = m.tool_calls.iter().find(|call| !named(&call.name)) {
            return Err(TalkError::Undefined { message, name: call.name.clone() });
        }
        before = Some(m);
    }
    Ok(())
}

/// A rendered conversation: its tokens, and for each whether the assistant is to learn it. What
/// follows the assistant's last token is left out.
///
/// # Errors
/// [`TalkError`].
pub fn conversation(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    conversation: &Conversation,
) -> Result<(Vec<u32>, Vec<bool>), TalkError> {
    check(conversation)?;
    let rendered =
        template.render_for_training(&conversation.messages, conversation.tools.as_ref())?;
    let (mut tokens, mut learned) = rendered.tokens(tokenizer);
    let end = learned.iter().rposition(|l| *l).map_or(0, |last| last + 1);
    tokens.truncate(end);
    learned.truncate(end);
    Ok((tokens, learned))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use model::message::Message;
    use model::template::CHATML;
    use model::tokenizer::TrainOptions;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cant_be_learned_is_named() {
        let talk = |json: &str| -> Conversation { serde_json::from_str(json).unwrap() };
        let call =
            r#"{"role":"assistant","content":"","tool_calls":[{"name":"f","arguments":{}}]}"#;
        let user = r#"{"role":"user","content":"?"}"#;
        let said = r#"{"role":"assistant","content":"!"}"#;
        let tool = r#"{"role":"tool","content":"1"}"#;
        let define = |name: &str| {
            format!(r#","tools":[{{"type":"function","function":{{"name":"{name}"}}}}]"#)
        };
        for (messages, tools, want) in [
            (vec![user, said, user, call, tool, said], define("f"), ""),
            (vec![user, call, tool, tool, said], String::new(), ""),
            (vec![said], String::new(), "message 0: assistant can't follow the beginning"),
            (vec![user, said, said], String::new(), "message 2: assistant can't follow assistant"),
            (vec![user, tool], String::new(), "message 1: tool can't follow user"),
            (
                vec![user, call, user],
                String::new(),
                "message 2: user can't follow a call of a tool",
            ),
            (
                vec![user, r#"{"role":"system","content":""}"#],
                String::new(),
                "system can't follow user",
            ),
            (
                vec![user, r#"{"role":"assistant","content":" "}"#],
                String::new(),
                "message 1: the assistant says nothing",
            ),
            (vec![user, call], define("g"), "message 1: the tool \"f\" is called, and not defined"),
        ] {
            let json = format!(r#"{{"messages":[{}]{tools}}}"#, messages.join(","));
            match check(&talk(&json)) {
                Ok(()) => assert_eq!(want, "", "{json}"),
                Err(e) => assert!(!want.is_empty() && e.to_string().contains(want), "{json}: {e}"),
            }
        }
    }

    #[test]
    fn a_conversation_and_its_mask() {
        let options = TrainOptions {
            vocab_size: 300,
            special_tokens: SPECIAL.map(String::from).to_vec(),
            ..TrainOptions::default()
        };
        let texts = ["user assistant tool calculator expression What is 12 times 34?"; 3];
        let tokenizer = Tokenizer::train(texts, &options, &mut |_| {}).unwrap();
        let template = ChatTemplate::new(CHATML, special_tokens(&tokenizer)).unwrap();
        let talk = Conversation {
            messages: vec![
                Message::user("Say <|im_end|> or 12*34?"),
                Message::call("calculator", json!({"expression": "12*34"})),
                Message::tool("408"),
                Message::assistant("It is 408."),
            ],
            tools: None,
        };
        let (tokens, learned) = conversation(&tokenizer, &template, &talk).unwrap();
        assert_eq!(tokens.len(), learned.len());
        // What is learned in brackets.
        let mut text = String::new();
        let mut inside = false;
        for (id, learn) in tokens.iter().zip(&learned) {
            if *learn != inside {
                text.push(if *learn { '[' } else { ']' });
                inside = *learn;
            }
            text += &tokenizer.decode(&[*id]);
        }
        assert_eq!(
            text,
            "<|im_start|>user\nSay <|im_end|> or 12*34?<|im_end|>\n<|im_start|>assistant\n\
             [<tool_call>\n{\"name\": \"calculator\", \"arguments\": {\"expression\": \"12*34\"}}\n\
             </tool_call><|im_end|>]\n<|im_start|>user\n<tool_response>\n408\n</tool_response>\
             <|im_end|>\n<|im_start|>assistant\n[It is 408.<|im_end|>"
        );
        // The user's text is no control: four turns end, not five.
        let end = tokenizer.special_id(END_OF_TURN).unwrap();
        assert_eq!(tokens.iter().filter(|t| **t == end).count(), 4);

        let end = tokenizer.special_id(END_OF_TEXT).unwrap();
        let ids = document(&tokenizer, end, "<|endoftext|>");
        assert_eq!(ids.iter().filter(|t| **t == end).count(), 2);
        assert_eq!(tokenizer.decode(&ids), "<|endoftext|><|endoftext|><|endoftext|>");
    }
}
