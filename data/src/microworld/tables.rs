//! Lists and tables, and copying: what follows what, and what stands beside what.

use compute::rng::Rng;

use super::people::ATTRIBUTES;
use super::text::{fill, pick};
use super::{Attribute, World};

/// A text to look something up in, with questions and answers on it.
pub(super) struct Sheet {
    /// The text.
    pub text: String,
    /// Question, answer, and among how many values it is to be found.
    pub asked: Vec<(String, String, usize)>,
}

impl World {
    /// Some different words of one pool.
    fn items(&self, n: usize, rng: &mut Rng) -> Vec<&str> {
        let pool = self.pool(*rng.choose(&ATTRIBUTES));
        rng.sample(pool.len(), n.min(pool.len())).into_iter().map(|i| pool[i].as_str()).collect()
    }

    /// A list, with numbers or without.
    pub(super) fn list(&self, rng: &mut Rng) -> Sheet {
        let count = 3 + rng.index(6);
        let items = self.items(count, rng);
        let mut asked = Vec::new();
        let text = if rng.chance(0.5) {
            for (i, item) in items.iter().enumerate() {
                let ways = [
                    "What is number {i}?",
                    "Tell me number {i}.",
                    "Which one is number {i} of the list?",
                ];
                let number = (i + 1).to_string();
                let question = fill(pick(&ways, rng), &[("i", &number)]);
                asked.push((question, format!("Number {number} is {item}."), items.len()));
            }
            let lines: Vec<String> =
                items.iter().enumerate().map(|(i, item)| format!("{}. {item}", i + 1)).collect();
            format!("List:\n{}", lines.join("\n"))
        } else {
            for pair in items.windows(2) {
                let ways = [
                    "What comes after {x}?",
                    "Which one stands behind {x}?",
                    "Tell me what follows {x} in the list.",
                ];
                let question = fill(pick(&ways, rng), &[("x", pair[0])]);
                let answer = format!("After {} comes {}.", pair[0], pair[1]);
                asked.push((question, answer, items.len() - 1));
            }
            format!("List: {}.", items.join(", "))
        };
        Sheet { text, asked }
    }

    /// A table of people (first names) and some attributes.
    pub(super) fn table(&self, rng: &mut Rng) -> Sheet {
        let (rows, columns) = (2 + rng.index(4), 1 + rng.index(3));
        let names = rng.sample(self.firsts.len(), rows);
        let attributes: Vec<Attribute> =
            rng.sample(ATTRIBUTES.len(), columns).into_iter().map(|i| ATTRIBUTES[i]).collect();
        let mut asked = Vec::new();
        let head: Vec<&str> = attributes.iter().map(|a| a.noun()).collect();
        let mut lines = vec![format!("| name | {} |", head.join(" | "))];
        let values: Vec<Vec<usize>> =
            attributes.iter().map(|_| rng.sample(self.config.values, rows)).collect();
        for (row, name) in names.iter().enumerate() {
            let name = &self.firsts[*name];
            let mut line = format!("| {name} |");
            for (attribute, values) in attributes.iter().zip(&values) {
                // A world with few values has fewer than rows.
                let value = self.value(*attribute, values[row % values.len()]);
                line += &format!(" {value} |");
                let noun = attribute.noun();
                let ways = [
                    "What is the {a} of {n}?",
                    "Look up the {a} of {n}.",
                    "In the row of {n}, what is the {a}?",
                ];
                let question = fill(pick(&ways, rng), &[("a", noun), ("n", name)]);
                let answer = format!("In the table the {noun} of {name} is {value}.");
                asked.push((question, answer, rows));
            }
            lines.push(line);
        }
        Sheet { text: lines.join("\n"), asked }
    }

    /// A list or a table.
    pub(super) fn sheet(&self, rng: &mut Rng) -> Sheet {
        if rng.chance(0.5) { self.list(rng) } else { self.table(rng) }
    }

    /// Document: a list or a table, and what it says.
    pub(super) fn sheets(&self, rng: &mut Rng) -> String {
        let Sheet { text, mut asked } = self.sheet(rng);
        rng.shuffle(&mut asked);
        let answers: Vec<&str> = asked.iter().take(6).map(|a| a.1.as_str()).collect();
        format!("{text}\n{}", answers.join(" "))
    }

    /// Document: words or numbers, and the same once more; or pairs, once more in another order.
    pub(super) fn copies(&self, rng: &mut Rng) -> String {
        // First or last names, not both: they would make somebody's name.
        let names = if rng.chance(0.5) { &self.firsts } else { &self.lasts };
        let any = |rng: &mut Rng| -> String {
            match rng.index(3) {
                0 => {
                    let digits = 1 + rng.below(6) as u32;
                    rng.below(10u64.pow(digits)).to_string()
                }
                1 => rng.choose(names).clone(),
                _ => {
                    let attribute = *rng.choose(&ATTRIBUTES);
                    rng.choose(self.pool(attribute)).clone()
                }
            }
        };
        match rng.index(3) {
            0 => {
                let words: Vec<String> = (0..3 + rng.index(12)).map(|_| any(rng)).collect();
                format!("Copy: {}\nCopy: {}", words.join(" "), words.join(" "))
            }
            1 => {
                let mut pairs: Vec<(String, String)> =
                    (0..2 + rng.index(6)).map(|_| (any(rng), any(rng))).collect();
                pairs.sort();
                pairs.dedup_by(|a, b| a.0 == b.0);
                let mut line = |rng: &mut Rng| {
                    rng.shuffle(&mut pairs);
                    let pairs: Vec<String> =
                        pairs.iter().map(|(k, v)| format!("{k} = {v}")).collect();
                    pairs.join("; ")
                };
                format!("Pairs: {}\nPairs: {}", line(rng), line(rng))
            }
            _ => {
                let n = 2 + rng.index(5);
                let attribute = *rng.choose(&ATTRIBUTES);
                let mut lines: Vec<String> = (self.strangers(n, false, rng).into_iter())
                    .map(|n| format!("- {}: {}", self.full(n), rng.choose(self.pool(attribute))))
                    .collect();
                let first = lines.join("\n");
                rng.shuffle(&mut lines);
                format!("The {} of some:\n{first}\nAgain:\n{}", attribute.noun(), lines.join("\n"))
            }
        }
    }
}
