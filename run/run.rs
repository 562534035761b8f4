//! How a language model works, in one file.
//!
//! A GGUF file holds the parameters: numbers that training has found. This is what is done with
//! them, from top to bottom: the file, the tokenizer (text to numbers and back), the transformer
//! (how likely each token is next), sampling (one of them), the loop. It computes in 32 bits, as
//! `homegrown generate --exact --kv f32` does, and writes the same tokens.
//!
//! ```text
//! rustc -O run.rs
//! ./run model.gguf                       a conversation
//! ./run model.gguf "Who are you?"        one answer
//! ./run model.gguf --raw "Once upon a"   a text, continued
//! ```

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::OnceLock;
use std::time::Instant;

const USAGE: &str = "usage: run MODEL.gguf [PROMPT] [--raw] [--OPTION VALUE]...
  --tokens N       most tokens of an answer [what the context holds]
  --context N      most tokens in all, if the model can take as many [8192]
  --temperature T  divides the logits; 0 takes the likeliest token [0]
  --top-k K        only the K likeliest tokens; 0 is all [0]
  --top-p P        only the fewest likeliest tokens whose probabilities reach P [1]
  --min-p P        only tokens at least P times as likely as the likeliest [0]
  --seed N         start of the random numbers [0]";

/// Errors are for people: what is wrong, and where.
type Result<T> = std::result::Result<T, String>;

// ---- 1. The file --------------------------------------------------------------------------------

/// A file in GGUF (ggml's `docs/gguf.md`): metadata and tensors by name. A single value of the
/// metadata is a list of one here.
pub struct Gguf {
    bytes: Vec<u8>,
    numbers: HashMap<String, Vec<f64>>,
    texts: HashMap<String, Vec<String>>,
    /// How the numbers are stored, their shape (the length of a row first), where they begin.
    tensors: HashMap<String, (Blocks, Vec<usize>, usize)>,
}

/// Numbers are stored in blocks: how many are in one, its bytes, what number `i` of it is.
type Blocks = (usize, usize, fn(&[u8], usize) -> f32);

/// Types of tensors by number. Q is for quantised: a few bits a number, and a scale for 32.
fn blocks(kind: u64) -> Result<Blocks> {
    // Numbers of four bits: the first 16 are the low halves of the bytes.
    fn four(b: &[u8], i: usize) -> f32 {
        f32::from(b[i % 16] >> (i / 16 * 4) & 15)
    }
    Ok(match kind {
        0 => (1, 4, |b, _| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        1 => (1, 2, |b, _| half(b)),
        2 => (32, 18, |b, i| half(b) * (four(&b[2..], i) - 8.0)),
        3 => (32, 20, |b, i| half(b) * four(&b[4..], i) + half(&b[2..])),
        8 => (32, 34, |b, i| half(b) * f32::from(b[2 + i] as i8)),
        30 => (1, 2, |b, _| f32::from_le_bytes([0, 0, b[0], b[1]])),
        _ => {
            let names = "F32 F16 Q4_0 Q4_1 - - Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K";
            let name = names.split(' ').nth(kind as usize).unwrap_or("a newer type");
            return Err(format!("{name} ({kind}); known are F32, F16, BF16, Q8_0, Q4_0, Q4_1"));
        }
    })
}

/// A number of 16 bits: sign, 5 bits of exponent, 10 of fraction. Moved to the fields of one of 32
/// bits it is 2^112 times too small, because exponents there begin lower.
fn half(b: &[u8]) -> f32 {
    let bits = u32::from(u16::from_le_bytes([b[0], b[1]]));
    f32::from_bits((bits & 0x8000) << 16 | (bits & 0x7fff) << 13) * 2f32.powi(112)
}

/// Bytes from some place on; numbers have their lowest byte first.
struct Reader<'a>(&'a [u8], usize);

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let rest = &self.0[self.1..];
        if n > rest.len() as u64 {
            return Err(format!("byte {}: {n} bytes should follow, {} do", self.1, rest.len()));
        }
        self.1 += n as usize;
        Ok(&rest[..n as usize])
    }

    fn number(&mut self, bytes: u64) -> Result<u64> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn text(&mut self) -> Result<String> {
        let (at, len) = (self.1, self.number(8)?);
        let text = String::from_utf8(self.take(len)?.to_vec());
        text.map_err(|_| format!("byte {at}: the text is not UTF-8"))
    }

    fn value(&mut self, kind: u64) -> Result<f64> {
        Ok(match kind {
            0 | 7 => self.number(1)? as f64,
            1 => f64::from(self.number(1)? as i8),
            2 => self.number(2)? as f64,
            3 => f64::from(self.number(2)? as i16),
            4 => self.number(4)? as f64,
            5 => f64::from(self.number(4)? as i32),
            6 => f64::from(f32::from_bits(self.number(4)? as u32)),
            10 => self.number(8)? as f64,
            11 => self.number(8)? as i64 as f64,
            12 => f64::from_bits(self.number(8)?),
            _ => return Err(format!("byte {}: {kind} is no type of values", self.1)),
        })
    }
}

