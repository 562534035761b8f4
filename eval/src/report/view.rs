//! What a report shows, as text: numbers are written here, the templates only place them.

use serde::Serialize;

use super::format::{bytes, count, percent, tick};
use super::plot::{self, Curve, Level, Plot, Tone};
use crate::Error;
use crate::run::{Kind, Metric, RunDirectory};
use crate::task::{HEADLINE, ModelResults, Score, Transcript};

/// Characters of a document, sample or turn that are shown.
const SHOWN: usize = 900;
/// Samples shown of those written during training.
const SAMPLES: usize = 8;
/// Skipped steps that are listed.
const SKIPPED: usize = 20;

/// Everything both templates place.
#[derive(Serialize)]
pub struct View {
    title: String,
    source: String,
    tiles: Vec<Tile>,
    missing: Vec<String>,
    scores: Vec<Task>,
    models: Vec<Named>,
    bits: Vec<Bits>,
    bits_note: String,
    plots: Vec<Figure>,
    curve: Vec<CurveRow>,
    stages: Vec<StageRow>,
    skipped: Vec<String>,
    kinds: Vec<KindRow>,
    overlap: Vec<OverlapRow>,
    notes: String,
    model: Vec<Named>,
    samples: Vec<SampleRow>,
    transcripts: Vec<TranscriptGroup>,
    command: String,
    recipe: String,
    facts: Vec<Named>,
    hashes: Vec<Named>,
    plot_css: String,
}

/// A name and its value.
#[derive(Serialize)]
pub(super) struct Named {
    pub name: String,
    pub value: String,
}

#[derive(Serialize)]
struct Tile {
    name: String,
    value: String,
    note: String,
}

/// One task's scores, one line a model.
#[derive(Serialize)]
struct Task {
    title: String,
    task: String,
    lower_is_better: bool,
    lines: Vec<ScoreLine>,
}

#[derive(Serialize)]
struct ScoreLine {
    model: String,
    value: String,
    interval: String,
    n: u64,
    chance: String,
    bar: String,
}

#[derive(Serialize)]
struct Bits {
    name: String,
    value: String,
    note: String,
    bar: String,
}

#[derive(Serialize)]
struct Figure {
    title: String,
    svg: String,
    legend: Vec<Named>,
}

#[derive(Serialize)]
struct CurveRow {
    stage: String,
    step: u64,
    tokens: String,
    loss: String,
    bits: String,
}

/// What a stage of training took.
#[derive(Serialize)]
struct StageRow {
    stage: String,
    steps: String,
    tokens: String,
    flops: String,
    skipped: u64,
    rollbacks: u64,
}

#[derive(Serialize)]
struct KindRow {
    kind: String,
    documents: String,
    bytes: String,
    tokens: String,
    sample: String,
    total: bool,
}

#[derive(Serialize)]
struct OverlapRow {
    task: String,
    n: u64,
    share: String,
}

#[derive(Serialize)]
struct SampleRow {
    at: String,
    prompt: String,
    text: String,
}

#[derive(Serialize)]
struct TranscriptGroup {
    model: String,
    title: String,
    transcripts: Vec<TranscriptRow>,
}

#[derive(Serialize)]
struct TranscriptRow {
    right: bool,
    expected: String,
    turns: Vec<TurnRow>,
    plain: String,
}

#[derive(Serialize)]
struct TurnRow {
    role: String,
    text: String,
}

impl View {
    /// Writes down what `record` holds.
    ///
    /// # Errors
    /// [`Error::Render`] if a plot fails.
    pub fn of(record: &RunDirectory) -> Result<View, Error> {
        let run = &record.run;
        let results = record.tasks.as_ref().map_or(&[][..], |r| &r.models);
        let (hashes, facts) = (hashes(record), facts(record));
        Ok(View {
            title: title(record),
            source: run.source.clone(),
            tiles: tiles(record),
            missing: record.missing.clone(),
            scores: tasks(results),
            models: results.iter().enumerate().map(|(i, m)| model_line(i, m)).collect(),
            bits: bits(record),
            bits_note: bits_note(record),
            plots: plots(record)?,
            curve: curve(record),
            stages: stages(record),
            skipped: skipped(record),
            kinds: kinds(record),
            overlap: overlap(record),
            notes: record.corpus.iter().map(|c| c.notes.join("\n")).collect(),
            model: model(record),
            samples: samples(record),
            transcripts: results.iter().flat_map(transcripts).collect(),
            command: run.command.clone(),
            recipe: run.recipe.clone(),
            facts,
            hashes,
            plot_css: plot::css(),
        })
    }
}

