//! Whether a file is what the hub says it is.

use std::io::Read;
use std::path::Path;

use sha1::Digest;

use crate::Listed;

impl Listed {
    /// Its size, if the hub tells.
    pub(crate) fn bytes(&self) -> Option<u64> {
        self.lfs.as_ref().map(|l| l.size).or(self.size)
    }

    /// What is wrong with a file, if anything: its size, or its SHA-256 (large files), or Git's hash,
    /// the SHA-1 of `blob SIZE\0` and the content (small ones).
    pub(crate) fn fault(&self, path: &Path) -> std::io::Result<Option<String>> {
        let len = std::fs::metadata(path)?.len();
        if let Some(bytes) = self.bytes()
            && len != bytes
        {
            return Ok(Some(format!("{len} bytes instead of {bytes}")));
        }
        let (got, want) = match (&self.lfs, &self.blob) {
            (Some(large), _) => (hash(sha2::Sha256::new(), path)?, &large.sha256),
            (None, Some(blob)) if blob.len() == 40 => {
                let start = sha1::Sha1::new_with_prefix(format!("blob {len}\0"));
                (hash(start, path)?, blob)
            }
            _ => return Ok(None),
        };
        let same = got.eq_ignore_ascii_case(want);
        Ok((!same).then(|| format!("its hash is {got} instead of {want}")))
    }
}

/// The hash of what was taken in already and a file, in hexadecimal digits.
fn hash<D: Digest>(mut digest: D, path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        digest.update(&buffer[..n]);
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
