//! WARC and WET: web pages as crawlers keep them (ISO 28500). Each record is read as a stream.

use std::io::{self, BufRead, BufReader, Read};

use crate::document::About;
use crate::identify::Packing;
use crate::read::{Enough, Reader, broken};
use crate::unpack::unpack;
use crate::{Format, licence};

/// Longest head of a record or of an answer, bytes.
const HEADERS: u64 = 64 << 10;

/// Reads all records of a file.
pub(crate) fn records(
    reader: &mut Reader<'_>,
    name: &str,
    input: Box<dyn Read + '_>,
    depth: usize,
) -> Result<(), Enough> {
    let mut input = BufReader::with_capacity(1 << 18, input);
    let mut number = 0;
    loop {
        let headers = match record_headers(&mut input) {
            Ok(Some(headers)) => headers,
            Ok(None) => return Ok(()),
            Err(e) => {
                let reason = format!("{} after record {number}", broken(&e));
                return reader.skip(name, reason);
            }
        };
        number += 1;
        let source = format!("{name}#{number}");
        let Some(length) = headers.get("content-length").and_then(|l| l.parse::<u64>().ok()) else {
            return reader.skip(&source, "broken: a record without a length");
        };
        let about = About {
            url: headers.get("warc-target-uri").map(|u| u.trim_matches(['<', '>']).to_string()),
            time: headers.get("warc-date").map(String::from),
            ..About::default()
        };
        let mut body = input.by_ref().take(length);
        let kind = headers.get("content-type").unwrap_or_default();
        match headers.get("warc-type").unwrap_or_default() {
            "conversion" => {
                let body = Box::new(body.by_ref());
                reader.leaf(source, Format::Text, body, about)?;
            }
            "response" if kind.contains("http") => {
                answer(reader, source, &mut body, about, depth)?;
            }
            "response" | "resource" => {
                content(reader, source, Box::new(body.by_ref()), kind, about, depth)?;
            }
            _ => {}
        }
        // What was not read of the record.
        if let Err(e) = io::copy(&mut body, &mut io::sink()) {
            return reader.skip(name, broken(&e));
        }
    }
}

/// An HTTP answer: its head says what its body is.
fn answer(
    reader: &mut Reader<'_>,
    source: String,
    body: &mut dyn Read,
    mut about: About,
    depth: usize,
) -> Result<(), Enough> {
    let mut body = BufReader::new(body);
    let mut status = String::new();
    let headers = match line(&mut body, &mut status).and_then(|_| headers(&mut body)) {
        Ok(headers) => headers,
        Err(e) => return reader.skip(&source, broken(&e)),
    };
    let code = status.split(' ').nth(1).unwrap_or_default();
    if code != "200" {
        return reader.skip(&source, format!("the server answered {code}"));
    }
    about.licence = licence::of_headers(headers.0.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    let header = |name: &str| headers.get(name).unwrap_or_default().to_ascii_lowercase();
    let plain: Box<dyn Read + '_> = match header("transfer-encoding").as_str() {
        // Many crawlers keep the header and undo the chunks.
        "chunked" if chunked(&mut body) => Box::new(Chunked { inner: body, left: 0, ended: false }),
        _ => Box::new(body),
    };
    let packing = match header("content-encoding").as_str() {
        "gzip" | "x-gzip" => Some(Packing::Gzip),
        "zstd" => Some(Packing::Zstd),
        "" | "identity" => None,
        other => return reader.skip(&source, format!("encoded as {other}")),
    };
    let kind = header("content-type");
    let plain = match packing {
        None => plain,
        Some(packing) => match unpack(packing, plain, reader.limits) {
            Ok(stream) => stream,
            Err(e) => return reader.skip(&source, broken(&e)),
        },
    };
    content(reader, source, plain, &kind, about, depth)
}

/// A body of a stated kind.
fn content(
    reader: &mut Reader<'_>,
    source: String,
    body: Box<dyn Read + '_>,
    kind: &str,
    about: About,
    depth: usize,
) -> Result<(), Enough> {
    match kind.split(';').next().unwrap_or_default().trim() {
        "text/html" | "application/xhtml+xml" => reader.leaf(source, Format::Html, body, about),
        "text/plain" => reader.leaf(source, Format::Text, body, about),
        "text/dns" => Ok(()),
        _ => reader.stream(source, body, depth + 1, about),
    }
}

/// Names in small letters, and values.
struct Headers(Vec<(String, String)>);

impl Headers {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// A line without its end; `false` at the end of the stream.
fn line(input: &mut impl BufRead, into: &mut String) -> io::Result<bool> {
    let mut bytes = Vec::new();
    let n = input.by_ref().take(HEADERS).read_until(b'\n', &mut bytes)?;
    if n as u64 == HEADERS {
        return Err(io::Error::other("a header without an end"));
    }
    *into = String::from_utf8_lossy(&bytes).trim_end().to_string();
    Ok(n > 0)
}

/// Headers up to an empty line.
fn headers(input: &mut impl BufRead) -> io::Result<Headers> {
    let (mut headers, mut text, mut bytes) = (Vec::new(), String::new(), 0);
    while line(input, &mut text)? && !text.is_empty() {
        bytes += text.len() as u64;
        if bytes > HEADERS {
            return Err(io::Error::other("headers without an end"));
        }
        if let Some((name, value)) = text.split_once(':') {
            headers.push((name.trim().to_ascii_lowercase(), value.trim().to_string()));
        }
    }
    Ok(Headers(headers))
}

/// The next record's headers; `None` at the end.
fn record_headers(input: &mut impl BufRead) -> io::Result<Option<Headers>> {
    let mut text = String::new();
    while line(input, &mut text)? {
        if text.is_empty() {
            continue;
        }
        if !text.starts_with("WARC/") {
            return Err(io::Error::other("what follows is no record"));
        }
        return headers(input).map(Some);
    }
    Ok(None)
}

/// Whether a body begins with the length of a chunk.
fn chunked(body: &mut impl BufRead) -> bool {
    let head = body.fill_buf().unwrap_or_default();
    let end = head.iter().take(12).position(|b| *b == b'\n').unwrap_or(0);
    let digits = head[..end].trim_ascii_end();
    !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit)
}

/// A body in chunks, each with its length before it.
struct Chunked<R> {
    inner: R,
    left: u64,
    ended: bool,
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let mut size = String::new();
            line(&mut self.inner, &mut size)?;
            if size.is_empty() {
                line(&mut self.inner, &mut size)?;
            }
            let digits = size.split(';').next().unwrap_or_default().trim();
            self.left = u64::from_str_radix(digits, 16)
                .map_err(|_| io::Error::other("a chunk without a length"))?;
            self.ended = self.left == 0;
        }
        let n = self.inner.by_ref().take(self.left).read(into)?;
        self.left -= n as u64;
        self.ended |= n == 0;
        Ok(n)
    }
}
