//! Any bytes as a Packages file, and its relations: read or refused, never a panic.
#![no_main]

use builder::source::deb::index::Index;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(index) = Index::read(data, "amd64") {
        let _ = index.packages().map(|p| p.depends().concat().len() + p.provides().len()).sum::<usize>();
        let keep = Default::default();
        let source = builder::source::deb::solve::Source { suite: "s", index: &index };
        let _ = builder::source::deb::solve::Universe::new(&[source], &Index::default(), &keep);
    }
});
