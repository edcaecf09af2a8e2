//! The texts that go with a program: Apache-2.0, BSD and MIT ask for their notice beside the binary. One file per program, every text once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::BufReader;

use layers::source::{LockedGo, LockedModule, LockedSource};
use layers::units::Digest;
use layers::{Context, Error, Result};

use super::{label, licence};
use crate::store::Store;

/// The licence texts of a program's modules and of the Go library; none for what is no Go program. Kept in the store by what they were read from.
pub fn notices(store: &Store, source: &LockedSource) -> Result<Option<String>> {
    let Some(locked) = &source.go else { return Ok(None) };
    let inputs = serde_json::to_vec(&(&source.name, &locked.toolchain, &locked.modules)).map_err(|e| Error::internal(e.to_string()))?;
    let key = Digest::of_parts([b"notices v1".as_slice(), &inputs]);
    if let Some(text) = store.load::<String>("notices", &key)? {
        return Ok(Some(text));
    }
    let text = collect(store, &source.name, locked).context(|| format!("collecting the licences of {}", source.name))?;
    store.save("notices", &key, &text)?;
    Ok(Some(text))
}

fn collect(store: &Store, name: &str, locked: &LockedGo) -> Result<String> {
    let mut head = format!("{name} is made of these Go modules. Their licences and notices follow.\n\n");
    let mut order = Vec::<(String, String)>::new();
    let mut places = BTreeMap::<String, usize>::new();
    for module in [&locked.toolchain].into_iter().chain(&locked.modules) {
        let _ = writeln!(head, "{} ({})", label(module), module.licence.as_deref().unwrap_or("no licence file"));
        for (path, text) in texts(store, module, module == &locked.toolchain)? {
            let text = text.trim_end().to_string();
            let place = *places.entry(text.clone()).or_insert_with(|| {
                order.push((String::new(), text));
                order.len() - 1
            });
            let _ = writeln!(order[place].0, "{}: {path}", label(module));
        }
    }
    Ok(order.into_iter().fold(head, |out, (owners, text)| format!("{out}\n{}\n{owners}\n{text}\n", "=".repeat(80))))
}

/// Texts of one module; of the toolchain those at its top, which hold for its library.
fn texts(store: &Store, module: &LockedModule, toolchain: bool) -> Result<Vec<(String, String)>> {
    let path = store.blob(&module.sha256);
    let file = File::open(&path).context(|| format!("opening {} of module {}", path.display(), label(module)))?;
    let texts = licence::notices(BufReader::new(file));
    Ok(texts.into_iter().filter(|(path, _)| !toolchain || !path.contains('/')).collect())
}
