//! What was measured where: the JSON report, and its table for people.

use std::process::Command;

use serde_json::{Value, json};

use crate::figure::Figure;
use crate::ssh;

/// Figures with what they depend on.
pub(crate) struct Report {
    /// The host and the versions of what ran there.
    pub(crate) host: Value,
    pub(crate) figures: Vec<Figure>,
}

impl Report {
    /// Figures of this host.
    pub(crate) fn of_this_host(figures: Vec<Figure>, peers: &Value) -> Self {
        Self {
            host: host(peers),
            figures,
        }
    }

    /// The report in the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub(crate) fn read(path: &str) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
        let report: Value = serde_json::from_str(&text).map_err(|error| format!("{path} is no JSON: {error}"))?;
        let figures = report["figures"].as_array();
        let figures = figures.and_then(|figures| figures.iter().map(Figure::from_json).collect::<Option<_>>());
        Ok(Self {
            host: report["host"].clone(),
            figures: figures.ok_or_else(|| format!("{path} is no report of scripts/bench"))?,
        })
    }

    /// The median of the figure of another report with the name and unit of `figure`.
    pub(crate) fn median_of(&self, figure: &Figure) -> Option<f64> {
        let same = |other: &&Figure| other.name == figure.name && other.unit == figure.unit;
        self.figures.iter().find(same).map(Figure::median)
    }

    /// All of it, with what each figure is of its like in `baseline`.
    pub(crate) fn to_json(&self, baseline: Option<&Self>) -> Value {
        let figure = |figure: &Figure| {
            let mut value = figure.to_json();
            if let Some(median) = baseline.and_then(|baseline| baseline.median_of(figure)) {
                value["baseline"] = json!({ "median": median, "ratio": figure.median() / median });
            }
            value
        };
        let figures: Vec<_> = self.figures.iter().map(figure).collect();
        let mut report = json!({ "host": self.host, "figures": figures });
        if let Some(baseline) = baseline {
            report["baseline_host"] = baseline.host.clone();
        }
        report
    }

    /// A line for each figure; with a `baseline`, what its median is of the one there.
    pub(crate) fn table(&self, baseline: Option<&Self>) -> String {
        let width = self.figures.iter().map(|figure| figure.name.chars().count()).max();
        let width = width.unwrap_or(0).max("figure".len());
        let ratio = if baseline.is_some() { " of baseline" } else { "" };
        let mut table = format!(
            "{:<width$} {:<5} {:>12} {:>12} {:>12} {:<6}{ratio}\n",
            "figure", "from", "min", "median", "max", "unit"
        );
        for figure in &self.figures {
            let [min, median, max] = figure.spread();
            let ratio = baseline
                .and_then(|baseline| baseline.median_of(figure))
                .map_or_else(String::new, |other| format!(" {:>11.2}", median / other));
            let line = format!(
                "{:<width$} {:<5} {min:>12.2} {median:>12.2} {max:>12.2} {:<6}{ratio}",
                figure.name,
                figure.state.name(),
                figure.unit
            );
            table.push_str(line.trim_end());
            table.push('\n');
        }
        table
    }

    /// Whether ratios to `baseline` say more about the hosts than about what was measured.
    pub(crate) fn is_of_another_host(&self, baseline: &Self) -> bool {
        ["mode", "kernel", "cpu", "cpus"]
            .iter()
            .any(|key| self.host[key] != baseline.host[key])
    }
}

/// What the figures depend on.
fn host(peers: &Value) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim());
    json!({
        "mode": std::env::var("MSB_KVM_HOST_MODE").unwrap_or_else(|_| "unknown".into()),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model,
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "msb": version("msb", "--version"),
        "ssh": version("ssh", "-V"),
        "sshd": ssh::sshd_version(),
        "peers": peers,
    })
}

/// The first line of what `program` says of its version; null where there is no such program.
pub(crate) fn version(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let said = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    let said = String::from_utf8_lossy(&said);
    Some(said.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(samples: &[f64]) -> Report {
        let mut figure = Figure::warm("f", "ms");
        samples.iter().for_each(|sample| figure.add(*sample));
        Report {
            host: json!({ "kernel": "6" }),
            figures: vec![figure],
        }
    }

    #[test]
    fn a_figure_is_compared_with_the_median_of_its_like() {
        let (now, before) = (report(&[1.0, 2.0, 3.0]), report(&[4.0]));
        let json = now.to_json(Some(&before));
        assert_eq!(json["figures"][0]["baseline"], json!({ "median": 4.0, "ratio": 0.5 }));
        assert!(now.table(Some(&before)).contains(" 0.50"));
        assert!(!now.is_of_another_host(&before));
        assert!(now.to_json(None)["figures"][0]["baseline"].is_null());
    }

    #[test]
    fn a_figure_without_its_like_is_compared_with_nothing() {
        let mut other = report(&[4.0]);
        other.figures[0].unit = "KiB".into();
        assert!(report(&[1.0]).to_json(Some(&other))["figures"][0]["baseline"].is_null());
    }

    #[test]
    fn what_is_no_report_is_refused_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for text in ["", "{}", r#"{"figures": [{}]}"#] {
            std::fs::write(path, text).unwrap();
            assert!(Report::read(path).err().unwrap().contains(path), "{text}");
        }
        std::fs::write(path, report(&[1.0]).to_json(None).to_string()).unwrap();
        assert_eq!(Report::read(path).unwrap().figures[0].samples, [1.0]);
    }
}
