//! Versions of TLS and ways to agree on a key, by their numbers (IANA, "TLS Parameters").

/// A version of TLS, older ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// SSL 3.0, a draft, or what nobody knows.
    Other,
    /// RFC 2246.
    Tls10,
    /// RFC 4346.
    Tls11,
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// What a key is agreed on in (RFC 8446 §4.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// X25519MLKEM768.
    X25519Mlkem768,
    /// SecP256r1MLKEM768.
    Secp256r1Mlkem768,
    /// SecP384r1MLKEM1024.
    Secp384r1Mlkem1024,
    /// ML-KEM alone, of any size.
    Mlkem,
    /// Another that quantum computers are not known to break: with SM2, or the Kyber of drafts.
    OtherPostQuantum,
    /// x25519.
    X25519,
    /// secp256r1, or P-256.
    Secp256r1,
    /// secp384r1, or P-384.
    Secp384r1,
    /// secp521r1, or P-521.
    Secp521r1,
    /// x448.
    X448,
    /// Numbers of a finite field (RFC 7919), or before that of the server's choice.
    Ffdhe,
    /// Any other.
    Other,
}

/// How a client and a server come by a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyExchange {
    /// They agree on one.
    Group(Group),
    /// The one that they have goes on, or the client chooses one for the key of the certificate.
    None,
}

/// What a client and a server have agreed on; `None` where nobody can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// The version.
    pub version: Option<TlsVersion>,
    /// How they came by a key.
    pub key_exchange: Option<KeyExchange>,
    /// Whether they go on with an earlier session, or a key that both have.
    pub resumed: Option<bool>,
}

/// Values that clients send to keep servers used to unknown ones (RFC 8701 §2): chosen anew each time.
pub(super) fn is_grease(value: u16) -> bool {
    let [high, low] = value.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

impl TlsVersion {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Other, Self::Tls10, Self::Tls11, Self::Tls12, Self::Tls13];

    /// The version of this number.
    pub const fn of(number: u16) -> Self {
        match number {
            0x0301 => Self::Tls10,
            0x0302 => Self::Tls11,
            0x0303 => Self::Tls12,
            0x0304 => Self::Tls13,
            _ => Self::Other,
        }
    }

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Tls10 => "1.0",
            Self::Tls11 => "1.1",
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        }
    }
}

impl Group {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 12] = [
        Self::X25519Mlkem768,
        Self::Secp256r1Mlkem768,
        Self::Secp384r1Mlkem1024,
        Self::Mlkem,
        Self::OtherPostQuantum,
        Self::X25519,
        Self::Secp256r1,
        Self::Secp384r1,
        Self::Secp521r1,
        Self::X448,
        Self::Ffdhe,
        Self::Other,
    ];

    /// The group of this number.
    pub const fn of(number: u16) -> Self {
        match number {
            23 => Self::Secp256r1,
            24 => Self::Secp384r1,
            25 => Self::Secp521r1,
            29 => Self::X25519,
            30 => Self::X448,
            // The range that RFC 7919 §2 keeps for finite fields.
            0x0100..=0x01ff => Self::Ffdhe,
            0x0200..=0x0202 => Self::Mlkem,
            0x11eb => Self::Secp256r1Mlkem768,
            0x11ec => Self::X25519Mlkem768,
            0x11ed => Self::Secp384r1Mlkem1024,
            // curveSM2MLKEM768, and the Kyber of drafts with X25519 and secp256r1.
            0x11ee | 0x6399 | 0x639a => Self::OtherPostQuantum,
            _ => Self::Other,
        }
    }

    /// The groups of a client's `numbers`, in its order, without those that are there to keep servers used to unknown ones.
    pub fn offered(numbers: &[u16]) -> impl Iterator<Item = Self> {
        numbers.iter().filter(|number| !is_grease(**number)).map(|number| Self::of(*number))
    }

    /// Whether quantum computers are not known to break it.
    pub const fn is_post_quantum(self) -> bool {
        match self {
            Self::X25519Mlkem768
            | Self::Secp256r1Mlkem768
            | Self::Secp384r1Mlkem1024
            | Self::Mlkem
            | Self::OtherPostQuantum => true,
            Self::X25519
            | Self::Secp256r1
            | Self::Secp384r1
            | Self::Secp521r1
            | Self::X448
            | Self::Ffdhe
            | Self::Other => false,
        }
    }

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X25519Mlkem768 => "x25519mlkem768",
            Self::Secp256r1Mlkem768 => "secp256r1mlkem768",
            Self::Secp384r1Mlkem1024 => "secp384r1mlkem1024",
            Self::Mlkem => "mlkem",
            Self::OtherPostQuantum => "other_post_quantum",
            Self::X25519 => "x25519",
            Self::Secp256r1 => "secp256r1",
            Self::Secp384r1 => "secp384r1",
            Self::Secp521r1 => "secp521r1",
            Self::X448 => "x448",
            Self::Ffdhe => "ffdhe",
            Self::Other => "other",
        }
    }
}

impl KeyExchange {
    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Group(group) => group.as_str(),
            Self::None => "none",
        }
    }
}

impl Handshake {
    /// The words for version, key exchange and resumption in metrics.
    pub fn words(self) -> [&'static str; 3] {
        const UNKNOWN: &str = "unknown";
        [
            self.version.map_or(UNKNOWN, TlsVersion::as_str),
            self.key_exchange.map_or(UNKNOWN, KeyExchange::as_str),
            self.resumed.map_or(UNKNOWN, |resumed| if resumed { "yes" } else { "no" }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stands_at_its_discriminant() {
        assert!(TlsVersion::ALL.iter().enumerate().all(|(at, version)| *version as usize == at));
        assert!(Group::ALL.iter().enumerate().all(|(at, group)| *group as usize == at));
    }

    /// The numbers of the crate that shakes hands.
    #[test]
    fn groups_have_the_numbers_of_rustls() {
        use rustls::NamedGroup;
        let table = [
            (NamedGroup::X25519MLKEM768, Group::X25519Mlkem768),
            (NamedGroup::secp256r1MLKEM768, Group::Secp256r1Mlkem768),
            (NamedGroup::MLKEM768, Group::Mlkem),
            (NamedGroup::X25519, Group::X25519),
            (NamedGroup::secp256r1, Group::Secp256r1),
            (NamedGroup::secp384r1, Group::Secp384r1),
            (NamedGroup::secp521r1, Group::Secp521r1),
            (NamedGroup::X448, Group::X448),
            (NamedGroup::FFDHE8192, Group::Ffdhe),
            (NamedGroup::Unknown(0x0a0a), Group::Other),
        ];
        for (number, group) in table {
            assert_eq!(Group::of(number.into()), group, "{number:?}");
        }
        let post_quantum = Group::ALL.map(Group::is_post_quantum);
        assert_eq!(post_quantum.iter().filter(|is| **is).count(), 5);
    }
}
