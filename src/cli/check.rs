//! `portcullis check`

use std::error::Error;
use std::fmt::Write;

use super::{ConfigArg, Exit, complain, print, report};
use crate::config::{Config, Effective};
use crate::route::{Mismatch, RouteTable};
use crate::server::{StartError, probe_certificates, probe_transparent, run_assertions};
use crate::tls::AcceptorError;

mod probing;

use probing::Probed;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigArg,
    /// Print every setting with its value and where it comes from.
    #[arg(long)]
    effective: bool,
    /// Connect to the backends of passthrough routes and tell what they show of their TLS, and what is wrong with it.
    #[arg(long)]
    probe: bool,
    /// Exit with 75 when there are warnings.
    #[arg(long)]
    strict: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let config = match Config::load(&self.config.file) {
            Ok(config) => config,
            Err(errors) if self.json => {
                print(&format!("{:#}\n", serde_json::json!({ "ok": false, "errors": errors.to_json() })))?;
                return Ok(Exit::BadConfig);
            }
            Err(errors) => return Ok(report(&errors)),
        };
        if let Err(error) = probe_transparent(&config) {
            return self.not_permitted(&error);
        }
        if let Err(StartError::Tls(error)) = probe_certificates(&config) {
            return self.without_certificates(&error);
        }
        let failed = match run_assertions(&config) {
            Err(StartError::Assertions(failed)) => failed,
            Ok(()) | Err(_) => Vec::new(),
        };
        let probed = self.probe.then(|| probing::probe(&config)).transpose()?;
        let text = if self.json {
            json(&config, &failed, self.effective, probed.as_ref())
        } else {
            text(&config, &failed, self.effective, probed.as_ref())
        };
        print(&text)?;
        let warned = probed.is_some_and(|probed| probed.has_warnings());
        Ok(match (failed.is_empty(), self.strict && warned) {
            (false, _) => Exit::BadConfig,
            (true, true) => Exit::Temporary,
            (true, false) => Exit::Done,
        })
    }

    /// Tells of certificates that cannot be used.
    fn without_certificates(&self, error: &AcceptorError) -> anyhow::Result<Exit> {
        let errors = error.lines();
        if self.json {
            let errors: Vec<_> = errors
                .iter()
                .map(|message| serde_json::json!({ "kind": "certificate", "message": message }))
                .collect();
            print(&format!("{:#}\n", serde_json::json!({ "ok": false, "errors": errors })))?;
        } else {
            errors.iter().for_each(|error| complain(&format!("error: {error}")));
        }
        Ok(Exit::BadConfig)
    }

    /// Tells of what the configuration asks for and this process may not do.
    fn not_permitted(&self, error: &StartError) -> anyhow::Result<Exit> {
        let origin = match error {
            StartError::Transparent { origin, .. } => Some(origin),
            _ => None,
        };
        let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        if self.json {
            let error = serde_json::json!({
                "kind": "not-permitted",
                "message": format!("{error}{cause}"),
                "file": origin.map(|origin| origin.file.display().to_string()),
                "line": origin.map(|origin| origin.line),
                "column": origin.map(|origin| origin.column),
            });
            print(&format!("{:#}\n", serde_json::json!({ "ok": false, "errors": [error] })))?;
        } else {
            complain(&format!("error: {error}{cause}"));
        }
        Ok(Exit::BadConfig)
    }
}

fn text(config: &Config, failed: &[Mismatch], effective: bool, probed: Option<&Probed>) -> String {
    let mut out = String::new();
    if effective {
        for setting in &config.effective {
            let origin = setting.origin.as_ref().map_or("default".to_owned(), ToString::to_string);
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(out, "{} = {}  # {origin}", setting.key, setting.value);
        }
        out.push('\n');
    }
    let _ = writeln!(out, "Routes in the order in which they are tried:");
    for (place, (key, route)) in RouteTable::new(config).precedence().into_iter().enumerate() {
        let conditions = route.config.conditions.to_string();
        let comma = if conditions.is_empty() { "" } else { ", " };
        let _ = writeln!(
            out,
            "{:>4}. {key}{comma}{conditions} -> {}  # route `{}`, {}",
            place + 1,
            route.config.action,
            route.config.name,
            route.config.origin
        );
    }
    let policies = &config.policies;
    let _ = writeln!(
        out,
        "No route: unknown SNI -> {}, no SNI -> {}, other protocols -> {}",
        policies.unknown_sni, policies.no_sni, policies.unknown_protocol
    );
    probed.into_iter().for_each(|probed| out.push_str(&probed.text()));
    for mismatch in failed {
        let _ = writeln!(out, "error: {mismatch}");
    }
    let (listeners, routes, tests) = (config.listeners.len(), config.routes.len(), config.tests.len());
    let passed = tests - failed.len();
    let verdict = if failed.is_empty() { "ok" } else { "failed" };
    let _ =
        writeln!(out, "{verdict}: {listeners} listeners, {routes} routes, {passed} of {tests} tests passed");
    out
}

fn json(config: &Config, failed: &[Mismatch], effective: bool, probed: Option<&Probed>) -> String {
    let routes = RouteTable::new(config).to_json();
    let failed: Vec<_> = failed
        .iter()
        .map(|mismatch| {
            serde_json::json!({
                "test": mismatch.name,
                "origin": mismatch.origin.to_string(),
                "expected": mismatch.expected,
                "actual": mismatch.actual,
            })
        })
        .collect();
    let mut result = serde_json::json!({
        "ok": failed.is_empty(),
        "listeners": config.listeners.len(),
        "routes": routes,
        "tests": config.tests.len(),
        "failed": failed,
    });
    if let (Some(probed), Some(result)) = (probed, result.as_object_mut()) {
        result.insert("probe".to_owned(), probed.json());
    }
    if effective && let Some(result) = result.as_object_mut() {
        let settings = config.effective.iter().map(Effective::to_json);
        result.insert("effective".to_owned(), settings.collect());
    }
    format!("{result:#}\n")
}