impl Gguf {
    pub fn read(bytes: Vec<u8>) -> Result<Gguf> {
        let mut r = Reader(&bytes, 0);
        if r.take(4)? != b"GGUF" || !(2..=3).contains(&r.number(4)?) {
            return Err("it is no GGUF file of version 2 or 3".into());
        }
        let (count, pairs) = (r.number(8)?, r.number(8)?);
        let (mut numbers, mut texts) = (HashMap::new(), HashMap::new());
        for _ in 0..pairs {
            let (key, kind) = (r.text()?, r.number(4)?);
            let (kind, n) = if kind == 9 { (r.number(4)?, r.number(8)?) } else { (kind, 1) };
            if kind == 8 {
                texts.insert(key, (0..n).map(|_| r.text()).collect::<Result<_>>()?);
            } else {
                numbers.insert(key, (0..n).map(|_| r.value(kind)).collect::<Result<_>>()?);
            }
        }
        let mut tensors = HashMap::new();
        for _ in 0..count {
            let (name, sides) = (r.text()?, r.number(4)?);
            let side = |_| r.number(8).map(|side| side as usize);
            let shape = (0..sides).map(side).collect::<Result<Vec<usize>>>()?;
            let blocks = blocks(r.number(4)?).map_err(|e| format!("the tensor {name} is {e}"))?;
            tensors.insert(name, (blocks, shape, r.number(8)? as usize));
        }
        let alignment = numbers.get("general.alignment").and_then(|n: &Vec<f64>| n.first());
        let start = r.1.next_multiple_of(alignment.map_or(32, |n| n.clamp(1.0, 4096.0) as usize));
        for (name, ((elements, size, _), shape, at)) in &mut tensors {
            let n = shape.iter().fold(1usize, |n, side| n.saturating_mul(*side));
            *at = at.saturating_add(start);
            let end = at.saturating_add((n / *elements).saturating_mul(*size));
            if shape.first().map_or(0, |row| row % *elements) != 0 || end > bytes.len() {
                return Err(format!("the tensor {name} of {shape:?} doesn't fit the file"));
            }
        }
        Ok(Gguf { bytes, numbers, texts, tensors })
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.numbers.get(key)?.first().copied()
    }

    fn text(&self, key: &str) -> &str {
        self.texts.get(key).and_then(|texts| texts.first()).map_or("none", |text| text)
    }

    /// All tensors as numbers of 32 bits. (Engines compute with the small ones: what limits them is
    /// how fast memory is read.)
    fn widened(&self) -> HashMap<String, Vec<f32>> {
        let widen = |((elements, size, number), shape, start): &(Blocks, Vec<usize>, usize)| {
            let (n, bytes) = (shape.iter().product(), &self.bytes[*start..]);
            each(n, n, |i| number(&bytes[i / elements * size..], i % elements))
        };
        self.tensors.iter().map(|(name, tensor)| (name.clone(), widen(tensor))).collect()
    }
}

// ---- 2. The tokenizer ---------------------------------------------------------------------------

/// Text to tokens and back: byte-pair encoding (Sennrich et al. 2016). Text is cut into words, and
/// these into bytes. Of all neighbours that are a known pair, that of the lowest rank becomes one
/// token, again and again, until none is left.
pub struct Tokenizer {
    /// The bytes of each token, and the tokens that text becomes by their bytes.
    pieces: Vec<Vec<u8>>,
    ids: HashMap<Vec<u8>, u32>,
    /// Rank of a pair, and what it becomes.
    merges: HashMap<(u32, u32), (usize, u32)>,
    /// Tokens with a meaning, such as the end of a turn. Text never becomes one of them.
    control: HashMap<String, u32>,
    /// How text is cut: the name of a family, whether it is as for GPT-4 (or for GPT-2), and how
    /// many digits stay together.
    cut: (String, bool, usize),
    /// What text begins with that no template made, and what ends an answer.
    bos: Option<u32>,
    ends: Vec<u32>,
}

