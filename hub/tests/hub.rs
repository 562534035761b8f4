//! Against a server here that drops connections, lies about lengths and sends other bytes.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hub::{Hub, HubError, Name};
use sha2::Digest;

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Ends each answer after so many bytes.
    Drops(usize),
    /// Says that more comes than does.
    LongerLength,
    /// Sends more than the list says.
    TooMuch,
    /// Flips a bit.
    Flipped,
    /// Answers a wish for the rest with all of it.
    NoRanges,
    /// 503 to the first answers.
    Busy(usize),
    /// 403 without a token.
    Gated,
}

struct Server {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i * i % 251) as u8).collect()
}

fn listing() -> String {
    let hash = |bytes: &[u8]| {
        let digest = sha2::Sha256::digest(bytes);
        digest.iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let config = sha1::Sha1::digest(b"blob 2\0{}");
    let config: String = config.iter().map(|b| format!("{b:02x}")).collect();
    let weights = weights();
    format!(
        r#"{{"sha":"{COMMIT}","siblings":[
            {{"rfilename":"config.json","size":2,"blobId":"{config}"}},
            {{"rfilename":"README.md","size":9}},
            {{"rfilename":"model.safetensors","size":{n},"lfs":{{"sha256":"{}","size":{n}}}}}]}}"#,
        hash(&weights),
        n = weights.len()
    )
}

fn serve(fault: Fault) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = requests.clone();
    std::thread::spawn(move || {
        let mut busy = if let Fault::Busy(n) = fault { n } else { 0 };
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let reader = BufReader::new(stream.try_clone().unwrap());
            let head: Vec<String> = reader
                .lines()
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .map(|line| line.to_ascii_lowercase())
                .collect();
            let Some(first) = head.first() else { continue };
            let path = first.split(' ').nth(1).unwrap_or_default().to_string();
            let from = head.iter().find_map(|l| l.strip_prefix("range: bytes="));
            let from = from.map(|r| r.trim_end_matches('-').parse::<usize>().unwrap());
            seen.lock().unwrap().push(format!("{path} {}", from.unwrap_or(0)));
            if busy > 0 {
                busy -= 1;
                answer(stream, "503 Service Unavailable", "", b"", 0);
                continue;
            }
            let token = head.iter().any(|l| l == "authorization: bearer secret");
            if fault == Fault::Gated && !token {
                answer(stream, "403 Forbidden", "", b"", 0);
            } else if path.starts_with("/api/") {
                let list = listing();
                answer(stream, "200 OK", "", list.as_bytes(), list.len());
            } else if path.ends_with("config.json") {
                answer(stream, "200 OK", "", b"{}", 2);
            } else if path.ends_with("model.safetensors") {
                send(stream, fault, from);
            } else {
                answer(stream, "404 Not Found", "", b"", 0);
            }
        }
    });
    Server { address, requests }
}

fn send(stream: TcpStream, fault: Fault, from: Option<usize>) {
    let mut bytes = weights();
    match fault {
        Fault::Flipped => bytes[77] ^= 1,
        Fault::TooMuch => bytes.push(0),
        _ => {}
    }
    let all = bytes.len();
    let (status, range, rest) = match from.filter(|_| fault != Fault::NoRanges) {
        Some(from) => {
            let range = format!("content-range: bytes {from}-{}/{all}\r\n", all - 1);
            ("206 Partial Content", range, &bytes[from..])
        }
        None => ("200 OK", String::new(), &bytes[..]),
    };
    let sent = match fault {
        Fault::Drops(n) => &rest[..n.min(rest.len())],
        // The first time only, so that there is something to go on from.
        Fault::NoRanges if from.is_none() => &rest[..1000],
        _ => rest,
    };
    let length = rest.len() + if fault == Fault::LongerLength { 10 } else { 0 };
    answer(stream, status, &range, sent, length);
}

fn answer(mut stream: TcpStream, status: &str, more: &str, body: &[u8], length: usize) {
    let head =
        format!("HTTP/1.1 {status}\r\n{more}content-length: {length}\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}

fn fetch(server: &str, token: Option<&str>, cache: &std::path::Path) -> Result<PathBuf, HubError> {
    let mut hub = Hub::new(server, token.map(String::from), cache);
    hub.pause = Duration::ZERO;
    let name = Name::parse("hf:org/name").unwrap().unwrap();
    hub.fetch(&name, &mut |_| {}, &mut |_| {})
}

#[test]
fn whole_files_come_over_broken_connections() {
    for fault in [Fault::None, Fault::Drops(7777), Fault::NoRanges, Fault::Busy(3)] {
        let (server, cache) = (serve(fault), tempfile::tempdir().unwrap());
        let folder = fetch(&server.address, None, cache.path()).unwrap();
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights());
        assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}");
        assert!(
            !folder.join("README.md").exists() && !folder.join("model.safetensors.part").exists()
        );
        let asked = server.requests.lock().unwrap().len();
        if fault == Fault::Drops(7777) {
            // Each time from where it broke.
            assert_eq!(asked, 2 + weights().len().div_ceil(7777));
        }
        // What is here is not fetched again.
        fetch(&server.address, None, cache.path()).unwrap();
        assert_eq!(server.requests.lock().unwrap().len(), asked + 1);
        // And is used when nobody answers.
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(fetch(&format!("http://{nobody}"), None, cache.path()).unwrap(), folder);
    }
}

#[test]
fn lies_are_found_and_kept_from_becoming_models() {
    for (fault, why) in [
        (Fault::Flipped, "its hash is"),
        (Fault::TooMuch, "more came"),
        (Fault::Gated, "HF_TOKEN"),
        (Fault::Busy(99), "503"),
    ] {
        let (server, cache) = (serve(fault), tempfile::tempdir().unwrap());
        let error = fetch(&server.address, None, cache.path()).unwrap_err().to_string();
        assert!(error.contains(why), "{fault:?}: {error}");
        let folder = cache.path().join("models/org--name").join(COMMIT);
        assert!(!folder.join("model.safetensors").exists());
    }
    // A length that is too large costs tries, but all bytes came.
    let (server, cache) = (serve(Fault::LongerLength), tempfile::tempdir().unwrap());
    let folder = fetch(&server.address, None, cache.path()).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights());
    // With a token.
    let (server, cache) = (serve(Fault::Gated), tempfile::tempdir().unwrap());
    fetch(&server.address, Some("secret"), cache.path()).unwrap();
}
