//! Documents and conversations to the token sequences that a model is trained on.

use model::template::{ChatTemplate, SpecialTokens, TemplateError};
use model::tokenizer::Tokenizer;

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

/// A rendered conversation: its tokens, and for each whether the assistant is to learn it. What
/// follows the assistant's last token is left out.
///
/// # Errors
/// What the template objects to.
pub fn conversation(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    conversation: &Conversation,
) -> Result<(Vec<u32>, Vec<bool>), TemplateError> {
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
