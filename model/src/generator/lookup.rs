//! Guesses of what comes next, for free: what followed the last time that the newest tokens stood
//! together (prompt lookup, Saxena 2023). Texts repeat themselves where they quote, correct or go on
//! with lists and code. Several guesses are computed in one step and each is kept only if it is the
//! token that is chosen, so answers don't change: a row's logits don't depend on its neighbours.

/// Tokens that have to have stood together before.
const KEY: usize = 3;

/// How far ahead to guess, by how well it went.
#[derive(Debug)]
pub(super) struct Lookup {
    /// Most guesses of a step.
    most: usize,
    next: usize,
}

impl Lookup {
    /// At most `most` guesses a step.
    pub(super) fn new(most: usize) -> Lookup {
        Lookup { most, next: most.min(2) }
    }

    /// At most `room` guesses of what follows `tokens`.
    pub(super) fn guess(&self, tokens: &[u32], room: usize) -> Vec<u32> {
        let n = self.next.min(room);
        let Some(start) = tokens.len().checked_sub(KEY).filter(|_| n > 0) else {
            return Vec::new();
        };
        let key = &tokens[start..];
        let before = (0..start).rev().find(|&i| tokens[i..i + KEY] == *key);
        before.map_or_else(Vec::new, |i| tokens[i + KEY..].iter().copied().take(n).collect())
    }

    /// So many of the last guesses were right.
    pub(super) fn learn(&mut self, guesses: usize, right: usize) {
        if guesses > 0 {
            let next = if right == guesses { 2 * self.next } else { right };
            self.next = next.clamp(1, self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_what_followed_the_last_time() {
        let mut lookup = Lookup::new(8);
        assert_eq!(lookup.guess(&[1, 2, 3, 7, 1, 2, 3, 8, 9, 1, 2, 3], 9), [8, 9]);
        assert_eq!(lookup.guess(&[1, 2, 3, 8, 9, 1, 2, 3], 1), [8]);
        assert_eq!(lookup.guess(&[5, 5, 5, 5], 9), [5]);
        assert!(lookup.guess(&[1, 2, 3, 4], 9).is_empty());
        assert!(lookup.guess(&[1, 2], 9).is_empty());
        assert!(Lookup::new(0).guess(&[5, 5, 5, 5], 9).is_empty());
        lookup.learn(2, 2);
        assert_eq!(lookup.guess(&[1, 2, 3, 4, 5, 6, 1, 2, 3], 9), [4, 5, 6, 1]);
        lookup.learn(4, 0);
        assert_eq!(lookup.guess(&[1, 2, 3, 4, 5, 6, 1, 2, 3], 9), [4]);
    }
}
