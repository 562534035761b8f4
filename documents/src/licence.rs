//! Licences, as pages and their servers state them.

use crate::{encoding, formats};

/// The licence that a page links to or names.
pub fn of_page(page: Vec<u8>) -> Option<String> {
    formats::html::read(&encoding::page(page)).1.licence
}

/// The licence in the headers of an answer, names in small letters: `Link` with `rel=license` (RFC
/// 8288), or `Content-License`.
pub fn of_headers<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Option<String> {
    let mut named = None;
    for (name, value) in headers {
        match name {
            "link" => {
                for link in value.split(",") {
                    let (target, parameters) = link.split_once('>').unwrap_or_default();
                    let rel = parameters.split(';').find_map(|p| {
                        let (name, value) = p.split_once('=')?;
                        name.trim().eq_ignore_ascii_case("rel").then_some(value)
                    });
                    let target = target.trim_start().trim_start_matches('<');
                    if rel.is_some_and(is_licence) && !target.is_empty() {
                        return Some(target.to_string());
                    }
                }
            }
            "content-license" if !value.is_empty() => named = Some(value.to_string()),
            _ => {}
        }
    }
    named
}

/// Whether a `rel` names the licence.
pub(crate) fn is_licence(rel: &str) -> bool {
    let mut names = rel.split(|c: char| c.is_whitespace() || c == '"');
    names.any(|name| name.eq_ignore_ascii_case("license"))
}

/// Whether a URL is that of a Creative Commons licence.
pub(crate) fn is_creative_commons(url: &str) -> bool {
    let rest = url.trim_start_matches("https:").trim_start_matches("http:");
    let rest = rest.trim_start_matches("//").trim_start_matches("www.");
    rest.starts_with("creativecommons.org/licenses/")
        || rest.starts_with("creativecommons.org/publicdomain/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_in_headers_and_pages() {
        let link = r#"<https://a.org/x>; rel="next", <https://a.org/by>; title=x; rel="license y""#;
        let headers = [("content-license", "MIT"), ("link", link)];
        assert_eq!(of_headers(headers.into_iter()).as_deref(), Some("https://a.org/by"));
        assert_eq!(of_headers(headers.into_iter().take(1)).as_deref(), Some("MIT"));
        assert_eq!(of_headers([("link", "<x>; rel=next; , >")].into_iter()), None);
        for page in [
            r#"<a rel="nofollow license" href="https://a.org/by">L</a>"#,
            r#"<p>See <a href="//creativecommons.org/licenses/by/4.0/">CC</a>"#,
            r#"<meta name="dcterms.license" content="https://a.org/by">"#,
        ] {
            assert!(of_page(page.into()).is_some(), "{page}");
        }
        // What the page says outright goes before what it happens to link to.
        let page = r#"<a href="https://creativecommons.org/licenses/by/4.0/">CC</a>
            <link rel=license href="https://a.org/by">"#;
        assert_eq!(of_page(page.into()).as_deref(), Some("https://a.org/by"));
    }
}
