//! How single values are written: names, addresses, networks and words.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use serde_json::{Value, json};
use toml::de::DeValue;

use super::decode::{Decode, Decoder, Problem, Text, quote, word};
use super::error::ErrorKind;
use super::schema::words;
use super::source::Place;
use super::{
    AdminAddr, ExpectedAction, Ja4Pattern, LogFormat, LogTarget, NamePattern, NameRegex, Per, RejectWith,
    Sandbox,
};
use crate::net::{ListenAddr, ProxyVersion, UpstreamAddr, canonical};
use crate::peek::{Ja4, Ja4Error, NameError, ServerName};

const REJECTS: [(&str, RejectWith); 5] = [
    ("answer", RejectWith::Answer),
    ("alert", RejectWith::Alert),
    ("close", RejectWith::Close),
    ("reset", RejectWith::Reset),
    ("drop", RejectWith::Drop),
];

const ACTIONS: [(&str, ExpectedAction); 5] = [
    ("passthrough", ExpectedAction::Passthrough),
    ("terminate", ExpectedAction::Terminate),
    ("http", ExpectedAction::Http),
    ("redirect", ExpectedAction::Redirect),
    ("reject", ExpectedAction::Reject),
];

const PROXY_VERSIONS: [(&str, ProxyVersion); 2] = [("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)];

const FORMATS: [(&str, LogFormat); 2] = [("json", LogFormat::Json), ("logfmt", LogFormat::Logfmt)];

const RELOADS: [(&str, ReloadOn); 2] = [("signal", ReloadOn::Signal), ("change", ReloadOn::Change)];

const SANDBOXES: [(&str, Sandbox); 2] = [("off", Sandbox::Off), ("landlock", Sandbox::Landlock)];
const PERS: [(&str, PerWord); 4] = [
    ("ip", PerWord(Per::IP)),
    ("network", PerWord(Per::NETWORK)),
    ("site", PerWord(Per::SITE)),
    ("all", PerWord(Per::All)),
];

const LIMIT_ACTIONS: [(&str, LimitWord); 5] = [
    ("reset", LimitWord::Reset),
    ("close", LimitWord::Close),
    ("drop", LimitWord::Drop),
    ("delay", LimitWord::Delay),
    ("tarpit", LimitWord::Tarpit),
];

/// The value that is written so, if it is one.
pub(super) fn parse<T: Text>(text: &str) -> Option<T> {
    T::parse(text).ok()
}

/// What lets a process read its configuration again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReloadOn {
    Signal,
    Change,
}

/// A keyword that stands for the absence of a value.
pub(super) trait Keyword {
    const WORD: &'static str;
}

/// `"off"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Off;

/// `"auto"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Auto;

/// A value, or the keyword for having none.
#[derive(Clone, Copy, Debug)]
pub(super) struct WordOr<K, T>(pub(super) Option<T>, PhantomData<K>);

/// What `sni` holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SniWord {
    Name(NamePattern),
    None,
}

/// An ALPN protocol name (RFC 7301 §3.1: 1 to 255 bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AlpnName(pub(super) Box<[u8]>);

/// The version that a server of MySQL claims to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MysqlVersion(pub(super) String);

/// The name of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListenerName(pub(super) String);

/// The name of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LimitName(pub(super) String);

/// What a limit counts as one source, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PerWord(pub(super) Per);

/// What `action` of a limit holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitWord {
    Reset,
    Close,
    Drop,
    Delay,
    Tarpit,
}

/// The name of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RouteName(pub(super) String);

/// A nameserver; port 53 unless given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nameserver(pub(super) SocketAddr);

/// The name of a variable of the environment, or of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VariableName(pub(super) String);

/// An absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AbsolutePath(pub(super) PathBuf);

impl Text for VariableName {
    const EXPECTED: &'static str = "a name";

    fn parse(text: &str) -> Result<Self, Problem> {
        checked_name(text, "secret", "-_.").map(Self)
    }
}

impl Text for AbsolutePath {
    const EXPECTED: &'static str = "an absolute path";

    fn parse(text: &str) -> Result<Self, Problem> {
        if Path::new(text).is_absolute() {
            return Ok(Self(PathBuf::from(text)));
        }
        Err(Problem::new(ErrorKind::BadValue, format!("{} is not an absolute path", quote(text))))
    }
}

impl fmt::Display for SniWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(pattern) => pattern.fmt(f),
            Self::None => f.write_str("none"),
        }
    }
}

