//! Documents to rows: a column a field, packed with zstd.

use std::io;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use store::{AtomicFile, StoreError};

use crate::Document;

/// The fields of a document that are written as one, in the order in which they are.
const SCHEMA: &str = "message documents {
    REQUIRED BYTE_ARRAY text (UTF8);
    REQUIRED BYTE_ARRAY source (UTF8);
    REQUIRED BYTE_ARRAY format (UTF8);
    OPTIONAL BYTE_ARRAY title (UTF8);
    OPTIONAL BYTE_ARRAY url (UTF8);
    OPTIONAL BYTE_ARRAY time (UTF8);
    OPTIONAL BYTE_ARRAY licence (UTF8);
    OPTIONAL BYTE_ARRAY language (UTF8);
    REQUIRED INT64 hidden_bytes;
}";
/// Bytes of text and number of documents that make a row group: what is held in memory.
const GROUP_BYTES: usize = 16 << 20;
const GROUP_ROWS: usize = 1 << 16;

/// A file in the making.
pub struct Writer {
    file: SerializedFileWriter<AtomicFile>,
    group: Vec<Document>,
    bytes: usize,
}

impl Writer {
    /// Starts a file.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn create(path: &Path) -> Result<Writer, StoreError> {
        let failed = |e: ParquetError| StoreError::io("write", path)(io::Error::other(e));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).map_err(failed)?))
            .set_column_dictionary_enabled(ColumnPath::from("text"), false)
            .set_statistics_enabled(EnabledStatistics::None)
            .build();
        let schema = Arc::new(parse_message_type(SCHEMA).map_err(failed)?);
        let file = AtomicFile::create(path)?;
        let file = SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(failed)?;
        Ok(Writer { file, group: Vec::new(), bytes: 0 })
    }

    /// Adds a document.
    ///
    /// # Errors
    /// What the system says.
    pub fn push(&mut self, document: Document) -> io::Result<()> {
        self.bytes += document.text.len();
        self.group.push(document);
        if self.bytes >= GROUP_BYTES || self.group.len() >= GROUP_ROWS {
            self.end_group()?;
        }
        Ok(())
    }

    /// Ends the file and gives it its name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn commit(mut self, path: &Path) -> Result<(), StoreError> {
        let failed = || StoreError::io("write", path);
        self.end_group().map_err(failed())?;
        self.file.into_inner().map_err(|e| failed()(io::Error::other(e)))?.commit()
    }

    fn end_group(&mut self) -> io::Result<()> {
        if self.group.is_empty() {
            return Ok(());
        }
        let group = std::mem::take(&mut self.group);
        self.bytes = 0;
        let mut write = || -> Result<(), ParquetError> {
            let mut out = self.file.next_row_group()?;
            must(&mut out, group.iter().map(|d| d.text.as_bytes()))?;
            must(&mut out, group.iter().map(|d| d.source.as_bytes()))?;
            must(&mut out, group.iter().map(|d| d.format.name().as_bytes()))?;
            may(&mut out, group.iter().map(|d| &d.about.title))?;
            may(&mut out, group.iter().map(|d| &d.about.url))?;
            may(&mut out, group.iter().map(|d| &d.about.time))?;
            may(&mut out, group.iter().map(|d| &d.about.licence))?;
            may(&mut out, group.iter().map(|d| &d.about.language))?;
            let hidden: Vec<i64> = group.iter().map(|d| d.about.hidden_bytes as i64).collect();
            if let Some(mut column) = out.next_column()? {
                column.typed::<Int64Type>().write_batch(&hidden, None, None)?;
                column.close()?;
            }
            out.close().map(drop)
        };
        write().map_err(io::Error::other)
    }
}

type Group<'a> = SerializedRowGroupWriter<'a, AtomicFile>;

/// A column that each row has.
fn must<'a>(
    out: &mut Group<'_>,
    values: impl Iterator<Item = &'a [u8]>,
) -> Result<(), ParquetError> {
    let values: Vec<ByteArray> = values.map(|v| ByteArray::from(v.to_vec())).collect();
    let Some(mut column) = out.next_column()? else { return Ok(()) };
    column.typed::<ByteArrayType>().write_batch(&values, None, None)?;
    column.close()
}

/// A column that some rows have.
fn may<'a>(
    out: &mut Group<'_>,
    values: impl Iterator<Item = &'a Option<String>>,
) -> Result<(), ParquetError> {
    let values: Vec<_> = values.map(Option::as_ref).collect();
    let there: Vec<i16> = values.iter().map(|v| i16::from(v.is_some())).collect();
    let bytes = |v: &String| ByteArray::from(v.as_bytes().to_vec());
    let values: Vec<ByteArray> = values.into_iter().flatten().map(bytes).collect();
    let Some(mut column) = out.next_column()? else { return Ok(()) };
    column.typed::<ByteArrayType>().write_batch(&values, Some(&there), None)?;
    column.close()
}
