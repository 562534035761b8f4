//! What an answer may be.

use std::fmt::Debug;

/// Rules out tokens, one after the other: a grammar, for example. What it allows depends on the tokens so far alone.
pub trait Constraint: Debug + Send {
    /// Sets the logits `[vocab]` of tokens that can't come next to minus infinity.
    ///
    /// # Errors
    /// What can't be decided, in words.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// Goes on over the token that was chosen.
    ///
    /// # Errors
    /// If it can't come here.
    fn take(&mut self, id: u32) -> Result<(), String>;

    /// Another one in the same state.
    fn copy(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.copy()
    }
}
