//! JSON and JSONL: records with a text, or records as "key: value" lines.

use serde_json::{Map, Value};

use crate::document::{About, Document};
use crate::{Format, Settings, Skip, encoding, parse};

/// Keys of a record's text, the best first.
const TEXT: &[&str] = &["text", "content", "raw_content", "contents", "document", "body"];
/// Keys of what is known about it.
const TITLE: &[&str] = &["title"];
const URL: &[&str] = &["url", "uri", "warc_url"];
const TIME: &[&str] = &["time", "date", "timestamp", "created"];
const LICENCE: &[&str] = &["licence", "license"];
const LANGUAGE: &[&str] = &["language", "lang"];
const META: &[&str] = &["metadata", "meta"];

/// A piece of JSONL, or of another format's records as such. `first`: the number of its first line.
pub fn lines(
    source: &str,
    bytes: &[u8],
    first: u64,
    format: Format,
    settings: &Settings,
) -> Vec<Result<Document, Skip>> {
    let mut all = Vec::new();
    for (i, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        let source = format!("{source}#{}", first + i as u64);
        match serde_json::from_slice::<Value>(line) {
            Ok(value) => record(value, &source, format, settings, &mut all),
            Err(e) => {
                let reason = format!("broken JSON, column {}: {e}", e.column());
                all.push(Err(Skip { source, reason }));
            }
        }
    }
    all
}

/// A JSON file: one record, or an array of them; some call JSONL so.
pub fn whole(source: &str, bytes: Vec<u8>, settings: &Settings) -> Vec<Result<Document, Skip>> {
    let text = encoding::text(bytes);
    let mut all = Vec::new();
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Array(records)) if records.iter().all(Value::is_object) => {
            for (i, value) in records.into_iter().enumerate() {
                record(value, &format!("{source}#{}", i + 1), Format::Json, settings, &mut all);
            }
        }
        Ok(value) => record(value, source, Format::Json, settings, &mut all),
        Err(_) if text.lines().next().is_some_and(|l| serde_json::from_str::<Value>(l).is_ok()) => {
            return lines(source, text.as_bytes(), 1, Format::Jsonl, settings);
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
    settings: &Settings,
    all: &mut Vec<Result<Document, Skip>>,
) {
    let (text, about) = match value {
        Value::Object(mut record) => text_of(&mut record, &settings.text_field),
        other => (shown(&other, 0), About::default()),
    };
    if text.trim().is_empty() {
        all.push(Err(Skip { source: source.into(), reason: "no text in it".into() }));
    } else {
        all.extend(parse::documents(text, source, format, about, &settings.limits));
    }
}

/// Of the columns of a table those that are looked at: the text and what is known about it; all, if
/// none is a text. `wanted`: see [`Settings::text_field`].
///
/// # Errors
/// There is no column of the name that is wanted.
#[cfg(feature = "parquet")]
pub fn columns<'a>(all: &[&'a str], wanted: &str) -> Result<Vec<&'a str>, String> {
    let text = |name: &str| match wanted {
        "" => TEXT.contains(&name),
        wanted => name == wanted,
    };
    let about = [TITLE, URL, TIME, LICENCE, LANGUAGE, META].concat();
    if all.iter().any(|name| text(name)) {
        return Ok(all.iter().copied().filter(|n| text(n) || about.contains(n)).collect());
    }
    match wanted {
        "" => Ok(all.to_vec()),
        wanted => Err(format!("it has no column {wanted}, but {}", all.join(", "))),
    }
}

fn text_of(record: &mut Map<String, Value>, wanted: &str) -> (String, About) {
    let named = [wanted];
    let keys = if wanted.is_empty() { TEXT } else { &named };
    let key = keys.iter().find(|k| record.get(**k).is_some_and(Value::is_string));
    let text = match key.and_then(|k| record.remove(*k)) {
        Some(Value::String(text)) => text,
        _ if !wanted.is_empty() => return Default::default(),
        _ => return (fields(record, 0), About::default()),
    };
    let meta = META.iter().find_map(|k| record.remove(*k));
    let about = |keys: &[&str]| {
        let of = |m: &Map<String, Value>| {
            keys.iter().find_map(|k| m.get(*k).and_then(Value::as_str).map(str::to_string))
        };
        of(record).or_else(|| meta.as_ref().and_then(Value::as_object).and_then(of))
    };
    let about = About {
        title: about(TITLE),
        url: about(URL),
        time: about(TIME),
        licence: about(LICENCE),
        language: about(LANGUAGE),
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
