//! Pages: the main text, without navigation; tables as rows; hidden text left out and counted.
//!
//! One pass over the tokens of the WHATWG tokenizer with a bounded stack, no tree: a page nested
//! 100,000 deep costs what any other of its size does. Blocks of text are collected with what is
//! known about each (in `<main>`, in navigation, how much of it is links); then those that are
//! the page's own are kept.

use std::convert::Infallible;

use html5gum::emitters::callback::{CallbackEmitter, CallbackEvent};
use html5gum::{Span, Tokenizer};

use crate::document::About;
use crate::licence::{is_creative_commons, is_licence};

/// Open tags that are remembered; deeper ones are as their parents.
const DEPTH: usize = 256;
/// `<main>` or `<article>` is the page if it has this share of the text, %.
const MAIN_SHARE: usize = 25;
/// A block with this share of its text in links is navigation, %.
const LINKS: usize = 60;
/// Longest label or attribute that is looked at, bytes.
const ATTRIBUTE: usize = 512;

/// Reads a page.
pub fn read(page: &str) -> (String, About) {
    let mut reader = Page::default();
    let callback = |event: CallbackEvent<'_>, _: Span<()>| -> Option<Infallible> {
        reader.event(&event);
        None
    };
    let mut emitter = CallbackEmitter::new(callback);
    emitter.naively_switch_states(true);
    // The tokenizer has no errors, and nothing is emitted.
    for _ in Tokenizer::new_with_emitter(page, emitter) {}
    while !reader.tables.is_empty() {
        reader.end(b"table");
    }
    reader.flush();
    reader.finish()
}

/// What holds below an open tag.
#[derive(Clone, Copy, Default)]
struct State {
    /// Not text at all.
    skip: bool,
    hidden: bool,
    /// Navigation and the like.
    beside: bool,
    main: bool,
    pre: bool,
    link: bool,
    title: bool,
}

#[derive(Default)]
struct Open {
    name: Vec<u8>,
    state: State,
}

/// A paragraph, heading, item or row; items and rows stand close to each other.
struct Block {
    text: String,
    links: usize,
    item: bool,
    beside: bool,
    main: bool,
}

/// Rows of a table in the making.
#[derive(Default)]
struct Table {
    cells: Vec<String>,
    in_cell: bool,
}

#[derive(Default)]
struct Page {
    open: Vec<Open>,
    blocks: Vec<Block>,
    /// The block in the making, the bytes of it in links, and what it begins with.
    text: String,
    links: usize,
    prefix: &'static str,
    tables: Vec<Table>,
    title: String,
    hidden: u64,
    /// The first Creative Commons licence that it links to.
    commons: Option<String>,
    about: About,
    // The tag in the making.
    tag: Vec<u8>,
    attribute: Vec<u8>,
    marks: Marks,
}

/// What the attributes of a tag say.
#[derive(Default)]
struct Marks {
    hidden: bool,
    beside: bool,
    main: bool,
    anchor: bool,
    licence: bool,
    canonical: bool,
    date: bool,
    href: String,
    content: String,
}

impl Page {
    fn event(&mut self, event: &CallbackEvent<'_>) {
        match event {
            CallbackEvent::OpenStartTag { name } => {
                self.tag = name.to_vec();
                self.marks = Marks::default();
                self.attribute.clear();
            }
            CallbackEvent::AttributeName { name } => {
                self.attribute = name.to_vec();
                self.marks.hidden |= *name == b"hidden";
            }
            CallbackEvent::AttributeValue { value } => self.marks.see(&self.attribute, value),
            CallbackEvent::CloseStartTag { .. } => self.start(),
            CallbackEvent::EndTag { name } => self.end(name),
            CallbackEvent::String { value } => self.string(&String::from_utf8_lossy(value)),
            _ => {}
        }
    }

    fn state(&self) -> State {
        self.open.last().map(|o| o.state).unwrap_or_default()
    }

