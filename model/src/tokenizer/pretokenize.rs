//! Pre-tokenizers: cut text into the pieces within which BPE merges.
//!
//! Every family writes its pre-tokenizer as a regular expression. A general engine spends more time
//! on it than BPE does on everything else, so each one known here is a scanner written by hand,
//! tested against the expression itself.

use unicode_general_category::{GeneralCategory, get_general_category};

/// A pre-tokenizer, by the family that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// Qwen2, Qwen2.5 and Qwen3: GPT-4's with single digits. See [`QWEN2`].
    Qwen2,
    /// Llama 3: GPT-4's, numbers in threes. See [`LLAMA3`].
    Llama3,
    /// GPT-2, and what `ByteLevel` means by its own. See [`GPT2`].
    Gpt2,
    /// SmolLM, StarCoder and others: GPT-2's in the text between digits. See [`SMOLLM`].
    SmolLm,
}

/// The pieces of [`PreTokenizer::Qwen2`], as `tokenizer.json` writes them.
pub const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pieces of [`PreTokenizer::Llama3`].
pub const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pieces of [`PreTokenizer::Gpt2`].
pub const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The pieces of [`PreTokenizer::SmolLm`], which files write in two steps: each digit apart, then
/// [`GPT2`] between them, to which a digit is the end of the text.
pub const SMOLLM: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+";

impl PreTokenizer {
    const ALL: [PreTokenizer; 4] =
        [PreTokenizer::Qwen2, PreTokenizer::Llama3, PreTokenizer::Gpt2, PreTokenizer::SmolLm];

    /// The regular expression that the scanner stands for.
    pub fn pattern(self) -> &'static str {
        match self {
            PreTokenizer::Qwen2 => QWEN2,
            PreTokenizer::Llama3 => LLAMA3,
            PreTokenizer::Gpt2 => GPT2,
            PreTokenizer::SmolLm => SMOLLM,
        }
    }

    /// The pre-tokenizer of a regular expression, if it is one of those known here.
    pub fn from_pattern(pattern: &str) -> Option<PreTokenizer> {
        PreTokenizer::ALL.into_iter().find(|p| p.pattern() == pattern)
    }

    /// Where the piece that starts at byte `start < text.len()` (a character's first) ends.
    /// The pieces of a text, one after another, are the whole of it.
    #[inline]
    pub fn piece_end(self, text: &str, start: usize) -> usize {
        match self {
            PreTokenizer::Qwen2 => gpt4::<1>(text, start),
            PreTokenizer::Llama3 => gpt4::<3>(text, start),
            PreTokenizer::Gpt2 => gpt2::<false>(text, start),
            PreTokenizer::SmolLm => gpt2::<true>(text, start),
        }
    }

    /// Gives out where each piece starts and ends: a loop of its own for each scanner.
    #[inline]
    pub(super) fn each(self, text: &str, each: impl FnMut(usize, usize)) {
        match self {
            PreTokenizer::Qwen2 => scan(text, gpt4::<1>, each),
            PreTokenizer::Llama3 => scan(text, gpt4::<3>, each),
            PreTokenizer::Gpt2 => scan(text, gpt2::<false>, each),
            PreTokenizer::SmolLm => scan(text, gpt2::<true>, each),
        }
    }

    /// The pieces of a text, in order.
    pub fn pieces(self, text: &str) -> impl Iterator<Item = &str> {
        let mut start = 0;
        std::iter::from_fn(move || {
            (start < text.len()).then(|| {
                let end = self.piece_end(text, start);
                let piece = &text[start..end];
                start = end;
                piece
            })
        })
    }
}

#[inline(always)]
fn scan(text: &str, end: impl Fn(&str, usize) -> usize, mut each: impl FnMut(usize, usize)) {
    let mut start = 0;
    while start < text.len() {
        let end = end(text, start);
        each(start, end);
        start = end;
    }
}

/// What the expressions tell characters apart by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `[\r\n]`
    Newline,
    /// `\s` but for those.
    Space,
    /// Marks, punctuation, symbols, controls …
    Other,
}
use Class::*;

const ASCII: [Class; 128] = {
    let mut table = [Other; 128];
    let mut i = 0;
    while i < 128 {
        table[i] = match i as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Letter,
            b'0'..=b'9' => Number,
            b'\r' | b'\n' => Newline,
            b' ' | b'\t' | 0x0b | 0x0c => Space,
            _ => Other,
        };
        i += 1;
    }
    table
};

fn class_of(c: char) -> Class {
    use GeneralCategory::*;
    match get_general_category(c) {
        UppercaseLetter | LowercaseLetter | TitlecaseLetter | ModifierLetter | OtherLetter => {
            Letter
        }
        DecimalNumber | LetterNumber | OtherNumber => Number,
        _ if c.is_whitespace() => Space,
        _ => Other,
    }
}

/// Class and length of the character at byte `at`; `None` at the end.
#[inline(always)]
fn class_at(text: &str, at: usize) -> Option<(Class, usize)> {
    let &first = text.as_bytes().get(at)?;
    match ASCII.get(first as usize) {
        Some(&class) => Some((class, 1)),
        None => beyond_ascii(text, at),
    }
}

#[inline(never)]
fn beyond_ascii(text: &str, at: usize) -> Option<(Class, usize)> {
    let c = text.get(at..)?.chars().next()?;
    Some((class_of(c), c.len_utf8()))
}

/// Where the run of characters of a class that goes on at `at` ends.
#[inline(always)]
fn run(text: &str, mut at: usize, class: Class) -> usize {
    while let Some((c, n)) = class_at(text, at)
        && c == class
    {
        at += n;
    }
    at
}

