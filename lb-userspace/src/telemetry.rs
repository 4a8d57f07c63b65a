//! The log: structured lines on standard error.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// What the agent says itself, once and in its own words, these libraries say each time.
const QUIET: &str = "kube_client=off,kube_runtime=off,";

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("log.level: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// A log is already being written.
    #[error("set up the log")]
    Installed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Starts the log. Standard output is left to answers.
///
/// # Errors
///
/// If the filter does not parse, or a log was started before.
pub fn start(level: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(format!("{QUIET}{level}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let result = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    result.map_err(TelemetryError::Installed)
}