fn title(record: &RunDirectory) -> String {
    match &record.run.model {
        Some(m) if m.parameters > 0 => {
            format!("A language model of {} parameters", count(m.parameters as f64))
        }
        _ => "A language model, grown from text".into(),
    }
}

/// The scores a reader looks for first.
fn tiles(record: &RunDirectory) -> Vec<Tile> {
    let mut tiles = Vec::new();
    if let Some([first, .., last]) = record.answers.as_ref().map(|a| &a.models[..]) {
        let value = format!("{:.3}", last.score.nats_per_token);
        let note = format!("{:.3} before", first.score.nats_per_token);
        tiles.push(Tile { name: "nats per token, held-out answers".into(), value, note });
    }
    let last = record.heldout.as_ref().and_then(|h| h.models.first());
    if let Some(heldout) = last {
        let note = record.compressors.as_ref().map_or(String::new(), |c| {
            format!("xz {:.3}, zstd {:.3}", c.xz.bits_per_byte, c.zstd.bits_per_byte)
        });
        let value = format!("{:.3}", heldout.score.bits_per_byte);
        tiles.push(Tile { name: "bits per byte, held-out text".into(), value, note });
    }
    let tuned = record.tasks.as_ref().and_then(|r| r.models.first());
    for score in HEADLINE.iter().filter_map(|task| tuned?.score(task)) {
        tiles.push(Tile {
            name: lower_first(&score.title),
            value: percent(score.share.value),
            note: interval(score),
        });
    }
    tiles
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |c| c.to_lowercase().chain(chars).collect())
}

fn interval(score: &Score) -> String {
    let share = score.share;
    format!("{:.1}–{:.1} %", share.low * 100.0, share.high * 100.0)
}

fn tone(index: usize) -> Tone {
    if index == 0 { Tone::First } else { Tone::Second }
}

fn model_line(index: usize, model: &ModelResults) -> Named {
    let asked = match model.asked.as_str() {
        "few-shot" => "plain text with solved examples before the question",
        "chat" => "as an assistant, with its tools",
        other => other,
    };
    Named {
        name: tone(index).class().into(),
        value: format!("{} model, asked {asked}", model.model),
    }
}

/// One entry a task, in the order in which the tasks first occur.
fn tasks(models: &[ModelResults]) -> Vec<Task> {
    let mut tasks: Vec<Task> = Vec::new();
    for (index, model) in models.iter().enumerate() {
        for score in &model.scores {
            let line = ScoreLine {
                model: model.model.clone(),
                value: percent(score.share.value),
                interval: interval(score),
                n: score.share.n,
                chance: score.chance.map_or(String::new(), percent),
                bar: score_bar(score, tone(index)),
            };
            match tasks.iter_mut().find(|t| t.task == score.task) {
                Some(task) => task.lines.push(line),
                None => tasks.push(Task {
                    title: score.title.clone(),
                    task: score.task.clone(),
                    lower_is_better: score.lower_is_better,
                    lines: vec![line],
                }),
            }
        }
    }
    tasks
}

/// A bar from 0 to 100 % with the interval as a whisker and chance as a mark.
fn score_bar(score: &Score, tone: Tone) -> String {
    let at = |share: f64| format!("{:.2}%", share.clamp(0.0, 1.0) * 100.0);
    let (value, low, high) = (at(score.share.value), at(score.share.low), at(score.share.high));
    let chance = score.chance.map_or(String::new(), |chance| {
        let x = at(chance);
        format!("<line class=\"chance\" x1=\"{x}\" x2=\"{x}\" y1=\"0\" y2=\"16\"/>")
    });
    format!(
        "<svg class=\"bar\" height=\"16\" role=\"presentation\">\
         <rect class=\"track\" width=\"100%\" height=\"10\" y=\"3\" rx=\"2\"/>\
         <rect class=\"{}\" width=\"{value}\" height=\"10\" y=\"3\" rx=\"2\"/>{chance}\
         <line class=\"whisker\" x1=\"{low}\" x2=\"{high}\" y1=\"8\" y2=\"8\"/>\
         <line class=\"whisker\" x1=\"{low}\" x2=\"{low}\" y1=\"5\" y2=\"11\"/>\
         <line class=\"whisker\" x1=\"{high}\" x2=\"{high}\" y1=\"5\" y2=\"11\"/></svg>",
        tone.class()
    )
}

