//! Who asks a registry: the answers to its challenges (RFC 7235 basic, and the bearer tokens of the distribution project's token
//! specification) with the credentials of docker's configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use layers::{Context, Error, Result};
use serde::Deserialize;
use serde_json::Value;

use super::http::{Client, Method, show};
use super::redirect;

/// Most bytes of a token server's answer.
const TOKEN_LIMIT: u64 = 1 << 20;

/// What there is to show to a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    #[default]
    None,
    /// `user:password`.
    Basic(String),
    /// Some that this program cannot use, and why.
    Unusable(String),
}

impl std::fmt::Debug for Credentials {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Basic(pair) => write!(f, "Basic({}:…)", pair.split(':').next().unwrap_or_default()),
            Self::Unusable(why) => write!(f, "Unusable({why})"),
        }
    }
}

impl Credentials {
    fn basic(&self) -> Option<String> {
        if let Self::Basic(pair) = self { Some(format!("Basic {}", STANDARD.encode(pair))) } else { None }
    }

    fn hint(&self, registry: &str) -> String {
        match self {
            Self::None => format!("`docker login {registry}` or its like writes user name and password into docker's config.json"),
            Self::Basic(_) => format!("docker's config.json has a user name and password for {registry}; are they right, and may that user pull?"),
            Self::Unusable(why) => format!("{why}; a plain `auth` under `auths` of docker's config.json would be used"),
        }
    }
}

/// The access to one repository: what to put into `Authorization`, learnt from the registry's challenges.
#[derive(Debug)]
pub struct Access {
    http: Client,
    /// Host of the registry, for messages.
    registry: String,
    /// What is asked for where the registry does not say.
    scope: String,
    credentials: Credentials,
    header: Mutex<Option<Secret>>,
}

/// The value of an `Authorization` header, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl Access {
    /// Access to a repository of a registry, anonymous until the registry asks.
    pub fn new(http: &Client, registry: &str, repository: &str, credentials: Credentials) -> Self {
        let scope = format!("repository:{repository}:pull");
        Self { http: http.guarded(), registry: registry.into(), scope, credentials, header: Mutex::default() }
    }

    /// The value of `Authorization`; none before the registry has asked for one.
    pub fn header(&self) -> Option<Secret> {
        self.header.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Answers the challenges (`WWW-Authenticate`) with which the server at `url` refused a request that showed `shown`; the next request may
    /// then be allowed.
    pub fn answer(&self, url: &str, shown: Option<&Secret>, challenges: &[&str]) -> Result<()> {
        // A request beside this one has learnt the answer meanwhile.
        if self.header().as_ref() != shown {
            return Ok(());
        }
        let parsed: Vec<_> = challenges.iter().flat_map(|text| parse(text)).collect();
        let header = match parsed.iter().find(|c| c.scheme == "bearer").or_else(|| parsed.iter().find(|c| c.scheme == "basic")) {
            Some(challenge) if challenge.scheme == "bearer" => self.token(url, challenge)?,
            Some(_) => self.credentials.basic().ok_or_else(|| self.refused("asks for a user name and password"))?,
            None => return Err(self.refused("asks for credentials in no way that is known")),
        };
        self.learn(shown, Secret(header))
    }

    /// What was shown is what would be shown again: it was refused. A request beside this one may have learnt the same answer just now, which is
    /// no refusal.
    fn learn(&self, shown: Option<&Secret>, header: Secret) -> Result<()> {
        if shown == Some(&header) {
            return Err(self.refused("refuses the user name and password"));
        }
        *self.header.lock().unwrap_or_else(|e| e.into_inner()) = Some(header);
        Ok(())
    }

    fn refused(&self, what: &str) -> Error {
        Error::environment(format!("the registry {what}")).with_hint(self.credentials.hint(&self.registry))
    }

    /// Asks the server that the challenge names for a token. A registry says its address, so the rules for redirections hold.
    fn token(&self, url: &str, challenge: &Challenge) -> Result<String> {
        let realm = challenge.get("realm").ok_or_else(|| self.refused("asks for a token and does not say whose"))?;
        let realm = redirect::next(url, realm).context(|| "asking for a token".into())?;
        let scope = challenge.get("scope").unwrap_or(&self.scope);
        let pairs = challenge.get("service").map(|service| ("service", service)).into_iter().chain([("scope", scope)]);
        let query: Vec<_> = pairs.map(|(key, value)| format!("{key}={}", escape(value))).collect();
        let address = format!("{realm}{}{}", if realm.contains('?') { '&' } else { '?' }, query.join("&"));
        let naming = || format!("asking {} for a token", show(&realm));
        // Without an access: a token server that asks for more is not answered, so nothing can go round in circles.
        let http = self.http.authorized(self.credentials.basic().map(Secret));
        let reply = http.reply(Method::Get, &address, TOKEN_LIMIT).context(naming)?;
        if reply.status != 200 {
            let refused = Error::environment(format!("{}: it answers {}", naming(), reply.status));
            return Err(refused.with_hint(self.credentials.hint(&self.registry)));
        }
        let value: Value = serde_json::from_slice(&reply.body).context(naming)?;
        let token = ["token", "access_token"].iter().find_map(|key| value[key].as_str()).filter(|token| !token.is_empty());
        token.map(|token| format!("Bearer {token}")).ok_or_else(|| Error::environment(format!("{}: its answer has none", naming())))
    }
}

