//! GGUF files: metadata and quantised tensors in one file, read where it lies in memory.
//!
//! Format: ggml's `docs/gguf.md`, versions 2 and 3, little-endian. Every count, length, offset and
//! shape is checked against the bytes that are there before memory is taken for it; arrays stay
//! in the file and are read when they are asked for.

mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use compute::blocks::BlockType;
use thiserror::Error;

pub(crate) use write::padding;
pub use write::{Head, Item};

/// Deepest arrays of arrays.
const DEEPEST: usize = 4;
/// Most values of metadata.
const VALUES: usize = 1 << 16;
/// Most dimensions of a tensor.
const DIMENSIONS: u32 = 4;

/// Why a file can't be used: where, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not a valid GGUF file: byte {at}: {what}")]
pub struct GgufError {
    /// Bytes from the start.
    pub at: usize,
    /// What is wrong there.
    pub what: String,
}

/// The types of metadata, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are what they are called
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::String,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    /// The least bytes of a value.
    fn least(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::String => 8,
            Kind::Array => 12,
        }
    }
}

/// A value of metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned number.
    Unsigned(u64),
    /// Any signed number.
    Signed(i64),
    /// Any number with a fraction.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    String(String),
    /// Values of one type, that stay in the file.
    Array {
        /// Their type.
        kind: Kind,
        /// How many.
        count: usize,
        /// Where they lie.
        bytes: Range<usize>,
    },
}

impl Value {
    /// A number that isn't negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => (*n).try_into().ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            Value::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// Text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// True or false.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }
}

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// How its elements are stored.
    pub kind: BlockType,
    /// Its shape, the longest stride first as everywhere here (in the file it is the other way).
    pub shape: Vec<usize>,
    /// Where its bytes lie in the file.
    pub bytes: Range<usize>,
}

