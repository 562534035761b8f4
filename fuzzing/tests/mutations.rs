//! Each reader on a sound file and on thousands of damaged ones: bits flipped, bytes changed, cut,
//! put together. `HOMEGROWN_CORPUS=DIR` writes the sound files as a corpus for the fuzz targets.

#![allow(clippy::unwrap_used)]

use compute::rng::Rng;

/// Mutations of each file.
const MUTATIONS: u64 = 3000;

fn mutate(bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + rng.index(4) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.index(bytes.len());
        match rng.index(6) {
            0 => bytes[at] ^= 1 << rng.index(8),
            1 => bytes[at] = *rng.choose(&[0, 1, 0x7f, 0x80, 0xff, b'9', b'"', b'{', b'[', b',']),
            2 => bytes.truncate(at),
            3 => {
                let to = rng.index(bytes.len());
                let n = rng.index(64).min(bytes.len() - at.max(to));
                bytes.copy_within(at..at + n, to);
            }
            4 => {
                let n = 1 + rng.index(16);
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            _ => {
                let n = (1 + rng.index(16)).min(bytes.len() - at);
                let again = bytes[at..at + n].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes
}

#[test]
fn damaged_files_are_refused_and_nothing_else() {
    let corpus = std::env::var_os("HOMEGROWN_CORPUS").map(std::path::PathBuf::from);
    for (i, (name, seed)) in fuzzing::seeds().unwrap().into_iter().enumerate() {
        let target = match name {
            "safetensors" => fuzzing::safetensors,
            "gguf" => fuzzing::gguf,
            "tokenizer" => fuzzing::tokenizer,
            "tokenizer_gguf" => fuzzing::tokenizer_gguf,
            "recipe" => fuzzing::recipe,
            "shard" => fuzzing::shard,
            "checkpoint" => fuzzing::checkpoint,
            "requests" => fuzzing::requests,
            _ => fuzzing::conversations,
        };
        if let Some(corpus) = &corpus {
            std::fs::create_dir_all(corpus.join(name)).unwrap();
            std::fs::write(corpus.join(name).join(format!("seed-{i}")), &seed).unwrap();
        }
        target(&seed);
        let rng = Rng::new(0).stream(name);
        for n in 0..MUTATIONS {
            target(&mutate(&seed, &mut rng.numbered(n)));
        }
    }
}
