//! JA4, the fingerprint of a TLS client (FoxIO, "JA4: TLS Client Fingerprinting", technical_details/JA4.md):
//! what a hello offers, whatever its names, keys and shuffled order, so that it tells programs apart and not
//! connections.

use std::fmt::{self, Write};

use aws_lc_rs::digest::{SHA256, digest};

use super::extension;
use super::parameters::is_grease;

/// Length of a fingerprint in characters: 10 of counts, and two hashes of 12.
const LEN: usize = 36;
/// Characters of each hash.
const HASH: usize = 12;
/// What stands for the hash of an empty list.
const NOTHING: &str = "000000000000";

/// A JA4 fingerprint of a client that speaks TLS over TCP, such as `t13d1516h2_8daaf6152771_e5627efa2ab1`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Ja4([u8; LEN]);

/// Why text is not a fingerprint, or not the beginning of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ja4Error {
    /// It begins as those of QUIC and DTLS do.
    #[error("it is one of QUIC or DTLS; those of TLS over TCP begin with `t`")]
    Transport,
    /// It ends too early.
    #[error("it has {0} characters of {LEN}")]
    Short(usize),
    /// It goes on after its end.
    #[error("it has more than {LEN} characters")]
    Long,
    /// A character that cannot stand where it does; counted from 1.
    #[error("its character {0} cannot stand there")]
    Character(usize),
}

/// What a hello offers, in the client's order.
#[derive(Debug)]
pub(super) struct Offer<'a> {
    /// Of supported_versions, or else the one in the hello itself.
    pub(super) versions: &'a [u16],
    /// Whether there is a server name.
    pub(super) named: bool,
    /// The ALPN name offered first.
    pub(super) alpn: Option<&'a [u8]>,
    pub(super) ciphers: Vec<u16>,
    /// The kinds of all extensions.
    pub(super) extensions: &'a [u16],
    pub(super) signatures: Vec<u16>,
}

impl Ja4 {
    /// The fingerprint of a client that offers this.
    pub(super) fn new(offer: &Offer<'_>) -> Self {
        let mut text = String::with_capacity(LEN);
        let sni = if offer.named { 'd' } else { 'i' };
        let (ciphers, extensions) = (count(&offer.ciphers), count(offer.extensions));
        // Writing to a string cannot fail, here and below.
        let _ = write!(text, "t{}{sni}{ciphers:02}{extensions:02}", version(offer.versions));
        text.extend(alpn_ends(offer.alpn));
        // The name and the protocols vary with where the same program goes to; the first part tells of them.
        let mut extensions = sorted(offer.extensions);
        extensions.retain(|kind| ![extension::SERVER_NAME, extension::ALPN].contains(kind));
        let mut signatures = offer.signatures.clone();
        signatures.retain(|one| !is_grease(*one));
        let _ = write!(text, "_{}_{}", hash(&sorted(&offer.ciphers), &[]), hash(&extensions, &signatures));
        let mut bytes = [b'0'; LEN];
        bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        Self(bytes)
    }

    /// Reads a whole fingerprint.
    ///
    /// # Errors
    /// When it is none that a client of TLS over TCP can have.
    pub fn parse(text: &str) -> Result<Self, Ja4Error> {
        Self::check_prefix(text)?;
        text.as_bytes().try_into().map(Self).map_err(|_| Ja4Error::Short(text.len()))
    }

    /// Whether a fingerprint can begin like this.
    ///
    /// # Errors
    /// When none can.
    pub fn check_prefix(text: &str) -> Result<(), Ja4Error> {
        for (place, byte) in text.bytes().enumerate() {
            let good = match place {
                0 if matches!(byte, b'q' | b'd') => return Err(Ja4Error::Transport),
                0 => byte == b't',
                // `13`, `s3`, or `00` for what is unknown.
                1 => matches!(byte, b'0' | b'1' | b's' | b'd'),
                3 => matches!(byte, b'd' | b'i'),
                2 | 4..=7 => byte.is_ascii_digit(),
                8 | 9 => byte.is_ascii_alphanumeric(),
                10 | 23 => byte == b'_',
                11..LEN => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
                _ => return Err(Ja4Error::Long),
            };
            if !good {
                return Err(Ja4Error::Character(place + 1));
            }
        }
        Ok(())
    }

    /// The fingerprint.
    pub fn as_str(&self) -> &str {
        // ASCII by construction.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Ja4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Ja4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ja4({self})")
    }
}

/// The highest version that is offered.
fn version(offered: &[u16]) -> &'static str {
    match offered.iter().copied().filter(|version| !is_grease(*version)).max() {
        Some(0x0304) => "13",
        Some(0x0303) => "12",
        Some(0x0302) => "11",
        Some(0x0301) => "10",
        Some(0x0300) => "s3",
        Some(0x0002) => "s2",
        Some(0xfeff) => "d1",
        Some(0xfefd) => "d2",
        Some(0xfefc) => "d3",
        _ => "00",
    }
}

/// How many there are; two digits must do.
fn count(values: &[u16]) -> usize {
    values.iter().filter(|value| !is_grease(**value)).count().min(99)
}

/// The first and the last character of the name offered first; of its hexadecimal form, when one of them is
/// neither a letter nor a digit.
fn alpn_ends(name: Option<&[u8]>) -> [char; 2] {
    let (Some(first), Some(last)) = (name.and_then(<[u8]>::first), name.and_then(<[u8]>::last)) else {
        return ['0', '0'];
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [char::from(*first), char::from(*last)];
    }
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    [digit(first >> 4), digit(last & 0x0f)]
}

/// Without GREASE, in order.
fn sorted(values: &[u16]) -> Vec<u16> {
    let mut values: Vec<u16> = values.iter().copied().filter(|value| !is_grease(*value)).collect();
    values.sort_unstable();
    values
}

/// The beginning of the SHA-256 of both lists in hexadecimal, with an underscore between them if there are two.
fn hash(list: &[u16], more: &[u16]) -> String {
    if list.is_empty() {
        return NOTHING.to_owned();
    }
    let join = |list: &[u16]| list.iter().map(|one| format!("{one:04x}")).collect::<Vec<_>>().join(",");
    let text = if more.is_empty() { join(list) } else { format!("{}_{}", join(list), join(more)) };
    let hash = digest(&SHA256, text.as_bytes());
    hash.as_ref().iter().take(HASH / 2).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
