//! `homegrown data`: files to clean, distinct documents, and a look at what became of each.

#[cfg(feature = "collect")]
mod collecting;
mod page;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use documents::clean::Cleaner;
use documents::output::Output;
use documents::parts::{Count, Verdict};
use documents::prepare::{Stats, Step};
use documents::{Document, Settings};
use serde_json::{Value, json};

use crate::common::{Common, say};
use crate::failure::Failure;
use crate::interrupt;
use crate::prepare::skips;
use crate::progress::{Progress, count, peak_rss_bytes};

/// What to do with documents.
#[derive(Subcommand, Debug)]
pub enum DataCommand {
    /// Pages of the web and local files to a folder that `data prepare` reads; goes on where it was
    /// stopped.
    #[cfg(feature = "collect")]
    Collect(collecting::CollectArgs),
    /// (left out of this build: build it with `--features collect`)
    #[cfg(not(feature = "collect"))]
    #[command(disable_help_flag = true)]
    Collect {
        /// Whatever.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<String>,
    },
    /// Files of all kinds to documents.jsonl, heldout.jsonl (or .parquet), dropped.jsonl and stats.json.
    Prepare(PrepareArgs),
    /// What a file becomes, and what each rule says of it.
    Show(ShowArgs),
    /// What went in and came out, of a folder that `data prepare` wrote.
    Stats(StatsArgs),
}

/// Arguments of `data prepare`.
#[derive(Args, Debug)]
pub struct PrepareArgs {
    /// Files and folders: text, pages, PDF, office files, tables, mail, notebooks, code, JSONL, parquet
    /// (in a build with `--features parquet`), WARC, also in archives.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Where to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How documents are written: jsonl, or parquet in a build with `--features parquet`.
    #[arg(long, value_name = "jsonl|parquet", value_parser = output)]
    format: Option<Output>,
    #[command(flatten)]
    cleaning: Cleaning,
}

fn output(name: &str) -> Result<Output, String> {
    let all = [Output::Jsonl, Output::Parquet];
    all.into_iter().find(|o| o.extension() == name).ok_or("jsonl or parquet".into())
}

/// How documents are cleaned.
#[derive(Args, Debug)]
pub struct Cleaning {
    /// plain (only exact duplicates are dropped), web (rules of quality, near duplicates, personal
    /// data masked), or a TOML file of settings, which may have `base = "web"`.
    #[arg(long, default_value = "web", value_name = "NAME|FILE")]
    clean: String,
    /// A setting: bounds."gopher.words"=20, rules=["gopher"], near.bands=0.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Arguments of `data show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// A file, or a folder that `data prepare` wrote.
    path: PathBuf,
    /// Of such a folder: documents whose source has this in it.
    #[arg(long, value_name = "TEXT")]
    source: Option<String>,
    /// Most documents that are shown.
    #[arg(long, default_value_t = 5, value_name = "N")]
    limit: usize,
    /// All of each text, not only its beginning.
    #[arg(long)]
    whole: bool,
    #[command(flatten)]
    cleaning: Cleaning,
}

