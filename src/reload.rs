// SPDX-License-Identifier: Apache-2.0
//! What came of a reload (SIGHUP), thing by thing: taken over, or kept as it was and why.

use crate::args::Args;
use crate::settings::Settings;

/// One thing that a reload looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What it is, for the log: the certificate of a listener, say.
    pub what: String,
    /// Why the old one still holds; None: the new one does.
    pub kept_because: Option<String>,
}

impl Outcome {
    /// The new one holds.
    #[must_use]
    pub fn taken_over(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            kept_because: None,
        }
    }

    /// The old one still holds.
    #[must_use]
    pub fn kept(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            kept_because: Some(why.into()),
        }
    }

    /// Tells the operator.
    pub fn log(&self) {
        match &self.kept_because {
            None => log::info!(what = self.what.as_str(); "reloaded"),
            Some(why) => {
                log::warn!(what = self.what.as_str(), reason = why.as_str(); "not reloaded: the old one is kept")
            }
        }
    }
}

/// Settings themselves are read at start only. An operator who changed them and reloads is told that nothing happened.
#[must_use]
pub fn settings(args: &Args, in_force: &Settings) -> Option<Outcome> {
    let what = "settings";
    match Settings::load(args, std::env::vars_os()) {
        Ok(now) if now == *in_force => None,
        Ok(now) => {
            let changed = changed(in_force, &now);
            let why = format!("{changed} changed; restart the broker to take it over");
            Some(Outcome::kept(what, why))
        }
        Err(error) => {
            let problems: Vec<_> = error.problems().iter().map(ToString::to_string).collect();
            let why = format!(
                "they could not be used for a start: {}",
                problems.join("; ")
            );
            Some(Outcome::kept(what, why))
        }
    }
}

/// Names of the settings that differ.
fn changed(before: &Settings, now: &Settings) -> String {
    let differing = |a: &Settings, b: &Settings| {
        let missing = a.named.iter().filter(|named| {
            let same = |other: &&_| {
                let other: &crate::settings::NamedSetting = other;
                other.name == named.name && other.value == named.value
            };
            b.named.iter().find(same).is_none()
        });
        missing.map(|named| named.name.clone()).collect::<Vec<_>>()
    };
    let mut names = differing(now, before);
    names.extend(differing(before, now));
    names.sort();
    names.dedup();
    if names.is_empty() {
        // a secret is shown masked, a list of listeners by its keys
        return "something".to_owned();
    }
    names.join(", ")
}
