//! Which licences a module is under, by the texts of its licence files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek};

use layers::lock::Lock;
use layers::source::LockedGo;

use super::label;
use crate::store::Store;

/// Longest text that is read.
const LIMIT: u64 = 256 << 10;

/// What is said where no licence is known (SPDX 2.3, 7.15).
pub const UNKNOWN: &str = "NOASSERTION";

/// Licences by sentences that only their texts have; all of a row must be there.
const SENTENCES: [(&str, &[&str]); 24] = [
    ("AGPL-3.0-only", &["gnu affero general public license version 3, 19 november 2007"]),
    ("Apache-2.0", &["apache license", "version 2.0"]),
    ("BSL-1.0", &["boost software license - version 1.0"]),
    ("BUSL-1.1", &["business source license 1.1"]),
    ("CC-BY-4.0", &["attribution 4.0 international"]),
    ("CC-BY-NC-4.0", &["attribution-noncommercial 4.0 international"]),
    ("CC-BY-SA-4.0", &["attribution-sharealike 4.0 international"]),
    ("CC0-1.0", &["cc0 1.0 universal"]),
    ("EPL-2.0", &["eclipse public license - v 2.0"]),
    ("Elastic-2.0", &["elastic license 2.0"]),
    ("GPL-2.0-only", &["gnu general public license version 2, june 1991"]),
    ("GPL-3.0-only", &["gnu general public license version 3, 29 june 2007"]),
    ("ISC", &["permission to use, copy, modify, and distribute this software for any purpose", "provided that the above copyright notice"]),
    ("ISC", &["permission to use, copy, modify, and/or distribute this software", "provided that the above copyright notice"]),
    ("LGPL-2.1-only", &["gnu lesser general public license version 2.1, february 1999"]),
    ("LGPL-3.0-only", &["gnu lesser general public license version 3, 29 june 2007"]),
    ("MIT", &["permission is hereby granted, free of charge, to any person obtaining"]),
    ("MPL-2.0", &["mozilla public license", "2.0"]),
    ("OFL-1.1", &["sil open font license version 1.1"]),
    ("SSPL-1.0", &["server side public license"]),
    ("UPL-1.0", &["universal permissive license", "version 1.0"]),
    ("Unlicense", &["this is free and unencumbered software released into the public domain"]),
    ("Zlib", &["this software is provided 'as-is'", "altered source versions must be plainly marked"]),
    // A condition on top of another licence: nothing may be sold.
    (UNKNOWN, &["commons clause"]),
];

/// Licences that restrict who may give the program to whom, or what for.
const RESTRICTED: [&str; 4] = ["BUSL-1.1", "CC-BY-NC-4.0", "Elastic-2.0", "SSPL-1.0"];

/// SPDX expression of the licence files at the top of a module's zip; `NOASSERTION` where a text is not known, none without any file.
pub fn of_zip(zip: impl Read + Seek) -> Option<String> {
    let mut zip = zip::ZipArchive::new(zip).ok()?;
    let names: Vec<String> =
        zip.file_names().flatten().filter(|name| below(name).is_some_and(|path| !path.contains('/') && is_licence(path))).map(String::from).collect();
    let found: BTreeSet<_> = names.iter().filter_map(|name| text(&mut zip, name)).flat_map(|text| of_text(&text)).collect();
    (!found.is_empty()).then(|| found.into_iter().collect::<Vec<_>>().join(" AND "))
}

/// The texts of a module's zip that go with a program, by their path in the module: licences and what they ask to be passed on.
pub(super) fn notices(zip: impl Read + Seek) -> Vec<(String, String)> {
    let Ok(mut zip) = zip::ZipArchive::new(zip) else { return Vec::new() };
    let names: BTreeSet<String> = zip.file_names().flatten().filter(|name| below(name).is_some_and(is_notice)).map(String::from).collect();
    names.iter().filter_map(|name| Some((below(name)?.to_string(), text(&mut zip, name)?))).collect()
}

/// The path inside its module of a file of a zip (`module@version/path`).
fn below(name: &str) -> Option<&str> {
    name.split_once('@')?.1.split_once('/').map(|(_, path)| path)
}

/// Whether a file is a licence, by its name; not that of the project's picture, which no program has in it.
fn is_licence(path: &str) -> bool {
    named(path, &["LICENSE", "LICENCE", "COPYING", "UNLICENSE"]) && !path.ends_with("-LOGO")
}

/// Whether a file is a text that goes with the program: licences, and what they ask to be passed on.
fn is_notice(path: &str) -> bool {
    is_licence(path) || named(path, &["NOTICE", "COPYRIGHT", "PATENTS"])
}

fn named(path: &str, starts: &[&str]) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default().to_ascii_uppercase();
    starts.iter().any(|start| name.starts_with(start)) && !name.ends_with(".GO") && !path.split('/').any(|part| part == "testdata")
}

