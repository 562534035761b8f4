//! Jupyter notebooks: prose as it is, code and what it printed in fences.

use serde::Deserialize;
use serde_json::Value;

use crate::document::About;
use crate::parse::Parsed;

/// Bytes of an output that are kept.
const OUTPUT: usize = 4 << 10;

#[derive(Deserialize)]
struct Notebook {
    #[serde(default)]
    cells: Vec<Cell>,
    #[serde(default)]
    metadata: Value,
}

#[derive(Deserialize)]
struct Cell {
    cell_type: String,
    #[serde(default)]
    source: Value,
    #[serde(default)]
    outputs: Vec<Value>,
}

/// Reads one.
pub fn read(json: &str) -> Parsed {
    let book: Notebook = serde_json::from_str(json).map_err(|e| format!("broken notebook: {e}"))?;
    let language = book
        .metadata
        .pointer("/language_info/name")
        .or_else(|| book.metadata.pointer("/kernelspec/language"));
    let language = language.and_then(Value::as_str).unwrap_or("python").to_string();
    let mut parts = Vec::new();
    for cell in &book.cells {
        let source = joined(&cell.source);
        if source.trim().is_empty() {
            continue;
        }
        if cell.cell_type != "code" {
            parts.push(source);
            continue;
        }
        parts.push(format!("```{language}\n{}\n```", source.trim_end()));
        for output in &cell.outputs {
            let text = output.get("text").or_else(|| output.pointer("/data/text~1plain"));
            let text = text.map(joined).unwrap_or_default();
            let text = text[..text.floor_char_boundary(OUTPUT)].trim_end();
            if !text.trim().is_empty() {
                parts.push(format!("```output\n{text}\n```"));
            }
        }
    }
    Ok((parts.join("\n\n"), About { language: Some(language), ..About::default() }))
}

/// A string, or a list of its lines.
fn joined(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        _ => String::new(),
    }
}