/// What `char::is_alphabetic` counts and the expressions' `\p{L}` doesn't: signs of vowels, letters
/// in circles.
const SIGNS: &str = "\
    345-36f 5b0-5c7 610-61a 64b-65f 670 6d6-6e4 6e7-6ed 711 730-73f 7a6-7b0 816-817 81b-823 \
    825-827 829-82c 88f-897 8d4-903 93a-93b 93e-94f 955-957 962-963 981-983 9be-9cc 9d7 9e2-9e3 \
    a01-a03 a3e-a51 a70-a71 a75-a83 abe-acc ae2-ae3 afa-b03 b3e-b57 b62-b63 b82 bbe-bcc bd7-c04 \
    c3e-c56 c5c c62-c63 c81-c83 cbe-cdc ce2-ce3 cf3-d03 d3e-d4c d57 d62-d63 d81-d83 dcf-df3 e31 \
    e34-e3a e4d eb1 eb4-ebc ecd f71-f83 f8d-fbc 102b-103e 1056-1059 105e-1060 1062-1064 \
    1067-106d 1071-1074 1082-108d 108f-109d 1712-1713 1732-1733 1752-1753 1772-1773 17b6-17c8 \
    1885-1886 18a9 1920-1938 1a17-1a1b 1a55-1a74 1abf-1b04 1b35-1b43 1b80-1b82 1ba1-1bad \
    1be7-1bf1 1c24-1c36 1dd3-1df4 24b6-24e9 2de0-2dff a674-a67b a69e-a69f a7ce-a7cf a7d2 a7d4 \
    a7f1 a802 a80b a823-a827 a880-a881 a8b4-a8c5 a8ff a926-a92a a947-a952 a980-a983 a9b4-a9bf \
    a9e5 aa29-aa36 aa43 aa4c-aa4d aa7b-aa7d aab0 aab2-aab4 aab7-aab8 aabe aaeb-aaef aaf5 \
    abe3-abea fb1e";

/// An example of a character's class: letter, number, line break, white space, anything else.
fn class(c: char) -> char {
    let sign = |range: &str| {
        let mut ends = range.split('-').map(|hex| u32::from_str_radix(hex, 16).unwrap_or(0));
        let first = ends.next().unwrap_or(0);
        (first..=ends.next().unwrap_or(first)).contains(&(c as u32))
    };
    match c {
        '\r' | '\n' => '\n',
        _ if c.is_whitespace() => ' ',
        _ if c.is_numeric() => '0',
        _ if c.is_ascii_alphabetic() => 'a',
        _ if c.is_alphabetic() && !SIGNS.split(' ').any(sign) => 'a',
        _ => '!',
    }
}

