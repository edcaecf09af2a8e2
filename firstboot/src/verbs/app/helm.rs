//! Charts become objects by helm: a node's own, or one that a workstation has.

use std::path::{Path, PathBuf};
use std::process::Command;

use layers::{Context as _, Error, Fault, Result};
use serde_json::Value;

use super::known::Known;
use crate::cluster::helm::homeless;
use crate::exec;
use crate::verbs::Place;

/// A helm.
pub struct Helm<'a> {
    place: Place<'a>,
    program: PathBuf,
}

/// A chart to render.
pub struct Job<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub archive: &'a [u8],
    pub values: &'a Value,
    /// Version of Kubernetes.
    pub version: &'a str,
    pub known: &'a Known,
}

impl<'a> Helm<'a> {
    /// The given one, a node's own, or the one in $PATH.
    pub fn find(place: Place<'a>, given: Option<&Path>) -> Result<Self> {
        let program = match (given, place) {
            (Some(given), _) => given.to_path_buf(),
            (None, Place::Node(host)) => host.program("helm").get_program().into(),
            (None, Place::Workstation) => "helm".into(),
        };
        if is_there(&program) {
            return Ok(Self { place, program });
        }
        let shown = program.display();
        Err(Error::environment(format!("rendering the chart: there is no program {shown}"))
            .with_hint("install helm 3.8 or later, name one with --helm PROGRAM, or run this on a control plane, which has one"))
    }

    /// `helm template` with hooks and definitions.
    pub fn render(&self, job: &Job<'_>) -> Result<String> {
        let scratch = tempfile::tempdir().context(|| "creating a scratch folder".into())?;
        let write = |name: &str, bytes: &[u8]| {
            let path = scratch.path().join(name);
            std::fs::write(&path, bytes).context(|| format!("writing {}", path.display())).map(|()| path)
        };
        let chart = write("chart.tgz", job.archive)?;
        let values = write("values.json", &serde_json::to_vec(job.values).fault(Fault::Internal, || "encoding values".into())?)?;
        let program = Command::new(&self.program);
        let mut helm = if let Place::Node(host) = self.place { homeless(host, program) } else { program };
        helm.args(["template", job.name]).arg(&chart).args(["--namespace", job.namespace, "--include-crds", "--kube-version", job.version]);
        helm.arg("--values").arg(&values);
        for api in job.known.foreign() {
            helm.args(["--api-versions", &api]);
        }
        match exec::run(&mut helm) {
            Ok(done) => String::from_utf8(done.stdout).fault(Fault::Input, || "reading what helm rendered".into()),
            // What helm says of a chart is about the chart.
            Err(error) => Err(Error::input(format!("rendering the chart: {error}"))),
        }
    }
}

fn is_there(program: &Path) -> bool {
    if program.components().count() > 1 {
        return program.is_file();
    }
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_helm_it_is_said_what_helps() {
        let error = Helm::find(Place::Workstation, Some(Path::new("/nowhere/helm"))).err().unwrap();
        assert_eq!((error.to_string().as_str(), error.fault()), ("rendering the chart: there is no program /nowhere/helm", Fault::Environment));
        assert!(error.hint().unwrap().contains("--helm PROGRAM"));
        assert!(is_there(Path::new("sh")) && is_there(Path::new("/bin/sh")) && !is_there(Path::new("no-such-program")));
    }
}
