//! Texts, slides and books: XML or pages in a zip file.

use super::html;
use super::xml::{Node, Package, walk};
use crate::document::About;
use crate::parse::Parsed;
use crate::{Format, Limits};

/// Spaces that one tag may stand for.
const SPACES: usize = 64;

/// Reads one.
pub fn read(format: Format, bytes: Vec<u8>, limits: &Limits) -> Parsed {
    let mut package = Package::open(bytes, limits)?;
    let (text, hidden_bytes) = match format {
        Format::Docx => docx(&mut package)?,
        Format::Pptx => (pptx(&mut package)?, 0),
        Format::Epub => return epub(&mut package),
        _ => (open_document(&package.need("content.xml")?)?, 0),
    };
    let meta = match format {
        Format::Docx | Format::Pptx => "docProps/core.xml",
        _ => "meta.xml",
    };
    // What is said about a text is not worth losing the text.
    let about = package.text(meta).ok().flatten().map(|xml| about(&xml)).unwrap_or_default();
    Ok((text, About { hidden_bytes, ..about }))
}

/// Title and time, in the words of the Dublin Core.
fn about(xml: &str) -> About {
    let (mut about, mut name) = (About::default(), String::new());
    let _ = walk(xml, |node| match node {
        Node::Open(tag, _) => name = tag.to_string(),
        Node::Close(_) => name.clear(),
        Node::Text(text) if !text.trim().is_empty() => {
            let to = match name.as_str() {
                "title" => &mut about.title,
                "created" | "creation-date" | "date" => &mut about.time,
                "rights" => &mut about.licence,
                _ => return,
            };
            to.get_or_insert_default().push_str(text);
        }
        Node::Text(_) => {}
    });
    about
}

/// Paragraphs and tables in the making.
#[derive(Default)]
struct Writer {
    text: String,
    paragraph: String,
    prefix: String,
    /// Cells of rows, of tables in tables.
    rows: Vec<Vec<String>>,
    in_cell: Vec<bool>,
    item: bool,
    last: Last,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Last {
    #[default]
    Paragraph,
    Item,
    Row,
}

impl Writer {
    fn end_paragraph(&mut self) {
        let text = self.paragraph.trim_end().to_string();
        self.paragraph.clear();
        let prefix = std::mem::take(&mut self.prefix);
        if let (Some(row), Some(true)) = (self.rows.last_mut(), self.in_cell.last()) {
            if let Some(cell) = row.last_mut()
                && !text.trim().is_empty()
            {
                let space = if cell.is_empty() { "" } else { " " };
                *cell += &format!("{space}{}", text.trim());
            }
            return;
        }
        let kind = if self.item { Last::Item } else { Last::Paragraph };
        self.push(&format!("{prefix}{text}"), kind);
    }

    fn push(&mut self, text: &str, kind: Last) {
        if text.trim().is_empty() {
            return;
        }
        if !self.text.is_empty() {
            self.text += if kind != Last::Paragraph && kind == self.last { "\n" } else { "\n\n" };
        }
        self.text += text;
        self.last = kind;
    }

    fn open_row(&mut self) {
        self.rows.push(Vec::new());
        self.in_cell.push(false);
    }

    fn open_cell(&mut self) {
        if let (Some(row), Some(inside)) = (self.rows.last_mut(), self.in_cell.last_mut()) {
            row.push(String::new());
            *inside = true;
        }
    }

    fn close_cell(&mut self) {
        if let Some(inside) = self.in_cell.last_mut() {
            *inside = false;
        }
    }

