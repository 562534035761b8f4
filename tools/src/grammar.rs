//! Answers of a given form: JSON by a schema, a regular expression, a grammar. Which tokens can come next is
//! worked out by llguidance.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use model::constraint::Constraint;
use model::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// What an answer is to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// JSON by a schema.
    Json(Value),
    /// A regular expression, in the syntax of the crate `regex`.
    Regex(String),
    /// A grammar in Lark's syntax, as llguidance reads it.
    Lark(String),
}

/// Most bytes of a form; what it compiles to has llguidance's own limits.
const FORM: usize = 256 << 10;

impl Form {
    /// Bytes that it is written in.
    fn bytes(&self) -> usize {
        match self {
            Form::Json(schema) => schema.to_string().len(),
            Form::Regex(text) | Form::Lark(text) => text.len(),
        }
    }
}

/// Compiles forms for a tokenizer.
pub struct Grammars {
    factory: ParserFactory,
    /// Tokens that end an answer; the first one stands for all.
    stops: Arc<[u32]>,
}

impl Grammars {
    /// For a model of `vocab` tokens, whose answers end with one of `stops`.
    ///
    /// # Errors
    /// In words, if there is none.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, stops: &[u32]) -> Result<Grammars, String> {
        let Some(&end) = stops.first() else { return Err("no token ends an answer".into()) };
        // Control tokens are apart from the text that they look like.
        let word = |id: u32| match tokenizer.special_name(id) {
            Some(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
            None => tokenizer.token_bytes(id).unwrap_or_default().to_vec(),
        };
        let words: Vec<Vec<u8>> = (0..vocab as u32).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, end), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|e| e.to_string())?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Grammars { factory, stops: stops.into() })
    }

    /// What keeps an answer to a form.
    ///
    /// # Errors
    /// What is wrong with the form, or too much, in words.
    pub fn constraint(&self, form: &Form) -> Result<Box<dyn Constraint>, String> {
        let bytes = form.bytes();
        if bytes > FORM {
            return Err(format!(
                "a form of {bytes} bytes is too large: at most {FORM} can be read"
            ));
        }
        let grammar = match form.clone() {
            Form::Json(schema) => TopLevelGrammar::from_json_schema(bounded(schema)),
            Form::Regex(text) => TopLevelGrammar::from_regex(&text),
            Form::Lark(text) => TopLevelGrammar::from_lark(text),
        };
        let parser = self.factory.create_parser(grammar).map_err(|e| e.to_string())?;
        Ok(Box::new(Grammar { matcher: Matcher::new(Ok(parser)), stops: self.stops.clone() }))
    }
}

/// The schema with little white space between its tokens: some models would go on with it for ever.
pub(crate) fn bounded(mut schema: Value) -> Value {
    if let Value::Object(schema) = &mut schema {
        let pattern = json!({"whitespace_pattern": r"\x0A\x20{0,32}|\x20"});
        schema.entry("x-guidance").or_insert(pattern);
    }
    schema
}

/// An answer on its way through a form.
struct Grammar {
    matcher: Matcher,
    stops: Arc<[u32]>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

impl Constraint for Grammar {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|e| e.to_string())?;
        let is = |id: usize| id < allowed.len() && allowed.get(id);
        let over = is(self.stops[0] as usize);
        for (id, logit) in logits.iter_mut().enumerate() {
            if !(is(id) || over && self.stops.contains(&(id as u32))) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn take(&mut self, id: u32) -> Result<(), String> {
        match self.stops.contains(&id) {
            true => Ok(()),
            false => self.matcher.consume_token(id).map_err(|e| e.to_string()),
        }
    }

    fn copy(&self) -> Box<dyn Constraint> {
        Box::new(Grammar { matcher: self.matcher.deep_clone(), stops: self.stops.clone() })
    }
}

/// What allows everything until reasoning has ended.
#[derive(Clone, Debug)]
pub(crate) struct AfterThinking {
    pub(crate) form: Box<dyn Constraint>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// The last bytes, as long as it thinks.
    pub(crate) thinking: Option<Vec<u8>>,
}

impl Constraint for AfterThinking {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        match self.thinking {
            Some(_) => Ok(()),
            None => self.form.mask(logits),
        }
    }

    fn take(&mut self, id: u32) -> Result<(), String> {
        let Some(bytes) = &mut self.thinking else { return self.form.take(id) };
        const END: &[u8] = b"</think>";
        bytes.extend(self.tokenizer.token_bytes(id).unwrap_or_default());
        if bytes.windows(END.len()).any(|w| w == END) {
            self.thinking = None;
        } else {
            bytes.drain(..bytes.len().saturating_sub(END.len()));
        }
        Ok(())
    }

