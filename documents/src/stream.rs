//! All documents of some files, one after another.

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;

use store::StoreError;

use crate::files::Files;
use crate::read::{Item, read_file};
use crate::{Document, Settings, Skip, parse::parse};

/// Pieces that are read ahead.
const AHEAD: usize = 4;

/// The documents below `paths`, read by another thread, and what can't be read.
///
/// # Errors
/// [`StoreError`] if one of `paths` itself can't be read.
pub fn documents(
    paths: &[PathBuf],
    settings: &Settings,
) -> Result<impl Iterator<Item = Result<Document, Skip>> + use<>, StoreError> {
    let files = Files::below(paths)?;
    let (settings, reading) = (settings.clone(), settings.clone());
    let (sender, pieces) = sync_channel(AHEAD);
    std::thread::spawn(move || {
        files.skipped.into_iter().all(|skip| sender.send(Item::Skip(skip)).is_ok())
            && files.files.iter().all(|(path, _)| {
                let mut wanted = true;
                read_file(path, &reading, &mut |item| {
                    wanted = sender.send(item).is_ok();
                    wanted
                });
                wanted
            })
    });
    Ok(pieces.into_iter().flat_map(move |item| match item {
        Item::Skip(skip) => vec![Err(skip)],
        Item::Piece(piece) => parse(piece, &settings),
    }))
}