/// One challenge of a server.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    /// In lower case.
    scheme: String,
    parameters: BTreeMap<String, String>,
}

impl Challenge {
    fn get(&self, name: &str) -> Option<&String> {
        self.parameters.get(name)
    }
}

/// The challenges of one header (RFC 7235, 4.1): `Bearer realm="…",service="…", Basic realm="…"`.
fn parse(text: &str) -> Vec<Challenge> {
    let mut out: Vec<Challenge> = Vec::new();
    for part in split(text) {
        let (name, value) = part.split_once('=').map_or((part.as_str(), None), |(name, value)| (name.trim(), Some(value.trim())));
        let name = match name.rsplit_once(char::is_whitespace) {
            Some((scheme, name)) => {
                out.push(Challenge { scheme: scheme.trim().to_lowercase(), parameters: BTreeMap::new() });
                name
            }
            None if value.is_none() => {
                out.push(Challenge { scheme: name.to_lowercase(), parameters: BTreeMap::new() });
                continue;
            }
            None => name,
        };
        if let (Some(challenge), Some(value)) = (out.last_mut(), value) {
            challenge.parameters.insert(name.to_lowercase(), unquote(value));
        }
    }
    out
}

/// Parts between commas that stand in no quotes.
fn split(text: &str) -> Vec<String> {
    let (mut parts, mut quoted, mut escaped) = (vec![String::new()], false, false);
    for c in text.chars() {
        match c {
            ',' if !quoted => parts.push(String::new()),
            _ => parts.iter_mut().last().into_iter().for_each(|part| part.push(c)),
        }
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
    }
    parts.into_iter().map(|part| part.trim().to_string()).filter(|part| !part.is_empty()).collect()
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) else { return value.into() };
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

/// A value of a query.
fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// docker's `config.json`: the credentials that `docker login`, podman, helm and others write.
#[derive(Clone, Debug, Default)]
pub struct DockerConfig {
    path: PathBuf,
    file: ConfigFile,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: BTreeMap<String, Auth>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl DockerConfig {
    /// Reads the file of `$DOCKER_CONFIG`, else of `~/.docker`; where there is none, nobody is logged in.
    pub fn find() -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker"))).map_or_else(|| Ok(Self::default()), |dir| Self::read(&dir))
    }

