//! A file to pieces: what one thread does, as a stream, so that others can parse the pieces.
//!
//! Archives are opened, long texts and lines of records cut. A piece is held in memory, a file
//! isn't. What can't be read is a [`Skip`] and the rest goes on.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};
#[cfg(feature = "parquet")]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use encoding_rs::{Encoding, UTF_16BE, UTF_16LE};

use crate::document::About;
use crate::identify::{HEAD, Kind, identify, language, unpacked_name};
#[cfg(feature = "parquet")]
use crate::parquet::{Source as Rows, Told};
use crate::unpack::{check_ratio, unpack};
use crate::{Format, Limits, Settings, Skip};
use crate::{encoding, split, warc};

/// What a build without parquet makes of a file of rows.
#[cfg(not(feature = "parquet"))]
#[allow(dead_code)]
enum Rows {
    File(File),
    Bytes(Vec<u8>),
}

/// Bytes of records that make a piece.
const RECORDS: usize = 1 << 20;

/// A part of a file that can be parsed by itself.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where it is from.
    pub source: String,
    /// What it is.
    pub format: Format,
    /// What it says of itself.
    pub about: About,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The encoding of a text that was cut.
    pub encoding: Option<&'static Encoding>,
    /// The number of its first line, of records.
    pub line: u64,
}

/// What comes out of a file.
#[derive(Clone, Debug)]
pub enum Item {
    /// To be parsed.
    Piece(Piece),
    /// Can't be read.
    Skip(Skip),
}

/// Reads a file; `emit` says whether it wants more.
pub fn read_file(path: &Path, settings: &Settings, emit: &mut dyn FnMut(Item) -> bool) {
    let name = path.display().to_string();
    let (limits, text_field) = (&settings.limits, settings.text_field.as_str());
    let mut reader = Reader { limits, text_field, emit, size: 0, given: 0 };
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let _ = match opened {
        Err(e) => reader.skip(&name, e.to_string()),
        Ok((size, file)) => {
            reader.size = size;
            reader.file(name, file)
        }
    };
}

/// The consumer wants no more.
pub struct Enough;
type Flow = Result<(), Enough>;

pub(crate) struct Reader<'a> {
    pub limits: &'a Limits,
    #[cfg_attr(not(feature = "parquet"), expect(dead_code))]
    text_field: &'a str,
    emit: &'a mut dyn FnMut(Item) -> bool,
    /// Bytes of the file on disk.
    size: u64,
    /// Bytes of all its pieces so far.
    given: u64,
}

