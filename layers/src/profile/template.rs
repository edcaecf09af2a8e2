//! What `chasi-bod new` writes.

use crate::{Error, Result};

use super::diagnostic::quote;
use super::syntax::{NAME, is_name};

/// A commented profile of this name that loads without error; a name that no profile may have is refused.
pub fn template(name: &str) -> Result<String> {
    if !is_name(name) {
        return Err(Error::input(format!("writing a profile: {} is not {NAME}", quote(name))));
    }
    Ok(include_str!("template.yaml").replace("NAME", name))
}