impl fmt::Display for LimitWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = LIMIT_ACTIONS.iter().find(|(_, word)| word == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

impl Keyword for Off {
    const WORD: &'static str = "off";
}

impl Keyword for Auto {
    const WORD: &'static str = "auto";
}

impl<K: Keyword, T: Decode> Decode for WordOr<K, T> {
    fn expected() -> String {
        format!("{} or \"{}\"", T::expected(), K::WORD)
    }

    fn schema() -> Value {
        json!({ "anyOf": [{ "const": K::WORD }, T::schema()] })
    }

    fn decode(value: &DeValue<'_>, place: &Place, cx: &mut Decoder<'_>) -> Option<Self> {
        if value.as_str() == Some(K::WORD) {
            return Some(Self(None, PhantomData));
        }
        if value.is_str() && !T::TEXT {
            return cx.wrong_type(&Self::expected(), value, place);
        }
        T::decode(value, place, cx).map(|value| Self(Some(value), PhantomData))
    }
}

/// Values that are one of a few words.
macro_rules! word_value {
    ($type:ty, $expected:literal, $words:ident) => {
        impl Text for $type {
            const EXPECTED: &'static str = $expected;

            fn constraints() -> Value {
                words($words.iter().map(|(word, _)| *word))
            }

            fn parse(text: &str) -> Result<Self, Problem> {
                word(text, &$words)
            }
        }
    };
}

word_value!(RejectWith, "\"answer\", \"alert\", \"close\", \"reset\" or \"drop\"", REJECTS);
word_value!(ExpectedAction, "\"passthrough\", \"terminate\", \"http\", \"redirect\" or \"reject\"", ACTIONS);
word_value!(ReloadOn, "\"signal\" or \"change\"", RELOADS);
word_value!(Sandbox, "\"landlock\" or \"off\"", SANDBOXES);
word_value!(LogFormat, "\"json\" or \"logfmt\"", FORMATS);
word_value!(ProxyVersion, "\"v1\" or \"v2\"", PROXY_VERSIONS);

word_value!(PerWord, "\"ip\", \"network\", \"site\" or \"all\"", PERS);
word_value!(LimitWord, "\"reset\", \"close\", \"drop\", \"delay\" or \"tarpit\"", LIMIT_ACTIONS);

impl Text for String {
    const EXPECTED: &'static str = "a string";

    fn parse(text: &str) -> Result<Self, Problem> {
        Ok(text.to_owned())
    }
}

impl Text for MysqlVersion {
    const EXPECTED: &'static str = "a version such as \"8.0.36\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        // Clients read numbers from its beginning.
        let good = text.len() <= 60
            && text.starts_with(|c: char| c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_graphic());
        if good {
            return Ok(Self(text.to_owned()));
        }
        let hint = "write what `select version()` says on the backends";
        Err(Problem::new(ErrorKind::BadValue, format!("{} is no version of MySQL", quote(text))).hint(hint))
    }
}

impl Text for ListenerName {
    const EXPECTED: &'static str = "the name of a listener";

    fn constraints() -> Value {
        json!({ "pattern": "^[A-Za-z0-9_-]+$" })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        checked_name(text, "listener", "-_").map(Self)
    }
}

impl Text for LimitName {
    const EXPECTED: &'static str = "the name of a limit";

    fn constraints() -> Value {
        json!({ "pattern": "^[A-Za-z0-9_-]+$" })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        checked_name(text, "limit", "-_").map(Self)
    }
}

impl Text for RouteName {
    const EXPECTED: &'static str = "the name of a route";

    fn parse(text: &str) -> Result<Self, Problem> {
        // Names made from what a route matches may be referred to, so a regex must be possible here.
        match text {
            "" => Err(Problem::new(ErrorKind::BadName, "the name of a route cannot be empty")),
            text if text.len() > 512 || text.chars().any(char::is_control) => Err(Problem::new(
                ErrorKind::BadName,
                format!("{} cannot be the name of a route", quote(text)),
            )),
            text => Ok(Self(text.to_owned())),
        }
    }
}

/// A name of letters, digits and the characters `more`.
pub(super) fn checked_name(text: &str, what: &str, more: &str) -> Result<String, Problem> {
    let good = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
    if !text.is_empty() && text.len() <= 255 && text.chars().all(good) {
        return Ok(text.to_owned());
    }
    let listed: Vec<_> = more.chars().map(|c| format!("`{c}`")).collect();
    let hint = format!("a name is 1 to 255 letters, digits, {}", listed.join(", "));
    Err(Problem::new(ErrorKind::BadName, format!("{} cannot be the name of a {what}", quote(text)))
        .hint(hint))
}

impl Text for AlpnName {
    const EXPECTED: &'static str = "an ALPN protocol name such as \"h2\"";

    fn constraints() -> Value {
        json!({ "minLength": 1, "maxLength": 255 })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        match text.len() {
            1..=255 => Ok(Self(text.as_bytes().into())),
            len => Err(Problem::new(
                ErrorKind::OutOfRange,
                format!("an ALPN protocol name has 1 to 255 bytes, this one has {len}"),
            )),
        }
    }
}

