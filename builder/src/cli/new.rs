//! `new --output`: a profile and, beside it, the schema that its first line names.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use layers::{Context, Error, Fault, Result, profile};

/// Name of the schema in the first line of a new profile.
const SCHEMA: &str = "profile.schema.json";

/// Writes a profile of this name and its schema. Neither replaces a file; a schema that is there already and equal is left as it is.
pub fn write(name: &str, path: &Path) -> Result<()> {
    let text = profile::template(name)?;
    let schema = serde_json::to_string_pretty(&profile::json_schema()).map_err(|e| Error::internal(format!("encoding JSON: {e}")))? + "\n";
    let beside = path.with_file_name(SCHEMA);
    let present = fs::read(&beside).is_ok_and(|old| old == schema.as_bytes());
    if !present && beside.exists() {
        return Err(taken(&beside));
    }
    put(path, &text)?;
    if !present {
        put(&beside, &schema)?;
    }
    eprintln!("wrote {} and its schema {}", path.display(), beside.display());
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<()> {
    let made = File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
    match made {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(taken(path)),
        other => other.fault(Fault::Input, || format!("writing {}", path.display())),
    }
}

/// A file that is there already and is not replaced.
pub fn taken(path: &Path) -> Error {
    Error::input(format!("writing {}: it exists already", path.display())).with_hint("remove it first, or name another file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_profile_lies_beside_the_schema_that_it_names_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.yaml");
        write("site", &path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let named = text.lines().next().unwrap().split_once("$schema=").unwrap().1;
        let schema: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join(named)).unwrap()).unwrap();
        assert_eq!(schema, profile::json_schema());
        assert_eq!(write("site", &path).unwrap_err().fault(), Fault::Input);
        write("other", &dir.path().join("other.yaml")).unwrap();
        fs::write(dir.path().join(SCHEMA), "{}").unwrap();
        let error = write("third", &dir.path().join("third.yaml")).unwrap_err().to_string();
        assert!(error.contains(SCHEMA) && !dir.path().join("third.yaml").exists(), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a1_a_bad_name_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        write("My Site", &dir.path().join("site.yaml")).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
