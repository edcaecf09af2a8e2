//! `vcluster connect`: the kubeconfig of a virtual cluster for where it is used, and a command that runs with it.

use std::ffi::OsString;
use std::io::Write as _;

use clap::Args;
use kube::config::{AuthInfo, Context, Kubeconfig};
use kube::{Client, ResourceExt as _};
use layers::platform::{Phase, VirtualCluster};
use layers::{Context as _, Error, Fault, Result};

use super::table::word;
use super::token::{self, Access};
use super::{Outcome, Place, Session};
use crate::exec;
use crate::platform::host;

#[derive(Debug, Args)]
pub struct Connect {
    /// Name of the virtual cluster.
    pub name: String,
    /// Print the kubeconfig, as is done without a command.
    #[arg(long, conflicts_with = "command")]
    print: bool,
    /// Name or address that leads to the virtual cluster's API; port 443 when absent. Of one that is exposed below a path the exposed host is the way through
    /// the ingress controller, by a token, all else one to the API itself.
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Option<String>,
    /// Command that is run with KUBECONFIG set.
    #[arg(last = true)]
    command: Vec<OsString>,
}

impl Connect {
    pub(super) async fn run(&self, session: &Session<'_>, object: &VirtualCluster, client: Client) -> Result<Outcome> {
        let phase = object.status.as_ref().map_or(Phase::Pending, |status| status.phase);
        if phase != Phase::Running {
            (session.say)(&format!("virtual cluster {} is {}: its API may not answer", self.name, word(phase)));
        }
        let reading = || format!("reading the credentials of virtual cluster {}", self.name);
        let (config, inside) = host::Place::new(&client, &self.name).credentials().await?;
        let way = Way::find(session.place, self.server.as_deref(), object, inside.as_deref())?;
        let config = config.ok_or_else(|| Error::environment(reading() + ": there are none yet").with_hint("wait until it is RUNNING"))?;
        let access = match way.through {
            Through::Nobody => None,
            Through::Controller => Some(token::access(session, &client, &self.name, &config, inside.as_deref()).await?),
        };
        let text = way.put_into(&config, &self.name, access).context(reading)?;
        match self.command.split_first() {
            None => Ok(text.into()),
            Some((program, arguments)) => Ok(Outcome { code: with(&text, program, arguments).await?, ..Outcome::default() }),
        }
    }
}

/// Runs a command with KUBECONFIG set to a file that nobody else can read and that ends with the command.
async fn with(kubeconfig: &str, program: &OsString, arguments: &[OsString]) -> Result<u8> {
    let writing = || "writing a kubeconfig for the command".to_string();
    let mut file = tempfile::Builder::new().prefix("chasi-bod-").suffix(".kubeconfig").tempfile().context(writing)?;
    file.write_all(kubeconfig.as_bytes()).context(writing)?;
    let mut command = std::process::Command::new(program);
    exec::foreground(command.args(arguments).env("KUBECONFIG", file.path())).await
}

/// The way to a virtual cluster's API.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    server: String,
    /// The name to look for in the certificate, where that lacks the server's.
    name: Option<String>,
    through: Through,
}

/// At whom TLS ends before the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Through {
    Nobody,
    /// The ingress controller, where the virtual cluster is exposed below a path.
    Controller,
}

