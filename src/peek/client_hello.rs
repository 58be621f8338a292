//! The TLS ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2): assembled from records, then read.
//!
//! Clients may split the message over any number of records and segments, and post-quantum key shares make
//! that common; a proxy that takes the first record for the whole message routes such clients wrongly.
//! Whatever is incomplete waits, whatever is ambiguous is refused.

use tls_parser::parse_tls_handshake_client_hello;

use super::cursor::Cursor;
use super::extension;
use super::ja4::{Ja4, Offer};
use super::protocol::Protocol;
use super::server_name::{NameError, ServerName};

/// Record header: content type, version, length (RFC 8446 §5.1).
const RECORD_HEADER: usize = 5;
/// Handshake header: message type, 24-bit length (RFC 8446 §4).
const HANDSHAKE_HEADER: usize = 4;
/// The largest fragment of a plaintext record (RFC 8446 §5.1).
const MAX_FRAGMENT: usize = 1 << 14;
const CONTENT_HANDSHAKE: u8 = 22;
const MESSAGE_CLIENT_HELLO: u8 = 1;
const TLS_1_3: u16 = 0x0304;

/// What a ClientHello says, as far as routing, logs and metrics care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The `host_name` of the server_name extension; `None` without that extension. With Encrypted
    /// ClientHello it is the outer, public name.
    pub server_name: Option<ServerName>,
    /// Protocol names offered by ALPN (RFC 7301), in the client's order; empty without the extension.
    pub alpn: Alpn,
    /// Protocol versions offered: the supported_versions extension, or else the legacy version.
    pub versions: Vec<u16>,
    /// Named groups offered, in the client's order.
    pub groups: Vec<u16>,
    /// Named groups that a key share was sent for.
    pub key_shares: Vec<u16>,
    /// Whether the Encrypted ClientHello extension is there, real or GREASE.
    pub ech: bool,
    /// Whether the client says that it sends early data (0-RTT), which a server may act on before it has answered.
    pub early_data: bool,
    /// Whether the client offers to go on with an earlier session: by a key that both have, a ticket, or without TLS 1.3
    /// by the session's id.
    pub resumption: bool,
    /// The fingerprint of the client, where one was asked for.
    pub ja4: Option<Box<Ja4>>,
    /// Length of the handshake message in bytes, its header included.
    pub size: usize,
    /// Number of TLS records that it came in.
    pub records: u16,
    /// The protocol within which TLS was begun (STARTTLS); `None` where the connection began with the hello.
    pub within: Option<Protocol>,
}

/// The ALPN offers of a client, as they came: each name behind a byte of length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alpn(Box<[u8]>);

/// Why bytes that begin like a ClientHello are not one, or nothing that may reach a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// More bytes on the wire than the configured maximum.
    #[error("the hello is larger than the limit")]
    TooLarge,
    /// A record that is not a handshake record, or none of TLS, before the hello is complete.
    #[error("another record in the middle of the hello")]
    NotHandshake,
    /// An empty record, or one longer than 16,384 bytes.
    #[error("a record of impossible length")]
    RecordLength,
    /// A handshake message other than ClientHello.
    #[error("the first handshake message is not a ClientHello")]
    NotClientHello,
    /// Bytes after the hello in its last record.
    #[error("bytes after the hello in its own record")]
    TrailingBytes,
    /// A length that does not fit, or an empty list that may not be empty.
    #[error("the hello does not follow the grammar")]
    Syntax,
    /// The same extension twice.
    #[error("an extension stands twice")]
    DuplicateExtension,
    /// More than one server name, or one of an unknown type.
    #[error("more than one server name")]
    SeveralNames,
    /// A PROXY header, from somebody who is not trusted to send one, or after one.
    #[error("a PROXY header from a client")]
    ProxyHeader,
    /// A server name that is none.
    #[error("bad server name: {0}")]
    Name(#[from] NameError),
}

