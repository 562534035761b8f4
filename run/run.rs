//! How a language model works, in one file.
//!
//! A GGUF file holds the parameters: numbers that training has found. This is what is done with
//! them: the file, the tokenizer (text to numbers and back), the transformer (how likely each token
//! is next), sampling (one of them), the loop. It computes in 32 bits, as `homegrown generate
//! --exact --kv f32`, and writes its tokens. `rustc -O run.rs` builds it; `./run model.gguf` talks.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::OnceLock;
use std::time::Instant;

const USAGE: &str = "usage: run MODEL.gguf [PROMPT] [--raw] [--OPTION NUMBER]...
Without PROMPT a conversation, with --raw a text that goes on; options as of `homegrown generate`:
--tokens (most of an answer), --context, --temperature, --top-k, --top-p, --min-p, --seed";

/// Errors are for people: what is wrong, and where.
type Result<T> = std::result::Result<T, String>;

// ---- 1. The file --------------------------------------------------------------------------------

/// A file in GGUF (ggml's `docs/gguf.md`): metadata (a single value is a list of one here), and
/// tensors, widened to 32 bits. (Engines don't: what limits them is how fast memory is read.)
struct Gguf {
    numbers: HashMap<String, Vec<f64>>,
    texts: HashMap<String, Vec<String>>,
    tensors: HashMap<String, Vec<f32>>,
}

/// Tensors are stored in blocks. By type: how many numbers are in one, its bytes, what number `i`
/// of it is. Q is for quantised: 32 numbers of 8 bits share a scale.
fn blocks(kind: u64) -> Result<(usize, usize, fn(&[u8], usize) -> f32)> {
    const NAMES: &str = "F32 F16 Q4_0 Q4_1 - - Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K";
    let name = NAMES.split(' ').nth(kind as usize).unwrap_or("another");
    match kind {
        0 => Ok((1, 4, |b, _| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        1 => Ok((1, 2, |b, _| half(b))),
        8 => Ok((32, 34, |b, i| half(b) * f32::from(b[2 + i] as i8))),
        30 => Ok((1, 2, |b, _| f32::from_le_bytes([0, 0, b[0], b[1]]))),
        _ => Err(format!("{kind} ({name}) is not read; F32, F16, BF16 and Q8_0 are")),
    }
}

/// 16 bits: sign, 5 of exponent, 10 of fraction. In fields of 32 bits it is 2^112 times too small.
fn half(b: &[u8]) -> f32 {
    let bits = u32::from(u16::from_le_bytes([b[0], b[1]]));
    f32::from_bits((bits & 0x8000) << 16 | (bits & 0x7fff) << 13) * 2f32.powi(112)
}

/// Takes bytes off the front.
fn take<'a>(r: &mut &'a [u8], n: u64) -> Result<&'a [u8]> {
    let wrong = || format!("the file is cut off: {n} bytes should follow, {} do", r.len());
    let (taken, rest) = r.split_at_checked(n as usize).ok_or_else(wrong)?;
    *r = rest;
    Ok(taken)
}

