//! The SBOM: an SPDX 2.3 document (ISO/IEC 5962) of what is in an image: Debian packages, programs with the Go modules that they are made of,
//! downloads, charts, container images with what their recipes hold; each with the licences that its own files name.

use std::collections::{BTreeMap, BTreeSet};

use layers::chart::LockedChart;
use layers::lock::{Lock, Package};
use layers::plan::{Body, Plan, PlannedFile};
use layers::seed::Image;
use layers::source::{GoSource, LockedFile, LockedGo, LockedModule, LockedSource, PlannedSource};
use layers::units::{Digest, Seed};
use serde_json::{Value, json};

use super::Named;
use crate::source::go::licence;

/// File name of the SBOM beside the artifacts.
pub const FILE: &str = "sbom.spdx.json";

/// The element that stands for the whole image.
const IMAGE: &str = "SPDXRef-image";

/// What a finished root holds, beside what its plan and lock say.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// Copyright file of each package, by package name.
    pub copyright: BTreeMap<String, String>,
    /// Container images.
    pub images: Vec<Image>,
    /// Digests of programs, by the names of their sources.
    pub programs: BTreeMap<String, Digest>,
}

/// What the SBOM is of.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Image name.
    pub name: &'a str,
    /// Image version.
    pub version: &'a str,
    /// The node's own programs.
    pub programs: &'a [&'a Named],
    /// What the image was planned from.
    pub plan: &'a Plan,
    /// What that resolved to.
    pub lock: &'a Lock,
    /// What came of it.
    pub holdings: &'a Holdings,
}

/// The document; equal inputs give equal text.
pub fn document(subject: &Subject<'_>, seed: &Seed) -> Value {
    let programs: String = subject.programs.iter().map(|one| one.sha256.to_string()).collect();
    let mut entries = Entries::default();
    entries.own(subject);
    subject.lock.packages.iter().for_each(|p| entries.add(IMAGE, "CONTAINS", package(p, &subject.holdings.copyright)));
    subject.lock.sources.iter().for_each(|source| entries.source(source, subject));
    let host = subject.plan.layers.iter().flat_map(|layer| &layer.files);
    host.filter_map(|file| element(file, subject.lock)).for_each(|id| entries.relate(IMAGE, "CONTAINS", &id));
    subject.holdings.images.iter().for_each(|image| entries.container(image, subject));
    subject.lock.charts.iter().for_each(|locked| entries.add(IMAGE, "CONTAINS", chart(locked)));
    json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{}-{}", subject.name, subject.version),
        "documentNamespace": format!("urn:uuid:{}", seed.uuid(&format!("sbom {} {programs}", subject.version))),
        "creationInfo": {"created": timestamp(subject.lock.epoch), "creators": [format!("Tool: chasi-bod-{}", env!("CARGO_PKG_VERSION"))]},
        "packages": entries.packages.into_values().collect::<Vec<_>>(),
        "relationships": entries.relations.iter().map(|(from, kind, to)| json!({
            "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to,
        })).collect::<Vec<_>>(),
    })
}

/// Packages by their identifiers, and how they belong together.
#[derive(Default)]
struct Entries {
    packages: BTreeMap<String, Value>,
    relations: BTreeSet<(String, &'static str, String)>,
}

impl Entries {
    fn relate(&mut self, from: &str, kind: &'static str, to: &str) {
        self.relations.insert((from.to_string(), kind, to.to_string()));
    }

    fn add(&mut self, from: &str, kind: &'static str, package: Value) {
        let id = package["SPDXID"].as_str().unwrap_or_default().to_string();
        self.relate(from, kind, &id);
        self.packages.insert(id, package);
    }

    /// The image itself and the node's own programs.
    fn own(&mut self, subject: &Subject<'_>) {
        let image = json!({"primaryPackagePurpose": "OPERATING-SYSTEM"});
        self.add("SPDXRef-DOCUMENT", "DESCRIBES", element_of(IMAGE.into(), subject.name, Some(subject.version), image));
        for program in subject.programs {
            let rest = json!({"licenseDeclared": "Apache-2.0", "checksums": sha256(&program.sha256)});
            let id = format!("SPDXRef-{}", program.name);
            self.add(IMAGE, "CONTAINS", element_of(id, &program.name, Some(env!("CARGO_PKG_VERSION")), rest));
        }
    }