impl Tokenizer {
    pub fn new(file: &Gguf) -> Result<Tokenizer> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let id = |name: &str| file.number(&key(name)).map(|id| id as u32);
        let texts = |name: &str| file.texts.get(&key(name)).ok_or(format!("no {}", key(name)));
        let pre = file.text(&key("pre"));
        let (gpt4, digits) = match (file.text(&key("model")), pre) {
            ("gpt2", "gpt-2") => (false, usize::MAX),
            ("gpt2", "smollm") => (false, 1),
            ("gpt2", "llama-bpe" | "dbrx") => (true, 3),
            ("gpt2", "qwen2" | "stablelm2") => (true, 1),
            (model, _) => {
                let known = "gpt2 with gpt-2, smollm, llama-bpe, dbrx, qwen2 or stablelm2";
                return Err(format!("the tokenizer {model} with {pre} is not known; {known} is"));
            }
        };
        // Tokens are written in an alphabet: bytes that can be seen are themselves (in Latin-1), the
        // others are characters from U+0100 on.
        let (mut alphabet, mut next) = (HashMap::new(), 0x100);
        for byte in 0..=255u8 {
            let seen = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            alphabet.insert(if seen { u32::from(byte) } else { next }, byte);
            next += u32::from(!seen);
        }
        let spelled = |text: &str| -> Option<Vec<u8>> {
            text.chars().map(|c| alphabet.get(&(c as u32)).copied()).collect()
        };
        let (mut pieces, mut ids, mut control) = (vec![], HashMap::new(), HashMap::new());
        let kinds = file.numbers.get(&key("token_type")).ok_or("no types of tokens")?;
        for ((text, kind), id) in texts("tokens")?.iter().zip(kinds).zip(0..) {
            // 1: text, 2 to 4: control, 5: unused, 6: a byte.
            let is_text = *kind == 1.0 || *kind == 6.0;
            let piece = if is_text { spelled(text) } else { Some(text.clone().into_bytes()) };
            pieces.push(piece.ok_or(format!("token {id}, {text:?}, is not made of bytes"))?);
            if is_text {
                ids.insert(pieces[pieces.len() - 1].clone(), id);
            } else if *kind < 5.0 {
                control.insert(text.clone(), id);
            }
        }
        let mut merges = HashMap::new();
        for (rank, merge) in texts("merges")?.iter().enumerate() {
            let (left, right) = merge.split_once(' ').unwrap_or((merge, ""));
            let find = |text: &str| ids.get(&spelled(text)?).copied();
            let both = find(left).zip(find(right)).zip(find(&[left, right].concat()));
            merges.extend(both.map(|(pair, made)| (pair, (rank, made))));
        }
        let turn = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"];
        let turn = || turn.iter().find_map(|text| control.get(*text).copied());
        let ends = id("eos_token_id").into_iter().chain(id("eot_token_id").or_else(turn)).collect();
        let begins = file.number(&key("add_bos_token")).map_or(pre == "llama-bpe", |n| n != 0.0);
        let bos = id("bos_token_id").filter(|_| begins);
        let cut = (pre.to_string(), gpt4, digits);
        Ok(Tokenizer { pieces, ids, merges, control, cut, bos, ends })
    }

    /// Length of the word that text begins with, by its characters and their classes. For GPT-2 it is
    /// what `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` finds; for GPT-4
    /// also `[^\r\n\p{L}\p{N}]?\p{L}+`, `\p{N}{1,3}`, `[^\s\p{L}\p{N}]+[\r\n]*` and `\s*[\r\n]+`.
    fn word(&self, s: &[char], classes: &[char]) -> usize {
        let (_, gpt4, digits) = self.cut;
        let at = |i: usize| classes.get(i).copied().unwrap_or('$');
        let run = |from: usize, class| from + (from..).take_while(|i| at(*i) == class).count();
        let small = |i: usize| match s.get(i) {
            Some('ſ') if gpt4 && i == 1 => 's',
            Some(c) if gpt4 => c.to_ascii_lowercase(),
            c => *c.unwrap_or(&' '),
        };
        match (s[0], small(1), small(2)) {
            ('\'', 's' | 't' | 'm' | 'd', _) => return 2,
            ('\'', 'r' | 'v', 'e') | ('\'', 'l', 'l') => return 3,
            _ => {}
        }
        let space = usize::from(s[0] == ' '); // goes with what follows
        match (at(0), at(space)) {
            (' ' | '!', _) if gpt4 && at(1) == 'a' => return run(1, 'a'),
            ('0', _) => return run(0, '0').min(digits),
            (_, '0') if !gpt4 && digits > 1 => return run(space, '0'),
            (_, 'a') => return run(space, 'a'),
            (_, '!') if gpt4 => return run(run(space, '!'), '\n'),
            (_, '!') => return run(space, '!'),
            _ => {}
        }
        let end = classes.iter().take_while(|c| matches!(c, ' ' | '\n')).count();
        let apart = !gpt4 && digits == 1 && at(end) == '0';
        match classes[..end].iter().rposition(|c| *c == '\n') {
            Some(newline) if gpt4 => newline + 1,
            _ if end == 1 || end == s.len() || apart => end,
            _ => end - 1,
        }
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        if self.cut.0 == "qwen2" && text.contains(|c| ('\u{300}'..='\u{36f}').contains(&c)) {
            eprintln!("note: the engine joins accents to letters, which isn't done here");
        }
        let s: Vec<char> = text.chars().collect();
        let classes: Vec<char> = s.iter().map(|c| class(*c)).collect();
        let (mut out, mut start) = (vec![], 0);
        while start < s.len() {
            let end = start + self.word(&s[start..], &classes[start..]);
            let word = s[start..end].iter().collect::<String>().into_bytes();
            match self.ids.get(&word) {
                Some(id) if self.cut.0 == "llama-bpe" => out.push(*id),
                _ => out.extend(self.merge(&word)),
            }
            start = end;
        }
        out
    }

    fn merge(&self, word: &[u8]) -> Vec<u32> {
        let byte = |byte: &u8| self.ids.get(&[*byte][..]).copied();
        let mut tokens: Vec<u32> = word.iter().filter_map(byte).collect();
        loop {
            let pairs = tokens.windows(2).zip(0..);
            let known = pairs.filter_map(|(p, i)| Some((self.merges.get(&(p[0], p[1]))?, i)));
            let Some(((_, made), i)) = known.min() else { return tokens };
            tokens[i] = *made;
            tokens.remove(i + 1);
        }
    }
}

