//! The head of a GGUF file, version 3: metadata, and where the tensors behind it lie.

use compute::blocks::BlockType;

use super::{Contents, Kind, Value, type_number};

/// Where tensors begin: multiples of so many bytes.
const ALIGNMENT: u64 = 32;

/// A value of metadata, to be written.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // they are what they are called
pub enum Item {
    U32(u32),
    U64(u64),
    I64(i64),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// An array as it lies in a file.
    Array {
        kind: Kind,
        count: usize,
        bytes: Vec<u8>,
    },
}

impl Item {
    /// A value of a file that was read; `file`: its bytes. Numbers take the types that llama.cpp expects.
    pub fn of(value: &Value, file: &[u8]) -> Item {
        match value {
            Value::Unsigned(n) => u32::try_from(*n).map_or(Item::U64(*n), Item::U32),
            Value::Signed(n) => Item::I64(*n),
            Value::Float(x) => Item::F32(*x as f32),
            Value::Bool(b) => Item::Bool(*b),
            Value::String(text) => Item::Text(text.clone()),
            Value::Array { kind, count, bytes } => {
                Item::Array { kind: *kind, count: *count, bytes: file[bytes.clone()].to_vec() }
            }
        }
    }

    /// As the reader would give it, but for arrays, which it leaves in the file.
    fn value(&self) -> Option<Value> {
        Some(match self {
            Item::U32(n) => Value::Unsigned((*n).into()),
            Item::U64(n) => Value::Unsigned(*n),
            Item::I64(n) => Value::Signed(*n),
            Item::F32(x) => Value::Float((*x).into()),
            Item::Bool(b) => Value::Bool(*b),
            Item::Text(text) => Value::String(text.clone()),
            _ => return None,
        })
    }

    fn put(&self, out: &mut Vec<u8>) {
        let mut kind = |kind: Kind| number(kind as u32, out);
        match self {
            Item::U32(n) => {
                kind(Kind::U32);
                number(*n, out);
            }
            Item::U64(n) => {
                kind(Kind::U64);
                out.extend(n.to_le_bytes());
            }
            Item::I64(n) => {
                kind(Kind::I64);
                out.extend(n.to_le_bytes());
            }
            Item::F32(x) => {
                kind(Kind::F32);
                out.extend(x.to_le_bytes());
            }
            Item::Bool(b) => {
                kind(Kind::Bool);
                out.push(u8::from(*b));
            }
            Item::Text(text) => {
                kind(Kind::String);
                string(text, out);
            }
            Item::Texts(list) => {
                array(Kind::String, list.len(), out);
                list.iter().for_each(|text| string(text, out));
            }
            Item::I32s(list) => {
                array(Kind::I32, list.len(), out);
                out.extend(list.iter().flat_map(|n| n.to_le_bytes()));
            }
            Item::F32s(list) => {
                array(Kind::F32, list.len(), out);
                out.extend(list.iter().flat_map(|x| x.to_le_bytes()));
            }
            Item::Array { kind, count, bytes } => {
                array(*kind, *count, out);
                out.extend(bytes);
            }
        }
    }
}

