//! `app deploy`: the chart and the images that the cluster lacks go to the registry inside it, and a Component keeps the release in the virtual cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use layers::chart::is_release_name;
use layers::platform::Component;
use layers::platform::component::{Chart as Named, ComponentPhase as Phase};
use layers::reference::Reference;
use layers::{Context as _, Error, Fault, Result, manifest};
use serde_json::{Value, json};

use super::bundle::Bundle;
use super::check::{Found, Grade};
use super::known::Known;
use super::push::{self, Pushed};
use super::source::{Given, Sources};
use super::target::{Reach, Target};
use super::{Rendered, Rendering};
use crate::remote::oci::Content;
use crate::verbs::table::{failure, word};
use crate::verbs::wait::{Patience, Seen, until};
use crate::verbs::{Session, objects};

#[derive(Debug, Args)]
pub struct Deploy {
    /// Name of the application: of the Component and of the release.
    name: String,
    /// Virtual cluster that it runs in.
    #[arg(long, value_name = "NAME")]
    vcluster_name: String,
    /// Folder or archive of its chart.
    #[arg(long, value_name = "CHART")]
    chart_path: PathBuf,
    #[command(flatten)]
    rendering: Rendering,
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    patience: Patience,
    /// Print the Component and what would be pushed, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Go on although points of the check fail.
    #[arg(long)]
    skip_check: bool,
}

/// An image that will be pushed.
type Lacking = Vec<(Reference, Content)>;

impl Deploy {
    pub(super) async fn run(&self, session: &Session<'_>) -> Result<String> {
        if !is_release_name(&self.name) {
            return Err(Error::input(format!("deploying `{}`: a name has at most 53 small letters, digits and dashes", self.name)));
        }
        let (bundle, sources) = (Bundle::read(&self.chart_path)?, self.given.open()?);
        let known = Known::of_cluster(session, Some(&self.vcluster_name)).await?;
        let target = Target::open(session, &self.reach, &known).await?;
        let rendered = self.rendering.render(session, &self.name, &bundle, &known)?;
        let mut found = known.find(manifest::images(&rendered.text)?, &target).await?;
        let content = contents(&found, sources.clone()).await?;
        content.iter().for_each(|(image, content)| drop(found.insert(image.clone(), Found::Source(content.place.clone()))));
        self.judge(&rendered, &bundle, &known, &found, &sources, session)?;
        let api = Api::<Component>::all(session.client().await?);
        let former =
            api.get_opt(&self.name).await.map_err(|error| objects::failure::<Component>(&error, &format!("reading component {}", self.name)))?;
        self.may_change(former.as_ref(), &target)?;
        if self.dry_run {
            return self.preview(&rendered, &bundle, &target, &content);
        }
        let (address, pushed) = self.push(content, &bundle, &target, &known, session).await?;
        let wanted = self.component(former.as_ref(), &address, &bundle.metadata.version, &rendered.values)?;
        let same = former.as_ref().is_some_and(|former| former.spec == wanted.spec);
        let said = match (&former, same) {
            (Some(_), true) if pushed => "was as asked for; what it runs was pushed anew",
            (Some(_), true) => "nothing changed: it was as asked for",
            (Some(_), false) => "is changed",
            (None, _) => "is made",
        };
        if !same {
            self.write(&api, former.is_some(), &wanted).await?;
        }
        (session.say)(&format!("component {}: {said}", self.name));
        if self.patience.wait {
            let hint = format!("it goes on by itself; `chasi-bod component why {}` shows how far it is", self.name);
            until(&api, (&self.name, &hint), self.patience.timeout, |object| object.map(look), session.say).await?;
        } else if !same {
            (session.say)(&format!("`chasi-bod component why {}` shows how far it is", self.name));
        }
        Ok(String::new())
    }