// ---- 3. The transformer -------------------------------------------------------------------------

/// `n` numbers, each made by itself; on all cores if there is enough work.
fn each(n: usize, work: usize, number: impl Fn(usize) -> f32 + Sync) -> Vec<f32> {
    static CORES: OnceLock<usize> = OnceLock::new();
    let cores = CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    if work < 1 << 17 {
        return (0..n).map(number).collect();
    }
    let (mut out, part, number) = (vec![0.0; n], n.div_ceil(*cores), &number);
    std::thread::scope(|scope| {
        for (start, out) in (0..).step_by(part).zip(out.chunks_mut(part)) {
            scope.spawn(move || (start..).zip(out).for_each(|(i, y)| *y = number(i)));
        }
    });
    out
}

/// The sum of products, in 16 sums side by side: so many a processor can do at once.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (mut sums, whole) = ([0.0; 16], a.len() / 16 * 16);
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest = a[whole..].iter().zip(&b[whole..]).map(|(a, b)| a * b);
    sums.iter().copied().chain(rest).sum()
}

/// Adds to the residual stream.
fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// A decoder-only transformer (Vaswani et al. 2017) as Llama made it usual (Touvron et al. 2023). A
/// token is a vector `x` of `width` numbers, the residual stream. Each layer adds what attention
/// finds among the tokens before, and then what a small network makes of it.
pub struct Transformer {
    tensors: HashMap<String, Vec<f32>>,
    /// Of each layer, keys and values of all tokens so far, `[heads of keys, head]` each: what was
    /// computed once is kept.
    caches: Vec<(Vec<f32>, Vec<f32>)>,
    vocab: usize,
    width: usize,
    hidden: usize,
    /// Heads of queries, those of keys and values, and numbers of a head.
    heads: usize,
    kv_heads: usize,
    head: usize,
    context: usize,
    epsilon: f32,
    /// How far each pair of a head turns from one token to the next, and whether the two lie side by
    /// side or half a head apart.
    turns: Vec<f64>,
    beside: bool,
    /// Tokens so far.
    len: usize,
}

/// The family of a model, if it can be run here.
pub fn family(file: &Gguf) -> Result<String> {
    let family = file.text("general.architecture").to_string();
    let scaling = file.text(&format!("{family}.rope.scaling.type"));
    match (&family[..], scaling) {
        ("llama" | "qwen2" | "qwen3", "none" | "linear") => Ok(family),
        ("llama" | "qwen2" | "qwen3", _) => Err(format!("rope scaling {scaling} is not known")),
        _ => Err(format!("the architecture {family} is not known; llama, qwen2 and qwen3 are")),
    }
}

impl Transformer {
    fn new(file: &Gguf) -> Result<Transformer> {
        let name = family(file)?;
        let number = |key: &str| file.number(&format!("{name}.{key}"));
        let count = |key: &str, usual| number(key).map_or(usual, |n| n.clamp(0.0, 1e7) as usize);
        let (width, hidden) = (count("embedding_length", 0), count("feed_forward_length", 0));
        let (layers, context) = (count("block_count", 0), count("context_length", 0));
        let heads = count("attention.head_count", 0).max(1);
        let kv_heads = count("attention.head_count_kv", heads).max(1);
        let head = count("attention.key_length", width / heads);
        let turning = count("rope.dimension_count", head);
        let sizes = [width, hidden, layers, context, head, turning];
        if sizes.contains(&0) || heads % kv_heads != 0 || turning % 2 != 0 || turning > head {
            return Err(format!("{sizes:?} with {heads} and {kv_heads} heads are no sizes"));
        }
        let epsilon = number("attention.layer_norm_rms_epsilon").unwrap_or(1e-6) as f32;
        let (tensors, beside) = (file.widened(), name == "llama");
        // Rotary positions (Su et al. 2021): pair i turns by theta^(-2i/head) a token. For contexts
        // longer than those of training, turns are slower: all, or each by a divisor.
        let theta = number("rope.freq_base").unwrap_or(1e4);
        let slower = number("rope.scaling.factor").unwrap_or(1.0);
        let by =
            |i| tensors.get("rope_freqs.weight").and_then(|by| by.get(i)).map_or(1.0, |by| *by);
        let turn = |i| theta.powf(-2.0 * i as f64 / turning as f64) / slower / f64::from(by(i));
        let turns: Vec<f64> = (0..turning / 2).map(turn).collect();
        let vocab = file.texts.get("tokenizer.ggml.tokens").map_or(0, |tokens| tokens.len());
        let caches = vec![Default::default(); layers];
        Ok(Transformer {
            tensors,
            caches,
            vocab,
            width,
            hidden,
            heads,
            kv_heads,
            head,
            context,
            epsilon,
            turns,
            beside,
            len: 0,
        })
    }