    fn start(&mut self) {
        let name = std::mem::take(&mut self.tag);
        let marks = std::mem::take(&mut self.marks);
        self.imply_ends(&name);
        let mut state = self.state();
        match name.as_slice() {
            b"script" | b"style" | b"template" | b"svg" | b"math" | b"iframe" | b"object"
            | b"select" | b"button" | b"textarea" | b"canvas" | b"audio" | b"video" | b"head"
            | b"datalist" => state.skip = true,
            b"noscript" => state.beside = true,
            b"nav" | b"footer" | b"aside" | b"form" | b"dialog" | b"menu" => state.beside = true,
            b"header" if !state.main => state.beside = true,
            b"main" | b"article" => (state.main, state.beside) = (true, false),
            b"pre" => state.pre = true,
            b"a" => state.link = true,
            b"title" => state.title = self.title.is_empty(),
            _ => {}
        }
        let whole = matches!(name.as_slice(), b"html" | b"body" | b"main" | b"article");
        state.beside |= marks.beside && !whole;
        state.main |= marks.main;
        state.hidden |= marks.hidden && !whole;
        // The mark beside a heading that links to itself.
        state.skip |= marks.anchor && name == b"a";
        let stated = if name == b"meta" { &marks.content } else { &marks.href };
        if marks.licence && self.about.licence.is_none() && !stated.is_empty() {
            self.about.licence = Some(stated.clone());
        }
        if self.commons.is_none() && is_creative_commons(&marks.href) {
            self.commons = Some(marks.href.clone());
        }
        if marks.canonical && self.about.url.is_none() {
            self.about.url = Some(marks.href.clone());
        }
        if marks.date && self.about.time.is_none() && !marks.content.is_empty() {
            self.about.time = Some(marks.content.clone());
        }
        match name.as_slice() {
            b"br" => self.text.push('\n'),
            b"hr" => self.flush(),
            b"img" | b"input" | b"meta" | b"link" | b"wbr" | b"area" | b"base" | b"col"
            | b"embed" | b"source" | b"track" | b"param" => {}
            _ => {
                if block(&name) {
                    self.flush();
                }
                match name.as_slice() {
                    b"h1" => self.prefix = "# ",
                    b"h2" => self.prefix = "## ",
                    b"h3" => self.prefix = "### ",
                    b"h4" | b"h5" | b"h6" => self.prefix = "#### ",
                    b"li" => self.prefix = "- ",
                    b"table" if self.tables.len() < DEPTH => {
                        // In a cell: what came before it is a block, and what follows.
                        self.tables.last_mut().into_iter().for_each(|t| t.in_cell = false);
                        self.flush();
                        self.tables.push(Table::default());
                    }
                    b"td" | b"th" => {
                        if let Some(table) = self.tables.last_mut() {
                            table.in_cell = true;
                            self.text.clear();
                        }
                    }
                    _ => {}
                }
                if self.open.len() < DEPTH {
                    self.open.push(Open { name, state });
                }
            }
        }
    }

    /// Tags that end where another begins.
    fn imply_ends(&mut self, name: &[u8]) {
        let ends: &[&[u8]] = match name {
            b"li" => &[b"li"],
            b"p" => &[b"p"],
            b"dt" | b"dd" => &[b"dt", b"dd"],
            b"td" | b"th" => &[b"td", b"th"],
            b"tr" => &[b"tr", b"td", b"th"],
            b"body" => &[b"head"],
            _ if block(name) => &[b"p"],
            _ => return,
        };
        while self.open.last().is_some_and(|o| ends.contains(&o.name.as_slice())) {
            let name = self.open.last().map(|o| o.name.clone()).unwrap_or_default();
            self.end(&name);
        }
    }

    fn end(&mut self, name: &[u8]) {
        match name {
            b"td" | b"th" => {
                let text = self.text.trim().to_string();
                if let Some(table) = self.tables.last_mut().filter(|t| t.in_cell) {
                    table.in_cell = false;
                    table.cells.push(text);
                    self.text.clear();
                }
            }
            b"tr" => {
                self.end_cell();
                if let Some(table) = self.tables.last_mut() {
                    let cells = std::mem::take(&mut table.cells);
                    if cells.iter().any(|c| !c.is_empty()) {
                        self.text = cells.join(" | ");
                        self.flush();
                        self.blocks.iter_mut().last().into_iter().for_each(|b| b.item = true);
                    }
                    (self.links, self.prefix) = (0, "");
                }
            }
            b"table" => {
                self.end(b"tr");
                self.tables.pop();
            }
            _ if block(name) => self.flush(),
            _ => {}
        }
        if let Some(at) = self.open.iter().rposition(|o| o.name == name) {
            self.open.truncate(at);
        }
    }