/// A number that isn't negative (none is that is used here); its lowest byte is first.
fn number(r: &mut &[u8], bytes: u64) -> Result<u64> {
    Ok(take(r, bytes)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

fn text(r: &mut &[u8]) -> Result<String> {
    let len = number(r, 8)?;
    String::from_utf8(take(r, len)?.to_vec()).map_err(|e| format!("a text is not UTF-8: {e}"))
}

fn value(r: &mut &[u8], kind: u64) -> Result<f64> {
    let bytes = *[1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8].get(kind as usize).unwrap_or(&0);
    match (kind, number(r, bytes)?) {
        (6, n) => Ok(f64::from(f32::from_bits(n as u32))),
        (12, n) => Ok(f64::from_bits(n)),
        (_, n) if bytes > 0 => Ok(n as f64),
        _ => Err(format!("{} bytes before the end, {kind} is no type of values", r.len())),
    }
}

impl Gguf {
    fn read(bytes: &[u8]) -> Result<Gguf> {
        let r = &mut &bytes[..];
        if take(r, 4)? != b"GGUF" || !(2..=3).contains(&number(r, 4)?) {
            return Err("it is no GGUF file of version 2 or 3".into());
        }
        let (count, pairs) = (number(r, 8)?, number(r, 8)?);
        let (mut numbers, mut texts) = (HashMap::new(), HashMap::new());
        for _ in 0..pairs {
            let (key, kind) = (text(r)?, number(r, 4)?);
            let (kind, n) = if kind == 9 { (number(r, 4)?, number(r, 8)?) } else { (kind, 1) };
            if kind == 8 {
                texts.insert(key, (0..n).map(|_| text(r)).collect::<Result<_>>()?);
            } else {
                numbers.insert(key, (0..n).map(|_| value(r, kind)).collect::<Result<_>>()?);
            }
        }
        let mut heads = vec![];
        for _ in 0..count {
            let (name, sides) = (text(r)?, number(r, 4)?);
            let multiply = |n: u64, _| -> Result<u64> { Ok(n.saturating_mul(number(r, 8)?)) };
            let n = (0..sides).try_fold(1, multiply)? as usize;
            let blocks = blocks(number(r, 4)?).map_err(|e| format!("tensor {name}: type {e}"))?;
            heads.push((name, blocks, n, number(r, 8)? as usize));
        }
        let mut file = Gguf { numbers, texts, tensors: HashMap::new() };
        let alignment = file.number("general.alignment").unwrap_or(32.0).clamp(1.0, 4096.0);
        let start = (bytes.len() - r.len()).next_multiple_of(alignment as usize);
        for (name, (elements, size, number), n, offset) in heads {
            let start = start.saturating_add(offset);
            let end = start.saturating_add((n / elements).saturating_mul(size));
            let bytes = bytes.get(start..end).filter(|_| n % elements == 0);
            let bytes = bytes.ok_or(format!("tensor {name} goes beyond the end of the file"))?;
            let number = |i| number(&bytes[i / elements * size..], i % elements);
            file.tensors.insert(name, each(n, n, number));
        }
        Ok(file)
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.numbers.get(key)?.first().copied()
    }

    fn text(&self, key: &str) -> &str {
        self.texts.get(key).and_then(|texts| texts.first()).map_or("none", |text| text)
    }
}

// ---- 2. The tokenizer ---------------------------------------------------------------------------

/// Text to tokens and back: byte-pair encoding (Sennrich et al. 2016). Text is cut into words, and
/// these into bytes. Of all neighbours that are a known pair, that of the lowest rank becomes one
/// token, again and again, until none is left.
struct Tokenizer {
    /// The bytes of each token, and the tokens that text becomes by their bytes.
    pieces: Vec<Vec<u8>>,
    ids: HashMap<Vec<u8>, u32>,
    /// Rank of a pair, and what it becomes.
    merges: HashMap<(u32, u32), (usize, u32)>,
    /// Tokens with a meaning, such as the end of a turn. Text never becomes one of them.
    control: HashMap<String, u32>,
    /// Who cuts text so, whether as for GPT-4 (not GPT-2), how many digits stay together.
    cut: (String, bool, usize),
    /// What begins a text that no template made, and what ends an answer.
    bos: Option<u32>,
    ends: Vec<u32>,
}

/// An example of a character's class: letter, number, line break, white space, anything else.
fn class(c: char) -> char {
    // Signs of vowels, which `is_alphabetic` counts; those of India's scripts are laid out alike.
    let (code, indic) = (c as u32, ('\u{900}'..'\u{d80}').contains(&c) && c != '\u{b83}');
    let sign = matches!(code, 0x345..=0x36f | 0x5b0..=0x5c7 | 0x610..=0x61a | 0x64b..=0x65f | 0xe31
        | 0xe34..=0xe3a | 0xdcf..=0xdf3 | 0xf71..=0xf83 | 0x102b..=0x103e | 0x17b6..=0x17c8)
        || indic && matches!(code & 127, 1..=3 | 0x3e..=0x4d | 0x4f | 0x55..=0x57 | 0x62..=0x63);
    match c {
        '\r' | '\n' => '\n',
        _ if c.is_whitespace() => ' ',
        _ if c.is_numeric() => '0',
        _ if c.is_alphabetic() && !sign => 'a',
        _ => '!',
    }
}

impl Tokenizer {
    fn new(file: &Gguf) -> Result<Tokenizer> {
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
                let known = "gpt-2, smollm, llama-bpe, dbrx, qwen2, stablelm2";
                return Err(format!("the tokenizer {model} {pre} is not read; gpt2 {known} are"));
            }
        };
        // Tokens are spelled: bytes that can be seen as in Latin-1, the others from U+0100 on.
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
        let tokens = texts("tokens")?.iter();
        for ((text, kind), id) in tokens.zip(kinds.iter().chain(std::iter::repeat(&5.0))).zip(0..) {
            // 1: text, 2 to 4: control, 5: unused, 6: a byte.
            let mut piece = text.clone().into_bytes();
            if *kind == 1.0 || *kind == 6.0 {
                piece = spelled(text).ok_or(format!("token {id}, {text:?}, is not spelled so"))?;
                ids.insert(piece.clone(), id);
            } else if *kind == 4.0 && text.trim().is_empty() {
                return Err(format!("token {id}, {text:?}: text that isn't merged is not read"));
            } else if *kind < 5.0 {
                control.insert(text.clone(), id);
            }
            pieces.push(piece);
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
        let bos = id("bos_token_id").filter(|id| begins && (*id as usize) < pieces.len());
        let cut = (pre.to_string(), gpt4, digits);
        Ok(Tokenizer { pieces, ids, merges, control, cut, bos, ends })
    }

    /// Length of the word that text begins with, by its characters and their classes. GPT-2's are
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`; GPT-4's begin
    /// with any mark before letters, and end after line breaks.
    fn word(&self, s: &[char], classes: &[char]) -> usize {
        let (_, gpt4, digits) = self.cut;
        let at = |i: usize| classes.get(i).copied().unwrap_or('$');
        let run = |from: usize, class| from + (from..).take_while(|i| at(*i) == class).count();
        let begin: String = s.iter().take(3).collect();
        let begin = if gpt4 { begin.to_ascii_lowercase() } else { begin };
        let endings = ["'s", "'t", "'m", "'d", "'re", "'ve", "'ll"];
        if let Some(ending) = endings.iter().find(|ending| begin.starts_with(**ending)) {
            return ending.len();
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
    let part = if work < 1 << 17 { n } else { n.div_ceil(*cores) }.max(1);
    let (mut out, number) = (vec![0.0; n], &number);
    std::thread::scope(|scope| {
        for (start, out) in (0..).step_by(part).zip(out.chunks_mut(part)) {
            scope.spawn(move || (start..).zip(out).for_each(|(i, y)| *y = number(i)));
        }
    });
    out
}

/// The sum of products, in 16 sums side by side: so many a processor can do at once.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum()
}

/// A decoder-only transformer (Vaswani et al. 2017) as Llama made it usual (Touvron et al. 2023). A
/// token is a vector `x` of `width` numbers, the residual stream. Each layer adds what attention
/// finds among the tokens before, and then what a small network makes of it.
struct Transformer {
    tensors: HashMap<String, Vec<f32>>,
    /// Keys and values of the tokens so far, `[heads of keys, head]` each, by layer.
    caches: Vec<(Vec<f32>, Vec<f32>)>,
    /// Tokens, numbers of `x`, of the network inside, of a head; heads of queries, and of keys.
    sizes: [usize; 6],
    context: usize,
    epsilon: f32,
    /// How far pairs of a head turn from token to token; whether they lie side by side.
    turns: Vec<f64>,
    beside: bool,
    len: usize,
}

impl Transformer {
    fn new(file: &mut Gguf) -> Result<Transformer> {
        let name = file.text("general.architecture").to_string();
        let scaling = file.text(&format!("{name}.rope.scaling.type"));
        if !["llama", "qwen2", "qwen3"].contains(&&name[..]) || scaling != "none" {
            return Err(format!("{name} with rope scaling {scaling}: run are llama, qwen2, qwen3"));
        }
        let tensors = std::mem::take(&mut file.tensors);
        let number = |key: &str| file.number(&format!("{name}.{key}"));
        let count = |key: &str, usual| number(key).map_or(usual, |n| n.clamp(0.0, 1e7) as usize);
        let (width, hidden) = (count("embedding_length", 0), count("feed_forward_length", 0));
        let (layers, context) = (count("block_count", 0), count("context_length", 0));
        let heads = count("attention.head_count", 0).max(1);
        let kv_heads = count("attention.head_count_kv", heads).max(1);
        let head = count("attention.key_length", width / heads);
        let turning = count("rope.dimension_count", head);
        let vocab = file.texts.get("tokenizer.ggml.tokens").map_or(0, |tokens| tokens.len());
        let sizes = [vocab, width, hidden, head, heads, kv_heads];
        if sizes.contains(&0) || heads % kv_heads != 0 || turning % 2 != 0 || turning > head {
            return Err(format!("{sizes:?}, {turning} of a head turn: no sizes of a model"));
        }
        let epsilon = number("attention.layer_norm_rms_epsilon").unwrap_or(1e-6) as f32;
        let caches = vec![Default::default(); layers];
        // Rotary positions (Su et al. 2021): pair i turns by theta^(-2i/head) a token. For contexts
        // longer than those of training, some models divide that.
        let theta = number("rope.freq_base").unwrap_or(1e4);
        let by = |i| tensors.get("rope_freqs.weight").and_then(|by| by.get(i)).unwrap_or(&1.0);
        let turn = |i| theta.powf(-2.0 * i as f64 / turning as f64) / f64::from(*by(i));
        let (turns, beside) = ((0..turning / 2).map(turn).collect(), name == "llama");
        Ok(Transformer { tensors, caches, sizes, context, epsilon, turns, beside, len: 0 })
    }

    fn tensor(&self, name: &str, n: usize) -> Result<&[f32]> {
        let tensor = self.tensors.get(name).filter(|tensor| tensor.len() == n);
        Ok(tensor.ok_or_else(|| format!("there is no tensor {name} of {n} numbers"))?)
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

    /// Reads a token, and tells how likely each one is next: logits, `[tokens]`.
    fn read(&mut self, token: u32) -> Result<Vec<f32>> {
        let ([vocab, width, hidden, head, heads, kv_heads], now) = (self.sizes, self.len);
        let embedding = self.tensor("token_embd.weight", vocab * width)?;
        let mut x = embedding[token as usize * width..][..width].to_vec();
        for layer in 0..self.caches.len() {
            let part = |name: &str| format!("blk.{layer}.{name}");
            // Attention: each head asks with a query, and takes the values of the tokens whose keys
            // are like it. Queries and keys turn with the position, so that distances count.
            let h = self.norm(&part("attn_norm"), &x)?;
            let q = self.linear(&part("attn_q"), &h, heads * head)?;
            let k = self.linear(&part("attn_k"), &h, kv_heads * head)?;
            let v = self.linear(&part("attn_v"), &h, kv_heads * head)?;
            let q = self.turned(&part("attn_q_norm"), q)?;
            let k = self.turned(&part("attn_k_norm"), k)?;
            let (keys, values) = &mut self.caches[layer];
            keys.extend(k);
            values.extend(v);
            let (mut found, group) = (vec![0.0; q.len()], heads / kv_heads);
            for (i, (q, y)) in q.chunks(head).zip(found.chunks_mut(head)).enumerate() {
                // Several heads of queries share one of keys (Ainslie et al. 2023).
                let at = |token: usize| token * kv_heads * head + i / group * head;
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
            let a = self.linear(&part("attn_output"), &found, width)?;
            x.iter_mut().zip(a).for_each(|(x, a)| *x += a);
            // The network (SwiGLU, Shazeer 2020): many numbers, each let through by a gate.
            let h = self.norm(&part("ffn_norm"), &x)?;
            let gate = self.linear(&part("ffn_gate"), &h, hidden)?;
            let up = self.linear(&part("ffn_up"), &h, hidden)?;
            let through = |(gate, up): (&f32, &f32)| gate / (1.0 + (-gate).exp()) * up;
            let m: Vec<f32> = gate.iter().zip(&up).map(through).collect();
            let m = self.linear(&part("ffn_down"), &m, width)?;
            x.iter_mut().zip(m).for_each(|(x, m)| *x += m);
        }
        self.len += 1;
        let untied = self.tensors.contains_key("output.weight");
        let output = if untied { "output" } else { "token_embd" };
        self.linear(output, &self.norm("output_norm", &x)?, vocab)
    }

    /// Heads turned to the position, and before that normed where the family does so (Qwen3).
    fn turned(&self, norm: &str, x: Vec<f32>) -> Result<Vec<f32>> {
        let (mut out, half) = (vec![], self.turns.len());
        for x in x.chunks(self.sizes[3]) {
            let normed = self.tensors.contains_key(&format!("{norm}.weight"));
            let mut x = if normed { self.norm(norm, x)? } else { x.to_vec() };
            for (i, turn) in self.turns.iter().enumerate() {
                let (a, b) = if self.beside { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (sin, cos) = (self.len as f64 * turn).sin_cos();
                let (one, two, sin, cos) = (x[a], x[b], sin as f32, cos as f32);
                x[a] = one * cos - two * sin;
                x[b] = one * sin + two * cos;
            }
            out.extend(x);
        }
        Ok(out)
    }
}

// ---- 4. Sampling --------------------------------------------------------------------------------

/// Chooses a token by the logits at a position. `top-p` is the nucleus (Holtzman et al. 2019).
fn choose(logits: &[f32], options: &HashMap<&str, f64>, position: usize) -> Result<u32> {
    // A temperature above 1 makes unlikely tokens likelier, below 1 less likely.
    let (heat, top_k, top_p) = match options["temperature"] {
        0.0 => (1.0, 1, 1.0),
        heat => (heat, options["top-k"] as usize, options["top-p"]),
    };
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |id: &usize| (f64::from(logits[*id] - max) / heat).exp(); // at most 1
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    if top_k > 0 || top_p < 1.0 {
        ids.sort_by(|a, b| (logits[*b] + 0.0).total_cmp(&(logits[*a] + 0.0)));
        ids.truncate(if top_k > 0 { top_k } else { ids.len() });
    }
    // Where a running sum of weights gets past a share of all.
    let past = |ids: &[usize], share: f64| {
        let mut left = share * ids.iter().map(weight).sum::<f64>();
        ids.iter().position(|id| {
            left -= weight(id);
            left < 0.0
        })
    };
    if top_p < 1.0 {
        ids.truncate(past(&ids, top_p).map_or(ids.len(), |last| last + 1));
    }
    ids.retain(|id| weight(id) > 0.0 && weight(id) >= options["min-p"]); // Nguyen et al. 2024
    let chosen = past(&ids, random(options["seed"] as u64, position as u64));
    let chosen = chosen.map(|i| &ids[i]).or(ids.last());
    chosen.map(|id| *id as u32).ok_or("the logits are no numbers: the file is broken".into())
}

/// In 0..1, by seed and position: a step of xoshiro256++ (2019) from a state of SplitMix64 (2014).
fn random(seed: u64, position: u64) -> f64 {
    let split_mix = |state: u64, steps: u64| {
        let z = state.wrapping_add(steps.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let start = split_mix(seed ^ split_mix(position ^ 0x5851_f42d_4c95_7f2d, 1), 1);
    let (first, last) = (split_mix(start, 1), split_mix(start, 4));
    let bits = first.wrapping_add(last).rotate_left(23).wrapping_add(first);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

// ---- 5. The loop --------------------------------------------------------------------------------

/// A message and the start of an answer as ChatML has it. A model brings its template as a program
/// (Jinja), which isn't run here: this form is known by its tokens. `None` if it is another.
fn chatml(file: &Gguf, t: &Tokenizer, message: &str, first: bool) -> Option<Vec<u32>> {
    let template = file.text("tokenizer.chat_template").replace("\\n", "\n");
    let (open, close) = (*t.control.get("<|im_start|>")?, *t.control.get("<|im_end|>")?);
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
fn answer(
    model: &mut Transformer,
    t: &Tokenizer,
    prompt: &[u32],
    options: &HashMap<&str, f64>,
) -> Result<()> {
    let (context, used) = (options["context"] as usize, model.len + prompt.len());
    let room = context.min(model.context).saturating_sub(used);
    let most = if options["tokens"] > 0.0 { options["tokens"] as usize } else { room };
    if prompt.is_empty() || room == 0 || most > room {
        return Err(format!(
            "the prompt is empty, or {used} tokens and an answer don't fit the context"
        ));
    }
    let (start, mut logits, mut held, mut n) = (Instant::now(), vec![], vec![], 0);
    for token in prompt {
        logits = model.read(*token)?;
    }
    while n < most {
        let token = choose(&logits, options, model.len)?;
        if t.ends.contains(&token) {
            break;
        }
        held.extend(&t.pieces[token as usize]);
        // A character can take several tokens; it waits until it is whole.
        let tail = held.utf8_chunks().last().map_or(vec![], |chunk| chunk.invalid().to_vec());
        let open = std::str::from_utf8(&tail).is_err_and(|e| e.error_len().is_none());
        let whole = held.len() - if open { tail.len() } else { 0 };
        let shown = write!(std::io::stdout(), "{}", String::from_utf8_lossy(&held[..whole]));
        shown.and_then(|()| std::io::stdout().flush()).map_err(|e| format!("cannot write: {e}"))?;
        held.drain(..whole);
        logits = model.read(token)?;
        n += 1;
    }
    println!("{}", String::from_utf8_lossy(&held));
    let speed = (prompt.len() + n) as f64 / start.elapsed().as_secs_f64();
    eprintln!("[{} tokens read, {n} written, {speed:.1} tokens/s]", prompt.len());
    Ok(())
}

fn run(mut args: impl Iterator<Item = String>) -> Result<()> {
    let (mut words, mut raw) = (vec![], false);
    let mut options = HashMap::from([("seed", 0.0), ("tokens", 0.0), ("context", 8192.0)]);
    options.extend([("temperature", 0.0), ("top-k", 0.0), ("top-p", 1.0), ("min-p", 0.0)]);
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--").map(|name| (name, options.get_mut(name))) {
            Some(("raw", _)) => raw = true,
            Some((_, Some(value))) => {
                let number = args.next().and_then(|n| n.parse().ok()).filter(|n: &f64| *n >= 0.0);
                *value = number.ok_or(format!("{arg} takes a number\n{USAGE}"))?;
            }
            Some(_) => return Err(USAGE.into()),
            None => words.push(arg),
        }
    }
    let (Some(path), true) = (words.first(), words.len() <= 2) else { return Err(USAGE.into()) };
    let wrong = |error: String| format!("{path}: {error}");
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()));
    let mut file = Gguf::read(&bytes?).map_err(wrong)?;
    let tokenizer = Tokenizer::new(&file).map_err(wrong)?;
    let mut model = Transformer::new(&mut file).map_err(wrong)?;
    let mut respond = |message: &str| {
        let (first, text) = (model.len == 0, || tokenizer.encode(message));
        let plain = || tokenizer.bos.into_iter().filter(|_| first).chain(text()).collect();
        let form = if raw { None } else { chatml(&file, &tokenizer, message, first) };
        if form.is_none() && !raw {
            eprintln!("note: its form of conversations is not known here; the text is continued");
        }
        answer(&mut model, &tokenizer, &form.unwrap_or_else(plain), &options)
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

fn main() {
    if let Err(error) = run(std::env::args().skip(1)) {
        eprintln!("error: {error}");
        std::process::exit(2);
    }
}