impl Reader<'_> {
    pub fn skip(&mut self, source: &str, reason: impl Into<String>) -> Flow {
        self.send(Item::Skip(Skip { source: source.to_string(), reason: reason.into() }))
    }

    fn send(&mut self, item: Item) -> Flow {
        if (self.emit)(item) { Ok(()) } else { Err(Enough) }
    }

    fn piece(&mut self, piece: Piece) -> Flow {
        self.given += piece.bytes.len() as u64;
        if let Err(e) = check_ratio(self.given, self.size, self.limits) {
            self.skip(&piece.source, e.to_string())?;
            return Err(Enough);
        }
        self.send(Item::Piece(piece))
    }

    /// A file on disk: zip archives and tables of rows are read where they are.
    fn file(&mut self, name: String, mut file: File) -> Flow {
        let mut magic = [0; 4];
        let n = file.read(&mut magic).unwrap_or(0);
        if let Err(e) = file.rewind() {
            return self.skip(&name, e.to_string());
        }
        if n == 4 && &magic == b"PK\x03\x04" {
            return self.zip(name, BufReader::new(file), 0);
        }
        if n == 4 && &magic == b"PAR1" {
            return self.rows(&name, Rows::File(file));
        }
        self.stream(name, Box::new(file), 0, About::default())
    }

    /// Whatever it is.
    pub fn stream(
        &mut self,
        name: String,
        mut input: Box<dyn Read + '_>,
        depth: usize,
        about: About,
    ) -> Flow {
        let mut head = Vec::new();
        if let Err(e) = input.by_ref().take(HEAD as u64).read_to_end(&mut head) {
            return self.skip(&name, broken(&e));
        }
        let kind = identify(&head, &name);
        let rest: Box<dyn Read + '_> = Box::new(Cursor::new(head).chain(input));
        let container = !matches!(kind, Kind::Leaf(_) | Kind::Not(_));
        if container && depth >= self.limits.depth {
            return self.skip(&name, format!("archives in archives, {depth} deep"));
        }
        match kind {
            Kind::Not(reason) => self.skip(&name, reason),
            Kind::Packed(packing) => match unpack(packing, rest, self.limits) {
                Ok(stream) => self.stream(unpacked_name(&name), stream, depth + 1, about),
                Err(e) => self.skip(&name, broken(&e)),
            },
            Kind::Tar => self.tar(&name, rest, depth),
            Kind::Zip => match self.whole(rest) {
                Ok(bytes) => self.zip(name, Cursor::new(bytes), depth),
                Err(reason) => self.skip(&name, reason),
            },
            Kind::Warc => warc::records(self, &name, rest, depth),
            Kind::Mbox => self.mbox(&name, rest),
            Kind::Leaf(format) => self.leaf(name, format, rest, about),
        }
    }

    /// All of a stream, up to the largest file that is held.
    fn whole(&self, input: Box<dyn Read + '_>) -> Result<Vec<u8>, String> {
        let (mut bytes, most) = (Vec::new(), self.limits.file_bytes);
        input.take(most + 1).read_to_end(&mut bytes).map_err(|e| broken(&e))?;
        if bytes.len() as u64 > most {
            return Err(format!("it is larger than {most} bytes"));
        }
        Ok(bytes)
    }

    pub fn leaf(
        &mut self,
        source: String,
        format: Format,
        input: Box<dyn Read + '_>,
        mut about: About,
    ) -> Flow {
        match format {
            Format::Text | Format::Markdown | Format::Code => {
                if format == Format::Code {
                    about.language = language(&source).map(str::to_string);
                }
                self.text(source, format, input, about)
            }
            Format::Parquet => match self.whole(input) {
                Ok(bytes) => self.rows(&source, Rows::Bytes(bytes)),
                Err(reason) => self.skip(&source, reason),
            },
            Format::Jsonl => self.lines(&source, BufReader::with_capacity(1 << 18, input)),
            _ => match self.whole(input) {
                Ok(bytes) => {
                    self.piece(Piece { source, format, about, bytes, encoding: None, line: 0 })
                }
                Err(reason) => self.skip(&source, reason),
            },
        }
    }

    /// A text of any length, in documents.
    fn text(
        &mut self,
        source: String,
        format: Format,
        mut input: Box<dyn Read + '_>,
        about: About,
    ) -> Flow {
        let most = self.limits.document_bytes;
        let (mut bytes, mut encoding, mut number) = (Vec::new(), None, 0);
        loop {
            let want = (most + 1).saturating_sub(bytes.len()) as u64;
            let read = input.by_ref().take(want).read_to_end(&mut bytes);
            let encoding =
                *encoding.get_or_insert_with(|| encoding::detect(&bytes, bytes.len() <= most));
            let last = bytes.len() <= most || read.is_err();
            let rest = if last {
                Vec::new()
            } else if encoding == UTF_16LE || encoding == UTF_16BE {
                bytes.split_off(most / 2 * 2)
            } else {
                bytes.split_off(split::boundary_of_bytes(&bytes, most))
            };
            let part = match (last, number) {
                (true, 0) => source.clone(),
                _ => format!("{source}#{number}"),
            };
            if !bytes.is_empty() {
                let (about, encoding) = (about.clone(), Some(encoding));
                self.piece(Piece { source: part, format, about, bytes, encoding, line: 0 })?;
            }
            if let Err(e) = read {
                return self.skip(&source, format!("{}; what came before was read", broken(&e)));
            }
            if last {
                return Ok(());
            }
            (bytes, number) = (rest, number + 1);
        }
    }

    /// Lines of records.
    fn lines(&mut self, source: &str, mut input: impl BufRead) -> Flow {
        let (mut bytes, mut line, mut first) = (Vec::new(), 0, 1);
        loop {
            let before = bytes.len();
            let read = input.by_ref().take(self.limits.line_bytes).read_until(b'\n', &mut bytes);
            let n = match read {
                Err(e) => {
                    self.skip(source, format!("{} after line {line}", broken(&e)))?;
                    0
                }
                Ok(n) => n,
            };
            line += 1;
            if n as u64 == self.limits.line_bytes && bytes.last() != Some(&b'\n') {
                bytes.truncate(before);
                let most = self.limits.line_bytes;
                self.skip(&format!("{source}#{line}"), format!("a line of over {most} bytes"))?;
                if skip_line(&mut input).is_err() {
                    return self.skip(source, format!("broken after line {line}"));
                }
                // A piece's lines are counted from its first: an empty one keeps the count.
                bytes.push(b'\n');
            }
            if bytes.len() >= RECORDS || n == 0 && !bytes.is_empty() {
                let (source, about) = (source.to_string(), About::default());
                let (bytes, format) = (std::mem::take(&mut bytes), Format::Jsonl);
                self.piece(Piece { source, format, about, bytes, encoding: None, line: first })?;
                first = line + 1;
            }
            if n == 0 {
                return Ok(());
            }
        }
    }

    /// Rows of parquet, as records.
    #[cfg(feature = "parquet")]
    fn rows(&mut self, source: &str, rows: Rows) -> Flow {
        let (most, field) = (self.limits.line_bytes, self.text_field);
        let (mut bytes, mut row, mut first, mut without) = (Vec::new(), 0, 1, 0u64);
        let mut flow = Ok(());
        let piece = |this: &mut Self, bytes: &mut Vec<u8>, line: u64| {
            let (source, about) = (source.to_string(), About::default());
            let (bytes, format) = (std::mem::take(bytes), Format::Parquet);
            this.piece(Piece { source, format, about, bytes, encoding: None, line })
        };
        let mut see = |told: Told| {
            row += 1;
            match told {
                // Strings and numbers can always be written into memory.
                Told::Row(record) => drop(serde_json::to_writer(&mut bytes, &record)),
                Told::Nothing => without += 1,
            }
            // Rows are counted as lines.
            bytes.push(b'\n');
            if bytes.len() >= RECORDS {
                flow = piece(self, &mut bytes, first);
                first = row + 1;
            }
            flow.is_ok()
        };
        // Its reader is somebody else's and the file is anyone's.
        let read = || crate::parquet::rows(rows, most, Some(field), &mut see);
        let read = catch_unwind(AssertUnwindSafe(read));
        flow?;
        if !bytes.is_empty() {
            piece(self, &mut bytes, first)?;
        }
        if without > 0 {
            self.skip(source, format!("{without} rows without a text"))?;
        }
        match read.unwrap_or_else(|_| Err("broken: the reader of parquet gave up".into())) {
            Ok(()) => Ok(()),
            Err(reason) if row == 0 => self.skip(source, reason),
            Err(reason) => self.skip(source, format!("{reason}; {row} rows before were read")),
        }
    }

    #[cfg(not(feature = "parquet"))]
    fn rows(&mut self, source: &str, _: Rows) -> Flow {
        self.skip(source, crate::NO_PARQUET)
    }

    fn tar(&mut self, name: &str, input: Box<dyn Read + '_>, depth: usize) -> Flow {
        let mut archive = tar::Archive::new(input);
        let entries = match archive.entries() {
            Ok(entries) => entries,
            Err(e) => return self.skip(name, broken(&e)),
        };
        let mut names = Names::default();
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => {
                    return self.skip(name, format!("{}; what came before was read", broken(&e)));
                }
            };
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let inside = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            match names.member(name, &inside) {
                Ok(source) => self.stream(source, Box::new(entry), depth + 1, About::default())?,
                Err((source, reason)) => self.skip(&source, reason)?,
            }
        }
        Ok(())
    }

    fn zip<R: Read + Seek>(&mut self, name: String, input: R, depth: usize) -> Flow {
        let mut archive = match zip::ZipArchive::new(input) {
            Ok(archive) => archive,
            Err(e) => return self.skip(&name, format!("broken: {e}")),
        };
        if let Some(format) = office(&mut archive) {
            let mut input = archive.into_inner();
            return match input.rewind() {
                Ok(()) => self.leaf(name, format, Box::new(input), About::default()),
                Err(e) => self.skip(&name, e.to_string()),
            };
        }
        if depth >= self.limits.depth {
            return self.skip(&name, format!("archives in archives, {depth} deep"));
        }
        let mut names = Names::default();
        for i in 0..archive.len() {
            let (inside, packed, encrypted, file) = match archive.by_index_raw(i) {
                Ok(f) => (
                    f.name().map(|n| n.into_owned()).unwrap_or_else(|_| format!("member {i}")),
                    f.compressed_size(),
                    f.encrypted(),
                    f.is_file(),
                ),
                Err(e) => {
                    self.skip(&format!("{name}!{i}"), format!("broken: {e}"))?;
                    continue;
                }
            };
            if !file {
                continue;
            }
            let source = match names.member(&name, &inside) {
                Ok(source) => source,
                Err((source, reason)) => {
                    self.skip(&source, reason)?;
                    continue;
                }
            };
            if encrypted {
                self.skip(&source, "it is encrypted")?;
                continue;
            }
            let limits = self.limits.clone();
            match archive.by_index(i) {
                Ok(member) => {
                    let bounded = Bounded { inner: member, packed, given: 0, limits };
                    self.stream(source, Box::new(bounded), depth + 1, About::default())?;
                }
                Err(e) => self.skip(&source, format!("broken: {e}"))?,
            }
        }
        Ok(())
    }

    /// Messages, each from a line that begins with `From ` to the next.
    fn mbox(&mut self, name: &str, input: Box<dyn Read + '_>) -> Flow {
        let mut input = BufReader::with_capacity(1 << 18, input);
        let (mut bytes, mut number, mut line) = (Vec::new(), 0, Vec::new());
        let most = self.limits.line_bytes;
        loop {
            line.clear();
            let n = input.by_ref().take(most).read_until(b'\n', &mut line).unwrap_or(0);
            let next = line.starts_with(b"From ") && (bytes.is_empty() || bytes.ends_with(b"\n\n"))
                || line.starts_with(b"From ") && bytes.ends_with(b"\r\n\r\n");
            if (next || n == 0) && !bytes.is_empty() {
                number += 1;
                let source = format!("{name}#{number}");
                let bytes = std::mem::take(&mut bytes);
                if bytes.len() as u64 > most {
                    self.skip(&source, format!("a message of over {most} bytes"))?;
                } else {
                    let (format, about) = (Format::Mail, About::default());
                    self.piece(Piece { source, format, about, bytes, encoding: None, line: 0 })?;
                }
            }
            if n == 0 {
                return Ok(());
            }
            // What is too long is not kept, only told.
            if !next && (bytes.len() as u64) <= most {
                bytes.extend_from_slice(&line);
            }
        }
    }
}

