//! Collecting from servers that behave in all kinds of ways. They are in this process.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use collect::{Entry, Outcome, Settings, Sources, Stats, collect};

/// A request that came in.
#[derive(Clone, Debug)]
struct Request {
    path: String,
    agent: String,
    at: Instant,
    /// How many there were to this path before.
    before: usize,
}

/// What a server says: bytes, and then it closes the connection.
type Handler = dyn Fn(&Request) -> Vec<u8> + Send + Sync;

/// A server of a test. Its thread ends with the process.
struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(handler: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, handler) = (requests.clone(), Arc::new(handler) as Arc<Handler>);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, handler) = (log.clone(), handler.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &log, &*handler));
            }
        });
        Server { port, requests }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Paths that were asked for, without `robots.txt`.
    fn paths(&self) -> Vec<String> {
        let paths = self.requests().into_iter().map(|r| r.path);
        paths.filter(|p| p != "/robots.txt").collect()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, handler: &Handler) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let headers: Vec<_> = lines.map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
    let agent = headers.iter().find_map(|h| h.strip_prefix("user-agent: ")).unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap().to_string();
    let request = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|r| r.path == path).count();
        let request = Request { path, agent: agent.to_string(), at: Instant::now(), before };
        log.push(request.clone());
        request
    };
    let mut stream = stream;
    let _ = stream.write_all(&handler(&request));
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let n = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {n}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn html(body: &str) -> Vec<u8> {
    answer("200 OK", "Content-Type: text/html; charset=utf-8\r\n", body.as_bytes())
}

fn text(body: &str) -> Vec<u8> {
    answer("200 OK", "Content-Type: text/plain\r\n", body.as_bytes())
}

fn redirect(to: &str) -> Vec<u8> {
    answer("302 Found", &format!("Location: {to}\r\n"), b"")
}

fn missing() -> Vec<u8> {
    answer("404 Not Found", "", b"gone")
}

fn settings() -> Settings {
    Settings {
        pause: Duration::ZERO,
        backoff: Duration::from_millis(1),
        timeout: Duration::from_secs(20),
        allowed: |_| true,
        ..Settings::default()
    }
}

fn run(urls: &[String], settings: &Settings, out: &Path) -> Stats {
    let sources = Sources { urls: urls.to_vec(), paths: Vec::new() };
    collect(&sources, settings, out, &|_| ()).unwrap()
}

