//! A measured quantity with its raw samples.

use serde_json::{Value, json};

/// What there was before a figure's work began.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// Nothing ran: a guest boots, or no guest is needed. The host has read its files before.
    Cold,
    /// The sandbox or server ran.
    Warm,
    /// A saved or running sandbox was copied.
    Fork,
}

impl State {
    const ALL: [Self; 3] = [Self::Cold, Self::Warm, Self::Fork];

    /// As reports have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::Fork => "fork",
        }
    }
}

/// What was measured, how often, from which state, in what unit.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) unit: String,
    pub(crate) samples: Vec<f64>,
}

impl Figure {
    /// A figure without samples.
    pub(crate) fn new(state: State, name: impl Into<String>, unit: &str) -> Self {
        Self {
            name: name.into(),
            state,
            unit: unit.to_owned(),
            samples: Vec::new(),
        }
    }

    /// One that begins with [`State::Cold`].
    pub(crate) fn cold(name: impl Into<String>, unit: &str) -> Self {
        Self::new(State::Cold, name, unit)
    }

    /// One that begins with [`State::Warm`].
    pub(crate) fn warm(name: impl Into<String>, unit: &str) -> Self {
        Self::new(State::Warm, name, unit)
    }

    /// One that begins with [`State::Fork`].
    pub(crate) fn fork(name: impl Into<String>, unit: &str) -> Self {
        Self::new(State::Fork, name, unit)
    }

    /// How much of `other` each sample is of the one taken beside it.
    pub(crate) fn ratio_to(&self, name: impl Into<String>, other: &Self) -> Self {
        let pairs = self.samples.iter().zip(&other.samples);
        Self {
            samples: pairs.map(|(sample, other)| sample / other).collect(),
            ..Self::new(self.state, name, "ratio")
        }
    }

    /// Adds a sample.
    pub(crate) fn add(&mut self, sample: f64) {
        self.samples.push(sample);
    }

    /// Minimum, median and maximum; NaN without samples.
    pub(crate) fn spread(&self) -> [f64; 3] {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) && middle > 0 {
            f64::midpoint(at(middle - 1), at(middle))
        } else {
            at(middle)
        };
        [at(0), median, at(sorted.len().saturating_sub(1))]
    }

    /// The median.
    pub(crate) fn median(&self) -> f64 {
        self.spread()[1]
    }

    /// The figure with its raw samples.
    pub(crate) fn to_json(&self) -> Value {
        let [min, median, max] = self.spread();
        json!({
            "name": self.name, "state": self.state.name(), "unit": self.unit, "samples": self.samples,
            "min": min, "median": median, "max": max,
        })
    }

    /// What [`Self::to_json`] made; a figure of an older report that tells no state counts as cold.
    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        let state = value["state"].as_str().unwrap_or_default();
        let samples = value["samples"].as_array()?;
        Some(Self {
            name: value["name"].as_str()?.to_owned(),
            state: State::ALL
                .into_iter()
                .find(|known| known.name() == state)
                .unwrap_or(State::Cold),
            unit: value["unit"].as_str()?.to_owned(),
            samples: samples.iter().map(Value::as_f64).collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let mut figure = Figure::cold("f", "ms");
        for sample in [4.0, 1.0, 3.0, 2.0] {
            figure.add(sample);
        }
        assert_eq!(figure.spread(), [1.0, 2.5, 4.0]);
        figure.add(9.0);
        assert_eq!(figure.spread(), [1.0, 3.0, 9.0]);
    }

    #[test]
    fn a_ratio_is_of_samples_taken_beside_each_other() {
        let mut figures = [Figure::cold("a", "ms"), Figure::cold("b", "ms")];
        for (a, b) in [(1.0, 2.0), (9.0, 3.0)] {
            figures[0].add(a);
            figures[1].add(b);
        }
        assert_eq!(figures[0].ratio_to("a/b", &figures[1]).samples, [0.5, 3.0]);
    }

    #[test]
    fn a_figure_is_read_back_as_it_was_written() {
        let mut figure = Figure::fork("f", "KiB");
        figure.add(1.5);
        let read = Figure::from_json(&figure.to_json()).unwrap();
        assert_eq!((read.state, read.samples), (State::Fork, vec![1.5]));
        assert!(Figure::from_json(&json!({ "name": "f", "unit": "ms", "samples": ["1"] })).is_none());
    }
}
