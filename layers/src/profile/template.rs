//! What `chasi-bod new` writes.

/// A commented profile of this name that loads without error.
pub fn template(name: &str) -> String {
    include_str!("template.yaml").replace("NAME", name)
}