    fn copy(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::calls::Format;
    use crate::reader::Speech;
    use model::tokenizer::TrainOptions;

    /// The only special token, the last one.
    const END: u32 = 299;

    fn tokenizer() -> Tokenizer {
        let options = TrainOptions {
            vocab_size: 300,
            special_tokens: vec!["<end>".into()],
            ..TrainOptions::default()
        };
        Tokenizer::train([r#"{"name": "a"}"#; 4], &options, &mut |_| {}).unwrap()
    }

    /// What comes of always taking one of the allowed tokens: by a number each, then what closes soonest.
    fn walk(constraint: &mut dyn Constraint, tokenizer: &Tokenizer, picks: &[usize]) -> String {
        let mut tokens = Vec::new();
        let closing = ["\"", "}", "]", ")", "<", ",", "\n"].map(|c| tokenizer.encode(c)[0]);
        for step in 0..picks.len() + 1000 {
            let mut logits = vec![0f32; 310];
            constraint.mask(&mut logits).unwrap();
            let allowed: Vec<u32> = (0..310).filter(|i| logits[*i as usize] == 0.0).collect();
            let soonest = || [END].into_iter().chain(closing).find(|id| allowed.contains(id));
            let id = match picks.get(step) {
                Some(pick) => allowed[pick % allowed.len()],
                None => soonest().unwrap_or(allowed[0]),
            };
            constraint.take(id).unwrap();
            if id == END {
                return tokenizer.decode(&tokens);
            }
            tokens.push(id);
        }
        panic!("it never ends: {:?}", tokenizer.decode(&tokens));
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(24))]

        /// Whatever is chosen among what is allowed, what ends is of the form.
        #[test]
        fn what_ends_is_of_the_form(picks in proptest::collection::vec(0usize..1000, 300)) {
            let tokenizer = tokenizer();
            let grammars = Grammars::new(&tokenizer, 310, &[END]).unwrap();
            let schema = json!({
                "type": "object", "properties": {"n": {"type": "integer"}, "s": {"enum": ["a", "b"]}},
                "required": ["n", "s"], "additionalProperties": false
            });
            let mut constraint = grammars.constraint(&Form::Json(schema)).unwrap();
            let text = walk(&mut *constraint.copy(), &tokenizer, &picks);
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(value["n"].is_number(), "{text}");
            assert!(value["s"] == "a" || value["s"] == "b", "{text}");
            // A copy leaves the first one where it was.
            let again = walk(&mut *constraint.copy(), &tokenizer, &picks);
            proptest::prop_assert_eq!(again, walk(&mut *constraint, &tokenizer, &picks));
            let mut constraint = grammars.constraint(&Form::Regex("[a-c]{2}-(x|yy)".into())).unwrap();
            let text = walk(&mut *constraint, &tokenizer, &picks);
            let (a, b) = text.split_once('-').unwrap();
            assert!(a.len() == 2 && a.bytes().all(|c| (b'a'..=b'c').contains(&c)), "{text}");
            assert!(b == "x" || b == "yy", "{text}");
        }
    }

    /// Two tools; the second one's arguments refer to each other, as nested types of Python do.
    fn tools() -> [(&'static str, Value); 2] {
        let properties =
            json!({"n": {"type": "integer"}, "b": {"type": "boolean"}, "e": {"enum": ["x", "y"]}});
        let plain = json!({"type": "object", "properties": properties, "required": ["n", "e"], "additionalProperties": false});
        let nested = json!({
            "$defs": {
                "E": {"enum": ["x", "y"], "title": "E"},
                "P": {
                    "type": "object", "required": ["n"], "additionalProperties": false,
                    "properties": {"n": {"type": "integer"}, "p": {"$ref": "#/$defs/P"}, "$ref": {"$ref": "#/$defs/E"}},
                },
            },
            "type": "object", "required": ["p", "e"], "additionalProperties": false,
            "properties": {"p": {"$ref": "#/$defs/P"}, "e": {"$ref": "#/$defs/E"}, "l": {"type": "array", "items": {"$ref": "#/$defs/P"}}},
        });
        [("f", plain), ("g", nested)]
    }

    const FORMATS: [Format; 5] =
        [Format::Tags, Format::Xml, Format::Llama, Format::Mistral, Format::Pythonic];

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(24))]

