//! `chasi-bod app`: an application of one's own, from a chart and images to what the platform keeps running in a virtual cluster.

mod bundle;
mod check;
mod deploy;
mod helm;
mod known;
mod push;
mod source;
mod target;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use layers::reference::Reference;
use layers::{Result, manifest};

use self::bundle::Bundle;
use self::check::{Chart, Found, Grade, KUBERNETES, Report};
use self::known::Known;
use self::target::Target;
use super::objects::printed;
use super::{Outcome, Place, Session};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Say point by point what becomes of a chart in a virtual cluster; exit code 1 when something of it is refused or will not run.
    ///
    /// `fail` means refused or not running, `warn` running otherwise than one may think or not known from here. Without a cluster the rules are those
    /// of a virtual cluster of the template `general`, under Kubernetes 1.36.
    #[command(
        after_help = "Examples:\n  chasi-bod app check ./chart\n  chasi-bod app check shop-1.2.0.tgz -f site.yaml --vcluster-name=biz --json\n  \
        chasi-bod app check ./chart --kubeconfig cluster.conf        # which images the cluster lacks"
    )]
    Check(CheckArgs),
    /// Check a chart, push the images that the cluster lacks, and have the platform keep the application: a Component of the same name.
    #[command(
        after_help = "Examples:\n  chasi-bod app deploy shop --vcluster-name=biz --chart-path=./chart -f site.yaml --images ./images.tar --wait\n  \
        chasi-bod app deploy shop --vcluster-name=biz --chart-path=./chart --images example.org/shop:2=./oci-folder\n  \
        chasi-bod app deploy shop --vcluster-name=biz --chart-path=./chart --from upstream    # this machine asks the images' own registries"
    )]
    Deploy(Box<deploy::Deploy>),
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Folder or archive of the chart.
    #[arg(value_name = "CHART")]
    chart: PathBuf,
    /// Virtual cluster that it is for, whose own rules then count; needs a kubeconfig.
    #[arg(long, value_name = "NAME")]
    vcluster_name: Option<String>,
    #[command(flatten)]
    rendering: Rendering,
    #[command(flatten)]
    reach: target::Reach,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How a chart becomes objects.
#[derive(Debug, Args)]
pub struct Rendering {
    /// File of values, in YAML; of several the later ones go over the earlier.
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    values: Vec<PathBuf>,
    /// Namespace of the release.
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// The helm that renders it; a node has its own.
    #[arg(long, value_name = "PROGRAM")]
    helm: Option<PathBuf>,
}

pub async fn run(verb: &Verb, session: &Session<'_>) -> Result<Outcome> {
    match verb {
        Verb::Check(check) => check.run(session).await,
        Verb::Deploy(deploy) => deploy.run(session).await.map(Outcome::from),
    }
}

impl CheckArgs {
    async fn run(&self, session: &Session<'_>) -> Result<Outcome> {
        let bundle = Bundle::read(&self.chart)?;
        let asked = self.vcluster_name.is_some() || session.kubeconfig.is_some() || matches!(session.place, Place::Node(_));
        let known = if asked { Known::of_cluster(session, self.vcluster_name.as_deref()).await? } else { Known::default() };
        let rendered = self.rendering.render(session, "app", &bundle, &known)?;
        let target = if asked { Some(Target::open(session, &self.reach, &known).await) } else { None };
        let images = manifest::images(&rendered.text)?;
        let found = match target {
            None => images.into_iter().map(|image| (image, Found::Unknown("no cluster was given".into()))).collect(),
            Some(Ok(target)) => known.find(images, &target).await?,
            Some(Err(error)) => known.find_without(images, &error),
        };
        let report = rendered.report(&bundle, &known, &found)?;
        let text = if self.json { printed(&report)? } else { report.text() };
        Ok(Outcome { text, code: u8::from(report.result == Grade::Fail) })
    }
}

/// What helm made of a chart, and of which values.
struct Rendered {
    text: String,
    values: serde_json::Value,
    files: Vec<(String, serde_json::Value)>,
}

impl Rendering {
    fn render(&self, session: &Session<'_>, name: &str, bundle: &Bundle, known: &Known) -> Result<Rendered> {
        let (values, files) = bundle.values(&self.values)?;
        let helm = helm::Helm::find(session.place, self.helm.as_deref())?;
        let version = known.kubernetes.as_deref().unwrap_or(KUBERNETES);
        let text = helm.render(&helm::Job { name, namespace: &self.namespace, archive: &bundle.archive, values: &values, version, known })?;
        Ok(Rendered { text, values, files })
    }
}

impl Rendered {
    fn report(&self, bundle: &Bundle, known: &Known, images: &BTreeMap<Reference, Found>) -> Result<Report> {
        let chart = Chart::new(&bundle.metadata.name, &bundle.metadata.version, &self.text, self.files.clone())?;
        Ok(check::check(&chart, &known.ground, images))
    }
}
