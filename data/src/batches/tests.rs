#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use compute::rng::Rng;
use proptest::prelude::*;

use super::*;
use crate::shards::ShardWriter;

/// A set of documents of the given lengths in tokens. Every token of a set is another id, so that
/// a row tells where it is from. Even tokens are to be learned.
fn set(first_id: u32, lengths: &[usize]) -> Arc<Shards> {
    let dir = tempfile::tempdir().unwrap();
    let hash = store::hash_bytes(b"");
    let mut writer = ShardWriter::create(dir.path(), hash, 1 << 20).unwrap().shard_tokens(100);
    let mut id = first_id;
    for n in lengths {
        let tokens: Vec<u32> = (id..id + *n as u32).collect();
        let learned: Vec<bool> = tokens.iter().map(|t| t % 2 == 0).collect();
        writer.push(&tokens, Some(&learned), 1).unwrap();
        id += *n as u32;
    }
    writer.finish().unwrap();
    Arc::new(Shards::open(dir.path(), None).unwrap())
}

fn loader(parts: &[(&Arc<Shards>, f64)], context: usize, seed: u64) -> Loader {
    let part = |(s, weight): &(&Arc<Shards>, f64)| Part {
        shards: Arc::clone(s),
        weight: *weight,
        loss: LossOn::All,
    };
    Loader::new(parts.iter().map(part).collect(), context, seed).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Every target of every document comes up once an epoch, after the token before it.
    #[test]
    fn an_epoch_is_every_row_once(
        lengths in prop::collection::vec(3..60usize, 1..40),
        context in 1..30usize,
        seed in any::<u64>(),
    ) {
        let shards = set(0, &lengths);
        let mut loader = loader(&[(&shards, 1.0)], context, seed);
        let mut count = BTreeMap::<u32, u64>::new();
        let mut last = BTreeSet::new();
        let mut at = 0;
        for n in &lengths {
            at += *n as u32;
            last.insert(at - 1);
        }
        while loader.state().parts[0].epoch < 3 {
            let batch = loader.next(context + 7);
            prop_assert!(batch.tokens.len() <= context + 7);
            prop_assert_eq!(batch.tokens.len(), batch.targets.len());
            prop_assert_eq!(batch.spans.iter().map(|s| s.len).sum::<usize>(), batch.tokens.len());
            for span in &batch.spans {
                prop_assert!((1..=context).contains(&span.len));
                for row in span.start..span.start + span.len {
                    let (token, target) = (batch.tokens[row], batch.targets[row]);
                    prop_assert_eq!(target, token + 1);
                    prop_assert!(!last.contains(&token));
                    prop_assert_eq!(token, batch.tokens[span.start] + (row - span.start) as u32);
                    *count.entry(token).or_default() += 1;
                }
            }
        }
        for piece in &loader.state().ahead {
            let first: usize = lengths[..piece.document as usize].iter().sum();
            for row in piece.start..piece.end {
                *count.entry((first + row) as u32).or_default() += 1;
            }
        }
        // All whole epochs, and what was drawn of the present one.
        let rows: usize = lengths.iter().map(|n| n - 1).sum();
        prop_assert_eq!(count.len(), rows);
        let epoch = loader.state().parts[0].epoch;
        prop_assert!(count.values().all(|c| (epoch..=epoch + 1).contains(c)));
    }

    /// Saved and restored before any batch, the stream is the same.
    #[test]
    fn it_goes_on_as_if_uninterrupted(
        seed in any::<u64>(),
        weights in (0.1..1.0f64, 0.1..1.0f64),
    ) {
        let (a, b) = (set(0, &[5, 90, 7, 20, 3]), set(1000, &[4, 4, 30]));
        let make = || loader(&[(&a, weights.0), (&b, weights.1)], 16, seed);
        let mut whole = make();
        for _ in 0..60 {
            let saved = serde_json::to_string(whole.state()).unwrap();
            let mut other = make();
            other.restore(serde_json::from_str(&saved).unwrap()).unwrap();
            let want = whole.next(40);
            prop_assert_eq!(&other.next(40), &want);
            prop_assert_eq!(other.state(), whole.state());
        }
    }

    #[test]
    fn permutations_are_permutations(n in 1..500u64, seed in any::<u64>()) {
        let rng = Rng::new(seed);
        let image: BTreeSet<u64> = (0..n).map(|i| permute(i, n, &rng)).collect();
        prop_assert_eq!(image.into_iter().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
    }
}

#[test]
fn permutations_look_random() {
    // Over many seeds, each element of a small set comes to each place about equally often.
    let n = 10;
    let mut counts = [[0; 10]; 10];
    for seed in 0..10_000 {
        let rng = Rng::new(seed);
        (0..n).for_each(|i| counts[i as usize][permute(i, n, &rng) as usize] += 1);
    }
    // Standard deviation 30.
    assert!(counts.iter().flatten().all(|c| (850..1150).contains(c)), "{counts:?}");
    // And neighbours don't stay neighbours in a large one.
    let rng = Rng::new(1);
    let near = (0..9_999)
        .filter(|i| permute(*i, 10_000, &rng).abs_diff(permute(i + 1, 10_000, &rng)) < 100);
    assert!(near.count() < 300);
}

#[test]
fn shares_of_rows_follow_the_weights() {
    let (a, b, c) = (set(0, &[5, 90, 7, 20, 3]), set(1000, &[4, 4, 30]), set(2000, &[9]));
    let mut loader = loader(&[(&a, 3.0), (&b, 1.0), (&c, 0.0)], 16, 7);
    let mut rows = [0u32; 3];
    let mut filled = 0;
    for _ in 0..200 {
        let batch = loader.next(64);
        filled += batch.tokens.len();
        batch.tokens.iter().for_each(|t| rows[*t as usize / 1000] += 1);
    }
    let share = f64::from(rows[0]) / f64::from(rows.iter().sum::<u32>());
    assert!((share - 0.75).abs() < 0.01 && rows[2] == 0, "{rows:?}");
    assert!(filled as f64 > 0.98 * 200.0 * 64.0, "{filled}");
    assert!(loader.state().parts[1].epoch > 3);

    loader.set_weights(&[0.0, 0.0, 1.0]).unwrap();
    (0..AHEAD).for_each(|_| drop(loader.next(64)));
    assert!(loader.next(64).tokens.iter().all(|t| *t >= 2000));
    assert!(loader.set_weights(&[1.0]).is_err());
    assert!(loader.set_weights(&[0.0, 0.0, 0.0]).is_err());
    assert!(loader.set_weights(&[f64::NAN, 1.0, 1.0]).is_err());
}

#[test]
fn only_what_is_marked_is_a_target() {
    let shards = set(0, &[3, 4]);
    let part = Part { shards: Arc::clone(&shards), weight: 1.0, loss: LossOn::Learned };
    // Windows of one row: those of odd targets hold nothing to learn.
    let mut learned = Loader::new(vec![part], 1, 0).unwrap();
    let mut targets = BTreeSet::new();
    (0..100).for_each(|_| targets.extend(learned.next(1).targets));
    assert_eq!(targets, BTreeSet::from([2, 4, 6]));
    assert!(learned.state().parts[0].skipped > 30);

    let batches = once(&shards, 2, 3, LossOn::Learned);
    let rows: Vec<_> = batches.iter().map(|b| (b.tokens.clone(), b.targets.clone())).collect();
    assert_eq!(rows, [(vec![0, 1], vec![IGNORE, 2]), (vec![3, 4, 5], vec![4, IGNORE, 6])]);
    assert_eq!(batches[1].spans, [Span { start: 0, len: 2 }, Span { start: 2, len: 1 }]);
}

#[test]
fn a_state_of_other_data_is_refused() {
    let (a, b) = (set(0, &[5, 90, 7, 20, 3]), set(1000, &[4, 4]));
    let mut first = loader(&[(&a, 1.0)], 16, 7);
    first.next(64);
    let state = first.state().clone();
    assert!(loader(&[(&a, 1.0), (&b, 1.0)], 16, 7).restore(state.clone()).is_err());
    assert!(loader(&[(&b, 1.0)], 16, 7).restore(state.clone()).is_err());
    assert!(loader(&[(&a, 1.0)], 16, 7).restore(state).is_ok());
    assert_eq!(Loader::new(vec![], 16, 0).err(), Some(LoaderError::Weights(vec![])));
}
