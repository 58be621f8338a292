//! ClientHellos: real ones of rustls, and built ones for what no real client sends.

use std::sync::Arc;

use rustls::pki_types::ServerName;

/// Record header: content type, version, length (RFC 8446 §5.1).
pub(crate) const RECORD_HEADER: usize = 5;

/// The key exchange that a hello leads with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// X25519: about 250 bytes.
    Classic,
    /// X25519MLKEM768: about 1,500 bytes.
    PostQuantum,
}

/// A real hello in one record.
pub(crate) fn real(sni: Option<&str>, alpn: &[&str], keys: Keys) -> Vec<u8> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    let post_quantum = keys == Keys::PostQuantum;
    provider.kx_groups.retain(|group| post_quantum || group.name() != rustls::NamedGroup::X25519MLKEM768);
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = sni.is_some();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(sni.unwrap_or("unused.test").to_owned()).unwrap();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

/// A classic hello for `name`.
pub(crate) fn to(name: &str) -> Vec<u8> {
    real(Some(name), &[], Keys::Classic)
}

/// Bytes behind their length in 16 bits.
pub(crate) fn vec16(body: &[u8]) -> Vec<u8> {
    [&u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

pub(crate) fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().as_slice(), &vec16(body)].concat()
}

/// An entry of a server name list.
pub(crate) fn host(name: &[u8]) -> Vec<u8> {
    [&[0], vec16(name).as_slice()].concat()
}

/// The server_name extension with one host name.
pub(crate) fn sni(name: &[u8]) -> Vec<u8> {
    extension(0, &vec16(&host(name)))
}

/// The ALPN extension.
pub(crate) fn alpn(names: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|name| [&[name.len() as u8], *name].concat()).collect();
    extension(16, &vec16(&list))
}

/// A ClientHello message with these extensions, handshake header included.
pub(crate) fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    message_of(0x0303, &[0x13, 0x01, 0xc0, 0x2b], &[0], Some(&extensions.concat()))
}

/// A ClientHello message in every part that the table of odd hellos varies.
pub(crate) fn message_of(
    version: u16,
    ciphers: &[u8],
    compressions: &[u8],
    extensions: Option<&[u8]>,
) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend(vec16(ciphers));
    body.push(compressions.len() as u8);
    body.extend(compressions);
    body.extend(extensions.map(vec16).unwrap_or_default());
    handshake(1, &body)
}

pub(crate) fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

/// A handshake record.
pub(crate) fn record(fragment: &[u8]) -> Vec<u8> {
    [&[22, 3, 1], vec16(fragment).as_slice()].concat()
}

/// A built hello with these extensions, in one record.
pub(crate) fn built(extensions: &[Vec<u8>]) -> Vec<u8> {
    record(&message(extensions))
}

/// The message of a hello in one record, in records of `size` bytes.
pub(crate) fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    hello[RECORD_HEADER..].chunks(size).flat_map(record).collect()
}

/// The message of a hello in one record, in two records cut at `at`.
pub(crate) fn in_two_records(hello: &[u8], at: usize) -> Vec<u8> {
    let (first, second) = hello[RECORD_HEADER..].split_at(at);
    [record(first), record(second)].concat()
}

/// A hello for `name` of exactly `size` bytes on the wire, in records as large as they may be.
pub(crate) fn padded(name: &[u8], size: usize) -> Vec<u8> {
    const MAX_FRAGMENT: usize = 16384;
    let records = size.div_ceil(MAX_FRAGMENT + RECORD_HEADER);
    let message_len = size - records * RECORD_HEADER;
    let mut extensions = vec![sni(name)];
    let mut missing = message_len - message(&extensions).len();
    // Extensions of private use, each at most 16,000 bytes with its header of 4.
    let mut kind = 0xff10;
    while missing > 0 {
        let take = if missing > 16000 { missing.min(16000) - 8 } else { missing };
        extensions.push(extension(kind, &vec![0; take - 4]));
        missing -= take;
        kind += 1;
    }
    let hello: Vec<u8> = message(&extensions).chunks(MAX_FRAGMENT).flat_map(record).collect();
    assert_eq!(hello.len(), size);
    hello
}