    fn source(&mut self, source: &LockedSource, subject: &Subject<'_>) {
        let Some(id) = source_id(source) else { return };
        if let Some(file) = &source.url {
            self.packages.insert(id.clone(), download(id.clone(), &source.name, file));
        }
        let Some(go) = &source.go else { return };
        let planned = subject.plan.sources.iter().find(|planned| planned.name == source.name);
        self.packages.insert(id.clone(), program(id.clone(), source, planned, go, subject.holdings.programs.get(&source.name)));
        self.add(&id, "DEPENDS_ON", library(&go.toolchain));
        go.modules.iter().for_each(|locked| self.add(&id, "DEPENDS_ON", module(locked)));
    }

    /// A container image; for one that a recipe made, what the recipe's layers hold.
    fn container(&mut self, image: &Image, subject: &Subject<'_>) {
        let id = spdx_id("container", &image.name);
        self.add(IMAGE, "CONTAINS", container(id.clone(), image));
        let recipe = subject.plan.images.iter().find(|planned| planned.image.name == image.name);
        let names: BTreeSet<_> = recipe.iter().flat_map(|planned| &planned.image.layers).collect();
        for layer in subject.plan.image_layers.iter().filter(|layer| names.contains(&layer.name)) {
            layer.packages.iter().for_each(|name| self.relate(&id, "CONTAINS", &spdx_id("deb", name)));
            layer.files.iter().filter_map(|file| element(file, subject.lock)).for_each(|part| self.relate(&id, "CONTAINS", &part));
        }
    }
}

/// The element that a file comes from, where that is a source.
fn element(file: &PlannedFile, lock: &Lock) -> Option<String> {
    let Body::From { source, .. } = &file.body else { return None };
    lock.sources.iter().find(|locked| locked.name == *source).and_then(source_id)
}

fn source_id(source: &LockedSource) -> Option<String> {
    let kind = source.go.as_ref().map(|_| "program").or(source.url.as_ref().map(|_| "download"))?;
    Some(spdx_id(kind, &source.name))
}

/// An identifier: letters, digits, `.` and `-` are allowed (SPDX 2.3, 3.2), anything else becomes its hexadecimal number.
fn spdx_id(kind: &str, name: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    let escaped = name.chars().map(|c| if legal(c) { c.to_string() } else { format!(".{:x}.", u32::from(c)) });
    format!("SPDXRef-{kind}-{}", escaped.collect::<String>())
}

/// A package with the fields that all have; `more` adds to them and replaces them.
fn element_of(id: String, name: &str, version: Option<&str>, more: Value) -> Value {
    let mut out = json!({
        "SPDXID": id, "name": name, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
    });
    if let (Some(fields), Value::Object(more)) = (out.as_object_mut(), more) {
        fields.extend(version.map(|version| ("versionInfo".to_string(), version.into())));
        fields.extend(more);
    }
    out
}

fn sha256(digest: &Digest) -> Value {
    json!([{"algorithm": "SHA256", "checksumValue": digest.hex()}])
}

fn purl_ref(purl: String) -> Value {
    json!([{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}])
}

/// What a package URL may not hold as it is, between its separators.
fn escape(text: &str) -> String {
    [('%', "%25"), ('+', "%2B"), (':', "%3A"), ('~', "%7E"), ('@', "%40")].iter().fold(text.to_string(), |out, (from, to)| out.replace(*from, to))
}

fn package(package: &Package, copyright: &BTreeMap<String, String>) -> Value {
    let names = copyright.get(&package.name).map(|text| licences(text)).unwrap_or_default();
    let comment = match names.is_empty() {
        true => "the copyright file names no licence in machine-readable form".to_string(),
        false => format!("named by the copyright file: {}", names.into_iter().collect::<Vec<_>>().join(", ")),
    };
    let purl = format!("pkg:deb/debian/{}@{}?arch={}", escape(&package.name), escape(&package.version), package.architecture);
    let more = json!({
        "supplier": "Organization: Debian", "licenseComments": comment, "sourceInfo": package.source.as_ref().unwrap_or(&package.name),
        "checksums": sha256(&package.sha256), "externalRefs": purl_ref(purl),
    });
    element_of(spdx_id("deb", &package.name), &package.name, Some(&package.version), more)
}

/// A program; its version is that of the module that has its package.
fn program(id: String, source: &LockedSource, planned: Option<&PlannedSource>, locked: &LockedGo, digest: Option<&Digest>) -> Value {
    let modules = [&locked.toolchain].into_iter().chain(&locked.modules);
    let names: BTreeSet<_> = modules.filter_map(|m| m.licence.as_deref()).flat_map(licence::names).filter(|name| *name != licence::UNKNOWN).collect();
    let comment = format!("its modules are under {}", Vec::from_iter(names).join(", "));
    let mut more = json!({"primaryPackagePurpose": "APPLICATION", "licenseComments": comment});
    if let Some(digest) = digest {
        more["checksums"] = sha256(digest);
    }
    element_of(id, &source.name, planned.and_then(|planned| planned.source.go.as_ref()).and_then(version), more)
}

fn version(go: &GoSource) -> Option<&str> {
    let holds = |module: &str| {
        go.package.as_ref().is_none_or(|package| package.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    match go.require.iter().filter(|(module, _)| holds(module)).max_by_key(|(module, _)| module.len()) {
        // An own main package stands for a module only where that is the one it is made of.
        Some((_, version)) if go.package.is_some() || go.require.len() == 1 => Some(version),
        _ => None,
    }
}

/// A Go module; package URLs of Go are in lower case (purl-spec, type golang).
fn module(module: &LockedModule) -> Value {
    let purl = format!("pkg:golang/{}@{}", escape(&module.path).to_lowercase(), escape(&module.version));
    let id = spdx_id("go", &format!("{}-{}", module.path, module.version));
    element_of(id, &module.path, Some(&module.version), go_fields(module, purl))
}

/// Go's own library, under the name that scanners know it by.
fn library(toolchain: &LockedModule) -> Value {
    let version = toolchain.version.trim_start_matches("v0.0.1-go").split(".linux").next().unwrap_or_default();
    element_of(spdx_id("go", &format!("stdlib-{version}")), "stdlib", Some(version), go_fields(toolchain, format!("pkg:golang/stdlib@{version}")))
}

fn go_fields(module: &LockedModule, purl: String) -> Value {
    let found = module.licence.as_deref().unwrap_or("no licence file");
    let mut more = json!({"checksums": sha256(&module.sha256), "externalRefs": purl_ref(purl)});
    match licence::names(found).all(|name| name != licence::UNKNOWN) && module.licence.is_some() {
        true => more["licenseDeclared"] = found.into(),
        false => more["licenseComments"] = format!("found: {found}").into(),
    }
    more
}

fn download(id: String, name: &str, file: &LockedFile) -> Value {
    let place = file.from.iter().find(|url| url.contains("://")).map_or("NOASSERTION", String::as_str);
    element_of(id, name, None, json!({"downloadLocation": place, "checksums": sha256(&file.sha256)}))
}

fn chart(locked: &LockedChart) -> Value {
    let place = locked.from.iter().find(|url| url.starts_with("http")).map_or("NOASSERTION", String::as_str);
    let more = json!({"downloadLocation": place, "checksums": sha256(&locked.sha256), "sourceInfo": format!("installed as {}", locked.name)});
    element_of(spdx_id("chart", &locked.name), &locked.chart, Some(&locked.version), more)
}

/// A container image, by the digest that its registry would give.
fn container(id: String, image: &Image) -> Value {
    let (repository, tag) = image.name.rsplit_once(':').unwrap_or((&image.name, ""));
    let name = repository.rsplit('/').next().unwrap_or_default();
    let purl = format!("pkg:oci/{name}@{}?repository_url={}&tag={}", escape(&image.digest.to_string()), escape(repository), escape(tag));
    let more = json!({"primaryPackagePurpose": "CONTAINER", "checksums": sha256(&image.digest), "externalRefs": purl_ref(purl)});
    element_of(id, repository, Some(tag), more)
}

/// Licence names of a copyright file in Debian's machine-readable format (DEP-5): the first line of each `License:` field.
fn licences(text: &str) -> BTreeSet<String> {
    if !text.trim_start().starts_with("Format:") {
        return BTreeSet::new();
    }
    text.lines().filter_map(|line| line.strip_prefix("License:")).map(|name| name.trim().to_string()).filter(|name| !name.is_empty()).collect()
}

/// Seconds since 1970 as `YYYY-MM-DDThh:mm:ssZ` (civil-from-days, proleptic Gregorian calendar).
pub fn timestamp(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use layers::image::{Image as Recipe, PlannedImage, PlannedImageLayer};
    use layers::plan::PlannedLayer;
    use layers::profile::Spot;
    use layers::source::Source;
    use layers::units::Bytes;

    use super::*;

    fn go_module(path: &str, version: &str, licence: Option<&str>) -> LockedModule {
        LockedModule {
            path: path.into(),
            version: version.into(),
            sha256: Digest::of(path.as_bytes()),
            size: Bytes(1),
            go_mod: None,
            licence: licence.map(String::from),
        }
    }

    fn lock() -> Lock {
        let library = go_module("golang.org/toolchain", "v0.0.1-go1.26.8.linux-amd64", Some("BSD-3-Clause"));
        let modules = vec![
            go_module("x.test/Tool", "v1.2.3+incompatible", Some("Apache-2.0 AND MIT")),
            go_module("y.test", "v1.0.0", Some("MIT AND NOASSERTION")),
        ];
        let go = LockedGo { toolchain: library, go_mod: String::new(), go_sum: String::new(), modules };
        let file = LockedFile { from: vec!["https://z.test/z".into()], sha256: Digest::of(b"z"), size: Bytes(1) };
        let source = |name: &str, go, url| LockedSource { name: name.into(), request: Digest::of(b"r"), go, url };
        let sources = vec![source("tool", Some(go), None), source("z", None, Some(file))];
        let chart = LockedChart {
            name: "web".into(),
            request: Digest::of(b"r"),
            chart: "nginx".into(),
            version: "1.2.0".into(),
            sha256: Digest::of(b"chart"),
            size: Bytes(1),
            from: vec!["oci://r.test/nginx".into()],
            signed_by: None,
        };
        Lock { packages: vec![debian("libc6", "2.41")], sources, charts: vec![chart], ..Lock::default() }
    }

    fn plan() -> Plan {
        let file = |source: &str| PlannedFile {
            path: format!("/bin/{source}"),
            mode: 0o755,
            owner: "root".into(),
            group: "root".into(),
            overrides: false,
            body: Body::From { source: source.into(), member: None },
            at: Spot::default(),
        };
        let go: GoSource = serde_json::from_value(
            json!({"package": "x.test/Tool/cmd/tool", "toolchain": "1.26.8", "require": {"x.test/Tool": "v1.2.3", "x": "v9.0.0"}}),
        )
        .unwrap();
        let source = PlannedSource { name: "tool".into(), layer: "a".into(), source: Source { go: Some(go), url: None }, files: BTreeMap::new() };
        let recipe: Recipe = serde_json::from_value(json!({"name": "r.test/a/tool:1.2", "layers": ["base", "tool"]})).unwrap();
        let layer = |name: &str, packages: &[&str], files| PlannedImageLayer {
            name: name.into(),
            packages: packages.iter().map(ToString::to_string).collect(),
            files,
        };
        Plan {
            name: "site".into(),
            version: "1.0.0".into(),
            layers: vec![PlannedLayer { files: vec![file("z")], ..PlannedLayer::default() }],
            sources: vec![source],
            image_layers: vec![
                layer("base", &["libc6"], vec![]),
                layer("other", &["libc6"], vec![file("z")]),
                layer("tool", &[], vec![file("tool")]),
            ],
            images: vec![PlannedImage { layer: "a".into(), image: recipe, at: Spot::default() }],
            pulls: Vec::new(),
            charts: Vec::new(),
            virtual_clusters: Vec::new(),
            components: Vec::new(),
        }
    }

    fn sbom() -> Value {
        let image = |name: &str| Image {
            name: name.into(),
            digest: Digest::of(name.as_bytes()),
            media_type: String::new(),
            size: Bytes(1),
            manifest: Digest::of(b"m"),
            config: Digest::of(b"c"),
            wanted_by: Vec::new(),
        };
        let images = vec![image("r.test/a/tool:1.2"), image("r.test:5000/pulled:2")];
        let holdings = Holdings { images, programs: BTreeMap::from([("tool".into(), Digest::of(b"program"))]), ..Holdings::default() };
        let (plan, lock) = (plan(), lock());
        let subject = Subject {
            name: "site",
            version: "1.0.0",
            programs: &[&Named::of("chasi-bod-node", b"n")],
            plan: &plan,
            lock: &lock,
            holdings: &holdings,
        };
        document(&subject, &Seed::new("site"))
    }

    #[test]
    fn programs_modules_downloads_and_images_belong_together() {
        let sbom = sbom();
        let relations: Vec<_> = sbom["relationships"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| {
                let text = |key: &str| r[key].as_str().unwrap().trim_start_matches("SPDXRef-").to_string();
                format!("{} {} {}", text("spdxElementId"), text("relationshipType"), text("relatedSpdxElement"))
            })
            .collect();
        let expected = [
            "DOCUMENT DESCRIBES image",
            "container-r.test.2f.a.2f.tool.3a.1.2 CONTAINS deb-libc6",
            "container-r.test.2f.a.2f.tool.3a.1.2 CONTAINS program-tool",
            "image CONTAINS chart-web",
            "image CONTAINS chasi-bod-node",
            "image CONTAINS container-r.test.2f.a.2f.tool.3a.1.2",
            "image CONTAINS container-r.test.3a.5000.2f.pulled.3a.2",
            "image CONTAINS deb-libc6",
            "image CONTAINS download-z",
            "program-tool DEPENDS_ON go-stdlib-1.26.8",
            "program-tool DEPENDS_ON go-x.test.2f.Tool-v1.2.3.2b.incompatible",
            "program-tool DEPENDS_ON go-y.test-v1.0.0",
        ];
        assert_eq!(relations, expected);
        let ids: BTreeSet<_> =
            sbom["packages"].as_array().unwrap().iter().map(|p| p["SPDXID"].as_str().unwrap().trim_start_matches("SPDXRef-")).collect();
        let named: BTreeSet<_> = expected.iter().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert_eq!(ids, named, "every element belongs to something");
    }

    #[test]
    fn elements_say_version_digest_origin_and_licence() {
        let sbom = sbom();
        let get = |id: &str| sbom["packages"].as_array().unwrap().iter().find(|p| p["SPDXID"] == format!("SPDXRef-{id}")).unwrap().clone();
        let purl = |id: &str| get(id)["externalRefs"][0]["referenceLocator"].as_str().unwrap().to_string();
        assert_eq!(purl("go-x.test.2f.Tool-v1.2.3.2b.incompatible"), "pkg:golang/x.test/tool@v1.2.3%2Bincompatible");
        assert_eq!(purl("go-stdlib-1.26.8"), "pkg:golang/stdlib@1.26.8");
        let image = format!("pkg:oci/pulled@sha256%3A{}?repository_url=r.test%3A5000/pulled&tag=2", Digest::of(b"r.test:5000/pulled:2").hex());
        assert_eq!(purl("container-r.test.3a.5000.2f.pulled.3a.2"), image);
        let (tool, unknown) = (get("program-tool"), get("go-y.test-v1.0.0"));
        assert_eq!((&tool["versionInfo"], &tool["checksums"][0]["checksumValue"]), (&json!("v1.2.3"), &json!(Digest::of(b"program").hex())));
        assert_eq!(get("go-x.test.2f.Tool-v1.2.3.2b.incompatible")["licenseDeclared"], "Apache-2.0 AND MIT");
        // An expression cannot have NOASSERTION in it.
        assert_eq!((&unknown["licenseDeclared"], &unknown["licenseComments"]), (&json!("NOASSERTION"), &json!("found: MIT AND NOASSERTION")));
        assert_eq!(get("download-z")["downloadLocation"], "https://z.test/z");
        assert_eq!((&get("chart-web")["name"], &get("chart-web")["versionInfo"]), (&json!("nginx"), &json!("1.2.0")));
    }

    #[test]
    fn timestamps_match_the_calendar() {
        for (seconds, text) in [(0, "1970-01-01T00:00:00Z"), (951_782_399, "2000-02-28T23:59:59Z"), (951_868_800, "2000-03-01T00:00:00Z")] {
            assert_eq!(timestamp(seconds), text);
        }
    }

    #[test]
    fn licences_come_from_machine_readable_files_only() {
        let dep5 = "Format: https://example/1.0/\n\nFiles: *\nLicense: GPL-2+\n text\n\nFiles: x\nLicense: MIT\n";
        assert_eq!(licences(dep5).into_iter().collect::<Vec<_>>(), ["GPL-2+", "MIT"]);
        assert!(licences("This package is free.\nLicense: GPL\n").is_empty());
    }

    fn debian(name: &str, version: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            architecture: "amd64".into(),
            sha256: Digest::of(b"x"),
            size: Bytes(1),
            suite: "trixie".into(),
            path: "pool/x.deb".into(),
            source: None,
            wanted_by: Vec::new(),
        }
    }

    #[test]
    fn a_package_has_a_purl_and_a_legal_identifier() {
        let entry = super::package(&debian("libstdc++6", "1:2.0~rc1+b1"), &BTreeMap::new());
        assert_eq!(entry["SPDXID"], "SPDXRef-deb-libstdc.2b..2b.6");
        assert_eq!(entry["externalRefs"][0]["referenceLocator"], "pkg:deb/debian/libstdc%2B%2B6@1%3A2.0%7Erc1%2Bb1?arch=amd64");
    }
}