impl Text for Ja4 {
    const EXPECTED: &'static str = "a JA4 fingerprint";

    fn parse(text: &str) -> Result<Self, Problem> {
        Self::parse(text).map_err(|error| bad_fingerprint(text, error))
    }
}

impl Text for Ja4Pattern {
    const EXPECTED: &'static str = "a JA4 fingerprint, or the beginning of one and `*`";

    fn parse(text: &str) -> Result<Self, Problem> {
        match Self::parse(text) {
            Ok(pattern) => Ok(pattern),
            Err(error @ Ja4Error::Short(1..)) => {
                Err(bad_fingerprint(text, error).hint(format!("write `\"{text}*\"` for all that begin so")))
            }
            Err(error) => Err(bad_fingerprint(text, error)),
        }
    }
}

fn bad_fingerprint(text: &str, error: Ja4Error) -> Problem {
    Problem::new(ErrorKind::BadValue, format!("{} is not a JA4 fingerprint: {error}", quote(text)))
        .hint("write it as in `\"t13d1516h2_8daaf6152771_e5627efa2ab1\"`; `access_log = { ja4 = true }` shows those of clients")
}

impl Text for ListenAddr {
    const EXPECTED: &'static str = "an address such as \":443\"";

    fn bare_number(number: &str) -> Option<Problem> {
        let problem = Problem::new(ErrorKind::BadAddress, "an address to listen on is a string");
        Some(problem.hint(format!("write `\":{number}\"` for port {number} of all addresses")))
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        text.parse().map_err(|error| {
            let problem = Problem::new(ErrorKind::BadAddress, format!("{error}"));
            match text.parse::<u16>() {
                Ok(port) => problem.hint(format!("write `\":{port}\"` for port {port} of all addresses")),
                Err(_) => problem,
            }
        })
    }
}

impl Text for UpstreamAddr {
    const EXPECTED: &'static str = "an address such as \"10.0.0.1:443\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        text.parse().map_err(|error| Problem::new(ErrorKind::BadAddress, format!("{error}")))
    }
}

impl Text for Nameserver {
    const EXPECTED: &'static str = "the address of a nameserver";

    fn parse(text: &str) -> Result<Self, Problem> {
        let with_port = text.parse::<SocketAddr>().ok();
        let socket = with_port.or_else(|| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::from((ip, 53))));
        socket.filter(|socket| socket.port() != 0).map(Self).ok_or_else(|| {
            Problem::new(ErrorKind::BadAddress, format!("{} is not the address of a nameserver", quote(text)))
                .hint("write an IP address, with a port if it is not 53: `\"10.0.0.53\"` or `\"[::1]:5353\"`")
        })
    }
}

impl Text for IpAddr {
    const EXPECTED: &'static str = "an IP address";

    fn parse(text: &str) -> Result<Self, Problem> {
        text.parse().map_err(|_| {
            Problem::new(ErrorKind::BadAddress, format!("{} is not an IP address", quote(text)))
                .hint("write one address without a port, as in `\"192.0.2.1\"`")
        })
    }
}

impl Text for IpNet {
    const EXPECTED: &'static str = "a network such as \"10.0.0.0/8\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let bad = |message: String| Problem::new(ErrorKind::BadNetwork, message);
        let network = match text.parse::<IpAddr>() {
            Ok(ip) => Self::from(ip),
            Err(_) => text.parse::<Self>().map_err(|_| {
                bad(format!("{} is not a network", quote(text)))
                    .hint("write an address and the length of its prefix, as in `\"10.0.0.0/8\"`")
            })?,
        };
        if network.trunc() != network {
            return Err(bad(format!("`{network}` has bits set behind its prefix")).hint(format!(
                "write `\"{}\"` for the network, or `\"{}\"` for the one address",
                network.trunc(),
                network.addr()
            )));
        }
        if let Self::V6(v6) = network
            && let Some(v4) = v6.addr().to_ipv4_mapped()
            && let Some(prefix) = v6.prefix_len().checked_sub(96)
        {
            return Err(bad(format!("`{network}` is a network of IPv4 addresses in IPv6 form"))
                .hint(format!("clients of IPv4 are matched as such: write `\"{v4}/{prefix}\"`")));
        }
        Ok(network)
    }
}

