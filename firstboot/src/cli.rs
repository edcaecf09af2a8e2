//! `chasi-bod` on the node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use layers::selector::Selector;
use layers::settings::SECRET_KEY;
use layers::{Context, Error, Result};

use crate::agent::{self, Stay};
use crate::host::Host;
use crate::images::{self, Log};
use crate::status::Status;
use crate::verbs::{self, Place};
use crate::{backup, cluster, config, console, diag, disks, install, metrics, platform};

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
    /// Shows the disks of the machine, what is on them, and which one an expression picks and why.
    #[command(
        after_help = "Examples:\n  chasi-bod disks\n  chasi-bod disks 'size >= 100 * GiB && bus == \"nvme\"'\n\nAn expression (CEL) knows: name, path, paths, size, sector, rotational, removable, bus, model, serial, wwid"
    )]
    Disks {
        /// Which disk is meant; the setting `disk.target` when absent.
        expression: Option<String>,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Installs the image on a disk, when this system runs from a medium.
    #[command(
        after_help = "Examples:\n  chasi-bod install\n  chasi-bod install --disk 'serial == \"S3Z9\"' --dry-run\n  chasi-bod install --disk 'path == \"/dev/sda\"' --erase --yes --reboot"
    )]
    Install(install::Options),
    /// Day 2, with this control plane's credentials.
    #[command(flatten)]
    Day2(verbs::Command),
    /// Container images of the root.
    #[command(subcommand, hide = true)]
    Images(Images),
    /// Runs the controllers of virtual clusters and components alone, which are else a part of the agent.
    #[command(hide = true)]
    Platform,
    /// Prints the node's metrics in Prometheus's text format.
    #[command(after_help = "Examples:\n  chasi-bod metrics\n  chasi-bod config set metrics.listen=9955    # serves them at http://NODE:9955/metrics")]
    Metrics,
    /// Collects what is needed to find out what is wrong, without secrets, into one archive.
    #[command(after_help = "Examples:\n  chasi-bod diag\n  chasi-bod diag --dry-run\n  ssh root@node chasi-bod diag - > diag.tar.gz")]
    Diag {
        /// Where to write it, `-` for standard output; diag-HOST-TIME.tar.gz in this folder when absent.
        file: Option<PathBuf>,
        /// Only lists what would be collected, and from where.
        #[arg(long, conflicts_with = "file")]
        dry_run: bool,
        /// Longest time for one program, in seconds.
        #[arg(long, default_value_t = 20, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
    },
    /// Makes, lists and checks backups of the cluster; control planes also make them by themselves.
    #[command(subcommand, after_help = "Examples:\n  chasi-bod backup list\n  chasi-bod backup run\n  chasi-bod backup verify")]
    Backup(backup::Verb),
    /// Brings the cluster of a backup back, on a fresh machine or on the only control plane that is left.
    #[command(
        after_help = "Examples:\n  chasi-bod restore /mnt/stick/backup.age --dry-run\n  chasi-bod restore /mnt/stick/backup.age\n  chasi-bod restore --this-node --replace    # etcd has lost its majority for good"
    )]
    Restore(backup::Restore),
    /// Prints the version of this program and of the image.
    Version,
}

