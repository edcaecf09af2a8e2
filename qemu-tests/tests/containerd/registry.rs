//! A registry outside of the node, that counts what it is asked for.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use layers::units::Digest;

use crate::seed::Made;

#[derive(Default)]
struct Content {
    /// Media type and bytes by path.
    files: BTreeMap<String, (String, Vec<u8>)>,
    requests: Vec<String>,
}

/// The registry; it ends with the test process.
pub struct Registry {
    content: Arc<Mutex<Content>>,
    /// Its port on 127.0.0.1.
    pub port: u16,
}

impl Registry {
    /// An empty one that sends 64 KiB of a layer, then rests for `pause`, and so on.
    pub fn new(pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, content) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Content::default())));
        let shared = content.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let content = shared.clone();
                std::thread::spawn(move || talk(&stream, &content, pause));
            }
        });
        Self { content, port }
    }

    /// The name of a repository of it.
    pub fn name(&self, repository: &str) -> String {
        format!("127.0.0.1:{}/{repository}", self.port)
    }

    /// Takes an image in under the repository and tag of its name, or of another.
    pub fn push(&self, image: &Made, repository: &str, tag: &str) {
        let mut content = self.content.lock().unwrap();
        let base = format!("/v2/{repository}");
        let manifest = (image.media_type.to_string(), image.documents[&image.digest].clone());
        content.files.insert(format!("{base}/manifests/{tag}"), manifest.clone());
        content.files.insert(format!("{base}/manifests/{}", image.digest), manifest);
        for bytes in image.documents.values().chain(&image.tars) {
            content.files.insert(format!("{base}/blobs/{}", Digest::of(bytes)), ("application/octet-stream".into(), bytes.clone()));
        }
    }

    /// What was asked for since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.content.lock().unwrap().requests)
    }
}

fn talk(mut stream: &TcpStream, content: &Mutex<Content>, pause: Duration) {
    // containerd tries TLS first on an unknown port of loopback, and HTTP when the answer looks like it.
    if first(stream) == 0x16 {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        return;
    }
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    while let Some(request) = lines.next() {
        let headers: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let mut words = request.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        let found = {
            let mut content = content.lock().unwrap();
            content.requests.push(format!("{method} {path}"));
            content.files.get(path).cloned()
        };
        let start = headers.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=")?.split('-').next()?.parse::<usize>().ok());
        if answer(stream, method, found, start.unwrap_or(0), pause).is_err() {
            return;
        }
    }
}

fn first(stream: &TcpStream) -> u8 {
    let mut byte = [0];
    stream.peek(&mut byte).map_or(0, |_| byte[0])
}

fn answer(mut stream: &TcpStream, method: &str, found: Option<(String, Vec<u8>)>, start: usize, pause: Duration) -> std::io::Result<()> {
    let Some((media_type, bytes)) = found else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    };
    let body = &bytes[start.min(bytes.len())..];
    let (status, range) = match start {
        0 => ("200 OK", String::new()),
        _ => ("206 Partial Content", format!("content-range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len())),
    };
    let digest = Digest::of(&bytes);
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n{range}docker-content-digest: {digest}\r\n\r\n")?;
    if method == "HEAD" {
        return Ok(());
    }
    for part in body.chunks(64 << 10) {
        stream.write_all(part)?;
        std::thread::sleep(pause);
    }
    Ok(())
}
