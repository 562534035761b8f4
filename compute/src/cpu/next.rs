//! Which weights come next. A model is gone through in the same order for each token, so what was multiplied by after some
//! weights will be so again: while workers wait for what is computed in between, they ask memory for it.

use std::cell::RefCell;
use std::collections::HashMap;

use super::Cpu;
use crate::strips::Strips;

/// Places of weights that are known at most; then they are learned anew.
const MOST: usize = 1 << 14;

/// Where weights begin, and their bytes.
type Place = (*const u8, usize);

thread_local! {
    /// Where the last ones began, and what came after each.
    static ORDER: RefCell<(usize, HashMap<usize, Place>)> = RefCell::default();
}

/// Tells the threads what this one multiplied by after `w` when it did so last.
pub(super) fn announce(cpu: &Cpu, w: &Strips) {
    let this = (w.cells(0).as_ptr(), w.bytes());
    let next = ORDER.with_borrow_mut(|(last, after)| {
        if after.len() >= MOST {
            after.clear();
        }
        after.insert(std::mem::replace(last, this.0.addr()), this);
        after.get(&this.0.addr()).copied()
    });
    if let Some((start, bytes)) = next {
        cpu.pool.will_read(start, bytes);
    }
}
