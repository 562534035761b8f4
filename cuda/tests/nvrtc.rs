//! NVRTC, which needs no card, takes every source. Without the library this is skipped, unless
//! `HOMEGROWN_NVRTC` names its file.
#![allow(clippy::unwrap_used)]

use cuda::compile::{Compiler, SOURCES};
use cuda::{Error, Library};

#[test]
fn every_source_compiles() {
    match Library::Nvrtc.load() {
        Err(Error::Missing { .. }) if std::env::var_os("HOMEGROWN_NVRTC").is_none() => {
            eprintln!("SKIPPED: there is no NVRTC");
            return;
        }
        loaded => loaded.unwrap(),
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
