//! The one error type: a chain of lower-case gerunds, whose fault it is, and a hint where a next step is known.

use std::fmt;

use crate::profile::Diagnostic;

/// Whose fault an error is; the number is the exit code of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The user's input: profile, lock, arguments, an artifact that was handed in.
    Input = 1,
    /// Ours: a broken promise inside the program.
    Internal = 2,
    /// The surroundings: network, disk, a missing tool.
    Environment = 3,
}

/// An error that names its object and carries the chain below it.
#[derive(Debug)]
pub struct Error {
    fault: Fault,
    message: String,
    hint: Option<String>,
    diagnostics: Vec<Diagnostic>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Result with our error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the user's input.
    pub fn input(message: impl Into<String>) -> Self {
        Self { fault: Fault::Input, message: message.into(), hint: None, diagnostics: Vec::new(), source: None }
    }

    /// An error of this program itself.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { fault: Fault::Internal, ..Self::input(message) }
    }

    /// An error of the surroundings.
    pub fn environment(message: impl Into<String>) -> Self {
        Self { fault: Fault::Environment, ..Self::input(message) }
    }

    /// Adds what the user can do next.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whose fault this is.
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// The hint nearest to the cause, if any.
    pub fn hint(&self) -> Option<&str> {
        let inner = self.source.as_ref().and_then(|s| s.downcast_ref::<Self>()).and_then(Self::hint);
        inner.or(self.hint.as_deref())
    }

    /// Adds the problems, with their places, that the message tells in one text.
    pub fn with_diagnostics(mut self, diagnostics: Vec<Diagnostic>) -> Self {
        self.diagnostics = diagnostics;
        self
    }

    /// The problems with places at the bottom of the chain; empty for most errors.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        let inner = self.source.as_ref().and_then(|s| s.downcast_ref::<Self>()).map(Self::diagnostics);
        inner.filter(|d| !d.is_empty()).unwrap_or(&self.diagnostics)
    }

    /// The messages of the chain, outermost first.
    pub fn causes(&self) -> Vec<String> {
        let mut out = vec![self.message.clone()];
        match self.source.as_ref().map(|s| (s.downcast_ref::<Self>(), s)) {
            Some((Some(inner), _)) => out.extend(inner.causes()),
            Some((None, other)) => {
                out.extend(std::iter::successors(Some(other.as_ref() as &dyn std::error::Error), |e| e.source()).map(ToString::to_string));
            }
            None => {}
        }
        out
    }

    fn wrap(message: String, source: Box<dyn std::error::Error + Send + Sync>, default: Option<Fault>) -> Self {
        let inner = source.downcast_ref::<Self>().map(Self::fault);
        let fault = inner.or(default).unwrap_or(if source.is::<std::io::Error>() { Fault::Environment } else { Fault::Input });
        Self { fault, message, hint: None, diagnostics: Vec::new(), source: Some(source) }
    }
}

/// Prints the whole chain, `a: b: c`; `source()` is empty so that no printer repeats a part.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let Some(first) = &self.source else { return Ok(()) };
        write!(f, ": {first}")?;
        let mut next = first.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Adds what was being done to a failed result.
pub trait Context<T> {
    /// Names the action; the fault is the cause's own, else Environment for I/O and Input for all other causes.
    fn context(self, message: impl FnOnce() -> String) -> Result<T>;
    /// Names the action and says whose fault a cause without its own opinion is.
    fn fault(self, fault: Fault, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::error::Error + Send + Sync + 'static> Context<T> for Result<T, E> {
    fn context(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::wrap(message(), Box::new(e), None))
    }

    fn fault(self, fault: Fault, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::wrap(message(), Box::new(e), Some(fault)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_prints_once_and_keeps_fault_and_hint() {
        let io = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let low = Err::<(), _>(io).context(|| "opening index".into()).map_err(|e| e.with_hint("run lock"));
        let top = low.fault(Fault::Internal, || "reading trixie/main".into()).unwrap_err();
        assert_eq!(top.to_string(), "reading trixie/main: opening index: no such file");
        assert_eq!((top.fault(), top.hint()), (Fault::Environment, Some("run lock")));
    }
}
