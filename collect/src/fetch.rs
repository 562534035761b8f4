//! A URL to a page: rules asked for, redirects followed, passing trouble waited out.

use std::io::Read;
use std::time::{Duration, SystemTime};

use url::Url;

use crate::Settings;
use crate::client::{Answer, Client, Trouble, Want};
use crate::entry::{Entry, Outcome};
use crate::hosts::Hosts;
use crate::robots::{self, Rules, Servers};
use crate::{page, time, warc};

/// Most redirects in a row; of `robots.txt`, as its standard says.
const REDIRECTS: usize = 10;
const ROBOTS_REDIRECTS: usize = 5;
/// Longest URL, bytes.
const URL_BYTES: usize = 4096;
/// Longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Fetches pages for any number of threads.
pub struct Fetcher<'a> {
    settings: &'a Settings,
    client: Client,
    hosts: Hosts,
    servers: Servers,
}

/// What a URL led to.
struct Found {
    url: Url,
    answer: Answer,
}

impl<'a> Fetcher<'a> {
    pub fn new(settings: &'a Settings) -> Fetcher<'a> {
        let Settings { user_agent, timeout, allowed, .. } = settings;
        let client = Client::new(user_agent, *timeout, *allowed);
        Fetcher { settings, client, hosts: Hosts::default(), servers: Servers::default() }
    }

    /// Fetches a page: what became of it, and its record if it is to be stored.
    pub fn page(&self, url: &Url, depth: u32) -> (Entry, Vec<u8>) {
        let now = time::rfc3339(SystemTime::now());
        let mut entry =
            Entry { source: url.to_string(), depth, time: Some(now.clone()), ..Entry::default() };
        let mut at = url.clone();
        let found = self.follow(&mut at);
        if at != *url {
            entry.final_url = Some(at.to_string());
        }
        let Found { url, answer } = match found {
            Ok(found) => found,
            Err(Trouble::Refused(reason)) => return (entry.with(Outcome::Refused, reason), vec![]),
            Err(Trouble::Failed(reason) | Trouble::Passing(reason)) => {
                return (entry.with(Outcome::Failed, reason), vec![]);
            }
        };
        let header = |name| answer.header(name).map(String::from);
        entry.status = Some(answer.status);
        entry.bytes = answer.body.len() as u64;
        entry.last_modified = header("last-modified");
        entry.content_type = header("content-type");
        entry.robots = header("x-robots-tag");
        let headers = answer.headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        entry.licence = documents::licence::of_headers(headers);
        if answer.status != 200 {
            let reason = format!("the server answered {}", answer.status);
            return (entry.with(Outcome::Failed, reason), vec![]);
        }
        let body = match plain(&answer, self.settings.max_bytes) {
            Ok(body) => body,
            Err((outcome, reason)) => return (entry.with(outcome, reason), vec![]),
        };
        if is_page(&answer) {
            let page = page::read(&body, &url);
            entry.robots = page.robots.or(entry.robots);
            entry.licence = documents::licence::of_page(body).or(entry.licence);
            entry.links = (depth < self.settings.depth).then(|| within(&page.links, &url));
        } else if depth < self.settings.depth {
            entry.links = Some(Vec::new());
        }
        entry.outcome = Outcome::Stored;
        match warc::response(&url, &now, &answer) {
            Ok(record) => (entry, record),
            Err(e) => (entry.with(Outcome::Failed, format!("its record: {e}")), vec![]),
        }
    }

    /// Follows redirects; each place is looked at as the first is. `at` is where it got to.
    fn follow(&self, at: &mut Url) -> Result<Found, Trouble> {
        let mut visited = Vec::new();
        loop {
            check(at)?;
            let rules = self.servers.rules(at, || {
                let answer = self.robots_txt(at);
                Rules::new(answer, &self.settings.user_agent)
            });
            let robots = match rules.get() {
                Some(Rules::Known(robots)) => robots,
                Some(Rules::Closed(trouble)) => return Err(trouble.clone()),
                None => return Err(Trouble::Failed("robots.txt was not read".into())),
            };
            if !robots.is_url_allowed(at) {
                return Err(Trouble::Refused("robots.txt forbids it".into()));
            }
            let pause = robots.crawl_delay().unwrap_or_default().max(self.settings.pause);
            let answer = self.ask(at, Want::Page(self.settings.max_bytes), pause)?;
            let Some(next) = redirect(at, &answer)? else {
                return Ok(Found { url: at.clone(), answer });
            };
            visited.push(std::mem::replace(at, next));
            if visited.contains(at) {
                return Err(Trouble::Failed("redirects in a circle".into()));
            }
            if visited.len() > REDIRECTS {
                return Err(Trouble::Failed(format!("more than {REDIRECTS} redirects")));
            }
        }
    }

    /// The status and the text of a server's `robots.txt`.
    fn robots_txt(&self, url: &Url) -> Result<(u16, Vec<u8>), Trouble> {
        let broken = |e: robotxt::Error| Trouble::Refused(e.to_string());
        let mut at = robotxt::robots_url(url).map_err(broken)?;
        for _ in 0..=ROBOTS_REDIRECTS {
            check(&at)?;
            let answer = self.ask(&at, Want::Head(robots::BYTES), self.settings.pause)?;
            match redirect(&at, &answer)? {
                Some(next) => at = next,
                None if answer.status == 200 => {
                    let body = match plain(&answer, robots::BYTES) {
                        Ok(body) => body,
                        Err((_, reason)) => return Err(Trouble::Failed(reason)),
                    };
                    return Ok((200, body));
                }
                None => return Ok((answer.status, Vec::new())),
            }
        }
        // As if there were none, says the standard.
        Ok((404, Vec::new()))
    }

    /// Asks until there is an answer, or trouble that doesn't pass. The host is left alone while
    /// it is waited.
    fn ask(&self, url: &Url, want: Want, pause: Duration) -> Result<Answer, Trouble> {
        let mut wait = self.settings.backoff;
        let mut left = self.settings.retries;
        loop {
            let (result, again) = self.hosts.turn(url.host_str().unwrap_or_default(), || {
                let mut result = self.client.get(url, want);
                let again = match &result {
                    Ok(answer) if matches!(answer.status, 429 | 500 | 502 | 503 | 504) => {
                        let asked = answer.header("retry-after");
                        let asked = asked.and_then(|v| time::retry_after(v, SystemTime::now()));
                        let rest = asked.unwrap_or(wait);
                        if rest > LONGEST_WAIT {
                            let (status, s) = (answer.status, rest.as_secs());
                            let reason = format!("{status}, and to be asked again in {s} s");
                            result = Err(Trouble::Failed(format!("the server answered {reason}")));
                            None
                        } else {
                            Some(rest)
                        }
                    }
                    Err(Trouble::Passing(_)) => Some(wait),
                    _ => None,
                };
                ((result, again.is_some()), pause.max(again.unwrap_or_default()))
            });
            if !again || left == 0 {
                return result;
            }
            left -= 1;
            wait *= 2;
        }
    }
}

/// The links of an answer that was stored, within its host.
pub fn links(answer: &Answer, url: &Url, most: u64) -> Vec<String> {
    match plain(answer, most) {
        Ok(body) if is_page(answer) => within(&page::read(&body, url).links, url),
        _ => Vec::new(),
    }
}

fn is_page(answer: &Answer) -> bool {
    matches!(answer.kind().as_str(), "text/html" | "application/xhtml+xml")
}

fn within(links: &[Url], url: &Url) -> Vec<String> {
    let wanted = |to: &&Url| to.host_str() == url.host_str();
    links.iter().filter(wanted).map(Url::to_string).collect()
}

/// Refuses what can't be asked for.
fn check(url: &Url) -> Result<(), Trouble> {
    let reason = match url {
        url if !matches!(url.scheme(), "http" | "https") => {
            format!("{} is not http or https", url.scheme())
        }
        url if !url.username().is_empty() || url.password().is_some() => {
            "a URL with a name or password in it".into()
        }
        url if url.as_str().len() > URL_BYTES => format!("a URL longer than {URL_BYTES} bytes"),
        _ => return Ok(()),
    };
    Err(Trouble::Refused(reason))
}

/// Where an answer sends us.
fn redirect(from: &Url, answer: &Answer) -> Result<Option<Url>, Trouble> {
    if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let to = answer.header("location").unwrap_or_default();
    let broken = |_| Trouble::Failed(format!("a redirect to {to:?}, which is no URL"));
    let mut to = from.join(to).map_err(broken)?;
    to.set_fragment(None);
    Ok(Some(to))
}

/// The body without its packing, if it isn't larger than `most` bytes.
fn plain(answer: &Answer, most: u64) -> Result<Vec<u8>, (Outcome, String)> {
    match answer.header("content-encoding").unwrap_or_default().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(answer.body.clone()),
        "gzip" | "x-gzip" => {
            let mut body = Vec::new();
            flate2::read::MultiGzDecoder::new(answer.body.as_slice())
                .take(most + 1)
                .read_to_end(&mut body)
                .map_err(|e| (Outcome::Failed, format!("broken gzip: {e}")))?;
            if body.len() as u64 > most {
                return Err((Outcome::Refused, format!("larger than {most} bytes, unpacked")));
            }
            Ok(body)
        }
        other => Err((Outcome::Refused, format!("encoded as {other}"))),
    }
}