/// A complete hello and where it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembled {
    /// The hello.
    pub hello: ClientHello,
    /// Bytes of the connection that belong to it; what follows is the client's next flight.
    pub wire_len: usize,
}

/// Joins the records of a ClientHello as its bytes come in. The work of a connection is linear in its bytes
/// however they are cut.
#[derive(Clone, Debug, Default)]
pub struct HelloReader {
    /// Offset of the first record that is not complete yet.
    next: usize,
    /// Fragments of the complete records; stays empty for a hello in one record.
    joined: Vec<u8>,
    /// The handshake header, as far as it is there.
    header: Vec<u8>,
    /// Handshake bytes in complete records.
    payload: usize,
    records: u16,
    ja4: bool,
}

impl HelloReader {
    /// Whether the fingerprint is wanted too.
    pub fn with_ja4(mut self, wanted: bool) -> Self {
        self.ja4 = wanted;
        self
    }

    /// Looks at `bytes`, all bytes of the connection so far, of which the hello may take up to `max`.
    ///
    /// `Ok(None)` means that more bytes are needed. Calls must pass the same bytes again, grown or not.
    ///
    /// # Errors
    /// When no continuation can make the bytes a ClientHello.
    pub fn advance(&mut self, bytes: &[u8], max: usize) -> Result<Option<Assembled>, HelloError> {
        // What is looked at first is also what comes first on the wire, so that the first thing wrong is the
        // same however the bytes are cut.
        loop {
            if self.next + RECORD_HEADER > max {
                return Err(HelloError::TooLarge);
            }
            let record = bytes.get(self.next..).unwrap_or_default();
            let Some(len) = record_length(record)? else { return Ok(None) };
            let end = self.next + RECORD_HEADER + len;
            if end > max {
                return Err(HelloError::TooLarge);
            }
            let body = record.get(RECORD_HEADER..).unwrap_or_default();
            let fragment = body.get(..len);
            let message = self.message_length(fragment.unwrap_or(body))?;
            if message.is_some_and(|message| message > max) {
                return Err(HelloError::TooLarge);
            }
            if message.is_some_and(|message| self.payload + len > message) {
                return Err(HelloError::TrailingBytes);
            }
            let Some(fragment) = fragment else { return Ok(None) };
            self.next = end;
            self.payload += len;
            self.records += 1;
            if message == Some(self.payload) {
                return self.finish(fragment).map(Some);
            }
            self.joined.extend_from_slice(fragment);
            let have = self.header.len();
            self.header.extend(fragment.iter().take(HANDSHAKE_HEADER.saturating_sub(have)));
        }
    }

    /// The length of the message with its header, once the header is there; `fragment` is what there is of
    /// the current record.
    fn message_length(&self, fragment: &[u8]) -> Result<Option<usize>, HelloError> {
        let mut header = self.header.iter().chain(fragment).copied();
        match header.next() {
            None => return Ok(None),
            Some(MESSAGE_CLIENT_HELLO) => {}
            Some(_) => return Err(HelloError::NotClientHello),
        }
        let (Some(high), Some(mid), Some(low)) = (header.next(), header.next(), header.next()) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([0, high, mid, low]);
        Ok(usize::try_from(length).ok().map(|length| HANDSHAKE_HEADER + length))
    }

    fn finish(&mut self, last: &[u8]) -> Result<Assembled, HelloError> {
        let message = if self.records == 1 {
            last
        } else {
            self.joined.extend_from_slice(last);
            &self.joined
        };
        let mut hello = ClientHello::read(message, self.ja4)?;
        hello.records = self.records;
        Ok(Assembled { hello, wire_len: self.next })
    }
}

