//! What went in and came out, as a page.

use std::collections::BTreeMap;

use documents::parts::Count;
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
    templates.add_filter("size", size);
    let most = stats.lengths.values().map(|n| n.documents).max().unwrap_or(1);
    let page = templates.render_str(
        include_str!("stats.html"),
        context! {
            most,
            stats => Value::from(Serde(stats)),
            formats => sorted(&stats.formats),
            languages => sorted(&stats.languages),
            sources => sorted(&stats.sources),
        },
    );
    page.map_err(Failure::failed)
}

/// Rows of a table that are shown; the others are one.
const ROWS: usize = 20;

/// The largest first.
fn sorted(counts: &BTreeMap<String, Count>) -> Vec<(String, Value)> {
    let mut all: Vec<(String, Count)> = counts.iter().map(|(n, c)| (n.clone(), *c)).collect();
    all.sort_by(|a, b| b.1.bytes.cmp(&a.1.bytes).then(a.0.cmp(&b.0)));
    if all.len() > ROWS {
        let others = all.split_off(ROWS - 1);
        let mut sum = Count::default();
        others.iter().for_each(|(_, count)| sum.merge(count));
        all.push((format!("{} others", others.len()), sum));
    }
    all.into_iter().map(|(name, count)| (name, Value::from(Serde(count)))).collect()
}

/// A power of two bytes, in words.
fn size(power: u32) -> String {
    let unit = ["bytes", "KiB", "MiB", "GiB"].get(power as usize / 10).unwrap_or(&"TiB");
    format!("{} {unit}", 1u64 << (power % 10))
}
