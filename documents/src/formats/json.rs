//! JSON and JSONL: records with a text, or records as "key: value" lines.

use serde_json::{Map, Value};

use crate::document::{About, Document};
use crate::{Format, Limits, Skip, encoding, parse};

/// Keys of a record's text, the best first.
const TEXT: &[&str] = &["text", "content", "raw_content", "contents", "document", "body"];

/// A piece of JSONL. `first`: the number of its first line.
pub fn lines(
    source: &str,
    bytes: &[u8],
    first: u64,
    limits: &Limits,
) -> Vec<Result<Document, Skip>> {
    let mut all = Vec::new();
    for (i, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        let source = format!("{source}#{}", first + i as u64);
        match serde_json::from_slice::<Value>(line) {
            Ok(value) => record(value, &source, Format::Jsonl, limits, &mut all),
            Err(e) => {
                let reason = format!("broken JSON, column {}: {e}", e.column());
                all.push(Err(Skip { source, reason }));
            }
        }
    }
    all
}

/// A JSON file: one record, or an array of them; some call JSONL so.
pub fn whole(source: &str, bytes: Vec<u8>, limits: &Limits) -> Vec<Result<Document, Skip>> {
    let text = encoding::text(bytes);
    let mut all = Vec::new();
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Array(records)) if records.iter().all(Value::is_object) => {
            for (i, value) in records.into_iter().enumerate() {
                record(value, &format!("{source}#{}", i + 1), Format::Json, limits, &mut all);
            }
        }
        Ok(value) => record(value, source, Format::Json, limits, &mut all),
        Err(_) if text.lines().next().is_some_and(|l| serde_json::from_str::<Value>(l).is_ok()) => {
            return lines(source, text.as_bytes(), 1, limits);
        }
        Err(e) => {
            all.push(Err(Skip { source: source.into(), reason: format!("broken JSON: {e}") }));
        }
    }
    all
}

fn record(
    value: Value,
    source: &str,
    format: Format,
    limits: &Limits,
    all: &mut Vec<Result<Document, Skip>>,
) {
    let (text, about) = match value {
        Value::Object(mut record) => text_of(&mut record),
        other => (shown(&other, 0), About::default()),
    };
    if text.trim().is_empty() {
        all.push(Err(Skip { source: source.into(), reason: "no text in it".into() }));
    } else {
        all.extend(parse::documents(text, source, format, about, limits));
    }
}

fn text_of(record: &mut Map<String, Value>) -> (String, About) {
    let key = TEXT.iter().find(|k| record.get(**k).is_some_and(Value::is_string));
    let text = match key.and_then(|k| record.remove(*k)) {
        Some(Value::String(text)) => text,
        _ => return (fields(record, 0), About::default()),
    };
    let meta = record.remove("metadata").or_else(|| record.remove("meta"));
    let about = |keys: &[&str]| {
        let of = |m: &Map<String, Value>| {
            keys.iter().find_map(|k| m.get(*k).and_then(Value::as_str).map(str::to_string))
        };
        of(record).or_else(|| meta.as_ref().and_then(Value::as_object).and_then(of))
    };
    let about = About {
        title: about(&["title"]),
        url: about(&["url", "uri", "warc_url"]),
        time: about(&["time", "date", "timestamp", "created"]),
        licence: about(&["licence", "license"]),
        language: about(&["language", "lang"]),
        hidden_bytes: 0,
    };
    (text, about)
}

/// A record that isn't a text, for people.
fn fields(record: &Map<String, Value>, depth: usize) -> String {
    let line = |(key, value): (&String, &Value)| match value {
        Value::Null => String::new(),
        Value::Object(_) | Value::Array(_) => format!("{key}:\n{}\n", shown(value, depth + 1)),
        _ => format!("{key}: {}\n", shown(value, depth)),
    };
    record.iter().map(line).collect::<String>().trim_end().to_string()
}

fn shown(value: &Value, depth: usize) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(record) => fields(record, depth),
        Value::Array(values) => {
            values.iter().map(|v| shown(v, depth + 1)).collect::<Vec<_>>().join("\n")
        }
        other => other.to_string(),
    }
}