        /// Whatever is chosen, a call that was demanded can be read, and is one of a tool.
        #[test]
        fn demanded_calls_can_be_read(picks in proptest::collection::vec(0usize..1000, 0..300)) {
            let tokenizer = tokenizer();
            let grammars = Grammars::new(&tokenizer, 310, &[END]).unwrap();
            for format in FORMATS {
                let speech = Speech::of(None, &tokenizer).with(format);
                let form = speech.call(&tokenizer, &tools());
                let mut constraint = grammars.constraint(&form).unwrap();
                let text = walk(&mut *constraint, &tokenizer, &picks);
                let message = speech.message(&tokenizer, &[], &tokenizer.encode(&text));
                assert_eq!((message.tool_calls.len(), &message.content[..]), (1, ""), "{text}");
                let call = &message.tool_calls[0];
                let n = match &call.name[..] {
                    "f" => &call.arguments["n"],
                    "g" => &call.arguments["p"]["n"],
                    other => panic!("{other}: {text}"),
                };
                let e = &call.arguments["e"];
                assert!(n.is_number() && (e == "x" || e == "y"), "{text}");
            }
        }
    }

    /// What each form's model writes is what a grammar of it allows.
    #[test]
    fn demanded_calls_are_as_models_write_them() {
        let tokenizer = tokenizer();
        let grammars = Grammars::new(&tokenizer, 310, &[END]).unwrap();
        let schema = json!({"type": "object", "properties": {"t": {"type": "string"}, "n": {"type": "integer"}}, "required": ["t"]});
        for (format, written) in [
            (
                Format::Xml,
                "<tool_call>\n<function=w>\n<parameter=t>\nTwo\nlines </p\n</parameter>\n</function>\n</tool_call>",
            ),
            (
                Format::Xml,
                "<tool_call>\n<function=w>\n<parameter=t>\n\n</parameter>\n<parameter=n>\n12\n</parameter>\n</function>\n</tool_call>",
            ),
            (Format::Xml, "<tool_call>\n<function=g>\n</function>\n</tool_call>"),
            (Format::Pythonic, "[w(n=3, t=\"é\\n\")]"),
            (Format::Pythonic, "[g()]"),
            (Format::Llama, "{\"name\": \"w\", \"parameters\": {\"t\": \"a\"}}"),
        ] {
            let speech = Speech::of(None, &tokenizer).with(format);
            let tools = [("w", schema.clone()), ("g", json!({"type": "object"}))];
            let mut constraint = grammars.constraint(&speech.call(&tokenizer, &tools)).unwrap();
            for id in tokenizer.encode(written).into_iter().chain([END]) {
                let mut logits = vec![0f32; 310];
                constraint.mask(&mut logits).unwrap();
                assert_eq!(logits[id as usize], 0.0, "{written}: {:?}", tokenizer.decode(&[id]));
                constraint.take(id).unwrap();
            }
            let message = speech.message(&tokenizer, &[], &tokenizer.encode(written));
            assert_eq!(message.tool_calls.len(), 1, "{written}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let tokenizer = tokenizer();
        assert!(Grammars::new(&tokenizer, 310, &[]).is_err());
        let grammars = Grammars::new(&tokenizer, 310, &[END]).unwrap();
        for form in [
            Form::Regex("(".into()),
            Form::Lark("start: nowhere".into()),
            Form::Json(json!({"type": "nothing"})),
            Form::Json(json!({"enum": ["a".repeat(FORM)]})),
            Form::Regex("a".repeat(FORM + 1)),
        ] {
            assert!(grammars.constraint(&form).is_err(), "{form:?}");
        }
        // Nothing but special tokens: control is no text.
        let mut constraint = grammars.constraint(&Form::Lark("start: <[299]>".into())).unwrap();
        let mut logits = vec![0f32; 310];
        constraint.mask(&mut logits).unwrap();
        assert_eq!(logits.iter().filter(|x| **x == 0.0).count(), 1);
    }

    #[test]
    fn thinking_is_free() {
        let tokenizer = Arc::new(tokenizer());
        let grammars = Grammars::new(&tokenizer, 310, &[END]).unwrap();
        let form = grammars.constraint(&Form::Regex("ok".into())).unwrap();
        let mut after =
            AfterThinking { form, tokenizer: tokenizer.clone(), thinking: Some(vec![]) };
        let free = |c: &mut AfterThinking| {
            let mut logits = vec![0f32; 310];
            c.mask(&mut logits).unwrap();
            logits.iter().all(|x| *x == 0.0)
        };
        for id in tokenizer.encode("Hm.</think>") {
            assert!(free(&mut after));
            after.take(id).unwrap();
        }
        assert!(!free(&mut after));
    }
}
