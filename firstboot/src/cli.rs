//! `chasi-bod` on the node.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use layers::settings::SECRET_KEY;
use layers::{Context, Error, Result};

use crate::agent::{self, Stay};
use crate::host::Host;
use crate::images::{self, Log};
use crate::status::Status;
use crate::verbs::{self, Place};
use crate::{cluster, config, console, platform};

/// Shows and steers this node.
#[derive(Debug, Parser)]
#[command(
    name = "chasi-bod",
    bin_name = "chasi-bod",
    version,
    after_help = "Examples:\n  chasi-bod status\n  chasi-bod config show\n  chasi-bod config set hostname=node-1\n  chasi-bod vcluster list"
)]
struct Cli {
    /// Root directory of the node.
    #[arg(long, default_value = "/", hide = true, global = true)]
    root: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Shows image, addresses and steps; exit code 0 when the node is ready, 3 when not.
    Status {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows or changes the configuration.
    #[command(subcommand)]
    Config(Config),
    /// Runs the first-boot steps and keeps the status (started by systemd).
    Agent {
        /// Ends after the steps.
        #[arg(long)]
        once: bool,
        /// Dies at the change with this number: the fault tests' power cut.
        #[arg(long, hide = true)]
        fuse: Option<u32>,
    },
    /// Shows the status on a terminal and lets people log in (started by systemd).
    Console {
        /// Terminal, such as `tty1` or `ttyS0`.
        tty: String,
    },
    /// Prints the operator's kubeconfig of this cluster, a secret (on control planes).
    #[command(after_help = "Examples:\n  ssh root@node chasi-bod kubeconfig --server node > kubeconfig\n  kubectl --kubeconfig kubeconfig get nodes")]
    Kubeconfig {
        /// Name or address that the API server shall be reached by; without it a name that only the cluster's nodes know.
        #[arg(long, value_name = "HOST[:PORT]")]
        server: Option<String>,
    },
    /// The cluster that this node belongs to.
    #[command(subcommand)]
    Cluster(Cluster),
    /// Day 2, with this control plane's credentials.
    #[command(flatten)]
    Day2(verbs::Command),
    /// Container images of the root.
    #[command(subcommand, hide = true)]
    Images(Images),
    /// Runs the controllers of virtual clusters and components alone, which are else a part of the agent.
    #[command(hide = true)]
    Platform,
    /// Prints the version of this program and of the image.
    Version,
}

#[derive(Debug, Subcommand)]
enum Cluster {
    /// Renews this control plane's certificates now; the agent does it by itself 90 days before they end.
    RenewCertificates,
    /// Prints the secret that further nodes join with (on control planes).
    #[command(after_help = "Examples:\n  ssh root@node chasi-bod cluster secret | ssh root@new-node chasi-bod config set cluster.secret=-")]
    Secret,
}

#[derive(Debug, Subcommand)]
enum Images {
    /// Serves them to containerd: registry on loopback and snapshotter (started by systemd).
    Serve {
        /// Port of the registry on 127.0.0.1.
        #[arg(long, default_value_t = layers::seed::REGISTRY_PORT)]
        port: u16,
        /// Prints a line for each request to the registry.
        #[arg(long)]
        log: bool,
    },
    /// Drops what containerd knows of images that left the root (started by systemd when the root changed).
    Reconcile,
}

#[derive(Debug, Subcommand)]
enum Config {
    /// Prints every effective value with its source; secrets are hidden.
    Show,
    /// Sets a value for this node, over all other sources; an empty value takes it back.
    #[command(
        after_help = "Examples:\n  chasi-bod config set hostname=node-1\n  chasi-bod config set hostname=\n  chasi-bod config set cluster.secret=- <file"
    )]
    Set {
        /// `key=value`, keys as in `config show`; the value `-` is read from standard input.
        setting: String,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("chasi-bod: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(error.fault() as u8)
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let host = Host::new(&cli.root);
    match &cli.verb {
        Verb::Status { json } => return status(&host, *json),
        Verb::Config(Config::Show) => show(&host)?,
        Verb::Config(Config::Set { setting }) => {
            let (key, value) = setting.split_once('=').ok_or_else(|| Error::input(format!("setting `{setting}`: there is no `=`")))?;
            config::set_by_console(&host, key, &given(key, value)?)?;
        }
        Verb::Kubeconfig { server } => print!("{}", cluster::kubeconfig(&host, server.as_deref())?),
        Verb::Cluster(Cluster::RenewCertificates) => cluster::renew_now(&host)?.iter().for_each(|line| println!("{line}")),
        Verb::Cluster(Cluster::Secret) => println!("{}", cluster::secret(&host)?.reveal()),
        Verb::Day2(command) => {
            let outcome = verbs::run(command, Place::Node(&host), &|line| eprintln!("{line}"))?;
            print!("{}", outcome.text);
            return Ok(ExitCode::from(outcome.code));
        }
        Verb::Agent { once, fuse } => agent::run(&host.with_fuse(*fuse), if *once { Stay::Once } else { Stay::Forever })?,
        Verb::Images(Images::Serve { port, log }) => images::serve(&host, *port, if *log { Log::Requests } else { Log::Quiet })?,
        Verb::Images(Images::Reconcile) => images::reconcile::run(&host)?.iter().for_each(|name| println!("dropped {name}, which left the root")),
        Verb::Platform => platform::keep(&host),
        Verb::Console { tty } => console::run(&host, tty)?,
        Verb::Version => {
            let image = host.image()?;
            println!("chasi-bod {}\nimage {} {}", env!("CARGO_PKG_VERSION"), image.name, image.version);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The value, or one line of standard input: every user can read the arguments of a process.
fn given(key: &str, value: &str) -> Result<String> {
    match value {
        "-" => {
            std::io::read_to_string(std::io::stdin().lock()).map(|text| text.trim().into()).context(|| format!("reading {key} from standard input"))
        }
        value if key == SECRET_KEY && !value.is_empty() => {
            Err(Error::input(format!("setting {key}: every user can read the arguments of a process"))
                .with_hint(format!("`chasi-bod config set {key}=-` reads it from standard input")))
        }
        value => Ok(value.into()),
    }
}

fn status(host: &Host, json: bool) -> Result<ExitCode> {
    let status = Status::load(host)?;
    if json {
        let text = serde_json::to_string_pretty(&status).map_err(|e| Error::internal(format!("printing the status: {e}")))?;
        println!("{text}");
    } else {
        status.lines().iter().for_each(|line| println!("{}", line.trim_end()));
    }
    Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn show(host: &Host) -> Result<()> {
    let settings = match config::published(host) {
        Some(settings) => settings,
        None => config::collect(host, &host.image()?)?.settings,
    };
    for (key, value, source) in settings.rows() {
        println!("{key:<22} {value}   ({source})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_has_the_verbs_of_day_2() {
        Cli::command().debug_assert();
        for line in [
            "status --json",
            "vcluster list --json",
            "vcluster create biz --version v1.36.3 --wait --timeout 5m --set a.b=1 --set c=2",
            "vcluster connect biz --server node:8443 -- kubectl --kubeconfig x get pods",
            "vcluster delete biz --yes --wait --kubeconfig /root/other.conf",
            "vcluster --kubeconfig /root/other.conf scale biz --replicas 3",
            "component why web",
            "component retry web",
        ] {
            Cli::try_parse_from(["chasi-bod"].into_iter().chain(line.split(' '))).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in ["vcluster connect biz kubectl", "vcluster create biz --store files", "vcluster suspend biz --timeout 5m", "vcluster scale biz"] {
            assert!(Cli::try_parse_from(["chasi-bod"].into_iter().chain(line.split(' '))).is_err(), "{line}");
        }
    }
}
