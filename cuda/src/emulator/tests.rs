//! What device.h promises and how the emulator takes mistakes.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use crate::gpu::args;
use crate::matmul::{Matrix, matmul};
use crate::{Error, Gpu, Shape};

fn bf16(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

/// Small whole numbers, which all formats hold.
fn whole(i: usize) -> f32 {
    ((i * 7 + i / 5) % 17) as f32 - 8.0
}

#[test]
fn fragments_make_products() {
    let gpu = Gpu::emulated();
    let a: Vec<f32> = (0..256).map(whole).collect();
    let b: Vec<f32> = (0..128).map(|i| whole(i + 3)).collect();
    let by_rows: Vec<u16> = (0..128).map(|i| bf16(b[i % 8 * 16 + i / 8])).collect();
    let upload =
        |x: &[f32]| gpu.upload(&x.iter().map(|x| bf16(*x)).collect::<Vec<_>>(), "x").unwrap();
    let (da, db, rows) = (upload(&a), upload(&b), gpu.upload(&by_rows, "b").unwrap());
    let (mut d, mut again) =
        (gpu.buffer::<f32>(128, "d").unwrap(), gpu.buffer::<f32>(128, "d").unwrap());
    let args = args![da.slice(), db.slice(), rows.slice(), d.slice_mut(), again.slice_mut()];
    // SAFETY: lengths as the kernel says.
    unsafe { gpu.launch("probe_product", Shape::new(1, 32).shared(2 * 512), args).unwrap() };
    let expected: Vec<f32> =
        (0..128).map(|i| (0..16).map(|k| a[i / 8 * 16 + k] * b[i % 8 * 16 + k]).sum()).collect();
    assert_eq!(d.read().unwrap(), expected);
    let one_more: Vec<f32> = expected.iter().map(|x| x + 1.0).collect();
    assert_eq!(again.read().unwrap(), one_more);
    // Products by shapes.
    matmul(
        &gpu,
        Matrix::bf16(da.slice(), 16, 16),
        Matrix::bf16(db.slice(), 8, 16).t(),
        d.slice_mut(),
        true,
    )
    .unwrap();
    let twice: Vec<f32> = expected.iter().map(|x| 2.0 * x).collect();
    assert_eq!(d.read().unwrap(), twice);
}

#[test]
fn fragments_of_bytes_make_products() {
    let gpu = Gpu::emulated();
    let a: Vec<i8> = (0..512).map(|i| whole(i) as i8 * 15).collect();
    let b: Vec<i8> = (0..256).map(|i| whole(i + 3) as i8 * 13).collect();
    let words = |x: &[i8]| -> Vec<u32> {
        x.chunks(4).map(|x| u32::from_le_bytes([0, 1, 2, 3].map(|i| x[i] as u8))).collect()
    };
    let (da, db) = (gpu.upload(&words(&a), "a").unwrap(), gpu.upload(&words(&b), "b").unwrap());
    let mut d = gpu.buffer::<u32>(128, "d").unwrap();
    let args = args![da.slice(), db.slice(), d.slice_mut()];
    // SAFETY: lengths as the kernel says.
    unsafe { gpu.launch("probe_bytes", Shape::new(1, 32), args).unwrap() };
    let dot = |i: usize| -> i32 {
        (0..32).map(|k| i32::from(a[i / 8 * 32 + k]) * i32::from(b[i % 8 * 32 + k])).sum()
    };
    let got: Vec<i32> = d.read().unwrap().iter().map(|x| *x as i32).collect();
    assert_eq!(got, (0..128).map(dot).collect::<Vec<_>>());
}

#[test]
fn threads_meet() {
    let gpu = Gpu::emulated();
    let x: Vec<f32> = (0..96).map(whole).collect();
    let dx = gpu.upload(&x, "x").unwrap();
    let mut y = gpu.buffer::<f32>(4 * 96, "y").unwrap();
    let mut bits = gpu.buffer::<u32>(4 * 96, "bits").unwrap();
    for _ in 0..2 {
        let args = args![dx.slice(), y.slice_mut(), bits.slice_mut()];
        // SAFETY: lengths as the kernel says.
        unsafe { gpu.launch("probe_block", Shape::new(1, 96), args).unwrap() };
        let (y, bits) = (y.read().unwrap(), bits.read().unwrap());
        for i in 0..96 {
            let next = if i % 32 == 31 { x[i] } else { x[i + 1] };
            assert_eq!(y[4 * i..4 * i + 4], [x.iter().sum(), 8.0, next, x[i / 8 * 8]], "{i}");
            let votes = (0..32).map(|j| u32::from(x[i / 32 * 32 + j] > 0.0) << j).sum::<u32>();
            let pair = u32::from(bf16(x[i])) | 0x3f80_0000;
            let half = from_f16((i * 257) as u16).to_bits();
            assert_eq!(bits[4 * i..4 * i + 3], [votes, pair, half], "{i}");
        }
    }
}

/// A number of IEEE's 16 bits, by arithmetic.
fn from_f16(bits: u16) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
    let value = match exponent {
        0 => mantissa * 2f32.powi(-24),
        _ => (1.0 + mantissa / 1024.0) * 2f32.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -value } else { value }
}

