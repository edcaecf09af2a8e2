//! What the releases, components and kubeadm ask for, found by the very programs of the image: `kubectl kustomize`, `helm template` and `kubeadm config images
//! list` run in the build sandbox, without network, and what they print is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use layers::chart::bundle::{self, Form};
use layers::chart::{ChartSpec, LockedChart, PlannedChart};
use layers::lock::Lock;
use layers::plan::{Body, Plan, PlannedComponent};
use layers::profile::{Diagnostics, Spot};
use layers::reference::Reference;
use layers::{Context, Error, Result, manifest};
use serde_json::{Value, json};

use crate::assemble::merge::behind_links;
use crate::assemble::scratch::{Options, Root};
use crate::pipeline::sources;
use crate::source::deb::Archive;
use crate::store::Store;
use crate::tree::{Kind, Node, Tree, TreePath};

/// Where the image has them.
const HELM: &str = "/usr/bin/helm";
const KUBEADM: &str = "/usr/bin/kubeadm";
const KUBECTL: &str = "/usr/bin/kubectl";
/// The longest that one program may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Images with those that ask for them.
pub type Askers = BTreeMap<Reference, BTreeSet<String>>;

/// A chart with values: a release, or a component.
struct Asker<'a> {
    /// Kind and name, such as `chart web`.
    who: String,
    name: &'a str,
    namespace: &'a str,
    values: Value,
    /// Images that no manifest names.
    images: &'a [String],
    /// Where the profile or layer says so.
    at: &'a Spot,
}

impl<'a> Asker<'a> {
    fn release(PlannedChart { spec, at, .. }: &'a PlannedChart) -> Self {
        let (who, values) = (of_release(spec), json!(spec.values));
        Self { who, name: &spec.name, namespace: &spec.namespace, values, images: &spec.images, at }
    }

    fn component(planned: &'a PlannedComponent, chart: &'a PlannedChart, locked: &LockedChart) -> Result<Self> {
        let (name, spec) = (&planned.component.name, &planned.component.spec);
        let who = format!("component {name}");
        let version = spec.source.chart.as_ref().map_or("", |chart| &chart.version);
        if !version.is_empty() && version != locked.version {
            let error = Error::input(format!("it is made of version {version} of the chart {}, which is {} here", locked.name, locked.version));
            return Err(located(&who, &planned.at, &error.with_hint("leave `version` out")));
        }
        let values = planned.values(chart).map_err(|error| located(&who, &planned.at, &error))?;
        Ok(Self { who, name, namespace: &spec.target.namespace, values, images: &chart.spec.images, at: &planned.at })
    }
}

/// A release by its form and name.
fn of_release(spec: &ChartSpec) -> String {
    format!("{} {}", spec.form().key(), spec.name)
}

/// Who asks by a chart: the components that are made of it, else its release. A chart for components may have no sense without their values.
fn askers<'a>(plan: &'a Plan, chart: &'a PlannedChart, locked: &LockedChart) -> Result<Vec<Asker<'a>>> {
    let made = plan.components.iter().filter(|planned| planned.chart() == chart.spec.name);
    let components: Vec<_> = made.map(|planned| Asker::component(planned, chart, locked)).collect::<Result<_>>()?;
    Ok(if components.is_empty() { vec![Asker::release(chart)] } else { components })
}

/// Finds every image that the plan's releases, components and kubeadm ask for.
pub fn wanted(site: &Archive<'_>, plan: &Plan, lock: &Lock) -> Result<Askers> {
    if !plan.charts.is_empty() && !can_render(plan) {
        let error = Error::input("rendering charts: no layer of the profile brings helm and kubeadm");
        return Err(error.with_hint("list the layer `orchestration` under `layers`"));
    }
    let mut found = Askers::new();
    if can_render(plan) {
        sources::fetch(site, lock)?;
        eprintln!("looking for the images of {} charts", plan.charts.len());
        let kitchen = Kitchen::new(site.store, plan, lock)?;
        let version = kitchen.kubernetes(&mut found)?;
        for (planned, locked, archive) in super::archives(site.store, plan, lock)? {
            let archive = kitchen.chart(&planned.spec.form(), archive).map_err(|e| located(&of_release(&planned.spec), &planned.at, &e))?;
            for asker in askers(plan, planned, locked)? {
                kitchen.render(&asker, &archive, &version, &mut found).map_err(|e| located(&asker.who, asker.at, &e))?;
            }
        }
    }
    Ok(found)
}

