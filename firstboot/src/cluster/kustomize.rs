//! Kustomizations of the image: the bundled kubectl renders them where they are installed, and helm installs what comes out like any other chart.

use layers::chart::bundle::{self, Form};
use layers::{Context as _, Error, Fault, Result};

use super::helm::{Target, homeless};
use crate::exec;
use crate::host::Host;

/// Does something with the path of the chart that one of the image's comes to.
pub fn with_chart<T>(host: &Host, target: &Target<'_>, path: &str, form: &Form, work: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let Form::Kustomize(folder) = form else { return work(path) };
    let archive = host.read_bytes(path)?.ok_or_else(|| Error::internal(format!("reading {path}: it is not there")))?;
    let chart = bundle::rendered(&archive, render(host, &archive, folder).context(|| format!("rendering kustomization {}", target.name))?)?;
    let file = target.file("tgz");
    host.write(&file, &chart, 0o600)?;
    let done = work(&format!("/{file}"));
    host.remove(&file)?;
    done
}

fn render(host: &Host, archive: &[u8], folder: &str) -> Result<Vec<u8>> {
    let place = tempfile::tempdir().context(|| "creating a scratch folder".into())?;
    for (path, bytes) in bundle::kustomization(archive)? {
        let path = place.path().join(path);
        let above = path.parent().unwrap_or(place.path());
        std::fs::create_dir_all(above)
            .and_then(|()| std::fs::write(&path, bytes))
            .fault(Fault::Environment, || format!("writing {}", path.display()))?;
    }
    let mut kubectl = homeless(host, host.program("kubectl"));
    Ok(exec::run(kubectl.arg("kustomize").arg(place.path().join(folder)))?.stdout)
}
