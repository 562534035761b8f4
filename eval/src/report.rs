//! The report of a run: `report.html`, one file that needs nothing else, and `report.md`; and beside
//! it what the run cost on this machine, `costs.html` and `costs.md`.
//!
//! Both forms are templates over one [`View`] (of costs, [`Costs`]): whatever stands in one stands
//! in the other, but for the plots, which only HTML has. The template engine escapes every text for
//! its format; what the model wrote is shown as it is and is never markup. A report is a function of
//! the run's settings and results: the same run has the same bytes.

mod costs;
pub mod format;
pub mod plot;
mod view;

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Output, State, Value};
use serde::Serialize;

use crate::Error;
use crate::run::RunDirectory;
use costs::Costs;
use view::View;

/// Reads the run directory `folder` and writes `report.html` and `report.md` into it.
///
/// A run that has not finished has a report, too, which says what is missing.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read or written.
pub fn write(folder: &Path) -> Result<(), Error> {
    write_both(folder, "report", View::of(&RunDirectory::read(folder)?)?)
}

/// Reads the run directory `folder` and writes `costs.html` and `costs.md` into it.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read or written.
pub fn write_costs(folder: &Path) -> Result<(), Error> {
    write_both(folder, "costs", Costs::of(&RunDirectory::read(folder)?)?)
}

/// Writes `NAME.html` and `NAME.md`, templates of these names over one view.
fn write_both(folder: &Path, name: &str, view: impl Serialize) -> Result<(), Error> {
    let failed = |error: minijinja::Error| Error::Render(format!("{error:#}"));
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?,
    );
    environment.set_auto_escape_callback(|name| match name.rsplit('.').next() {
        Some("md") => AutoEscape::Custom("markdown".into()),
        Some("css") => AutoEscape::None,
        _ => AutoEscape::Html,
    });
    environment.set_formatter(formatter);
    environment.add_filter("fence", fence);
    for (name, text) in [
        ("report.html", include_str!("report/report.html")),
        ("report.md", include_str!("report/report.md")),
        ("costs.html", include_str!("report/costs.html")),
        ("costs.md", include_str!("report/costs.md")),
        ("style.css", include_str!("report/style.css")),
    ] {
        environment.add_template(name, text).map_err(failed)?;
    }
    let view = Value::from(Serde(view));
    for form in ["html", "md"] {
        let file = format!("{name}.{form}");
        let template = environment.get_template(&file).map_err(failed)?;
        let text = template.render(view.clone()).map_err(failed)?;
        store::write_atomic(&folder.join(file), text.as_bytes())?;
    }
    Ok(())
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