/// Arguments of `data stats`.
#[derive(Args, Debug)]
pub struct StatsArgs {
    /// The folder.
    dir: PathBuf,
    /// Write them as a page, too.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Wrong settings; what can't be read or written.
pub fn command(command: &DataCommand, common: &Common) -> Result<Value, Failure> {
    match command {
        #[cfg(feature = "collect")]
        DataCommand::Collect(args) => collecting::collect(args, common),
        #[cfg(not(feature = "collect"))]
        DataCommand::Collect { .. } => Err(Failure::invalid("this build can't collect")
            .hint("Build it with `cargo build --release --features collect`.")),
        DataCommand::Prepare(args) => prepare(args, common),
        DataCommand::Show(args) => show(args, common),
        DataCommand::Stats(args) => {
            let stats: Stats = store::read_json(&args.dir.join("stats.json"))?;
            if let Some(path) = &args.html {
                store::write_atomic(path, page::render(&stats)?.as_bytes())?;
            }
            if !common.json {
                tables(&stats);
            }
            serde_json::to_value(&stats).map_err(Failure::failed)
        }
    }
}

/// Settings by name or file, with changes.
///
/// # Errors
/// What isn't a setting.
pub fn settings(clean: &str, sets: &[String]) -> Result<Settings, Failure> {
    let named = |name: &str| match name {
        "plain" => Some(Settings::default()),
        "web" => Some(Settings::web()),
        _ => None,
    };
    let wrong = |place: &str, e: &dyn std::fmt::Display| Failure::invalid(format!("{place}: {e}"));
    let (base, mut changes) = match named(clean) {
        Some(settings) => (settings, toml::Table::new()),
        None => {
            let text = store::read_text(Path::new(clean)).map_err(|e| {
                wrong("--clean", &e).hint("It is plain, web, or a file of settings.")
            })?;
            let mut table: toml::Table = text.parse().map_err(|e| wrong(clean, &e))?;
            let base = match table.remove("base") {
                None => Settings::default(),
                Some(base) => base
                    .as_str()
                    .and_then(named)
                    .ok_or_else(|| wrong(clean, &format!("base = {base}: plain or web")))?,
            };
            (base, table)
        }
    };
    for set in sets {
        let parsed = set.parse::<toml::Table>().or_else(|_| {
            // A word needs no quotes.
            let (key, value) = set.split_once('=').unwrap_or((set, ""));
            format!("{key} = {}", toml::Value::String(value.to_string())).parse()
        });
        merge(&mut changes, parsed.map_err(|e| wrong(&format!("--set {set}"), &e))?);
    }
    let mut table = toml::Table::try_from(&base).map_err(Failure::failed)?;
    merge(&mut table, changes);
    let settings: Settings = table.try_into().map_err(|e| wrong(clean, &e))?;
    settings.check().map_err(Failure::invalid)?;
    Ok(settings)
}

/// Lays one table over another.
fn merge(onto: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (onto.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                onto.insert(key, value);
            }
        }
    }
}

/// Prepares documents and shows how far that is.
///
/// # Errors
/// See [`documents::prepare::prepare`].
pub fn run(
    name: &str,
    paths: &[PathBuf],
    settings: &Settings,
    out: &Path,
    threads: usize,
) -> Result<Stats, Failure> {
    let total = documents::files::Files::below(paths)?.bytes();
    let mut progress = Progress::start(name, total);
    let start = std::time::Instant::now();
    let mut told = |step: Step, done: u64, all: u64| {
        match step {
            Step::Read => {
                let speed = done as f64 / 1e6 / start.elapsed().as_secs_f64().max(1e-3);
                progress.set(done, &format!("of {} bytes, {speed:.0} MB/s", count(all)));
            }
            Step::Compare => progress.set(total, &format!("comparing {} documents", count(all))),
            Step::Write => {
                progress.set(total, &format!("writing, {} of {}", count(done), count(all)))
            }
        }
        !interrupt::requested()
    };
    let stats = documents::prepare::prepare(paths, settings, out, threads, &mut told)?;
    progress.finish(&format!(
        "{} documents, {} bytes, of {} that were read; held out: {}",
        stats.train.documents + stats.heldout.documents,
        count(stats.train.bytes + stats.heldout.bytes),
        stats.read.documents,
        stats.heldout_how
    ));
    Ok(stats)
}

fn prepare(args: &PrepareArgs, common: &Common) -> Result<Value, Failure> {
    let mut settings = settings(&args.cleaning.clean, &args.cleaning.sets)?;
    settings.output = args.format.unwrap_or(settings.output);
    settings.check().map_err(Failure::invalid)?;
    // Not into something else's folder.
    let foreign = args.out.is_dir()
        && !args.out.join("parts").is_dir()
        && !args.out.join("stats.json").is_file()
        && std::fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_some());
    if foreign {
        let place = args.out.display();
        return Err(Failure::invalid(format!("--out {place}: the folder holds something else"))
            .hint("Choose an empty or new folder."));
    }
    let start = std::time::Instant::now();
    let stats = run("prepare", &args.paths, &settings, &args.out, common.threads())?;
    let seconds = start.elapsed().as_secs_f64();
    skips(&stats.skips, &args.out.join("skipped.jsonl"));
    store::write_atomic(&args.out.join("stats.html"), page::render(&stats)?.as_bytes())?;
    let mut value = serde_json::to_value(&stats).map_err(Failure::failed)?;
    let (steps, speeds) = costs(&stats, seconds, !common.json);
    value["seconds"] = json!(seconds);
    value["megabytes_per_s"] = speeds;
    value["steps"] = steps;
    value["peak_rss_bytes"] = peak_rss_bytes().into();
    value["out"] = json!(args.out);
    if !common.json {
        tables(&stats);
    }
    Ok(value)
}