/// Whether the plan has what charts are rendered with.
pub fn can_render(plan: &Plan) -> bool {
    origin(plan, HELM).is_some() && origin(plan, KUBEADM).is_some()
}

/// The source that a path of the image comes from, behind links, with the file of its archive.
fn origin<'a>(plan: &'a Plan, path: &str) -> Option<(&'a str, Option<&'a str>)> {
    let mut path = TreePath::new(path).ok()?;
    // More links than this are a circle.
    for _ in 0..8 {
        let file = plan.layers.iter().rev().flat_map(|layer| &layer.files).find(|file| TreePath::new(&file.path).is_ok_and(|p| p == path))?;
        match &file.body {
            Body::From { source, member } => return Some((source, member.as_deref())),
            Body::Link(target) => {
                let from = if target.starts_with('/') { TreePath::root() } else { path.parent()? };
                path = behind_links(&Tree::default(), &from.join(target.as_bytes())).ok()?;
            }
            _ => return None,
        }
    }
    None
}

/// A root with helm, kubeadm and, when there are kustomizations, kubectl.
struct Kitchen {
    root: Root,
}

impl Kitchen {
    fn new(store: &Store, plan: &Plan, lock: &Lock) -> Result<Self> {
        let mut tree = Tree::default();
        let kustomizes = plan.charts.iter().any(|chart| matches!(chart.spec.form(), Form::Kustomize(_)));
        for (source, name) in [(HELM, "bin/helm"), (KUBEADM, "bin/kubeadm")].into_iter().chain(kustomizes.then_some((KUBECTL, "bin/kubectl"))) {
            let origin =
                origin(plan, source).ok_or_else(|| Error::input(format!("looking for {source}: no source of the profile's layers gives it")))?;
            let content = sources::file(store, plan, lock, origin)?;
            let path = TreePath::new(name).map_err(Error::internal)?;
            tree.ensure_parents(&path, 0);
            tree.insert(path, Node::new(Kind::File(content), 0o755, 0));
        }
        Ok(Self { root: Root::materialize(store, &tree)? })
    }

    fn run(&self, argv: &[&str]) -> Result<String> {
        let env = [("HOME", "/tmp"), ("HELM_CACHE_HOME", "/tmp/cache"), ("HELM_CONFIG_HOME", "/tmp/config"), ("HELM_DATA_HOME", "/tmp/data")];
        let env = env.into_iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let done = self.root.run_with_work(argv, &self.root.work(), &Options { limit: LIMIT, epoch: 0, env })?;
        if done.status == 0 {
            return Ok(done.log);
        }
        Err(Error::input(done.log.trim().to_string()))
    }

    /// The images that kubeadm of this version asks for; returns that version.
    fn kubernetes(&self, found: &mut Askers) -> Result<String> {
        let said = self.run(&["/bin/kubeadm", "version", "--output", "short"]).context(|| "asking kubeadm for its version".into())?;
        let version = said.lines().find(|line| line.starts_with('v')).unwrap_or_default().to_string();
        let said = self.run(&["/bin/kubeadm", "config", "images", "list", "--kubernetes-version", &version]);
        // Warnings are among the lines.
        let images = said.context(|| "asking kubeadm for its images".into())?;
        for image in images.lines().filter(|line| line.contains('/') && !line.contains(' ')).filter_map(Reference::with_tag) {
            found.entry(image).or_default().insert("kubeadm".into());
        }
        Ok(version)
    }

    /// The archive that helm takes: of a kustomization that of the chart that it becomes.
    fn chart(&self, form: &Form, archive: Vec<u8>) -> Result<Vec<u8>> {
        let Form::Kustomize(folder) = form else { return Ok(archive) };
        let place = tempfile::tempdir_in(self.root.work()).context(|| "creating a scratch folder".into())?;
        for (path, bytes) in bundle::kustomization(&archive)? {
            let path = place.path().join(path);
            let above = path.parent().unwrap_or(place.path());
            fs::create_dir_all(above).and_then(|()| fs::write(&path, bytes)).context(|| format!("writing {}", path.display()))?;
        }
        let inside = format!("/work/{}/", place.path().file_name().unwrap_or_default().to_string_lossy());
        let made = self.run(&["/bin/kubectl", "kustomize", &format!("{inside}{folder}"), "--output", "/work/rendered.yaml"]);
        // Its files by the names that their author knows.
        made.map_err(|error| Error::input(error.to_string().replace(&inside, "")))?;
        let path = self.root.work().join("rendered.yaml");
        bundle::rendered(&archive, fs::read(&path).context(|| format!("reading {}", path.display()))?)
    }