/// The length of the record's fragment, or `None` while its header is incomplete.
fn record_length(record: &[u8]) -> Result<Option<usize>, HelloError> {
    // RFC 8446 §5.1: handshake messages are not interleaved with other types, and the version is ignored but
    // for its major number, which has been 3 since SSL 3.0.
    if record.first().is_some_and(|kind| *kind != CONTENT_HANDSHAKE) || record.get(1).is_some_and(|v| *v != 3)
    {
        return Err(HelloError::NotHandshake);
    }
    let (Some(high), Some(low)) = (record.get(3), record.get(4)) else { return Ok(None) };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    if (1..=MAX_FRAGMENT).contains(&len) { Ok(Some(len)) } else { Err(HelloError::RecordLength) }
}

impl ClientHello {
    /// Reads a whole handshake message, header included.
    ///
    /// # Errors
    /// When it is not a well-formed ClientHello. Extensions that routing does not look at are only checked
    /// for their place in the list.
    pub fn parse(message: &[u8]) -> Result<Self, HelloError> {
        Self::read(message, false)
    }

    /// The same, with the fingerprint.
    ///
    /// # Errors
    /// The same.
    pub fn parse_with_ja4(message: &[u8]) -> Result<Self, HelloError> {
        Self::read(message, true)
    }

    /// Bytes of the connection that belong to it.
    pub fn wire_len(&self) -> usize {
        self.size + usize::from(self.records) * RECORD_HEADER
    }

    fn read(message: &[u8], ja4: bool) -> Result<Self, HelloError> {
        let body = message.get(HANDSHAKE_HEADER..).ok_or(HelloError::Syntax)?;
        let (rest, contents) = parse_tls_handshake_client_hello(body).map_err(|_| HelloError::Syntax)?;
        // The parser reads extensions with a wrong length as "no extensions" and leaves them in `rest`.
        if !rest.is_empty() || contents.ciphers.is_empty() || contents.comp.is_empty() {
            return Err(HelloError::Syntax);
        }
        let mut hello =
            Self { versions: vec![contents.version.0], size: message.len(), records: 1, ..Self::default() };
        let mut seen = Vec::with_capacity(32);
        let mut signatures: &[u8] = &[];
        let mut extensions = Cursor::new(contents.ext.unwrap_or_default());
        while !extensions.is_empty() {
            let kind = extensions.u16().ok_or(HelloError::Syntax)?;
            let body = extensions.vec16().ok_or(HelloError::Syntax)?;
            seen.push(kind);
            hello.read_extension(kind, body)?;
            if kind == extension::SIGNATURE_ALGORITHMS {
                signatures = signature_algorithms(body).ok_or(HelloError::Syntax)?;
            }
        }
        // With TLS 1.3 an id says nothing: clients make one up (RFC 8446 §D.4).
        let by_id = contents.session_id.is_some_and(|id| !id.is_empty());
        hello.resumption |= by_id && !hello.versions.contains(&TLS_1_3);
        if ja4 {
            let offer = Offer {
                versions: &hello.versions,
                named: hello.server_name.is_some(),
                alpn: hello.alpn.iter().next(),
                ciphers: contents.ciphers.iter().map(|cipher| cipher.0).collect(),
                extensions: &seen,
                signatures: u16_list(signatures).unwrap_or_default(),
            };
            hello.ja4 = Some(Box::new(Ja4::new(&offer)));
        }
        seen.sort_unstable();
        if seen.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
            return Err(HelloError::DuplicateExtension);
        }
        Ok(hello)
    }

    fn read_extension(&mut self, kind: u16, body: &[u8]) -> Result<(), HelloError> {
        let mut cursor = Cursor::new(body);
        match kind {
            extension::SERVER_NAME => self.server_name = Some(read_server_name(&mut cursor)?),
            extension::ALPN => self.alpn = Alpn::read(&mut cursor).ok_or(HelloError::Syntax)?,
            extension::SUPPORTED_VERSIONS => {
                self.versions = cursor.vec8().and_then(u16_list).ok_or(HelloError::Syntax)?;
            }
            extension::SUPPORTED_GROUPS => {
                self.groups = cursor.vec16().and_then(u16_list).ok_or(HelloError::Syntax)?;
            }
            extension::KEY_SHARE => {
                self.key_shares = read_key_shares(&mut cursor).ok_or(HelloError::Syntax)?;
            }
            extension::ENCRYPTED_CLIENT_HELLO => {
                self.ech = true;
                return Ok(());
            }
            extension::EARLY_DATA => {
                // Empty in a hello; whatever it holds, the server is told of early data.
                self.early_data = true;
                return Ok(());
            }
            extension::PRE_SHARED_KEY => {
                self.resumption = true;
                return Ok(());
            }
            extension::SESSION_TICKET => {
                // An empty one asks for a ticket to come (RFC 5077 §3.2).
                self.resumption |= !body.is_empty();
                return Ok(());
            }
            _ => return Ok(()),
        }
        if cursor.is_empty() { Ok(()) } else { Err(HelloError::Syntax) }
    }
}

