//! Why the agent ends.

use crate::{
    attach::AttachError, dataplane::DataplaneError, devices::MonitorError, http::ListenError,
    manifests::ManifestError, migrate::MigrateError, pins::PinError, preflight::PreflightError,
    watch::ConnectError,
};

/// Why the agent ended. The data path is as it was.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Something it needs is missing.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// An interface of the configuration is not there.
    #[error("{key}: there is no interface {name}")]
    NoInterface {
        /// The key that names it.
        key: &'static str,
        /// Its name.
        name: String,
    },
    /// The data path could not be loaded.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The layout that serves could not be taken over from.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// A program could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The network cannot be followed.
    #[error(transparent)]
    Network(#[from] MonitorError),
    /// The manifests cannot be read.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// There is no way to the cluster.
    #[error(transparent)]
    Cluster(#[from] ConnectError),
    /// The tables cannot be read.
    #[error(transparent)]
    Tables(#[from] DataplaneError),
    /// Health or metrics cannot be served where the configuration says.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Something else the kernel refused. `what` names the operation.
    #[error("{what}")]
    Kernel {
        /// The operation.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A task of the agent panicked.
    #[error("a task of the agent ended unexpectedly")]
    Task(#[from] tokio::task::JoinError),
}

impl AgentError {
    pub(super) fn kernel(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Kernel { what, source }
    }
}