    /// Renders a chart and reads every manifest that comes out.
    fn render(&self, asker: &Asker<'_>, archive: &[u8], version: &str, found: &mut Askers) -> Result<()> {
        let Asker { who, values, images, .. } = asker;
        let folder = who.replace(' ', "-");
        let out = self.root.work().join(&folder);
        let write = |name: &str, bytes: &[u8]| fs::write(self.root.work().join(name), bytes).context(|| format!("writing {name}"));
        write("chart.tgz", archive)?;
        write("values.json", &serde_json::to_vec(values).map_err(|e| Error::internal(format!("encoding values: {e}")))?)?;
        let rendered = format!("/work/{folder}");
        let words = ["/bin/helm", "template", asker.name, "/work/chart.tgz", "--namespace", asker.namespace, "--values", "/work/values.json"];
        let more = ["--include-crds", "--kube-version", version, "--output-dir", &rendered];
        self.run(&[&words[..], &more].concat())?;
        let mut named = Askers::new();
        let mut texts = BTreeMap::new();
        if out.is_dir() {
            read_below(&out, "", &mut texts)?;
        }
        for (template, text) in &texts {
            for image in manifest::images(text).context(|| format!("reading {template}"))? {
                named.entry(image).or_default().insert(format!("{who}: {template}"));
            }
        }
        for image in images.iter().filter_map(|text| Reference::with_tag(text)) {
            named.entry(image).or_default().insert(format!("{who}: images"));
        }
        if named.is_empty() {
            eprintln!("notice: {who} names no image");
        }
        named.into_iter().for_each(|(image, by)| found.entry(image).or_default().extend(by));
        Ok(())
    }
}

/// The error at the place that it comes from.
fn located(who: &str, at: &Spot, error: &Error) -> Error {
    let message = format!("{who}: {error}");
    let problem = at.problem(message.clone(), error.hint().map(str::to_string));
    Diagnostics::gather(&problem.file.clone(), vec![problem]).map_or_else(Error::from, |()| Error::internal(message))
}

/// Text files below a folder by relative path.
fn read_below(dir: &Path, prefix: &str, out: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(dir).context(|| format!("reading {}", dir.display()))? {
        let path = entry.context(|| format!("reading {}", dir.display()))?.path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            read_below(&path, &format!("{name}/"), out)?;
        } else {
            let text = fs::read_to_string(&path).context(|| format!("reading {}", path.display()))?;
            out.insert(name, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::seed::tests::{PROFILE, planned};

    /// Who asks by the chart `tools`, with namespace, values and further images.
    fn asked(profile: &str) -> Result<Vec<String>> {
        let (plan, lock) = planned(profile);
        let n = plan.charts.iter().position(|chart| chart.spec.name == "tools").unwrap();
        let all = askers(&plan, &plan.charts[n], &lock.charts[n])?;
        Ok(all.iter().map(|asker| format!("{}: {} {} {}", asker.who, asker.namespace, asker.values, asker.images.join(" "))).collect())
    }

    #[test]
    fn components_ask_in_the_place_of_the_chart_that_they_are_made_of() {
        let both = [r#"component console: t {"a":{"x":1,"y":3}} r.test/i:1"#, r#"component base: default {"a":{"x":1,"y":2}} r.test/i:1"#];
        assert_eq!(asked(PROFILE).unwrap(), both);
        let none = PROFILE.split("components:").next().unwrap();
        assert_eq!(asked(none).unwrap(), [r#"chart tools: default {"a":{"x":1,"y":2}} r.test/i:1"#]);
    }

    #[test]
    fn a_component_of_another_version_of_its_chart_is_named_at_its_place() {
        let error = asked(&PROFILE.replace("version: 1.0.0}", "version: 2.0.0}")).unwrap_err().to_string();
        let says = "p.yaml:7:39: component base: it is made of version 2.0.0 of the chart tools, which is 1.0.0 here";
        assert!(error.contains(says) && error.contains("hint: leave `version` out"), "{error}");
    }
}
