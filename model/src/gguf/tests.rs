//! Against a file that the package `gguf` wrote (`fixture.py`), and against damaged ones.

#![allow(clippy::unwrap_used)]

use super::*;

const FIXTURE: &[u8] = include_bytes!("fixture.gguf");

#[test]
fn a_file_from_elsewhere_is_read() {
    let contents = Contents::read(FIXTURE).unwrap();
    let get = |key: &str| contents.metadata.get(key).unwrap();
    assert_eq!(get("general.architecture").as_str(), Some("llama"));
    assert_eq!(get("general.name").as_str(), Some("naïve"));
    assert_eq!(get("llama.block_count").as_u64(), Some(2));
    assert_eq!(get("llama.rope.freq_base").as_f64(), Some(10000.5));
    assert_eq!(get("tokenizer.ggml.add_bos_token").as_bool(), Some(true));
    assert_eq!((get("some.negative").as_f64(), get("some.negative").as_u64()), (Some(-3.0), None));
    let strings = |key| contents.strings(FIXTURE, key);
    assert_eq!(strings("tokenizer.ggml.tokens").unwrap(), ["a", "", "ü\n"]);
    let numbers = |key| contents.numbers(FIXTURE, key);
    assert_eq!(numbers("tokenizer.ggml.scores").unwrap(), [0.5, -1.0, 2.0]);
    assert_eq!(numbers("tokenizer.ggml.token_type").unwrap(), [1.0, 3.0, 6.0]);
    assert!(strings("tokenizer.ggml.scores").is_err() && numbers("nothing").is_err());

    let widened = |name: &str| {
        let info = &contents.tensors[name];
        let mut y = vec![f32::NAN; info.shape.iter().product()];
        info.kind.widen(&FIXTURE[info.bytes.clone()], &mut y);
        (info.shape.clone(), y)
    };
    assert_eq!(widened("plain"), (vec![2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    assert_eq!(widened("half"), (vec![4], vec![0.0, 1.0, 2.0, 3.0]));
    let info = &contents.tensors["blocks"];
    assert_eq!((info.kind, &info.shape[..]), (BlockType::Q8_0, &[2, 64][..]));
    let bytes: Vec<u8> = (0..136).collect();
    assert_eq!(&FIXTURE[info.bytes.clone()], bytes);
}

#[test]
fn damage_is_named_and_nothing_panics() {
    // After the last tensor there is only padding.
    let contents = Contents::read(FIXTURE).unwrap();
    let last = contents.tensors.values().map(|t| t.bytes.end).max().unwrap();
    for end in 0..last {
        assert!(Contents::read(&FIXTURE[..end]).is_err(), "cut at {end}");
    }
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = FIXTURE.to_vec();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Contents::read(&file).unwrap_err().to_string()
    };
    assert!(changed(0, b"GGML").contains("byte 0: it does not begin with GGUF"));
    assert!(changed(4, &[9]).contains("version 9"));
    assert!(changed(8, &[0xff; 8]).contains("don't fit the file"));
    assert!(changed(16, &[0xff; 8]).contains("don't fit the file"));
    for bit in 0..8 * FIXTURE.len() {
        let mut file = FIXTURE.to_vec();
        file[bit / 8] ^= 1 << (bit % 8);
        if let Ok(contents) = Contents::read(&file) {
            for key in contents.metadata.keys() {
                let _ = (contents.strings(&file, key), contents.numbers(&file, key));
            }
        }
    }
}
