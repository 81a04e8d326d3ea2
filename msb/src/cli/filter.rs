//! Which sandboxes `msb ls` lists.

use std::str::FromStr;

use super::spec_args::Label;
use super::view::SandboxView;

/// The states there are, as [`crate::sandbox::state::State::word`] says them, to refuse others.
const STATES: [&str; 7] = [
    "created", "starting", "running", "paused", "stopping", "stopped", "crashed",
];

/// One condition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Filter {
    /// A label of this key, whatever its value.
    HasLabel(String),
    /// A label with this value.
    LabelIs(Label),
    /// In this state.
    State(String),
    /// With this in its name.
    Name(String),
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (what, value) = text.split_once('=').unwrap_or((text, ""));
        match what {
            "label" if value.contains('=') => Ok(Self::LabelIs(value.parse()?)),
            "label" => Ok(Self::HasLabel(value.parse::<Label>()?.key)),
            "state" if STATES.contains(&value) => Ok(Self::State(value.into())),
            "state" => Err(format!(
                "there is no state '{value}': choose from {}",
                STATES.join(", ")
            )),
            "name" if !value.is_empty() => Ok(Self::Name(value.into())),
            _ => Err("write label=KEY, label=KEY=VALUE, state=STATE or name=TEXT".into()),
        }
    }
}

/// Whether a sandbox is wanted: all conditions hold, of those for its state any.
pub(super) fn admits(filters: &[Filter], view: &SandboxView) -> bool {
    let mut states = filters.iter().filter_map(|filter| match filter {
        Filter::State(state) => Some(state),
        _ => None,
    });
    let in_state = states.clone().next().is_none() || states.any(|state| state == view.state);
    in_state && filters.iter().all(|filter| holds(filter, view))
}

fn holds(filter: &Filter, view: &SandboxView) -> bool {
    match filter {
        Filter::HasLabel(key) => view.labels.contains_key(key),
        Filter::LabelIs(Label { key, value }) => view.labels.get(key) == Some(value),
        Filter::Name(part) => view.name.as_ref().is_some_and(|name| name.as_str().contains(part)),
        Filter::State(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_one_of_four_kinds() {
        let parsed = |text: &str| text.parse::<Filter>();
        let label = |key: &str, value: &str| Label {
            key: key.into(),
            value: value.into(),
        };
        assert_eq!(parsed("label=a"), Ok(Filter::HasLabel("a".into())));
        assert_eq!(parsed("label=a=b=c"), Ok(Filter::LabelIs(label("a", "b=c"))));
        assert_eq!(parsed("label=a="), Ok(Filter::LabelIs(label("a", ""))));
        assert_eq!(parsed("state=running"), Ok(Filter::State("running".into())));
        assert_eq!(parsed("name=web"), Ok(Filter::Name("web".into())));
        for bad in [
            "",
            "label",
            "label=",
            "label=a b",
            "state=",
            "state=Running",
            "name=",
            "id=1",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
