//! The report on synthetic runs: whole, stopped half-way, and with hostile text.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use eval::report;
use eval::run::RunDirectory;
use serde_json::{Value, json};

/// Text that must never become markup.
const HOSTILE: &str = "</pre><script>alert(1)</script> \"' & | `````` # \u{202e}\u{0} {{ 7*7 }}";

/// Writes what a finished run leaves; `sample` is what the model wrote.
fn write_run(folder: &Path, sample: &str) {
    let put = |name: &str, value: Value| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value.to_string()).unwrap();
    };
    put(
        "run.json",
        json!({"schema_version": 1, "command": "homegrown grow --seed 7", "version": "0.1.0",
            "seed": 7, "products": "f32", "source": "the microworld of seed 7",
            "model": {"architecture": "qwen3", "parameters": 1_468_032, "layers": 6, "width": 128,
                "heads": 4, "kv_heads": 2, "head_width": 32, "ffn": 352, "vocabulary": 2048,
                "context": 384},
            "recipe": "seed = 7\n\n[pretrain]\ntokens = 11_000_000\n"}),
    );
    put(
        "machine.json",
        json!({"schema_version": 1, "command": "homegrown grow", "cpu": "Example CPU",
            "isa": "avx512", "threads": 2, "peak_flops_per_s": 548e9}),
    );
    for (stage, seconds, tokens) in [
        ("prepare", 4.2, None),
        ("tokenize", 9.8, Some(11_200_000)),
        ("pretrain", 471.0, Some(11_000_000)),
        ("finetune", 31.5, Some(640_000)),
        ("evaluate", 62.0, Some(210_000)),
    ] {
        put(
            &format!("stages/{stage}.json"),
            json!({"schema_version": 1, "stage": stage, "seconds": seconds, "tokens": tokens,
                "flops": tokens.filter(|_| ["pretrain", "finetune"].contains(&stage)).map(|t: u64| t as f64 * 1e7),
                "share_of_peak": if stage == "pretrain" { Some(0.413) } else { None },
                "peak_rss_bytes": 1_310_000_000u64,
                "outputs": {stage: "3f1c0e5a".repeat(8)}}),
        );
    }
    let kind = |kind: &str, documents: u64, tokens: u64, sample: &str| json!({"kind": kind, "documents": documents, "bytes": tokens * 3, "sample": sample});
    put(
        "data/corpus.json",
        json!({"schema_version": 1,
            "kinds": [
                kind("biographies", 12_400, 3_100_000, "Mira Olsen keeps bees in Tarn."),
                kind("conversations", 9_000, 2_900_000, sample),
                kind("arithmetic", 8_000, 1_100_000, "17 + 25: 7 + 5 = 12, carry 1."),
            ],
            "heldout": kind("", 300, 90_000, ""),
            "overlap": [{"task": "known", "n": 5, "share": 0.021}]}),
    );
    put(
        "shards/tokens.json",
        json!({"schema_version": 1, "heldout": 90_000, "kinds": {"biographies": 3_100_000,
            "conversations": 2_900_000, "arithmetic": 1_100_000}}),
    );
    let (mut pretrain, mut finetune, mut timing) = (String::new(), String::new(), String::new());
    let mut noise = 1u64;
    for step in 1..=1340u64 {
        noise = noise.wrapping_mul(6364136223846793005).wrapping_add(1);
        let jitter = (noise >> 40) as f64 / (1u64 << 24) as f64 - 0.5;
        let loss = 0.9 + 6.7 * (-(step as f64) / 120.0).exp() + 0.16 * jitter;
        let lr = 0.018 * (step as f64 / 60.0).min(1.0).min((1340.0 - step as f64) / 500.0);
        let tokens = step * 8192;
        pretrain += &json!({"step": step, "tokens": tokens,
            "loss": loss, "lr": lr, "grad_norm": 0.4 + loss / 4.0 + 0.3 * jitter})
        .to_string();
        pretrain.push('\n');
        let speed = json!({"step": step, "tokens": tokens, "tokens_per_s": 23_400.0 + jitter});
        timing += &format!("{speed}\n");
        if step % 67 == 0 {
            pretrain += &json!({"step": step, "tokens": tokens,
                "heldout_bits_per_byte": 0.37 + 2.4 * (-(step as f64) / 130.0).exp()})
            .to_string();
            pretrain.push('\n');
        }
        if step % 335 == 0 {
            pretrain += &json!({"step": step, "tokens": tokens,
                "sample": {"prompt": "Mira Olsen", "text": sample}})
            .to_string();
            pretrain.push('\n');
        }
        if step % 17 == 0 {
            finetune += &json!({"step": step / 17, "tokens": step / 17 * 8192, "loss": loss / 3.0,
                "lr": lr / 4.0, "grad_norm": 0.7 + jitter})
            .to_string();
            finetune.push('\n');
        }
    }
    for (stage, lines) in [("pretrain", pretrain), ("finetune", finetune)] {
        fs::create_dir_all(folder.join(stage)).unwrap();
        fs::write(folder.join(stage).join("metrics.jsonl"), lines).unwrap();
    }
    fs::write(folder.join("pretrain/timing.jsonl"), timing).unwrap();
    put(
        "eval/heldout.json",
        json!({"schema_version": 1, "models": [
            {"model": "base", "bits_per_byte": 0.371, "nats_per_token": 0.81, "tokens": 90_000,
             "bytes": 270_000},
            {"model": "fine-tuned", "bits_per_byte": 0.389, "nats_per_token": 0.85,
             "tokens": 90_000, "bytes": 270_000}]}),
    );
    let compressed = |bits: f64, settings: &str| {
        json!({"bits_per_byte": bits, "bytes": (bits * 270_000.0 / 8.0) as u64,
            "settings": settings})
    };
    put(
        "eval/compressors.json",
        json!({"schema_version": 1, "xz": compressed(1.049, "xz -9e"),
            "zstd": compressed(1.113, "zstd --ultra -22 --long=27 -D training"),
            "training_bytes": 30_100_000, "heldout_bytes": 270_000}),
    );
    let score = |task: &str, title: &str, right: u64, n: u64, chance: Option<f64>| {
        let mut value = serde_json::to_value(eval::interval::Proportion::of(right, n)).unwrap();
        value["task"] = json!(task);
        value["title"] = json!(title);
        value["chance"] = json!(chance);
        value["lower_is_better"] = json!(task == "known_refused");
        value
    };
    let scores = |scale: f64| -> Vec<Value> {
        [
            ("known", "Known facts, people held out of fine-tuning", 0.873, Some(0.022)),
            ("in_context", "Facts in the prompt", 0.951, Some(0.14)),
            ("unknown_admitted", "Admits not knowing people that don't exist", 0.904, None),
            ("known_refused", "Wrongly refuses known people", 0.046, None),
            ("calculator", "Calculator, operands never seen", 0.985, Some(0.0)),
            ("translation", "Translation from examples in the prompt", 0.412, Some(0.02)),
            ("games_known", "Legal moves, known games", 0.887, Some(0.31)),
            ("games_heldout", "Legal moves, games never seen", 0.534, Some(0.29)),
        ]
        .into_iter()
        .map(|(task, title, share, chance)| {
            score(task, title, (share * scale * 400.0) as u64, 400, chance)
        })
        .collect()
    };
    let transcript = |right: bool| {
        json!({"task": "known", "right": right, "expected": "Tarn", "turns": [
            {"role": "user", "text": "Where does Mira Olsen live?"},
            {"role": "assistant", "text": if right { "Mira Olsen lives in Tarn." } else { sample }}]})
    };
    put(
        "eval/microworld.json",
        json!({"schema_version": 1, "models": [
            {"model": "fine-tuned", "asked": "chat", "tokens": 120_000,
             "scores": scores(1.0), "transcripts": [transcript(true), transcript(false)]},
            {"model": "base", "asked": "few-shot", "tokens": 90_000,
             "scores": scores(0.7)}]}),
    );
}

