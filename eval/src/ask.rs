//! Asking: conversations are continued until nobody calls a tool any more.

use model::message::Message;
use serde_json::Value;
use tools::Toolbox;

use crate::Error;

/// Most calls one after the other in an answer.
const CALLS: usize = 4;

/// A model that can be asked, many questions at a time.
pub trait Speaker {
    /// The assistant's next message in each conversation. `tools`: their definitions for the chat
    /// template, or null.
    ///
    /// # Errors
    /// If a conversation can't be rendered or the model fails.
    fn reply(&mut self, conversations: &[&[Message]], tools: &Value)
    -> Result<Vec<Message>, Error>;

    /// What follows each text, up to the first end of a line.
    ///
    /// # Errors
    /// If the model fails.
    fn complete(&mut self, texts: &[String]) -> Result<Vec<String>, Error>;

    /// Tokens written so far.
    fn tokens(&self) -> u64;
}

/// Continues each conversation with the assistant's answer and, where it calls tools, their
/// results and its next answer. All that are open are asked together.
///
/// `definitions`: the tools as they are described to the model, or null where it was taught to
/// call them without a description.
///
/// # Errors
/// What [`Speaker::reply`] says.
pub fn converse(
    speaker: &mut dyn Speaker,
    mut conversations: Vec<Vec<Message>>,
    tools: &Toolbox,
    definitions: &Value,
) -> Result<Vec<Vec<Message>>, Error> {
    let mut open: Vec<usize> = (0..conversations.len()).collect();
    for _ in 0..=CALLS {
        let asked: Vec<&[Message]> = open.iter().map(|&i| &conversations[i][..]).collect();
        let replies = speaker.reply(&asked, definitions)?;
        let mut calling = Vec::new();
        for (i, reply) in open.into_iter().zip(replies) {
            let results: Vec<Message> =
                reply.tool_calls.iter().map(|call| Message::tool(tools.call(call))).collect();
            if !results.is_empty() {
                calling.push(i);
            }
            conversations[i].push(reply);
            conversations[i].extend(results);
        }
        open = calling;
        if open.is_empty() {
            break;
        }
    }
    Ok(conversations)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use model::message::Role;
    use serde_json::json;

    /// Says what the last message makes it say, and counts how often it is asked.
    struct Scripted(usize);

    impl Speaker for Scripted {
        fn reply(&mut self, asked: &[&[Message]], tools: &Value) -> Result<Vec<Message>, Error> {
            self.0 += 1;
            let say = |conversation: &&[Message]| {
                let last = conversation.last().unwrap();
                match (last.role, last.content.as_str()) {
                    _ if conversation[0].content == "loop" => {
                        Message::call("calculator", json!({"expression": "1"}))
                    }
                    (Role::Tool, result) => Message::assistant(format!("It is {result}.")),
                    (_, "hello") => Message::assistant("Hello."),
                    (_, sum) if tools.is_array() => {
                        Message::call("calculator", json!({"expression": sum}))
                    }
                    _ => Message::assistant("I can't."),
                }
            };
            Ok(asked.iter().map(say).collect())
        }

        fn complete(&mut self, texts: &[String]) -> Result<Vec<String>, Error> {
            Ok(texts.to_vec())
        }

        fn tokens(&self) -> u64 {
            0
        }
    }

    #[test]
    fn calls_are_run_and_their_results_told() {
        let asked = ["12*34", "hello", "1/0"].map(|text| vec![Message::user(text)]);
        let (mut speaker, tools) = (Scripted(0), Toolbox::calculator());
        let talks = converse(&mut speaker, asked.to_vec(), &tools, &tools.definitions()).unwrap();
        let last: Vec<&str> = talks.iter().map(|t| t.last().unwrap().content.as_str()).collect();
        assert_eq!(last, ["It is 408.", "Hello.", "It is error: division by zero."]);
        assert_eq!(talks.iter().map(Vec::len).collect::<Vec<_>>(), [4, 2, 4]);
        assert_eq!(speaker.0, 2);

        // Who calls for ever is stopped.
        let looping = vec![vec![Message::user("loop")]];
        let talks = converse(&mut speaker, looping, &tools, &Value::Null).unwrap();
        assert_eq!((talks[0].len(), speaker.0), (1 + 2 * (CALLS + 1), 2 + CALLS + 1));

        let talks = converse(&mut speaker, asked.to_vec(), &tools, &Value::Null).unwrap();
        assert_eq!(talks[0][1].content, "I can't.");
    }
}
