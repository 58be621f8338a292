//! The `[[test]]` assertions of a configuration: a made-up connection through the real lookup.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::{Decision, Query, RouteTable};
use crate::config::{
    ActionConfig, Expectation, ExpectedAction, Origin, RejectWith, TerminateConfig, TestCase, TestInput,
};
use crate::net::UpstreamAddr;
use crate::peek::{Alpn, ClientHello, Detector, HelloError, Preface};
use crate::prelude;

/// The client of a test that names none: TEST-NET-1 (RFC 5737).
const TEST_CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// An assertion that does not hold.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// The test's name.
    pub name: String,
    /// Where the test is written.
    pub origin: Origin,
    /// What was expected.
    pub expected: String,
    /// What came out instead, with the place of the route.
    pub actual: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, origin, expected, actual } = self;
        write!(f, "test `{name}` ({origin}) failed: expected {expected}, but got {actual}")
    }
}

/// Why the connection of a test gets to no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("refused before any route is tried: {0}")]
    Hello(#[from] HelloError),
    #[error("refused at the deadline (`timeouts.hello`): it may still become TLS or a PROXY header")]
    Unfinished,
}

impl TestCase {
    /// The connection that the test stands for, as a listener makes it out.
    fn preface(&self, detector: Detector<'_>) -> Result<Preface, Refused> {
        Ok(match &self.input {
            TestInput::First(bytes) => return made_out(bytes, detector),
            TestInput::Hello { sni, alpn, ja4, within } => Preface::Tls(Box::new(ClientHello {
                server_name: sni.clone(),
                alpn: Alpn::from_names(alpn.iter().map(AsRef::as_ref)),
                ja4: ja4.clone().map(Box::new),
                within: *within,
                records: 1,
                ..ClientHello::default()
            })),
            TestInput::Startup(startup) => Preface::Startup(Box::new(startup.clone())),
            TestInput::Protocol(protocol) => Preface::Other(*protocol),
        })
    }
}

/// What a client is that sends these bytes and then pauses.
fn made_out(bytes: &[u8], mut detector: Detector<'_>) -> Result<Preface, Refused> {
    match detector.advance(bytes)? {
        Some(preface) => Ok(prelude::in_clear(preface, bytes)),
        None => detector.settle(bytes).ok_or(Refused::Unfinished),
    }
}

/// Runs `case` through `table`; `first_listener` is where it comes in unless it says otherwise, and `max_hello` how long
/// hellos may be.
///
/// # Errors
/// What came out, when it is not what the test expects.
pub fn check_assertion(
    case: &TestCase,
    table: &RouteTable,
    first_listener: &str,
    max_hello: usize,
) -> Result<(), Mismatch> {
    let client = case.from.unwrap_or(TEST_CLIENT);
    let listener = case.listener.as_deref().unwrap_or(first_listener);
    let detector = Detector::new(max_hello).with_ja4(true).with_patterns(table.patterns(listener, client));
    let (holds, actual) = match case.preface(detector) {
        Ok(preface) => {
            let decision = table.find(&Query { preface: &preface, client, listener });
            (holds(&case.expect, &decision), decision.to_string())
        }
        Err(refused) => (case.expect.is_refusal(), refused.to_string()),
    };
    if holds {
        return Ok(());
    }
    let (name, origin) = (case.name.to_string(), case.origin.clone());
    Err(Mismatch { name, origin, expected: case.expect.to_string(), actual })
}

impl Expectation {
    /// Whether it is content with a connection that no route and no policy has refused.
    fn is_refusal(&self) -> bool {
        self.action == Some(ExpectedAction::Reject)
            && self.route.is_none()
            && self.to.is_empty()
            && self.reject.is_none()
    }
}

fn holds(expect: &Expectation, decision: &Decision<'_>) -> bool {
    let (action, route) = match decision {
        Decision::Route(route) => (Some(route.action()), Some(*route)),
        Decision::NoRoute(..) => (None, None),
    };
    let reject = match (decision, action) {
        (Decision::NoRoute(_, with), _) | (_, Some(ActionConfig::Reject(with))) => Some(*with),
        _ => None,
    };
    let is_led = |to: &UpstreamAddr| {
        let mut all = action.into_iter().flat_map(ActionConfig::backends);
        all.any(|backends| backends.upstream.addresses().any(|addr| addr == to))
    };
    let action = match expect.action {
        Some(ExpectedAction::Passthrough) => matches!(action, Some(ActionConfig::Passthrough(_))),
        Some(ExpectedAction::Terminate) => matches!(action, Some(ActionConfig::Terminate(_))),
        Some(ExpectedAction::Http) => matches!(action, Some(ActionConfig::Http(_))),
        Some(ExpectedAction::Redirect) => matches!(action, Some(ActionConfig::Redirect)),
        Some(ExpectedAction::Reject) => reject.is_some(),
        None => true,
    };
    action
        && expect.route.as_ref().is_none_or(|name| route.is_some_and(|route| route.config.name == *name))
        && expect.reject.is_none_or(|with: RejectWith| reject == Some(with))
        && expect.to.iter().all(is_led)
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(route) => {
                match route.action() {
                    action @ (ActionConfig::Passthrough(to)
                    | ActionConfig::Terminate(TerminateConfig { to, .. })) => {
                        let ends = matches!(action, ActionConfig::Terminate(_));
                        f.write_str(if ends { "terminate, to " } else { "passthrough to " })?;
                        for (index, addr) in to.upstream.addresses().enumerate() {
                            write!(f, "{}{addr}", if index == 0 { "" } else { ", " })?;
                        }
                    }
                    ActionConfig::Http(_) => f.write_str("http")?,
                    ActionConfig::Redirect => f.write_str("redirect to https")?,
                    ActionConfig::Reject(with) => write!(f, "reject ({with})")?,
                }
                write!(f, " by route `{}` ({})", route.config.name, route.config.origin)
            }
            Self::NoRoute(why, with) => {
                write!(f, "reject ({with}) because no route matches: policy {}", why.as_str())
            }
        }
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        match self.action {
            Some(ExpectedAction::Passthrough) => parts.push("passthrough".to_owned()),
            Some(ExpectedAction::Terminate) => parts.push("terminate".to_owned()),
            Some(ExpectedAction::Http) => parts.push("http".to_owned()),
            Some(ExpectedAction::Redirect) => parts.push("redirect".to_owned()),
            Some(ExpectedAction::Reject) => parts.push("reject".to_owned()),
            None => {}
        }
        parts.extend(self.route.iter().map(|name| format!("route `{name}`")));
        parts.extend(self.to.iter().map(|addr| format!("to {addr}")));
        parts.extend(self.reject.iter().map(|with| format!("reject ({with})")));
        f.write_str(&parts.join(", "))
    }
}