/// [`run`] of letters, eight bytes at a time: where a word ends is what the processor cannot
/// foresee, so the fewer branches ask for it the better.
#[inline(always)]
fn letters(text: &str, mut at: usize) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    while let Some(&chunk) = text.as_bytes()[at..].first_chunk::<8>() {
        let bytes = u64::from_le_bytes(chunk);
        let folded = (bytes | (EACH * 0x20)) & (EACH * 0x7f);
        // The top bit of each byte: at least an 'a', and not beyond 'z', and ASCII.
        let from_a = folded + EACH * (0x80 - b'a' as u64);
        let past_z = folded + EACH * (0x80 - b'z' as u64 - 1);
        let others = !(from_a & !past_z & !bytes) & (EACH * 0x80);
        if others != 0 {
            at += others.trailing_zeros() as usize / 8;
            if text.as_bytes()[at].is_ascii() {
                return at;
            }
            break;
        }
        at += 8;
    }
    run(text, at, Letter)
}

/// [`QWEN2`] and [`LLAMA3`], which differ in how many digits go together. The comments name the alternatives; the first that matches wins.
#[inline]
fn gpt4<const DIGITS: usize>(text: &str, start: usize) -> usize {
    let Some((class, n)) = class_at(text, start) else { return text.len() };
    let after = start + n;
    match class {
        // [^\r\n\p{L}\p{N}]?\p{L}+ without the option
        Letter => letters(text, after),
        // \p{N}{1,DIGITS}
        Number => numbers(text, after, DIGITS - 1),
        Newline => white_space(text, start),
        Space | Other => {
            let bytes = text.as_bytes();
            if bytes[start] == b'\''
                && let Some(n) = contraction(&bytes[after..])
            {
                return after + n;
            }
            match (class, class_at(text, after)) {
                // [^\r\n\p{L}\p{N}]?\p{L}+ with it
                (_, Some((Letter, n))) => letters(text, after + n),
                //  ?[^\s\p{L}\p{N}]+[\r\n]*, without the space and with it
                (Other, _) => run(text, run(text, after, Other), Newline),
                (_, Some((Other, n))) if bytes[start] == b' ' => {
                    run(text, run(text, after + n, Other), Newline)
                }
                _ => white_space(text, start),
            }
        }
    }
}

/// Where a run of at most `most` numbers that goes on at `at` ends.
#[inline(always)]
fn numbers(text: &str, mut at: usize, most: usize) -> usize {
    for _ in 0..most {
        match class_at(text, at) {
            Some((Number, n)) => at += n,
            _ => break,
        }
    }
    at
}

/// [`GPT2`] and, with digits apart, [`SMOLLM`].
#[inline]
fn gpt2<const APART: bool>(text: &str, start: usize) -> usize {
    let Some((class, n)) = class_at(text, start) else { return text.len() };
    let after = start + n;
    let bytes = text.as_bytes();
    match class {
        Letter => letters(text, after),
        Number if APART => after,
        Number => run(text, after, Number),
        Other => match bytes[start] {
            b'\'' if small_contraction(&bytes[after..]) > 0 => {
                after + small_contraction(&bytes[after..])
            }
            _ => run(text, after, Other),
        },
        Space | Newline => match class_at(text, after) {
            Some((Letter, n)) if bytes[start] == b' ' => letters(text, after + n),
            Some((Number, n)) if bytes[start] == b' ' && !APART => run(text, after + n, Number),
            Some((Other, n)) if bytes[start] == b' ' => run(text, after + n, Other),
            _ => spaces::<APART>(text, start),
        },
    }
}

/// `\s+(?!\S)|\s+`: a run of white space, of which the last character goes with what follows;
/// not with a digit that stands apart.
fn spaces<const APART: bool>(text: &str, start: usize) -> usize {
    let (mut end, mut last) = (start, start);
    while let Some((Space | Newline, n)) = class_at(text, end) {
        last = end;
        end += n;
    }
    let whole = match class_at(text, end) {
        None => true,
        Some((class, _)) => APART && class == Number,
    };
    if whole || last == start { end } else { last }
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+`: up to the last newline of the run of white space; without one, all
/// of it but its last character, which goes with what follows; all if nothing follows or there
/// is but one.
fn white_space(text: &str, start: usize) -> usize {
    let (mut end, mut last, mut newline) = (start, start, None);
    while let Some((class @ (Space | Newline), n)) = class_at(text, end) {
        last = end;
        end += n;
        if class == Newline {
            newline = Some(end);
        }
    }
    match newline {
        Some(newline) => newline,
        None if end == text.len() || last == start => end,
        None => last,
    }
}

/// Length of what follows the apostrophe in `(?i:'s|'t|'re|'ve|'m|'ll|'d)`. The long s is an s to
/// whoever ignores case.
fn contraction(rest: &[u8]) -> Option<usize> {
    match *rest.first()? | 0x20 {
        b's' | b't' | b'm' | b'd' => Some(1),
        first @ (b'r' | b'v' | b'l') => match (first, *rest.get(1)? | 0x20) {
            (b'r' | b'v', b'e') | (b'l', b'l') => Some(2),
            _ => None,
        },
        _ if rest.starts_with("ſ".as_bytes()) => Some("ſ".len()),
        _ => None,
    }
}

/// Length of what follows the apostrophe in `'s|'t|'re|'ve|'m|'ll|'d`; 0 if it is something else.
fn small_contraction(rest: &[u8]) -> usize {
    match rest {
        [b's' | b't' | b'm' | b'd', ..] => 1,
        [b'r' | b'v', b'e', ..] | [b'l', b'l', ..] => 2,
        _ => 0,
    }
}
