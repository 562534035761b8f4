//! How much each key may ask for: requests and tokens a minute.
//!
//! Both are buckets that hold a minute's worth and fill up steadily. A request takes one from the first when it comes. Its
//! tokens are taken from the second as they become known, the prompt's at its start and the answer's one by one: that may
//! leave a debt, and who has one is refused until it is paid. The clock is the caller's, so that tests have one of their own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// A minute, in seconds.
const MINUTE: f64 = 60.0;

/// What may be asked for in a minute; `None`: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerMinute {
    /// Requests.
    pub requests: Option<u32>,
    /// Tokens, of prompts and answers together.
    pub tokens: Option<u32>,
}

/// Who asks, and how much is left to them.
#[derive(Clone, Debug)]
pub struct Caller {
    /// A number for each key; 0 where there are none.
    pub owner: u64,
    /// The key's name; `None` where there are no keys.
    pub name: Option<Arc<str>>,
    allowance: Arc<Allowance>,
}

impl Caller {
    /// Somebody who has asked for nothing yet.
    pub fn new(owner: u64, name: Option<&str>, rates: PerMinute) -> Caller {
        let now = Instant::now();
        let bucket = |most: Option<u32>| most.map(|most| Mutex::new(Bucket::full(most, now)));
        let allowance =
            Allowance { requests: bucket(rates.requests), tokens: bucket(rates.tokens) };
        Caller { owner, name: name.map(Arc::from), allowance: Arc::new(allowance) }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// What there was too much of, and after how long there is room again: then it isn't counted.
    pub fn ask(&self, now: Instant) -> Result<(), TooMuch> {
        if let Some(tokens) = &self.allowance.tokens {
            look(tokens, |b| b.need("tokens", now))?;
        }
        let Some(requests) = &self.allowance.requests else { return Ok(()) };
        look(requests, |b| {
            b.need("requests", now)?;
            b.left -= 1.0;
            Ok(())
        })
    }

    /// Counts tokens.
    pub fn spend(&self, tokens: usize, now: Instant) {
        if let Some(bucket) = &self.allowance.tokens {
            look(bucket, |b| {
                b.fill(now);
                b.left -= tokens as f64;
            });
        }
    }

    /// Tells what is left, by OpenAI's names.
    pub fn tell(&self, headers: &mut HeaderMap, now: Instant) {
        const NAMES: [[&str; 3]; 2] = [
            [
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
            ],
            [
                "x-ratelimit-limit-tokens",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-reset-tokens",
            ],
        ];
        let Allowance { requests, tokens } = &*self.allowance;
        for (bucket, names) in [requests, tokens].into_iter().zip(NAMES) {
            let Some(bucket) = bucket else { continue };
            let values = look(bucket, |b| {
                b.fill(now);
                let full = Duration::from_secs_f64((b.most - b.left) / b.most * MINUTE);
                [b.most.to_string(), b.left.max(0.0).floor().to_string(), span(full)]
            });
            for (name, value) in names.into_iter().zip(values) {
                if let Ok(value) = HeaderValue::try_from(value) {
                    headers.insert(HeaderName::from_static(name), value);
                }
            }
        }
    }
}

/// Too much was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMuch {
    /// `requests` or `tokens`.
    pub what: &'static str,
    /// How many there may be in a minute.
    pub most: u32,
    /// When there is room again.
    pub after: Duration,
}

#[derive(Debug)]
struct Allowance {
    requests: Option<Mutex<Bucket>>,
    tokens: Option<Mutex<Bucket>>,
}

fn look<T>(bucket: &Mutex<Bucket>, with: impl FnOnce(&mut Bucket) -> T) -> T {
    with(&mut bucket.lock().unwrap_or_else(PoisonError::into_inner))
}

/// So many a minute.
#[derive(Debug)]
struct Bucket {
    most: f64,
    /// Below 0: a debt.
    left: f64,
    /// When `left` was right.
    at: Instant,
}

