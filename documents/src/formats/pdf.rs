//! PDF: lines of pages to paragraphs. Headers, footers and page numbers are left out.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use hayro_syntax::object::{Array, Stream};
use hayro_syntax::{Filter, Pdf};

use super::pdf_page::{Line, Pages};
use crate::document::About;
use crate::parse::Parsed;
use crate::unpack::check_ratio;
use crate::{Limits, encoding};

/// Most pages of a file.
const PAGES: usize = 100_000;

/// What items of lists begin with.
const BULLETS: [char; 5] = ['•', '–', '◦', '▪', '●'];

/// Reads one.
pub fn read(bytes: Vec<u8>, limits: &Limits) -> Parsed {
    if find(&bytes, b"/Encrypt", 0).is_some() {
        return Err("it is encrypted; save it without restrictions".into());
    }
    defuse(&bytes, limits)?;
    let size = bytes.len();
    let pdf = Pdf::new(bytes).map_err(|_| "broken: it can't be read as PDF".to_string())?;
    let decoded = |stream: &Stream<'_>| decoded(stream, limits);
    let mut reader = Pages::default();
    let (mut pages, mut kept) = (Vec::new(), 0);
    for page in pdf.pages().iter().take(PAGES) {
        let mut content = Vec::new();
        let raw = page.raw();
        if let Some(stream) = raw.get::<Stream<'_>>("Contents") {
            content = decoded(&stream).unwrap_or_default();
        } else if let Some(streams) = raw.get::<Array<'_>>("Contents") {
            for stream in streams.iter::<Stream<'_>>() {
                content.extend(decoded(&stream).unwrap_or_default());
                content.push(b'\n');
                check_ratio(content.len() as u64, size as u64, limits)
                    .map_err(|e| e.to_string())?;
            }
        }
        let lines = reader.read(&content, page.resources(), &decoded);
        kept += lines.iter().map(|l| l.text.len() as u64).sum::<u64>();
        // The same form drawn again and again is a bomb as well.
        check_ratio(kept, size as u64, limits).map_err(|e| e.to_string())?;
        pages.push(lines);
    }
    if pages.iter().all(Vec::is_empty) {
        return Err(match reader.unknown {
            0 => "no text in it: scanned pages need a text layer".into(),
            n => format!("its fonts don't say what their {n} glyphs mean"),
        });
    }
    drop_repeated(&mut pages);
    let meta = pdf.metadata();
    let title = meta.title.as_ref().map(|t| string(t)).filter(|t| !t.trim().is_empty());
    let time = meta.creation_date.map(|d| format!("{:04}-{:02}-{:02}", d.year, d.month, d.day));
    Ok((paragraphs(&pages), About { title, time, ..About::default() }))
}

/// A text string of the file's dictionaries.
fn string(bytes: &[u8]) -> String {
    match bytes.starts_with(b"\xfe\xff") || bytes.starts_with(b"\xff\xfe") {
        true => encoding::text(bytes.to_vec()),
        false => encoding_rs::WINDOWS_1252.decode(bytes).0.into_owned(),
    }
}

/// A stream's data, if it isn't a bomb.
fn decoded(stream: &Stream<'_>, limits: &Limits) -> Option<Vec<u8>> {
    let (raw, filters) = (stream.raw_data(), stream.filters());
    let predicted = ["DecodeParms", "DP"].iter().any(|key| stream.dict().contains_key(key));
    if filters.as_slice() == [Filter::FlateDecode] && !predicted {
        let mut data = Vec::new();
        // What came before the damage of a broken stream is still read.
        inflate(&raw, limits, |part| data.extend_from_slice(part)).ok()?;
        return Some(data);
    }
    // Each filter may multiply; pages are packed once, by hand or by everybody.
    let packs = |f: &&Filter| {
        matches!(f, Filter::FlateDecode | Filter::LzwDecode | Filter::RunLengthDecode)
    };
    if filters.iter().filter(packs).count() > 1 || raw.len() > 1 << 24 {
        return None;
    }
    stream.decoded_data().ok().map(|data| data.into_owned())
}

/// # Errors
/// If it is a bomb. Damage only ends it.
fn inflate(raw: &[u8], limits: &Limits, mut part: impl FnMut(&[u8])) -> Result<(), String> {
    let mut decoder = flate2::read::ZlibDecoder::new(raw);
    let (mut given, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        let Ok(n @ 1..) = decoder.read(&mut buffer) else { return Ok(()) };
        given += n as u64;
        check_ratio(given, raw.len() as u64, limits).map_err(|e| e.to_string())?;
        part(&buffer[..n]);
    }
}

