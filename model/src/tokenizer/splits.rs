//! Pre-tokenizers that have no scanner: expressions of any kind, one after another.
//!
//! They are run by an engine that never goes back on its way. What it lacks is the look-ahead, which
//! all these expressions have in one place, `\s+(?!\S)|\s+` at the end: white space without its last
//! character, which goes with what follows. That is done here.

use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use regex_automata::{Input, PatternID};

use super::TokenizerError;
use super::pretokenize::PreTokenizer;

/// How these expressions end.
const TAIL: &str = r"|\s+(?!\S)|\s+";
/// Memory of one expression.
const SIZE: usize = 8 << 20;

/// Steps: each cuts the pieces of the one before.
#[derive(Clone, Debug)]
pub(super) struct Splits(pub(super) Vec<Step>);

/// One of them.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A known expression.
    Scan(PreTokenizer),
    /// Numbers apart from all else, each of their digits apart or not.
    Digits { each: bool },
    /// Any other expression.
    Expression(Box<Expression>),
}

/// An expression; its matches and what is between them are pieces.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    pub(super) source: String,
    /// Pattern 0 is the expression but for [`TAIL`], pattern 1 is the tail's `\s+`.
    regex: Regex,
    /// Whether what is between matches is left out.
    pub(super) matches_only: bool,
}

impl Splits {
    /// Gives out the pieces of a text, in order.
    pub(super) fn pieces(&self, text: &str, each: &mut dyn FnMut(&str)) {
        cut(&self.0, text, each);
    }
}

fn cut(steps: &[Step], text: &str, each: &mut dyn FnMut(&str)) {
    let Some((step, rest)) = steps.split_first() else {
        if !text.is_empty() {
            each(text);
        }
        return;
    };
    match step {
        Step::Scan(pre_tokenizer) => {
            pre_tokenizer.pieces(text).for_each(|piece| cut(rest, piece, each));
        }
        Step::Digits { each: apart } => {
            let mut start = 0;
            while let Some(first) = text[start..].chars().next() {
                let run = text[start..].find(|c: char| c.is_numeric() != first.is_numeric());
                let mut end = run.map_or(text.len(), |len| start + len);
                if *apart && first.is_numeric() {
                    end = start + first.len_utf8();
                }
                cut(rest, &text[start..end], each);
                start = end;
            }
        }
        Step::Expression(expression) => {
            expression.pieces(text, &mut |piece| cut(rest, piece, each));
        }
    }
}

impl Expression {
    /// # Errors
    /// An expression that the engine does not know.
    pub(super) fn new(source: &str, matches_only: bool) -> Result<Expression, TokenizerError> {
        let unsupported = |why: &dyn std::fmt::Display| {
            TokenizerError::Unsupported(format!("the expression {source:?}: {why}"))
        };
        if has_possessive(source) {
            return Err(unsupported(&"possessive repetition"));
        }
        let (head, tail) = match source.strip_suffix(TAIL) {
            Some(head) => (head, Some(r"\s+")),
            None => (source, None),
        };
        let patterns: Vec<&str> = [head].into_iter().chain(tail).collect();
        let regex = Regex::builder()
            // As in Ruby, whose syntax the files are written in.
            .syntax(syntax::Config::new().multi_line(true))
            .configure(Regex::config().nfa_size_limit(Some(SIZE)))
            .build_many(&patterns)
            .map_err(|error| unsupported(&error))?;
        Ok(Expression { source: source.into(), regex, matches_only })
    }

    fn pieces(&self, text: &str, each: &mut dyn FnMut(&str)) {
        let (mut done, mut at) = (0, 0);
        while at < text.len()
            && let Some(found) = self.regex.find(Input::new(text).range(at..))
        {
            let (start, mut end) = (found.start(), found.end());
            if found.pattern() == PatternID::must(1) && end < text.len() {
                let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
                if end - last > start {
                    end -= last;
                }
            }
            if start == end {
                // Nothing was found here; look on behind the next character.
                at = end + text[end..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            if done < start && !self.matches_only {
                each(&text[done..start]);
            }
            each(&text[start..end]);
            (done, at) = (end, end);
        }
        if done < text.len() && !self.matches_only {
            each(&text[done..]);
        }
    }
}

/// Whether `++`, `*+` or `?+` stand outside of brackets: elsewhere they never give back what they
/// took, for this engine they are repeated repetitions.
fn has_possessive(source: &str) -> bool {
    let (mut depth, mut before) = (0, ' ');
    let mut chars = source.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '[' => depth += 1,
            ']' => depth -= 1,
            '+' if depth <= 0 && matches!(before, '+' | '*' | '?') => return true,
            _ => {}
        }
        before = c;
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tokenizer::pretokenize::{LLAMA3, QWEN2};

    fn pieces(steps: Vec<Step>, text: &str) -> Vec<String> {
        let mut pieces = vec![];
        Splits(steps).pieces(text, &mut |piece| pieces.push(piece.to_string()));
        pieces
    }

    fn expression(source: &str) -> Step {
        Step::Expression(Box::new(Expression::new(source, false).unwrap()))
    }

    #[test]
    fn an_engine_gives_what_scanners_give() {
        let text = "It's  1234 o'clock,\n\n   he said  \n x\t\ty é中\u{a0}\u{a0}!?   ";
        for (source, known) in [(QWEN2, PreTokenizer::Qwen2), (LLAMA3, PreTokenizer::Llama3)] {
            let known: Vec<&str> = known.pieces(text).collect();
            assert_eq!(pieces(vec![expression(source)], text), known);
        }
        let steps = || vec![Step::Digits { each: true }, Step::Scan(PreTokenizer::Gpt2)];
        let known: Vec<&str> = PreTokenizer::SmolLm.pieces(text).collect();
        assert_eq!(pieces(steps(), text), known);
        assert_eq!(pieces(vec![Step::Digits { each: false }], "a12٣b"), ["a", "12٣", "b"]);
        assert_eq!(pieces(vec![], ""), [""; 0]);
    }

    #[test]
    fn gaps_are_pieces_unless_they_are_not_wanted() {
        assert_eq!(pieces(vec![expression("[ab]+|")], "xaby"), ["x", "ab", "y"]);
        let matches = Expression::new("[ab]", true).unwrap();
        assert_eq!(pieces(vec![Step::Expression(Box::new(matches))], "xaby"), ["a", "b"]);
        assert!(Expression::new("a(?!b)", false).is_err());
        assert!(Expression::new("[^a]?+b", false).is_err());
        assert!(Expression::new("[*+]+", false).is_ok());
        assert!(Expression::new(r"\p{L}{9000}{9000}", false).is_err());
    }
}