    /// Reads `config.json` of a folder.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e).context(|| format!("reading {}", path.display())),
        };
        let file = serde_json::from_slice(&text).context(|| format!("reading {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// The credentials for a host; `names` are the names that it goes by.
    pub fn credentials(&self, names: &[&str]) -> Result<Credentials> {
        let ours = |key: &String| names.contains(&host_of(key));
        let helper = self.file.cred_helpers.iter().find(|(key, _)| ours(key)).map(|(_, helper)| helper.as_str());
        if let Some(helper) = helper {
            return Ok(unusable(helper));
        }
        let Some((key, auth)) = self.file.auths.iter().find(|(key, _)| ours(key)) else { return Ok(Credentials::None) };
        let whole = || format!("reading the credentials of {key} in {}", self.path.display());
        match auth {
            Auth { identitytoken, .. } if !identitytoken.is_empty() => Ok(Credentials::Unusable(format!("the identity token of {key} is not used"))),
            Auth { auth, .. } if !auth.is_empty() => {
                let text = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                let pair = text.map(|text| text.trim_end_matches('\0').to_string()).filter(|text| text.contains(':'));
                pair.map(Credentials::Basic).ok_or_else(|| Error::input(format!("{}: `auth` is not base64 of `user:password`", whole())))
            }
            Auth { username, password, .. } if !username.is_empty() => Ok(Credentials::Basic(format!("{username}:{password}"))),
            _ if !self.file.creds_store.is_empty() => Ok(unusable(&self.file.creds_store)),
            _ => Ok(Credentials::None),
        }
    }
}

fn unusable(helper: &str) -> Credentials {
    Credentials::Unusable(format!("the credential helper docker-credential-{helper} is not run"))
}

/// Host of a key such as `https://index.docker.io/v1/` or `registry.example/team`.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::http::Limits;
    use super::*;

    #[test]
    fn challenges_are_read_with_quotes_commas_and_several_schemes() {
        let all = parse(r#"Bearer realm="https://a.test/token?x=1",service="a, b",scope="repository:x:pull,push", Basic realm="say \"hi\"""#);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].scheme.as_str(), all[0].get("realm").unwrap().as_str()), ("bearer", "https://a.test/token?x=1"));
        assert_eq!((all[0].get("service").unwrap().as_str(), all[0].get("scope").unwrap().as_str()), ("a, b", "repository:x:pull,push"));
        assert_eq!((all[1].scheme.as_str(), all[1].get("realm").unwrap().as_str()), ("basic", "say \"hi\""));
        assert_eq!(parse("Negotiate")[0].scheme, "negotiate");
        assert!(parse(", ,").is_empty());
        assert_eq!(escape("repository:a/b:pull x&y"), "repository:a/b:pull%20x%26y");
    }

    #[test]
    fn one_answer_learnt_twice_at_once_is_no_refusal_and_one_shown_in_vain_is() {
        let access = Access::new(&Client::new(Limits::default()), "a.test", "app", Credentials::Basic("me:geheim".into()));
        let header = Secret("Basic x".into());
        for _ in 0..2 {
            access.learn(None, header.clone()).unwrap();
            assert!(access.header().as_ref() == Some(&header));
        }
        assert!(access.learn(Some(&header), header.clone()).unwrap_err().to_string().contains("refuses the user name"));
    }

    #[test]
    fn credentials_come_from_dockers_file_and_are_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let (pair, bad) = (STANDARD.encode("me:geheim:x"), STANDARD.encode("nocolon"));
        let text = serde_json::json!({
            "auths": {"https://index.docker.io/v1/": {"auth": pair}, "a.test:5000": {"username": "u", "password": "geheim"}, "bad.test": {"auth": bad},
                "store.test": {}, "id.test": {"identitytoken": "geheim"}},
            "credsStore": "desktop", "credHelpers": {"gcr.io": "gcloud"}, "HttpHeaders": {}, "psFormat": "x",
        });
        std::fs::write(dir.path().join("config.json"), text.to_string()).unwrap();
        let config = DockerConfig::read(dir.path()).unwrap();
        let of = |name: &str| config.credentials(&[name]);
        assert_eq!(of("index.docker.io").unwrap(), Credentials::Basic("me:geheim:x".into()));
        assert_eq!(of("a.test:5000").unwrap().basic().unwrap(), format!("Basic {}", STANDARD.encode("u:geheim")));
        assert_eq!(of("a.test").unwrap(), Credentials::None);
        assert!(of("bad.test").unwrap_err().to_string().contains("bad.test in"));
        for (name, says) in [("gcr.io", "docker-credential-gcloud"), ("store.test", "docker-credential-desktop"), ("id.test", "identity token")] {
            assert!(of(name).unwrap().hint(name).contains(says), "{name}");
        }
        let shown = format!("{config:?} {:?}", of("index.docker.io"));
        assert!(!shown.contains("geheim") && !shown.contains(&pair), "{shown}");
        assert_eq!(DockerConfig::read(Path::new("/nonexistent")).unwrap().credentials(&["x"]).unwrap(), Credentials::None);
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        assert!(DockerConfig::read(dir.path()).unwrap_err().to_string().contains("config.json"));
    }
}