    /// Tells what the check found, and refuses what would be refused anyway.
    fn judge(
        &self,
        rendered: &Rendered,
        bundle: &Bundle,
        known: &Known,
        found: &BTreeMap<Reference, Found>,
        sources: &Sources,
        session: &Session<'_>,
    ) -> Result<()> {
        let report = rendered.report(bundle, known, found)?;
        for point in &report.points {
            for finding in point.findings.iter().filter(|finding| finding.result != Grade::Pass) {
                (session.say)(&format!("{} {}: {}: {}", finding.result.word(), point.point, finding.object, finding.message));
            }
        }
        let lost: Vec<_> = found.iter().filter(|(_, found)| **found == Found::Nowhere).map(|(image, _)| image.to_string()).collect();
        let asked = sources.names();
        let places = if asked.is_empty() { String::new() } else { format!(", nor has {asked}") };
        if report.result == Grade::Fail && !self.skip_check {
            let images = if lost.is_empty() { String::new() } else { format!("; the cluster has no {}{places}", lost.join(", ")) };
            return Err(Error::input(format!("deploying {}: {}{images}", self.name, report.sum())).with_hint("--skip-check goes on nevertheless"));
        }
        Ok(())
    }

    /// One that comes from elsewhere, or runs elsewhere, is not taken over.
    fn may_change(&self, former: Option<&Component>, target: &Target) -> Result<()> {
        let Some(former) = former else { return Ok(()) };
        let refused =
            |why: String| Error::input(format!("deploying {}: {why}", self.name)).with_hint("choose another name, or delete that one first");
        let (key, name) = former.spec.source.entry();
        if !name.starts_with(&format!("oci://{}/apps/{}/", target.address, self.name)) {
            return Err(refused(format!("there is a component of this name that `app deploy` did not make, of the {key} {name}")));
        }
        let place = &former.spec.target;
        let (cluster, namespace) = (place.virtual_cluster.as_deref().unwrap_or("the host"), &place.namespace);
        if (cluster, namespace) != (&self.vcluster_name, &self.rendering.namespace) {
            return Err(refused(format!("it is in namespace {namespace} of {cluster}, and a component does not move")));
        }
        Ok(())
    }

    /// All images, then the chart; whether anything new went there.
    async fn push(&self, content: Lacking, bundle: &Bundle, target: &Target, known: &Known, session: &Session<'_>) -> Result<(String, bool)> {
        let architecture = known.architecture.clone().unwrap_or("amd64".into());
        let mut new = false;
        for (image, content) in content {
            let (target, architecture, name) = (target.clone(), architecture.clone(), image.to_string());
            let place = content.place.clone();
            let pushed = beside(move || push::image(&target, &image, &content, &architecture)).await?;
            new |= pushed != Pushed::Nothing;
            said(&name, &place, pushed).iter().for_each(|line| (session.say)(line));
        }
        let (app, target, packed) = (self.name.clone(), target.clone(), Bundle::read(&self.chart_path)?);
        let (address, pushed) = beside(move || push::chart(&target, &app, &packed)).await?;
        let chart = format!("chart {} {}", bundle.metadata.name, bundle.metadata.version);
        said(&chart, &self.chart_path.display().to_string(), pushed).iter().for_each(|line| (session.say)(line));
        Ok((address, new))
    }

    /// The object; what people set of it beside source, target and values stays.
    fn component(&self, former: Option<&Component>, address: &str, version: &str, values: &Value) -> Result<Component> {
        let target = json!({"virtualCluster": self.vcluster_name, "namespace": self.rendering.namespace});
        let spec = json!({"source": {"chart": {"name": address, "version": version}}, "target": target, "values": values});
        let made = serde_json::from_value(spec).map(|spec| Component::new(&self.name, spec));
        let made = made.fault(Fault::Internal, || format!("making component {}", self.name))?;
        let Some(former) = former else { return Ok(made) };
        let mut out = former.clone();
        out.spec.source.chart = Some(Named { name: address.into(), version: version.into() });
        out.spec.values = made.spec.values;
        Ok(out)
    }

