//! Pages as WARC 1.1 records (ISO 28500), each packed by itself, in files that are only appended to.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use store::{StoreError, crash};
use url::Url;

use crate::client::Answer;

/// A file of this size is followed by another, bytes.
const FILE_BYTES: u64 = 1 << 30;

/// The record of an answer.
///
/// # Errors
/// None that memory doesn't have.
pub fn response(url: &Url, time: &str, answer: &Answer) -> io::Result<Vec<u8>> {
    let mut block = format!("HTTP/1.1 {} OK\r\n", answer.status).into_bytes();
    // The body is kept without chunks.
    let changed = |name: &str| matches!(name, "transfer-encoding" | "content-length" | "trailer");
    for (name, value) in answer.headers.iter().filter(|(name, _)| !changed(name)) {
        write!(block, "{name}: {}\r\n", value.replace(['\r', '\n'], " "))?;
    }
    write!(block, "content-length: {}\r\n\r\n", answer.body.len())?;
    block.extend_from_slice(&answer.body);
    let digest = store::hash_bytes(&answer.body);
    let head = format!(
        "WARC-Target-URI: {url}\r\nWARC-Payload-Digest: blake3:{digest}\r\n\
         Content-Type: application/http;msgtype=response\r\n"
    );
    record("response", time, &head, &block)
}

/// The record that begins a file.
fn info(time: &str, user_agent: &str) -> io::Result<Vec<u8>> {
    let block = format!(
        "software: homegrown/{}\r\nformat: WARC File Format 1.1\r\nhttp-header-user-agent: \
         {user_agent}\r\nrobots: obey\r\n",
        env!("CARGO_PKG_VERSION")
    );
    record("warcinfo", time, "Content-Type: application/warc-fields\r\n", block.as_bytes())
}

fn record(kind: &str, time: &str, head: &str, block: &[u8]) -> io::Result<Vec<u8>> {
    let id = store::hash_bytes(format!("{kind}\n{time}\n{head}\n{}", block.len()).as_bytes());
    // A UUID of version 8: bits of our own choice.
    let id = id.to_string();
    let (a, b, c, d, e) = (&id[..8], &id[8..12], &id[13..16], &id[17..20], &id[20..32]);
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    write!(
        packed,
        "WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{a}-{b}-8{c}-8{d}-{e}>\r\n\
         WARC-Date: {time}\r\n{head}Content-Length: {}\r\n\r\n",
        block.len()
    )?;
    packed.write_all(block)?;
    packed.write_all(b"\r\n\r\n")?;
    packed.finish()
}

/// The answer of a record that [`response`] made.
fn answer(record: &[u8]) -> Option<Answer> {
    let head = |bytes: &[u8]| bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
    let http = &record[head(record)?..];
    let end = head(http)?;
    let lines = std::str::from_utf8(&http[..end]).ok()?.lines().skip(1);
    let header = |line: &str| line.split_once(": ").map(|(n, v)| (n.to_string(), v.to_string()));
    let headers: Vec<_> = lines.filter_map(header).collect();
    let mut answer = Answer { status: 200, headers, body: Vec::new() };
    let length: usize = answer.header("content-length")?.parse().ok()?;
    answer.body = http.get(end..end.checked_add(length)?)?.to_vec();
    Some(answer)
}

/// The name of a file.
fn name(number: u32) -> String {
    format!("pages-{number:05}.warc.gz")
}

/// Appends records to the files of a folder.
pub struct Writer {
    dir: PathBuf,
    number: u32,
    /// The file that is appended to, and its bytes.
    file: Option<(File, u64)>,
    user_agent: String,
}

impl Writer {
    /// Goes on after the records that are known of: `ends` are the files that hold any and where the
    /// last of them ends. What lies behind was not finished, and is cut off.
    ///
    /// # Errors
    /// [`StoreError`]: the system refuses; records are missing.
    pub fn open(
        dir: &Path,
        ends: &[(String, u64)],
        user_agent: &str,
    ) -> Result<Writer, StoreError> {
        let (dir, user_agent) = (dir.to_path_buf(), user_agent.to_string());
        let mut writer = Writer { dir, number: 0, file: None, user_agent };
        while let Some((_, end)) = ends.iter().find(|(n, _)| *n == name(writer.number)) {
            let path = writer.path();
            let open = || File::options().read(true).write(true).open(&path);
            let mut file = open().map_err(StoreError::io("write", &path))?;
            let length = file.metadata().map_err(StoreError::io("read", &path))?.len();
            if length < *end {
                let reason = format!("it has {length} bytes, its records {end}");
                return Err(StoreError::Damaged { path, reason });
            }
            if length > *end {
                file.set_len(*end).map_err(StoreError::io("cut", &path))?;
            }
            file.seek(SeekFrom::End(0)).map_err(StoreError::io("write", &path))?;
            (writer.file, writer.number) = (Some((file, *end)), writer.number + 1);
        }
        writer.number = writer.number.saturating_sub(1);
        Ok(writer)
    }

    fn path(&self) -> PathBuf {
        self.dir.join(name(self.number))
    }

    /// Reads an answer that was stored.
    ///
    /// # Errors
    /// [`StoreError`]: the system refuses; it is no record of ours.
    pub fn read(&self, file: &str, offset: u64, length: u64) -> Result<Answer, StoreError> {
        let path = self.dir.join(file);
        let mut packed = File::open(&path).map_err(StoreError::io("read", &path))?;
        packed.seek(SeekFrom::Start(offset)).map_err(StoreError::io("read", &path))?;
        let mut record = Vec::new();
        GzDecoder::new(packed.take(length))
            .read_to_end(&mut record)
            .map_err(StoreError::io("unpack a record of", &path))?;
        answer(&record).ok_or_else(|| {
            let reason = format!("the record at byte {offset} is no answer");
            StoreError::Damaged { path, reason }
        })
    }

    /// Appends a record, durably: which file it is in, and from which byte on.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn append(&mut self, record: &[u8], time: &str) -> Result<(String, u64), StoreError> {
        if self.file.as_ref().is_some_and(|(_, bytes)| *bytes >= FILE_BYTES) {
            (self.file, self.number) = (None, self.number + 1);
        }
        let path = self.path();
        let broken = || StoreError::io("write", &path);
        if self.file.is_none() {
            let info = info(time, &self.user_agent).map_err(broken())?;
            store::write_atomic(&path, &info)?;
            let file = File::options().append(true).open(&path).map_err(broken())?;
            self.file = Some((file, info.len() as u64));
        }
        let Some((file, bytes)) = &mut self.file else {
            return Err(broken()(io::Error::other("the file is not open")));
        };
        crash::point();
        let half = record.len() / 2;
        file.write_all(&record[..half]).map_err(broken())?;
        crash::point();
        file.write_all(&record[half..]).map_err(broken())?;
        file.sync_data().map_err(broken())?;
        crash::point();
        let offset = *bytes;
        *bytes += record.len() as u64;
        Ok((name(self.number), offset))
    }
}