    fn end_cell(&mut self) {
        if self.tables.last().is_some_and(|t| t.in_cell) {
            self.end(b"td");
        }
    }

    fn string(&mut self, text: &str) {
        let state = self.state();
        if state.title && self.title.len() < ATTRIBUTE {
            self.title += text;
            return;
        }
        if state.skip || state.title {
            return;
        }
        if state.hidden {
            self.hidden += text.trim().len() as u64;
            return;
        }
        let before = self.text.len();
        if state.pre {
            self.text += text;
        } else {
            for c in text.chars() {
                match c {
                    c if c.is_ascii_whitespace() => {
                        if !self.text.ends_with([' ', '\n']) && !self.text.is_empty() {
                            self.text.push(' ');
                        }
                    }
                    // Soft hyphens and marks of no width.
                    '\u{ad}' | '\u{200b}' | '\u{feff}' => {}
                    c => self.text.push(c),
                }
            }
        }
        if state.link {
            self.links += self.text.len() - before;
        }
    }

    /// Ends the block in the making.
    fn flush(&mut self) {
        if self.tables.last().is_some_and(|t| t.in_cell) {
            if !self.text.ends_with([' ', '\n']) && !self.text.is_empty() {
                self.text.push(' ');
            }
            return;
        }
        let state = self.state();
        let text = match state.pre {
            true => self.text.trim_matches('\n').trim_end(),
            false => self.text.trim(),
        };
        if !text.is_empty() {
            self.blocks.push(Block {
                text: format!("{}{text}", self.prefix),
                links: self.links,
                item: self.prefix == "- ",
                beside: state.beside,
                main: state.main,
            });
        }
        if !text.is_empty() || self.prefix != "- " {
            self.prefix = "";
        }
        self.text.clear();
        self.links = 0;
    }

    /// The page's own text.
    fn finish(mut self) -> (String, About) {
        let bytes = |keep: &dyn Fn(&Block) -> bool| -> usize {
            self.blocks.iter().filter(|b| keep(b)).map(|b| b.text.len()).sum()
        };
        let (all, beside) = (bytes(&|_| true), bytes(&|b| b.beside));
        let main = bytes(&|b| b.main && !b.beside);
        let only_main = main > 0 && main * 100 >= (all - beside) * MAIN_SHARE;
        // A page that is all navigation is taken for what it is.
        let only_beside = all == beside;
        let mut text = String::with_capacity(all);
        let mut last_item = false;
        for block in &self.blocks {
            let linked = block.links * 100 > block.text.len() * LINKS;
            let drop =
                block.beside && !only_beside || only_main && !block.main || linked && !only_beside;
            if drop {
                continue;
            }
            if !text.is_empty() {
                text += if last_item && block.item { "\n" } else { "\n\n" };
            }
            for (i, line) in block.text.split('\n').enumerate() {
                if i > 0 {
                    text.push('\n');
                }
                text += line.trim_end();
            }
            last_item = block.item;
        }
        let title = self.title.split_whitespace().collect::<Vec<_>>().join(" ");
        self.about.title = (!title.is_empty()).then_some(title);
        self.about.licence = self.about.licence.or(self.commons);
        self.about.hidden_bytes = self.hidden;
        (text, self.about)
    }
}

impl Marks {
    fn see(&mut self, name: &[u8], value: &[u8]) {
        let value = String::from_utf8_lossy(&value[..value.len().min(ATTRIBUTE)]);
        let words =
            || value.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_ascii_lowercase);
        match name {
            b"class" | b"id" => {
                self.beside |= words().any(|w| BESIDE.contains(&w.as_str()));
                self.anchor |= words().any(|w| w == "headerlink" || w == "anchor");
            }
            b"role" => match value.as_ref() {
                "main" => self.main = true,
                "navigation" | "banner" | "contentinfo" | "search" | "complementary" | "dialog" => {
                    self.beside = true;
                }
                _ => {}
            },
            b"style" => {
                let style: String = value.chars().filter(|c| !c.is_whitespace()).collect();
                let style = style.to_ascii_lowercase();
                self.hidden |= style.contains("display:none")
                    || style.contains("visibility:hidden")
                    || style.contains("font-size:0;")
                    || style.ends_with("font-size:0");
            }
            b"aria-hidden" => self.hidden |= value == "true",
            b"rel" => {
                self.licence |= is_licence(&value);
                self.canonical |= value == "canonical";
            }
            b"property" | b"name" | b"itemprop" => {
                let name = value.to_ascii_lowercase();
                self.licence |=
                    matches!(name.as_str(), "license" | "dc.license" | "dcterms.license");
                self.date |= matches!(
                    value.as_ref(),
                    "article:published_time" | "date" | "datePublished" | "dc.date"
                );
            }
            b"href" => self.href = value.into_owned(),
            b"content" => self.content = value.into_owned(),
            _ => {}
        }
    }
}