impl Bucket {
    fn full(most: u32, now: Instant) -> Bucket {
        // Nothing a minute would be a wait without end.
        let most = f64::from(most.max(1));
        Bucket { most, left: most, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.most / MINUTE).min(self.most);
        self.at = self.at.max(now);
    }

    /// Whether there is one.
    fn need(&mut self, what: &'static str, now: Instant) -> Result<(), TooMuch> {
        self.fill(now);
        // Sums of many small steps are not quite 1.
        if self.left > 1.0 - 1e-6 {
            return Ok(());
        }
        let after = Duration::from_secs_f64((1.0 - self.left) * MINUTE / self.most);
        Err(TooMuch { what, most: self.most as u32, after })
    }
}

/// A time as OpenAI's headers have it: `120ms`, `17s`.
fn span(time: Duration) -> String {
    match time.as_millis() {
        ms @ 0..1000 => format!("{ms}ms"),
        ms => format!("{}s", ms.div_ceil(1000)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ann(requests: Option<u32>, tokens: Option<u32>) -> (Caller, Instant) {
        (Caller::new(1, Some("Ann"), PerMinute { requests, tokens }), Instant::now())
    }

    fn after(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn requests_come_back_one_by_one() {
        let (ann, start) = ann(Some(3), None);
        for _ in 0..3 {
            ann.ask(start).unwrap();
        }
        let refused = ann.ask(start).unwrap_err();
        assert_eq!((refused.what, refused.most), ("requests", 3));
        assert!(refused.after.abs_diff(after(20.0)) < after(0.01), "{refused:?}");
        assert!(ann.ask(start + after(19.0)).is_err());
        ann.ask(start + after(20.1)).unwrap();
        assert!(ann.ask(start + after(20.1)).is_err());
        // An hour doesn't make more than a minute's worth; a clock that goes back makes nothing.
        let later = start + after(3600.0);
        for now in [later, later, start] {
            ann.ask(now).unwrap();
        }
        assert!(ann.ask(later).is_err());
    }

    #[test]
    fn debts_of_tokens_are_paid_first() {
        let (ann, start) = ann(None, Some(600));
        ann.ask(start).unwrap();
        ann.spend(1200, start);
        let refused = ann.ask(start).unwrap_err();
        assert_eq!(refused.what, "tokens");
        assert!(refused.after.abs_diff(after(60.1)) < after(0.01), "{refused:?}");
        assert!(ann.ask(start + after(59.0)).is_err());
        ann.ask(start + after(60.2)).unwrap();
    }

    #[test]
    fn what_is_left_is_told() {
        let (ann, start) = ann(Some(60), Some(600));
        ann.ask(start).unwrap();
        ann.spend(90, start);
        let mut headers = HeaderMap::new();
        ann.tell(&mut headers, start);
        let told = |name: &str| headers[&format!("x-ratelimit-{name}")].to_str().unwrap();
        assert_eq!((told("limit-requests"), told("remaining-requests")), ("60", "59"));
        assert_eq!((told("limit-tokens"), told("remaining-tokens")), ("600", "510"));
        assert_eq!((told("reset-requests"), told("reset-tokens")), ("1s", "9s"));
        let mut none = HeaderMap::new();
        Caller::new(0, None, PerMinute::default()).tell(&mut none, start);
        assert!(none.is_empty());
    }

    proptest::proptest! {
        /// Whatever somebody does, a bucket of n lets at most 2 n + 1 through in a minute: what it held, and what came.
        #[test]
        fn no_minute_has_more_than_a_bucket_and_its_refill(most in 1u32..50, steps in proptest::collection::vec(0u64..3000, 1..300)) {
            let (ann, start) = ann(Some(most), None);
            let (mut now, mut passed) = (start, Vec::new());
            for step in steps {
                now += Duration::from_millis(step);
                if ann.ask(now).is_ok() {
                    passed.push(now);
                }
            }
            for (i, first) in passed.iter().enumerate() {
                let within = passed[i..].iter().filter(|t| **t < *first + Duration::from_secs(60)).count();
                proptest::prop_assert!(within <= 2 * most as usize + 1);
            }
        }
    }
}