fn text<R: Read + Seek>(zip: &mut zip::ZipArchive<R>, name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    zip.by_name(name).ok()?.take(LIMIT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// SPDX names of the licences that a text holds, by sentences that only they have.
fn of_text(text: &str) -> BTreeSet<&'static str> {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let has = |sentence: &&str| words.contains(*sentence);
    let mut found: BTreeSet<_> = SENTENCES.iter().filter(|(_, sentences)| sentences.iter().all(has)).map(|(name, _)| *name).collect();
    if has(&"redistribution and use in source and binary forms") {
        let third = ["neither the name", "names of its contributors", "name of the author may not", "names of the contributors"].iter().any(has);
        let fourth = has(&"all advertising materials mentioning");
        found.insert(if fourth {
            "BSD-4-Clause"
        } else if third {
            "BSD-3-Clause"
        } else {
            "BSD-2-Clause"
        });
    }
    if found.is_empty() {
        found.insert(UNKNOWN);
    }
    found
}

/// The same lock with licences as this program knows them; modules that the store lacks keep theirs.
pub fn renewed(store: &Store, locked: &LockedGo) -> LockedGo {
    let mut out = locked.clone();
    for module in &mut out.modules {
        if let Ok(file) = File::open(store.blob(&module.sha256)) {
            module.licence = of_zip(BufReader::new(file));
        }
    }
    out
}

/// A line for each module whose licence is not known or restricts redistribution, with the programs that it is part of.
pub fn doubts(lock: &Lock) -> Vec<String> {
    let mut found = BTreeMap::<String, BTreeSet<&str>>::new();
    for source in &lock.sources {
        for module in source.go.iter().flat_map(|go| &go.modules) {
            if let Some(why) = doubt(module.licence.as_deref()) {
                found.entry(format!("Go module {} {why}", label(module))).or_default().insert(&source.name);
            }
        }
    }
    let line = |(what, programs): (String, BTreeSet<&str>)| format!("{what}; part of {}", Vec::from_iter(programs).join(", "));
    found.into_iter().map(line).collect()
}

fn doubt(licence: Option<&str>) -> Option<String> {
    let Some(text) = licence else { return Some("has no licence file: nothing allows its redistribution".into()) };
    match names(text).find(|name| RESTRICTED.contains(name)) {
        Some(name) => Some(format!("is under {name}, which restricts use and redistribution")),
        None if text.contains(UNKNOWN) => Some("has a licence text that is not known and may forbid redistribution".into()),
        None => None,
    }
}

/// The licences of an expression.
pub fn names(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(" AND ")
}

#[cfg(test)]
mod tests {
    use layers::source::{LockedModule, LockedSource};
    use layers::units::Digest;

    use super::*;

    #[test]
    fn licences_are_known_by_their_sentences() {
        let bsd = "Redistribution and use in source and binary forms, with or without";
        let mpl = "Mozilla Public License Version 2.0 ... the GNU Lesser General Public License, Version 2.1, the GNU Affero General Public License";
        let cases = [
            ("Apache License\n  Version 2.0, January 2004".into(), "Apache-2.0"),
            ("Permission is hereby granted,\nfree of charge, to any person obtaining a copy".into(), "MIT"),
            (format!("{bsd} ... Neither the name of"), "BSD-3-Clause"),
            (format!("{bsd} ... modification"), "BSD-2-Clause"),
            (format!("{bsd} ... All advertising materials mentioning ... Neither the name of"), "BSD-4-Clause"),
            (mpl.into(), "MPL-2.0"),
            // GPL and AGPL name each other in their texts.
            ("GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007 ... 13. Use with the GNU Affero General Public License.".into(), "GPL-3.0-only"),
            ("Attribution-ShareAlike 4.0 International".into(), "CC-BY-SA-4.0"),
            ("Business Source License 1.1".into(), "BUSL-1.1"),
            // Two licences in one file, as go.yaml.in/yaml has them.
            (format!("MIT: Permission is hereby granted, free of charge, to any person obtaining ... {bsd}"), "BSD-2-Clause AND MIT"),
            ("\"Commons Clause\" License Condition v1.0 ... Apache License, Version 2.0".into(), "Apache-2.0 AND NOASSERTION"),
            ("Copyright. All rights reserved.".into(), "NOASSERTION"),
        ];
        for (text, names) in cases {
            assert_eq!(Vec::from_iter(of_text(&text)).join(" AND "), names, "{text}");
        }
    }

    #[test]
    fn only_files_at_the_top_of_a_module_tell_its_licence() {
        assert!(is_licence("LICENSE.txt") && is_licence("copying") && !is_licence("license.go") && !is_licence("testdata/LICENSE"));
        assert!(!is_licence("LICENSE-LOGO"));
        assert!(is_notice("NOTICE") && is_notice("third_party/x/LICENSE") && !is_licence("NOTICE"));
        assert_eq!((below("github.com/a/b@v1.0.0/x/LICENSE"), below("no module")), (Some("x/LICENSE"), None));
    }

    #[test]
    fn each_module_in_doubt_is_told_once_with_its_programs() {
        let module = |path: &str, licence: Option<&str>| LockedModule {
            path: path.into(),
            version: "v1.0.0".into(),
            sha256: Digest::of(path.as_bytes()),
            size: layers::units::Bytes(1),
            go_mod: None,
            licence: licence.map(String::from),
        };
        let modules = [
            module("a.test", Some("Apache-2.0")),
            module("b.test", Some("Apache-2.0 AND NOASSERTION")),
            module("c.test", Some("BUSL-1.1")),
            module("d.test", None),
        ];
        let go = LockedGo { toolchain: modules[0].clone(), go_mod: String::new(), go_sum: String::new(), modules: modules.to_vec() };
        let source = |name: &str| LockedSource { name: name.into(), request: Digest::of(b""), go: Some(go.clone()), url: None };
        let lines = doubts(&Lock { sources: vec![source("one"), source("two")], ..Lock::default() });
        assert_eq!(lines.len(), 3, "{lines:?}");
        for (line, parts) in lines.iter().zip([["b.test v1.0.0", "not known"], ["c.test v1.0.0", "BUSL-1.1"], ["d.test v1.0.0", "no licence file"]]) {
            assert!(parts.iter().all(|part| line.contains(part)) && line.ends_with("part of one, two"), "{line}");
        }
    }
}
