//! What the end of a file says of its columns, before anybody goes down their tree: that is done
//! without looking how deep it is, or whether it has as many branches as it says.

use parquet::file::reader::ChunkReader;

use super::broken;

/// Deepest nesting of columns.
const DEEPEST: usize = 32;
/// Bytes at the end: how long the footer is, and a mark.
const TAIL: u64 = 8;

/// Checks the tree of columns.
///
/// # Errors
/// What is wrong with it.
pub fn check(source: &impl ChunkReader) -> Result<(), String> {
    let size = source.len();
    let at = size.checked_sub(TAIL).ok_or("broken: it is too short")?;
    let tail = source.get_bytes(at, TAIL as usize).map_err(broken)?;
    match &tail[4..] {
        b"PAR1" => {}
        b"PARE" => return Err("it is encrypted".into()),
        _ => return Err("broken: it does not end as a parquet file does".into()),
    }
    let length = tail[..4].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    let start = at.checked_sub(length).ok_or("broken: its footer is longer than itself")?;
    let footer = source.get_bytes(start, length as usize).map_err(broken)?;
    match sound(&footer) {
        Some(true) => Ok(()),
        Some(false) => Err(format!("its columns are more than {DEEPEST} deep, or not a tree")),
        None => Err("broken: its footer ends too soon".into()),
    }
}

/// Whether columns make a tree that isn't deep. Field 2 of the footer lists them, parents first, and
/// field 5 of each is the number of its children.
fn sound(footer: &[u8]) -> Option<bool> {
    let mut thrift = Thrift(footer);
    let mut id = 0;
    loop {
        match (thrift.field(&mut id)?, id) {
            (0, _) => return None,
            (LIST, 2) => break,
            (kind, _) => thrift.skip(kind, 0)?,
        }
    }
    let (mut left, kind) = thrift.list()?;
    // How many children each of a column and those above it still wait for.
    let mut waiting: Vec<u64> = vec![1];
    while left > 0 {
        left -= 1;
        while waiting.last() == Some(&0) {
            waiting.pop();
        }
        let Some(last) = waiting.last_mut() else { return Some(false) };
        *last -= 1;
        let children = match kind {
            STRUCT => thrift.children()?,
            _ => return Some(false),
        };
        if children > left || waiting.len() > DEEPEST {
            return Some(false);
        }
        waiting.push(children);
    }
    Some(waiting.iter().all(|n| *n == 0))
}

const I32: u8 = 5;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// What was written in thrift's compact protocol, as far as one must know it to pass over things.
struct Thrift<'a>(&'a [u8]);

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn over(&mut self, n: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(n).ok()?..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(n);
            }
        }
        None
    }

    /// The type of the next field of a structure, 0 at its end; `id` becomes its number.
    fn field(&mut self, id: &mut u64) -> Option<u8> {
        let byte = self.byte()?;
        match (byte & 0x0f, byte >> 4) {
            (0, _) => return Some(0),
            (_, 0) => *id = self.varint()? / 2,
            (_, more) => *id += u64::from(more),
        }
        Some(byte & 0x0f)
    }

    fn list(&mut self) -> Option<(u64, u8)> {
        let byte = self.byte()?;
        let count = match byte >> 4 {
            15 => self.varint()?,
            few => u64::from(few),
        };
        Some((count, byte & 0x0f))
    }

    /// Passes over a column; returns how many children it says it has.
    fn children(&mut self) -> Option<u64> {
        let (mut id, mut children) = (0, 0);
        loop {
            match (self.field(&mut id)?, id) {
                (0, _) => return Some(children),
                // Zigzag; what is negative becomes far too many.
                (I32, 5) => {
                    let n = self.varint()?;
                    children = if n % 2 == 0 { n / 2 } else { u64::MAX };
                }
                (kind, _) => self.skip(kind, 0)?,
            }
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match kind {
            // The type is the value.
            1 | 2 => Some(()),
            3 => self.over(1),
            4..=6 => self.varint().map(drop),
            7 => self.over(8),
            8 => {
                let n = self.varint()?;
                self.over(n)
            }
            9 | 10 => {
                let (count, kind) = self.list()?;
                (0..count).try_for_each(|_| self.element(kind, depth))
            }
            11 => {
                let count = self.varint()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                (0..count).try_for_each(|_| {
                    self.element(kinds >> 4, depth)?;
                    self.element(kinds & 0x0f, depth)
                })
            }
            12 => {
                let mut id = 0;
                loop {
                    match self.field(&mut id)? {
                        0 => return Some(()),
                        kind => self.skip(kind, depth + 1)?,
                    }
                }
            }
            _ => None,
        }
    }

    /// In lists and maps a truth value has its byte.
    fn element(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            1 | 2 => self.over(1),
            kind => self.skip(kind, depth + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer of columns with so many children each.
    fn footer(children: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x15, 2, 0x19, 0xfc, children.len() as u8];
        for n in children {
            // Field 4 is a name, field 5 the number of children.
            bytes.extend([0x48, 1, b'x', 0x15, n * 2, 0]);
        }
        bytes.push(0);
        bytes
    }

    #[test]
    fn only_trees_that_are_not_deep_are_sound() {
        assert_eq!(sound(&footer(&[2, 0, 1, 0])), Some(true));
        assert_eq!(sound(&footer(&[2, 0])), Some(false));
        assert_eq!(sound(&footer(&[1, 0, 0])), Some(false));
        assert_eq!(sound(&footer(&[60])), Some(false));
        let deep: Vec<u8> = [vec![1; 40], vec![0]].concat();
        assert_eq!(sound(&footer(&deep)), Some(false));
        assert_eq!(sound(&footer(&[2, 0, 1, 0])[..9]), None);
        assert_eq!(sound(&[]), None);
    }
}