/// Looks for bombs among the streams before anything unpacks them: the parser of the file has no
/// limits of its own for the streams that hold its objects.
fn defuse(bytes: &[u8], limits: &Limits) -> Result<(), String> {
    let mut at = 0;
    while let Some(found) = find(bytes, b"stream", at) {
        at = found + 6;
        let data = bytes.get(at..).unwrap_or_default();
        let data = data.strip_prefix(b"\r").unwrap_or(data);
        let data = data.strip_prefix(b"\n").unwrap_or(data);
        // zlib: deflate, and a check that divides by 31.
        let packed = matches!(data, [a, b, ..] if a & 15 == 8 && (u32::from(*a) << 8 | u32::from(*b)) % 31 == 0);
        if packed {
            let end = find(bytes, b"endstream", at).unwrap_or(bytes.len());
            let raw = &data[..data.len().min(end.saturating_sub(at))];
            let mut twice = Vec::new();
            inflate(raw, limits, |part| {
                if twice.len() < 2 {
                    twice.extend_from_slice(&part[..part.len().min(2)]);
                }
            })?;
            if matches!(twice.as_slice(), [0x78, 1 | 0x5e | 0x9c | 0xda, ..]) {
                return Err("it is packed twice, as bombs are".into());
            }
        }
    }
    Ok(())
}

fn find(bytes: &[u8], what: &[u8], from: usize) -> Option<usize> {
    let first = *what.first()?;
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|b| *b == first)?;
        if bytes[at..].starts_with(what) {
            return Some(at);
        }
        at += 1;
    }
}

/// Leaves out first and last lines of pages that are the same on many but for their numbers,
/// from the second time on: the first may be the title.
fn drop_repeated(pages: &mut [Vec<Line>]) {
    let key = |line: &Line| -> String {
        let digits = line.text.split(|c: char| c.is_ascii_digit()).filter(|p| !p.is_empty());
        digits.collect::<Vec<_>>().join("#")
    };
    let edges = |lines: &[Line]| -> Vec<usize> {
        let mut order: Vec<usize> = (0..lines.len()).collect();
        order.sort_by(|a, b| lines[*b].base.total_cmp(&lines[*a].base));
        let last = order.len().saturating_sub(2).max(2.min(order.len()));
        order[..order.len().min(2)].iter().chain(&order[last..]).copied().collect()
    };
    let mut counts: HashMap<String, usize> = HashMap::new();
    for lines in pages.iter() {
        for i in edges(lines) {
            *counts.entry(key(&lines[i])).or_default() += 1;
        }
    }
    let least = (pages.len() / 4).max(3);
    let mut seen = HashSet::new();
    for lines in pages.iter_mut() {
        let mut drop: Vec<usize> = edges(lines);
        drop.retain(|i| {
            let key = key(&lines[*i]);
            counts.get(&key).is_some_and(|n| *n >= least) && !seen.insert(key)
        });
        drop.sort_unstable();
        drop.iter().rev().for_each(|i| drop_line(lines, *i));
    }
}

fn drop_line(lines: &mut Vec<Line>, i: usize) {
    if i < lines.len() {
        lines.remove(i);
    }
}

/// Lines to paragraphs: a line goes on if it is as far below the last one as lines are, and
/// of its size.
fn paragraphs(pages: &[Vec<Line>]) -> String {
    let mut text = String::new();
    let mut last: Option<&Line> = None;
    for (number, lines) in pages.iter().enumerate() {
        for (i, line) in lines.iter().enumerate() {
            let words = line.text.trim_end();
            let new_page = number > 0 && i == 0;
            let joins = last.is_some_and(|last| {
                let em = last.size.max(line.size);
                let below = last.base - line.base;
                let near =
                    below > 0.0 && below < em * 1.65 && (last.size - line.size).abs() < em * 0.15;
                let overlap = line.start < last.end && line.end > last.start;
                let row = |l: &Line| l.text.contains(" | ");
                let open = !text.ends_with(['.', '!', '?', ':', '”', '"']);
                let small = words.starts_with(|c: char| c.is_lowercase());
                // The first line of a paragraph is set in, or follows a short one.
                let set_in =
                    line.start > last.start + em * 0.8 && !open && !last.text.starts_with(BULLETS);
                !row(last)
                    && !row(line)
                    && !words.starts_with(BULLETS)
                    && (near && overlap && !set_in || (new_page || !overlap) && open && small)
            });
            let row = |l: &Line| l.text.contains(" | ");
            let rows = last.is_some_and(|last| row(last) && row(line) && !new_page);
            if joins {
                let hyphen = text.ends_with('-')
                    && text.chars().rev().nth(1).is_some_and(char::is_alphabetic)
                    && words.starts_with(|c: char| c.is_lowercase());
                if hyphen {
                    text.pop();
                } else {
                    text.push(' ');
                }
            } else if !text.is_empty() {
                text += if rows { "\n" } else { "\n\n" };
            }
            text += words;
            last = Some(line);
        }
    }
    text.push('\n');
    text
}