#[derive(Debug, Subcommand)]
enum Cluster {
    /// Lets a node that is in no cluster forget those that it has heard of, and what it has promised other nodes.
    #[command(after_help = "For a node that waits for a cluster which is no more. It hears anew of clusters that there are.")]
    Forget,
    /// Renews this control plane's certificates now; the agent does it by itself 90 days before they end.
    RenewCertificates,
    /// Whether this node's own API server is ready (asked by keepalived).
    #[command(hide = true)]
    Probe,
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
        Verb::Kubeconfig { server } => {
            // Whoever asks is elsewhere, as a rule: what reaches any control plane is worth more than the name that only nodes know.
            let shared = config::published(&host).and_then(|settings| settings.shared_address()).map(|ip| SocketAddr::new(ip, 6443).to_string());
            print!("{}", cluster::kubeconfig(&host, server.as_deref().or(shared.as_deref()))?);
        }
        Verb::Cluster(Cluster::Forget) => cluster::forget(&host)?,
        Verb::Cluster(Cluster::Probe) => cluster::probe(&host)?,
        Verb::Cluster(Cluster::RenewCertificates) => cluster::renew_now(&host)?.iter().for_each(|line| println!("{line}")),
        Verb::Cluster(Cluster::Secret) => println!("{}", cluster::secret(&host)?.reveal()),
        Verb::Disks { expression, json } => return picked(&host, expression.clone(), *json),
        Verb::Install(options) => install::run(&host, options)?,
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
        Verb::Metrics => print!("{}", metrics::text(&host)?),
        Verb::Diag { dry_run: true, .. } => print!("{}", diag::listing(&host)),
        Verb::Diag { file, limit, .. } => bundle(&host, file.as_deref(), Duration::from_secs(*limit))?,
        Verb::Backup(verb) => print!("{}", backup::run(verb, &host, &|line| eprintln!("{line}"))?),
        Verb::Restore(options) => print!("{}", backup::restore::run(options, &host, &|line| eprintln!("{line}"))?),
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

/// Writes a bundle; its path is the output, the rest is for people.
fn bundle(host: &Host, file: Option<&Path>, limit: Duration) -> Result<()> {
    let bundle = diag::run(host, file, limit)?;
    match bundle.troubles.len() {
        0 => eprintln!("{} entries", bundle.entries),
        n => eprintln!("{} entries; {n} things could not be collected, see errors.txt in it", bundle.entries),
    }
    bundle.path.iter().for_each(|path| println!("{}", path.display()));
    Ok(())
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

/// Shows the disks; exit code 3 when an expression does not pick exactly one.
fn picked(host: &Host, expression: Option<String>, json: bool) -> Result<ExitCode> {
    let given = expression.map(Selector::try_from).transpose().map_err(Error::input)?;
    let configured = || Ok::<_, Error>(config::collect(host, &host.image()?)?.settings.target.map(|target| target.value));
    let wanted = if given.is_some() { given } else { configured()? };
    let rows = disks::rows(host, wanted.as_ref())?;
    if json {
        println!("{}", serde_json::to_string_pretty(&rows).map_err(|e| Error::internal(format!("printing the disks: {e}")))?);
    } else {
        print!("{}", disks::table(&rows, wanted.as_ref()));
    }
    let one = wanted.is_none() || rows.iter().filter(|row| row.unmet.is_none()).count() == 1;
    Ok(if one { ExitCode::SUCCESS } else { ExitCode::from(3) })
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
            "metrics",
            "diag -",
            "diag --dry-run",
            "backup list --json",
            "backup verify x --identity y",
            "restore x --replace --dry-run",
            "restore --this-node --replace",
            "disks --json",
            "install --disk x --erase --yes --reboot",
            "vcluster list --json",
            "vcluster create biz --version v1.36.3 --wait --timeout 5m --set a.b=1 --set c=2",
            "vcluster connect biz --server node:8443 -- kubectl --kubeconfig x get pods",
            "vcluster delete biz --yes --wait --kubeconfig /root/other.conf",
            "vcluster --kubeconfig /root/other.conf scale biz --replicas 3",
            "component why web",
            "component retry web",
            "nodes list --json",
            "nodes cordon n3 --kubeconfig /root/other.conf",
            "nodes drain n3 --timeout 300 --dry-run",
            "nodes remove n3 --timeout 5m --force",
            "app check ./chart -f values.yaml --json",
            "app deploy shop --vcluster-name=biz --chart-path=./chart -f a.yaml -f b.yaml --images x=y --from upstream --wait --timeout 5m",
        ] {
            Cli::try_parse_from(["chasi-bod"].into_iter().chain(line.split(' '))).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "vcluster connect biz kubectl",
            "vcluster create biz --store files",
            "vcluster suspend biz --timeout 5m",
            "vcluster scale biz",
            "nodes drain",
            "nodes uncordon n3 --force",
            "diag x --dry-run",
            "restore x --this-node",
        ] {
            assert!(Cli::try_parse_from(["chasi-bod"].into_iter().chain(line.split(' '))).is_err(), "{line}");
        }
    }
}
