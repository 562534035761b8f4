//! Training: which pairs to merge, most frequent first.
//!
//! Each step merges the pair of adjacent tokens that occurs most often in the pieces as the merges
//! so far encode them; of equally frequent ones, the pair with the lowest ids (left, then right), as
//! `tokenizers` does. A pair that makes a token that is there already (`ab`+`c` after `a`+`bc`)
//! becomes another way to it, and the vocabulary does not grow.
//!
//! Counts are kept up to date: a step visits only the distinct pieces that hold its pair.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use foldhash::fast::RandomState;

use super::added::{Added, AddedToken};
use super::bpe::{Merges, Work};
use super::count::{Counts, count};
use super::model::{Bpe, Model, NONE, Symbols};
use super::normalize::{Normalizer, Step, nfc};
use super::pretokenize::PreTokenizer;
use super::tokens::Tokens;
use super::{Cut, Roles, Tokenizer, TokenizerError, bytes};

/// What to learn.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Tokens in all: 256 bytes, the merges, the special tokens. Fewer if the texts run out of
    /// pairs.
    pub vocab_size: usize,
    /// Added at the end of the vocabulary, in this order. Those written `<|…|>` are marked as
    /// special, which decoders of other programs leave out of the answer; the others, such as
    /// `<tool_call>`, they leave in, as in Qwen3.
    pub special_tokens: Vec<String>,
    /// Threads that count.
    pub threads: usize,
    /// A pair that occurs less often is not merged.
    pub min_frequency: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions { vocab_size: 32_768, special_tokens: vec![], threads: 1, min_frequency: 2 }
    }
}

/// How far training is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Texts and bytes taken in so far.
    Counting {
        /// Texts.
        texts: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Tokens of the model so far.
    Merging {
        /// Bytes and merges.
        tokens: usize,
        /// To be reached.
        of: usize,
    },
}