fn render(folder: &Path) -> (String, String) {
    report::write(folder).unwrap();
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    (read("report.html"), read("report.md"))
}

#[test]
fn a_whole_run_has_everything() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path(), "Mira Olsen lives in Tarn and keeps bees.");
    // To look at the page: HOMEGROWN_REPORT=/some/folder keeps it.
    if let Some(kept) = std::env::var_os("HOMEGROWN_REPORT") {
        write_run(Path::new(&kept), "Mira Olsen lives in Tarn and keeps bees.");
        report::write(Path::new(&kept)).unwrap();
    }
    let (html, markdown) = render(folder.path());
    assert_eq!(RunDirectory::read(folder.path()).unwrap().missing, Vec::<String>::new());
    for text in ["87.2 %", "1.47 M", "0.371", "homegrown grow --seed 7"] {
        assert!(html.contains(text), "{text} is not in the HTML");
        assert!(markdown.contains(text), "{text} is not in the Markdown");
    }
    assert_eq!(html.matches("class=\"plot\"").count(), 7);
    // Nothing from outside and no program inside.
    for forbidden in ["<script", "http-equiv", "src=", "@import", "url("] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    // The same run gives the same bytes, whatever it cost.
    let timing = fs::read_to_string(folder.path().join("pretrain/timing.jsonl")).unwrap();
    for file in ["machine.json", "pretrain/timing.jsonl"] {
        fs::remove_file(folder.path().join(file)).unwrap();
    }
    let stage = folder.path().join("stages/pretrain.json");
    let record = fs::read_to_string(&stage).unwrap();
    fs::write(&stage, record.replace("471.0", "17.0")).unwrap();
    assert_eq!(render(folder.path()), (html, markdown));

    fs::write(stage, record).unwrap();
    fs::write(folder.path().join("pretrain/timing.jsonl"), timing).unwrap();
    report::write_costs(folder.path()).unwrap();
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let (html, markdown) = (read("costs.html"), read("costs.md"));
    for text in ["9 min 39 s", "41.3 %", "1.31 GB"] {
        assert!(html.contains(text), "{text} is not in the HTML");
        assert!(markdown.contains(text), "{text} is not in the Markdown");
    }
    assert_eq!(html.matches("class=\"plot\"").count(), 1);
}