impl Way {
    /// The certificate has the address of the Service, the name for the outside and NAME.NAMESPACE (`pkg/server/cert` of vcluster). By the name for the
    /// outside an ingress controller knows where to lead a connection.
    fn find(place: Place<'_>, given: Option<&str>, object: &VirtualCluster, inside: Option<&str>) -> Result<Self> {
        let (name, endpoint) = (object.name_any(), object.status.as_ref().and_then(|status| status.endpoint.as_deref()));
        let connecting = format!("connecting to virtual cluster {name}");
        let server = match (given, place, endpoint, inside) {
            (Some(given), ..) => given.to_string(),
            (_, Place::Node(_), _, Some(inside)) => host::url_host(inside),
            (_, Place::Node(_), _, None) => return Err(Error::environment(connecting + ": its Service is not there yet")),
            (_, Place::Workstation, Some(endpoint), _) => endpoint.into(),
            (_, Place::Workstation, None, _) => {
                let hint = "set `network.exposure`, name an address that leads to it with --server, or ask a control plane";
                return Err(Error::input(connecting + ": its API has no address outside of the cluster")
                    .with_hint(format!("{hint}: `ssh root@NODE chasi-bod vcluster connect {name} -- COMMAND`")));
            }
        };
        let address = server.trim_start_matches("https://");
        let outside = endpoint.map(|endpoint| endpoint.trim_start_matches("https://"));
        let outside = outside.map(|outside| outside.split_once('/').map_or((outside, None), |(host, path)| (host, Some(path))));
        let is_outside = outside.is_some_and(|(host, _)| address.split([':', '/']).next() == Some(host));
        if let Some((_, Some(path))) = outside.filter(|_| is_outside) {
            let server = format!("https://{}/{path}", address.split('/').next().unwrap_or_default());
            return Ok(Self { server, name: None, through: Through::Controller });
        }
        // A host that has a path is not in the API's certificate.
        let known = || outside.filter(|(_, path)| path.is_none()).map_or_else(|| format!("{name}.vcluster-{name}"), |(host, _)| host.into());
        let name = (given.is_some() && !is_outside).then(known);
        Ok(Self { server: format!("https://{address}"), name, through: Through::Nobody })
    }

