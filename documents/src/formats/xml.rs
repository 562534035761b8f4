//! XML as a stream of tags and texts, and the zip files that office formats are.
//!
//! Entities of one's own are never resolved, so they can't explode; nesting takes no memory.

use std::io::{Cursor, Read};

use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use crate::unpack::check_ratio;
use crate::{Limits, encoding};

/// What comes by.
pub enum Node<'a> {
    /// A tag opens: its name without prefix.
    Open(&'a str, &'a Attributes<'a>),
    /// A tag closes.
    Close(&'a str),
    /// Text between tags.
    Text(&'a str),
}

/// The attributes of a tag.
pub struct Attributes<'a>(BytesStart<'a>);

impl Attributes<'_> {
    /// One of them, by its name without prefix.
    pub fn get(&self, name: &str) -> Option<String> {
        let mut all = self.0.attributes();
        all.with_checks(false);
        let found = all.flatten().find(|a| a.key.local_name().as_ref() == name)?;
        found.normalized_value(XmlVersion::Implicit1_0).ok().map(|v| v.into_owned())
    }

    /// As a number.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.get(name)?.parse().ok()
    }
}

/// Reads all of `xml`.
///
/// # Errors
/// What is wrong with it, if `see` has not seen all of it.
pub fn walk(xml: &str, mut see: impl FnMut(Node<'_>)) -> Result<(), String> {
    let mut reader = Reader::from_str(xml);
    reader.config_mut().check_end_names = false;
    reader.config_mut().allow_unmatched_ends = true;
    loop {
        match reader.read_event() {
            Err(e) => return Err(format!("broken XML at byte {}: {e}", reader.buffer_position())),
            Ok(Event::Eof) => return Ok(()),
            Ok(Event::Start(tag)) => {
                let tag = Attributes(tag);
                see(Node::Open(tag.0.local_name().as_ref(), &tag));
            }
            Ok(Event::Empty(tag)) => {
                let tag = Attributes(tag);
                see(Node::Open(tag.0.local_name().as_ref(), &tag));
                see(Node::Close(tag.0.local_name().as_ref()));
            }
            Ok(Event::End(tag)) => see(Node::Close(tag.local_name().as_ref())),
            Ok(Event::Text(text)) => see(Node::Text(&text.xml10_content())),
            Ok(Event::CData(text)) => see(Node::Text(&text.xml10_content())),
            Ok(Event::GeneralRef(name)) => {
                if let Ok(Some(c)) = name.resolve_char_ref() {
                    see(Node::Text(c.encode_utf8(&mut [0; 4])));
                } else if let Some(text) = resolve_predefined_entity(&name.xml10_content()) {
                    see(Node::Text(text));
                }
            }
            Ok(_) => {}
        }
    }
}

/// The zip file that an office file is, with books of what comes out of it.
pub struct Package<'a> {
    archive: zip::ZipArchive<Cursor<Vec<u8>>>,
    limits: &'a Limits,
    size: u64,
    given: u64,
}

impl<'a> Package<'a> {
    /// Opens one.
    ///
    /// # Errors
    /// If it is broken.
    pub fn open(bytes: Vec<u8>, limits: &'a Limits) -> Result<Package<'a>, String> {
        let size = bytes.len() as u64;
        let archive =
            zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| format!("broken: {e}"))?;
        Ok(Package { archive, limits, size, given: 0 })
    }

    /// Names of its files that begin and end like this.
    pub fn names(&self, start: &str, end: &str) -> Vec<String> {
        let names = self.archive.file_names().flatten();
        names.filter(|n| n.starts_with(start) && n.ends_with(end)).map(String::from).collect()
    }

    /// The text of a file, if it is there.
    ///
    /// # Errors
    /// If it is broken, encrypted, or too large.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(index) = self.archive.index_for_name(name) else { return Ok(None) };
        let mut file = match self.archive.by_index(index) {
            Ok(file) => file,
            Err(e) if e.to_string().contains("assword") => return Err("it is encrypted".into()),
            Err(e) => return Err(format!("broken: {name}: {e}")),
        };
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            let n = file.read(&mut buffer).map_err(|e| format!("broken: {name}: {e}"))?;
            if n == 0 {
                return Ok(Some(encoding::page(bytes)));
            }
            self.given += n as u64;
            check_ratio(self.given, self.size, self.limits).map_err(|e| e.to_string())?;
            if (bytes.len() + n) as u64 > self.limits.file_bytes {
                return Err(format!(
                    "{name} in it is larger than {} bytes",
                    self.limits.file_bytes
                ));
            }
            bytes.extend_from_slice(&buffer[..n]);
        }
    }

    /// The text of a file that must be there.
    ///
    /// # Errors
    /// See [`Package::text`].
    pub fn need(&mut self, name: &str) -> Result<String, String> {
        self.text(name)?.ok_or_else(|| format!("broken: there is no {name} in it"))
    }
}