    /// A tensor of so many numbers.
    fn tensor(&self, name: &str, n: usize) -> Result<&[f32]> {
        match self.tensors.get(name) {
            Some(tensor) if tensor.len() == n => Ok(tensor),
            Some(tensor) => Err(format!("the tensor {name} has {} numbers, not {n}", tensor.len())),
            None => Err(format!("there is no tensor {name}")),
        }
    }

    /// `y = W x + b` of `n` numbers; `W` is `[n, inputs]`, row after row.
    fn linear(&self, name: &str, x: &[f32], n: usize) -> Result<Vec<f32>> {
        let w = self.tensor(&format!("{name}.weight"), x.len() * n)?;
        let b = self.tensors.get(&format!("{name}.bias"));
        let row = |i| &w[i * x.len()..][..x.len()];
        Ok(each(n, w.len(), |i| dot(row(i), x) + b.and_then(|b| b.get(i)).unwrap_or(&0.0)))
    }

    /// RMSNorm (Zhang and Sennrich 2019): the same direction, made as long as the weights say.
    fn norm(&self, name: &str, x: &[f32]) -> Result<Vec<f32>> {
        let weight = self.tensor(&format!("{name}.weight"), x.len())?;
        let factor = 1.0 / (dot(x, x) / x.len() as f32 + self.epsilon).sqrt();
        Ok(x.iter().zip(weight).map(|(x, w)| x * factor * w).collect())
    }

    /// Reads a token: fills the caches, and gives `x` after the last layer.
    fn read(&mut self, token: u32) -> Result<Vec<f32>> {
        let (head, kv, now) = (self.head, self.kv_heads * self.head, self.len);
        let embedding = self.tensor("token_embd.weight", self.vocab * self.width)?;
        let mut x = embedding[token as usize * self.width..][..self.width].to_vec();
        for layer in 0..self.caches.len() {
            let part = |name: &str| format!("blk.{layer}.{name}");
            // Attention: each head asks with a query, and takes the values of the tokens whose keys
            // are like it. Queries and keys turn with the position, so that distances count.
            let h = self.norm(&part("attn_norm"), &x)?;
            let q = self.linear(&part("attn_q"), &h, self.heads * head)?;
            let k = self.linear(&part("attn_k"), &h, kv)?;
            let v = self.linear(&part("attn_v"), &h, kv)?;
            let q = self.turned(&part("attn_q_norm"), q)?;
            let k = self.turned(&part("attn_k_norm"), k)?;
            let (keys, values) = &mut self.caches[layer];
            keys.extend(k);
            values.extend(v);
            let (mut found, group) = (vec![0.0; q.len()], self.heads / self.kv_heads);
            for (i, (q, y)) in q.chunks(head).zip(found.chunks_mut(head)).enumerate() {
                // Several heads of queries share one of keys (Ainslie et al. 2023).
                let at = |token: usize| token * kv + i / group * head;
                let score = |token| dot(q, &keys[at(token)..][..head]) / (head as f32).sqrt();
                // Softmax: shares that sum to 1. The largest is taken off: nothing overflows.
                let scores: Vec<f32> = (0..=now).map(score).collect();
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let shares: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
                let sum: f32 = shares.iter().sum();
                for (token, share) in shares.iter().enumerate() {
                    let v = &values[at(token)..][..head];
                    y.iter_mut().zip(v).for_each(|(y, v)| *y += share / sum * v);
                }
            }
            add(&mut x, &self.linear(&part("attn_output"), &found, self.width)?);

            // The network (SwiGLU, Shazeer 2020): many numbers, each let through by a gate.
            let h = self.norm(&part("ffn_norm"), &x)?;
            let gate = self.linear(&part("ffn_gate"), &h, self.hidden)?;
            let up = self.linear(&part("ffn_up"), &h, self.hidden)?;
            let through = |(gate, up): (&f32, &f32)| gate / (1.0 + (-gate).exp()) * up;
            let m: Vec<f32> = gate.iter().zip(&up).map(through).collect();
            add(&mut x, &self.linear(&part("ffn_down"), &m, self.width)?);
        }
        self.len += 1;
        Ok(x)
    }

