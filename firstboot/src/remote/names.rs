//! Host names that were looked up are remembered for a while: ureq asks for each request, and name servers let bursts of questions wait for seconds.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// How long a name keeps its addresses. The resolver does not tell the records' own time to live; this is a short one.
const KEPT: Duration = Duration::from_secs(60);

/// A resolver with memory.
#[derive(Debug, Default)]
pub struct Remembered<R = DefaultResolver> {
    resolver: R,
    known: Mutex<HashMap<String, (Instant, ResolvedSocketAddrs)>>,
}

impl<R: Resolver> Resolver for Remembered<R> {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        // Scheme and port are part of the answer.
        let server = format!("{:?} {:?}", uri.scheme(), uri.authority());
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = known().get(&server).filter(|(since, _)| since.elapsed() < KEPT) {
            return Ok(found.clone());
        }
        let found = self.resolver.resolve(uri, config, timeout)?;
        known().insert(server, (Instant::now(), found.clone()));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::*;

    /// Gives the number of its call as port; the first call fails.
    #[derive(Debug, Default)]
    struct Counting(AtomicU16);

    impl Resolver for Counting {
        fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
            let mut out = self.empty();
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => return Err(ureq::Error::HostNotFound),
                port => out.push(([192, 0, 2, 1], port).into()),
            }
            Ok(out)
        }
    }

    #[test]
    fn a_server_is_looked_up_once_and_failures_are_forgotten() {
        let names = Remembered::<Counting>::default();
        let port = |url: &'static str| {
            let found = names.resolve(&Uri::from_static(url), &Config::default(), NextTimeout::default());
            found.ok().map(|found| found[0].port())
        };
        let urls = ["http://a.test/x", "http://a.test/x", "http://a.test/y", "https://a.test/x", "http://a.test:81/x", "http://a.test/z"];
        assert_eq!(urls.map(port), [None, Some(1), Some(1), Some(2), Some(3), Some(1)]);
    }
}
