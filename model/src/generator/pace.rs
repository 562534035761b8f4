//! How many tokens to guess ahead of a sequence, by how well it went. Guesses are computed in one step
//! and each is kept only if it is the token that is chosen, so answers don't change: a row's logits
//! don't depend on its neighbours.

/// A number of guesses that follows their success.
#[derive(Debug)]
pub(super) struct Pace {
    most: usize,
    next: usize,
}

impl Pace {
    /// At most `most` guesses a step.
    pub(super) fn new(most: usize) -> Pace {
        Pace { most, next: most.min(2) }
    }

    /// Guesses of the next step.
    pub(super) fn next(&self) -> usize {
        self.next
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
    fn right_guesses_make_more() {
        let mut pace = Pace::new(8);
        let mut step = |guesses, right| {
            pace.learn(guesses, right);
            pace.next()
        };
        assert_eq!([step(0, 0), step(2, 2), step(4, 4), step(8, 8), step(8, 5)], [2, 4, 8, 8, 5]);
        assert_eq!([step(5, 0), step(1, 1)], [1, 2]);
        assert_eq!(Pace::new(0).next(), 0);
    }
}
