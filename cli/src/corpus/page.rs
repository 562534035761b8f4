//! What went in and came out, as a page.

use documents::prepare::Stats;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value, context};

use crate::failure::Failure;

/// The page of a corpus.
///
/// # Errors
/// None but those of the template.
pub fn render(stats: &Stats) -> Result<String, Failure> {
    let mut templates = Environment::new();
    templates.set_auto_escape_callback(|_| AutoEscape::Html);
    templates.add_filter("bytes", |n: u64| crate::progress::count(n));
    let most = stats.lengths.values().map(|n| n.documents).max().unwrap_or(1);
    let page = templates.render_str(
        include_str!("stats.html"),
        context! { most, stats => Value::from(Serde(stats)) },
    );
    page.map_err(Failure::failed)
}
