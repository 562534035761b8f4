//! NVRTC, which needs no card, takes every source. Without the library this is skipped, unless
//! `HOMEGROWN_NVRTC` names its file.
#![allow(clippy::unwrap_used)]

use std::fs;

use cuda::compile::{Compiler, SOURCES, Source};
use cuda::{Error, Library};

fn there_is_nvrtc() -> bool {
    match Library::Nvrtc.load() {
        Err(Error::Missing { .. }) if std::env::var_os("HOMEGROWN_NVRTC").is_none() => {
            eprintln!("SKIPPED: there is no NVRTC");
            false
        }
        loaded => {
            loaded.unwrap();
            true
        }
    }
}

fn source(text: &'static str) -> Source {
    Source { name: "one.cu", variant: "", text }
}

const ONE: &str = "extern \"C\" __global__ void one(float* y) { y[grid_thread()] = 1.0f; }";

#[test]
fn every_source_compiles() {
    if !there_is_nvrtc() {
        return;
    }
    for capability in [(8, 0), (9, 0)] {
        for source in SOURCES {
            match Compiler::new(capability, None).compile(source) {
                Ok(code) => assert!(code.starts_with(b"\x7fELF"), "{}", source.name),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn cards_of_all_ages() {
    if !there_is_nvrtc() {
        return;
    }
    let compile = |capability| Compiler::new(capability, None).compile(&source(ONE));
    // A card of this generation that came later runs the code of an older one.
    assert!(compile((9, 9)).unwrap().starts_with(b"\x7fELF"));
    let text = compile((99, 0)).unwrap();
    assert!(text.ends_with(b"\0") && String::from_utf8_lossy(&text).contains(".target sm_"));
    let error = compile((2, 0)).unwrap_err().to_string();
    assert!(error.contains("compute capability 20"), "{error}");
}

#[test]
fn what_does_not_compile_is_told() {
    if !there_is_nvrtc() {
        return;
    }
    let wrong = source("\nextern \"C\" __global__ void one(float* y) { y[0] = nothing; }");
    let error = Compiler::new((9, 0), None).compile(&wrong).unwrap_err().to_string();
    assert!(error.contains("one.cu does not compile for sm_90"), "{error}");
    assert!(error.contains("one.cu(2)") && error.contains("nothing"), "{error}");
}

#[test]
fn code_is_kept() {
    if !there_is_nvrtc() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("kernels");
    let compiler = Compiler::new((9, 0), Some(cache.clone()));
    let code = compiler.compile(&source(ONE)).unwrap();
    let files = || fs::read_dir(&cache).unwrap().map(|file| file.unwrap().path());
    assert_eq!(files().count(), 1);
    let file = files().next().unwrap();
    let kept = fs::read(&file).unwrap();
    assert!(kept.ends_with(&code));
    assert_eq!(compiler.compile(&source(ONE)).unwrap(), code);
    // What was damaged is made anew.
    fs::write(&file, &kept[..kept.len() / 2]).unwrap();
    assert_eq!(compiler.compile(&source(ONE)).unwrap(), code);
    assert_eq!(fs::read(&file).unwrap(), kept);
    // Another card, another file.
    Compiler::new((8, 0), Some(cache.clone())).compile(&source(ONE)).unwrap();
    assert_eq!(files().count(), 2);
    // A cache that can't be is done without.
    assert_eq!(Compiler::new((9, 0), Some(file.join("no"))).compile(&source(ONE)).unwrap(), code);
}
