//! The report of a run: `report.html`, one file that needs nothing else, and `report.md`.
//!
//! Both are templates over one [`View`]: whatever stands in one stands in the other, but for the
//! plots, which only HTML has. The template engine escapes every text for its format; what the
//! model wrote is shown as it is and is never markup.

pub mod format;
pub mod plot;
mod view;

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Output, State, Value};

use crate::Error;
use crate::run::RunDirectory;
use view::View;

/// Reads the run directory `folder` and writes `report.html` and `report.md` into it.
///
/// A run that has not finished has a report, too, which says what is missing.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read or written.
pub fn write(folder: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let record = RunDirectory::read(folder)?;
    let (html, markdown) = (folder.join("report.html"), folder.join("report.md"));
    store::write_atomic(&html, html_of(&record)?.as_bytes())?;
    store::write_atomic(&markdown, markdown_of(&record)?.as_bytes())?;
    Ok((html, markdown))
}

/// The report as one HTML page without anything from outside.
///
/// # Errors
/// [`Error::Render`] if the template fails.
pub fn html_of(record: &RunDirectory) -> Result<String, Error> {
    render("report.html", record)
}

/// The report as Markdown with tables.
///
/// # Errors
/// [`Error::Render`] if the template fails.
pub fn markdown_of(record: &RunDirectory) -> Result<String, Error> {
    render("report.md", record)
}

fn render(template: &str, record: &RunDirectory) -> Result<String, Error> {
    let failed = |error: minijinja::Error| Error::Render(format!("{error:#}"));
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?,
    );
    environment.set_auto_escape_callback(|name| match name.ends_with(".md") {
        true => AutoEscape::Custom("markdown".into()),
        false => AutoEscape::Html,
    });
    environment.set_formatter(formatter);
    environment.add_filter("fence", fence);
    environment.add_template("report.html", include_str!("report/report.html")).map_err(failed)?;
    environment.add_template("report.md", include_str!("report/report.md")).map_err(failed)?;
    let view = Value::from(Serde(View::of(record)?));
    environment.get_template(template).and_then(|t| t.render(view)).map_err(failed)
}

/// Escapes for HTML by the engine's own rules, for Markdown by [`escape_markdown`].
fn formatter(out: &mut Output, state: &mut State, value: &Value) -> Result<(), minijinja::Error> {
    if !matches!(state.auto_escape(), AutoEscape::Custom(_)) {
        return minijinja::escape_formatter(out, state, value);
    }
    match value.as_str() {
        Some(text) if !value.is_safe() => Ok(out.write_str(&escape_markdown(text))?),
        _ => Ok(write!(out, "{value}")?),
    }
}

/// Text that Markdown shows as it is, on one line and in a table's cell.
fn escape_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '#' | '|' | '~' | '!' => {
                escaped.push('\\');
                escaped.push(c);
            }
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            c if c.is_whitespace() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A code block of Markdown whose fence is longer than any in the text.
fn fence(text: &str) -> Value {
    let (mut longest, mut run) = (0, 0);
    for c in text.chars() {
        run = if c == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    let fence = "`".repeat(longest.max(2) + 1);
    Value::from_safe_string(format!("{fence}text\n{text}\n{fence}"))
}
