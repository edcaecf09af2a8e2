//! The HTTP endpoint `/metrics` of the agent: there is none unless the setting `metrics.listen` asks for it.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use layers::settings::Listen;
use layers::{Context as _, Fault, Result};
use prometheus_client::encoding::prometheus_text;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::text;
use crate::cluster::{Report, runtime};
use crate::config;
use crate::host::Host;
use crate::status::{State, Status};

/// The condition that tells of it.
pub const CONDITION: &str = "metrics";
/// How often the settings are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Most connections at one time; more wait.
const CONNECTIONS: usize = 8;
/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Follows the settings in a thread of its own; the receiver gets every change.
pub fn start() -> Receiver<Report> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || keep(&Host::new("/"), &sender));
    receiver
}

fn keep(host: &Host, sender: &Sender<Report>) {
    let say = |state, detail: String, hint: Option<&str>| {
        // The agent that does not listen any more ends with this thread.
        let _ = sender.send(Report { step: CONDITION, state, detail, hint: hint.map(Into::into) });
    };
    loop {
        match wanted(host) {
            Some(address) => {
                let ended = runtime().and_then(|runtime| runtime.block_on(serve(host, address, || say(State::Done, url(address), None))));
                match ended {
                    Ok(()) => say(State::Pending, String::new(), None),
                    Err(error) => say(State::Failed, error.to_string(), Some("metrics.listen names another port or address")),
                }
            }
            None => say(State::Pending, String::new(), None),
        }
        std::thread::sleep(LOOK);
    }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/metrics")
}

/// Where to listen now: the setting's address, else the first one of the node, once it has one.
fn wanted(host: &Host) -> Option<SocketAddr> {
    let Listen { address, port } = config::published(host)?.metrics_listen?.value;
    let first = || -> Option<IpAddr> { Status::load(host).ok()?.addresses.first()?.address.split('/').next()?.parse().ok() };
    Some(SocketAddr::new(address.or_else(first)?, port))
}

/// Answers as long as the settings want it here.
async fn serve(host: &Host, address: SocketAddr, ready: impl FnOnce()) -> Result<()> {
    let web = TcpListener::bind(address).await.fault(Fault::Environment, || format!("listening on {address}"))?;
    ready();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let accept = async || {
        let place = room.clone().acquire_owned().await;
        (place, web.accept().await)
    };
    let mut look = tokio::time::interval(LOOK);
    let root = host.path("");
    loop {
        tokio::select! {
            _ = look.tick() => if wanted(host) != Some(address) { return Ok(()) },
            (place, taken) = accept() => {
                let Ok((stream, _)) = taken else { tokio::time::sleep(Duration::from_millis(100)).await; continue };
                let root = root.clone();
                tokio::spawn(async move {
                    talk(stream, &root).await;
                    drop(place);
                });
            }
        }
    }
}

async fn talk(stream: TcpStream, root: &Path) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(&Host::new(root), request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(16 << 10).keep_alive(false);
    // A client that reads nothing shall not keep its place.
    let _ = tokio::time::timeout(PATIENCE * 2, builder.serve_connection(TokioIo::new(stream), service)).await;
}

fn respond(host: &Host, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let (status, body) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/metrics") => match text(host) {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "there is only /metrics\n".into()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(prometheus_text::CONTENT_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// A node that is told where to listen, in its settings as the agent publishes them.
    fn told(host: &Host, listen: Option<&str>) {
        let listen: Vec<_> = listen.map(|listen| ("metrics.listen", listen)).into_iter().collect();
        config::publish(host, &config::example(&listen)).unwrap();
    }

    fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn nobody_listens_unless_the_settings_say_where_and_then_metrics_alone_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new(folder.path());
        told(&host, None);
        assert_eq!(wanted(&host), None);
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        told(&host, Some(&port.to_string()));
        assert_eq!(wanted(&host), None, "the node has no address yet");
        told(&host, Some(&format!("127.0.0.1:{port}")));
        let address = wanted(&host).unwrap();
        host.write("run/chasi-bod/metrics/node.prom", b"a 1\n", 0o644).unwrap();
        let (sender, receiver) = channel();
        let root = folder.path().to_path_buf();
        let thread = std::thread::spawn(move || {
            runtime().unwrap().block_on(serve(&Host::new(root), address, || sender.send(()).unwrap())).map_err(|error| error.to_string())
        });
        receiver.recv().unwrap();
        let answer = get(address, "GET /metrics");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("text/plain; version=0.0.4") && answer.ends_with("\r\n\r\na 1\n"), "{answer}");
        assert!(get(address, "HEAD /metrics").ends_with("\r\n\r\n"));
        assert!(get(address, "GET /etc/shadow").starts_with("HTTP/1.1 404") && get(address, "POST /metrics").starts_with("HTTP/1.1 405"));
        let error = runtime().unwrap().block_on(serve(&host, address, || ())).unwrap_err().to_string();
        assert!(error.starts_with(&format!("listening on {address}: ")), "{error}");
        told(&host, None);
        assert_eq!(thread.join().unwrap(), Ok(()), "the setting was taken back");
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}
