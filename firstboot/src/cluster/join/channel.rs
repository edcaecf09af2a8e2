//! A channel between nodes that know the same secret, over any stream of bytes: Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s (Noise Protocol Framework,
//! revision 34) with the secret as pre-shared key, fresh keys for each connection. The secret itself is never sent: who does not know it
//! can neither read, nor answer, nor repeat anything that counts.
//!
//! Each message is preceded by its length in two bytes, most significant first, so none is longer than 64 KiB. A listener that cannot read
//! the first message answers with length 0.

use std::io::{Error, ErrorKind, Result};

use layers::membership::Secret;
use layers::units::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use snow::{Builder, HandshakeState, TransportState};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Both sides mix it into the handshake: another protocol, or another version of this one, is another channel.
const PROLOGUE: &[u8] = b"chasi-bod join 1";
/// Bytes of a Noise message's authentication tag.
const TAG: usize = 16;
const LONGEST: usize = 65535;

/// An established channel.
pub struct Channel<S> {
    stream: S,
    noise: TransportState,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    /// Opens a channel to a listener. The error's kind is `PermissionDenied` when the other side has shown not to know the secret.
    pub async fn connect(mut stream: S, secret: &Secret) -> Result<Self> {
        let mut noise = handshake(secret, |builder| builder.build_initiator())?;
        let mut buffer = vec![0; LONGEST];
        let length = noise.write_message(&[], &mut buffer).map_err(unexpected)?;
        write_frame(&mut stream, &buffer[..length]).await?;
        let answer = read_frame(&mut stream).await?;
        if answer.is_empty() {
            return Err(Error::new(ErrorKind::PermissionDenied, "the other side has another cluster secret than this node"));
        }
        let stranger = |_| Error::new(ErrorKind::PermissionDenied, "the other side does not know the cluster secret");
        noise.read_message(&answer, &mut buffer).map_err(stranger)?;
        Ok(Self { stream, noise: noise.into_transport_mode().map_err(unexpected)? })
    }

    /// Answers a node that connects. The error's kind is `PermissionDenied` when it has shown not to know the secret.
    pub async fn accept(mut stream: S, secret: &Secret) -> Result<Self> {
        let mut noise = handshake(secret, |builder| builder.build_responder())?;
        let mut buffer = vec![0; LONGEST];
        let first = read_frame(&mut stream).await?;
        if noise.read_message(&first, &mut buffer).is_err() {
            write_frame(&mut stream, &[]).await?;
            return Err(Error::new(ErrorKind::PermissionDenied, "it does not know the cluster secret"));
        }
        let length = noise.write_message(&[], &mut buffer).map_err(unexpected)?;
        write_frame(&mut stream, &buffer[..length]).await?;
        Ok(Self { stream, noise: noise.into_transport_mode().map_err(unexpected)? })
    }

    /// Sends a message as JSON.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<()> {
        let text = serde_json::to_vec(message)?;
        let mut buffer = vec![0; text.len() + TAG];
        let length = self.noise.write_message(&text, &mut buffer).map_err(unexpected)?;
        write_frame(&mut self.stream, &buffer[..length]).await
    }

    /// Receives a message.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let frame = read_frame(&mut self.stream).await?;
        let mut buffer = vec![0; frame.len()];
        let forged = |_| Error::new(ErrorKind::InvalidData, "a message was forged, repeated or damaged on its way");
        let length = self.noise.read_message(&frame, &mut buffer).map_err(forged)?;
        // serde_json's own words could repeat a part of the message.
        serde_json::from_slice(&buffer[..length]).map_err(|_| Error::new(ErrorKind::InvalidData, "a message is none of this protocol"))
    }
}

/// SHA-256 is enough of a key derivation for a secret of at least 128 random bits.
fn handshake(secret: &Secret, build: fn(Builder) -> std::result::Result<HandshakeState, snow::Error>) -> Result<HandshakeState> {
    let key = Digest::of_parts([b"chasi-bod join key".as_slice(), secret.reveal().as_bytes()]).0;
    let builder = Builder::new(PATTERN.parse().map_err(unexpected)?);
    builder.psk(0, &key).and_then(|builder| builder.prologue(PROLOGUE)).and_then(build).map_err(unexpected)
}

fn unexpected(error: snow::Error) -> Error {
    Error::new(ErrorKind::InvalidInput, error.to_string())
}

