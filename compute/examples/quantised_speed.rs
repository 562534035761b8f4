//! Products with quantised weights beside the machine's limits in the same run: many rows beside
//! the products of bytes that it can do, one row beside what it can read (and by weights that lie in the cache).
//!
//!     cargo run --release -p homegrown-compute --example quantised_speed -- [THREADS [TYPE]]

use std::time::Instant;

use compute::Cpu;
use compute::blocks::BlockType;
use compute::cpu::peak;
use compute::cpu::quantised::{Layout, product, quantise};
use compute::strips::Strips;

fn best(mut run: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..15 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn main() {
    let threads = std::env::args().nth(1).and_then(|t| t.parse().ok()).unwrap_or(2);
    let cpu = Cpu::new(threads);
    let only = std::env::args().nth(2);
    let (ops, bytes) = (peak::byte_ops(&cpu), peak::read_bandwidth(&cpu));
    println!(
        "{}, {threads} threads: {:.0} GOP/s, {:.1} GB/s",
        cpu.isa.name(),
        ops / 1e9,
        bytes / 1e9
    );
    let wanted = |kind: &BlockType| only.as_ref().is_none_or(|only| only == kind.name());
    for kind in BlockType::ALL.into_iter().filter(|kind| kind.elements() > 1 && wanted(kind)) {
        let weights = |n: usize, k: usize| {
            let row = vec![17u8; k / kind.elements() * kind.bytes()];
            Strips::new(&cpu, n, k, kind, |_| &row[..]).expect("memory")
        };
        let run = |m: usize, w: &Strips| {
            let x: Vec<f32> = (0..m * w.cols()).map(|i| (i % 17) as f32 - 8.0).collect();
            let layout = Layout::new(w.cols());
            let (mut codes, mut y) = (vec![0; m * layout.codes()], vec![0.0; m * w.rows()]);
            let mut numbers = vec![0.0; m * layout.numbers()];
            quantise(&cpu, &x, w.cols(), &mut codes, &mut numbers);
            let products = best(|| product(&cpu, m, &codes, &numbers, w, &mut y, false));
            (products, best(|| quantise(&cpu, &x, w.cols(), &mut codes, &mut numbers)))
        };
        let (small, large) = (weights(1536, 768), weights(131072, 4096));
        let ((many, rounding), (one, _)) = (run(512, &small), run(1, &large));
        let near = small.bytes() as f64 / run(1, &small).0;
        let more = [2, 4, 8].map(|m| format!("{:.2}", run(m, &large).0 / one));
        let did = 2.0 * 512.0 * 1536.0 * 768.0 / many;
        let read = large.bytes() as f64 / one;
        println!(
            "{:8} 512 rows {:6.0} GOP/s {:3.0} %, rounding {:4.1} % more; 1 row {:5.1} GB/s {:3.0} % ({:.1}); 2, 4, 8 rows {} times as long",
            kind.name(),
            did / 1e9,
            100.0 * did / ops,
            100.0 * rounding / many,
            read / 1e9,
            100.0 * read / bytes,
            near / 1e9,
            more.join(", "),
        );
    }
}