#[test]
fn copies_come_when_they_are_waited_for() {
    let gpu = Gpu::emulated();
    let x: Vec<f32> = (0..64).map(whole).collect();
    let dx = gpu.upload(&x, "x").unwrap();
    let mut y = gpu.buffer::<f32>(128, "y").unwrap();
    // SAFETY: lengths as the kernel says.
    unsafe {
        let shape = Shape::new(1, 16).shared(512);
        gpu.launch("probe_copies", shape, args![dx.slice(), y.slice_mut()]).unwrap();
    }
    let y = y.read().unwrap();
    assert_eq!(y[..8], x[..8]);
    assert_eq!(y[8..64], [0.0; 56]);
    assert_eq!(y[64..], x);
}

#[test]
fn mistakes_are_told() {
    let gpu = Gpu::emulated();
    let launch = |name, shape, all: i32| {
        // SAFETY: it takes no memory.
        unsafe { gpu.launch(name, shape, args![all]) }.map_err(|e| e.to_string())
    };
    launch("probe_barrier", Shape::new(2, 64), 1).unwrap();
    let error = launch("probe_barrier", Shape::new(2, 64), 0).unwrap_err();
    assert!(error.contains("32 for their block, 32 have ended"), "{error}");
    assert!(launch("nothing", Shape::new(1, 32), 1).unwrap_err().contains("no such kernel"));
    assert!(launch("fill", Shape::new(1, 32), 1).unwrap_err().contains("1 arguments of 3"));
    let shape = Shape::new(1, 32).shared(1 << 20);
    assert!(launch("probe_barrier", shape, 1).unwrap_err().contains("shared memory"));
    let x = gpu.buffer::<u16>(4, "x").unwrap();
    // SAFETY: refused.
    let error = unsafe { gpu.launch("fill", shape, args![1.0f32, x.slice(), 4usize]) }.unwrap_err();
    assert!(error.to_string().contains("argument 1 is Pointer(2)"), "{error}");
    let error = gpu.buffer::<f32>(5 << 30, "the logits of a step").unwrap_err().to_string();
    let bytes = 16u64 << 30;
    let free = bytes - 8;
    assert_eq!(
        error,
        format!(
            "out of memory on emulator: the logits of a step needs {} bytes, {free} of {bytes} are free",
            20u64 << 30
        )
    );
    assert!(matches!(gpu.buffer::<f32>(usize::MAX, "x"), Err(Error::OutOfMemory { .. })));
    drop(x);
    assert_eq!(gpu.memory().unwrap().free as u64, bytes);
}

#[test]
fn graphs_keep_their_memory_and_run_again() {
    let gpu = Gpu::emulated();
    let mut y = gpu.zeros::<f32>(100, "y").unwrap();
    let one = gpu.upload(&[1.0f32; 100], "one").unwrap();
    let add = |x: &crate::Buffer<f32>, y: &mut crate::Buffer<f32>| {
        crate::ops::update::axpby(&gpu, 1.0, x.slice(), 1.0, y.slice_mut())
    };
    let graph = gpu
        .capture(|| {
            add(&one, &mut y)?;
            let mut copy = gpu.zeros(100, "copy")?;
            copy.slice_mut().copy(y.slice())?;
            add(&copy, &mut y)
        })
        .unwrap();
    drop(one);
    assert_eq!(y.read().unwrap(), [0.0; 100]);
    for expected in [2.0, 6.0, 14.0] {
        graph.launch().unwrap();
        assert_eq!(y.read().unwrap(), [expected; 100]);
    }
    assert!(matches!(gpu.capture(|| y.read().map(drop)), Err(Error::Recording(_))));
    assert!(matches!(gpu.capture(|| graph.launch()), Err(Error::Recording(_))));
    y.slice_mut().zero().unwrap();
    assert_eq!(y.read().unwrap(), [0.0; 100]);
}

