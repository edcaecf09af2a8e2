//! HTTP(S) and `file://` transfers that survive bad servers: retries with back-off, resume by Range, an end to stalls, to endless bodies and to
//! redirections that lead astray.
//!
//! Nothing here knows digests: who asks for bytes checks them.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use layers::{Context, Error, Result};
use ureq::RequestBuilder;
use ureq::config::ConfigBuilder;
use ureq::http::{HeaderMap, Response};
use ureq::typestate::AgentScope;
use ureq::unversioned::transport::DefaultConnector;

use super::auth::{Access, Secret};
use super::names::Remembered;
use super::redirect::{self, Guarded};

mod private;
mod upload;

pub use private::Private;
pub use upload::{Body, Open, Upload};

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many failures in a row without new bytes; a host that cannot be reached counts four times.
    pub attempts: u32,
    /// Wait after the first failure; it grows by half each time, to at most five seconds.
    pub pause: Duration,
    /// Longest time without `STALL_BYTES` more bytes.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { attempts: 16, pause: Duration::from_millis(200), stall: Duration::from_secs(30) }
    }
}

/// Fewer bytes than these per stall time count as none: a server that drips is as good as dead.
const STALL_BYTES: u64 = 16 << 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Most redirections of one request.
const REDIRECTIONS: usize = 10;

/// A client with its connection pool; shared by all threads.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
    /// For addresses that a server told us.
    guarded: ureq::Agent,
    limits: Limits,
    accept: Option<&'static str>,
    access: Option<Arc<Access>>,
    authorization: Option<Secret>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Headers and body.
    Get,
    /// Headers alone.
    Head,
}

/// A whole small answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Vec<u8>,
}

impl Reply {
    /// A header as text; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        header(&self.headers, name)
    }
}

/// How a download ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As many bytes as expected are there.
    Whole,
    /// The server has more bytes than expected: another file.
    TooLong,
    /// The server does not have it.
    Missing,
}

/// Why one attempt failed.
enum Failure {
    /// Worth another try; `cost` is taken from the attempts.
    Again { why: String, cost: u32 },
    /// The server wants to know who asks; worth another try at once, but not forever.
    Challenged,
    /// Hopeless.
    Fatal(Error),
}

impl Failure {
    fn again(why: impl Into<String>) -> Self {
        Self::Again { why: why.into(), cost: 1 }
    }
}

impl Client {
    /// A client with these limits. Proxies come from the usual environment variables.
    pub fn new(limits: Limits) -> Self {
        // The machine's own certificates: sites have mirrors under authorities of their own.
        let tls = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build();
        let config = config(limits).tls_config(tls).build();
        let guarded = ureq::Agent::with_parts(config.clone(), DefaultConnector::default(), Guarded::default());
        Self::of(ureq::Agent::with_parts(config, DefaultConnector::default(), <Remembered>::default()), guarded, limits)
    }

    fn of(agent: ureq::Agent, guarded: ureq::Agent, limits: Limits) -> Self {
        Self { agent, guarded, limits, accept: None, access: None, authorization: None }
    }

    /// This client with an access to the server that it asks.
    pub fn with_access(&self, access: Arc<Access>) -> Self {
        Self { access: Some(access), ..self.clone() }
    }

    /// This client with a fixed `Authorization` and nothing to say to a challenge.
    pub fn authorized(&self, authorization: Option<Secret>) -> Self {
        Self { access: None, authorization, ..self.clone() }
    }

    /// This client asking for these media types.
    pub fn accepting(&self, types: &'static str) -> Self {
        Self { accept: Some(types), ..self.clone() }
    }

    /// This client for addresses that a server told.
    pub fn guarded(&self) -> Self {
        Self { agent: self.guarded.clone(), ..self.clone() }
    }

