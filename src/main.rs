//! The `portcullis` command.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use portcullis::cli::{Cli, Exit};

/// How soon it gives memory back is set where it is built, in `.cargo/config.toml`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // The only provider there is in this build; a second one could come in with a dependency's feature.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match Cli::parse().run() {
        Ok(exit) => exit.into(),
        Err(error) => {
            // That nobody reads it is no reason to panic, as `eprintln` does.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            Exit::Failure.into()
        }
    }
}
