//! A measured quantity with its raw samples.

use serde_json::{Value, json};

/// What was measured, how often, in what unit.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    samples: Vec<f64>,
}

impl Figure {
    /// A figure without samples.
    pub(crate) fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            unit,
            samples: Vec::new(),
        }
    }

    /// How much of `other` each sample is of the one taken beside it.
    pub(crate) fn ratio_to(&self, name: impl Into<String>, other: &Self) -> Self {
        let pairs = self.samples.iter().zip(&other.samples);
        Self {
            samples: pairs.map(|(sample, other)| sample / other).collect(),
            ..Self::new(name, "ratio")
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

    /// The figure with its raw samples.
    pub(crate) fn to_json(&self) -> Value {
        let [min, median, max] = self.spread();
        json!({
            "name": self.name, "unit": self.unit, "samples": self.samples,
            "min": min, "median": median, "max": max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let mut figure = Figure::new("f", "ms");
        for sample in [4.0, 1.0, 3.0, 2.0] {
            figure.add(sample);
        }
        assert_eq!(figure.spread(), [1.0, 2.5, 4.0]);
        figure.add(9.0);
        assert_eq!(figure.spread(), [1.0, 3.0, 9.0]);
    }

    #[test]
    fn a_ratio_is_of_samples_taken_beside_each_other() {
        let mut figures = [Figure::new("a", "ms"), Figure::new("b", "ms")];
        for (a, b) in [(1.0, 2.0), (9.0, 3.0)] {
            figures[0].add(a);
            figures[1].add(b);
        }
        assert_eq!(figures[0].ratio_to("a/b", &figures[1]).samples, [0.5, 3.0]);
    }
}