#[test]
fn a_graph_costs_what_its_work_has_at_a_time() {
    let gpu = Gpu::emulated();
    let mut y = gpu.zeros::<f32>(100, "y").unwrap();
    let before = gpu.memory().unwrap().free;
    let mut last = None;
    let graph = gpu
        .capture(|| {
            for _ in 0..5 {
                // The one before is given up only now.
                let mut copy = gpu.buffer(100, "copy")?;
                copy.slice_mut().copy(y.slice())?;
                crate::ops::update::axpby(&gpu, 1.0, copy.slice(), 1.0, y.slice_mut())?;
                crate::ops::update::scale(&gpu, 0.5, copy.slice_mut())?;
                last = Some(copy);
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(before - gpu.memory().unwrap().free, 2 * 400);
    y.slice_mut().write(&[1.0; 100]).unwrap();
    graph.launch().unwrap();
    assert_eq!(y.read().unwrap(), [32.0; 100]);
    drop(graph);
    assert_eq!(
        last.take().unwrap().read().unwrap(),
        [8.0; 100],
        "who has a buffer keeps its memory"
    );
    assert_eq!(gpu.memory().unwrap().free, before);
}

#[test]
fn other_threads_work_while_a_graph_is_recorded() {
    let gpu = Gpu::emulated();
    let mut y = gpu.zeros::<f32>(10, "y").unwrap();
    let graph = gpu
        .capture(|| {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| {
                    let mut x = gpu.upload(&[1.0f32; 10], "x").unwrap();
                    crate::ops::update::scale(&gpu, 3.0, x.slice_mut()).unwrap();
                    x.read().unwrap()
                });
                assert_eq!(other.join().unwrap(), [3.0; 10]);
            });
            y.slice_mut().zero()
        })
        .unwrap();
    y.slice_mut().write(&[2.0; 10]).unwrap();
    graph.launch().unwrap();
    assert_eq!(y.read().unwrap(), [0.0; 10]);
}

#[test]
fn a_recording_that_fails_or_panics_leaves_the_card_as_it_was() {
    let gpu = Gpu::emulated();
    let before = gpu.memory().unwrap().free;
    let half = || gpu.zeros::<f32>(100, "half of it").map(drop);
    let failed = gpu.capture(|| half().and_then(|()| gpu.buffer::<f32>(1 << 50, "x").map(drop)));
    assert!(matches!(failed, Err(Error::OutOfMemory { .. })));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        gpu.capture(|| half().map(|()| panic!("in the middle")))
    }));
    assert!(panicked.is_err());
    assert_eq!(gpu.memory().unwrap().free, before);
    gpu.capture(half).unwrap().launch().unwrap();
}

#[test]
#[ignore = "ends the program, which the next test does for it"]
fn goes_out_of_bounds() {
    let gpu = Gpu::emulated();
    let mut x = gpu.buffer::<f32>(4, "x").unwrap();
    // SAFETY: none, which is the test.
    unsafe { gpu.launch("fill", Shape::new(1, 32), args![1.0f32, x.slice_mut(), 5usize]).unwrap() };
}

#[test]
fn what_goes_out_of_bounds_is_told() {
    let test = "emulator::tests::goes_out_of_bounds";
    let program = std::env::current_exe().unwrap();
    let ran = Command::new(program).args(["--ignored", "--exact", test]).output().unwrap();
    let told = String::from_utf8_lossy(&ran.stderr);
    assert!(!ran.status.success());
    assert!(told.contains("emulator: fill, block (0, 0, 0), thread 1 touches"), "{told}");
}
