//! How a node is taken into a cluster that exists: over a channel that the cluster's secret authenticates, it says who it is and gets what
//! `kubeadm join` needs.

mod channel;
mod control_plane;
mod founder;
mod member;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use layers::membership::Secret;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

pub use control_plane::end as end_turn;
pub use founder::{Service, authority, known, open};
pub use member::{end, join, join_through};

use channel::Channel;

/// Version of the messages; one that changes their meaning changes it.
const VERSION: u32 = 1;
/// Conversations at a time; further nodes wait in the kernel's queue.
const PLACES: usize = 8;
/// Longest wait for the other side's next message.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });
/// Longest wait for the cluster to make what a node needs.
const MAKING: Duration = Duration::from_secs(60);
/// How long a conversation that failed keeps its place: nobody guesses or fills the journal faster.
const PENALTY: Duration = Duration::from_secs(1);

/// What a node says of itself.
#[derive(Clone, Serialize, Deserialize)]
struct Request {
    version: u32,
    /// Name of the Node object.
    name: String,
    /// machine-id(5), which the kubelet reports as well: a node that joins again is known by it.
    machine: String,
    /// The machine's UUID of SMBIOS (DMTF DSP0134, 7.2.1), if it has one: it outlives the disk.
    #[serde(default)]
    system: Option<String>,
    wants: Wants,
}

/// What a node wants to become.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Wants {
    Worker,
    /// To become a control plane if the cluster has too few, else a worker.
    ControlPlane,
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Granted(Grant),
    /// It is worth asking again.
    Later(String),
    Refused(String),
}

/// What a node joins with.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// Address of the API server.
    pub endpoint: SocketAddr,
    /// Digests of the cluster's authorities as kubeadm pins them.
    pub authorities: Vec<String>,
    /// Bootstrap token of a short life.
    pub token: String,
    /// What a control plane needs beyond that; a worker gets none.
    #[serde(default)]
    pub control_plane: Option<ControlPlane>,
}

/// What makes a node a control plane.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
    /// What kubeadm has enciphered the authorities' keys with, in the cluster.
    pub certificate_key: String,
    /// The file of keys for secrets at rest.
    pub encryption: String,
}

/// Why a node got nothing.
#[derive(Debug, PartialEq)]
enum Trouble {
    /// Nobody answered, or not yet; it is worth asking again.
    Silent(String),
    /// The secrets differ or the request was refused; somebody has to change something.
    Refused(String),
}

/// Asks a cluster's service; with the grant comes the address that the node has towards it.
async fn ask(endpoint: &str, secret: &Secret, request: &Request) -> Result<(Grant, IpAddr), Trouble> {
    let conversation = async {
        let stream = timeout(PATIENCE, TcpStream::connect(endpoint)).await??;
        let own = stream.local_addr()?.ip().to_canonical();
        let mut channel = timeout(PATIENCE, Channel::connect(stream, secret)).await??;
        channel.send(request).await?;
        Ok::<(Answer, IpAddr), std::io::Error>((channel.receive().await?, own))
    };
    match timeout(PATIENCE * 2 + MAKING, conversation).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
        Ok((Answer::Granted(grant), own)) => Ok((grant, own)),
        Ok((Answer::Later(why), _)) => Err(Trouble::Silent(why)),
        Ok((Answer::Refused(why), _)) => Err(Trouble::Refused(why)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(Trouble::Refused(error.to_string())),
        Err(error) => Err(Trouble::Silent(words(&error))),
    }
}

/// The reason without the number of the system's error.
fn words(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::TimedOut => "no answer in time".into(),
        _ => error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase(),
    }
}

/// Answers nodes until the runtime ends. `make` decides and makes what a node gets; `say` gets one line for each conversation.
async fn serve<F, A>(listener: TcpListener, secret: Secret, make: F, say: fn(&str))
where
    F: Fn(Request, IpAddr) -> A + Clone + Send + 'static,
    A: Future<Output = Answer> + Send,
{
    let places = Arc::new(Semaphore::new(PLACES));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, peer)) = listener.accept().await else {
            sleep(PENALTY).await;
            continue;
        };
        let (secret, make) = (secret.clone(), make.clone());
        tokio::spawn(async move {
            let peer = peer.ip().to_canonical();
            match converse(stream, &secret, make).await {
                Ok(said) => say(&format!("join: {peer}: {said}")),
                Err(error) => {
                    say(&format!("join: {peer}: refused: {}", words(&error)));
                    sleep(PENALTY).await;
                }
            }
            drop(place);
        });
    }
}

