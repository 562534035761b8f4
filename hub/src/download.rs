//! One file, over connections that break.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use store::StoreError;
use ureq::Body;
use ureq::http::{Response, StatusCode};

use crate::{Hub, HubError, Listed, Name, Progress};

/// How often something is tried that broke without getting further.
pub(crate) const TRIES: u32 = 5;

/// Why there is no answer.
pub(crate) enum Trouble {
    /// It would be the same again.
    Final(HubError),
    /// It may not be.
    Passing(String),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Trouble {
        Trouble::Final(error.into())
    }
}

impl Hub {
    /// Asks for a URL, from a byte on.
    pub(crate) fn get(&self, url: &str, from: Option<u64>) -> Result<Response<Body>, Trouble> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = request.call().map_err(|e| Trouble::Passing(e.to_string()))?;
        let status = response.status();
        let refused = |why: &str| {
            Trouble::Final(HubError::Refused { url: url.into(), why: format!("{status}: {why}") })
        };
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(response)
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(refused(
                "the model doesn't exist, or one has to be allowed to have it: set HF_TOKEN to a token of \
                 an account that is",
            )),
            StatusCode::NOT_FOUND => Err(refused("there is no such model or file")),
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(Trouble::Passing(format!("the server says {status}")))
            }
            _ => Err(refused("the server refuses")),
        }
    }

    /// Tries something several times.
    pub(crate) fn tried<T>(
        &self,
        url: &str,
        mut what: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T, HubError> {
        let mut pause = self.pause;
        let mut tries = 0;
        loop {
            tries += 1;
            match what() {
                Ok(value) => return Ok(value),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(why)) if tries == TRIES => {
                    return Err(HubError::Broken { url: url.into(), why, tries });
                }
                Err(Trouble::Passing(_)) => {
                    std::thread::sleep(pause);
                    pause *= 2;
                }
            }
        }
    }

    /// Fetches a file of a commit into `folder`, if it isn't there.
    pub(crate) fn download(
        &self,
        name: &Name,
        commit: &str,
        file: &Listed,
        folder: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), HubError> {
        let path = folder.join(&file.name);
        // A file gets its name when it is whole and right.
        if path.is_file() {
            return Ok(());
        }
        let part = folder.join(format!("{}.part", file.name));
        if let Some(parent) = path.parent() {
            store::create_dir(parent)?;
        }
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, name.repository, file.name);
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
        let damaged =
            |why: String| HubError::Damaged { file: file.name.clone(), url: url.clone(), why };
        let mut last = length(&part);
        loop {
            let result = self.tried(&url, || {
                self.append(&url, file, &part, progress)?;
                match file.bytes() {
                    Some(bytes) if length(&part) < bytes => Err(Trouble::Passing(format!(
                        "it ended after {} of {bytes} bytes",
                        length(&part)
                    ))),
                    _ => Ok(()),
                }
            });
            match result {
                Ok(()) => break,
                // As long as it gets further.
                Err(HubError::Broken { .. }) if length(&part) > last => last = length(&part),
                Err(error) => return Err(error),
            }
        }
        let fault = file.fault(&part).map_err(StoreError::io("read", part.as_path()))?;
        if let Some(why) = fault {
            let _ = std::fs::remove_file(&part);
            return Err(damaged(why));
        }
        std::fs::rename(&part, &path).map_err(StoreError::io("rename", part.as_path()))?;
        Ok(())
    }

    /// Adds what comes to what is there.
    fn append(
        &self,
        url: &str,
        file: &Listed,
        part: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Trouble> {
        let write = || StoreError::io("write", part);
        let options = || OpenOptions::new().create(true).append(true).open(part).map_err(write());
        let mut out = options()?;
        let mut done = out.metadata().map_err(write())?.len();
        if file.bytes() == Some(done) && done > 0 {
            return Ok(());
        }
        let mut response = self.get(url, (done > 0).then_some(done))?;
        let range = response.headers().get("content-range").and_then(|v| v.to_str().ok());
        let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
            && range.is_some_and(|range| range.starts_with(&format!("bytes {done}-")));
        if done > 0 && !goes_on {
            // It sends all of it, or something else: begin again.
            out.set_len(0).map_err(write())?;
            done = 0;
            if response.status() != StatusCode::OK {
                return Err(Trouble::Passing("it doesn't go on where it stopped".into()));
            }
        }
        let total = file.bytes();
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut told = Instant::now();
        loop {
            let n = body.read(&mut buffer).map_err(|e| Trouble::Passing(e.to_string()))?;
            if n == 0 {
                break;
            }
            done += n as u64;
            if total.is_some_and(|total| done > total) {
                out.set_len(0).map_err(write())?;
                return Err(Trouble::Passing("more came than the hub's list says".into()));
            }
            out.write_all(&buffer[..n]).map_err(write())?;
            if told.elapsed().as_millis() >= 100 {
                progress(Progress { file: &file.name, done, total: total.unwrap_or(done) });
                told = Instant::now();
            }
        }
        progress(Progress { file: &file.name, done, total: total.unwrap_or(done) });
        out.sync_all().map_err(write())?;
        Ok(())
    }
}
