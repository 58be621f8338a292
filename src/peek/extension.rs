//! The extensions of a ClientHello and of a ServerHello that are read, by their numbers (IANA, "TLS ExtensionType Values").

pub(super) const SERVER_NAME: u16 = 0;
pub(super) const SUPPORTED_GROUPS: u16 = 10;
pub(super) const SIGNATURE_ALGORITHMS: u16 = 13;
pub(super) const ALPN: u16 = 16;
/// RFC 5077 §3.2.
pub(super) const SESSION_TICKET: u16 = 35;
/// RFC 8446 §4.2.11.
pub(super) const PRE_SHARED_KEY: u16 = 41;
/// RFC 8446 §4.2.10.
pub(super) const EARLY_DATA: u16 = 42;
pub(super) const SUPPORTED_VERSIONS: u16 = 43;
pub(super) const KEY_SHARE: u16 = 51;
/// RFC 9849 §5.
pub(super) const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