/// Refuses IPv4 networks in the form that NAT64 gives them, which lists and limits never see (see
/// [`canonical`](crate::net::canonical)).
pub(super) fn nat64(network: IpNet) -> Result<IpNet, Problem> {
    if let IpNet::V6(v6) = network
        && let Some(prefix) = v6.prefix_len().checked_sub(96)
        && let IpAddr::V4(v4) = canonical(v6.addr().into())
    {
        let message = format!("`{network}` is a network of IPv4 addresses behind NAT64");
        return Err(Problem::new(ErrorKind::BadNetwork, message)
            .hint(format!("their clients are matched as IPv4: write `\"{v4}/{prefix}\"`")));
    }
    Ok(network)
}

impl Text for ServerName {
    const EXPECTED: &'static str = "a server name";

    fn parse(text: &str) -> Result<Self, Problem> {
        Self::parse(text.as_bytes()).map_err(|error| bad_name(text, error))
    }
}

impl Text for SniWord {
    const EXPECTED: &'static str = "a server name such as \"app.example.com\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "none" => return Ok(Self::None),
            "*" => return Ok(Self::Name(NamePattern::Any)),
            _ => {}
        }
        if let Some(regex) = text.strip_prefix('~') {
            return match NameRegex::new(regex) {
                Ok(regex) => Ok(Self::Name(NamePattern::Regex(regex))),
                Err(error) => {
                    // The error draws the expression over several lines; its last one says what is wrong.
                    let error = error.to_string();
                    let reason = error.lines().last().unwrap_or("").trim_start_matches("error: ");
                    Err(Problem::new(
                        ErrorKind::BadRegex,
                        format!("{} does not compile: {reason}", quote(regex)),
                    ))
                }
            };
        }
        let (suffix, name) = match text.strip_prefix("*.") {
            Some(suffix) => (true, suffix),
            None => (false, text),
        };
        if name.contains('*') {
            let problem = Problem::new(ErrorKind::BadName, "`*` stands only for whole labels at the start");
            let regex = text.replace('.', "\\.").replace('*', "[^.]+");
            return Err(problem.hint(format!("write `*.suffix`, or a regular expression: `'~{regex}'`")));
        }
        let name = <ServerName as Text>::parse(name)?;
        Ok(Self::Name(if suffix { NamePattern::Suffix(name) } else { NamePattern::Exact(name) }))
    }
}

fn bad_name(text: &str, error: NameError) -> Problem {
    let problem = Problem::new(ErrorKind::BadName, format!("{} is not a server name: {error}", quote(text)));
    match error {
        NameError::IpLiteral => {
            problem.hint("clients that connect to an address send no name: write `sni = \"none\"`")
        }
        NameError::BadByte(b':' | b'/') => {
            problem.hint("write the name alone, without scheme, port and path")
        }
        NameError::BadByte(128..) => {
            problem.hint("write it as it stands on the wire, in ASCII: `xn--…` (RFC 5890 §2.3.2.1)")
        }
        NameError::BadByte(_)
        | NameError::Empty
        | NameError::TooLong
        | NameError::EmptyLabel
        | NameError::LongLabel => problem,
    }
}

/// Why a text is no admin address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminAddrError {
    /// `unix:` and something else than an absolute path.
    #[error("`unix:` needs an absolute path")]
    RelativePath,
    /// Neither that nor an address with a port.
    #[error("neither an address with a port nor `unix:/path`")]
    NotAnAddress,
}

impl FromStr for AdminAddr {
    type Err = AdminAddrError;

    fn from_str(text: &str) -> Result<Self, AdminAddrError> {
        match text.strip_prefix("unix:") {
            Some(path) if Path::new(path).is_absolute() => Ok(Self::Unix(PathBuf::from(path))),
            Some(_) => Err(AdminAddrError::RelativePath),
            None => text.parse().map(Self::Tcp).map_err(|_| AdminAddrError::NotAnAddress),
        }
    }
}

impl Text for AdminAddr {
    const EXPECTED: &'static str = "an address such as \"127.0.0.1:9901\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let hint = "write an IP address and a port, as in `\"127.0.0.1:9901\"`, or `\"unix:/path\"`";
        text.parse().map_err(|error| {
            let message = match error {
                AdminAddrError::RelativePath => error.to_string(),
                AdminAddrError::NotAnAddress => format!("{} is not an address", quote(text)),
            };
            Problem::new(ErrorKind::BadAddress, message).hint(hint)
        })
    }
}

impl Text for LogTarget {
    const EXPECTED: &'static str = "\"stdout\", \"stderr\", \"off\" or an absolute path";

    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "stdout" => Ok(Self::Stdout),
            "stderr" => Ok(Self::Stderr),
            "off" => Ok(Self::Off),
            path if Path::new(path).is_absolute() => Ok(Self::File(PathBuf::from(path))),
            _ => Err(Problem::new(ErrorKind::BadValue, format!("{} is not a destination", quote(text)))
                .hint("write `\"stdout\"`, `\"stderr\"`, `\"off\"` or an absolute path")),
        }
    }
}
