//! Artifacts and records of an image, into the result folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use layers::profile::Profile;
use layers::units::{Bytes, Digest};
use layers::{Context, Error, Result};
use serde::Serialize;

use super::output::{self, Staging};
use super::{Build, CLUSTER_ROLE, Image, Key, Outcome, RawSum, State, boot};
use crate::emit::{self, Machine, OutputFormat};
use crate::inspect::Check;
use crate::record::{self, Artifact, BuildRecord, Inputs, Named, spdx};
use crate::store::Store;

/// Writes artifacts and records into the result folder and gives it its name.
pub fn write(request: &Build, key: &Key<'_>, image: &Image, target: &Path, store: &Store) -> Result<Outcome> {
    if let Some(old) = output::existing(target).filter(|old| old.key != key.image) {
        let (version, id) = (&old.version, old.root.root_hash.short());
        let files: Vec<_> = old.artifacts.iter().map(|a| a.file.as_str()).collect();
        eprintln!("notice: replacing version {version} with content id {id} ({}): raise `version` for an image that is published", files.join(", "));
    }
    let staging = Staging::begin(target)?;
    let mut machine = machine(request, key);
    if request.formats.iter().any(|format| [OutputFormat::Iso, OutputFormat::Pxe].contains(format)) {
        machine.start = Some(boot::start(key, image, store)?);
    }
    let mut formats = request.formats.clone();
    formats.sort();
    formats.dedup();
    let emitted = emit::side_by_side(formats, |format| artifact(request, &machine, format, image, &staging))?;
    let mut artifacts = kept(target, key.image, &emitted, &staging)?;
    artifacts.extend(emitted);
    artifacts.sort_by(|a, b| a.file.cmp(&b.file));
    let check = Check::of(&image.disk, &image.layout)?;
    let record = record_of(key, image, check, artifacts)?;
    write_records(key, image, &record, &staging)?;
    staging.finish()?;
    let files = record.artifacts.iter().map(|a| target.join(&a.file)).collect();
    Ok(Outcome { folder: target.to_path_buf(), state: State::Built, content_id: image.root_hash, files })
}

/// What artifacts say of the machine.
fn machine(request: &Build, key: &Key<'_>) -> Machine {
    let Profile { name, version, machine, .. } = &key.planned.profile;
    Machine {
        name: name.clone(),
        version: version.clone(),
        uuid: key.planned.seed().uuid("machine"),
        epoch: key.lock.epoch,
        processors: machine.processors,
        memory: machine.memory,
        has_cluster: key.planned.roles.contains(CLUSTER_ROLE),
        start: None,
        signer: request.ova_signer.clone(),
    }
}

fn artifact(request: &Build, machine: &Machine, format: OutputFormat, image: &Image, staging: &Staging) -> Result<Artifact> {
    let file = format!("{}-{}.{}", machine.name, machine.version, format.extension());
    let path = staging.dir.join(&file);
    emit::emit(format, &image.disk, machine, &path)?;
    let size = Bytes(fs::metadata(&path).context(|| format!("reading {}", path.display()))?.len());
    let map = || {
        let (name, text) = (format!("{file}.bmap"), emit::bmap::write(&image.disk)?);
        staging.write(&name, text.as_bytes())?;
        Ok::<_, Error>(Named::of(&name, text.as_bytes()))
    };
    let block_map = matches!(format, OutputFormat::Raw | OutputFormat::RawZst).then(map).transpose()?;
    let (sha256, check) = match format {
        OutputFormat::Raw => ((request.raw_sum == RawSum::Write).then(|| output::sha256(&path)).transpose()?, None),
        _ => output::sums(&path).map(|(sha256, check)| (Some(sha256), Some(check)))?,
    };
    Ok(Artifact { file, size, sha256, check, block_map, signed_by: request.signed_by(format) })
}

/// Artifacts of the same image that this build was not asked for stay.
fn kept(target: &Path, image: Digest, emitted: &[Artifact], staging: &Staging) -> Result<Vec<Artifact>> {
    let Some(old) = output::existing(target).filter(|r| r.key == image && output::is_whole(target, r)) else { return Ok(Vec::new()) };
    let old: Vec<_> = old.artifacts.into_iter().filter(|a| emitted.iter().all(|e| e.file != a.file)).collect();
    old.iter().flat_map(Artifact::names).try_for_each(|name| staging.adopt(name))?;
    Ok(old)
}

fn record_of(key: &Key<'_>, image: &Image, check: Check, artifacts: Vec<Artifact>) -> Result<BuildRecord> {
    let profile = &key.planned.profile;
    let inputs = Inputs {
        builder: format!("chasi-bod {}", env!("CARGO_PKG_VERSION")),
        node: Named::of("chasi-bod-node", &key.node.agent),
        init: Named::of("chasi-bod-init", &key.node.init),
        profile: Named::of("profile.resolved.yaml", key.resolved.as_bytes()),
        plan: Named { name: "plan".into(), sha256: key.planned.plan.digest() },
        lock: Named::of("lock", key.lock.to_yaml()?.as_bytes()),
        indices: key.lock.indices.clone(),
        packages: key.lock.packages.clone(),
        tools: key.lock.tools.clone(),
        sources: key.lock.sources.iter().flat_map(record::parts).collect::<BTreeSet<_>>().into_iter().collect(),
        images: key.lock.images.clone(),
    };
    let root = record::Root {
        root_hash: image.root_hash,
        size: image.layout.root,
        slot: image.layout.slot,
        entries: image.entries,
        kernel: image.boot.release.clone(),
    };
    Ok(BuildRecord {
        name: profile.name.clone(),
        version: profile.version.clone(),
        key: key.image,
        epoch: key.lock.epoch,
        inputs,
        root,
        check,
        artifacts,
    })
}

fn pretty(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map(|t| t + "\n").map_err(|e| Error::internal(format!("encoding JSON: {e}")))
}

fn write_records(key: &Key<'_>, image: &Image, record: &BuildRecord, staging: &Staging) -> Result<()> {
    let (lock, plan) = (&key.lock, &key.planned.plan);
    let programs = [&record.inputs.node, &record.inputs.init];
    let subject = spdx::Subject { name: &record.name, version: &record.version, programs: &programs, plan, lock, holdings: &image.holdings };
    let sbom = spdx::document(&subject, &key.planned.seed());
    let small = [
        ("profile.resolved.yaml", key.resolved.clone()),
        ("lock", key.lock.to_yaml()?),
        (spdx::FILE, pretty(&sbom)?),
        (record::FILE, pretty(record)?),
    ];
    small.iter().try_for_each(|(name, text)| staging.write(name, text.as_bytes()))?;
    let artifacts = record.artifacts.iter().filter_map(|a| Some((a.file.clone(), a.sha256?)));
    let maps = record.artifacts.iter().filter_map(|a| a.block_map.as_ref()).map(|map| (map.name.clone(), map.sha256));
    let mut sums: Vec<_> = small.iter().map(|(name, text)| ((*name).to_string(), Digest::of(text.as_bytes()))).chain(artifacts).chain(maps).collect();
    sums.sort();
    let text: String = sums.iter().map(|(name, digest)| format!("{}  {name}\n", digest.hex())).collect();
    staging.write(output::SUMS, text.as_bytes())
}
