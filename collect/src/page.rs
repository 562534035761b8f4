//! What a page says to those who collect: where else to go, and what it wishes.

use std::convert::Infallible;

use html5gum::{DefaultEmitter, HtmlString, Token, Tokenizer};
use url::Url;

/// Links and wishes of a page.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Where it links to, each once, in its order; none if it asks not to follow them.
    pub links: Vec<Url>,
    /// What its `<meta name="robots">` says.
    pub robots: Option<String>,
}

/// Reads a page that was found at `url`.
pub fn read(html: &[u8], url: &Url) -> Page {
    let mut page = Page::default();
    let (mut base, mut seen) = (url.clone(), std::collections::HashSet::new());
    let mut emitter = DefaultEmitter::default();
    emitter.naively_switch_states(true);
    for token in Tokenizer::new_with_emitter(html, emitter) {
        let Ok::<_, Infallible>(token) = token;
        let Token::StartTag(tag) = token else { continue };
        let attribute = |name: &[u8]| {
            let value = tag.attributes.get(&HtmlString(name.to_vec()));
            value.map(|v| String::from_utf8_lossy(v).trim().to_string())
        };
        match tag.name.as_slice() {
            b"base" => {
                if let Some(to) = attribute(b"href").and_then(|href| url.join(&href).ok()) {
                    base = to;
                }
            }
            b"meta" => {
                let name = attribute(b"name").unwrap_or_default();
                if name.eq_ignore_ascii_case("robots") {
                    page.robots = attribute(b"content").map(|c| c.to_ascii_lowercase());
                }
            }
            b"a" | b"area" => {
                let rel = attribute(b"rel").unwrap_or_default().to_ascii_lowercase();
                let to = attribute(b"href").and_then(|href| base.join(&href).ok());
                if let Some(mut to) = to.filter(|_| !rel.contains("nofollow")) {
                    to.set_fragment(None);
                    if matches!(to.scheme(), "http" | "https") && seen.insert(to.clone()) {
                        page.links.push(to);
                    }
                }
            }
            _ => {}
        }
    }
    if page.robots.as_deref().is_some_and(|r| r.contains("nofollow") || r.contains("none")) {
        page.links.clear();
    }
    page
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn links_are_whole_and_distinct() {
        let url = Url::parse("http://example.org/a/b").unwrap();
        let html = br#"<base href="/c/"><a href=" x#1 ">1</a><a href="x">2</a><a href="//other/">3</a>
            <a rel="nofollow" href="y">4</a><a href="mailto:a@b">5</a><script>"<a href='z'>"</script>"#;
        let links: Vec<_> = read(html, &url).links.iter().map(Url::to_string).collect();
        assert_eq!(links, ["http://example.org/c/x", "http://other/"]);
        let html = br#"<meta name="Robots" content="NoIndex, NoFollow"><a href="x">1</a>"#;
        let page = read(html, &url);
        assert!(page.links.is_empty());
        assert_eq!(page.robots.as_deref(), Some("noindex, nofollow"));
    }
}