/// Bits per byte of the models and of the compressors.
fn bits(record: &RunDirectory) -> Vec<Bits> {
    let mut rows: Vec<(String, f64, String, Tone)> = Vec::new();
    for model in record.heldout.iter().flat_map(|h| &h.models) {
        let note = format!("{:.3} nats per token", model.score.nats_per_token);
        rows.push((format!("{} model", model.model), model.score.bits_per_byte, note, Tone::First));
    }
    for model in record.answers.iter().flat_map(|h| &h.models) {
        let note = format!("{:.3} nats per token", model.score.nats_per_token);
        let name = format!("{} model, answers of held-out conversations", model.model);
        rows.push((name, model.score.bits_per_byte, note, Tone::Second));
    }
    for (name, c) in record.compressors.iter().flat_map(|c| [("xz", &c.xz), ("zstd", &c.zstd)]) {
        let note = format!("{}, {}", c.settings, bytes(c.bytes as f64));
        rows.push((name.into(), c.bits_per_byte, note, Tone::Quiet));
    }
    let most = rows.iter().map(|r| r.1).fold(1e-9, f64::max);
    rows.into_iter()
        .map(|(name, value, note, tone)| Bits {
            name,
            value: format!("{value:.3}"),
            note,
            bar: format!(
                "<svg class=\"bar\" height=\"16\" role=\"presentation\"><rect class=\"{}\" \
                 width=\"{:.2}%\" height=\"10\" y=\"3\" rx=\"2\"/></svg>",
                tone.class(),
                (value / most * 100.0).clamp(0.0, 100.0)
            ),
        })
        .collect()
}

fn bits_note(record: &RunDirectory) -> String {
    let Some(c) = &record.compressors else { return String::new() };
    format!(
        "All have seen the {} of training text; the held-out text is {}. xz: size of both \
         texts less size of the training text. zstd: the training text as its dictionary.",
        bytes(c.training_bytes as f64),
        bytes(c.heldout_bytes as f64)
    )
}

fn plots(record: &RunDirectory) -> Result<Vec<Figure>, Error> {
    type Pick = fn(&Metric) -> Option<f64>;
    let points = |metrics: &[Metric], pick: Pick| -> Vec<(f64, f64)> {
        metrics.iter().filter_map(|m| Some((m.tokens as f64, pick(m)?))).collect()
    };
    let curve =
        |name, tone, metrics: &[Metric], pick| Curve { name, tone, points: points(metrics, pick) };
    let levels = record.compressors.iter().flat_map(|c| {
        let level = |name: &str, y: f64| Level { name: format!("{name} {y:.2}"), y };
        [level("xz", c.xz.bits_per_byte), level("zstd", c.zstd.bits_per_byte)]
    });
    let plain = |title, metrics: &[Metric], pick| Plot {
        title,
        x_name: "tokens",
        curves: vec![curve("", Tone::First, metrics, pick)],
        levels: Vec::new(),
        logarithmic: false,
        from_zero: true,
        x_label: tick,
        y_label: tick,
    };
    let (pretrain, finetune) = (&record.pretrain[..], &record.finetune[..]);
    let all = [
        Plot {
            curves: vec![
                curve("training", Tone::Second, pretrain, |m| m.bits_per_byte),
                curve("held out", Tone::First, pretrain, |m| m.heldout_bits_per_byte),
            ],
            levels: levels.collect(),
            logarithmic: true,
            ..plain("Bits per byte, pretraining", &[], |_| None)
        },
        Plot {
            logarithmic: true,
            ..plain("Training loss, nats per token, pretraining", pretrain, |m| m.loss)
        },
        plain("Learning rate, pretraining", pretrain, |m| m.lr),
        Plot {
            logarithmic: true,
            ..plain("Gradient norm, pretraining", pretrain, |m| m.grad_norm)
        },
        Plot {
            logarithmic: true,
            ..plain("Training loss, nats per token, fine-tuning", finetune, |m| m.loss)
        },
        plain("Learning rate, fine-tuning", finetune, |m| m.lr),
        Plot {
            logarithmic: true,
            ..plain("Gradient norm, fine-tuning", finetune, |m| m.grad_norm)
        },
    ];
    let mut figures = Vec::new();
    for plot in all {
        let Some(svg) = plot.svg()? else { continue };
        let legend = plot.curves.iter().filter(|c| c.points.len() > 1 && !c.name.is_empty());
        let legend = legend.map(|c| Named { name: c.tone.class().into(), value: c.name.into() });
        figures.push(Figure { title: plot.title.into(), svg, legend: legend.collect() });
    }
    Ok(figures)
}