    /// One request with its whole answer, whatever its status; a body of more than `limit` bytes is refused.
    pub fn reply(&self, method: Method, url: &str, limit: u64) -> Result<Reply> {
        self.retry(url, |_| match (method, self.call(method, url, 0)?) {
            (Method::Get, response) => self.whole(response, limit),
            (Method::Head, response) => Ok(Reply { status: response.status().as_u16(), headers: response.headers().clone(), body: Vec::new() }),
        })
    }

    /// An answer with its body.
    fn whole(&self, response: Response<ureq::Body>, limit: u64) -> Result<Reply, Failure> {
        let (parts, body) = response.into_parts();
        let (expected, mut bytes) = (body.content_length(), Vec::new());
        self.copy(body.into_reader(), &mut bytes, limit, &|_| ())?;
        match bytes.len() as u64 {
            n if n > limit => Err(Failure::Fatal(Error::input(format!("more than {limit} bytes")))),
            n if expected.is_some_and(|e| n < e) => Err(Failure::again(format!("the connection ended after {n} bytes"))),
            _ => Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body: bytes }),
        }
    }

    /// Reads a small document of at most `limit` bytes; nothing when the server does not have it.
    pub fn get(&self, url: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        if let Some(path) = local(url) {
            return local_get(&path, limit);
        }
        let reply = self.reply(Method::Get, url, limit)?;
        match reply.status {
            404 | 410 => Ok(None),
            200 => Ok(Some(reply.body)),
            status => Err(Error::environment(format!("fetching {}: the server answers {status}", show(url)))),
        }
    }

    /// How long a file is; nothing when the server does not have it.
    pub fn length(&self, url: &str) -> Result<Option<u64>> {
        if let Some(path) = local(url) {
            return Ok(fs::metadata(path).ok().map(|meta| meta.len()));
        }
        self.retry(url, |_| {
            let Some(response) = found(self.call(Method::Get, url, 0)?)? else { return Ok(None) };
            let length = response.body().content_length();
            length.map(Some).ok_or_else(|| Failure::Fatal(Error::environment("the server does not say how long the file is")))
        })
    }

    /// Completes `file` to `size` bytes, going on after those that it has; `seen` hears of each new byte.
    pub fn download(&self, url: &str, file: &mut File, size: u64, seen: &dyn Fn(u64)) -> Result<Outcome> {
        if let Some(path) = local(url) {
            return local_download(&path, file, size, seen);
        }
        self.retry(url, |spent| self.download_once(url, file, size, seen, spent))
    }

    fn download_once(&self, url: &str, file: &mut File, size: u64, seen: &dyn Fn(u64), spent: &mut u32) -> Result<Outcome, Failure> {
        let mut have = file.metadata().map_err(disk)?.len();
        if have > size {
            restart(file)?;
            have = 0;
        }
        if have == size {
            return Ok(Outcome::Whole);
        }
        let Some(response) = found(self.call(Method::Get, url, have)?)? else { return Ok(Outcome::Missing) };
        have = resume_point(&response, have, size, file)?;
        file.seek(SeekFrom::Start(have)).map_err(disk)?;
        let result = self.copy(response.into_body().into_reader(), file, size - have, seen);
        let now = file.metadata().map_err(disk)?.len();
        if now - have >= STALL_BYTES {
            *spent = 0;
        }
        result?;
        match now {
            n if n == size => Ok(Outcome::Whole),
            n if n > size => Ok(Outcome::TooLong),
            n => Err(Failure::again(format!("the connection ended after {n} of {size} bytes"))),
        }
    }

    /// One request, from byte `from` on, with its redirections; an answer that is worth another try is a failure.
    fn call(&self, method: Method, url: &str, from: u64) -> Result<Response<ureq::Body>, Failure> {
        let mut place = url.to_string();
        for hop in 0..=REDIRECTIONS {
            let response = self.send(if hop == 0 { &self.agent } else { &self.guarded }, method, (url, &place), from)?;
            match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => {
                    place = redirect::next(&place, header(response.headers(), "location")).map_err(Failure::Fatal)?;
                }
                status @ (408 | 425 | 429 | 500..=599) => return Err(Failure::again(format!("the server answers {status}"))),
                _ => return Ok(response),
            }
        }
        Err(Failure::Fatal(Error::environment(format!("more than {REDIRECTIONS} redirections, the last to {}", show(&place)))))
    }

    /// Asks one server; only the one that was meant learns who asks.
    fn send(&self, agent: &ureq::Agent, method: Method, (url, place): (&str, &str), from: u64) -> Result<Response<ureq::Body>, Failure> {
        let (mut request, shown) = self.authorize(if method == Method::Get { agent.get(place) } else { agent.head(place) }, (url, place));
        if let Some(types) = self.accept {
            request = request.header("Accept", types);
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        self.challenged(request.call().map_err(transport)?, (url, place), shown.as_ref())
    }

    /// A request with what there is to show to the server that was meant, and what of it a challenge may be about.
    fn authorize<B>(&self, request: RequestBuilder<B>, (url, place): (&str, &str)) -> (RequestBuilder<B>, Option<Secret>) {
        if !redirect::is_same_server(url, place) {
            return (request, None);
        }
        let shown = self.access.as_ref().and_then(|access| access.header());
        match shown.clone().or_else(|| self.authorization.clone()) {
            Some(Secret(value)) => (request.header("Authorization", value), shown),
            None => (request, shown),
        }
    }

    /// The answer, unless it asks who we are: then that is learnt for the next try.
    fn challenged(
        &self,
        response: Response<ureq::Body>,
        (url, place): (&str, &str),
        shown: Option<&Secret>,
    ) -> Result<Response<ureq::Body>, Failure> {
        let access = self.access.as_ref().filter(|_| response.status() == 401 && redirect::is_same_server(url, place));
        let Some(access) = access else { return Ok(response) };
        let challenges = response.headers().get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok());
        access.answer(place, shown, &challenges.collect::<Vec<_>>()).map_err(Failure::Fatal)?;
        Err(Failure::Challenged)
    }

    /// Copies at most `limit` bytes and one more, so that a longer body shows; a stalled or broken body is worth another try.
    fn copy(&self, mut from: impl Read, to: &mut dyn Write, limit: u64, seen: &dyn Fn(u64)) -> Result<(), Failure> {
        let mut buffer = vec![0; 64 << 10];
        let (mut total, mut window) = (0, (Instant::now(), 0));
        while total <= limit {
            let want = buffer.len().min((limit + 1 - total) as usize);
            let n = from.read(&mut buffer[..want]).map_err(|e| Failure::again(e.to_string()))?;
            if n == 0 {
                break;
            }
            to.write_all(&buffer[..n]).map_err(disk)?;
            total += n as u64;
            seen(n as u64);
            if total - window.1 >= STALL_BYTES {
                window = (Instant::now(), total);
            } else if window.0.elapsed() > self.limits.stall {
                return Err(Failure::again("the server sends too slowly"));
            }
        }
        Ok(())
    }

    /// Tries until it works, the attempts are spent (the operation may reset them), or it is hopeless.
    fn retry<T>(&self, url: &str, mut once: impl FnMut(&mut u32) -> Result<T, Failure>) -> Result<T> {
        let (mut spent, mut pause) = (0, self.limits.pause);
        loop {
            let (why, cost, wait) = match once(&mut spent) {
                Ok(value) => return Ok(value),
                Err(Failure::Fatal(error)) => return Err(error).context(|| format!("fetching {}", show(url))),
                Err(Failure::Again { why, cost }) => (why, cost, pause),
                Err(Failure::Challenged) => ("the server answers 401".into(), self.limits.attempts.div_ceil(2), Duration::ZERO),
            };
            spent += cost;
            if spent >= self.limits.attempts {
                return Err(Error::environment(format!("fetching {}: {why}, also after trying again", show(url))));
            }
            std::thread::sleep(wait);
            pause = (pause + wait / 2).min(LONGEST_PAUSE);
        }
    }
}