async fn converse<F, A>(stream: TcpStream, secret: &Secret, make: F) -> std::io::Result<String>
where
    F: Fn(Request, IpAddr) -> A,
    A: Future<Output = Answer>,
{
    let here = stream.local_addr()?.ip().to_canonical();
    let (mut channel, request): (_, Request) = timeout(PATIENCE, async {
        let mut channel = Channel::accept(stream, secret).await?;
        let request = channel.receive().await?;
        Ok::<_, std::io::Error>((channel, request))
    })
    .await??;
    let name = request.name.escape_default().to_string();
    let answer = match (request.version, request.wants) {
        (VERSION, Wants::Worker | Wants::ControlPlane) => {
            timeout(MAKING, make(request, here)).await.unwrap_or_else(|_| Answer::Later("until the cluster's API answers in time".into()))
        }
        (VERSION, Wants::Unknown) => Answer::Refused("this cluster knows control planes and workers only".into()),
        (version, _) => Answer::Refused(format!("this cluster speaks version {VERSION} of joining, the node version {version}")),
    };
    timeout(PATIENCE, channel.send(&answer)).await??;
    Ok(match answer {
        Answer::Granted(Grant { control_plane: Some(_), .. }) => format!("{name} may join as a control plane"),
        Answer::Granted(_) => format!("{name} may join"),
        Answer::Later(why) => format!("{name} is to wait {why}"),
        Answer::Refused(why) => format!("{name} refused: {why}"),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::parse(&format!("{text}-0123456789abcdefghijklmnopqrstuvwxyz")).unwrap()
    }

    fn request(name: &str) -> Request {
        Request { version: VERSION, name: name.into(), machine: "m".into(), system: None, wants: Wants::Worker }
    }

    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

    fn note(line: &str) {
        SAID.lock().unwrap().push(line.into());
    }

    /// Runs a check against a service on loopback that grants everybody but `taken` and numbers its tokens.
    fn with_service<A: Future<Output = ()>>(check: impl FnOnce(String) -> A) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let tokens = Arc::new(AtomicUsize::new(0));
            let make = move |request: Request, here: IpAddr| {
                let number = tokens.fetch_add(1, Ordering::Relaxed);
                async move {
                    match request.name.as_str() {
                        "taken" => Answer::Refused("there is one".into()),
                        _ => Answer::Granted(Grant {
                            endpoint: (here, 6443).into(),
                            authorities: vec!["sha256:1".into()],
                            token: format!("token{number}"),
                            control_plane: None,
                        }),
                    }
                }
            };
            tokio::spawn(serve(listener, secret("known"), make, note));
            check(address).await;
        });
    }

    #[test]
    fn f4_each_asking_gets_a_token_of_its_own() {
        with_service(|address| async move {
            let first = ask(&address, &secret("known"), &request("a")).await.unwrap();
            let again = ask(&address, &secret("known"), &request("a")).await.unwrap();
            assert_eq!((first.0.endpoint, first.1), ("127.0.0.1:6443".parse().unwrap(), IpAddr::from([127, 0, 0, 1])));
            assert_ne!(first.0.token, again.0.token);
        });
    }

    #[test]
    fn f4_refusals_name_their_reason_on_both_sides() {
        with_service(|address| async move {
            let refused = |why: &str| Some(Trouble::Refused(why.into()));
            assert_eq!(
                ask(&address, &secret("other"), &request("x")).await.err(),
                refused("the other side has another cluster secret than this node")
            );
            assert_eq!(ask(&address, &secret("known"), &request("taken")).await.err(), refused("there is one"));
            let future = Request { wants: Wants::Unknown, ..request("later") };
            assert_eq!(ask(&address, &secret("known"), &future).await.err(), refused("this cluster knows control planes and workers only"));
            let newer = Request { version: 2, ..request("newer") };
            assert!(matches!(ask(&address, &secret("known"), &newer).await, Err(Trouble::Refused(why)) if why.contains("speaks version 1")));
            let said = SAID.lock().unwrap().join("\n");
            for line in ["join: 127.0.0.1: refused: it does not know the cluster secret", "join: 127.0.0.1: taken refused: there is one"] {
                assert!(said.contains(line), "{said}");
            }
        });
    }

    #[test]
    fn f4_nobody_there_is_worth_waiting_for() {
        with_service(|_| async move {
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
            assert_eq!(ask(&free, &secret("known"), &request("a")).await.err(), Some(Trouble::Silent("connection refused".into())));
        });
    }

    #[test]
    fn f4_slow_peers_give_their_places_back() {
        with_service(|address| async move {
            let mut slow = Vec::new();
            for _ in 0..PLACES {
                let mut stream = TcpStream::connect(&address).await.unwrap();
                stream.write_all(b"\x00").await.unwrap();
                slow.push(stream);
            }
            let mut answered = false;
            for _ in 0..20 {
                answered = answered || ask(&address, &secret("known"), &request("a")).await.is_ok();
            }
            assert!(answered);
        });
    }

    #[test]
    fn messages_of_later_versions_are_understood_as_far_as_possible() {
        let later = r#"{"version":2,"name":"n","machine":"m","wants":"witness","more":{"x":1}}"#;
        assert!(serde_json::from_str::<Request>(later).is_ok_and(|request| request.wants == Wants::Unknown && request.version == 2));
        let later = r#"{"granted":{"endpoint":"10.0.0.1:6443","authorities":[],"token":"t","more":"k"}}"#;
        assert!(matches!(serde_json::from_str(later), Ok(Answer::Granted(grant)) if grant.token == "t"));
    }
}
