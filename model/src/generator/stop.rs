//! Holds back text that may turn out to be part of a stop string.

/// Text of one sequence on its way out.
#[derive(Debug, Default)]
pub(super) struct StopStream {
    stop: Vec<String>,
    /// Text that may be the start of a stop string.
    held: String,
}

impl StopStream {
    /// `stop`: strings that end the text, none of them empty.
    pub(super) fn new(stop: Vec<String>) -> Self {
        StopStream { stop, held: String::new() }
    }

    /// Takes more text. Returns the text that is certain now and, once a stop string is complete,
    /// that string; the text ends before it. Of several the one that is complete first counts, and
    /// of those the longest, however the text is cut.
    pub(super) fn push(&mut self, text: &str) -> (String, Option<String>) {
        self.held.push_str(text);
        let found = (self.stop.iter())
            .filter_map(|stop| {
                self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, stop))
            })
            .min();
        if let Some((_, start, stop)) = found {
            let stop = stop.clone();
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return (text, Some(stop));
        }
        // The longest end of the text that starts a stop string.
        let starts = |stop: &String| {
            (stop.char_indices().map(|(i, _)| i))
                .filter(|&n| n > 0 && self.held.ends_with(&stop[..n]))
                .max()
        };
        let keep = self.stop.iter().filter_map(starts).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, held), None)
    }

    /// What is still held back, when nothing continues it.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(stop: &[String], parts: &[&str]) -> (Vec<String>, Option<String>) {
        let mut stream = StopStream::new(stop.to_vec());
        let mut texts = Vec::new();
        for part in parts {
            let (text, stop) = stream.push(part);
            texts.push(text);
            if stop.is_some() {
                return (texts, stop);
            }
        }
        texts.push(stream.finish());
        (texts, None)
    }

    #[test]
    fn a_stop_string_is_held_back_and_cut_off() {
        let end = ["END.".to_string()];
        let (texts, stop) = stream(&end, &["The ", "E", "NE", "ND", ".x"]);
        assert_eq!((texts.concat().as_str(), stop.as_deref()), ("The EN", Some("END.")));
        assert_eq!(texts[..4], ["The ", "", "EN", ""]);
        let (texts, stop) = stream(&end, &["The END"]);
        assert_eq!((texts, stop), (vec!["The ".into(), "END".into()], None));
    }

    proptest! {
        /// However text is cut, the result is that of the whole, up to the first stop string.
        #[test]
        fn cuts_do_not_matter(
            parts in prop::collection::vec("[abé🙂]{0,5}", 0..12),
            stop in prop::collection::vec("[abé🙂]{1,4}", 0..3),
        ) {
            let whole = parts.concat();
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            // Plainly: the first prefix that ends with a stop string, the longest of those.
            let ends = whole.char_indices().map(|(i, c)| i + c.len_utf8());
            let expected = ends.map(|end| &whole[..end]).find_map(|prefix| {
                let ending = stop.iter().filter(|s| prefix.ends_with(*s)).max_by_key(|s| s.len())?;
                Some((prefix[..prefix.len() - ending.len()].to_string(), Some(ending.clone())))
            });
            let (texts, found) = stream(&stop, &parts);
            prop_assert_eq!((texts.concat(), found), expected.unwrap_or((whole, None)));
        }
    }
}
