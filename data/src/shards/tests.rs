#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

type Document = (Vec<u32>, Option<Vec<bool>>, u64);

fn write(folder: &Path, vocab_size: u32, limit: u64, documents: &[Document]) -> Totals {
    let hash = store::hash_bytes(b"tokenizer");
    let mut writer = ShardWriter::create(folder, hash, vocab_size).unwrap().shard_tokens(limit);
    for (tokens, learned, bytes) in documents {
        writer.push(tokens, learned.as_deref(), *bytes).unwrap();
    }
    writer.finish().unwrap()
}

fn documents(vocab_size: u32) -> impl Strategy<Value = Vec<Document>> {
    let token = (0..vocab_size, any::<bool>());
    let document = (prop::collection::vec(token, 2..20), any::<bool>(), 0..1000u64).prop_map(
        |(tokens, masked, bytes)| {
            let (ids, mut learned): (Vec<u32>, Vec<bool>) = tokens.into_iter().unzip();
            learned[1] = true;
            (ids, masked.then_some(learned), bytes)
        },
    );
    prop::collection::vec(document, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(
        (vocab_size, documents) in prop_oneof![Just(5u32), Just(65_536), Just(65_537), Just(151_936)]
            .prop_flat_map(|v| (Just(v), documents(v))),
        limit in 1..60u64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        // What an earlier, longer set left behind.
        std::fs::write(dir.path().join("00099.shard"), "old").unwrap();
        let totals = write(dir.path(), vocab_size, limit, &documents);
        let shards = Shards::open(dir.path(), Some(store::hash_bytes(b"tokenizer"))).unwrap();
        prop_assert_eq!(shards.totals(), totals);
        prop_assert_eq!(totals.documents, documents.len() as u64);
        prop_assert_eq!(totals.text_bytes, documents.iter().map(|d| d.2).sum::<u64>());
        for (i, (tokens, learned, _)) in documents.iter().enumerate() {
            let n = shards.document_tokens(i as u64);
            prop_assert_eq!(n, tokens.len());
            let all: Vec<_> = shards.read(i as u64, 0..n).collect();
            for (j, (id, learn)) in all.iter().enumerate() {
                prop_assert_eq!(*id, tokens[j]);
                let want = learned.as_ref().is_none_or(|l| l[j]);
                prop_assert!(*learn == want || j == 0);
            }
            prop_assert_eq!(shards.read(i as u64, 1..n - 1).collect::<Vec<_>>(), &all[1..n - 1]);
        }
    }

    /// Whatever is done to a file, opening it is an error, not a panic; also when the one who did
    /// it has set the checksum right.
    #[test]
    fn a_damaged_shard_is_an_error(
        documents in documents(300),
        at in any::<prop::sample::Index>(),
        change in 1..=255u8,
        cut in any::<bool>(),
        mend in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 300, 1 << 20, &documents);
        let path = dir.path().join("00000.shard");
        let good = std::fs::read(&path).unwrap();
        let mut bytes = good.clone();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= change }
        if mend && bytes.len() >= HEADER {
            let sum = checksum(&bytes, &bytes[HEADER..]).unwrap();
            bytes[CHECKSUM].copy_from_slice(&sum.0);
        }
        std::fs::write(&path, &bytes).unwrap();
        match Shards::open(dir.path(), None) {
            Err(e) => prop_assert!(e.to_string().contains(&dir.path().display().to_string())),
            // Bytes that nothing depends on, or a valid file of other contents.
            Ok(shards) => {
                prop_assert!(bytes == good || mend || (120..HEADER).contains(&at));
                for d in 0..shards.totals().documents {
                    let n = shards.document_tokens(d);
                    prop_assert!(shards.read(d, 0..n).all(|(id, _)| id < shards.vocab_size()));
                }
            }
        }
    }
}

#[test]
fn a_set_is_whole_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let document = (vec![1, 2, 3], None, 2);
    write(dir.path(), 4, 3, &[document.clone(), document.clone(), document]);
    let open = || Shards::open(dir.path(), None);
    assert_eq!(open().unwrap().totals().documents, 3);
    let other = store::hash_bytes(b"other");
    let error = Shards::open(dir.path(), Some(other)).unwrap_err();
    assert!(matches!(error, ShardError::Tokenizer { .. }), "{error}");

    std::fs::remove_file(dir.path().join("00002.shard")).unwrap();
    assert!(open().unwrap_err().to_string().contains("goes on after 00001"));
    std::fs::remove_file(dir.path().join("00000.shard")).unwrap();
    assert!(open().unwrap_err().to_string().contains("00000.shard is not there"));
    std::fs::rename(dir.path().join("00001.shard"), dir.path().join("00000.shard")).unwrap();
    assert!(open().unwrap_err().to_string().contains("number 1"));
    std::fs::remove_file(dir.path().join("00000.shard")).unwrap();
    assert!(open().unwrap_err().to_string().contains("no *.shard files"));
}

#[test]
fn documents_that_teach_nothing_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(dir.path(), store::hash_bytes(b""), 10).unwrap();
    let mut why = |tokens: &[u32], learned: Option<&[bool]>| {
        writer.push(tokens, learned, 0).unwrap_err().to_string()
    };
    assert!(why(&[1], None).contains("nothing to learn"));
    assert!(why(&[1, 10], None).contains("token 10"));
    assert!(why(&[1, 2], Some(&[true])).contains("mask of 1"));
    assert!(why(&[1, 2], Some(&[true, false])).contains("none of its tokens"));
    assert!(writer.finish().unwrap_err().to_string().contains("not one document"));
}