/// What each step took: by the clock and of the cores, and MB of text that was read a second. Parsing,
/// cleaning and signing are parts of the first pass, in seconds of its threads; parts that were there
/// cost nothing.
fn costs(stats: &Stats, seconds: f64, shown: bool) -> (Value, Value) {
    let (cost, megabytes) = (stats.cost, stats.read.bytes as f64 / 1e6);
    let one = |x: f64| (x * 10.0).round() / 10.0;
    let speed = |seconds: f64| (seconds > 1e-4).then(|| one(megabytes / seconds));
    let passes = [("files_to_parts", cost.parts), ("compare", cost.select), ("write", cost.write)];
    let threads =
        [("parse", cost.threads.parse), ("clean", cost.threads.clean), ("sign", cost.threads.sign)];
    if shown {
        let mut table = numbers("step", &["clock, s", "CPU, s", "cores busy", "MB/s"]);
        let text = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.1}"));
        for (name, span) in passes {
            let busy = (span.clock > 0.01).then(|| span.cpu / span.clock);
            let cells = [Some(span.clock), Some(span.cpu), busy, speed(span.clock)];
            table.add_row([vec![name.replace('_', " ")], cells.map(text).to_vec()].concat());
            for (name, seconds) in threads.iter().filter(|_| name == "files_to_parts") {
                let cells = [None, Some(*seconds), None, speed(*seconds)];
                table.add_row([vec![format!("- {name}")], cells.map(text).to_vec()].concat());
            }
        }
        say(&table.to_string());
        say(&format!("peak memory {} bytes\n", count(peak_rss_bytes())));
    }
    let speeds = threads.into_iter().chain(passes.map(|(name, span)| (name, span.clock)));
    let speeds = speeds.chain([("all", seconds)]).map(|(name, s)| (name, json!(speed(s))));
    let steps = passes.map(|(name, span)| (name, json!(span)));
    (
        json!(steps.into_iter().collect::<std::collections::BTreeMap<_, _>>()),
        json!(speeds.collect::<std::collections::BTreeMap<_, _>>()),
    )
}