    /// A kubeconfig that goes this way. All in it gets the virtual cluster's name: people put several of them into one.
    fn put_into(&self, kubeconfig: &str, name: &str, access: Option<Access>) -> Result<String> {
        let mut config = Kubeconfig::from_yaml(kubeconfig).map_err(|e| Error::internal(e.to_string()))?;
        let own = || name.to_string();
        for named in &mut config.clusters {
            named.name = own();
            let cluster = named.cluster.get_or_insert_default();
            (cluster.server, cluster.tls_server_name) = (Some(self.server.clone()), self.name.clone());
            if let Some(access) = &access {
                cluster.certificate_authority_data = access.authority.clone();
            }
        }
        for named in &mut config.auth_infos {
            named.name = own();
            if let Some(access) = &access {
                named.auth_info = Some(AuthInfo { token: Some(access.token.clone().into()), ..AuthInfo::default() });
            }
        }
        for named in &mut config.contexts {
            (named.name, named.context) = (own(), Some(Context { cluster: own(), user: Some(own()), ..Context::default() }));
        }
        config.current_context = Some(own());
        serde_saphyr::to_string(&config).fault(Fault::Internal, || "printing the kubeconfig".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    fn object(rest: &str) -> VirtualCluster {
        serde_saphyr::from_str(&format!("{{apiVersion: chasi-bod.io/v1alpha1, kind: VirtualCluster, metadata: {{name: biz}}, spec: {{}}{rest}}}"))
            .unwrap()
    }

    fn way(server: &str, name: Option<&str>) -> Way {
        Way { server: server.into(), name: name.map(Into::into), through: Through::Nobody }
    }

    fn through(server: &str) -> Way {
        Way { server: server.into(), name: None, through: Through::Controller }
    }

    #[test]
    fn each_place_gets_an_address_that_it_reaches_and_a_name_that_the_certificate_has() {
        let (plain, exposed) = (object(""), object(", status: {endpoint: 'https://biz.example.org'}"));
        let host = Host::new("/nowhere");
        let below = object(", status: {endpoint: 'https://apis.example.org/teams/biz'}");
        let (node, outside, inner) = (Place::Node(&host), Place::Workstation, Some("biz.vcluster-biz"));
        for (place, given, object, inside, expected) in [
            (node, None, &plain, Some("10.96.0.7"), way("https://10.96.0.7", None)),
            (node, None, &exposed, Some("fd00::7"), way("https://[fd00::7]", None)),
            (node, Some("127.0.0.1:8443"), &plain, None, way("https://127.0.0.1:8443", inner)),
            (outside, None, &exposed, Some("10.96.0.7"), way("https://biz.example.org", None)),
            (outside, Some("biz.example.org:8443"), &exposed, None, way("https://biz.example.org:8443", None)),
            (outside, Some("192.0.2.1"), &exposed, None, way("https://192.0.2.1", Some("biz.example.org"))),
            (outside, Some("192.0.2.1"), &plain, None, way("https://192.0.2.1", inner)),
            (node, None, &below, Some("10.96.0.7"), way("https://10.96.0.7", None)),
            (outside, None, &below, Some("10.96.0.7"), through("https://apis.example.org/teams/biz")),
            (outside, Some("apis.example.org:8443"), &below, None, through("https://apis.example.org:8443/teams/biz")),
            (node, Some("https://apis.example.org/teams/biz"), &below, None, through("https://apis.example.org/teams/biz")),
            (outside, Some("127.0.0.1:8443"), &below, None, way("https://127.0.0.1:8443", inner)),
        ] {
            assert_eq!(Way::find(place, given, object, inside).unwrap(), expected);
        }
    }

    #[test]
    fn without_a_way_it_says_what_to_do() {
        let error = Way::find(Place::Workstation, None, &object(""), Some("10.96.0.7")).unwrap_err();
        let hint = error.hint().unwrap();
        assert!(
            hint.contains("network.exposure") && hint.contains("--server") && hint.contains("ssh root@NODE chasi-bod vcluster connect biz"),
            "{hint}"
        );
        assert!(Way::find(Place::Node(&Host::new("/")), None, &object(""), None).is_err());
    }

    #[test]
    fn the_kubeconfig_keeps_its_credentials_and_gets_address_and_names() {
        let before = "{apiVersion: v1, kind: Config, current-context: my-vcluster, contexts: [{name: my-vcluster, context: {cluster: c, user: u}}],
            clusters: [{name: c, cluster: {server: 'https://localhost:8443', certificate-authority-data: QQ==}}],
            users: [{name: u, user: {client-certificate-data: Qg==, client-key-data: Qw==}}]}";
        let after: serde_json::Value =
            serde_saphyr::from_str(&way("https://192.0.2.1", Some("biz.vcluster-biz")).put_into(before, "biz", None).unwrap()).unwrap();
        let cluster = serde_json::json!({"server": "https://192.0.2.1", "certificate-authority-data": "QQ==", "tls-server-name": "biz.vcluster-biz"});
        let expected = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "biz", "clusters": [{"name": "biz", "cluster": cluster}],
            "contexts": [{"name": "biz", "context": {"cluster": "biz", "user": "biz"}}],
            "users": [{"name": "biz", "user": {"client-certificate-data": "Qg==", "client-key-data": "Qw=="}}],
        });
        assert_eq!(after, expected);
        for authority in [Some("RA=="), None] {
            let access = Access { token: "t".into(), authority: authority.map(Into::into) };
            let text = through("https://apis.example.org/biz").put_into(before, "biz", Some(access)).unwrap();
            let after: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            let cluster = &after["clusters"][0]["cluster"];
            assert_eq!((&cluster["server"], cluster["certificate-authority-data"].as_str()), (&"https://apis.example.org/biz".into(), authority));
            assert_eq!(after["users"], serde_json::json!([{"name": "biz", "user": {"token": "t"}}]), "a certificate would not get through");
        }
    }

    #[tokio::test]
    async fn a_command_gets_a_private_kubeconfig_that_goes_with_it_and_its_exit_code_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let seen = folder.path().join("seen");
        let script = format!("cat $KUBECONFIG >{0}; stat -c ' %a %n' $KUBECONFIG >>{0}; exit 7", seen.display());
        let code = with("secret", &"sh".into(), &["-c".into(), script.into()]).await.unwrap();
        let seen = std::fs::read_to_string(seen).unwrap();
        let (before, path) = seen.trim().split_once(" 600 ").unwrap();
        assert_eq!((code, before), (7, "secret"));
        assert!(!std::path::Path::new(path).exists(), "{path}");
        assert_eq!(with("", &"sh".into(), &["-c".into(), "kill -9 $$".into()]).await.unwrap(), 137);
        assert_eq!(with("", &"/nowhere/tool".into(), &[]).await.unwrap_err().fault(), Fault::Environment);
    }
}
