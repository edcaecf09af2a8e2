//! `vcluster connect`: the kubeconfig of a virtual cluster for where it is used, and a command that runs with it.

use std::ffi::OsString;
use std::io::Write as _;

use clap::Args;
use kube::config::{Context, Kubeconfig};
use kube::{Client, ResourceExt as _};
use layers::platform::{Phase, VirtualCluster};
use layers::{Context as _, Error, Fault, Result};

use super::table::word;
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
    /// Name or address that leads to the virtual cluster's API; port 443 when absent.
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
        let text = way.put_into(&config, &self.name).context(reading)?;
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
        let server = format!("https://{}", server.trim_start_matches("https://"));
        let host = |url: &str| url["https://".len()..].split([':', '/']).next().map(str::to_string);
        let certified = given.is_none() || endpoint.is_some_and(|endpoint| host(endpoint) == host(&server));
        let known = || endpoint.and_then(host).unwrap_or_else(|| format!("{name}.vcluster-{name}"));
        Ok(Self { server, name: (!certified).then(known) })
    }

    /// A kubeconfig that goes this way. All in it gets the virtual cluster's name: people put several of them into one.
    fn put_into(&self, kubeconfig: &str, name: &str) -> Result<String> {
        let mut config = Kubeconfig::from_yaml(kubeconfig).map_err(|e| Error::internal(e.to_string()))?;
        let own = || name.to_string();
        for named in &mut config.clusters {
            named.name = own();
            let cluster = named.cluster.get_or_insert_default();
            (cluster.server, cluster.tls_server_name) = (Some(self.server.clone()), self.name.clone());
        }
        config.auth_infos.iter_mut().for_each(|named| named.name = own());
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
        Way { server: server.into(), name: name.map(Into::into) }
    }

    #[test]
    fn each_place_gets_an_address_that_it_reaches_and_a_name_that_the_certificate_has() {
        let (plain, exposed) = (object(""), object(", status: {endpoint: 'https://biz.example.org'}"));
        let host = Host::new("/nowhere");
        let (node, outside, inner) = (Place::Node(&host), Place::Workstation, Some("biz.vcluster-biz"));
        for (place, given, object, inside, expected) in [
            (node, None, &plain, Some("10.96.0.7"), way("https://10.96.0.7", None)),
            (node, None, &exposed, Some("fd00::7"), way("https://[fd00::7]", None)),
            (node, Some("127.0.0.1:8443"), &plain, None, way("https://127.0.0.1:8443", inner)),
            (outside, None, &exposed, Some("10.96.0.7"), way("https://biz.example.org", None)),
            (outside, Some("biz.example.org:8443"), &exposed, None, way("https://biz.example.org:8443", None)),
            (outside, Some("192.0.2.1"), &exposed, None, way("https://192.0.2.1", Some("biz.example.org"))),
            (outside, Some("192.0.2.1"), &plain, None, way("https://192.0.2.1", inner)),
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
            serde_saphyr::from_str(&way("https://192.0.2.1", Some("biz.vcluster-biz")).put_into(before, "biz").unwrap()).unwrap();
        let cluster = serde_json::json!({"server": "https://192.0.2.1", "certificate-authority-data": "QQ==", "tls-server-name": "biz.vcluster-biz"});
        let expected = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "biz", "clusters": [{"name": "biz", "cluster": cluster}],
            "contexts": [{"name": "biz", "context": {"cluster": "biz", "user": "biz"}}],
            "users": [{"name": "biz", "user": {"client-certificate-data": "Qg==", "client-key-data": "Qw=="}}],
        });
        assert_eq!(after, expected);
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
