//! Which licence a module is under, from the text of its licence files.

use std::collections::BTreeSet;
use std::io::{Cursor, Read};

/// Longest licence text that is read.
const LIMIT: u64 = 256 << 10;

/// SPDX expression of the licence files at the top of a module's zip; `NOASSERTION` where a text is not known, none without any file.
pub fn of_zip(bytes: &[u8]) -> Option<String> {
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).ok()?;
    let names: Vec<String> = zip.file_names().flatten().filter(|name| is_licence(name)).map(String::from).collect();
    let mut found = BTreeSet::new();
    for name in names {
        let mut text = String::new();
        let read = zip.by_name(&name).ok().map(|file| file.take(LIMIT).read_to_string(&mut text));
        if matches!(read, Some(Ok(_))) {
            found.insert(of_text(&text));
        }
    }
    (!found.is_empty()).then(|| found.into_iter().collect::<Vec<_>>().join(" AND "))
}

/// Whether a file of a zip (`module@version/path`) is a licence file of the module itself.
fn is_licence(name: &str) -> bool {
    let Some((_, below)) = name.split_once('@').and_then(|(_, rest)| rest.split_once('/')) else { return false };
    let upper = below.to_ascii_uppercase();
    !below.contains('/') && ["LICENSE", "LICENCE", "COPYING", "UNLICENSE"].iter().any(|start| upper.starts_with(start))
}

/// SPDX name of a licence text, by sentences that only that licence has.
fn of_text(text: &str) -> &'static str {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let has = |sentence: &str| words.contains(sentence);
    match () {
        () if has("apache license") && has("version 2.0") => "Apache-2.0",
        () if has("mozilla public license") && has("2.0") => "MPL-2.0",
        () if has("gnu affero general public license") => "AGPL-3.0-only",
        () if has("gnu lesser general public license") => "LGPL-3.0-only",
        () if has("gnu general public license") => "GPL-3.0-only",
        () if has("permission to use, copy, modify, and/or distribute this software")
            || has("permission to use, copy, modify, and distribute this software for any purpose") =>
        {
            "ISC"
        }
        () if has("permission is hereby granted, free of charge") => "MIT",
        () if has("redistributions in binary form")
            && (has("neither the name") || has("names of its contributors") || has("name of the author may not")) =>
        {
            "BSD-3-Clause"
        }
        () if has("redistributions in binary form") || has("redistribution and use in source and binary forms") => "BSD-2-Clause",
        () if has("this is free and unencumbered software released into the public domain") => "Unlicense",
        () if has("cc0 1.0 universal") => "CC0-1.0",
        () => "NOASSERTION",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_known_by_their_sentences() {
        let cases = [
            ("Apache License\n  Version 2.0, January 2004", "Apache-2.0"),
            ("Permission is hereby granted,\nfree of charge, to any person", "MIT"),
            ("Redistribution and use in source and binary forms ... Redistributions in binary form ... Neither the name of", "BSD-3-Clause"),
            ("Redistribution and use in source and binary forms, with ... Redistributions in binary form must", "BSD-2-Clause"),
            ("Copyright. All rights reserved.", "NOASSERTION"),
        ];
        for (text, name) in cases {
            assert_eq!(of_text(text), name, "{text}");
        }
    }

    #[test]
    fn only_files_at_the_top_of_a_module_count() {
        assert!(is_licence("github.com/a/b@v1.0.0/LICENSE.txt") && is_licence("a.test@v1.0.0/COPYING"));
        assert!(!is_licence("a.test@v1.0.0/vendor/x/LICENSE") && !is_licence("a.test@v1.0.0/license_test/x"));
    }
}
