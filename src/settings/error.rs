// SPDX-License-Identifier: Apache-2.0
//! What is wrong with settings, all of it at once.

use std::fmt;

/// Why the broker cannot start with these settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError {
    problems: Vec<Problem>,
}

/// One thing that is wrong, as a sentence that names where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    text: String,
    from_command_line: bool,
}

impl Problem {
    pub(super) fn file(file: &str, line: usize, text: impl fmt::Display) -> Self {
        Self {
            text: format!("{file}:{line}: {text}"),
            from_command_line: false,
        }
    }

    pub(super) fn new(text: impl Into<String>, from_command_line: bool) -> Self {
        Self {
            text: text.into(),
            from_command_line,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl SettingsError {
    /// None of no problems.
    pub(super) fn of(problems: Vec<Problem>) -> Option<Self> {
        (!problems.is_empty()).then_some(Self { problems })
    }

    /// Each problem, in the order in which the sources are read.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// 2 when the command line itself is wrong, 1 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self
            .problems
            .iter()
            .any(|problem| problem.from_command_line)
        {
            2
        } else {
            1
        }
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, problem) in self.problems.iter().enumerate() {
            if count > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}
