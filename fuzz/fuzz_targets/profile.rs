//! Any text may be a profile: problems are fine, panics are bugs. What is valid reads back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // Every file is this text, so that `extends` is fuzzed too.
    let Ok(loaded) = layers::profile::load("p.yaml", &mut |_| Ok(text.to_string())) else { return };
    let yaml = layers::profile::to_yaml(&loaded.profile).expect("a valid profile can be written");
    let again = layers::profile::load("p.yaml", &mut |_| Ok(yaml.clone())).expect("what was written is valid");
    assert_eq!(loaded.profile, again.profile);
});
