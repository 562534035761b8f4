//! From a piece of text to ids, by the kinds of models there are.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::bpe::{Merges, Work};
use super::tokens::{Lookup, Tokens};
use super::unigram::{Unigram, Ways};

/// No token.
pub(super) const NONE: u32 = u32::MAX;

/// The token of each byte.
pub(super) type ByByte = Box<[u32; 256]>;

/// What makes ids of a piece.
#[derive(Debug)]
pub(super) enum Model {
    /// Byte-pair encoding.
    Bpe(Bpe),
    /// The likeliest tokens.
    Unigram(Unigram),
}

/// Symbols, and what pairs of them become.
#[derive(Debug)]
pub(super) struct Bpe {
    pub(super) symbols: Symbols,
    pub(super) merges: Merges,
    /// Pairs in order of rank.
    pub(super) list: Vec<(u32, u32)>,
    /// Tokens that a whole piece becomes without merging.
    pub(super) whole: Option<Lookup>,
}

/// What merging begins with.
#[derive(Debug)]
pub(super) enum Symbols {
    /// Bytes. One that has no token ([`NONE`]) is left out, as `tokenizers` does.
    Bytes(ByByte),
    /// Characters.
    Chars {
        ids: HashMap<char, u32, RandomState>,
        /// The tokens of bytes, which stand for an unknown character if all of its bytes have one.
        bytes: Option<ByByte>,
        /// The token of unknown characters; without one they are left out.
        unknown: Option<u32>,
        /// Whether it stands for all unknown ones that are side by side.
        fuse: bool,
    },
}

/// Memory of [`Model::encode`], kept from one piece to the next.
#[derive(Default)]
pub(super) struct Buffers {
    work: Work,
    ways: Ways,
}

impl Model {
    /// Whether it begins with bytes and some have no token.
    pub(super) fn lacks_bytes(&self) -> bool {
        match self {
            Model::Bpe(Bpe { symbols: Symbols::Bytes(ids), .. }) => ids.contains(&NONE),
            _ => false,
        }
    }

    /// The ids of a piece, in `ids`, which is cleared.
    pub(super) fn encode(
        &self,
        tokens: &Tokens,
        piece: &str,
        buffers: &mut Buffers,
        ids: &mut Vec<u32>,
    ) {
        ids.clear();
        match self {
            Model::Unigram(unigram) => unigram.encode(tokens, piece, &mut buffers.ways, ids),
            Model::Bpe(bpe) => {
                let whole = bpe.whole.as_ref();
                match whole.and_then(|whole| whole.find(tokens, piece.as_bytes())) {
                    Some(id) => ids.push(id),
                    None => {
                        bpe.symbols.of(piece, ids);
                        bpe.merges.apply(ids, &mut buffers.work);
                    }
                }
            }
        }
    }
}

impl Symbols {
    fn of(&self, piece: &str, out: &mut Vec<u32>) {
        match self {
            Symbols::Bytes(ids) => {
                out.extend(piece.bytes().map(|byte| ids[byte as usize]).filter(|&id| id != NONE));
            }
            Symbols::Chars { ids, bytes, unknown, fuse } => {
                let mut unknown_before = false;
                for c in piece.chars() {
                    let known = ids.get(&c);
                    let mut utf8 = [0; 4];
                    let utf8 = c.encode_utf8(&mut utf8).bytes();
                    match (known, bytes, unknown) {
                        (Some(&id), ..) => out.push(id),
                        (None, Some(ids), _)
                            if { utf8.clone() }.all(|b| ids[b as usize] != NONE) =>
                        {
                            out.extend(utf8.map(|byte| ids[byte as usize]));
                        }
                        (None, _, Some(id)) => {
                            if !(*fuse && unknown_before) {
                                out.push(*id);
                            }
                            unknown_before = true;
                            continue;
                        }
                        (None, _, None) => {}
                    }
                    unknown_before = false;
                }
            }
        }
    }
}