/// A table whose first column is words and whose others are numbers.
fn numbers(first: &str, others: &[&str]) -> Table {
    let mut table = Table::new();
    let head: Vec<&str> = std::iter::once(first).chain(others.iter().copied()).collect();
    table.load_style(presets::NOTHING).set_header(head);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Prints what went in and came out.
fn tables(stats: &Stats) {
    let row = |name: &str, n: &Count| [name.to_string(), n.documents.to_string(), count(n.bytes)];
    let mut all = numbers("", &["documents", "bytes"]);
    all.add_row(row("files", &stats.files));
    all.add_row(row("read", &stats.read));
    for (rule, dropped) in &stats.dropped {
        all.add_row(row(&format!("- {rule}"), &dropped.count));
    }
    for (rule, bytes) in &stats.cut {
        all.add_row([format!("- cut: {rule}"), String::new(), count(*bytes)]);
    }
    all.add_row(row("held out", &stats.heldout));
    all.add_row(row("to learn from", &stats.train));
    say(&all.to_string());
    for (title, counts) in [("format", &stats.formats), ("language", &stats.languages)] {
        let mut part = numbers(title, &["documents", "bytes"]);
        let mut sorted: Vec<_> = counts.iter().collect();
        sorted.sort_by_key(|(_, n)| std::cmp::Reverse(n.bytes));
        sorted.iter().take(12).for_each(|(name, n)| {
            part.add_row(row(name, n));
        });
        say(&format!("\n{part}"));
    }
    for (reason, n) in stats.skipped.iter().take(12) {
        say(&format!("   skipped {n}: {reason}"));
    }
}

fn show(args: &ShowArgs, common: &Common) -> Result<Value, Failure> {
    if args.path.join("stats.json").is_file() {
        return prepared(args, common);
    }
    if args.path.is_dir() {
        return Err(Failure::invalid(format!("{} is a folder", args.path.display()))
            .hint("Name a file, or a folder that `homegrown data prepare` wrote."));
    }
    let settings = settings(&args.cleaning.clean, &args.cleaning.sets)?;
    let cleaner = Cleaner::new(&settings)?;
    let mut shown = Vec::new();
    let all = documents::stream::documents(std::slice::from_ref(&args.path), &settings)?;
    for one in all.take(args.limit) {
        let mut document = match one {
            Ok(document) => document,
            Err(skip) => {
                if !common.json {
                    say(&format!("{}\n   skipped: {}", skip.source, skip.reason));
                }
                shown.push(json!({"source": skip.source, "skipped": skip.reason}));
                continue;
            }
        };
        let (report, dropped) = cleaner.report(&mut document);
        if !common.json {
            text(&document, args.whole);
            for check in &report.checks {
                let mark = if check.passed { " " } else { "✗" };
                let (side, bound) = (check.side, check.bound);
                say(&format!(" {mark} {:<28} {:>12.4}   {side} {bound}", check.rule, check.value));
            }
            for (what, n) in &report.personal {
                say(&format!("   personal data: {n} × {what}"));
            }
            say(&match &dropped {
                Some(drop) => format!("   dropped by {}: {}", drop.rule, drop.detail),
                None => "   kept, unless another document is like it".to_string(),
            });
        }
        shown.push(json!({"document": document, "report": report, "dropped": dropped}));
    }
    Ok(json!({"documents": shown}))
}

/// A document for people.
fn text(document: &Document, whole: bool) {
    let Document { source, format, about, text } = document;
    let mut head = format!("\n{source}\n   {}, {} bytes", format.name(), text.len());
    for (name, value) in [
        ("title", &about.title),
        ("url", &about.url),
        ("time", &about.time),
        ("licence", &about.licence),
        ("language", &about.language),
    ] {
        if let Some(value) = value {
            head += &format!(", {name} {value}");
        }
    }
    if about.hidden_bytes > 0 {
        head += &format!(", {} bytes hidden and left out", about.hidden_bytes);
    }
    say(&head);
    let end = if whole { text.len() } else { text.floor_char_boundary(1000) };
    let rest = if end < text.len() { "\n…" } else { "" };
    say(&format!("{}{rest}\n", text[..end].trim_end()));
}

/// Documents of a folder that was prepared, and why others are not in it.
fn prepared(args: &ShowArgs, common: &Common) -> Result<Value, Failure> {
    let wanted = |source: &str| args.source.as_deref().is_none_or(|s| source.contains(s));
    let mut shown = Vec::new();
    let stats: Stats = store::read_json(&args.path.join("stats.json"))?;
    let output = stats.settings.output;
    for (name, fate) in [("documents", "to learn from"), ("heldout", "held out")] {
        documents::output::each(&args.path, name, output, &mut |document| {
            if shown.len() < args.limit && wanted(&document.source) {
                if !common.json {
                    text(&document, args.whole);
                    say(&format!("   kept, {fate}"));
                }
                shown.push(json!({"document": document, "fate": fate}));
            }
            shown.len() < args.limit
        })?;
    }
    for verdict in data::jsonl::read::<Verdict>(&args.path.join("dropped.jsonl"))? {
        let verdict = verdict?;
        if shown.len() < args.limit && wanted(&verdict.source) {
            if !common.json {
                let Verdict { source, rule, detail } = &verdict;
                say(&format!("\n{source}\n   dropped by {rule}: {detail}"));
            }
            shown.push(json!({"dropped": verdict}));
        }
    }
    for skip in data::jsonl::read::<documents::Skip>(&args.path.join("skipped.jsonl"))? {
        let skip = skip?;
        if shown.len() < args.limit && wanted(&skip.source) {
            if !common.json {
                say(&format!("\n{}\n   skipped: {}", skip.source, skip.reason));
            }
            shown.push(json!({"skipped": skip}));
        }
    }
    if shown.is_empty() {
        let asked = args.source.as_deref().unwrap_or_default();
        return Err(Failure::invalid(format!("no source there has {asked:?} in it")));
    }
    Ok(json!({"documents": shown}))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn settings_by_name_file_and_flag() {
        let set = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
            settings("web", &sets)
        };
        let changed =
            set(&["near.bands=0", "personal=drop", "bounds.\"gopher.words\"=20"]).unwrap();
        assert_eq!((changed.near.bands, changed.near.rows), (0, 8));
        assert_eq!(changed.bounds["gopher.words"], 20.0);
        assert!(set(&["nearr=1"]).unwrap_err().to_string().contains("nearr"));
        assert!(set(&["heldout=2"]).unwrap_err().to_string().contains("share"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "base = \"web\"\nrules = []\n").unwrap();
        let own = settings(file.path().to_str().unwrap(), &[]).unwrap();
        assert_eq!((own.rules.len(), own.near.bands), (0, 16));
        assert!(settings("none.toml", &[]).unwrap_err().to_string().contains("none.toml"));
    }
}
