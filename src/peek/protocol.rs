//! The protocols that a connection may turn out to be.

use std::fmt;

/// What a connection turned out to be from its first bytes, or is by what its listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A TLS ClientHello.
    Tls,
    /// An HTTP/1 request in clear.
    Http,
    /// The preface of HTTP/2 in clear, by prior knowledge (RFC 9113 §3.3, §3.4).
    H2c,
    /// An SSH identification string (RFC 4253 §4.2).
    Ssh,
    /// A message that begins a session of PostgreSQL (its manual, "Message Formats").
    Postgres,
    /// MySQL or MariaDB, whose servers speak first.
    Mysql,
    /// SMTP and submission (RFC 5321).
    Smtp,
    /// IMAP (RFC 9051).
    Imap,
    /// POP3 (RFC 1939).
    Pop3,
    /// ManageSieve (RFC 5804).
    Sieve,
    /// FTP (RFC 959).
    Ftp,
    /// LDAP (RFC 4511).
    Ldap,
    /// XMPP (RFC 6120).
    Xmpp,
    /// MQTT.
    Mqtt,
    /// AMQP, 0-9-1 and 1.0.
    Amqp,
    /// Redis (RESP).
    Redis,
    /// DNS over TCP (RFC 1035 §4.2.2).
    Dns,
    /// OpenVPN over TCP.
    Openvpn,
    /// RDP (X.224 over TPKT).
    Rdp,
    /// SOCKS 4 and 5 (RFC 1928).
    Socks,
    /// Bytes of some other protocol.
    Unknown,
    /// No byte at all within the listener's `silent_after`.
    Silent,
}

impl Protocol {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 22] = [
        Self::Tls,
        Self::Http,
        Self::H2c,
        Self::Ssh,
        Self::Postgres,
        Self::Mysql,
        Self::Smtp,
        Self::Imap,
        Self::Pop3,
        Self::Sieve,
        Self::Ftp,
        Self::Ldap,
        Self::Xmpp,
        Self::Mqtt,
        Self::Amqp,
        Self::Redis,
        Self::Dns,
        Self::Openvpn,
        Self::Rdp,
        Self::Socks,
        Self::Unknown,
        Self::Silent,
    ];

    /// The word for it in configuration, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http => "http",
            Self::H2c => "h2c",
            Self::Ssh => "ssh",
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
            Self::Smtp => "smtp",
            Self::Imap => "imap",
            Self::Pop3 => "pop3",
            Self::Sieve => "sieve",
            Self::Ftp => "ftp",
            Self::Ldap => "ldap",
            Self::Xmpp => "xmpp",
            Self::Mqtt => "mqtt",
            Self::Amqp => "amqp",
            Self::Redis => "redis",
            Self::Dns => "dns",
            Self::Openvpn => "openvpn",
            Self::Rdp => "rdp",
            Self::Socks => "socks",
            Self::Unknown => "unknown",
            Self::Silent => "silent",
        }
    }

    /// The protocol that this word stands for.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.as_str() == word)
    }

    /// Whether its servers speak first, so that a client of it may say nothing before.
    pub const fn is_server_first(self) -> bool {
        match self {
            Self::Ssh | Self::Mysql | Self::Smtp | Self::Imap | Self::Pop3 | Self::Sieve | Self::Ftp => true,
            Self::Tls
            | Self::Http
            | Self::H2c
            | Self::Postgres
            | Self::Ldap
            | Self::Xmpp
            | Self::Mqtt
            | Self::Amqp
            | Self::Redis
            | Self::Dns
            | Self::Openvpn
            | Self::Rdp
            | Self::Socks
            | Self::Unknown
            | Self::Silent => false,
        }
    }

    /// Whether it may be spoken inside TLS that is there from the first byte.
    pub const fn is_spoken_in_tls(self) -> bool {
        // The greeting of its servers, before all else, says whether they speak TLS.
        !matches!(self, Self::Mysql)
    }

    /// Its names in ALPN (IANA, "TLS Application-Layer Protocol Negotiation Protocol IDs"; and those in use that are not
    /// registered).
    pub const fn alpn_names(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http => &[b"h2", b"http/1.1", b"http/1.0", b"http/0.9"],
            Self::Postgres => &[b"postgresql"],
            Self::Smtp => &[b"smtp", b"lmtp"],
            Self::Imap => &[b"imap"],
            Self::Pop3 => &[b"pop3"],
            Self::Sieve => &[b"managesieve"],
            Self::Ftp => &[b"ftp"],
            Self::Ldap => &[b"ldap"],
            Self::Xmpp => &[b"xmpp-client", b"xmpp-server"],
            Self::Mqtt => &[b"mqtt", b"x-amzn-mqtt-ca"],
            Self::Amqp => &[b"amqp"],
            Self::Redis => &[b"redis"],
            Self::Dns => &[b"dot"],
            Self::Mysql => &[b"mysql"],
            Self::Tls
            | Self::H2c
            | Self::Ssh
            | Self::Openvpn
            | Self::Rdp
            | Self::Socks
            | Self::Unknown
            | Self::Silent => &[],
        }
    }

    /// Whether TLS can be begun within it, which then goes on inside.
    pub const fn has_starttls(self) -> bool {
        match self {
            Self::Postgres
            | Self::Mysql
            | Self::Smtp
            | Self::Imap
            | Self::Pop3
            | Self::Sieve
            | Self::Ftp
            | Self::Ldap
            | Self::Xmpp => true,
            Self::Tls
            | Self::Http
            | Self::H2c
            | Self::Ssh
            | Self::Mqtt
            | Self::Amqp
            | Self::Redis
            | Self::Dns
            | Self::Openvpn
            | Self::Rdp
            | Self::Socks
            | Self::Unknown
            | Self::Silent => false,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_word_of_its_own_and_stands_at_its_discriminant() {
        for (index, protocol) in Protocol::ALL.into_iter().enumerate() {
            assert_eq!(protocol as usize, index, "{protocol}");
            assert_eq!(Protocol::parse(protocol.as_str()), Some(protocol));
        }
        assert_eq!(Protocol::parse("gopher"), None);
    }
}
