//! XMPP (RFC 6120), of clients and of servers, up to STARTTLS (§5).

use super::lines::{heard, ready, told};
use super::xml::{Element, Kind, NotXml, Tag, element, escape, tag};
use super::{Heard, PreludeError, ReplayError, Then, Told, unique};
use crate::peek::ServerName;

const STREAMS: &str = "http://etherx.jabber.org/streams";
const TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
const PROCEED: &str = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
const ASK: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
/// Nothing but TLS, and that must be (§5.4.1).
const FEATURES: &str = "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>";
const END: &str = "</stream:stream>";

/// Who talks to whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Talk {
    /// `jabber:client`.
    #[default]
    Client,
    /// `jabber:server`.
    Server,
}

impl Talk {
    const fn namespace(self) -> &'static str {
        match self {
            Self::Client => "jabber:client",
            Self::Server => "jabber:server",
        }
    }
}

/// What begins a stream says (§4.7), as far as it matters before TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    talk: Talk,
    to: Option<String>,
    from: Option<String>,
}

impl Header {
    /// Reads it, or says with which error the stream ends (§4.9.3).
    fn read(tag: &Tag<'_>) -> (Self, Option<&'static str>) {
        let talk = match tag.attribute("xmlns") {
            Some("jabber:client") => Some(Talk::Client),
            Some("jabber:server") => Some(Talk::Server),
            _ => None,
        };
        let to_text = |name| tag.attribute(name).map(str::to_owned);
        let header = Self { talk: talk.unwrap_or_default(), to: to_text("to"), from: to_text("from") };
        let major = tag.attribute("version").and_then(|version| version.split_once('.'));
        let error = if talk.is_none() || tag.attribute("xmlns:stream") != Some(STREAMS) {
            Some("invalid-namespace")
        // Without a version there are no features to offer (§4.7.5).
        } else if !major.is_some_and(|(major, _)| major.parse::<u32>().is_ok_and(|major| major >= 1)) {
            Some("unsupported-version")
        } else {
            None
        };
        (header, error)
    }

    /// The beginning of a stream; `more` is further attributes.
    fn write(&self, more: &str) -> String {
        let attribute = |name, value: &Option<String>| {
            value.as_ref().map(|value| format!(" {name}='{}'", escape(value))).unwrap_or_default()
        };
        format!(
            "<?xml version='1.0'?><stream:stream xmlns='{}' xmlns:stream='{STREAMS}'{more}{}{} version='1.0'>",
            self.talk.namespace(),
            attribute("from", &self.from),
            attribute("to", &self.to),
        )
    }
}

/// A server that offers STARTTLS and nothing else.
#[derive(Debug)]
pub(super) struct Server {
    /// Who answers where the client does not say whom it wants.
    name: Box<str>,
    header: Option<Header>,
    server_name: Option<ServerName>,
}

impl Server {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into(), header: None, server_name: None }
    }

    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
        if self.header.is_none() {
            return self.begin(bytes);
        }
        let Some((first, len)) = tag(bytes)? else { return Ok(None) };
        match first.kind {
            Kind::End if first.name == "stream:stream" => heard(len, END, Then::Close),
            Kind::End | Kind::Declaration => Err(PreludeError::Syntax),
            Kind::Start | Kind::Empty
                if first.name == "starttls" && first.attribute("xmlns") == Some(TLS) =>
            {
                match element(bytes)? {
                    None => Ok(None),
                    Some(whole) if whole.children.is_empty() => heard(whole.len, PROCEED, Then::StartTls),
                    Some(_) => Err(PreludeError::Syntax),
                }
            }
            // Whatever else it is would be sent in clear (§5.3.1).
            Kind::Start | Kind::Empty => {
                heard(len, error("policy-violation", "TLS is required first"), Then::Close)
            }
        }
    }

    fn begin(&mut self, bytes: &[u8]) -> Result<Option<Heard>, PreludeError> {
        let Some((tag, len)) = header(bytes)? else { return Ok(None) };
        let (header, wrong) = Header::read(&tag);
        let reply = Header {
            talk: header.talk,
            to: header.from.clone(),
            from: Some(header.to.clone().unwrap_or_else(|| self.name.to_string())),
        };
        let beginning = reply.write(&format!(" id='{:016x}'", unique()));
        if let Some(condition) = wrong {
            return heard(len, beginning + &error(condition, ""), Then::Close);
        }
        self.server_name = header.to.as_ref().and_then(|to| ServerName::parse(to.as_bytes()).ok());
        self.header = Some(header);
        heard(len, beginning + FEATURES, Then::GoOn)
    }

    pub(super) fn server_name(&self) -> Option<&ServerName> {
        self.server_name.as_ref()
    }

    /// A client for a backend, which says what this one's client said.
    pub(super) fn replay(&self) -> Client {
        Client { header: self.header.clone().unwrap_or_default(), awaits: Awaits::Header }
    }
}

