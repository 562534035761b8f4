//! What a thread keeps while it encodes: buffers, and the tokens of the pieces it met.

use super::Tokenizer;
use super::model::Buffers;

/// Slots of the cache. Text's words follow Zipf's law: a few thousand are nearly all of it.
const SLOTS: usize = 1 << 15;
/// Tokens that a slot has room for.
const TOKENS: usize = 7;

/// A piece that was met and its tokens.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// See [`packed`]; 0 is no piece.
    piece: u128,
    tokens: [u32; TOKENS],
    len: u32,
}

/// Buffers and a direct-mapped cache. What it holds decides how fast a piece is encoded, never how.
pub(super) struct Scratch {
    slots: Vec<Slot>,
    symbols: Vec<u32>,
    buffers: Buffers,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch {
            slots: vec![Slot::default(); SLOTS],
            symbols: vec![],
            buffers: Buffers::default(),
        }
    }
}

/// A piece of 1 to 15 bytes as one number: its bytes, then its length. `None` for longer ones.
#[inline]
pub(super) fn packed(text: &[u8], start: usize, end: usize) -> Option<u128> {
    let len = end - start;
    if len > 15 {
        return None;
    }
    let bytes = match text[start..].first_chunk::<16>() {
        Some(chunk) => u128::from_le_bytes(*chunk) & ((1 << (8 * len)) - 1),
        None => {
            let mut chunk = [0; 16];
            chunk[..len].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(chunk)
        }
    };
    Some(bytes | (len as u128) << 120)
}

/// The upper bits of a product depend on all bits of both halves.
#[inline]
pub(super) fn hash(piece: u128) -> u64 {
    let low = (piece as u64) ^ 0x9e37_79b9_7f4a_7c15;
    let high = (piece >> 64) as u64 ^ 0xd1b5_4a32_d192_ed03;
    let product = u128::from(low) * u128::from(high);
    (product >> 64) as u64 ^ product as u64
}

impl Scratch {
    /// Appends the tokens of the piece `text[start..end]`.
    #[inline]
    pub(super) fn encode(
        &mut self,
        tokenizer: &Tokenizer,
        text: &str,
        start: usize,
        end: usize,
        ids: &mut Vec<u32>,
    ) {
        let piece = packed(text.as_bytes(), start, end);
        if let Some(piece) = piece {
            let slot = &self.slots[hash(piece) as usize % SLOTS];
            if slot.piece == piece {
                // All of them and back is faster than a copy of unknown length.
                let end = ids.len() + slot.len as usize;
                ids.extend_from_slice(&slot.tokens);
                ids.truncate(end);
                return;
            }
        }
        self.encode_new(tokenizer, &text[start..end], piece, ids);
    }

    #[inline(never)]
    fn encode_new(
        &mut self,
        tokenizer: &Tokenizer,
        text: &str,
        piece: Option<u128>,
        ids: &mut Vec<u32>,
    ) {
        let Scratch { symbols, buffers, .. } = self;
        tokenizer.model.encode(&tokenizer.tokens, text, buffers, symbols);
        ids.extend_from_slice(symbols);
        if let Some(piece) = piece
            && symbols.len() <= TOKENS
        {
            let mut tokens = [0; TOKENS];
            tokens[..symbols.len()].copy_from_slice(symbols);
            let len = symbols.len() as u32;
            self.slots[hash(piece) as usize % SLOTS] = Slot { piece, tokens, len };
        }
    }
}