impl Alpn {
    /// The offers of `names`, for tests and `explain`; names that are empty or over 255 bytes are left out.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut list = Vec::new();
        for name in names {
            if let Ok(len @ 1..) = u8::try_from(name.len()) {
                list.push(len);
                list.extend_from_slice(name);
            }
        }
        Self(list.into())
    }

    /// The names, in the client's order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut cursor = Cursor::new(&self.0);
        std::iter::from_fn(move || cursor.vec8())
    }

    /// Whether the client offered nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `ProtocolName protocol_name_list<2..2^16-1>` of `ProtocolName<1..2^8-1>` (RFC 7301 §3.1).
    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        let list = cursor.vec16().filter(|list| !list.is_empty())?;
        let mut names = Cursor::new(list);
        while !names.is_empty() {
            names.vec8().filter(|name| !name.is_empty())?;
        }
        Some(Self(list.into()))
    }
}

/// `ServerName server_name_list<1..2^16-1>` with exactly one `host_name` (RFC 6066 §3).
fn read_server_name(cursor: &mut Cursor<'_>) -> Result<ServerName, HelloError> {
    const HOST_NAME: u8 = 0;
    let mut list = Cursor::new(cursor.vec16().ok_or(HelloError::Syntax)?);
    match list.u8() {
        Some(HOST_NAME) => {}
        Some(_) => return Err(HelloError::SeveralNames),
        None => return Err(HelloError::Syntax),
    }
    let name = list.vec16().ok_or(HelloError::Syntax)?;
    if list.is_empty() { Ok(ServerName::parse(name)?) } else { Err(HelloError::SeveralNames) }
}

/// `SignatureScheme supported_signature_algorithms<2..2^16-2>` (RFC 8446 §4.2.3), two bytes each.
fn signature_algorithms(body: &[u8]) -> Option<&[u8]> {
    let mut cursor = Cursor::new(body);
    let list = cursor.vec16().filter(|list| !list.is_empty() && list.len().is_multiple_of(2))?;
    cursor.is_empty().then_some(list)
}

/// A list of 16-bit numbers that may not be empty.
fn u16_list(bytes: &[u8]) -> Option<Vec<u16>> {
    let mut cursor = Cursor::new(bytes);
    let mut list = Vec::with_capacity(bytes.len() / 2);
    while !cursor.is_empty() {
        list.push(cursor.u16()?);
    }
    (!list.is_empty()).then_some(list)
}

/// `KeyShareEntry client_shares<0..2^16-1>` (RFC 8446 §4.2.8): the groups only.
fn read_key_shares(cursor: &mut Cursor<'_>) -> Option<Vec<u16>> {
    let mut shares = Cursor::new(cursor.vec16()?);
    let mut groups = Vec::new();
    while !shares.is_empty() {
        groups.push(shares.u16()?);
        shares.vec16().filter(|key| !key.is_empty())?;
    }
    Some(groups)
}

#[cfg(test)]
mod tests;
