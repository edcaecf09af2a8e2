//! Settings from an address: fetched in a thread of its own, so that console and steps never wait for it.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use layers::settings::{parse, without_secrets};
use layers::units::Digest;

use super::Fetched;

/// Largest document in bytes.
const LIMIT: u64 = 1 << 20;

/// Name of the source, without secrets; a digest keeps addresses apart that differ only in their query.
pub fn name(url: &str) -> String {
    format!("URL {} {}", without_secrets(url), Digest::of(url.as_bytes()).short())
}

/// Tries to fetch until it works, with pauses from 1 s to 60 s; every failure is reported too.
pub fn fetch(url: String) -> Receiver<Fetched> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut pause = Duration::from_secs(1);
        loop {
            let fetched = once(&url);
            let done = fetched.is_ok();
            if sender.send(fetched).is_err() || done {
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(60));
        }
    });
    receiver
}

fn once(url: &str) -> Fetched {
    let place = format!("URL {}", without_secrets(url));
    let (address, digest) = url.split_once("#sha256=").map_or((url, None), |(address, digest)| (address, Some(digest)));
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(20))).max_redirects(3).https_only(digest.is_none());
    let agent = ureq::Agent::new_with_config(config.build());
    let body = agent.get(address).call().and_then(|mut answer| answer.body_mut().with_config().limit(LIMIT).read_to_vec());
    let body = body.map_err(|error| format!("{place}: {}", error.to_string().replace(address, "the address")))?;
    let got = Digest::of(&body);
    if let Some(wanted) = digest.filter(|text| text.parse() != Ok(got)) {
        return Err(format!("{place}: has sha256 {}, not {wanted}", got.hex()));
    }
    let items = parse(&String::from_utf8(body).map_err(|_| format!("{place}: is not UTF-8"))?, &place)?;
    Ok((name(url), items))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn a_document_is_fetched_retried_and_its_digest_checked() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/a?secret=1", server.local_addr().unwrap());
        std::thread::spawn(move || {
            for answer in
                ["HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 200 ok\r\ncontent-length: 12\r\n\r\nhostname: a\n"].into_iter().cycle()
            {
                let (mut stream, _) = server.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        let receiver = fetch(format!("{address}#sha256={}", Digest::of(b"hostname: a\n").hex()));
        let first = receiver.recv().unwrap().unwrap_err();
        assert!(first.contains("503") && !first.contains("secret"), "{first}");
        assert_eq!(receiver.recv().unwrap().unwrap().1[0].key, "hostname");
        let wrong = fetch(format!("{address}#sha256={}", "0".repeat(64)));
        assert!(wrong.recv().unwrap().is_err());
        assert!(wrong.recv().unwrap().unwrap_err().contains("has sha256"));
    }
}