    async fn write(&self, api: &Api<Component>, exists: bool, wanted: &Component) -> Result<()> {
        if exists {
            let written = api.replace(&self.name, &PostParams::default(), wanted).await;
            return written.map(drop).map_err(|error| objects::failure::<Component>(&error, &format!("changing component {}", wanted.name_any())));
        }
        let object = serde_json::to_value(wanted).fault(Fault::Internal, || format!("making component {}", self.name))?;
        objects::create(api, &self.name, &object).await.map(drop)
    }

    fn preview(&self, rendered: &Rendered, bundle: &Bundle, target: &Target, content: &Lacking) -> Result<String> {
        let address = push::address(target, &self.name, bundle)?;
        let object = self.component(None, &address, &bundle.metadata.version, &rendered.values)?;
        let pushes = content.iter().map(|(image, content)| format!("# pushes {image} from {}, unless it is there\n", content.place));
        let text = serde_saphyr::to_string(&object).fault(Fault::Internal, || "printing the component".into())?;
        Ok(pushes.collect::<String>() + &text)
    }
}

/// What the sources have of those images that the root lacks: a registry may have an older one of the same name.
async fn contents(found: &BTreeMap<Reference, Found>, sources: Sources) -> Result<Lacking> {
    let images: Vec<_> = found.iter().filter(|(_, found)| **found != Found::Seed).map(|(image, _)| image.clone()).collect();
    let look = move || {
        let found = images.into_iter().map(|image| Ok(sources.find(&image)?.map(|content| (image, content))));
        found.filter_map(Result::transpose).collect()
    };
    beside(look).await
}

/// Does what waits for servers beside the port that leads to one of them.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.fault(Fault::Internal, || "working beside the runtime".into())?
}

/// A line about what was pushed; none about what was there.
fn said(what: &str, place: &str, pushed: Pushed) -> Option<String> {
    match pushed {
        Pushed::Nothing => None,
        Pushed::New(bytes) => Some(format!("pushed {what} from {place}: {bytes}")),
        Pushed::Instead(bytes, before) => {
            Some(format!("pushed {what} from {place}: {bytes}; the tag stood for {before} before, which running pods keep"))
        }
    }
}

