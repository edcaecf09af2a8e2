//! Registries that lie, stall and lead astray: small servers on loopback, each with one fault.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use builder::source::auth::DockerConfig;
use builder::source::http::{Client, Limits};
use builder::source::oci;
use layers::Fault;
use layers::image::LockedImage;
use layers::units::{Bytes, Digest};
use made::{INDEX, Image, MANIFEST};
use serde_json::{Value, json};

use crate::common::oci as made;
use crate::common::registry::Bench;

/// One request as the server sees it.
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    /// How often this path was asked for before.
    nth: usize,
}

/// How the body comes.
#[derive(Clone, Copy)]
enum Body {
    Whole,
    Cut(usize),
    Endless,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    bytes: Vec<u8>,
    body: Body,
}

impl Answer {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), bytes: Vec::new(), body: Body::Whole }
    }

    fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    fn bytes(self, bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), ..self }
    }
}

type Handler = Box<dyn Fn(&Request) -> Option<Answer> + Send + Sync>;

/// A registry of one image, repository `app`, tag `1`; the handler goes first.
struct Server {
    host: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(image: Image, handler: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (log, image, handler): (Arc<Mutex<Vec<String>>>, _, Arc<Handler>) = (Arc::default(), Arc::new(image), Arc::new(Box::new(handler)));
        let shared = log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, image, handler) = (shared.clone(), image.clone(), handler.clone());
                // A client that hangs up early is part of the game.
                std::thread::spawn(move || serve(&stream, &image, &handler, &log).ok());
            }
        });
        Self { host, log }
    }

    fn name(&self) -> String {
        format!("{}/app:1", self.host)
    }

    fn asked(&self, part: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|path| path.contains(part)).count()
    }
}

fn serve(stream: &TcpStream, image: &Image, handler: &Handler, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut headers) = (String::new(), BTreeMap::new());
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_string);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_string());
    }
    let nth = {
        let mut log = log.lock().unwrap();
        log.push(path.clone());
        log.iter().filter(|p| **p == path).count() - 1
    };
    let request = Request { method, path, headers, nth };
    let answer = handler(&request).unwrap_or_else(|| ordinary(image, &request));
    send(stream, &request, &answer)
}

fn ordinary(image: &Image, request: &Request) -> Answer {
    let wanted = request.path.rsplit('/').next().unwrap_or_default();
    if request.path.contains("/manifests/") {
        let found = image.manifests.iter().find(|(_, bytes)| Digest::of(bytes).to_string() == wanted || (wanted == "1" && *bytes == image.target));
        return found.map_or(Answer::new(404), |(media_type, bytes)| Answer::new(200).with("content-type", media_type).bytes(bytes));
    }
    let Some(bytes) = wanted.parse().ok().and_then(|digest: Digest| image.blobs.get(&digest)) else { return Answer::new(404) };
    let from = request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        Some(from) => Answer::new(206).with("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())).bytes(&bytes[from..]),
        None => Answer::new(200).bytes(bytes),
    }
}

fn send(mut stream: &TcpStream, request: &Request, answer: &Answer) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {} X\r\nconnection: close\r\n", answer.status)?;
    answer.headers.iter().try_for_each(|(name, value)| write!(stream, "{name}: {value}\r\n"))?;
    if !matches!(answer.body, Body::Endless) && answer.headers.iter().all(|(name, _)| name != "content-length") {
        write!(stream, "content-length: {}\r\n", answer.bytes.len())?;
    }
    stream.write_all(b"\r\n")?;
    match answer.body {
        _ if request.method == "HEAD" => Ok(()),
        Body::Whole => stream.write_all(&answer.bytes),
        Body::Cut(n) => stream.write_all(&answer.bytes[..n.min(answer.bytes.len())]),
        Body::Endless => loop {
            stream.write_all(&[b' '; 4096])?;
        },
    }
}

/// A bench that gives up soon.
fn bench(docker: DockerConfig) -> Bench {
    Bench::new(&[], docker, Limits { attempts: 6, pause: Duration::from_millis(1), stall: Duration::from_secs(3) })
}

fn anonymous() -> Bench {
    bench(DockerConfig::default())
}

