//! Tool calls in what a model says, in the layout of Hermes and Qwen:
//!
//! ```text
//! <tool_call>
//! {"name": "calculator", "arguments": {"expression": "12*34"}}
//! </tool_call>
//! ```
//!
//! The tags are special tokens; the same characters as text are text. A model whose tokenizer has no such tokens
//! writes them as text.

use model::message::{Message, Role, ToolCall};
use model::template::Piece;
use model::tokenizer::Tokenizer;

/// Begins a call.
pub const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// What a model said in these tokens.
pub fn message(tokenizer: &Tokenizer, tokens: &[u32]) -> Message {
    let pieces = Piece::of(tokenizer, tokens);
    match tokenizer.special_id(OPEN) {
        Some(_) => parse(&pieces),
        None => parse(&with_tags(pieces)),
    }
}

/// Text with its tags apart, as those of a tokenizer that has tokens for them.
fn with_tags(pieces: Vec<Piece>) -> Vec<Piece> {
    let split = |piece: Piece| -> Vec<Piece> {
        let Piece::Text(text) = piece else { return vec![piece] };
        let mut rest = &text[..];
        let mut parts = Vec::new();
        while let Some((at, tag)) =
            [OPEN, CLOSE].into_iter().filter_map(|tag| Some((rest.find(tag)?, tag))).min()
        {
            parts.push(Piece::Text(rest[..at].into()));
            parts.push(Piece::Special(tag.into(), 0));
            rest = &rest[at + tag.len()..];
        }
        parts.push(Piece::Text(rest.into()));
        parts.retain(|part| !part.text().is_empty());
        parts
    };
    pieces.into_iter().flat_map(split).collect()
}

/// How much of a text is certainly not the beginning of a call that is written as text.
pub fn before_call(text: &str) -> usize {
    let open = |at: &usize| {
        text.is_char_boundary(*at) && {
            let rest = &text[*at..];
            rest.starts_with(OPEN) || OPEN.starts_with(rest)
        }
    };
    (0..text.len()).find(open).unwrap_or(text.len())
}

/// What the model said, as a message. A call that can't be read (no JSON object with a name, not
/// closed, a tag without its partner) stays in the content as it was written; it is not an error.
fn parse(pieces: &[Piece]) -> Message {
    let mut message = Message::new(Role::Assistant, "");
    let mut rest = pieces;
    while let Some((piece, after)) = rest.split_first() {
        rest = after;
        if let Some((call, after)) = call(piece, after) {
            // The template puts a line break before each call.
            if message.content.ends_with('\n') {
                message.content.pop();
            }
            message.tool_calls.push(call);
            rest = after;
            continue;
        }
        message.content.push_str(piece.text());
    }
    message
}

/// The call that starts with `piece`, and what follows it.
fn call<'a>(piece: &Piece, after: &'a [Piece]) -> Option<(ToolCall, &'a [Piece])> {
    let tag = |piece: &Piece, tag: &str| matches!(piece, Piece::Special(text, _) if text == tag);
    if !tag(piece, OPEN) {
        return None;
    }
    let end = after.iter().position(|piece| matches!(piece, Piece::Special(..)))?;
    if !tag(&after[end], CLOSE) {
        return None;
    }
    let text: String = after[..end].iter().map(Piece::text).collect();
    Some((serde_json::from_str(&text).ok()?, &after[end + 1..]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use model::template::{CHATML, ChatTemplate, SpecialTokens};
    use serde_json::{Value, json};

    fn pieces(parts: &[&str]) -> Vec<Piece> {
        let piece = |part: &&str| match *part {
            OPEN => Piece::Special(OPEN.into(), 3),
            CLOSE => Piece::Special(CLOSE.into(), 4),
            text => Piece::Text(text.into()),
        };
        parts.iter().map(piece).collect()
    }

    #[test]
    fn finds_calls_in_text() {
        let text = "So.\n<tool_call>\n{\"name\": \"g\"}\n</tool_call>";
        let said = with_tags(vec![Piece::Text(text.into()), Piece::Special("<end>".into(), 2)]);
        let message = parse(&said);
        assert_eq!((message.tool_calls.len(), &message.content[..]), (1, "So.<end>"));
        assert_eq!(with_tags(pieces(&["a < b </tool"])), pieces(&["a < b </tool"]));
        for (text, certain) in
            [("a <b", 4), ("a <too", 2), ("a <tool_call>{", 2), ("", 0), ("é<", 2)]
        {
            assert_eq!(before_call(text), certain, "{text}");
        }
    }

    #[test]
    fn finds_calls() {
        let json = "\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n";
        let message = parse(&pieces(&[
            "I compute.\n",
            OPEN,
            json,
            CLOSE,
            "\n",
            OPEN,
            "{\"name\": \"g\"}",
            CLOSE,
        ]));
        assert_eq!(message.content, "I compute.");
        assert_eq!(
            message.tool_calls,
            [
                ToolCall { name: "f".into(), arguments: json!({"x": 1}) },
                ToolCall { name: "g".into(), arguments: json!({}) }
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_stays_text() {
        for parts in [
            &["a", OPEN, "{\"name\": ", CLOSE, "b"][..],
            &["a", OPEN, "{\"arguments\": {}}", CLOSE],
            &["a", OPEN, "{\"name\": \"f\"}"],
            &["a", OPEN, OPEN, "{\"name\": ", CLOSE],
            &["a", CLOSE],
            &["as text: <tool_call>{\"name\": \"f\"}</tool_call>"],
            &[OPEN],
            &[],
        ] {
            let message = parse(&pieces(parts));
            assert_eq!(message.tool_calls, []);
            assert_eq!(message.content, parts.concat());
        }
        // A stray tag doesn't hide the call after it.
        assert_eq!(parse(&pieces(&[OPEN, OPEN, "{\"name\": \"f\"}", CLOSE])).tool_calls.len(), 1);
    }

    fn learned(message: &Message) -> Vec<Piece> {
        let tokens = ["<|im_start|>", "<|im_end|>", OPEN, CLOSE].iter().zip(1..);
        let special = SpecialTokens {
            tokens: tokens.map(|(name, id)| (name.to_string(), id)).collect(),
            ..Default::default()
        };
        let template = ChatTemplate::new(CHATML, special).unwrap();
        let messages = [Message::user("?"), message.clone()];
        let rendered = template.render_for_training(&messages, None).unwrap();
        let mut pieces: Vec<Piece> =
            rendered.pieces.into_iter().filter(|p| p.1).map(|p| p.0).collect();
        assert_eq!(pieces.pop().unwrap().text(), "<|im_end|>");
        pieces
    }

    proptest::proptest! {
        /// What the template writes is read back.
        #[test]
        fn reads_what_the_template_writes(content in "[a-z<>\n |_]{0,20}", names in proptest::collection::vec("[a-z_\"<>é]{0,9}", 0..3), value in ".{0,9}") {
            let mut message = Message::assistant(content);
            for name in names {
                message.tool_calls.push(ToolCall { name, arguments: json!({value.clone(): [value.clone(), 1.5, Value::Null]}) });
            }
            // A line break at the end of the content can't be told from the template's.
            proptest::prop_assume!(message.tool_calls.is_empty() || !message.content.ends_with('\n'));
            proptest::prop_assert_eq!(parse(&learned(&message)), message);
        }
    }
}