/// Words of classes and ids that mark what is not the page's own text.
const BESIDE: &[&str] = &[
    "nav",
    "navbar",
    "navigation",
    "menu",
    "sidebar",
    "sidenav",
    "footer",
    "breadcrumb",
    "breadcrumbs",
    "cookie",
    "cookies",
    "advert",
    "ads",
    "share",
    "sharing",
    "social",
    "related",
    "pagination",
    "pager",
    "toc",
    "sphinxsidebar",
    "skiplink",
    "newsletter",
    "popup",
    "modal",
    "toolbar",
];

/// Whether text on either side of a tag is apart.
fn block(name: &[u8]) -> bool {
    matches!(
        name,
        b"p" | b"div"
            | b"section"
            | b"article"
            | b"main"
            | b"header"
            | b"footer"
            | b"nav"
            | b"aside"
            | b"form"
            | b"h1"
            | b"h2"
            | b"h3"
            | b"h4"
            | b"h5"
            | b"h6"
            | b"ul"
            | b"ol"
            | b"li"
            | b"dl"
            | b"dt"
            | b"dd"
            | b"table"
            | b"caption"
            | b"thead"
            | b"tbody"
            | b"tfoot"
            | b"tr"
            | b"pre"
            | b"blockquote"
            | b"figure"
            | b"figcaption"
            | b"details"
            | b"summary"
            | b"fieldset"
            | b"address"
            | b"body"
            | b"html"
            | b"head"
            | b"center"
            | b"option"
            | b"title"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_text_of_a_page() {
        let page = r##"<!doctype html><html><head><title>A &amp; B</title><style>p{}</style>
            <link rel="license" href="https://example.org/by"></head>
            <body class="with-sidebar"><nav><ul><li><a href="/">Home</a><li>About</ul></nav>
            <div id="sidebar-left">Old posts</div>
            <h1>Heading<a class="headerlink" href="#h">¶</a></h1>
            <p>One <b>bold</b>
               word.<p>Two<br>lines &lt;here&gt;.
            <ul><li>first<li><p>second</p></ul>
            <table><tr><th>Name<th>Age</tr><tr><td>Ann</td><td>31</td></table>
            <pre>fn main() {
    x();
}</pre>
            <p style="display: none">SECRET</p><script>if (a < b) {}</script>
            <p><a href="/x">A link and nothing else</a></p>
            <div class="page-footer">Imprint</div></body></html>"##;
        let (text, about) = read(page);
        let want = "# Heading\n\nOne bold word.\n\nTwo\nlines <here>.\n\n- first\n- second\n\
                    Name | Age\nAnn | 31\n\nfn main() {\n    x();\n}";
        assert_eq!(text, want);
        assert_eq!(about.title.as_deref(), Some("A & B"));
        assert_eq!(about.licence.as_deref(), Some("https://example.org/by"));
        assert_eq!(about.hidden_bytes, 6);
    }

    #[test]
    fn main_wins_and_depth_costs_nothing() {
        let body = "All of the text of this page is in here, and it is long enough.";
        let page = format!("<div>Teaser</div><main><p>{body}</p></main><div>Teaser</div>");
        assert_eq!(read(&page).0, body);
        let deep = format!("{}x{}", "<div><b>".repeat(100_000), "</b></div>".repeat(100_000));
        assert_eq!(read(&deep).0, "x");
        let tables = "<table><tr><td>".repeat(100_000);
        assert_eq!(read(&format!("{tables}x")).0, "x");
    }
}
