//! What was seen and found, for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::lint::{DAY, Finding, Findings, What, list};
use super::plan::Scope;
use super::round::{Facts, Failure, Seen};

/// Names of a certificate that a row has.
const NAMES: usize = 3;

/// A row for each handshake, under a head, in columns; `now` is in seconds of Unix time.
pub fn table(scope: &Scope, seen: &[Seen], now: i64) -> String {
    let head = ["ROUTE", "BACKEND", "ADDRESS", "ASKED FOR", "TLS", "GROUP", "ALPN", "DAYS", "TRUST", "NAMES"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(seen.iter().map(|seen| row(scope, seen, now)));
    let mut widths = [0; 10];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(&row) {
            // Writing to a string cannot fail, here and below.
            let _ = write!(line, "  {cell:width$}");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn row(scope: &Scope, seen: &Seen, now: i64) -> [String; 10] {
    let aim = &seen.aim;
    let route = scope.route(aim.route).map_or_else(String::new, |route| route.name.to_string());
    let dash = || "-".to_owned();
    let facts = match &seen.outcome {
        Ok(facts) => facts,
        Err(failure) => {
            let [version, group, alpn, days, trust] = [(); 5].map(|()| dash());
            let why = match failure {
                Failure::Ours(why) | Failure::Other(why) => why.to_string(),
                Failure::OldTls => "TLS before 1.2".to_owned(),
            };
            let name = aim.name.to_string();
            return [
                route,
                aim.backend.to_string(),
                aim.target.to_string(),
                name,
                version,
                group,
                alpn,
                days,
                trust,
                why,
            ];
        }
    };
    let certificate = facts.certificate.as_ref();
    let days = certificate.map(|certificate| certificate.not_after.saturating_sub(now).div_euclid(DAY));
    let names = certificate.map(|certificate| {
        let some = list(certificate.names.get(..NAMES).unwrap_or(&certificate.names));
        match certificate.names.len().saturating_sub(NAMES) {
            0 => some,
            more => format!("{some} and {more} more"),
        }
    });
    [
        route,
        aim.backend.to_string(),
        aim.target.to_string(),
        aim.name.to_string(),
        facts.agreed.version.to_owned(),
        facts.agreed.group.to_owned(),
        facts.agreed.alpn_text(),
        days.map_or_else(dash, |days| days.to_string()),
        facts.trust.as_str().to_owned(),
        names.unwrap_or_else(dash),
    ]
}

/// What was seen, as an array of objects.
pub fn seen_to_json(scope: &Scope, seen: &[Seen]) -> Value {
    let one = |seen: &Seen| {
        let aim = &seen.aim;
        let mut value = json!({
            "route": scope.route(aim.route).map(|route| route.name.to_string()),
            "backend": &*aim.backend,
            "address": aim.target.to_string(),
            "asked_for": aim.name.as_str(),
            "made_up": aim.made_up,
        });
        let outcome = match &seen.outcome {
            Ok(facts) => facts_to_json(facts),
            Err(Failure::OldTls) => json!({ "error": "no version of TLS from 1.2 on" }),
            Err(Failure::Ours(why) | Failure::Other(why)) => json!({ "error": &**why }),
        };
        if let (Value::Object(value), Value::Object(outcome)) = (&mut value, outcome) {
            value.extend(outcome);
        }
        value
    };
    seen.iter().map(one).collect()
}

fn facts_to_json(facts: &Facts) -> Value {
    let certificate = facts.certificate.as_ref().map(|certificate| {
        json!({
            "names": certificate.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "not_after": certificate.not_after,
            "issuer": &*certificate.issuer,
        })
    });
    json!({
        "version": facts.agreed.version,
        "group": facts.agreed.group,
        "post_quantum": facts.agreed.post_quantum,
        "alpn": facts.agreed.alpn.as_ref().map(|_| facts.agreed.alpn_text()),
        "trust": facts.trust.as_str(),
        "certificate": certificate,
    })
}

/// What was found, as an array of objects.
pub fn findings_to_json(findings: &Findings) -> Value {
    findings.all.iter().map(finding_to_json).collect()
}

fn finding_to_json(finding: &Finding) -> Value {
    let mut value = json!({
        "kind": finding.what.kind(),
        "message": finding.to_string(),
        "help": finding.what.ways_out(),
        "route": &*finding.route.name,
        "origin": finding.route.origin.to_string(),
        "backends": finding.backends.iter().map(|backend| &**backend).collect::<Vec<_>>(),
    });
    if let (Value::Object(value), What::Coalescing { other, other_backends, names }) =
        (&mut value, &finding.what)
    {
        let names: Vec<_> = names
            .iter()
            .map(|covered| {
                let takes: Vec<_> = covered.takes.iter().map(ToString::to_string).collect();
                json!({ "certificate": covered.certified.to_string(), "covers": takes })
            })
            .collect();
        value.insert("other".to_owned(), json!(&*other.name));
        value.insert("other_origin".to_owned(), json!(other.origin.to_string()));
        let others: Vec<_> = other_backends.iter().map(|backend| &**backend).collect();
        value.insert("other_backends".to_owned(), json!(others));
        value.insert("names".to_owned(), json!(names));
    }
    value
}
