//! Calls as a list in Python: `[f(a="x", b=[1, 2.5], c={"d": None}), g()]`.

use model::message::ToolCall;
use serde_json::{Map, Number, Value};

use super::{alone, literal, parameters};

/// Most values inside each other.
const DEPTH: usize = 32;

/// The calls of a list; `None` if it is anything else.
pub(super) fn read(body: &str) -> Option<Vec<ToolCall>> {
    let mut text = Text { rest: body };
    text.expect('[')?;
    let mut calls = Vec::new();
    while !text.skip(']') {
        let name = text.name()?;
        text.expect('(')?;
        let mut arguments = Map::new();
        while !text.skip(')') {
            let key = text.name()?;
            text.expect('=')?;
            arguments.insert(key, text.value(DEPTH)?);
            text.skip(',');
        }
        calls.push(ToolCall { name, arguments: arguments.into() });
        text.skip(',');
    }
    (text.rest.trim().is_empty() && !calls.is_empty()).then_some(calls)
}

/// As [`Format::rules`](super::Format::rules): what may be left out first, each with a comma; values are JSON's.
pub(super) fn rules(tools: &[(&str, Value)]) -> String {
    let (mut call, mut rules) = (Vec::new(), String::new());
    for (t, (name, arguments)) in tools.iter().enumerate() {
        let (mut first, mut last) = (String::new(), Vec::new());
        for (p, (key, schema, required)) in parameters(arguments).into_iter().enumerate() {
            let (key, schema) = (literal(&format!("{key}=")), alone(schema, arguments));
            rules += &format!("p{t}_{p}: {key} %json {schema}\n");
            match required {
                true => last.push(format!("p{t}_{p}")),
                false => first += &format!(" (p{t}_{p} \", \")?"),
            }
        }
        let open = literal(&format!("{name}("));
        call.push(format!("f{t}"));
        rules += &format!("f{t}: {open}{first} {} \")\"\n", last.join(" \", \" "));
    }
    format!("call: {}\n{rules}", call.join(" | "))
}

/// What is still to be read.
struct Text<'a> {
    rest: &'a str,
}

impl Text<'_> {
    /// Passes over a character, if it is the next.
    fn skip(&mut self, c: char) -> bool {
        let found = self.rest.trim_start().strip_prefix(c);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn expect(&mut self, c: char) -> Option<()> {
        self.skip(c).then_some(())
    }

    /// A name, perhaps with dots.
    fn name(&mut self) -> Option<String> {
        let rest = self.rest.trim_start();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'));
        let (name, rest) = rest.split_at(end.unwrap_or(rest.len()));
        self.rest = rest;
        (!name.is_empty()).then(|| name.to_string())
    }

    /// A literal.
    fn value(&mut self, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        let rest = self.rest.trim_start();
        match rest.chars().next()? {
            quote @ ('"' | '\'') => self.string(quote).map(Value::String),
            '[' | '(' => {
                let end = if self.skip('[') { ']' } else { self.skip('(').then_some(')')? };
                let mut items = Vec::new();
                while !self.skip(end) {
                    items.push(self.value(depth)?);
                    self.skip(',');
                }
                Some(items.into())
            }
            '{' => {
                self.expect('{')?;
                let mut map = Map::new();
                while !self.skip('}') {
                    let key = self.rest.trim_start().chars().next()?;
                    let key = self.string(key)?;
                    self.expect(':')?;
                    map.insert(key, self.value(depth)?);
                    self.skip(',');
                }
                Some(map.into())
            }
            _ => {
                let end = rest.find(|c: char| ",)]}".contains(c) || c.is_whitespace());
                let (word, rest) = rest.split_at(end.unwrap_or(rest.len()));
                self.rest = rest;
                match word {
                    "True" | "true" => Some(true.into()),
                    "False" | "false" => Some(false.into()),
                    "None" | "null" => Some(Value::Null),
                    _ => match word.parse::<i64>() {
                        Ok(whole) => Some(whole.into()),
                        Err(_) => Number::from_f64(word.parse().ok()?).map(Value::Number),
                    },
                }
            }
        }
    }

    fn string(&mut self, quote: char) -> Option<String> {
        let inside =
            self.rest.trim_start().strip_prefix(quote).filter(|_| "\"'".contains(quote))?;
        let mut text = String::new();
        let mut chars = inside.char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => text.push(match chars.next()?.1 {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'u' => {
                        let mut units = vec![unit(&mut chars)?];
                        // Half of a pair, as JSON writes what is beyond 16 bits.
                        if (0xd800..0xdc00).contains(&units[0]) {
                            (chars.next()?.1 == '\\' && chars.next()?.1 == 'u').then_some(())?;
                            units.push(unit(&mut chars)?);
                        }
                        char::decode_utf16(units).next()?.ok()?
                    }
                    other => other,
                }),
                c if c == quote => {
                    self.rest = &inside[i + 1..];
                    return Some(text);
                }
                c => text.push(c),
            }
        }
        None
    }
}

/// Four hexadecimal digits.
fn unit(chars: &mut std::str::CharIndices<'_>) -> Option<u16> {
    let digits: Option<String> = (0..4).map(|_| chars.next().map(|(_, c)| c)).collect();
    u16::from_str_radix(&digits?, 16).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_become_json() {
        let text = r#"[a.f(s='it\'s', u="\u00e9\ud83d\ude00", n=-3, x=2.5e1, l=[1, "b",], d={'k': None}, t=(True, False)), g()]"#;
        let calls = read(text).unwrap();
        let arguments = json!({
            "s": "it's", "u": "é😀", "n": -3, "x": 25.0, "l": [1, "b"], "d": {"k": null}, "t": [true, false]
        });
        assert_eq!((&calls[0].name[..], &calls[0].arguments), ("a.f", &arguments));
        assert_eq!((calls.len(), &calls[1].name[..]), (2, "g"));
    }

    #[test]
    fn nothing_else_is_read() {
        let deep = format!("[f(a={})]", "[".repeat(10_000));
        for text in [
            "",
            "[]",
            "[f]",
            "[f(1)]",
            r#"[f(a="\ud83d")]"#,
            r#"[f(a="\u00")]"#,
            "[f(a=1)",
            "[f(a=x)]",
            "[f(a='x)]",
            "[f()] and",
            &deep,
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[\\[\\](){}a-c='\"\\\\,:1 é]{0,40}") {
            let _ = read(&format!("[f({text}"));
        }
    }
}