    /// Heads turned to the position, and before that normed where the family does so (Qwen3).
    fn turned(&self, norm: &str, x: Vec<f32>) -> Result<Vec<f32>> {
        let mut out = vec![];
        for x in x.chunks(self.head) {
            let normed = self.tensors.contains_key(&format!("{norm}.weight"));
            let mut x = if normed { self.norm(norm, x)? } else { x.to_vec() };
            for (i, turn) in self.turns.iter().enumerate() {
                let (a, b) = match self.beside {
                    true => (2 * i, 2 * i + 1),
                    false => (i, i + self.turns.len()),
                };
                let (sin, cos) = (self.len as f64 * turn).sin_cos();
                let (one, two, sin, cos) = (x[a], x[b], sin as f32, cos as f32);
                x[a] = one * cos - two * sin;
                x[b] = one * sin + two * cos;
            }
            out.extend(x);
        }
        Ok(out)
    }

    /// How likely each token is next: logits, `[vocab]`. Often `W` is the embedding again.
    fn logits(&self, x: &[f32]) -> Result<Vec<f32>> {
        let tied = !self.tensors.contains_key("output.weight");
        let name = if tied { "token_embd" } else { "output" };
        self.linear(name, &self.norm("output_norm", x)?, self.vocab)
    }
}

// ---- 4. Sampling --------------------------------------------------------------------------------

type Options = HashMap<&'static str, f64>;

/// Chooses a token by the logits at a position.
fn choose(logits: &[f32], options: &Options, position: usize) -> Result<u32> {
    let (temperature, top_k, top_p) = (options["temperature"], options["top-k"], options["top-p"]);
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    if temperature == 0.0 {
        ids = ids.into_iter().find(|id| logits[*id] == max).into_iter().collect();
    }
    // A temperature above 1 makes unlikely tokens likelier. The likeliest has weight 1.
    let weight = |id: &usize| (f64::from(logits[*id] - max) / temperature.max(1e-9)).exp();
    if top_k > 0.0 || top_p < 1.0 {
        ids.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap_or(Ordering::Equal));
    }
    if top_k > 0.0 {
        ids.truncate(top_k as usize);
    }
    // Where a running sum of weights is past some number.
    let past = |ids: &[usize], mut left: f64| {
        ids.iter().position(|id| {
            left -= weight(id);
            left < 0.0
        })
    };
    if top_p < 1.0 {
        // The nucleus (Holtzman et al. 2019).
        let all: f64 = ids.iter().map(weight).sum();
        ids.truncate(past(&ids, top_p * all).map_or(ids.len(), |last| last + 1));
    }
    ids.retain(|id| weight(id) > 0.0 && weight(id) >= options["min-p"]); // Nguyen et al. 2024
    let all: f64 = ids.iter().map(weight).sum();
    let chosen = past(&ids, random(options["seed"] as u64, position as u64) * all);
    let chosen = chosen.map(|i| &ids[i]).or(ids.last()).filter(|_| all.is_finite());
    chosen.map(|id| *id as u32).ok_or("the logits are not numbers: the file is broken".into())
}

