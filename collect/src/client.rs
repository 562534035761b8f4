//! One HTTP exchange: no redirects, no retries, only with addresses that may be asked.

use std::error::Error as _;
use std::fmt;
use std::io::{self, Read};
use std::net::IpAddr;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error};
use url::Url;

/// What a server said.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Names in small letters and values, in the order of the answer.
    pub headers: Vec<(String, String)>,
    /// The body as it was sent (without chunks), if the status is 200.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of a name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The type of the content in small letters, without parameters.
    pub fn kind(&self) -> String {
        let kind = self.header("content-type").unwrap_or_default();
        kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// We don't want it.
    Refused(String),
    /// It went wrong, and would again.
    Failed(String),
    /// It went wrong, and may not the next time.
    Passing(String),
}

/// What is wanted of a body.
#[derive(Clone, Copy, Debug)]
pub enum Want {
    /// All of a page, up to so many bytes.
    Page(u64),
    /// The first so many bytes.
    Head(u64),
}

/// Asks servers.
pub struct Client {
    agent: Agent,
    timeout: Duration,
}

impl Client {
    /// `timeout`: for one exchange, from the name to the last byte.
    pub fn new(user_agent: &str, timeout: Duration, allowed: fn(IpAddr) -> bool) -> Client {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // A proxy would look names up itself, and ask whom it likes.
            .proxy(None)
            .timeout_global(Some(timeout))
            .user_agent(user_agent)
            .accept("text/html, application/xhtml+xml, text/plain, application/pdf, */*;q=0.5")
            .accept_encoding("gzip")
            .build();
        let guard = Guard { names: DefaultResolver::default(), allowed };
        let agent = Agent::with_parts(config, DefaultConnector::default(), guard);
        Client { agent, timeout }
    }

    /// Asks for a URL.
    ///
    /// # Errors
    /// Why there is no answer, or none that is wanted.
    pub fn get(&self, url: &Url, want: Want) -> Result<Answer, Trouble> {
        let trouble = |e: Error| self.trouble(&e);
        let mut response = self.agent.get(url.as_str()).call().map_err(trouble)?;
        let text = |v: &[u8]| String::from_utf8_lossy(v).trim().to_string();
        let header = |(name, value): (&ureq::http::HeaderName, &ureq::http::HeaderValue)| {
            (name.as_str().to_string(), text(value.as_bytes()))
        };
        let headers = response.headers().iter().map(header).collect();
        let mut answer = Answer { status: response.status().as_u16(), headers, body: Vec::new() };
        if answer.status != 200 {
            return Ok(answer);
        }
        let large = |most| Trouble::Refused(format!("larger than {most} bytes"));
        let most = match want {
            Want::Head(most) => most,
            Want::Page(most) => {
                readable(&answer.kind())?;
                if response.body().content_length().is_some_and(|n| n > most) {
                    return Err(large(most));
                }
                most + 1
            }
        };
        let mut body = response.body_mut().as_reader().take(most);
        if let Err(e) = body.read_to_end(&mut answer.body) {
            return Err(self.trouble(&Error::from(e)));
        }
        match want {
            Want::Page(most) if answer.body.len() as u64 > most => Err(large(most)),
            _ => Ok(answer),
        }
    }

    fn trouble(&self, error: &Error) -> Trouble {
        match error {
            Error::Timeout(_) => {
                Trouble::Passing(format!("no answer within {} s", self.timeout.as_secs_f64()))
            }
            Error::Io(e) if e.get_ref().is_some_and(|e| e.is::<NotPublic>()) => {
                Trouble::Refused(e.to_string())
            }
            Error::HostNotFound => Trouble::Passing("the host is not known".into()),
            Error::Io(e) => Trouble::Passing(format!("the connection broke: {e}")),
            Error::Protocol(e) => Trouble::Passing(format!("not HTTP: {e}")),
            Error::ConnectionFailed => Trouble::Passing("no connection".into()),
            other => {
                let cause = other.source().map(|s| format!(": {s}")).unwrap_or_default();
                Trouble::Failed(format!("{other}{cause}"))
            }
        }
    }
}

/// Refuses content that no text can be found in.
fn readable(kind: &str) -> Result<(), Trouble> {
    let (class, sub) = kind.split_once('/').unwrap_or_default();
    let code = matches!(sub, "css" | "javascript" | "x-javascript" | "ecmascript" | "wasm");
    match class {
        "image" | "audio" | "video" | "font" | "model" => {
            Err(Trouble::Refused(format!("content of type {kind}")))
        }
        _ if code => Err(Trouble::Refused(format!("content of type {kind}"))),
        _ => Ok(()),
    }
}

/// Looks names up and lets only addresses through that may be asked. Connections are made to what
/// comes out here, so a name can't mean one address when it is checked and another when it is used.
#[derive(Debug)]
struct Guard {
    names: DefaultResolver,
    allowed: fn(IpAddr) -> bool,
}

impl Resolver for Guard {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let found = self.names.resolve(uri, config, timeout).map_err(|e| match e {
            Error::Io(_) => Error::HostNotFound,
            other => other,
        })?;
        let (mut kept, mut refused) = (self.empty(), None);
        for address in found.iter() {
            if (self.allowed)(address.ip()) {
                kept.push(*address);
            } else {
                refused = Some(address.ip());
            }
        }
        match (kept.is_empty(), refused) {
            (true, Some(ip)) => Err(Error::Io(io::Error::other(NotPublic(ip)))),
            (true, None) => Err(Error::HostNotFound),
            (false, _) => Ok(kept),
        }
    }
}

/// A host has no address of the public internet.
#[derive(Debug)]
struct NotPublic(IpAddr);

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not an address of the public internet (--allow-private)", self.0)
    }
}

impl std::error::Error for NotPublic {}