/// The tag that begins a stream, behind the declaration of XML, and how many bytes both take.
fn header(bytes: &[u8]) -> Result<Option<(Tag<'_>, usize)>, NotXml> {
    // A declaration has nothing before it (XML 1.0 §2.8).
    let Some((first, mut len)) = tag(bytes)? else { return Ok(None) };
    let stream = if first.kind == Kind::Declaration {
        let encoding = first.attribute("encoding");
        let is_utf8 = encoding.is_none_or(|encoding| encoding.eq_ignore_ascii_case("utf-8"));
        if first.attribute("version") != Some("1.0") || !is_utf8 || !bytes.starts_with(b"<") {
            return Err(NotXml);
        }
        let Some((stream, more)) = tag(bytes.get(len..).unwrap_or_default())? else { return Ok(None) };
        len += more;
        stream
    } else {
        first
    };
    let begins = stream.kind == Kind::Start && stream.name == "stream:stream";
    if begins { Ok(Some((stream, len))) } else { Err(NotXml) }
}

/// The error that ends a stream (§4.9), and its end.
fn error(condition: &str, text: &str) -> String {
    const NAMESPACE: &str = "urn:ietf:params:xml:ns:xmpp-streams";
    let text = if text.is_empty() {
        String::new()
    } else {
        format!("<text xmlns='{NAMESPACE}' xml:lang='en'>{}</text>", escape(text))
    };
    format!("<stream:error><{condition} xmlns='{NAMESPACE}'/>{text}</stream:error>{END}")
}

/// What a client is told whose stream ends; with the beginning of one, when what it `said` was its own (§4.9.1.2).
pub(super) fn refusal(said: &[u8], condition: &str, text: &str) -> Vec<u8> {
    let beginning = match header(said) {
        Ok(Some((tag, _))) => {
            let Header { talk, to, from } = Header::read(&tag).0;
            Header { talk, to: from, from: to }.write(&format!(" id='{:016x}'", unique()))
        }
        Ok(None) | Err(NotXml) => String::new(),
    };
    (beginning + &error(condition, text)).into()
}

/// A client that wants TLS.
#[derive(Debug)]
pub(super) struct Client {
    header: Header,
    awaits: Awaits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    Header,
    Features,
    Proceed,
}

impl Client {
    pub(super) fn opening(&self) -> Vec<u8> {
        self.header.write("").into()
    }

    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Option<Told>, ReplayError> {
        if self.awaits == Awaits::Header {
            let Some((_, len)) = header(bytes)? else { return Ok(None) };
            self.awaits = Awaits::Features;
            return told(len, "");
        }
        let Some((first, _)) = tag(bytes)? else { return Ok(None) };
        if first.kind == Kind::End || first.name == "stream:error" {
            return Err(ReplayError::Refused);
        }
        let Some(whole) = element(bytes)? else { return Ok(None) };
        match (self.awaits, whole.tag.name) {
            (Awaits::Features, "stream:features") if offers_tls(&whole) => {
                self.awaits = Awaits::Proceed;
                told(whole.len, ASK)
            }
            (Awaits::Features, "stream:features") => Err(ReplayError::Refused),
            (Awaits::Proceed, "proceed") if is_tls(&whole.tag) => ready(whole.len),
            (Awaits::Proceed, "failure") => Err(ReplayError::Refused),
            (Awaits::Header | Awaits::Features | Awaits::Proceed, _) => Err(ReplayError::Syntax),
        }
    }
}

fn offers_tls(features: &Element<'_>) -> bool {
    features.children.iter().any(|child| child.name == "starttls" && is_tls(child))
}

