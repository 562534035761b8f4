//! Parquet: rows to records, and documents to rows.
//!
//! The crate below reads sound files well and trusts what they say of sizes. So the tree of columns
//! is looked at before it is read ([`footer`]), and pages are unpacked here ([`pages`]).

mod footer;
mod pages;
mod write;

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::reader::{ChunkReader, Length};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::{Type, TypePtr};
use serde_json::{Map, Number, Value};

use crate::formats::json;

pub use write::Writer;

/// What a file of rows says, a call each; `false` ends it.
pub enum Told {
    /// A row as a record.
    Row(Map<String, Value>),
    /// A row without any of the columns that are wanted.
    Nothing,
}

/// A file of rows: on disk, or in memory.
pub enum Source {
    /// On disk.
    File(File),
    /// In memory.
    Bytes(Vec<u8>),
}

/// Gives all rows to `see`, until it wants no more: the columns of the text and of what is known about
/// it ([`json::columns`]; `text` is the name that it is to have), or all, if `text` is none. No page
/// may be larger than `most` bytes.
///
/// # Errors
/// What is wrong with the file.
pub fn rows(
    source: Source,
    most: u64,
    text: Option<&str>,
    see: &mut dyn FnMut(Told) -> bool,
) -> Result<(), String> {
    match source {
        Source::File(file) => read(Bounded { inner: file, most }, most, text, see),
        Source::Bytes(bytes) => read(Bounded { inner: Bytes::from(bytes), most }, most, text, see),
    }
}

fn read<R: ChunkReader + 'static>(
    source: Bounded<R>,
    most: u64,
    text: Option<&str>,
    see: &mut dyn FnMut(Told) -> bool,
) -> Result<(), String> {
    footer::check(&source)?;
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&source).map_err(broken)?;
    let source = Arc::new(source);
    let schema = metadata.file_metadata().schema_descr().root_schema();
    let columns = match text {
        Some(text) => some_of(schema, text)?,
        None => None,
    };
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let group = pages::Group::new(group, source.clone(), most);
        let rows = RowIter::from_row_group(columns.clone(), &group)
            .map_err(|e| format!("row group {number}: {}", broken(e)))?;
        for row in rows {
            let row = row.map_err(|e| format!("row group {number}: {}", broken(e)))?;
            let record = record(row);
            let empty = record.values().all(Value::is_null);
            if !see(if empty { Told::Nothing } else { Told::Row(record) }) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The columns that are looked at, as a tree; none if that is all of them.
fn some_of(schema: &Type, text: &str) -> Result<Option<Type>, String> {
    let all = schema.get_fields();
    let names: Vec<&str> = all.iter().map(|field| field.name()).collect();
    let names = json::columns(&names, text)?;
    let some: Vec<TypePtr> = all.iter().filter(|f| names.contains(&f.name())).cloned().collect();
    if some.len() == all.len() {
        return Ok(None);
    }
    let tree = Type::group_type_builder(schema.name()).with_fields(some).build();
    tree.map(Some).map_err(broken)
}

/// What is wrong, in words.
fn broken(error: ParquetError) -> String {
    match error {
        // We could, but don't.
        ParquetError::NYI(words) => words,
        ParquetError::General(words) | ParquetError::EOF(words) => format!("broken: {words}"),
        other => format!("broken: {other}"),
    }
}

fn record(row: Row) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(&field))).collect()
}

fn value(field: &Field) -> Value {
    let float = |x: f64| Number::from_f64(x).map_or(Value::Null, Value::Number);
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(*b),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        Field::Float(x) => float(f64::from(*x)),
        Field::Double(x) => float(*x),
        Field::Str(text) => Value::String(text.clone()),
        // Old writers don't say which bytes are text.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_string()),
            Err(_) => Value::Null,
        },
        Field::Group(row) => {
            row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
        }
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let key = |field: &Field| match value(field) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            map.entries().iter().map(|(k, v)| (key(k), value(v))).collect()
        }
        // Times, dates, decimal numbers: as they are shown.
        other => Value::String(other.to_string()),
    }
}

/// A file of which no more than so many bytes are taken at once, whatever it says.
struct Bounded<R> {
    inner: R,
    most: u64,
}

impl<R: Length> Length for Bounded<R> {
    fn len(&self) -> u64 {
        self.inner.len()
    }
}

impl<R: ChunkReader> ChunkReader for Bounded<R> {
    type T = R::T;

    fn get_read(&self, start: u64) -> parquet::errors::Result<R::T> {
        self.inner.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let end = start.checked_add(length as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(ParquetError::EOF("it names bytes behind its end".into()));
        }
        if length as u64 > self.most {
            let words = format!("a page or table of {length} bytes; at most {}", self.most);
            return Err(ParquetError::General(words));
        }
        self.inner.get_bytes(start, length)
    }
}