/// The curves as a table: about ten rows a stage, at the evaluations where there are any.
fn curve(record: &RunDirectory) -> Vec<CurveRow> {
    let mut rows = Vec::new();
    for (stage, metrics) in [("pretrain", &record.pretrain), ("finetune", &record.finetune)] {
        let evaluated = metrics.iter().filter(|m| m.heldout_bits_per_byte.is_some());
        let picked: Vec<&Metric> = match evaluated.clone().next() {
            Some(_) => evaluated.collect(),
            None => metrics.iter().filter(|m| m.loss.is_some()).collect(),
        };
        for m in spread(&picked, 10) {
            // An evaluation's line has no loss: the last step before it has.
            let step = metrics.iter().rfind(|s| s.step <= m.step && s.loss.is_some());
            let text = |v: Option<f64>, digits: usize| {
                v.map_or(String::new(), |v| format!("{v:.digits$}"))
            };
            rows.push(CurveRow {
                stage: stage.into(),
                step: m.step,
                tokens: count(m.tokens as f64),
                loss: text(step.and_then(|s| s.loss), 3),
                bits: text(m.heldout_bits_per_byte, 3),
            });
        }
    }
    rows
}

/// At most `limit` of `items`, evenly spread, the last one among them.
fn spread<'a, T>(items: &[&'a T], limit: usize) -> Vec<&'a T> {
    let n = items.len();
    match n <= limit {
        true => items.to_vec(),
        false => (1..=limit).map(|i| items[i * n / limit - 1]).collect(),
    }
}

/// What training took, in figures that are the same on every machine.
fn stages(record: &RunDirectory) -> Vec<StageRow> {
    let trained = record.stages.iter().filter(|s| s.flops.is_some());
    trained
        .map(|s| StageRow {
            stage: s.stage.clone(),
            steps: s.steps.map_or(String::new(), |n| count(n as f64)),
            tokens: s.tokens.map_or(String::new(), |t| count(t as f64)),
            flops: s.flops.map_or(String::new(), |f| format!("{:.3} PFLOP", f / 1e15)),
            skipped: s.skipped_steps,
            rollbacks: s.rollbacks,
        })
        .collect()
}

/// Steps that were not learned from, the first of them.
fn skipped(record: &RunDirectory) -> Vec<String> {
    let mut lines = Vec::new();
    for (stage, metrics) in [("pretrain", &record.pretrain), ("finetune", &record.finetune)] {
        for m in metrics {
            if let Some(why) = &m.skipped {
                lines.push(format!("{stage}, step {}: {why}", m.step));
            }
            if let Some(to) = m.rolled_back_to {
                lines.push(format!("{stage}, step {}: back to the weights of step {to}", m.step));
            }
        }
    }
    let more = lines.len().saturating_sub(SKIPPED);
    lines.truncate(SKIPPED);
    if more > 0 {
        lines.push(format!("and {more} more, in metrics.jsonl"));
    }
    lines
}

fn kinds(record: &RunDirectory) -> Vec<KindRow> {
    let Some(corpus) = &record.corpus else { return Vec::new() };
    let row = |kind: &Kind, total| KindRow {
        kind: kind.kind.clone(),
        documents: count(kind.documents as f64),
        bytes: bytes(kind.bytes as f64),
        tokens: kind.tokens.map_or(String::new(), |t| count(t as f64)),
        sample: shown(&kind.sample),
        total,
    };
    let mut rows: Vec<KindRow> = corpus.kinds.iter().map(|k| row(k, false)).collect();
    let all = Kind {
        kind: "together".into(),
        documents: corpus.kinds.iter().map(|k| k.documents).sum(),
        bytes: corpus.kinds.iter().map(|k| k.bytes).sum(),
        tokens: corpus.kinds.iter().map(|k| k.tokens).sum(),
        sample: String::new(),
    };
    if rows.len() > 1 {
        rows.push(row(&all, true));
    }
    if let Some(heldout) = &corpus.heldout {
        let kind = Kind { kind: "held out, never trained on".into(), ..heldout.clone() };
        rows.push(row(&kind, false));
    }
    rows
}