async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    let length = u16::try_from(bytes.len()).map_err(|_| Error::new(ErrorKind::InvalidInput, "a message is longer than 64 KiB"))?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    stream.flush().await
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let cut = |error: Error| match error.kind() {
        ErrorKind::UnexpectedEof => Error::new(ErrorKind::UnexpectedEof, "the other side ended the connection"),
        _ => error,
    };
    let mut bytes = vec![0; usize::from(stream.read_u16().await.map_err(cut)?)];
    stream.read_exact(&mut bytes).await.map_err(cut)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    fn secret(text: &str) -> Secret {
        Secret::parse(&format!("{text}-0123456789abcdefghijklmnopqrstuvwxyz")).unwrap()
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// What one side writes while the other gets it byte for byte, kept for later.
    async fn recorded(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> Vec<u8> {
        let (mut all, mut piece) = (Vec::new(), [0; 1024]);
        while let Ok(length) = from.read(&mut piece).await {
            if length == 0 || to.write_all(&piece[..length]).await.is_err() {
                break;
            }
            all.extend(&piece[..length]);
        }
        all
    }

    #[test]
    fn two_that_know_the_secret_talk_and_the_secret_is_not_on_the_line() {
        run(async {
            let ((near, line_a), (line_b, far)) = (duplex(1 << 17), duplex(1 << 17));
            let ((read_a, write_a), (read_b, write_b)) = (tokio::io::split(line_a), tokio::io::split(line_b));
            let talk = async {
                let secret = secret("known");
                let (near, far) = tokio::join!(Channel::connect(near, &secret), Channel::accept(far, &secret));
                let (mut near, mut far) = (near.unwrap(), far.unwrap());
                near.send(&"canary in the coal mine").await.unwrap();
                assert_eq!(far.receive::<String>().await.unwrap(), "canary in the coal mine");
                far.send(&vec!["x".repeat(60000)]).await.unwrap();
                assert_eq!(near.receive::<Vec<String>>().await.unwrap()[0].len(), 60000);
                assert_eq!(near.send(&"x".repeat(65536)).await.unwrap_err().kind(), ErrorKind::InvalidInput);
            };
            let (_, there, back) = tokio::join!(talk, recorded(read_a, write_b), recorded(read_b, write_a));
            for seen in [there, back] {
                let seen = String::from_utf8_lossy(&seen).into_owned();
                assert!(!seen.contains("canary") && !seen.contains("known-0123"));
            }
        });
    }

    #[test]
    fn f4_a_wrong_secret_is_told_on_both_sides() {
        run(async {
            let (near, far) = duplex(1 << 16);
            let (right, wrong) = (secret("right"), secret("wrong"));
            let (near, far) = tokio::join!(Channel::connect(near, &wrong), Channel::accept(far, &right));
            let (near, far) = (near.err().unwrap(), far.err().unwrap());
            assert_eq!((near.kind(), far.kind()), (ErrorKind::PermissionDenied, ErrorKind::PermissionDenied));
            assert_eq!(near.to_string(), "the other side has another cluster secret than this node");
            assert_eq!(far.to_string(), "it does not know the cluster secret");
        });
    }

    #[test]
    fn f4_an_impostor_that_plays_a_listener_gets_one_unreadable_message() {
        run(async {
            let secret = secret("known");
            for lie in [&b"\x00\x30"[..], b"HTTP/1.1 200 OK\r\n\r\n"] {
                let (near, mut far) = duplex(1 << 16);
                let impostor = async {
                    let first = read_frame(&mut far).await.unwrap();
                    far.write_all(&[lie, &[7; 48]].concat()).await.unwrap();
                    drop(far);
                    first
                };
                let (near, first) = tokio::join!(Channel::connect(near, &secret), impostor);
                assert!(matches!(near.err().unwrap().kind(), ErrorKind::PermissionDenied | ErrorKind::UnexpectedEof));
                // An ephemeral key and a tag: nothing that belongs to the node.
                assert_eq!(first.len(), 32 + TAG);
            }
        });
    }

    #[test]
    fn f4_a_replayed_conversation_is_refused() {
        run(async {
            let secret = secret("known");
            let ((near, line_a), (line_b, far)) = (duplex(1 << 16), duplex(1 << 16));
            let ((read_a, write_a), (read_b, write_b)) = (tokio::io::split(line_a), tokio::io::split(line_b));
            let talk = async {
                let (near, far) = tokio::join!(Channel::connect(near, &secret), Channel::accept(far, &secret));
                let (mut near, mut far) = (near.unwrap(), far.unwrap());
                near.send(&"take me").await.unwrap();
                far.receive::<String>().await.unwrap();
            };
            let (_, said, _) = tokio::join!(talk, recorded(read_a, write_b), recorded(read_b, write_a));
            let (mut replayer, far) = duplex(1 << 16);
            replayer.write_all(&said).await.unwrap();
            let mut far = Channel::accept(far, &secret).await.unwrap();
            assert_eq!(far.receive::<String>().await.unwrap_err().to_string(), "a message was forged, repeated or damaged on its way");
        });
    }

    #[test]
    fn f4_garbage_and_cut_frames_are_errors() {
        run(async {
            let secret = secret("known");
            for garbage in [&b""[..], b"\x00", b"\x00\x00", b"\xff\xff", b"\x00\x30short", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 70000]] {
                let (mut near, far) = duplex(1 << 17);
                near.write_all(garbage).await.unwrap();
                near.shutdown().await.unwrap();
                let error = Channel::accept(far, &secret).await.err().unwrap();
                assert!(matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::UnexpectedEof), "{garbage:?}: {error}");
            }
        });
    }
}