/// A number in 0..1 by seed and position: the first of xoshiro256++ (Blackman and Vigna 2019), which
/// SplitMix64 starts (Steele et al. 2014).
fn random(seed: u64, mut position: u64) -> f64 {
    fn split_mix(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    position ^= 0x5851_f42d_4c95_7f2d;
    let mut mixed = seed ^ split_mix(&mut position);
    let mut state = split_mix(&mut mixed);
    let s = [(); 4].map(|()| split_mix(&mut state));
    let bits = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

// ---- 5. The loop --------------------------------------------------------------------------------

/// A message and the start of an answer as ChatML has it. A model brings its template as a program
/// (Jinja), which isn't run here: this form is known by its tokens. `None` if it is another.
fn chatml(file: &Gguf, t: &Tokenizer, message: &str, first: bool) -> Option<Vec<u32>> {
    let template = file.text("tokenizer.chat_template").replace("\\n", "\n");
    let (open, close) = (*t.control.get("<|im_start|>")?, *t.control.get("<|im_end|>")?);
    // What the template puts before conversations.
    let mut systems = template.split("<|im_start|>system\n").skip(1);
    let plain = |text: &&str| !text.contains(['\'', '"', '{']);
    let system = systems.find_map(|text| text.split("<|im_end|>").next().filter(plain));
    let system = system.filter(|_| first).map(|text| format!("system\n{text}"));
    let mut out = if first { vec![] } else { [vec![close], t.encode("\n")].concat() };
    for text in system.into_iter().chain(Some(format!("user\n{message}"))) {
        out.extend([vec![open], t.encode(&text), vec![close], t.encode("\n")].concat());
    }
    out.extend([vec![open], t.encode("assistant\n")].concat());
    Some(out).filter(|_| template.contains("<|im_start|>"))
}

/// Reads a prompt, then writes token after token until one ends the answer.
fn answer(model: &mut Transformer, t: &Tokenizer, prompt: &[u32], options: &Options) -> Result<()> {
    let context = model.context.min(options["context"] as usize);
    let room = context.saturating_sub(model.len + prompt.len());
    let most = if options["tokens"] > 0.0 { options["tokens"] as usize } else { room };
    if prompt.is_empty() || room == 0 || most > room {
        let before = model.len + prompt.len();
        return Err(format!("{before} tokens and an answer don't fit into a context of {context}"));
    }
    let (start, mut out) = (Instant::now(), std::io::stdout());
    let mut x = vec![];
    for token in prompt {
        x = model.read(*token)?;
    }
    let (read, mut held, mut n) = (start.elapsed().as_secs_f64(), vec![], 0);
    while n < most {
        let token = choose(&model.logits(&x)?, options, model.len)?;
        if t.ends.contains(&token) {
            break;
        }
        held.extend(&t.pieces[token as usize]);
        // A character can take several tokens; it waits until it is whole.
        let whole = match std::str::from_utf8(&held) {
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            _ => held.len(),
        };
        let text: Vec<u8> = held.drain(..whole).collect();
        let shown = write!(out, "{}", String::from_utf8_lossy(&text)).and_then(|()| out.flush());
        shown.map_err(|e| format!("cannot write: {e}"))?;
        x = model.read(token)?;
        n += 1;
    }
    println!("{}", String::from_utf8_lossy(&held));
    let (reading, writing) = (prompt.len() as f64 / read, start.elapsed().as_secs_f64() - read);
    eprintln!("[read {reading:.1} tokens/s, wrote {n}, {:.1} tokens/s]", n as f64 / writing);
    Ok(())
}

fn run(mut args: impl Iterator<Item = String>) -> Result<()> {
    let (mut words, mut raw) = (vec![], false);
    let mut options: Options =
        [("temperature", 0.0), ("top-k", 0.0), ("top-p", 1.0), ("min-p", 0.0)].into();
    options.extend([("seed", 0.0), ("tokens", 0.0), ("context", 8192.0)]);
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--").map(|name| (name, options.get_mut(name))) {
            Some(("raw", _)) => raw = true,
            Some((_, Some(value))) => {
                let number = args.next().and_then(|number| number.parse().ok());
                *value = number
                    .filter(|n: &f64| *n >= 0.0)
                    .ok_or(format!("{arg}: a number\n{USAGE}"))?;
            }
            Some(_) => return Err(USAGE.into()),
            None => words.push(arg),
        }
    }
    let (Some(path), true) = (words.first(), words.len() <= 2) else { return Err(USAGE.into()) };
    let wrong = |error: String| format!("{path}: {error}");
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let mut file = Gguf::read(bytes).map_err(wrong)?;
    let tokenizer = Tokenizer::new(&file).map_err(wrong)?;
    let mut model = Transformer::new(&file).map_err(wrong)?;
    file.bytes.clear();
    if !raw && chatml(&file, &tokenizer, "", true).is_none() {
        eprintln!("note: the model has no form of conversations that is known here; text goes on");
        raw = true;
    }
    let mut respond = |message: &str| {
        let plain = || tokenizer.bos.into_iter().chain(tokenizer.encode(message)).collect();
        let turn = || chatml(&file, &tokenizer, message, model.len == 0);
        let prompt = if raw { None } else { turn() }.unwrap_or_else(plain);
        answer(&mut model, &tokenizer, &prompt, &options)
    };
    if let Some(message) = words.get(1) {
        return respond(message);
    }
    eprint!("> ");
    for line in std::io::stdin().lock().lines() {
        respond(&line.map_err(|e| format!("cannot read what is typed: {e}"))?)?;
        eprint!("> ");
    }
    Ok(())
}

pub fn main() {
    if let Err(error) = run(std::env::args().skip(1)) {
        eprintln!("error: {error}");
        std::process::exit(2);
    }
}
