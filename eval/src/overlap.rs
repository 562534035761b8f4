//! How much of the questions' wording stands in the training text.
//!
//! A score on questions that were trained on word for word measures memory of the questions. So
//! the share of the questions' word n-grams that occur in the training text is shown with the
//! scores. Words are compared as [`data::words`] has them.

use std::collections::{HashMap, HashSet};

use data::words::words;

use crate::run::Overlap;

/// Collects the n-grams of questions, then looks for them in text that is streamed past.
pub struct Finder {
    n: usize,
    words: HashMap<String, u32>,
    wanted: HashSet<Box<[u32]>>,
    found: HashSet<Box<[u32]>>,
}

impl Finder {
    /// The n-grams (runs of `n` words) of `questions`.
    pub fn new<'a>(questions: impl IntoIterator<Item = &'a str>, n: usize) -> Finder {
        let mut known = HashMap::new();
        let mut wanted = HashSet::new();
        for question in questions {
            let ids: Vec<u32> = words(question)
                .split_terminator(' ')
                .map(|word| {
                    let next = known.len() as u32;
                    *known.entry(word.to_string()).or_insert(next)
                })
                .collect();
            wanted.extend(ids.windows(n.max(1)).map(Box::from));
        }
        Finder { n: n.max(1), words: known, wanted, found: HashSet::new() }
    }

    /// Looks through a training document.
    pub fn read(&mut self, text: &str) {
        // The last words that occur in questions at all, without a gap.
        let mut run = Vec::new();
        for word in words(text).split_terminator(' ') {
            match self.words.get(word) {
                Some(id) => run.push(*id),
                None => run.clear(),
            }
            if run.len() >= self.n {
                let gram = &run[run.len() - self.n..];
                if self.wanted.contains(gram) && !self.found.contains(gram) {
                    self.found.insert(gram.into());
                }
            }
        }
    }

    /// What was found, for the report; `task` names the questions.
    pub fn result(&self, task: &str) -> Overlap {
        let share = self.found.len() as f64 / self.wanted.len().max(1) as f64;
        Overlap { task: task.into(), n: self.n as u64, share }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_distinct_runs_of_words() {
        // 3-grams: "where does mira", "does mira live", "does tom live", "where does tom".
        let questions = ["Where does Mira live?", "Where does Tom live?"];
        let mut finder = Finder::new(questions, 3);
        finder.read("I ask where does, Mira? The rest: does mira really live here");
        assert_eq!(finder.result("known").share, 0.25);
        finder.read("where DOES tom live");
        finder.read("where does tom live");
        assert_eq!(finder.result("known").share, 0.75);
        assert_eq!(finder.result("known").n, 3);
    }

    #[test]
    fn no_questions_overlap_with_nothing() {
        let mut finder = Finder::new([], 5);
        finder.read("some text");
        assert_eq!(finder.result("none").share, 0.0);
    }
}