/// What stands in a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Contents {
    /// Reads a file's head. `bytes`: the whole file.
    ///
    /// # Errors
    /// [`GgufError`].
    pub fn read(bytes: &[u8]) -> Result<Contents, GgufError> {
        let mut r = Reader { bytes, at: 0 };
        if r.take(4, "the magic number")? != b"GGUF" {
            return Err(GgufError { at: 0, what: "it does not begin with GGUF".into() });
        }
        let version = r.u32("the version")?;
        if !(2..=3).contains(&version) {
            return r.fail(4, format!("version {version} is not read; 2 and 3 are"));
        }
        // A tensor takes 32 bytes at least: name, dimensions, type, offset; a value 13.
        let tensors = r.count("tensors", 32)?;
        let values = r.count("values", 13)?;
        if values > VALUES {
            return r.fail(16, format!("{values} values of metadata; at most {VALUES} are read"));
        }
        let mut contents = Contents::default();
        for _ in 0..values {
            let at = r.at;
            let key = r.string("a key")?;
            let kind = r.kind()?;
            let value = r.value(kind, &key, 0)?;
            if contents.metadata.insert(key.clone(), value).is_some() {
                return r.fail(at, format!("the key {key:?} is there twice"));
            }
        }
        let alignment = match contents.metadata.get("general.alignment") {
            None => 32,
            Some(value) => match value.as_u64() {
                Some(n) if n.is_power_of_two() && (8..=1 << 20).contains(&n) => n as usize,
                _ => return r.fail(r.at, format!("general.alignment is {value:?}")),
            },
        };
        let mut found = Vec::new();
        for _ in 0..tensors {
            found.push(r.tensor(alignment)?);
        }
        let start = r.at.next_multiple_of(alignment);
        let mut taken = BTreeSet::new();
        for Found { at, name, kind, shape, offset, len } in found {
            let end = start.checked_add(offset).and_then(|from| from.checked_add(len));
            let Some(end) = end.filter(|end| *end <= bytes.len()) else {
                let what = format!(
                    "tensor {name}: {len} bytes at {offset} end after the file, which has {} from there",
                    bytes.len().saturating_sub(start.saturating_add(offset))
                );
                return r.fail(at, what);
            };
            let info = TensorInfo { kind, shape, bytes: end - len..end };
            taken.insert((info.bytes.start, info.bytes.end));
            if contents.tensors.insert(name.clone(), info).is_some() {
                return r.fail(at, format!("the tensor {name:?} is there twice"));
            }
        }
        let mut last = 0;
        for (from, to) in taken {
            if from < last {
                return r.fail(from, "two tensors share bytes".into());
            }
            last = to;
        }
        if contents.tensors.len() != tensors {
            return r.fail(r.at, "two tensors share bytes".into());
        }
        Ok(contents)
    }

    /// The texts of an array of texts.
    ///
    /// # Errors
    /// [`GgufError`] if the key is missing or something else.
    pub fn strings<'a>(&self, bytes: &'a [u8], key: &str) -> Result<Vec<&'a str>, GgufError> {
        let (count, mut r) = self.array(bytes, key, &[Kind::String])?;
        (0..count).map(|_| r.text(key)).collect()
    }

    /// The numbers of an array of numbers of four or eight bytes.
    ///
    /// # Errors
    /// [`GgufError`] if the key is missing or something else.
    pub fn numbers(&self, bytes: &[u8], key: &str) -> Result<Vec<f64>, GgufError> {
        // Not the short ones: they would take many times their bytes.
        let numbers = [Kind::U32, Kind::I32, Kind::F32, Kind::U64, Kind::I64, Kind::F64];
        let kind = match self.metadata.get(key) {
            Some(Value::Array { kind, .. }) => *kind,
            _ => Kind::U8,
        };
        let (count, mut r) = self.array(bytes, key, &numbers)?;
        let number = |v: Value| v.as_f64().unwrap_or_default();
        (0..count).map(|_| r.value(kind, key, 0).map(number)).collect()
    }

    fn array<'a>(
        &self,
        bytes: &'a [u8],
        key: &str,
        kinds: &[Kind],
    ) -> Result<(usize, Reader<'a>), GgufError> {
        let fail = |at, what| Err(GgufError { at, what });
        match self.metadata.get(key) {
            Some(Value::Array { kind, count, bytes: place }) if kinds.contains(kind) => {
                Ok((*count, Reader { bytes: &bytes[..place.end], at: place.start }))
            }
            Some(Value::Array { kind, bytes, .. }) => {
                fail(bytes.start, format!("{key} is an array of {kind:?}"))
            }
            Some(other) => fail(0, format!("{key} is no array but {other:?}")),
            None => fail(0, format!("there is no {key}")),
        }
    }
}

/// A tensor's entry.
struct Found {
    at: usize,
    name: String,
    kind: BlockType,
    shape: Vec<usize>,
    offset: usize,
    len: usize,
}

/// The number of a type in files.
fn type_number(kind: BlockType) -> u32 {
    use BlockType::*;
    match kind {
        F32 => 0,
        F16 => 1,
        Q4_0 => 2,
        Q4_1 => 3,
        Q5_0 => 6,
        Q5_1 => 7,
        Q8_0 => 8,
        Q2_K => 10,
        Q3_K => 11,
        Q4_K => 12,
        Q5_K => 13,
        Q6_K => 14,
        IQ4_NL => 20,
        IQ4_XS => 23,
        BF16 => 30,
    }
}

/// The type of a number in the file.
fn block_type(number: u32) -> Option<BlockType> {
    BlockType::ALL.into_iter().find(|kind| type_number(*kind) == number)
}