pub(super) fn train<T: AsRef<str>>(
    texts: impl Iterator<Item = T>,
    options: &TrainOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer, TokenizerError> {
    let special = &options.special_tokens;
    check(options)?;
    let pre_tokenizer = PreTokenizer::Qwen2;
    let counts = count(texts, pre_tokenizer, options.threads, progress);
    let mut trainer = Trainer::new(counts)?;
    trainer.learn(options, progress);
    let Trainer { tokens: learnt, merges, merge_list, .. } = trainer;
    let added = special.iter().zip(learnt.len() as u32..).map(|(content, id)| {
        let special = content.starts_with("<|") && content.ends_with("|>");
        AddedToken::new(id, content.clone(), special)
    });
    let added = Added::new(added.collect(), nfc)?;
    let (mut tokens, mut symbols) = (Tokens::default(), Box::new([NONE; 256]));
    for (id, bytes) in (0..).zip(&learnt) {
        if let &[byte] = &bytes[..] {
            symbols[byte as usize] = id;
        }
        tokens.push(bytes);
    }
    added.tokens.iter().for_each(|token| tokens.push(token.content.as_bytes()));
    let list = merge_list.iter().map(|&(left, right, _)| (left, right)).collect();
    let symbols = Symbols::Bytes(symbols);
    Ok(Tokenizer {
        normalizer: Normalizer { steps: vec![Step::Nfc], spaces: false },
        cut: Cut::Scan(pre_tokenizer),
        model: Model::Bpe(Bpe { symbols, merges, list, whole: None }),
        tokens,
        added,
        roles: Roles::default(),
        strip: false,
        scratch: Default::default(),
    })
}

fn check(options: &TrainOptions) -> Result<(), TokenizerError> {
    let special = &options.special_tokens;
    let least = 256 + special.len();
    let fail = |what| Err(TokenizerError::Train(what));
    if options.vocab_size < least {
        return fail(format!(
            "a vocabulary of {} tokens has no room for 256 bytes and {} special tokens; ask for {least} or more",
            options.vocab_size,
            special.len(),
        ));
    }
    if options.vocab_size > 1 << 24 {
        return fail(format!("a vocabulary of {} tokens is too large", options.vocab_size));
    }
    for (i, token) in special.iter().enumerate() {
        if token.is_empty() || special[..i].contains(token) {
            return fail(format!("special token {token:?} is empty or there twice"));
        }
        if bytes::from_text(token).is_some_and(|bytes| bytes.len() == 1) {
            return fail(format!("special token {token:?} is a token already"));
        }
    }
    Ok(())
}

/// A distinct piece: `symbols[start..start + len]`.
struct Piece {
    start: u32,
    len: u32,
    count: u64,
}

/// A pair of adjacent tokens.
#[derive(Clone, Copy, Default)]
struct Pair {
    count: u64,
    /// The pieces that had it when it came up: `places[start..end]`. It may have gone from some.
    start: u32,
    end: u32,
}

/// A count that was the pair's when this was queued and is no less than it is now (more, and it is
/// queued again); the pair; its index.
type Candidate = (u64, Reverse<(u32, u32)>, u32);

struct Trainer {
    symbols: Vec<u32>,
    pieces: Vec<Piece>,
    /// (left, right) → index in `pairs`.
    index: HashMap<(u32, u32), u32, RandomState>,
    pairs: Vec<Pair>,
    places: Vec<u32>,
    /// Places of a pair besides those.
    more_places: HashMap<u32, Vec<u32>, RandomState>,
    queue: BinaryHeap<Candidate>,
    /// By id, and ids by token.
    tokens: Vec<Vec<u8>>,
    ids: HashMap<Vec<u8>, u32, RandomState>,
    merges: Merges,
    merge_list: Vec<(u32, u32, u32)>,
    changes: Changes,
    work: Work,
}

/// What one merge of (left, right) does to the counts of other pairs, by the other token of each.
#[derive(Default)]
struct Changes {
    /// (other, left) that are gone.
    lost_before: Tally,
    /// (right, other) that are gone.
    lost_after: Tally,
    /// (other, new).
    won_before: Tally,
    /// (new, other).
    won_after: Tally,
}

/// Counts and places by token.
#[derive(Default)]
struct Tally {
    /// By token.
    counts: Vec<u64>,
    /// Tokens with a count.
    touched: Vec<u32>,
    /// Token and piece, in order of pieces.
    places: Vec<(u32, u32)>,
    /// By token: the last piece, plus one.
    last: Vec<u32>,
    /// By token: number of its places, then where the next goes.
    slots: Vec<u32>,
}

impl Tally {
    fn resize(&mut self, tokens: usize) {
        self.counts.resize(tokens, 0);
        self.last.resize(tokens, 0);
        self.slots.resize(tokens, 0);
    }

    #[inline]
    fn add(&mut self, token: u32, count: u64) {
        let sum = &mut self.counts[token as usize];
        if *sum == 0 {
            self.touched.push(token);
        }
        *sum += count;
    }

    #[inline]
    fn add_at(&mut self, token: u32, count: u64, piece: u32) {
        self.add(token, count);
        let last = &mut self.last[token as usize];
        if *last != piece + 1 {
            *last = piece + 1;
            self.places.push((token, piece));
            self.slots[token as usize] += 1;
        }
    }
}

impl Trainer {
    fn new(counts: Counts) -> Result<Trainer, TokenizerError> {
        let tokens: Vec<Vec<u8>> = bytes::alphabet().map(|byte| vec![byte]).collect();
        let mut byte_ids = [0; 256];
        for (id, token) in tokens.iter().enumerate() {
            byte_ids[token[0] as usize] = id as u32;
        }
        let (mut symbols, mut pieces) = (vec![], vec![]);
        let mut all: Vec<(u64, u32, u32)> = vec![];
        counts.for_each(|bytes, count| {
            if bytes.len() > 1 {
                all.push((count, symbols.len() as u32, bytes.len() as u32));
                symbols.extend(bytes.iter().map(|&byte| byte_ids[byte as usize]));
            }
        });
        // `places` grows to at most three times this, and is indexed by u32.
        if symbols.len() > 1 << 30 {
            let what = "the texts have more than 1 GiB of distinct pieces; train on fewer";
            return Err(TokenizerError::Train(what.into()));
        }
        pieces.extend(all.into_iter().map(|(count, start, len)| Piece { start, len, count }));
        let mut trainer = Trainer {
            symbols,
            pieces,
            index: HashMap::default(),
            pairs: vec![],
            places: vec![],
            more_places: HashMap::default(),
            queue: BinaryHeap::new(),
            ids: tokens.iter().zip(0..).map(|(token, id)| (token.clone(), id)).collect(),
            tokens,
            merges: Merges::default(),
            merge_list: vec![],
            changes: Changes::default(),
            work: Work::default(),
        };
        trainer.find_pairs();
        Ok(trainer)
    }

    /// Counts and places of the pairs of bytes.
    fn find_pairs(&mut self) {
        let slot = |pair: &[u32]| (pair[0] * 256 + pair[1]) as usize;
        let mut counts = vec![0u64; 1 << 16];
        let mut ends = vec![0u32; 1 << 16];
        let mut last = vec![0u32; 1 << 16];
        for (i, piece) in (1..).zip(&self.pieces) {
            for pair in self.symbols[piece.range()].windows(2) {
                let slot = slot(pair);
                counts[slot] += piece.count;
                ends[slot] += u32::from(last[slot] != i);
                last[slot] = i;
            }
        }
        let mut total = 0;
        for slot in 0..counts.len() {
            let (start, pair) = (total, (slot as u32 / 256, slot as u32 % 256));
            total += ends[slot];
            ends[slot] = start;
            if counts[slot] > 0 {
                self.add_pair(pair, Pair { count: counts[slot], start, end: total });
            }
        }
        self.places = vec![0; total as usize];
        last.fill(0);
        for (i, piece) in (1..).zip(&self.pieces) {
            for pair in self.symbols[piece.range()].windows(2) {
                let slot = slot(pair);
                if last[slot] != i {
                    self.places[ends[slot] as usize] = i - 1;
                    ends[slot] += 1;
                }
                last[slot] = i;
            }
        }
    }

    fn add_pair(&mut self, pair: (u32, u32), known: Pair) -> u32 {
        let index = self.pairs.len() as u32;
        self.pairs.push(known);
        self.index.insert(pair, index);
        self.queue.push((known.count, Reverse(pair), index));
        index
    }

    fn learn(&mut self, options: &TrainOptions, progress: &mut dyn FnMut(Progress)) {
        let of = options.vocab_size - options.special_tokens.len();
        for tally in self.changes.all() {
            tally.resize(of);
        }
        while self.tokens.len() < of
            && let Some((count, Reverse((left, right)), index)) = self.queue.pop()
        {
            let now = self.pairs[index as usize].count;
            if now != count {
                if now > 0 {
                    self.queue.push((now, Reverse((left, right)), index));
                }
                continue;
            }
            if now < options.min_frequency.max(1) {
                break;
            }
            let token = [&self.tokens[left as usize][..], &self.tokens[right as usize]].concat();
            if options.special_tokens.contains(&bytes::to_text(&token)) {
                continue; // two ids would be written alike
            }
            let known = self.ids.get(&token).copied();
            let made = known.unwrap_or(self.tokens.len() as u32);
            self.merges.push(left, right, made);
            self.merge_list.push((left, right, made));
            if known.is_none() {
                self.ids.insert(token.clone(), made);
                self.tokens.push(token);
                self.merge((left, right), made, index);
            } else {
                self.merge_again(index);
            }
            if self.tokens.len().is_multiple_of(256) {
                progress(Progress::Merging { tokens: self.tokens.len(), of });
            }
        }
        progress(Progress::Merging { tokens: self.tokens.len(), of });
    }

    /// Merges a pair into a new token wherever it occurs.
    fn merge(&mut self, (left, right): (u32, u32), new: u32, index: u32) {
        let mut changes = std::mem::take(&mut self.changes);
        let Pair { start, end, .. } = self.pairs[index as usize];
        let more = self.more_places.remove(&index).unwrap_or_default();
        for &place in self.places[start as usize..end as usize].iter().chain(&more) {
            let piece = &mut self.pieces[place as usize];
            let symbols = &mut self.symbols[piece.range()];
            piece.len = changes.merge(symbols, (left, right), new, piece.count, place);
        }
        self.note_lost(&mut changes.lost_before, |token| (token, left));
        self.note_lost(&mut changes.lost_after, |token| (right, token));
        self.pairs[index as usize].count = 0;
        self.note_won(&mut changes.won_before, |token| (token, new));
        self.note_won(&mut changes.won_after, |token| (new, token));
        self.changes = changes;
    }

    /// Takes in the pairs that a merge brought.
    fn note_won(&mut self, won: &mut Tally, pair: impl Fn(u32) -> (u32, u32)) {
        let mut end = self.places.len() as u32;
        for &token in &won.touched {
            let start = end;
            end += std::mem::replace(&mut won.slots[token as usize], start);
            let count = won.counts[token as usize];
            self.add_pair(pair(token), Pair { count, start, end });
        }
        self.places.resize(end as usize, 0);
        for (token, place) in won.places.drain(..) {
            let slot = &mut won.slots[token as usize];
            self.places[*slot as usize] = place;
            *slot += 1;
        }
        for token in won.touched.drain(..) {
            won.counts[token as usize] = 0;
            won.last[token as usize] = 0;
            won.slots[token as usize] = 0;
        }
    }

    /// Takes off the pairs that a merge cost.
    fn note_lost(&mut self, lost: &mut Tally, pair: impl Fn(u32) -> (u32, u32)) {
        for token in lost.touched.drain(..) {
            let count = std::mem::take(&mut lost.counts[token as usize]);
            if let Some(&index) = self.index.get(&pair(token)) {
                self.pairs[index as usize].count -= count;
            }
        }
    }

    /// Merges a pair into a token that was there before. The result may make older merges possible,
    /// so the pieces are encoded anew.
    fn merge_again(&mut self, index: u32) {
        let Pair { start, end, .. } = self.pairs[index as usize];
        let mut places = self.places[start as usize..end as usize].to_vec();
        places.extend(self.more_places.remove(&index).unwrap_or_default());
        places.sort_unstable();
        places.dedup();
        for place in places {
            let piece = &mut self.pieces[place as usize];
            let (range, count) = (piece.range(), piece.count);
            let old = self.symbols[range.clone()].to_vec();
            let mut new = old.clone();
            self.merges.apply(&mut new, &mut self.work);
            piece.len = new.len() as u32;
            self.symbols[range.start..range.start + new.len()].copy_from_slice(&new);
            for pair in old.windows(2) {
                if let Some(&at) = self.index.get(&(pair[0], pair[1])) {
                    self.pairs[at as usize].count -= count;
                }
            }
            for pair in new.windows(2) {
                let pair = (pair[0], pair[1]);
                let at = match self.index.get(&pair) {
                    Some(&at) => at,
                    None => self.add_pair(pair, Pair::default()),
                };
                let known = &mut self.pairs[at as usize];
                known.count += count;
                self.queue.push((known.count, Reverse(pair), at));
                self.more_places.entry(at).or_default().push(place);
            }
        }
        self.pairs[index as usize].count = 0;
    }
}

impl Piece {
    fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

impl Changes {
    fn all(&mut self) -> [&mut Tally; 4] {
        [&mut self.lost_before, &mut self.lost_after, &mut self.won_before, &mut self.won_after]
    }

    /// Merges in one piece, notes what pairs that costs and brings, and returns the new length.
    fn merge(
        &mut self,
        symbols: &mut [u32],
        (left, right): (u32, u32),
        new: u32,
        count: u64,
        piece: u32,
    ) -> u32 {
        let (mut read, mut write) = (0, 0);
        while read < symbols.len() {
            if symbols[read..].starts_with(&[left, right]) {
                match symbols[..write].last() {
                    Some(&before) if before == new => {
                        self.lost_after.add(left, count); // (right, left)
                        self.won_before.add_at(new, count, piece);
                    }
                    Some(&before) => {
                        self.lost_before.add(before, count);
                        self.won_before.add_at(before, count, piece);
                    }
                    None => {}
                }
                if let Some(&after) = symbols.get(read + 2)
                    && !symbols[read + 2..].starts_with(&[left, right])
                {
                    self.lost_after.add(after, count);
                    self.won_after.add_at(after, count, piece);
                }
                symbols[write] = new;
                read += 2;
            } else {
                symbols[write] = symbols[read];
                read += 1;
            }
            write += 1;
        }
        write as u32
    }
}