/// What locking says of a server with a fault; the user or the surroundings are to blame, never we.
fn refused(image: Image, handler: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> String {
    let server = Server::start(image, handler);
    let error = anonymous().lock(&server.name()).unwrap_err();
    assert_ne!(error.fault(), Fault::Internal);
    let text = error.to_string();
    assert!(text.contains(&server.name()), "{text}");
    text
}

fn simple() -> Image {
    made::image("amd64", &[made::tar(&[("noise", &made::noise(300_000))])])
}

/// The image with its manifest changed, so that digests stay right.
fn changed(image: &Image, change: impl FnOnce(&mut Value)) -> Image {
    let mut manifest: Value = serde_json::from_slice(&image.target).unwrap();
    change(&mut manifest);
    let target = manifest.to_string().into_bytes();
    Image { manifests: vec![(MANIFEST.into(), target.clone())], target, blobs: image.blobs.clone() }
}

fn config_of(image: &Image) -> Digest {
    let manifest: Value = serde_json::from_slice(&image.target).unwrap();
    manifest["config"]["digest"].as_str().unwrap().parse().unwrap()
}

fn layer_of(image: &Image) -> Digest {
    let manifest: Value = serde_json::from_slice(&image.target).unwrap();
    manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap()
}

#[test]
fn c1_a_manifest_of_another_digest_is_named_with_both() {
    let told = Digest::of(b"other");
    let image = simple();
    let found = Digest::of(&image.target);
    let bytes = image.target.clone();
    let text = refused(image, move |request| {
        let answer = || Answer::new(200).with("content-type", MANIFEST).with("docker-content-digest", told).bytes(&bytes);
        request.path.contains("/manifests/").then(answer)
    });
    assert!(text.contains(&format!("its digest is {found}, not {told}")), "{text}");
    // Asked by digest, the server sends something else.
    let (image, bytes) = (simple(), simple().target);
    let server = Server::start(image, move |r| r.path.contains("/manifests/").then(|| Answer::new(200).with("content-type", MANIFEST).bytes(&bytes)));
    let name = format!("{}/app@{told}", server.host);
    let text = anonymous().lock(&name).unwrap_err().to_string();
    assert!(text.contains(&name) && text.contains(&found.to_string()), "{text}");
}

#[test]
fn c1_configurations_and_layers_of_other_sizes_or_digests_are_named_when_locking() {
    let image = simple();
    let config = config_of(&image);
    let other = changed(&image, |manifest| manifest["config"]["size"] = json!(image.blobs[&config].len() + 1));
    let text = refused(other, |_| None);
    assert!(text.contains(&format!("reading blob {config}")) && text.contains("the manifest says"), "{text}");
    let other = changed(&image, |manifest| manifest["config"]["size"] = json!(7));
    assert!(refused(other, |_| None).contains("more than 7 bytes"));
    let mut flipped = image.blobs[&config].clone();
    flipped[3] ^= 1;
    let text = refused(image.clone(), move |r| r.path.ends_with(&config.to_string()).then(|| Answer::new(200).bytes(&flipped)));
    assert!(text.contains(&format!("reading blob {config}")) && text.contains("its digest is sha256:"), "{text}");
    let layer = layer_of(&image);
    let real = image.blobs[&layer].len();
    let other = changed(&image, |manifest| manifest["layers"][0]["size"] = json!(5));
    let text = refused(other, |_| None);
    assert!(text.contains(&format!("blob {layer}")) && text.contains(&format!("the registry has {real} bytes, the manifest says 5")), "{text}");
}

#[test]
fn c1_a_layer_with_other_bytes_is_named_with_both_digests_and_kept_aside() {
    let image = simple();
    let layer = layer_of(&image);
    let mut flipped = image.blobs[&layer].clone();
    flipped[1000] ^= 1;
    let found = Digest::of(&flipped);
    let server = Server::start(image, move |r| (r.method == "GET" && r.path.ends_with(&layer.to_string())).then(|| Answer::new(200).bytes(&flipped)));
    let bench = anonymous();
    let locked = bench.lock(&server.name()).unwrap();
    let error = bench.fetch(&locked).unwrap_err().to_string();
    for part in [format!("fetching image {}", server.name()), layer.to_string(), found.to_string()] {
        assert!(error.contains(&part), "{part}: {error}");
    }
    assert!(bench.store.quarantine(&layer).exists() && !bench.store.blob(&layer).exists());
    assert_eq!(server.asked(&layer.to_string()), 3, "one look, two downloads");
}

#[test]
fn c2_documents_that_two_readers_could_take_for_two_things_are_refused() {
    let image = simple();
    for key in ["manifests", "Manifests", "fsLayers"] {
        let text = refused(changed(&image, |manifest| manifest[key] = json!([])), |_| None);
        assert!(text.contains(&format!("is served as a manifest and holds `{key}`: ambiguous")), "{text}");
    }
    for key in ["layers", "config", "Layers"] {
        let mut index = made::index(&[("amd64", &image)]);
        let mut value: Value = serde_json::from_slice(&index.target).unwrap();
        value[key] = json!([]);
        index.target = value.to_string().into_bytes();
        index.manifests.push((INDEX.into(), index.target.clone()));
        let text = refused(index, |_| None);
        assert!(text.contains(&format!("is served as an index and holds `{key}`: ambiguous")), "{text}");
    }
}

#[test]
fn c2_a_content_type_that_differs_from_the_media_type_is_refused() {
    let image = simple();
    for (served, says) in [(INDEX, "says that it is"), ("text/html", "says that it is"), ("", "says that it is")] {
        let bytes = image.target.clone();
        let text =
            refused(image.clone(), move |r| r.path.contains("/manifests/").then(|| Answer::new(200).with("content-type", served).bytes(&bytes)));
        assert!(text.contains(&format!("is served as `{served}`")) && text.contains(says), "{text}");
    }
    // Without a media type of its own a document is what it is served as, and must have that shape.
    let bare = changed(&image, |manifest| drop(manifest.as_object_mut().unwrap().remove("mediaType")));
    let server = Server::start(bare.clone(), |_| None);
    assert_eq!(anonymous().lock(&server.name()).unwrap().manifest.media_type, MANIFEST);
    let bytes = bare.target.clone();
    let text = refused(bare, move |r| r.path.contains("/manifests/").then(|| Answer::new(200).with("content-type", INDEX).bytes(&bytes)));
    assert!(text.contains("is served as an index and holds"), "{text}");
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let text = refused(image, move |r| {
        r.path.contains("/manifests/").then(|| Answer::new(200).with("content-type", old).bytes(br#"{"schemaVersion":1,"fsLayers":[]}"#))
    });
    assert!(text.contains(old) && text.contains("schema 2"), "{text}");
}

#[test]
fn c6_an_endless_manifest_ends_at_four_mebibytes() {
    let text = refused(simple(), |r| {
        let answer = Answer { body: Body::Endless, ..Answer::new(200).with("content-type", MANIFEST) };
        r.path.contains("/manifests/").then_some(answer)
    });
    assert!(text.contains("reading manifest 1 of") && text.contains("more than 4194304 bytes"), "{text}");
    let text =
        refused(simple(), |r| r.path.contains("/manifests/").then(|| Answer::new(200).with("content-type", MANIFEST).bytes(&vec![b' '; 5 << 20])));
    assert!(text.contains("more than 4194304 bytes"), "{text}");
    let index = changed(&simple(), |manifest| manifest["config"]["size"] = json!(5 << 20));
    assert!(refused(index, |_| None).contains("more than 4 MiB"));
}

#[test]
fn c6_redirections_to_files_metadata_and_in_circles_are_refused() {
    for (to, says) in [
        ("file:///etc/passwd", "no web address"),
        ("http://169.254.169.254/latest/meta-data/?x=secret", "told from outside"),
        ("http://[::ffff:a9fe:a9fe]/", "told from outside"),
        ("/v2/app/manifests/1", "more than 10 redirections"),
        ("ftp://127.0.0.1/x", "no web address"),
    ] {
        let text = refused(simple(), move |r| r.path.contains("/manifests/").then(|| Answer::new(307).with("location", to)));
        assert!(text.contains(says) && !text.contains("secret"), "{to}: {text}");
    }
    // Blobs elsewhere are ordinary.
    let image = simple();
    let elsewhere = Server::start(image.clone(), |r| {
        assert!(!r.headers.contains_key("authorization"), "another server must not learn who asks");
        None
    });
    let target = elsewhere.host.clone();
    let server = Server::start(image, move |r| match r.headers.get("authorization").map(String::as_str) {
        None => Some(Answer::new(401).with("www-authenticate", "Basic realm=\"x\"")),
        Some("Basic bWU6Z2VoZWlt") if r.path.contains("/blobs/") => Some(Answer::new(307).with("location", format!("http://{target}{}", r.path))),
        Some(_) => None,
    });
    let bench = bench(credentials(&server.host));
    let locked = bench.lock(&server.name()).unwrap();
    bench.fetch(&locked).unwrap();
    assert!(elsewhere.asked("/blobs/") >= 2);
}

fn credentials(host: &str) -> DockerConfig {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), json!({"auths": {host: {"auth": "bWU6Z2VoZWlt"}}}).to_string()).unwrap();
    DockerConfig::read(dir.path()).unwrap()
}

#[test]
fn c6_a_registry_that_asks_who_we_are_for_ever_is_left() {
    let server = Server::start(simple(), |r| match r.path.split('?').next().unwrap() {
        "/token" => Some(Answer::new(200).bytes(format!(r#"{{"token": "t{}"}}"#, r.nth).as_bytes())),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\"", r.headers["host"]);
            Some(Answer::new(401).with("www-authenticate", realm))
        }
    });
    let text = anonymous().lock(&server.name()).unwrap_err().to_string();
    assert!(text.contains("the server answers 401, also after trying again"), "{text}");
    assert!(server.asked("/manifests/") <= 3 && server.asked("/token") <= 3, "{:?}", server.log.lock());
    // A token server that wants a token, and one at an address that nobody is told.
    let server =
        Server::start(simple(), |r| Some(Answer::new(401).with("www-authenticate", format!("Bearer realm=\"http://{}/token\"", r.headers["host"]))));
    let text = anonymous().lock(&server.name()).unwrap_err().to_string();
    assert!(text.contains("for a token: it answers 401") && server.asked("/token") == 1, "{text}");
    for (realm, says) in [("http://169.254.169.254/x", "told from outside"), ("file:///etc/passwd", "no web address")] {
        let text = refused(simple(), move |_| Some(Answer::new(401).with("www-authenticate", format!("Bearer realm=\"{realm}\""))));
        assert!(text.contains("asking for a token") && text.contains(says), "{text}");
    }
}

/// A registry with tokens that serve one request only, as if they ran out at once.
#[test]
fn tokens_are_asked_for_with_the_scope_and_renewed_when_they_run_out() {
    let spent = Mutex::new(std::collections::BTreeSet::new());
    let server = Server::start(simple(), move |r| {
        if let Some(query) = r.path.strip_prefix("/token?") {
            assert_eq!(query, "service=a%20b&scope=repository:app:pull");
            assert_eq!(r.headers["authorization"], "Basic bWU6Z2VoZWlt");
            return Some(Answer::new(200).bytes(format!(r#"{{"access_token": "t{}"}}"#, r.nth).as_bytes()));
        }
        let fresh = r.headers.get("authorization").is_some_and(|token| token.starts_with("Bearer t") && spent.lock().unwrap().insert(token.clone()));
        let challenge = format!(r#"Bearer realm="http://{}/token",service="a b",scope="repository:app:pull""#, r.headers["host"]);
        (!fresh).then(|| Answer::new(401).with("www-authenticate", challenge))
    });
    let bench = bench(credentials(&server.host));
    let locked = bench.lock(&server.name()).unwrap();
    bench.fetch(&locked).unwrap();
    assert!(server.asked("/token") >= 4);
}

#[test]
fn c8_an_image_for_other_machines_is_named_with_its_platforms() {
    let (arm, s390) = (made::image("arm64", &[made::tar(&[("x", b"x")])]), made::image("s390x", &[made::tar(&[("y", b"y")])]));
    let text = refused(made::index(&[("arm64", &arm), ("s390x", &s390), ("unknown", &arm)]), |_| None);
    assert!(text.contains("the image is not for linux/amd64; it is for linux/arm64, linux/s390x"), "{text}");
    let text = refused(arm.clone(), |_| None);
    assert!(text.contains("the image is for linux/arm64, needed is linux/amd64"), "{text}");
    // An index that calls an image ours which is not.
    let text = refused(made::index(&[("amd64", &arm)]), |_| None);
    assert!(text.contains("the image is for linux/arm64, needed is linux/amd64"), "{text}");
}

#[test]
fn an_index_within_an_index_and_layers_from_elsewhere_are_refused() {
    let inner = made::index(&[("amd64", &simple())]);
    let mut outer = made::index(&[("amd64", &inner)]);
    outer.manifests.iter_mut().for_each(|(media_type, bytes)| *media_type = if *bytes == simple().target { MANIFEST.into() } else { INDEX.into() });
    let text = refused(outer, |_| None);
    assert!(text.contains("is an index within an index"), "{text}");
    let layer = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let text = refused(changed(&simple(), |manifest| manifest["layers"][0]["mediaType"] = json!(layer)), |_| None);
    assert!(text.contains("is not to be had from the registry"), "{text}");
    let text = refused(changed(&simple(), |manifest| manifest["layers"][0]["digest"] = json!(format!("sha512:{}", "a".repeat(128)))), |_| None);
    assert!(text.contains("no sha256 digest"), "{text}");
    let text = refused(changed(&simple(), |manifest| manifest["layers"] = json!([])), |_| None);
    assert!(text.contains("the manifest has 0 layers, the configuration 1"), "{text}");
}

#[test]
fn b8_an_unsteady_registry_is_asked_again_and_downloads_go_on_where_they_broke_off() {
    let image = simple();
    let layer = layer_of(&image);
    let blob = image.blobs[&layer].clone();
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let seen = ranges.clone();
    let server = Server::start(image, move |r| {
        let get_layer = r.method == "GET" && r.path.ends_with(&layer.to_string());
        if get_layer {
            seen.lock().unwrap().push(r.headers.get("range").cloned());
        }
        match r.nth {
            n if !get_layer && n % 2 == 0 => Some(Answer::new(503)),
            // The first look at the layer is a HEAD, as is the second.
            n if get_layer && n < 4 => {
                let from = r.headers.get("range").map_or(0, |range| range["bytes=".len()..range.len() - 1].parse::<usize>().unwrap());
                let status = if from == 0 { 200 } else { 206 };
                let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                Some(Answer { body: Body::Cut(60_000), ..Answer::new(status).with("content-range", range).bytes(&blob[from..]) })
            }
            _ => None,
        }
    });
    let bench = anonymous();
    let locked = bench.lock(&server.name()).unwrap();
    bench.fetch(&locked).unwrap();
    assert!(locked.descriptors().all(|part| bench.store.blob(&part.digest).exists()));
    let ranges = ranges.lock().unwrap();
    assert_eq!(ranges[..3], [None, Some("bytes=60000-".into()), Some("bytes=120000-".into())], "{ranges:?}");
}

#[test]
fn b8_a_registry_that_is_gone_or_has_dropped_a_layer_is_named() {
    let image = simple();
    let layer = layer_of(&image);
    let server = Server::start(image, move |r| (r.method == "GET" && r.path.ends_with(&layer.to_string())).then(|| Answer::new(404)));
    let bench = anonymous();
    let locked = bench.lock(&server.name()).unwrap();
    let error = bench.fetch(&locked).unwrap_err();
    assert!(error.to_string().contains(&format!("has no {layer} any more")) && error.hint().unwrap().contains("--update"), "{error}");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = bench.lock(&format!("{gone}/app:1")).unwrap_err();
    assert!(error.fault() == Fault::Environment && error.to_string().contains(&gone.to_string()), "{error}");
    let short = LockedImage { layers: locked.layers.iter().map(|l| layers::image::Descriptor { size: Bytes(9), ..l.clone() }).collect(), ..locked };
    let blob = Server::start(simple(), |_| None);
    let moved = LockedImage { pull: blob.name(), ..short };
    let error = bench.fetch(&moved).unwrap_err().to_string();
    assert!(error.contains("sends other bytes"), "{error}");
}

/// Says nothing for longer than the client waits.
#[test]
fn b8_a_registry_that_stalls_is_left_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 512]);
            kept.push(stream);
        }
    });
    let bench = anonymous();
    let site = bench.site();
    let limits = Limits { attempts: 2, pause: Duration::from_millis(1), stall: Duration::from_millis(300) };
    let site = builder::source::deb::Archive { http: Client::new(limits), ..site };
    let name = format!("{host}/app:1");
    let error = oci::lock(&site, &bench.registries, &name, &name, "amd64").unwrap_err();
    assert!(error.fault() == Fault::Environment && error.to_string().contains(&name), "{error}");
}