    fn close_row(&mut self) {
        self.in_cell.pop();
        let row = self.rows.pop().unwrap_or_default();
        let text = row.join(" | ");
        // A table in a cell is a part of the cell.
        match (self.rows.last_mut().and_then(|r| r.last_mut()), self.in_cell.last()) {
            (Some(cell), Some(true)) => {
                let space = if cell.is_empty() { "" } else { "; " };
                *cell += &format!("{space}{text}");
            }
            _ if row.iter().any(|c| !c.is_empty()) => self.push(&text, Last::Row),
            _ => {}
        }
    }
}

fn heading(level: usize) -> String {
    format!("{} ", "#".repeat(level.clamp(1, 6)))
}

fn docx(package: &mut Package<'_>) -> Result<(String, u64), String> {
    let mut out = Writer::default();
    let mut hidden = 0;
    let mut names = vec!["word/document.xml".to_string()];
    names.extend(package.names("word/footnotes", ".xml"));
    names.extend(package.names("word/endnotes", ".xml"));
    for (i, name) in names.iter().enumerate() {
        let xml =
            if i == 0 { package.need(name)? } else { package.text(name)?.unwrap_or_default() };
        // Inside a text, inside a deleted one, inside a run, one that is hidden.
        let (mut text, mut deleted, mut run, mut vanish) = (false, 0, false, false);
        let result = walk(&xml, |node| match node {
            Node::Open("t", _) => text = true,
            Node::Close("t") => text = false,
            Node::Open("del" | "moveFrom" | "Fallback", _) => deleted += 1,
            Node::Close("del" | "moveFrom" | "Fallback") => deleted -= 1,
            Node::Open("r", _) => (run, vanish) = (true, false),
            Node::Close("r") => run = false,
            Node::Open("vanish", tag) => {
                vanish = !matches!(tag.get("val").as_deref(), Some("0" | "false"));
            }
            // Outside of runs it is a place to stop at.
            Node::Open("tab", _) if run => out.paragraph.push('\t'),
            Node::Open("br" | "cr", _) => out.paragraph.push('\n'),
            Node::Open("noBreakHyphen", _) => out.paragraph.push('-'),
            Node::Open("pStyle", tag) => {
                let style = tag.get("val").unwrap_or_default();
                if let Some(level) = style.strip_prefix("Heading") {
                    out.prefix = heading(level.parse().unwrap_or(1));
                } else if style == "Title" {
                    out.prefix = heading(1);
                }
            }
            Node::Open("numPr", _) if out.prefix.is_empty() => {
                (out.prefix, out.item) = ("- ".into(), true);
            }
            Node::Close("p") => {
                out.end_paragraph();
                out.item = false;
            }
            Node::Open("tr", _) => out.open_row(),
            Node::Open("tc", _) => out.open_cell(),
            Node::Close("tc") => out.close_cell(),
            Node::Close("tr") => out.close_row(),
            Node::Text(t) if text && vanish => hidden += t.len() as u64,
            Node::Text(t) if text && deleted <= 0 => out.paragraph.push_str(t),
            _ => {}
        });
        if i == 0 {
            result?;
        }
    }
    out.end_paragraph();
    Ok((out.text, hidden))
}

/// The text of `content.xml`: documents and slides.
fn open_document(xml: &str) -> Result<String, String> {
    let mut out = Writer::default();
    let (mut skipped, mut paragraphs, mut lists) = (0, 0, 0usize);
    walk(xml, |node| match node {
        Node::Open("annotation" | "tracked-changes" | "forms" | "notes", _) => skipped += 1,
        Node::Close("annotation" | "tracked-changes" | "forms" | "notes") => skipped -= 1,
        _ if skipped > 0 => {}
        Node::Open("h", tag) => {
            paragraphs += 1;
            out.prefix = heading(tag.number("outline-level").unwrap_or(1));
        }
        Node::Open("p", _) => {
            // A note stands in its paragraph.
            if paragraphs > 0 {
                out.paragraph += " (";
            }
            paragraphs += 1;
            if lists > 0 && out.prefix.is_empty() && paragraphs == 1 {
                out.prefix = "- ".into();
            }
            out.item = lists > 0;
        }
        Node::Close("p" | "h") => {
            paragraphs -= 1;
            if paragraphs > 0 {
                out.paragraph.push(')');
            } else {
                out.end_paragraph();
            }
        }
        Node::Open("list", _) => lists += 1,
        Node::Close("list") => lists = lists.saturating_sub(1),
        Node::Open("s", tag) => {
            let n = tag.number("c").unwrap_or(1).min(SPACES);
            out.paragraph.extend(std::iter::repeat_n(' ', n));
        }
        Node::Open("tab", _) => out.paragraph.push('\t'),
        Node::Open("line-break", _) => out.paragraph.push('\n'),
        Node::Open("table-row", _) => out.open_row(),
        Node::Open("table-cell", _) => out.open_cell(),
        Node::Close("table-cell") => out.close_cell(),
        Node::Close("table-row") => out.close_row(),
        Node::Text(text) if paragraphs > 0 => out.paragraph.push_str(text),
        _ => {}
    })?;
    out.end_paragraph();
    Ok(out.text)
}

fn pptx(package: &mut Package<'_>) -> Result<String, String> {
    let number = |name: &str| -> usize {
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    };
    let mut slides = package.names("ppt/slides/slide", ".xml");
    slides.sort_by_key(|name| number(name));
    let mut notes = package.names("ppt/notesSlides/notesSlide", ".xml");
    notes.sort_by_key(|name| number(name));
    let mut out = Writer::default();
    for name in slides.iter().chain(&notes) {
        let Some(xml) = package.text(name)? else { continue };
        let (mut text, mut field) = (false, false);
        walk(&xml, |node| match node {
            Node::Open("t", _) => text = true,
            Node::Close("t") => text = false,
            // Numbers of slides and the like.
            Node::Open("fld", _) => field = true,
            Node::Close("fld") => field = false,
            Node::Open("br", _) => out.paragraph.push('\n'),
            Node::Close("p") => out.end_paragraph(),
            Node::Open("tr", _) => out.open_row(),
            Node::Open("tc", _) => out.open_cell(),
            Node::Close("tc") => out.close_cell(),
            Node::Close("tr") => out.close_row(),
            Node::Text(t) if text && !field => out.paragraph.push_str(t),
            _ => {}
        })?;
    }
    Ok(out.text)
}

/// Chapters in the order in which they are read.
fn epub(package: &mut Package<'_>) -> Parsed {
    let mut root = None;
    walk(&package.need("META-INF/container.xml")?, |node| {
        if let Node::Open("rootfile", tag) = node {
            root = root.take().or(tag.get("full-path"));
        }
    })?;
    let root = root.ok_or("broken: the book's contents are not named")?;
    let list = package.need(&root)?;
    let (mut items, mut spine) = (Vec::new(), Vec::new());
    walk(&list, |node| match node {
        Node::Open("item", tag) => {
            let navigation = tag.get("properties").is_some_and(|p| p.contains("nav"));
            if let (Some(id), Some(href), false) = (tag.get("id"), tag.get("href"), navigation) {
                items.push((id, href));
            }
        }
        Node::Open("itemref", tag) => spine.extend(tag.get("idref")),
        _ => {}
    })?;
    let folder = root.rsplit_once('/').map(|(f, _)| format!("{f}/")).unwrap_or_default();
    let mut text = String::new();
    for id in spine {
        let Some((_, href)) = items.iter().find(|(i, _)| *i == id) else { continue };
        let name = format!("{folder}{}", href.split('#').next().unwrap_or_default());
        if let Some(page) = package.text(&name.replace("%20", " "))? {
            let chapter = html::read(&page).0;
            if !chapter.is_empty() {
                text += if text.is_empty() { "" } else { "\n\n" };
                text += &chapter;
            }
        }
    }
    Ok((text, about(&list)))
}