#[test]
fn hostile_text_stays_text() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path(), HOSTILE);
    let (html, markdown) = render(folder.path());
    assert!(!html.contains("<script") && !html.contains('\u{0}'));
    assert!(html.contains("&lt;script&gt;"));
    assert!(html.contains("{{ 7*7 }}"), "text went through the template engine");
    // In Markdown it stands in code blocks whose fence it cannot close.
    assert!(markdown.contains("```````text"), "{markdown}");
    let tables = |text: &str| text.lines().filter(|line| line.starts_with("|---")).count();
    write_run(folder.path(), "harmless");
    assert_eq!(tables(&markdown), tables(&render(folder.path()).1));
}

#[test]
fn every_table_row_of_markdown_has_its_cells() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path(), "a | b");
    fs::write(
        folder.path().join("data/corpus.json"),
        json!({"kinds": [{"kind": "a | b <i> *c* `d`\n|---|", "documents": 1, "bytes": 1}]})
            .to_string(),
    )
    .unwrap();
    let (_, markdown) = render(folder.path());
    let mut header = 0;
    for (line, next) in markdown.lines().zip(markdown.lines().skip(1)) {
        let cells = |line: &str| line.replace("\\|", "").matches('|').count();
        if next.starts_with("|---") {
            header = cells(line);
        } else if line.starts_with('|') {
            assert_eq!(cells(line), header, "{line}");
        }
    }
    assert!(markdown.contains("a \\| b &lt;i&gt; \\*c\\* \\`d\\` \\|---\\|"), "{markdown}");
}

#[test]
fn a_stopped_run_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path(), "x");
    for stage in ["finetune", "evaluate"] {
        fs::remove_file(folder.path().join(format!("stages/{stage}.json"))).unwrap();
    }
    fs::remove_dir_all(folder.path().join("eval")).unwrap();
    // A line that was being written, and one that is no metric.
    let path = folder.path().join("pretrain/metrics.jsonl");
    let lines = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("not json\n{lines}{{\"step\": 13")).unwrap();
    fs::write(folder.path().join("data/corpus.json"), "{\"schema_version\": 99}").unwrap();
    let (html, markdown) = render(folder.path());
    let html = html.replace("&#x2f;", "/");
    for text in [
        "not complete",
        "the stage evaluate: it has not finished",
        "there is no eval/heldout.json",
        "1 lines of pretrain/metrics.jsonl",
        "schema_version 99",
    ] {
        // Underscores are escaped in Markdown.
        assert!(html.contains(text), "{text} is not in the HTML");
        assert!(markdown.replace('\\', "").contains(text), "{text} is not in the Markdown");
    }
    assert!(html.contains("class=\"plot\""));
}

#[test]
fn an_empty_folder_has_a_report_and_a_missing_one_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (html, _) = render(folder.path());
    assert!(html.contains("there is no run.json"));
    assert!(report::write(&folder.path().join("nowhere")).is_err());
}

#[test]
fn steps_done_again_after_a_kill_count_once() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("pretrain")).unwrap();
    let lines: String = [1, 2, 3, 4, 3, 4, 5]
        .iter()
        .map(|step| format!("{{\"step\":{step},\"loss\":1.0}}\n"))
        .collect();
    fs::write(folder.path().join("pretrain/metrics.jsonl"), lines).unwrap();
    let steps: Vec<u64> =
        RunDirectory::read(folder.path()).unwrap().pretrain.iter().map(|m| m.step).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5]);
}

#[test]
fn text_of_ones_own_lacks_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path(), "x");
    for gone in ["finetune/metrics.jsonl", "stages/finetune.json", "eval/microworld.json"] {
        fs::remove_file(folder.path().join(gone)).unwrap();
    }
    assert_eq!(RunDirectory::read(folder.path()).unwrap().missing.len(), 3);
    let run = json!({"stages": ["prepare", "tokenize", "pretrain", "evaluate", "report"],
        "microworld": false});
    fs::write(folder.path().join("run.json"), run.to_string()).unwrap();
    assert_eq!(RunDirectory::read(folder.path()).unwrap().missing, Vec::<String>::new());
    let (html, _) = render(folder.path());
    assert!(!html.contains("What it can do") && html.contains("Bits per byte"));
}
