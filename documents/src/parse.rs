//! A piece to documents: what many threads do.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::document::{About, Document};
use crate::formats::{html, json, mail, notebook, office, pdf, sheet};
use crate::read::Piece;
use crate::{Format, Limits, Settings, Skip, encoding, split};

/// The text of a file and what it says of itself, or why there is none.
pub(crate) type Parsed = Result<(String, About), String>;

/// The documents of a piece, and what in it can't be read.
pub fn parse(piece: Piece, settings: &Settings) -> Vec<Result<Document, Skip>> {
    let limits = &settings.limits;
    let Piece { source, format, about, bytes, encoding, line } = piece;
    match format {
        Format::Jsonl | Format::Parquet => {
            return json::lines(&source, &bytes, line, format, settings);
        }
        Format::Json => return json::whole(&source, bytes, settings),
        _ => {}
    }
    let skip = |reason: String| vec![Err(Skip { source: source.clone(), reason })];
    // Readers of formats are other people's and the files are anyone's.
    let parsed =
        catch_unwind(AssertUnwindSafe(|| text_of(format, bytes, encoding, &source, limits)));
    let (text, found) = match parsed {
        Ok(Ok(parsed)) => parsed,
        Ok(Err(reason)) => return skip(reason),
        Err(_) => return skip(format!("broken: the reader of {} gave up", format.name())),
    };
    if text.trim().is_empty() {
        return skip("no text in it".into());
    }
    let about = About {
        title: found.title.or(about.title),
        url: about.url.or(found.url),
        time: about.time.or(found.time),
        licence: found.licence.or(about.licence),
        language: about.language.or(found.language),
        hidden_bytes: found.hidden_bytes,
    };
    documents(text, &source, format, about, limits)
}

/// A text as one document, or several if it is long.
pub(crate) fn documents(
    text: String,
    source: &str,
    format: Format,
    about: About,
    limits: &Limits,
) -> Vec<Result<Document, Skip>> {
    if text.len() <= limits.document_bytes {
        return vec![Ok(Document { text, source: source.to_string(), format, about })];
    }
    let parts = split::parts(&text, limits.document_bytes).enumerate();
    let document = |(i, part): (usize, &str)| {
        let source = format!("{source}#{i}");
        Ok(Document { text: part.to_string(), source, format, about: about.clone() })
    };
    parts.map(document).collect()
}

fn text_of(
    format: Format,
    bytes: Vec<u8>,
    encoding: Option<&'static encoding_rs::Encoding>,
    source: &str,
    limits: &Limits,
) -> Parsed {
    match format {
        Format::Text | Format::Markdown | Format::Code => {
            let text = match encoding {
                Some(encoding) => encoding::decode(bytes, encoding),
                None => encoding::text(bytes),
            };
            Ok((text, About::default()))
        }
        Format::Html => Ok(html::read(&encoding::page(bytes))),
        Format::Pdf => pdf::read(bytes, limits),
        Format::Docx | Format::Odt | Format::Pptx | Format::Odp | Format::Epub => {
            office::read(format, bytes, limits)
        }
        Format::Xlsx | Format::Ods => sheet::read(format, bytes, limits),
        Format::Csv => sheet::csv(&encoding::text(bytes), source),
        Format::Notebook => notebook::read(&encoding::text(bytes)),
        Format::Mail => mail::read(&bytes),
        Format::Json | Format::Jsonl | Format::Parquet => Err("records are read otherwise".into()),
    }
}
