//! Configuration of logs and traces.

use crate::config::{Problems, Validate};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// Text for people.
    Text,
}

/// Configuration of logs and traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Format of log lines.
    pub format: LogFormat,
    /// A level, or directives such as `info,h2=warn`.
    pub level: String,
    /// OTLP endpoint of traces, e.g. `http://collector:4317`; none by default.
    pub otlp_endpoint: Option<String>,
    /// Share of sampled traces, if the caller made no decision.
    pub sample_ratio: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Json,
            level: "info".to_owned(),
            otlp_endpoint: None,
            sample_ratio: 0.001,
        }
    }
}

impl Validate for TelemetryConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.require(
            EnvFilter::try_new(&self.level).is_ok(),
            "level",
            "must be error, warn, info, debug, trace, or directives such as \"info,h2=warn\"",
        );
        problems.require(
            (0.0..=1.0).contains(&self.sample_ratio),
            "sample_ratio",
            "must be from 0 to 1",
        );
        if let Some(endpoint) = &self.otlp_endpoint {
            problems.require(
                endpoint.starts_with("http://"),
                "otlp_endpoint",
                "must be like http://host:4317",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_settings_are_named() {
        let bad = TelemetryConfig {
            level: "info,,=".into(),
            sample_ratio: 2.0,
            otlp_endpoint: Some("collector:4317".into()),
            ..TelemetryConfig::default()
        };
        let mut problems = Problems::default();
        bad.validate(&mut problems);
        assert_eq!(problems.found().len(), 3, "{problems:?}");
    }
}