/// Reads on to the end of a line.
fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let n = buffer.len();
        match buffer.iter().position(|b| *b == b'\n') {
            Some(at) => {
                input.consume(at + 1);
                return Ok(());
            }
            None if n == 0 => return Ok(()),
            None => input.consume(n),
        }
    }
}

/// A member of a zip archive with its books.
struct Bounded<R> {
    inner: R,
    packed: u64,
    given: u64,
    limits: Limits,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.given += n as u64;
        check_ratio(self.given, self.packed, &self.limits)?;
        Ok(n)
    }
}

/// Names of members.
#[derive(Default)]
struct Names(BTreeSet<u64>);

impl Names {
    /// The source of a member, another than those before.
    fn member(&mut self, archive: &str, inside: &str) -> Result<String, (String, String)> {
        let source = format!("{archive}!{inside}");
        if inside.starts_with(['/', '\\']) || inside.split(['/', '\\']).any(|part| part == "..") {
            return Err((source, "its path leads out of the archive".into()));
        }
        let id = |name: &str| {
            let hash = store::hash_bytes(name.as_bytes()).0;
            u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| hash[i]))
        };
        if self.0.insert(id(inside)) {
            return Ok(source);
        }
        Err((source, "a second member of this name".into()))
    }
}

/// Which kind of office file a zip archive is, if it is one.
fn office<R: Read + Seek>(archive: &mut zip::ZipArchive<R>) -> Option<Format> {
    let has = |name: &str| archive.index_for_name(name).is_some();
    if has("[Content_Types].xml") {
        return match () {
            () if has("word/document.xml") => Some(Format::Docx),
            () if has("xl/workbook.xml") => Some(Format::Xlsx),
            () if has("ppt/presentation.xml") => Some(Format::Pptx),
            () => None,
        };
    }
    let mut kind = String::new();
    archive.by_name("mimetype").ok()?.take(100).read_to_string(&mut kind).ok()?;
    // Also templates and the like: "…text-template".
    let document = kind.trim().strip_prefix("application/vnd.oasis.opendocument.");
    match document.and_then(|d| d.split('-').next()) {
        Some("text") => Some(Format::Odt),
        Some("spreadsheet") => Some(Format::Ods),
        Some("presentation") => Some(Format::Odp),
        _ if kind.trim() == "application/epub+zip" => Some(Format::Epub),
        _ => None,
    }
}

/// Why a stream ended too soon.
pub(crate) fn broken(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::Other if error.to_string().contains("bombs") => error.to_string(),
        _ => format!("broken: {error}"),
    }
}