fn config(limits: Limits) -> ConfigBuilder<AgentScope> {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(limits.stall))
        .timeout_recv_response(Some(limits.stall))
        .timeout_per_read(Some(limits.stall))
        .max_idle_connections(16)
        .max_idle_connections_per_host(16)
        .max_redirects(0)
        .user_agent("chasi-bod")
        .accept_encoding("identity")
}

/// The answer if it is one; nothing where the server does not have what was asked for.
fn found(response: Response<ureq::Body>) -> Result<Option<Response<ureq::Body>>, Failure> {
    match response.status().as_u16() {
        200 | 206 | 416 => Ok(Some(response)),
        404 | 410 => Ok(None),
        status => Err(Failure::Fatal(Error::environment(format!("the server answers {status}")))),
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Where a download goes on: after what is there when the server says so exactly, else at the start.
fn resume_point(response: &Response<ureq::Body>, have: u64, size: u64, file: &mut File) -> Result<u64, Failure> {
    let range = header(response.headers(), "content-range");
    match response.status().as_u16() {
        206 if have > 0 && range == format!("bytes {have}-{}/{size}", size - 1) => Ok(have),
        200 => restart(file).map(|()| 0),
        status => {
            restart(file)?;
            Err(Failure::again(format!("the server answers {status} with range `{range}` of {size} bytes")))
        }
    }
}

fn restart(file: &mut File) -> Result<(), Failure> {
    file.set_len(0).map_err(disk)
}

fn disk(error: io::Error) -> Failure {
    Failure::Fatal(Err::<(), _>(error).context(|| "writing the download".into()).unwrap_err())
}

fn transport(error: ureq::Error) -> Failure {
    let unreachable = match &error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => true,
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => return Failure::Fatal(Error::environment(error.to_string())),
        ureq::Error::Io(e) if e.kind() == io::ErrorKind::PermissionDenied => return Failure::Fatal(Error::environment(e.to_string())),
        ureq::Error::Io(e) => e.kind() == io::ErrorKind::ConnectionRefused,
        _ => false,
    };
    Failure::Again { why: error.to_string(), cost: if unreachable { 4 } else { 1 } }
}

/// An address without user name and password, for messages.
pub fn show(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let (host, path) = rest.split_once('/').map_or((rest, None), |(h, p)| (h, Some(p)));
    let host = host.rsplit_once('@').map_or(host, |(_, h)| h);
    path.map_or_else(|| format!("{scheme}://{host}"), |p| format!("{scheme}://{host}/{p}"))
}

fn local(url: &str) -> Option<PathBuf> {
    url.strip_prefix("file://").or_else(|| url.strip_prefix("file:")).map(PathBuf::from)
}

fn open_local(path: &std::path::Path) -> Result<Option<File>> {
    match fs::File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(|| format!("reading {}", path.display())),
    }
}

fn local_get(path: &std::path::Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(file) = open_local(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).context(|| format!("reading {}", path.display()))?;
    if bytes.len() as u64 > limit {
        return Err(Error::input(format!("reading {}: more than {limit} bytes", path.display())));
    }
    Ok(Some(bytes))
}

fn local_download(path: &std::path::Path, file: &mut File, size: u64, seen: &dyn Fn(u64)) -> Result<Outcome> {
    let Some(source) = open_local(path)? else { return Ok(Outcome::Missing) };
    let copy = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        io::copy(&mut source.take(size + 1), file)
    };
    let n = copy(file).context(|| format!("copying {}", path.display()))?;
    seen(n);
    match n {
        n if n == size => Ok(Outcome::Whole),
        n if n > size => Ok(Outcome::TooLong),
        n => Err(Error::environment(format!("copying {}: it has {n} bytes instead of {size}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_messages_carry_no_password() {
        assert_eq!(show("https://me:secret@host.test/a@b"), "https://host.test/a@b");
        assert_eq!(show("http://host.test"), "http://host.test");
    }
}
