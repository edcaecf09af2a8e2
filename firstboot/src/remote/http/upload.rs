//! Requests that bring something along.

use std::io::Read;

use layers::Result;
use ureq::SendBody;

use super::{Client, Failure, Reply, redirect, transport};

/// Most bytes of an answer to one.
const ANSWER_LIMIT: u64 = 1 << 20;

/// Opens something at its beginning, as often as it is wanted.
pub type Open<'a> = dyn Fn() -> Result<Box<dyn Read>> + 'a;

/// What is brought: opened anew for each try.
pub struct Body<'a> {
    /// Media type.
    pub media_type: &'a str,
    /// How many bytes it has.
    pub size: u64,
    /// Opens it at its beginning.
    pub open: &'a Open<'a>,
}

/// A request that changes something.
pub enum Upload<'a> {
    /// `POST` of nothing.
    Post,
    /// `PUT` of a body.
    Put(&'a Body<'a>),
}

impl Client {
    /// One request with its whole answer, whatever its status; `place` may be another server than the one at `url`, which alone learns who asks.
    pub fn upload(&self, upload: &Upload<'_>, url: &str, place: &str) -> Result<Reply> {
        self.retry(place, |_| {
            // A server that told its own loopback address or one of its cloud is not followed there.
            let agent = if redirect::is_same_server(url, place) { &self.agent } else { &self.guarded };
            let (response, shown) = match upload {
                Upload::Post => {
                    let (request, shown) = self.authorize(agent.post(place), (url, place));
                    (request.send_empty(), shown)
                }
                Upload::Put(body) => {
                    let (request, shown) = self.authorize(agent.put(place), (url, place));
                    let mut reader = (body.open)().map_err(Failure::Fatal)?;
                    let request = request.header("Content-Type", body.media_type).header("Content-Length", body.size.to_string());
                    (request.send(SendBody::from_reader(&mut reader)), shown)
                }
            };
            let response = self.challenged(response.map_err(transport)?, (url, place), shown.as_ref())?;
            match response.status().as_u16() {
                status @ (408 | 425 | 429 | 500..=599) => Err(Failure::again(format!("the server answers {status}"))),
                _ => self.whole(response, ANSWER_LIMIT),
            }
        })
    }
}