fn number(n: u32, out: &mut Vec<u8>) {
    out.extend(n.to_le_bytes());
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn array(kind: Kind, count: usize, out: &mut Vec<u8>) {
    number(Kind::Array as u32, out);
    number(kind as u32, out);
    out.extend((count as u64).to_le_bytes());
}

/// What stands in front of the tensors.
#[derive(Clone, Debug, Default)]
pub struct Head {
    items: Vec<(String, Item)>,
    tensors: Vec<(String, Vec<usize>, BlockType)>,
}

impl Head {
    /// Adds a value, or puts it in place of one.
    pub fn set(&mut self, key: impl Into<String>, item: Item) {
        let key = key.into();
        match self.items.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = item,
            None => self.items.push((key, item)),
        }
    }

    /// Adds all of another's.
    pub fn append(&mut self, other: Head) {
        other.items.into_iter().for_each(|(key, item)| self.set(key, item));
        self.tensors.extend(other.tensors);
    }

    /// Whether there is a value.
    pub fn has(&self, key: &str) -> bool {
        self.items.iter().any(|(known, _)| known == key)
    }

    /// Adds a tensor; `shape` as everywhere here, the longest stride first.
    pub fn tensor(&mut self, name: impl Into<String>, shape: Vec<usize>, kind: BlockType) {
        self.tensors.push((name.into(), shape, kind));
    }

    /// The single values, as the reader would find them.
    pub fn contents(&self) -> Contents {
        let values = self.items.iter().filter_map(|(key, item)| Some((key.clone(), item.value()?)));
        Contents { metadata: values.collect(), ..Contents::default() }
    }

    /// The bytes of the head, up to where the first tensor begins. Each tensor's bytes follow, in
    /// order, each with [`padding`] behind.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        number(3, &mut out);
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.items.len() as u64).to_le_bytes());
        for (key, item) in &self.items {
            string(key, &mut out);
            item.put(&mut out);
        }
        let mut offset = 0u64;
        for (name, shape, kind) in &self.tensors {
            string(name, &mut out);
            number(shape.len() as u32, &mut out);
            shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
            number(type_number(*kind), &mut out);
            out.extend(offset.to_le_bytes());
            let len = bytes_of(shape, *kind);
            offset += len + padding(len);
        }
        out.resize(out.len() + padding(out.len() as u64) as usize, 0);
        out
    }
}

/// Bytes of a tensor whose rows are whole blocks.
pub(crate) fn bytes_of(shape: &[usize], kind: BlockType) -> u64 {
    kind.bytes_of(shape.iter().map(|n| *n as u64).product()).unwrap_or_default()
}

/// Zeros behind a tensor of so many bytes.
pub(crate) fn padding(len: u64) -> u64 {
    len.next_multiple_of(ALIGNMENT) - len
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_reader_finds_what_was_written() {
        let mut head = Head::default();
        head.set("a.number", Item::U32(7));
        head.set("a.large", Item::U64(1 << 40));
        head.set("a.negative", Item::I64(-3));
        head.set("a.fraction", Item::F32(0.1));
        head.set("a.truth", Item::Bool(true));
        head.set("a.text", Item::Text("old".into()));
        head.set("a.text", Item::Text("new é".into()));
        head.set("texts", Item::Texts(vec!["".into(), "two".into()]));
        head.set("numbers", Item::I32s(vec![-1, 2]));
        head.set("fractions", Item::F32s(vec![0.5]));
        head.tensor("matrix", vec![3, 32], BlockType::Q8_0);
        head.tensor("vector", vec![5], BlockType::F32);
        let mut file = head.bytes();
        let start = file.len();
        assert_eq!(start % 32, 0);
        file.extend([1; 3 * 34]);
        file.resize(file.len() + padding(3 * 34) as usize, 0);
        file.extend([2; 20]);
        let contents = Contents::read(&file).unwrap();
        for (key, value) in head.contents().metadata {
            assert_eq!(contents.metadata[&key], value, "{key}");
        }
        assert_eq!(contents.metadata["a.text"].as_str(), Some("new é"));
        assert_eq!(contents.strings(&file, "texts").unwrap(), ["", "two"]);
        assert_eq!(contents.numbers(&file, "numbers").unwrap(), [-1.0, 2.0]);
        let (matrix, vector) = (&contents.tensors["matrix"], &contents.tensors["vector"]);
        assert_eq!((&matrix.shape[..], matrix.bytes.start), (&[3, 32][..], start));
        assert_eq!(file[vector.bytes.clone()], [2; 20]);
        // A value that was read is written as it was.
        let mut copy = Head::default();
        for (key, value) in &contents.metadata {
            copy.set(key.as_str(), Item::of(value, &file));
        }
        let bytes = copy.bytes();
        let again = Contents::read(&bytes).unwrap();
        assert_eq!(again.strings(&bytes, "texts"), contents.strings(&file, "texts"));
        assert_eq!(again.numbers(&bytes, "fractions").unwrap(), [0.5]);
        assert_eq!(again.metadata["a.large"], contents.metadata["a.large"]);
    }
}
