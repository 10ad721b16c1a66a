// SPDX-License-Identifier: Apache-2.0
//! What came of a reload (SIGHUP), thing by thing: taken over, or kept as it was and why.

use std::collections::BTreeSet;

use crate::args::Args;
use crate::settings::Settings;

/// One thing that a reload looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What it is, in the plural: certificates, say.
    what: &'static str,
    /// Whose they are: the listener's, say.
    of: String,
    /// Why the old ones still hold, and how much the operator should mind; None: the new ones do.
    kept_because: Option<(log::Level, String)>,
}

impl Outcome {
    /// The new ones hold.
    #[must_use]
    pub fn taken_over(what: &'static str, of: &str) -> Self {
        Self {
            what,
            of: of.to_owned(),
            kept_because: None,
        }
    }

    /// The old ones still hold, because the new ones cannot be used.
    #[must_use]
    pub fn kept(what: &'static str, of: &str, why: impl Into<String>) -> Self {
        Self {
            what,
            of: of.to_owned(),
            kept_because: Some((log::Level::Error, why.into())),
        }
    }

    /// The old ones hold until a restart.
    fn waits(what: &'static str, of: &str, why: String) -> Self {
        Self {
            kept_because: Some((log::Level::Warn, why)),
            ..Self::taken_over(what, of)
        }
    }

    /// Tells the operator.
    pub fn log(&self) {
        let Self { what, of, .. } = self;
        match &self.kept_because {
            None => log::info!(of = of.as_str(); "{what} read again"),
            Some((level, why)) => {
                log::log!(*level, of = of.as_str(); "{what} stay as they were: {why}");
            }
        }
    }
}

/// Settings themselves are read at start only. An operator who changed them and reloads is told that nothing happened.
#[must_use]
pub fn settings(args: &Args, in_force: &Settings) -> Option<Outcome> {
    let outcome = match Settings::load(args, std::env::vars_os()) {
        Ok(now) => {
            let changed = changed(in_force, &now)?;
            let why = format!("{changed} changed; restart the broker to take that over");
            Outcome::waits("settings", "broker", why)
        }
        Err(error) => {
            let problems: Vec<_> = error.problems().iter().map(ToString::to_string).collect();
            let problems = problems.join("; ");
            let why = format!("with what is written now it would not start: {problems}");
            Outcome::kept("settings", "broker", why)
        }
    };
    Some(outcome)
}

/// Names of the settings whose meaning differs.
fn changed(before: &Settings, now: &Settings) -> Option<String> {
    let meaning = |settings: &Settings| Settings {
        named: Vec::new(),
        notices: Vec::new(),
        ..settings.clone()
    };
    if meaning(before) == meaning(now) {
        return None;
    }
    let values = |settings: &Settings| -> BTreeSet<(String, String)> {
        let named = settings.named.iter();
        named
            .map(|named| (named.name.clone(), named.value.clone()))
            .collect()
    };
    let names: BTreeSet<String> = values(before)
        .symmetric_difference(&values(now))
        .map(|(name, _)| name.clone())
        .collect();
    if names.is_empty() {
        // their values are not shown
        return Some("mqtt.listeners or a secret".to_owned());
    }
    Some(names.into_iter().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(flags: &[&str]) -> (Args, Settings) {
        let args = crate::args::parse(flags.iter().map(Into::into)).expect("flags");
        let settings = Settings::load(&args, []).expect("settings");
        (args, settings)
    }

    #[test]
    fn what_did_not_change_is_not_told() {
        let (_, before) = with(&["--tcp=:1001", "--http=off"]);
        let mut now = before.clone();
        now.named[0].origin = "corqtt.yml:7".to_owned();
        assert_eq!(changed(&before, &now), None);
    }

    #[test]
    fn what_changed_is_named_whether_it_came_went_or_has_another_value() {
        let (_, before) = with(&["--tcp=:1001", "--shards=1"]);
        let (_, now) = with(&["--tcp=:1002", "--runtime=epoll"]);
        let changed = changed(&before, &now);
        assert_eq!(changed.as_deref(), Some("mqtt.tcp, runtime, shards"));
    }

    #[test]
    fn what_is_not_shown_is_told_all_the_same() {
        let (_, before) = with(&["--redis-pass=a"]);
        let (_, now) = with(&["--redis-pass=b"]);
        let changed = changed(&before, &now);
        assert_eq!(changed.as_deref(), Some("mqtt.listeners or a secret"));
    }

    #[test]
    fn settings_that_cannot_be_read_any_more_are_told_with_their_problems() {
        let (_, before) = with(&[]);
        let args = crate::args::parse(["--conf=/nowhere/corqtt.yml".into()]).expect("flags");
        let outcome = settings(&args, &before).expect("something to tell");
        let (level, why) = outcome.kept_because.expect("a reason");
        assert_eq!(level, log::Level::Error);
        assert!(why.contains("would not start") && why.contains("/nowhere/corqtt.yml"));
    }
}
