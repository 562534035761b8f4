//! Who comes in: limits of keys, TLS, slow clients, and the end of the server.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Doors, Server, open, start};
use serde_json::json;
use serve::{Keys, PerMinute, Tls, TlsError};
use tokio_rustls::rustls;

const CHAT: &str = "/v1/chat/completions";

fn hi(tokens: usize) -> String {
    json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": tokens, "ignore_eos": true}).to_string()
}

fn post(server: &Server, key: &str, body: &str) -> (u16, String, String) {
    server.raw(&format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{key}"), body)
}

#[test]
fn who_asks_too_often_is_told_when_to_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    let ann = format!("Authorization: Bearer {}", Keys::add(&path, "Ann").unwrap());
    let bob = format!("X-Api-Key: {}", Keys::add(&path, "Bob").unwrap());
    let rates = PerMinute { requests: Some(2), tokens: None };
    let keys = Some(Keys::read(&path, rates).unwrap());
    let server = open(1, 8, Doors { keys, ..Doors::default() });
    let (status, headers, _) = post(&server, &ann, &hi(1));
    assert!(status == 200 && headers.contains("x-ratelimit-remaining-requests: 1"), "{headers}");
    // A bad request is one, too.
    assert_eq!(post(&server, &ann, "{").0, 400);
    let (status, headers, body) = post(&server, &ann, &hi(1));
    assert!(body.contains(r#""code":"rate_limit_exceeded""#), "{body}");
    assert!(status == 429 && headers.contains("retry-after: "), "{headers}");
    // Nobody else waits for her.
    assert_eq!(post(&server, &bob, &hi(1)).0, 200);
    // Nor does she for what costs nothing.
    assert_eq!(
        server.raw(&format!("GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{ann}"), "").0,
        200
    );
}

#[test]
fn tokens_are_counted_also_of_answers_that_nobody_hears() {
    let rates = PerMinute { requests: None, tokens: Some(50) };
    let server = open(1, 8, Doors { rates, ..Doors::default() });
    let (status, headers, body) = post(&server, "X-Nothing: 0", &hi(40));
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    let cost = answer["usage"]["total_tokens"].as_u64().unwrap();
    assert!(
        status == 200 && cost > 50 && headers.contains("x-ratelimit-limit-tokens: 50"),
        "{body}"
    );
    assert_eq!(post(&server, "X-Nothing: 0", &hi(1)).0, 429);
}

#[test]
fn slow_heads_keep_nobody_out() {
    let server = start(1, 4, None);
    let mut slow: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(server.at).unwrap()).collect();
    slow.iter_mut()
        .for_each(|s| s.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: l").unwrap());
    assert_eq!(post(&server, "X-Nothing: 0", &hi(1)).0, 200);
}

/// A client that trusts one certificate.
fn client(
    at: &Server,
    certificate: rustls::pki_types::CertificateDer<'static>,
) -> impl Read + Write {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session =
        rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    rustls::StreamOwned::new(session, TcpStream::connect(at.at).unwrap())
}

#[test]
fn tls_is_spoken_and_silence_in_it_is_nobodys_concern() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let (wrong, nothing) = (dir.path().join("other.pem"), dir.path().join("none.pem"));
    std::fs::write(&wrong, other).unwrap();
    assert!(matches!(Tls::read(&certificate, &wrong), Err(TlsError::Pair(_))));
    for (certificate, key) in
        [(&nothing, &key), (&certificate, &nothing), (&certificate, &certificate)]
    {
        assert!(matches!(Tls::read(certificate, key), Err(TlsError::File { .. })));
    }
    let tls = Some(Tls::read(&certificate, &key).unwrap());
    let server = open(1, 4, Doors { tls, ..Doors::default() });
    // Somebody who says nothing, and somebody who speaks plainly.
    let _silent = TcpStream::connect(server.at).unwrap();
    let mut plain = TcpStream::connect(server.at).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut stream = client(&server, made.cert.der().clone());
    let body = hi(5);
    write!(stream, "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = Vec::new();
    // Servers may close without saying so in TLS.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("chat.completion"), "{answer}");
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
}

#[test]
fn what_was_asked_is_answered_before_the_end() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let stop: fn() -> bool = || STOP.load(Ordering::Relaxed);
    let server = open(1, 4, Doors { stop: Some(stop), ..Doors::default() });
    // A connection that is kept, with nothing asked.
    let mut idle = TcpStream::connect(server.at).unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut some = [0; 12];
    idle.read_exact(&mut some).unwrap();
    let mut stream = TcpStream::connect(server.at).unwrap();
    let mut body: serde_json::Value = serde_json::from_str(&hi(400)).unwrap();
    body["stream"] = true.into();
    let body = body.to_string();
    write!(
        stream,
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream.read_exact(&mut some).unwrap();
    STOP.store(true, Ordering::Relaxed);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    let began = Instant::now();
    server.serving.join().unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "nobody is waited for");
    assert!(TcpStream::connect(server.at).is_err());
}