fn entries(out: &Path) -> Vec<Entry> {
    let lines = std::fs::read_to_string(out.join("collected.jsonl")).unwrap();
    lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Outcome and reason of each source, by the path of its URL.
fn outcomes(out: &Path) -> HashMap<String, (Outcome, String)> {
    let path = |url: &str| url.splitn(4, '/').nth(3).unwrap_or(url).to_string();
    let one = |e: Entry| (path(&e.source), (e.outcome, e.reason.unwrap_or_default()));
    entries(out).into_iter().map(one).collect()
}

/// The documents that are read of a collection.
fn documents(out: &Path) -> Vec<documents::Document> {
    let all = documents::stream::documents(&[out.to_path_buf()], &Default::default()).unwrap();
    all.filter_map(Result::ok).collect()
}

#[test]
fn robots_txt_is_obeyed() {
    let server = Server::start(|r| match r.path.as_str() {
        "/robots.txt" => text("User-agent: homegrown\nDisallow: /secret\nAllow: /secret/not\n"),
        "/redirects" => redirect("/secret/x"),
        _ => text("words"),
    });
    let absent = Server::start(|r| if r.path == "/robots.txt" { missing() } else { text("words") });
    let down = Server::start(|r| match r.path.as_str() {
        "/robots.txt" => answer("503 Busy", "", b""),
        _ => text("words"),
    });
    let out = tempfile::tempdir().unwrap();
    let urls = ["/open", "/secret/x", "/secret/not", "/redirects"].map(|p| server.url(p));
    let urls = [urls.as_slice(), &[absent.url("/free"), down.url("/closed")]].concat();
    run(&urls, &Settings { retries: 1, ..settings() }, out.path());
    let found = outcomes(out.path());
    for path in ["open", "secret/not", "free"] {
        assert_eq!(found[path].0, Outcome::Stored, "{path}: {found:?}");
    }
    for path in ["secret/x", "redirects"] {
        assert_eq!(found[path], (Outcome::Refused, "robots.txt forbids it".into()));
    }
    assert_eq!(found["closed"], (Outcome::Failed, "robots.txt: the server answered 503".into()));
    assert_eq!(server.paths(), ["/open", "/secret/not", "/redirects"]);
    assert!(down.paths().is_empty() && down.requests().len() == 2);
    let agents = server.requests();
    assert_eq!(agents.iter().filter(|r| r.path == "/robots.txt").count(), 1);
    assert!(agents.iter().all(|r| r.agent.starts_with("homegrown/0")), "{agents:?}");
}

#[test]
fn passing_trouble_is_waited_out() {
    let server = Server::start(|r| match (r.path.as_str(), r.before) {
        ("/busy", 0 | 1) => answer("503 Busy", "", b""),
        ("/later", 0) => answer("429 Too Many", "Retry-After: 1\r\n", b""),
        ("/never", _) => answer("500 No", "", b""),
        ("/tomorrow", _) => answer("503 Busy", "Retry-After: 86400\r\n", b""),
        // The connection is dropped in the middle of the body, then before any answer.
        ("/torn", 0) => {
            let mut whole = text("words and more words");
            whole.truncate(whole.len() - 5);
            whole
        }
        ("/torn", 1) => Vec::new(),
        ("/short", _) => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwo".to_vec(),
        _ => text("words"),
    });
    let out = tempfile::tempdir().unwrap();
    let paths = ["/busy", "/later", "/never", "/tomorrow", "/torn", "/short", "/gone"];
    run(&paths.map(|p| server.url(p)), &Settings { retries: 2, ..settings() }, out.path());
    let found = outcomes(out.path());
    for path in ["busy", "later", "torn"] {
        assert_eq!(found[path].0, Outcome::Stored, "{path}: {found:?}");
    }
    assert_eq!(found["never"], (Outcome::Failed, "the server answered 500".into()));
    assert!(found["tomorrow"].1.contains("86400 s"), "{found:?}");
    assert_eq!(found["short"].0, Outcome::Failed);
    let of =
        |path: &str| server.requests().into_iter().filter(|r| r.path == path).collect::<Vec<_>>();
    assert_eq!(["/busy", "/never", "/tomorrow", "/short"].map(|p| of(p).len()), [3, 3, 1, 3]);
    let later = of("/later");
    assert!(later[1].at - later[0].at >= Duration::from_secs(1), "Retry-After was waited for");
}

#[test]
fn pauses_are_kept() {
    let server = Server::start(|r| match r.path.as_str() {
        "/robots.txt" => text("User-agent: *\nCrawl-delay: 0.3"),
        _ => text("words"),
    });
    let slow = Server::start(|_| text("User-agent: *\nCrawl-delay: 100000"));
    let out = tempfile::tempdir().unwrap();
    let urls = [server.url("/a"), server.url("/b"), server.url("/c"), slow.url("/slow")];
    let pause = Duration::from_millis(100);
    run(&urls, &Settings { pause, ..settings() }, out.path());
    let at: Vec<_> = server.requests().iter().map(|r| r.at).collect();
    assert_eq!(at.len(), 4);
    assert!(at[1] - at[0] >= pause);
    assert!(at[2] - at[1] >= 3 * pause && at[3] - at[2] >= 3 * pause, "Crawl-delay");
    assert_eq!(outcomes(out.path())["slow"].0, Outcome::Refused);
}

#[test]
fn redirects_end_and_lead_nowhere_forbidden() {
    let server = Server::start(|r| match r.path.as_str() {
        "/a" => redirect("/b#part"),
        "/b" => text("words"),
        "/circle" => redirect("/circle2"),
        "/circle2" => redirect("/circle"),
        "/nowhere" => redirect("http://["),
        "/file" => redirect("file:///etc/passwd"),
        p if p.starts_with("/on") => redirect(&format!("{p}n")),
        _ => missing(),
    });
    let out = tempfile::tempdir().unwrap();
    let paths = ["/a", "/b", "/circle", "/on", "/nowhere", "/file"];
    let stats = run(&paths.map(|p| server.url(p)), &settings(), out.path());
    let found = outcomes(out.path());
    assert_eq!(found["a"].0, Outcome::Stored);
    assert_eq!(found["b"].0, Outcome::Duplicate);
    assert_eq!(found["circle"].1, "redirects in a circle");
    assert_eq!(found["on"].1, "more than 10 redirects");
    assert!(found["nowhere"].1.contains("no URL"));
    assert_eq!(found["file"], (Outcome::Refused, "file is not http or https".into()));
    assert_eq!(entries(out.path())[0].final_url.as_deref(), Some(server.url("/b").as_str()));
    assert_eq!((stats.pages, stats.of(Outcome::Failed)), (1, 3));
}

#[test]
fn private_addresses_are_refused() {
    let server = Server::start(|_| text("words"));
    let out = tempfile::tempdir().unwrap();
    let port = server.port;
    let hosts = [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
    ];
    let urls = hosts.map(|h| format!("http://{h}:{port}/"));
    let others = ["http://10.0.0.1/", "http://169.254.169.254/latest", "http://[fe80::1]/"];
    let urls = [urls.as_slice(), &others.map(String::from)].concat();
    let strict = Settings { allowed: collect::address::public, ..settings() };
    let stats = run(&urls, &strict, out.path());
    // 127.0.0.1 has three names here.
    assert_eq!((stats.of(Outcome::Refused), stats.repeated), (8, 2), "{:?}", entries(out.path()));
    assert!(entries(out.path()).iter().all(|e| e.reason.as_ref().unwrap().contains("public")));
    assert!(server.requests().is_empty());
}

/// As if 127.0.0.1 were of the public internet, and other addresses were not.
#[test]
fn redirects_to_private_addresses_are_refused() {
    let inner = Server::start(|_| text("secret words"));
    let hosts = ["127.0.0.2", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1"];
    let inside = hosts.map(|host| format!("http://{host}:{}/", inner.port));
    let to = inside.clone();
    let server = Server::start(move |r| match r.path.as_str() {
        "/robots.txt" => missing(),
        path => redirect(&to[path[1..].parse::<usize>().unwrap()]),
    });
    let robots = Server::start({
        let to = inside[0].clone();
        move |_| redirect(&to)
    });
    let out = tempfile::tempdir().unwrap();
    let mut urls: Vec<_> = (0..hosts.len()).map(|i| server.url(&format!("/{i}"))).collect();
    urls.push(robots.url("/page"));
    let some = Settings { allowed: |ip| ip == std::net::Ipv4Addr::LOCALHOST, ..settings() };
    let stats = run(&urls, &some, out.path());
    assert_eq!(stats.of(Outcome::Refused), 5, "{:?}", entries(out.path()));
    assert_eq!(entries(out.path())[0].final_url.as_ref(), Some(&inside[0]));
    assert!(inner.requests().is_empty());
    assert_eq!(robots.requests().len(), 1);
}

#[test]
fn pages_that_are_too_large_or_of_no_use_are_refused() {
    let zeros = |n| packed(&vec![b'a'; n]);
    let bomb = zeros(1 << 20);
    assert!(bomb.len() < 2000);
    let gzip = "Content-Type: text/plain\r\nContent-Encoding: gzip\r\n";
    let fine = packed(b"<p>packed words</p>");
    let server = Server::start(move |r| match r.path.as_str() {
        "/stated" => text(&"a".repeat(2001)),
        "/fits" => text(&"a".repeat(2000)),
        "/unstated" => {
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n".to_vec();
            [head, vec![b'a'; 2001]].concat()
        }
        // A length that nobody will send.
        "/liar" => b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx".to_vec(),
        "/bomb" => answer("200 OK", gzip, &bomb),
        "/gzip" => answer("200 OK", &gzip.replace("plain", "html"), &fine),
        "/torn-gzip" => answer("200 OK", gzip, &fine[..fine.len() - 9]),
        "/brotli" => answer("200 OK", "Content-Encoding: br\r\n", b"x"),
        "/image" => answer("200 OK", "Content-Type: image/png\r\n", b"\x89PNG"),
        "/typeless" => answer("200 OK", "", b"Words without a type, and more of them."),
        _ => missing(),
    });
    let out = tempfile::tempdir().unwrap();
    let paths = [
        "/stated",
        "/fits",
        "/unstated",
        "/liar",
        "/bomb",
        "/gzip",
        "/torn-gzip",
        "/brotli",
        "/image",
        "/typeless",
    ];
    run(&paths.map(|p| server.url(p)), &Settings { max_bytes: 2000, ..settings() }, out.path());
    let found = outcomes(out.path());
    for path in ["stated", "unstated", "liar"] {
        assert_eq!(found[path], (Outcome::Refused, "larger than 2000 bytes".into()), "{path}");
    }
    assert_eq!(found["bomb"], (Outcome::Refused, "larger than 2000 bytes, unpacked".into()));
    assert!(found["torn-gzip"].1.starts_with("broken gzip"));
    assert_eq!(found["brotli"], (Outcome::Refused, "encoded as br".into()));
    assert_eq!(found["image"], (Outcome::Refused, "content of type image/png".into()));
    let texts: Vec<_> = documents(out.path()).into_iter().map(|d| d.text).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert_eq!(texts[1], "packed words");
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::best());
    encoder.read_to_end(&mut packed).unwrap();
    packed
}

#[test]
fn slow_servers_are_not_waited_for() {
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    // It answers when the test has ended.
    let server = Server::start(move |r| {
        if r.path == "/slow" {
            let _ = held.lock().unwrap().recv();
        }
        text("words")
    });
    let out = tempfile::tempdir().unwrap();
    let short = Settings { timeout: Duration::from_secs(3), retries: 0, ..settings() };
    run(&[server.url("/slow")], &short, out.path());
    assert_eq!(outcomes(out.path())["slow"], (Outcome::Failed, "no answer within 3 s".into()));
    drop(hold);
}

#[test]
fn documents_tell_where_they_are_from() {
    let headers = "Content-Type: text/html\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                   Link: <https://example.org/by>; rel=\"license\"\r\n";
    let server = Server::start(move |r| match r.path.as_str() {
        "/header" => answer("200 OK", headers, b"<title>T</title><p>Some words.</p>"),
        _ => html(
            "<p>Others. <a rel=license href='https://creativecommons.org/licenses/by/4.0/'>CC</a></p>",
        ),
    });
    let (out, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(here.path().join("below")).unwrap();
    std::fs::write(here.path().join("below/local.txt"), "Local words.").unwrap();
    let urls = vec![server.url("/header"), server.url("/page")];
    let sources = Sources { urls, paths: vec![here.path().to_path_buf()] };
    for _ in 0..2 {
        let stats = collect(&sources, &settings(), out.path(), &|_| ()).unwrap();
        assert_eq!((stats.pages, stats.files), (2, 1));
    }
    let all = entries(out.path());
    assert_eq!(all.len(), 3);
    assert!(all[0].source.ends_with("local.txt") && all[0].bytes == 12);
    assert_eq!(all[1].last_modified.as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    let documents = documents(out.path());
    assert_eq!(documents.len(), 3, "the journal is no document");
    assert_eq!(documents[0].text, "Local words.");
    for (document, entry) in documents[1..].iter().zip(&all[1..]) {
        assert_eq!(document.about.url.as_ref(), Some(&entry.source));
        assert_eq!(document.about.time, entry.time);
        assert!(entry.licence.is_some());
        assert_eq!(document.about.licence, entry.licence);
    }
    assert_eq!(documents[1].about.title.as_deref(), Some("T"));
}

/// A site of a few pages that link to each other.
fn site() -> Server {
    Server::start(|r| match r.path.as_str() {
        "/" => html("<a href='/a'>a</a> <a href='/b'>b</a> <a href='http://other.invalid/'>o</a>"),
        "/a" => html("<p>A</p><a href='/c'>c</a> <a href='/b#x'>b</a> <a href='/'>up</a>"),
        "/b" => html("<p>B</p><a href='/d'>d</a> <a href='/c'>c</a>"),
        "/c" => html("<p>C</p><a href='/deep'>deep</a>"),
        "/d" => text("D"),
        _ => missing(),
    })
}

#[test]
fn links_are_followed_breadth_first_within_the_host() {
    let server = site();
    let out = tempfile::tempdir().unwrap();
    let deep = Settings { depth: 2, ..settings() };
    run(&[server.url("/")], &deep, out.path());
    let found: Vec<_> = entries(out.path()).into_iter().map(|e| (e.source, e.depth)).collect();
    let want = [("/", 0), ("/a", 1), ("/b", 1), ("/c", 2), ("/d", 2)];
    assert_eq!(found, want.map(|(p, d)| (server.url(p), d)));
    // As many pages as asked for, and which are left; then the others.
    let out = tempfile::tempdir().unwrap();
    let stats = run(&[server.url("/")], &Settings { max_pages: 2, ..deep.clone() }, out.path());
    assert_eq!((stats.pages, stats.of(Outcome::Left)), (2, 2));
    let before = server.paths().len();
    let stats = run(&[server.url("/")], &deep, out.path());
    assert_eq!((stats.pages, stats.of(Outcome::Left)), (5, 0));
    assert_eq!(server.paths().len() - before, 3, "nothing is fetched twice");
    let again: Vec<_> = entries(out.path()).into_iter().map(|e| (e.source, e.depth)).collect();
    assert_eq!(found, again);
}

/// What failed is asked for again if that is wanted, and deeper links are followed from what is there.
#[test]
fn an_old_folder_is_gone_on_with() {
    let server = Server::start(|r| match (r.path.as_str(), r.before) {
        ("/", _) => html("<p>First.</p><a href='/a'>a</a> <a href='/down'>b</a>"),
        ("/a", _) => {
            let body =
                packed(b"<p>Second.</p><a href='/c#x'>c</a> <a href='http://other.invalid/'>o</a>");
            answer("200 OK", "Content-Type: text/html\r\nContent-Encoding: gzip\r\n", &body)
        }
        ("/down", 0) => answer("500 No", "", b""),
        ("/down", _) => html("<p>Up again.</p><a href='/d'>d</a>"),
        ("/c" | "/d", _) => text("words"),
        _ => missing(),
    });
    let out = tempfile::tempdir().unwrap();
    let at = |depth, retry_failed| {
        let settings = Settings { depth, retry_failed, retries: 0, ..settings() };
        run(&[server.url("/")], &settings, out.path())
    };
    let asked = || server.paths();
    assert_eq!(at(1, false).of(Outcome::Failed), 1);
    assert_eq!(asked(), ["/", "/a", "/down"]);
    // Failed is failed.
    assert_eq!(at(1, false).of(Outcome::Failed), 1);
    assert_eq!(asked().len(), 3);
    // A level more, of pages that are not fetched again.
    let stats = at(2, false);
    assert_eq!((stats.pages, stats.of(Outcome::Failed)), (3, 1));
    assert_eq!(asked()[3..], ["/c"]);
    let stats = at(2, true);
    assert_eq!((stats.pages, stats.of(Outcome::Failed)), (5, 0));
    assert_eq!(asked()[4..], ["/down", "/d"]);
    assert_eq!(documents(out.path()).len(), 5);
    // And all is known.
    at(2, true);
    assert_eq!(asked().len(), 6);
}

/// Hosts answer at different speeds; the order is that of the list.
#[test]
fn records_are_in_the_order_of_the_list() {
    let first = Server::start(|r| {
        std::thread::sleep(Duration::from_millis(if r.path == "/0" { 150 } else { 0 }));
        text(&r.path)
    });
    let out = tempfile::tempdir().unwrap();
    let hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "localhost"];
    // All of these are this machine, but the server listens to the first and last only.
    let urls: Vec<_> =
        (0..12).map(|i| format!("http://{}:{}/{i}", hosts[i % 4], first.port)).collect();
    run(&urls, &Settings { retries: 0, ..settings() }, out.path());
    let sources: Vec<_> = entries(out.path()).into_iter().map(|e| e.source).collect();
    assert_eq!(sources, urls);
    let stored: Vec<_> = documents(out.path()).into_iter().map(|d| d.text).collect();
    assert_eq!(stored, ["/0", "/3", "/4", "/7", "/8", "/11"]);
}

/// Whatever a kill leaves of the files' ends, the next run comes to the same.
#[test]
fn torn_files_are_gone_on_with() {
    let server = site();
    let (whole, torn) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let deep = Settings { depth: 2, ..settings() };
    run(&[server.url("/")], &deep, whole.path());
    let copy = |name: &str| std::fs::read(whole.path().join(name)).unwrap();
    let (journal, pages) = (copy("collected.jsonl"), copy("pages-00000.warc.gz"));
    let want = outcomes(whole.path());
    let texts: Vec<_> =
        documents(whole.path()).into_iter().map(|d| (d.text, d.about.url)).collect();
    let starts: Vec<usize> =
        entries(whole.path()).iter().map(|e| e.offset.unwrap() as usize).collect();
    let line_ends: Vec<usize> =
        journal.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
    for lines in 0..=line_ends.len() {
        let end = lines.checked_sub(1).map_or(0, |l| line_ends[l]);
        let next = line_ends.get(lines).copied().unwrap_or(end);
        let page_end = starts.get(lines).copied().unwrap_or(pages.len());
        let torn_page = starts.get(lines + 1).copied().unwrap_or(pages.len());
        // The record was begun; it was finished and its line was begun.
        for (line, page) in [(end, (page_end + torn_page) / 2), ((end + next) / 2, torn_page)] {
            std::fs::write(torn.path().join("collected.jsonl"), &journal[..line]).unwrap();
            std::fs::write(torn.path().join("pages-00000.warc.gz"), &pages[..page]).unwrap();
            let before = server.paths().len();
            run(&[server.url("/")], &deep, torn.path());
            assert_eq!(outcomes(torn.path()), want, "{lines} lines");
            assert_eq!(server.paths().len() - before, want.len() - lines, "{lines} lines");
            let again = documents(torn.path()).into_iter().map(|d| (d.text, d.about.url));
            assert_eq!(again.collect::<Vec<_>>(), texts);
        }
    }
    // What can't be gone on with is told.
    std::fs::write(torn.path().join("collected.jsonl"), &journal).unwrap();
    std::fs::write(torn.path().join("pages-00000.warc.gz"), &pages[..pages.len() - 1]).unwrap();
    let sources = Sources { urls: vec![server.url("/")], paths: Vec::new() };
    let error = collect(&sources, &deep, torn.path(), &|_| ()).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn sources_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list");
    std::fs::write(&list, "# pages\nhttp://a.org/x#y  # first\n\n  nonsense\n").unwrap();
    let sources = Sources::read(&["http://b.org/".into()], std::slice::from_ref(&list)).unwrap();
    assert_eq!(sources.urls, ["http://b.org/", "http://a.org/x#y", "nonsense"]);
    for wrong in ["ftp://a.org/x", "no-such-file"] {
        assert!(Sources::read(&[wrong.into()], &[]).is_err());
    }
    assert!(Sources::read(&[], &[]).is_err());
    let urls = ["nonsense", "mailto:a@b", "http://me:secret@127.0.0.1/"].map(String::from);
    let stats = run(&urls, &settings(), &dir.path().join("out"));
    assert_eq!(stats.of(Outcome::Refused), 3, "{stats:?}");
    // Not into itself.
    let sources = Sources { urls: Vec::new(), paths: vec![dir.path().to_path_buf()] };
    assert!(collect(&sources, &settings(), &dir.path().join("out"), &|_| ()).is_err());
}

/// Where a run dies in the test below: at a point on its way that the environment names.
#[test]
#[ignore = "it is run by killed_anywhere_it_goes_on"]
fn one_run_of_many() {
    if std::env::var_os("COLLECT_OUT").is_none() {
        return;
    }
    let place = |name| std::env::var(name).unwrap();
    let sources =
        Sources { urls: vec![place("COLLECT_URL")], paths: vec![place("COLLECT_FILES").into()] };
    let deep = Settings { depth: 2, ..settings() };
    collect(&sources, &deep, place("COLLECT_OUT").as_ref(), &|_| ()).unwrap();
}

/// Killed at every point around what is done to files, each run goes on where the last one died, and
/// all comes to the same.
#[test]
fn killed_anywhere_it_goes_on() {
    let server = site();
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("local.txt"), "Local words.").unwrap();
    let run = |out: &Path, crash: Option<u32>| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "one_run_of_many", "--ignored"]);
        command.env("COLLECT_URL", server.url("/")).env("COLLECT_FILES", here.path());
        command.env("COLLECT_OUT", out);
        if let Some(crash) = crash {
            command.env("HOMEGROWN_CRASH", crash.to_string());
        }
        command.output().unwrap().status.success()
    };
    let sources = |out: &Path| {
        entries(out).into_iter().map(|e| (e.source, e.outcome, e.depth)).collect::<Vec<_>>()
    };
    let whole = tempfile::tempdir().unwrap();
    assert!(run(whole.path(), None));
    let want = sources(whole.path());
    let texts = documents(whole.path()).len();
    assert_eq!((want.len(), texts), (6, 6));
    // Alone, and one after the other in the same folder.
    for (first, step) in [(1, 1), (3, 0), (11, 0)] {
        let mut crash = first;
        let mut died = 0;
        loop {
            let out = tempfile::tempdir().unwrap();
            while !run(out.path(), (died < 200).then_some(crash)) {
                died += 1;
                assert!(step == 0 || died < 1000);
                if step > 0 {
                    assert!(run(out.path(), None), "after death at point {crash}");
                    break;
                }
                // The next one gets a little further.
                crash += 1;
            }
            assert_eq!(sources(out.path()), want, "point {crash}");
            assert_eq!(documents(out.path()).len(), texts, "point {crash}");
            assert!(!out.path().join(".pending").exists(), "point {crash}");
            crash += 7 * step;
            if step == 0 || crash > 160 {
                break;
            }
        }
        assert!(died >= 3, "{died} deaths");
    }
}
