//! How a database is opened: its settings, its version, and the steps from one version to the next.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, Params, Row};

use crate::StoreError;

/// How long to wait for another writer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What SQLite says, with the file's name.
pub fn wrong(path: &Path) -> impl Fn(rusqlite::Error) -> StoreError {
    let path = path.to_path_buf();
    move |error| {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match error.sqlite_error_code() {
            Some(NotADatabase | DatabaseCorrupt) => {
                StoreError::Damaged { path: path.clone(), reason: error.to_string() }
            }
            _ => StoreError::io("use the database", &path)(std::io::Error::other(error)),
        }
    }
}

/// Opens a database, made anew if it isn't there. What is committed is on the disk, `durable`ly or as soon as the
/// next durable commit is; the end of a process alone never loses it. `steps` lead from version to version.
///
/// # Errors
/// A file that can't be opened, is no database, or is of a later version than this program knows.
pub fn open(path: &Path, durable: bool, steps: &[&str]) -> Result<Connection, StoreError> {
    let wrong = wrong(path);
    let mut db = Connection::open(path).map_err(&wrong)?;
    db.busy_timeout(PATIENCE).map_err(&wrong)?;
    let settings = || -> rusqlite::Result<()> {
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", if durable { "FULL" } else { "NORMAL" })?;
        db.pragma_update(None, "foreign_keys", true)?;
        // What is deleted is gone from the file, too.
        db.pragma_update(None, "secure_delete", true)
    };
    settings().map_err(&wrong)?;
    let known = steps.len() as i64;
    let mut migrate = || -> rusqlite::Result<i64> {
        let all = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let version: i64 = all.pragma_query_value(None, "user_version", |row| row.get(0))?;
        for step in steps.iter().skip(usize::try_from(version).unwrap_or(0)) {
            all.execute_batch(step)?;
        }
        all.pragma_update(None, "user_version", version.max(known))?;
        all.commit().map(|()| version)
    };
    let version = migrate().map_err(&wrong)?;
    if version > known {
        let reason = format!("it has version {version}; this program knows up to {known}");
        return Err(StoreError::Damaged { path: path.into(), reason });
    }
    Ok(db)
}

/// All rows of a question.
pub fn rows<T>(
    db: &Connection,
    sql: &str,
    values: impl Params,
    read: impl FnMut(&Row) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    db.prepare(sql)?.query_map(values, read)?.collect()
}