fn is_tls(tag: &Tag<'_>) -> bool {
    tag.attribute("xmlns") == Some(TLS)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, greeting, hears, refuses, replays};
    use super::super::{Prelude, tests::hear};
    use super::*;
    use crate::peek::Protocol::Xmpp;

    const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams' from='ann@a.test' to='a.test' version='1.0'>";
    const REPLY: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams' id='?' from='a.test' to='ann@a.test' version='1.0'>";
    const VIOLATION: &str = "<stream:error><policy-violation xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
        <text xmlns='urn:ietf:params:xml:ns:xmpp-streams' xml:lang='en'>TLS is required first</text>\
        </stream:error></stream:stream>";

    #[test]
    fn a_client_finds_starttls_alone() {
        let begun = format!("{REPLY}{FEATURES}");
        hears(Xmpp, "", &[(HEADER, &begun, Then::GoOn), (ASK, PROCEED, Then::StartTls)]);
        let apart = "\n<starttls xmlns=\"urn:ietf:params:xml:ns:xmpp-tls\"></starttls>";
        hears(Xmpp, "", &[(HEADER, &begun, Then::GoOn), (apart, PROCEED, Then::StartTls)]);
        hears(Xmpp, "", &[(HEADER, &begun, Then::GoOn), (" </stream:stream>", END, Then::Close)]);
        for other in [
            "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>",
            "<iq type='get'>",
            "<starttls/>",
            "<starttls xmlns='x'/>",
        ] {
            hears(Xmpp, "", &[(HEADER, &begun, Then::GoOn), (other, VIOLATION, Then::Close)]);
        }
    }

    #[test]
    fn a_stream_names_whom_it_wants() {
        let named = |header: &str| {
            let mut prelude = Prelude::new(Xmpp, &greeting()).unwrap();
            assert_eq!(prelude.server_name(), None);
            hear(&mut prelude, header.as_bytes()).unwrap();
            prelude.server_name().map(|name| name.as_str().to_owned())
        };
        let of = |to: &str| {
            format!(
                "<stream:stream version=\"1.0\" {to} xmlns:stream='{STREAMS}'\n\
                xmlns:db='jabber:server:dialback' xmlns='jabber:server' >"
            )
        };
        assert_eq!(named(&of("to='Chat.TEST'")), Some("chat.test".to_owned()));
        assert_eq!(named(&of("to=\"192.0.2.1\"")), None);
        assert_eq!(named(&of("to='&lt;a&gt;'")), None);
        assert_eq!(named(&of("")), None);
        let mut prelude = Prelude::new(Xmpp, &greeting()).unwrap();
        let reply = hear(&mut prelude, of("to='&lt;a&apos;'").as_bytes()).unwrap().reply;
        let reply = String::from_utf8(reply).unwrap();
        assert!(reply.contains("xmlns='jabber:server'") && reply.contains(" from='&lt;a&apos;' "), "{reply}");
    }

    #[test]
    fn ids_are_of_one_stream() {
        let ids: std::collections::HashSet<u64> = (0..1000).map(|_| unique()).collect();
        assert_eq!(ids.len(), 1000);
    }

    #[test]
    fn other_streams_are_refused() {
        let closed = |header: &str, condition: &str| {
            let mut prelude = Prelude::new(Xmpp, &greeting()).unwrap();
            let heard = hear(&mut prelude, header.as_bytes()).unwrap();
            let reply = String::from_utf8(heard.reply).unwrap();
            assert_eq!(heard.then, Then::Close);
            assert!(reply.starts_with("<?xml version='1.0'?><stream:stream "), "{reply}");
            assert!(reply.contains(&format!("<stream:error><{condition} ")), "{reply}");
        };
        closed(&HEADER.replace(" version='1.0'>", ">"), "unsupported-version");
        closed(&HEADER.replace(" version='1.0'>", " version='0.9'>"), "unsupported-version");
        closed(&HEADER.replace("jabber:client", "jabber:component:accept"), "invalid-namespace");
        closed(&HEADER.replace(STREAMS, "x"), "invalid-namespace");
        for bad in [
            "<stream:stream/>",
            "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing'>",
            "<?xml version='1.1'?>",
            "<?xml version='1.0' encoding='latin1'?>",
            " <?xml version='1.0'?>",
            "<?xml version='1.0'?><?xml version='1.0'?>",
            "<!DOCTYPE a>",
            "GET / HTTP/1.1",
        ] {
            fails(Xmpp, &[], &[bad.as_bytes(), b"<stream:stream>"].concat(), PreludeError::Syntax);
        }
        let text = |text: &str| format!("<starttls xmlns='{TLS}'{text}");
        fails(Xmpp, &[HEADER.as_bytes()], text("/> ").as_bytes(), PreludeError::Injection);
        fails(Xmpp, &[HEADER.as_bytes()], text("><x/></starttls>").as_bytes(), PreludeError::Syntax);
        fails(Xmpp, &[HEADER.as_bytes()], b"</x>", PreludeError::Syntax);
    }

    #[test]
    fn a_backend_is_played_the_same_stream() {
        let header = HEADER.as_bytes();
        let offer = format!(
            "<stream:features><mechanisms xmlns='x'><mechanism>PLAIN</mechanism></mechanisms>\
            <starttls xmlns='{TLS}'><required/></starttls></stream:features>"
        );
        let begun = "<?xml version='1.0'?>\n<stream:stream id='1' xmlns='jabber:client'>";
        replays(Xmpp, &[header], HEADER, &[(begun, ""), (&offer, ASK)], PROCEED);
        let apart = format!("<proceed xmlns='{TLS}'></proceed>");
        let lone = format!("<stream:features><starttls xmlns='{TLS}'/></stream:features>");
        replays(Xmpp, &[header], HEADER, &[(begun, ""), (&lone, ASK)], &apart);
        let (begun, offer) = (begun.as_bytes(), offer.as_bytes());
        for (before, bad, error) in [
            (&[][..], "<html>", ReplayError::Syntax),
            (&[begun][..], "<stream:features/>", ReplayError::Refused),
            (&[begun], "<stream:features><starttls xmlns='x'/></stream:features>", ReplayError::Refused),
            (&[begun], "<stream:error><x/></stream:error>", ReplayError::Refused),
            (&[begun], "</stream:stream>", ReplayError::Refused),
            (&[begun], "<message/>", ReplayError::Syntax),
            (&[begun, offer], "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>", ReplayError::Refused),
            (&[begun, offer], "<proceed/>", ReplayError::Syntax),
            (&[begun, offer], &format!("{PROCEED} "), ReplayError::Injection),
        ] {
            refuses(Xmpp, &[header], before, bad.as_bytes(), error);
        }
    }
}
