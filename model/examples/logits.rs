//! Logits of a model for given tokens, to compare with another program's.
//!
//!     cargo run --release -p homegrown-model --example logits -- MODEL TOKENS.json OUT.f32 [--keep] [f32|f16|bf16|q16|q8]
//!
//! TOKENS.json: a list of ids. OUT.f32: `[tokens, vocabulary]`, little-endian. Quantised weights are widened
//! to f32 unless --keep is given; keys and values are f32 unless another type is.

use std::io::Write;
use std::sync::Arc;

use compute::Cpu;
use compute::kv::{KvSequence, KvType, PAGE};
use compute::tape::Workspace;
use compute::tensor::DType;
use model::transformer::Step;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(tokens), Some(out)) = (args.next(), args.next(), args.next()) else {
        return Err("MODEL TOKENS.json OUT.f32".into());
    };
    let cpu = Cpu::new(2);
    let more: Vec<String> = args.collect();
    let keep = more.iter().any(|a| a == "--keep").then_some(&cpu);
    let kind = more.iter().find(|a| *a != "--keep").map_or(Ok(KvType::F32), |a| a.parse())?;
    let model = model::directory::load_keeping(path.as_ref(), keep)?.transformer;
    let tokens: Vec<u32> = serde_json::from_str(&std::fs::read_to_string(tokens)?)?;
    let count = tokens.len().div_ceil(PAGE);
    let mut pages = model.pages(kind, count)?;
    let mut kv = KvSequence::default();
    kv.pages.extend((0..count).filter_map(|_| pages.allocate()));
    let mut ws = Workspace::new(Arc::new(Cpu::new(2)), DType::F32);
    let mut out = std::io::BufWriter::new(std::fs::File::create(out)?);
    for tokens in tokens.chunks(128) {
        let mut steps = [Step { tokens, logits: tokens.len(), kv: &mut kv }];
        for x in model.forward_cached(&mut ws, &mut pages, &mut steps) {
            out.write_all(&x.to_le_bytes())?;
        }
    }
    Ok(out.flush()?)
}
