//! Counting of distinct pieces, the first half of training: all that BPE needs to know of a text.

use std::collections::HashMap;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

use foldhash::fast::RandomState;

use super::Progress;
use super::cache::packed;
use super::normalize::nfc;
use super::pretokenize::PreTokenizer;

/// Texts go to the counting threads in bundles of about this many bytes.
const BUNDLE: usize = 1 << 20;

/// How often each piece occurs.
#[derive(Default)]
pub(super) struct Counts {
    /// Of up to 15 bytes, as numbers; see [`packed`].
    short: HashMap<u128, u64, RandomState>,
    long: HashMap<Box<[u8]>, u64, RandomState>,
}

impl Counts {
    fn add_text(&mut self, pre_tokenizer: PreTokenizer, text: &str) {
        let text = nfc(text);
        let mut start = 0;
        while start < text.len() {
            let end = pre_tokenizer.piece_end(&text, start);
            match packed(text.as_bytes(), start, end) {
                Some(piece) => *self.short.entry(piece).or_default() += 1,
                None => {
                    let piece = &text.as_bytes()[start..end];
                    match self.long.get_mut(piece) {
                        Some(count) => *count += 1,
                        None => _ = self.long.insert(piece.into(), 1),
                    }
                }
            }
            start = end;
        }
    }

    fn merge(mut self, mut other: Counts) -> Counts {
        if self.short.len() < other.short.len() {
            std::mem::swap(&mut self, &mut other);
        }
        for (piece, count) in other.short {
            *self.short.entry(piece).or_default() += count;
        }
        for (piece, count) in other.long {
            *self.long.entry(piece).or_default() += count;
        }
        self
    }

    /// Every piece and its count, in no order.
    pub(super) fn for_each(self, mut each: impl FnMut(&[u8], u64)) {
        for (piece, count) in self.short {
            let bytes = piece.to_le_bytes();
            each(&bytes[..(bytes[15] as usize).min(15)], count);
        }
        for (piece, count) in self.long {
            each(&piece, count);
        }
    }
}

/// Some texts, copied so that another thread can count them.
#[derive(Default)]
struct Bundle {
    text: String,
    ends: Vec<usize>,
}

impl Bundle {
    fn count(&self, pre_tokenizer: PreTokenizer, counts: &mut Counts) {
        let mut start = 0;
        for &end in &self.ends {
            counts.add_text(pre_tokenizer, &self.text[start..end]);
            start = end;
        }
    }
}

/// Counts the pieces of all texts, each text on its own.
pub(super) fn count<T: AsRef<str>>(
    texts: impl Iterator<Item = T>,
    pre_tokenizer: PreTokenizer,
    threads: usize,
    progress: &mut dyn FnMut(Progress),
) -> Counts {
    let (mut read, mut bytes) = (0, 0);
    let bundles = |give: &mut dyn FnMut(Bundle)| {
        let mut bundle = Bundle::default();
        for text in texts {
            let text = text.as_ref();
            bundle.text.push_str(text);
            bundle.ends.push(bundle.text.len());
            read += 1;
            if bundle.text.len() >= BUNDLE {
                bytes += bundle.text.len() as u64;
                give(std::mem::take(&mut bundle));
                progress(Progress::Counting { texts: read, bytes });
            }
        }
        bytes += bundle.text.len() as u64;
        give(bundle);
        progress(Progress::Counting { texts: read, bytes });
    };
    if threads <= 1 {
        let mut counts = Counts::default();
        bundles(&mut |bundle| bundle.count(pre_tokenizer, &mut counts));
        return counts;
    }
    let (send, receive) = sync_channel::<Bundle>(threads);
    let receive = Mutex::new(receive);
    std::thread::scope(|scope| {
        let work = || {
            let mut counts = Counts::default();
            loop {
                let next = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(bundle) = next else { return counts };
                bundle.count(pre_tokenizer, &mut counts);
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        // Sending fails only when all workers have panicked, which join reports.
        bundles(&mut |bundle| _ = send.send(bundle));
        drop(send);
        let join = |worker: std::thread::ScopedJoinHandle<'_, Counts>| match worker.join() {
            Ok(counts) => counts,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().map(join).reduce(Counts::merge).unwrap_or_default()
    })
}
