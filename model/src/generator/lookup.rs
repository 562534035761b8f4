//! Guesses of what comes next, for free: what followed the last time that the newest tokens stood
//! together (prompt lookup, Saxena 2023). Texts repeat themselves where they quote, correct or go on
//! with lists and code.

/// Tokens that have to have stood together before.
const KEY: usize = 3;

/// At most `n` guesses of what follows `tokens`.
pub(super) fn guess(tokens: &[u32], n: usize) -> Vec<u32> {
    let Some(start) = tokens.len().checked_sub(KEY).filter(|_| n > 0) else {
        return Vec::new();
    };
    let key = &tokens[start..];
    let before = (0..start).rev().find(|&i| tokens[i..i + KEY] == *key);
    before.map_or_else(Vec::new, |i| tokens[i + KEY..].iter().copied().take(n).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_what_followed_the_last_time() {
        assert_eq!(guess(&[1, 2, 3, 7, 1, 2, 3, 8, 9, 1, 2, 3], 2), [8, 9]);
        assert_eq!(guess(&[1, 2, 3, 8, 9, 1, 2, 3], 1), [8]);
        assert_eq!(guess(&[5, 5, 5, 5], 9), [5]);
        assert!(guess(&[1, 2, 3, 4], 9).is_empty());
        assert!(guess(&[1, 2], 9).is_empty());
        assert!(guess(&[5, 5, 5, 5], 0).is_empty());
    }
}