/// What a Component's status means for who waits.
fn look(object: &Component) -> (Seen, String) {
    let status = object.status.clone().unwrap_or_default();
    let why =
        status.failure.as_ref().map(failure).or((!status.waiting_for.is_empty()).then(|| format!("waits for {}", status.waiting_for.join(", "))));
    let state = word(status.phase) + &why.map(|why| format!(": {why}")).unwrap_or_default();
    let refused = status.failure.as_ref().is_some_and(|failed| failed.reason == "Refused");
    let seen = match status.phase {
        // Until the controller has seen the change, the status is about what was before.
        _ if status.observed_generation != object.metadata.generation => Seen::Going,
        Phase::Ready => Seen::Done,
        Phase::Failed => Seen::Refused,
        Phase::Error if refused => Seen::Refused,
        _ => Seen::Going,
    };
    (seen, state)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        deploy: Deploy,
    }

    fn deploy(more: &[&str]) -> Deploy {
        let words = [&["deploy", "shop", "--vcluster-name=biz", "--chart-path=./chart"], more].concat();
        Line::try_parse_from(words).unwrap_or_else(|e| panic!("{e}")).deploy
    }

    fn component(rest: &str) -> Component {
        let head = "apiVersion: chasi-bod.io/v1alpha1, kind: Component, metadata: {name: shop, generation: 2}";
        serde_saphyr::from_str(&format!("{{{head}, {rest}}}")).unwrap()
    }

    const OURS: &str = "source: {chart: {name: 'oci://10.96.0.5:5000/apps/shop/web@sha256:00', version: 1.0.0}}";

    #[test]
    fn a_component_that_others_made_or_that_is_elsewhere_is_left_alone() {
        let target = Target::at("http://127.0.0.1:1", "10.96.0.5:5000").unwrap();
        let refused = |rest: &str| deploy(&[]).may_change(Some(&component(rest)), &target).err().map(|error| error.to_string());
        assert_eq!(refused(&format!("spec: {{{OURS}, target: {{virtualCluster: biz}}}}")), None);
        assert!(deploy(&[]).may_change(None, &target).is_ok());
        let bundled = refused("spec: {source: {chart: {name: web, version: 1.0.0}}, target: {virtualCluster: biz}}").unwrap();
        assert_eq!(bundled, "deploying shop: there is a component of this name that `app deploy` did not make, of the chart web");
        let moved = refused(&format!("spec: {{{OURS}, target: {{virtualCluster: other, namespace: a}}}}")).unwrap();
        assert_eq!(moved, "deploying shop: it is in namespace a of other, and a component does not move");
        assert!(refused(&format!("spec: {{{OURS}}}")).unwrap().contains("it is in namespace default of the host"));
    }

    #[test]
    fn what_people_set_of_the_component_stays_and_an_equal_one_is_told_by_its_spec() {
        let former = component(&format!("spec: {{{OURS}, target: {{virtualCluster: biz}}, values: {{a: 1, b: 2}}, dependsOn: [db], drift: Heal}}"));
        let made = |address: &str, values: Value| deploy(&[]).component(Some(&former), address, "1.0.0", &values).unwrap();
        let same = "oci://10.96.0.5:5000/apps/shop/web@sha256:00";
        assert_eq!(made(same, json!({"a": 1, "b": 2})).spec, former.spec);
        let changed = made(same, json!({"a": 1})).spec;
        assert!(changed != former.spec && changed.depends_on == ["db"] && !changed.values.contains_key("b"), "{changed:?}");
        let new = deploy(&["--namespace", "n"]).component(None, same, "1.0.0", &json!({})).unwrap();
        assert_eq!((new.spec.target.virtual_cluster.as_deref(), new.spec.target.namespace.as_str()), (Some("biz"), "n"));
    }

    #[test]
    fn waiting_ends_when_it_is_ready_or_only_a_change_helps() {
        let spec = format!("spec: {{{OURS}}}");
        let seen = |status: &str| look(&component(&format!("{spec}, status: {{{status}}}")));
        let failed = |phase: &str, reason: &str| {
            let failure = format!("failure: {{reason: {reason}, message: 'no such image', since: '2026-01-01T00:00:00Z', attempts: 1}}");
            seen(&format!("phase: {phase}, observedGeneration: 2, {failure}")).0
        };
        assert_eq!(seen("phase: READY, observedGeneration: 1").0, Seen::Going, "that was before");
        assert_eq!(seen("phase: READY, observedGeneration: 2"), (Seen::Done, "READY".into()));
        assert_eq!(seen("phase: WAITING, observedGeneration: 2, waitingFor: [db]"), (Seen::Going, "WAITING: waits for db".into()));
        assert_eq!([failed("ERROR", "Failed"), failed("ERROR", "Refused"), failed("FAILED", "Failed")], [Seen::Going, Seen::Refused, Seen::Refused]);
    }

    #[test]
    fn each_way_to_images_is_an_argument_and_the_places_are_needed() {
        let all = deploy(&[
            "--images",
            "a=b",
            "--images",
            "c",
            "--from",
            "upstream",
            "--registry",
            "http://127.0.0.1:5000",
            "-f",
            "x",
            "-f",
            "y",
            "--wait",
        ]);
        assert!(all.patience.wait && !all.skip_check && !all.dry_run);
        for words in [
            &["deploy", "shop", "--vcluster-name=biz"][..],
            &["deploy", "shop", "--chart-path=c"],
            &["deploy", "--vcluster-name=biz", "--chart-path=c"],
        ] {
            assert!(Line::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
