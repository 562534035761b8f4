//! The rules of `robots.txt` (RFC 9309), once for each server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use robotxt::Robots;
use url::Url;

use crate::client::Trouble;
use crate::hosts::lock;

/// Bytes of a `robots.txt` that are read.
pub const BYTES: u64 = robotxt::BYTE_LIMIT as u64 + 1;
/// Longest pause between requests that is waited for.
const LONGEST: Duration = Duration::from_secs(300);

/// What a server lets us do.
#[derive(Debug)]
pub enum Rules {
    /// It has said.
    Known(Robots),
    /// It hasn't, or it is nobody to ask: nothing is fetched.
    Closed(Trouble),
}

impl Rules {
    /// By what the request for `robots.txt` came to.
    pub fn new(answer: Result<(u16, Vec<u8>), Trouble>, user_agent: &str) -> Rules {
        let product = user_agent.split(['/', ' ']).next().unwrap_or_default();
        let robots = match answer {
            Ok((200, body)) => Robots::parse(&body, product),
            Ok((status, _)) if status == 429 || status >= 500 => {
                let reason = format!("robots.txt: the server answered {status}");
                return Rules::Closed(Trouble::Failed(reason));
            }
            // There is none.
            Ok(_) => Robots::allow_all(),
            Err(Trouble::Refused(reason)) => return Rules::Closed(Trouble::Refused(reason)),
            Err(Trouble::Failed(reason) | Trouble::Passing(reason)) => {
                return Rules::Closed(Trouble::Failed(format!("robots.txt: {reason}")));
            }
        };
        match robots.crawl_delay() {
            Some(delay) if delay > LONGEST => {
                let reason = format!("robots.txt asks for a pause of {} s", delay.as_secs());
                Rules::Closed(Trouble::Refused(reason))
            }
            _ => Rules::Known(robots),
        }
    }
}

/// Rules by scheme, host and port.
#[derive(Default)]
pub struct Servers(Mutex<HashMap<String, Arc<OnceLock<Rules>>>>);

impl Servers {
    /// Those of a server; `ask` finds them out, once.
    pub fn rules(&self, url: &Url, ask: impl FnOnce() -> Rules) -> Arc<OnceLock<Rules>> {
        let origin = url.origin().ascii_serialization();
        let rules = lock(&self.0).entry(origin).or_default().clone();
        rules.get_or_init(ask);
        rules
    }
}
