//! Certificates that are ordered from an authority by ACME (RFC 8555), and renewed in time.
//!
//! [`Acme`] is the handle of one task of the control runtime, which is told of each configuration. When something is to be done is
//! decided by a core without clock and network (`schedule`); an order from its beginning to the certificate is `order`; what is left
//! of it is in `files`, which are read by whoever serves certificates. Workers meet [`Challenges`] alone: by what the authority asks
//! for while it looks whether a name is ours.
//!
//! One certificate is for one name, so that a name that cannot be had takes none of the others along.

mod challenges;
mod client;
mod engine;
mod error;
mod files;
mod hook;
mod order;
mod schedule;

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use challenges::Challenges;

use crate::config::AcmeConfig;
use crate::telemetry::Registry;

/// The handle of the task that orders certificates; it ends when this is dropped.
#[derive(Debug)]
pub struct Acme {
    config: watch::Sender<Option<Arc<AcmeConfig>>>,
    issued: Arc<Notify>,
    stop: CancellationToken,
}

impl Acme {
    /// Starts the task, which has nothing to do yet. Authorities are answered through `challenges`.
    pub fn start(challenges: Arc<Challenges>, registry: Arc<Registry>, runtime: &Handle) -> Self {
        let (config, told) = watch::channel(None);
        let (issued, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let engine = engine::Engine::new(challenges, registry, Arc::clone(&issued));
        let ended = stop.clone();
        runtime.spawn(async move {
            tokio::select! {
                () = engine.run(told) => {}
                () = ended.cancelled() => {}
            }
        });
        Self { config, issued, stop }
    }

    /// From now on by this configuration. Orders for names that stay go on, unless it is another authority that they are made of.
    /// What has failed is tried again, since whoever gives a configuration may have mended why.
    pub fn apply(&self, config: Option<&AcmeConfig>) {
        let config = config.filter(|config| !config.names.is_empty());
        self.config.send_replace(config.cloned().map(Arc::new));
    }

    /// Told when a file with a certificate has been written.
    pub fn issued(&self) -> &Arc<Notify> {
        &self.issued
    }

    /// Orders nothing any more: another process does.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Acme {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