/// Bytes from some place on.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn fail<T>(&self, at: usize, what: String) -> Result<T, GgufError> {
        Err(GgufError { at, what })
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return self.fail(self.at, format!("the file ends in {what}, {n} bytes long"));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, what)?);
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.number(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.number(what).map(u64::from_le_bytes)
    }

    /// A count of things that take `least` bytes each.
    fn count(&mut self, what: &str, least: usize) -> Result<usize, GgufError> {
        let (at, n) = (self.at, self.u64(what)?);
        let left = (self.bytes.len() - self.at) / least;
        match usize::try_from(n) {
            Ok(n) if n <= left => Ok(n),
            _ => self.fail(at, format!("{n} {what} don't fit the file")),
        }
    }

    fn text(&mut self, what: &str) -> Result<&'a str, GgufError> {
        let len = self.count("bytes of text", 1)?;
        let at = self.at;
        match std::str::from_utf8(self.take(len, what)?) {
            Ok(text) => Ok(text),
            Err(e) => self.fail(at + e.valid_up_to(), format!("{what} is not UTF-8")),
        }
    }

    fn string(&mut self, what: &str) -> Result<String, GgufError> {
        self.text(what).map(String::from)
    }

    fn kind(&mut self) -> Result<Kind, GgufError> {
        let (at, n) = (self.at, self.u32("a type")?);
        match Kind::ALL.get(n as usize) {
            Some(kind) => Ok(*kind),
            None => self.fail(at, format!("{n} is not a type of metadata")),
        }
    }

    fn value(&mut self, kind: Kind, key: &str, depth: usize) -> Result<Value, GgufError> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(self.number(key)?).into()),
            Kind::I8 => Value::Signed(i8::from_le_bytes(self.number(key)?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(self.number(key)?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(self.number(key)?).into()),
            Kind::U32 => Value::Unsigned(self.u32(key)?.into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(self.number(key)?).into()),
            Kind::F32 => Value::Float(f32::from_le_bytes(self.number(key)?).into()),
            Kind::U64 => Value::Unsigned(self.u64(key)?),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.number(key)?)),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.number(key)?)),
            Kind::String => Value::String(self.string(key)?),
            Kind::Bool => match self.number::<1>(key)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return self.fail(self.at - 1, format!("{key} is {other}, no truth")),
            },
            Kind::Array => {
                if depth == DEEPEST {
                    return self.fail(self.at, format!("{key} is nested more than {DEEPEST} deep"));
                }
                let kind = self.kind()?;
                let count = self.count("elements", kind.least())?;
                let start = self.at;
                match kind {
                    Kind::String => {
                        for _ in 0..count {
                            self.text(key)?;
                        }
                    }
                    Kind::Array => {
                        for _ in 0..count {
                            self.value(kind, key, depth + 1)?;
                        }
                    }
                    // Their number was checked.
                    _ => drop(self.take(count * kind.least(), key)?),
                }
                Value::Array { kind, count, bytes: start..self.at }
            }
        })
    }

    fn tensor(&mut self, alignment: usize) -> Result<Found, GgufError> {
        let at = self.at;
        let name = self.string("a tensor's name")?;
        let fail = |what: String| Err(GgufError { at, what: format!("tensor {name}: {what}") });
        let dimensions = self.u32("a tensor's dimensions")?;
        if dimensions == 0 || dimensions > DIMENSIONS {
            return fail(format!("{dimensions} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64("a tensor's shape")?);
        }
        let number = self.u32("a tensor's type")?;
        let offset = self.u64("a tensor's offset")?;
        let Some(kind) = block_type(number) else {
            return fail(format!("its type {number} is not read"));
        };
        let row = shape[0];
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let bytes = elements.and_then(|n| kind.bytes_of(n));
        let (Some(bytes), Some(_)) = (bytes, kind.bytes_of(row)) else {
            return fail(format!("a shape of {shape:?} is not made of {} blocks", kind.name()));
        };
        if bytes == 0 {
            return fail(format!("a shape of {shape:?} has no elements"));
        }
        let (Ok(offset), Ok(len)) = (usize::try_from(offset), usize::try_from(bytes)) else {
            return fail("it is larger than memory can be".into());
        };
        if !offset.is_multiple_of(alignment) {
            return fail(format!("its offset {offset} is no multiple of {alignment}"));
        }
        let mut sizes = Vec::new();
        for d in shape.iter().rev() {
            match usize::try_from(*d) {
                Ok(d) => sizes.push(d),
                Err(_) => return fail("it is larger than memory can be".into()),
            }
        }
        Ok(Found { at, name, kind, shape: sizes, offset, len })
    }
}

#[cfg(test)]
mod tests;