fn overlap(record: &RunDirectory) -> Vec<OverlapRow> {
    let rows = record.corpus.iter().flat_map(|c| &c.overlap);
    rows.map(|o| OverlapRow { task: o.task.clone(), n: o.n, share: percent(o.share) }).collect()
}

fn model(record: &RunDirectory) -> Vec<Named> {
    let Some(m) = &record.run.model else { return Vec::new() };
    let entry = |name: &str, value: String| Named { name: name.into(), value };
    vec![
        entry("architecture", m.architecture.clone()),
        entry("parameters", count(m.parameters as f64)),
        entry("layers", count(m.layers as f64)),
        entry("width", count(m.width as f64)),
        entry(
            "heads (keys and values)",
            format!("{} ({}) of {}", m.heads, m.kv_heads, m.head_width),
        ),
        entry("inner width of the MLP", count(m.ffn as f64)),
        entry("vocabulary", count(m.vocabulary as f64)),
        entry("context", format!("{} tokens", count(m.context as f64))),
    ]
}

fn facts(record: &RunDirectory) -> Vec<Named> {
    let run = &record.run;
    [
        ("version", Some(run.version.clone())),
        ("seed", run.seed.map(|s| s.to_string())),
        ("operands of products", Some(run.products.clone())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(Named { name: name.into(), value: value? }))
    .filter(|fact| !fact.value.is_empty())
    .collect()
}

/// What each stage made, by BLAKE3. Not an earlier report: this one takes its place.
fn hashes(record: &RunDirectory) -> Vec<Named> {
    let stages = record.stages.iter().filter(|s| s.stage != "report");
    stages
        .flat_map(|s| s.outputs.iter().map(|o| (&s.stage, o)))
        .map(|(stage, (name, hash))| Named {
            name: format!("{stage}: {name}"),
            value: hash.clone(),
        })
        .collect()
}

fn samples(record: &RunDirectory) -> Vec<SampleRow> {
    let mut rows = Vec::new();
    for (stage, metrics) in [("pretraining", &record.pretrain), ("fine-tuning", &record.finetune)] {
        let sampled: Vec<&Metric> = metrics.iter().filter(|m| m.sample.is_some()).collect();
        for metric in spread(&sampled, SAMPLES) {
            let Some(sample) = &metric.sample else { continue };
            rows.push(SampleRow {
                at: format!("{stage}, {} tokens", count(metric.tokens as f64)),
                prompt: shown(&sample.prompt),
                text: shown(&sample.text),
            });
        }
    }
    rows
}

fn transcripts(model: &ModelResults) -> Vec<TranscriptGroup> {
    let row = |t: &Transcript| TranscriptRow {
        right: t.right,
        expected: shown(&t.expected),
        turns: t
            .turns
            .iter()
            .map(|turn| TurnRow { role: turn.role.clone(), text: shown(&turn.text) })
            .collect(),
        plain: t.turns.iter().map(|t| format!("{}: {}\n", t.role, shown(&t.text))).collect(),
    };
    let groups = model.scores.iter().map(|score| TranscriptGroup {
        model: model.model.clone(),
        title: score.title.clone(),
        transcripts: model.transcripts.iter().filter(|t| t.task == score.task).map(row).collect(),
    });
    groups.filter(|group| !group.transcripts.is_empty()).collect()
}

/// Text as it is shown: cut at [`SHOWN`] characters, which the cut says, and with control
/// characters visible.
fn shown(text: &str) -> String {
    let visible = |c: char| match c {
        '\n' | '\t' => c,
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    let mut cut: String = text.chars().take(SHOWN).map(visible).collect();
    let left = text.chars().count().saturating_sub(SHOWN);
    if left > 0 {
        cut.push_str(&format!(" … ({left} more characters)"));
    }
    cut
}
