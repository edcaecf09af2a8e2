//! What the node tells Prometheus: each part of the agent keeps a file in Prometheus's text format in one folder, where node_exporter's textfile collector,
//! `chasi-bod metrics` and, when it is asked for, the agent's own HTTP endpoint find them. No family is in two files.

pub mod node;
pub mod serve;

use layers::{Context as _, Error, Fault, Result};
use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::registry::Registry;

use crate::host::{Host, RUN};

/// What every name begins with.
pub const PREFIX: &str = "chasi_bod";

fn folder() -> String {
    format!("{RUN}/metrics")
}

/// Keeps a registry as the file `NAME.prom`.
pub fn write(host: &Host, name: &str, registry: &Registry) -> Result<()> {
    let mut text = String::new();
    encode(&mut text, registry).fault(Fault::Internal, || format!("encoding the metrics of {name}"))?;
    host.write(&format!("{}/{name}.prom", folder()), text.as_bytes(), 0o644).map(drop)
}

/// Everything that there is, in the order of the files' names.
pub fn text(host: &Host) -> Result<String> {
    let names = host.names(&folder()).into_iter().filter(|name| name.ends_with(".prom") && !name.starts_with('.'));
    let texts: Vec<_> = names.map(|name| host.read(&format!("{}/{name}", folder())).map(Option::unwrap_or_default)).collect::<Result<_>>()?;
    match texts.is_empty() {
        true => Err(Error::environment(format!("reading /{}: the agent has not started", folder()))
            .with_hint("see `systemctl status chasi-bod-agent.service`")),
        false => Ok(texts.concat()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// `promtool check metrics` (package `prometheus`; scripts/setup has it): format, names and units as Prometheus wants them.
    pub fn judge(text: &str) {
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = promtool.spawn().expect("promtool, which scripts/setup test installs");
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let said = child.wait_with_output().unwrap();
        assert!(said.status.success() && said.stderr.is_empty(), "{}\n{text}", String::from_utf8_lossy(&said.stderr));
    }

    #[test]
    fn without_files_the_agent_is_named_and_with_them_only_whole_ones_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new(folder.path());
        assert!(text(&host).unwrap_err().to_string().contains("the agent has not started"));
        host.write("run/chasi-bod/metrics/platform.prom", b"b 2\n", 0o644).unwrap();
        host.write("run/chasi-bod/metrics/node.prom", b"a 1\n", 0o644).unwrap();
        host.write("run/chasi-bod/metrics/.node.prom.chasi-bod-new", b"a 1\nb", 0o644).unwrap();
        assert_eq!(text(&host).unwrap(), "a 1\nb 2\n");
    }
}
