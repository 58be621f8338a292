//! ClientHellos of TLS 1.3 (RFC 8446, section 4.1.2), as clients send them today and did before.

/// Which key exchange a hello offers; its length follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// X25519 alone.
    Classic,
    /// X25519MLKEM768 before X25519, which no longer fits one segment of a usual network.
    PostQuantum,
}

const SERVER_NAME: u16 = 0;
const SUPPORTED_GROUPS: u16 = 10;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ALPN: u16 = 16;
const PADDING: u16 = 21;
const SUPPORTED_VERSIONS: u16 = 43;
const PSK_MODES: u16 = 45;
const KEY_SHARE: u16 = 51;

const X25519: u16 = 0x001d;
const SECP256R1: u16 = 0x0017;
const X25519_MLKEM768: u16 = 0x11ec;
/// Bytes of an X25519 public key (RFC 7748).
const X25519_LENGTH: usize = 32;
/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203, table 3).
const MLKEM768_LENGTH: usize = 1184;

/// Bytes of the record that each kind is padded to (RFC 7685). Curl with OpenSSL sends about the one, Chrome
/// about the other.
const CLASSIC_LENGTH: usize = 234;
const POST_QUANTUM_LENGTH: usize = 1780;

impl Kind {
    fn length(self) -> usize {
        match self {
            Self::Classic => CLASSIC_LENGTH,
            Self::PostQuantum => POST_QUANTUM_LENGTH,
        }
    }

    /// The groups on offer, with the length of each one's public key.
    fn groups(self) -> &'static [(u16, usize)] {
        match self {
            Self::Classic => &[(X25519, X25519_LENGTH)],
            Self::PostQuantum => {
                &[(X25519_MLKEM768, MLKEM768_LENGTH + X25519_LENGTH), (X25519, X25519_LENGTH)]
            }
        }
    }
}

/// A record with a ClientHello for `name`, which is short enough that padding remains.
pub(crate) fn client_hello(kind: Kind, name: &str) -> Vec<u8> {
    let bare = record(kind, name, None);
    // The padding's own header takes four bytes.
    match kind.length().checked_sub(bare.len() + 4) {
        Some(padding) => record(kind, name, Some(padding)),
        None => bare,
    }
}

fn record(kind: Kind, name: &str, padding: Option<usize>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend(noise(32));
    sized(&mut body, 1, &noise(32));
    sized(&mut body, 2, &words(&[0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f]));
    sized(&mut body, 1, &[0]);
    sized(&mut body, 2, &extensions(kind, name, padding));
    let mut message = vec![1];
    sized(&mut message, 3, &body);
    // The record's version is 3.1 for the sake of old middleboxes (RFC 8446, section 5.1).
    let mut record = vec![22, 3, 1];
    sized(&mut record, 2, &message);
    record
}

fn extensions(kind: Kind, name: &str, padding: Option<usize>) -> Vec<u8> {
    let mut server_name = vec![0];
    sized(&mut server_name, 2, name.as_bytes());
    let (mut groups, mut shares) = (Vec::new(), Vec::new());
    for (group, length) in kind.groups() {
        groups.push(*group);
        shares.extend(group.to_be_bytes());
        sized(&mut shares, 2, &noise(*length));
    }
    groups.push(SECP256R1);
    let mut protocols = Vec::new();
    sized(&mut protocols, 1, b"h2");
    sized(&mut protocols, 1, b"http/1.1");

    let mut all = Vec::new();
    extension(&mut all, SERVER_NAME, 2, &server_name);
    extension(&mut all, SUPPORTED_GROUPS, 2, &words(&groups));
    extension(&mut all, SIGNATURE_ALGORITHMS, 2, &words(&[0x0403, 0x0804, 0x0401, 0x0503, 0x0805]));
    extension(&mut all, ALPN, 2, &protocols);
    extension(&mut all, SUPPORTED_VERSIONS, 1, &words(&[0x0304, 0x0303]));
    extension(&mut all, PSK_MODES, 1, &[1]);
    extension(&mut all, KEY_SHARE, 2, &shares);
    if let Some(length) = padding {
        extension(&mut all, PADDING, 0, &vec![0; length]);
    }
    all
}

/// Appends an extension that holds one list, whose own length takes `width` bytes.
fn extension(out: &mut Vec<u8>, number: u16, width: usize, list: &[u8]) {
    let mut body = Vec::new();
    sized(&mut body, width, list);
    out.extend(number.to_be_bytes());
    sized(out, 2, &body);
}

/// Appends `bytes` behind their length in `width` bytes.
fn sized(out: &mut Vec<u8>, width: usize, bytes: &[u8]) {
    let length = bytes.len().to_be_bytes();
    out.extend(length.get(length.len() - width..).unwrap_or_default());
    out.extend(bytes);
}

fn words(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

/// Bytes that look random and are the same in every run (xorshift64): a proxy that does not end TLS cannot
/// tell them from a key.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use tls_parser::{TlsExtension, TlsMessage, TlsMessageHandshake};

    use super::*;

    /// The extensions of a hello that must be one whole record.
    fn extensions_of(hello: &[u8]) -> Vec<TlsExtension<'_>> {
        let (rest, record) = tls_parser::parse_tls_plaintext(hello).unwrap();
        assert!(rest.is_empty(), "{} bytes after the record", rest.len());
        let [TlsMessage::Handshake(TlsMessageHandshake::ClientHello(contents))] = record.msg.as_slice()
        else {
            panic!("not one ClientHello: {:?}", record.msg);
        };
        let (rest, extensions) =
            tls_parser::parse_tls_client_hello_extensions(contents.ext.unwrap()).unwrap();
        assert!(rest.is_empty(), "{} bytes after the extensions", rest.len());
        extensions
    }

    #[test]
    fn hellos_have_the_length_the_name_and_the_shares() {
        for (kind, length, shares) in
            [(Kind::Classic, 234, 2 + 4 + 32), (Kind::PostQuantum, 1780, 2 + 4 + 1216 + 4 + 32)]
        {
            let hello = client_hello(kind, "a.test");
            assert_eq!(hello.len(), length, "{kind:?}");
            let extensions = extensions_of(&hello);
            let named = |extension: &TlsExtension<'_>| matches!(extension, TlsExtension::SNI(names) if names.iter().any(|name| name.1 == b"a.test"));
            assert!(extensions.iter().any(named), "{kind:?}: no name in {extensions:?}");
            let share = |extension: &TlsExtension<'_>| matches!(extension, TlsExtension::KeyShare(list) if list.len() == shares);
            assert!(extensions.iter().any(share), "{kind:?}: no such share in {extensions:?}");
        }
    }

    #[test]
    fn a_long_name_leaves_no_padding_and_still_parses() {
        let name = format!("{}.test", "a".repeat(60));
        assert!(extensions_of(&client_hello(Kind::Classic, &name)).len() >= 7);
    }
}
