//! Pages, unpacked with the same care as all else: what they say of their size is not believed.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, RowGroupReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

/// A row group whose pages are [`Pages`].
pub struct Group<'a, R> {
    metadata: &'a RowGroupMetaData,
    source: Arc<R>,
    most: u64,
}

impl<'a, R> Group<'a, R> {
    /// Pages of at most so many bytes.
    pub fn new(metadata: &'a RowGroupMetaData, source: Arc<R>, most: u64) -> Group<'a, R> {
        Group { metadata, source, most }
    }
}

impl<R: ChunkReader + 'static> RowGroupReader for Group<'_, R> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.metadata
    }

    fn num_columns(&self) -> usize {
        self.metadata.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let column = self.metadata.column(i);
        // Pages come as they are in the file.
        let packed = column.clone().into_builder().set_compression(Compression::UNCOMPRESSED);
        let rows = usize::try_from(self.metadata.num_rows())?;
        let inner = SerializedPageReader::new(self.source.clone(), &packed.build()?, rows, None)?;
        Ok(Box::new(Pages { inner, packing: column.compression(), most: self.most }))
    }

    fn get_column_bloom_filter(&self, _: usize) -> Option<&Sbbf> {
        None
    }

    fn get_row_iter(&self, columns: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(columns, self)
    }
}

/// The pages of a column, unpacked and checked.
struct Pages<R: ChunkReader> {
    inner: SerializedPageReader<R>,
    packing: Compression,
    most: u64,
}

impl<R: ChunkReader> Pages<R> {
    fn unpacked(&self, page: Page) -> Result<Page> {
        Ok(match page {
            Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding,
                rep_level_encoding,
                statistics,
            } => {
                readable(encoding)?;
                let buf = self.unpack(&buf, 0)?;
                Page::DataPage {
                    buf,
                    num_values,
                    encoding,
                    def_level_encoding,
                    rep_level_encoding,
                    statistics,
                }
            }
            Page::DataPageV2 {
                buf,
                num_values,
                encoding,
                num_nulls,
                num_rows,
                def_levels_byte_len,
                rep_levels_byte_len,
                is_compressed,
                statistics,
            } => {
                readable(encoding)?;
                let plain = u64::from(def_levels_byte_len) + u64::from(rep_levels_byte_len);
                let buf = match is_compressed {
                    true => self.unpack(&buf, plain as usize)?,
                    false => buf,
                };
                Page::DataPageV2 {
                    buf,
                    num_values,
                    encoding,
                    num_nulls,
                    num_rows,
                    def_levels_byte_len,
                    rep_levels_byte_len,
                    is_compressed: false,
                    statistics,
                }
            }
            Page::DictionaryPage { buf, num_values, encoding, is_sorted } => {
                let buf = self.unpack(&buf, 0)?;
                // Room is made for all that it says it has; each takes a byte at least.
                if num_values as usize > buf.len() {
                    let words =
                        format!("a dictionary of {num_values} values in {} bytes", buf.len());
                    return Err(ParquetError::General(words));
                }
                Page::DictionaryPage { buf, num_values, encoding, is_sorted }
            }
        })
    }

    /// Unpacks what comes after the first `plain` bytes.
    fn unpack(&self, page: &Bytes, plain: usize) -> Result<Bytes> {
        if self.packing == Compression::UNCOMPRESSED {
            return Ok(page.clone());
        }
        if plain > page.len() {
            return Err(ParquetError::EOF("a page is shorter than its levels".into()));
        }
        let (levels, packed) = page.split_at(plain);
        let mut whole = levels.to_vec();
        if !packed.is_empty() {
            self.decode(packed, &mut whole)?;
        }
        match whole.len() as u64 > self.most {
            true => Err(self.large()),
            false => Ok(Bytes::from(whole)),
        }
    }

    fn decode(&self, packed: &[u8], into: &mut Vec<u8>) -> Result<()> {
        let wrong = |e: snap::Error| ParquetError::General(e.to_string());
        let decoder: Box<dyn Read + '_> = match self.packing {
            Compression::SNAPPY => {
                if snap::raw::decompress_len(packed).map_err(wrong)? as u64 > self.most {
                    return Err(self.large());
                }
                into.extend(snap::raw::Decoder::new().decompress_vec(packed).map_err(wrong)?);
                return Ok(());
            }
            Compression::GZIP(_) => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            Compression::ZSTD(_) => Box::new(zstd::Decoder::with_buffer(packed)?),
            other => {
                let words = format!("packed with {other:?}; pack it with zstd, snappy or gzip");
                return Err(ParquetError::NYI(words));
            }
        };
        decoder.take(self.most + 1).read_to_end(into)?;
        Ok(())
    }

    fn large(&self) -> ParquetError {
        ParquetError::NYI(format!("a page of more than {} bytes", self.most))
    }
}

/// Refuses encodings whose decoders make room for whatever number they find.
fn readable(encoding: Encoding) -> Result<()> {
    match encoding {
        Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY => {
            let words = format!("encoded as {encoding}; write it with plain or dictionary pages");
            Err(ParquetError::NYI(words))
        }
        _ => Ok(()),
    }
}

impl<R: ChunkReader> Iterator for Pages<R> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

impl<R: ChunkReader> PageReader for Pages<R> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.inner.get_next_page()?.map(|page| self.unpacked(page)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.inner.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.inner.skip_next_page()
    }
}
