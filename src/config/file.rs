//! The shapes of the TOML file. The docs of the keys are the descriptions in the JSON schema.

use std::time::Duration;

use ipnet::IpNet;

use super::account::{GroupEntry, UserEntry};
use super::acme_keys::{Acme, Email};
use super::backend_keys::{BackendAddr, BackendTls};
use super::checks::{Health, HealthWord};
use super::decode::{Either, OneOrMany, Tables, Whole, shape};
use super::dns::Unlimited;
use super::http_keys::{Answer, Files, Headers, Http, Redirect, Replace, Rule, StickySplit, Variant};
use super::http_values::{AnswerStatus, PathPrefix, RedirectTo, SplitWord};
use super::made_up::Test;
use super::policy_keys::{Cors, OriginName, RequestRate};
use super::protocols::{ProtocolWord, ServerFirstWord};
use super::tls_keys::{CertificatePair, CertificatePath, CertificatesFrom, Tls};
use super::units::{Bandwidth, ByteSize, Rate};
use super::upstream::{
    BalanceWord, ClientKey, MAX_TIER, MAX_WEIGHT, OnDown, Percent, UpstreamName, ZoneName,
};
use super::values::{
    AbsolutePath, AlpnName, Auto, LimitName, LimitWord, ListenerName, MysqlVersion, Nameserver, Off, PerWord,
    ReloadOn, RouteName, SniWord, VariableName, WordOr,
};
use super::{AdminAddr, DnsFamily, HostHeader, Ja4Pattern, LogFormat, LogTarget, RejectWith, Sandbox};
use crate::net::{ListenAddr, ProxyVersion};
use crate::peek::{Pattern, ServerName};

shape! {
    /// A configuration file of Portcullis.
    struct File {
        /// Addresses to accept on, as in `":443"`; the short form of one `[[listener]]` named `default`.
        listen: OneOrMany<ListenAddr>,
        /// How long a client of the listener `default` may stay silent before its protocol counts as `silent`.
        silent_after: Duration,
        /// The protocol of the listener `default` whose servers speak first; a string is `protocol`.
        server_first: Either<ServerFirstWord, ServerFirst>,
        /// Networks of proxies whose connections to the listener `default` begin with a PROXY header, which is believed.
        proxy_protocol: OneOrMany<IpNet>,
        /// Named groups of addresses to accept on.
        listener: Tables<Listener>,
        /// When the files are read again: `signal` (and on request), or also on `change`.
        reload_on: ReloadOn,
        /// More files to read; patterns are relative to the folder of this file.
        include: OneOrMany<String>,
        /// Data-plane threads; `"auto"` is one a core.
        workers: WordOr<Auto, Whole<1, 1024>>,
        /// Whom to become once the ports are bound, when started as root: a name or number, or `"off"`.
        user: WordOr<Off, UserEntry>,
        /// Its group; by default the user's own.
        group: GroupEntry,
        /// `landlock` to give up all of the file system but the configuration and the logs; by default `off`.
        sandbox: Sandbox,
        /// The largest ClientHello accepted, from 512B to 64KiB.
        max_hello_size: ByteSize,
        /// Memory that unfinished hellos may take in all, from 64KiB; `"auto"` derives it from the cap on connections.
        hello_memory: WordOr<Auto, ByteSize>,
        /// Deadlines and idle limits.
        timeouts: Timeouts,
        /// New connections an address; a string is `per_ip`.
        rate_limit: Either<WordOr<Off, Rate>, RateLimit>,
        /// Concurrent connections; a number is `per_ip`.
        connection_limit: Either<WordOr<Off, Whole<1, { u32::MAX }>>, ConnectionLimit>,
        /// Further limits by source address.
        limit: Tables<Limit>,
        /// Only these networks may connect; the longest prefix of `allow` and `deny` decides.
        allow: OneOrMany<IpNet>,
        /// These networks may not connect.
        deny: OneOrMany<IpNet>,
        /// Files with more of `allow`, a network a line; relative to the folder of this file, read again when they
        /// change.
        allow_files: OneOrMany<String>,
        /// Files with more of `deny`.
        deny_files: OneOrMany<String>,
        /// No limit by source and no ban concerns these networks; `deny` does.
        exempt: OneOrMany<IpNet>,
        /// Bans addresses that are refused by limits, or send malformed hellos, again and again; a number is `after`.
        ban: Either<WordOr<Off, Whole<1, 1_000_000>>, Ban>,
        /// What happens when the hello names a server that no route knows.
        unknown_sni: RejectWith,
        /// What happens when the hello names no server and no route has `sni = "none"`.
        no_sni: RejectWith,
        /// What happens to what is not TLS, when no route takes that protocol.
        unknown_protocol: RejectWith,
        /// How names of backends are resolved.
        dns: Dns,
        /// How often the backends of passthrough routes are asked for their TLS, from 10s; by default `"off"`.
        probe: WordOr<Off, Duration>,
        /// Where metrics and health are served; a string is `bind`.
        admin: Either<WordOr<Off, AdminAddr>, Admin>,
        /// Where the line a connection goes; a string is `to`.
        access_log: Either<LogTarget, AccessLog>,
        /// Certificates for routes with `tls = "files"`: files (PEM) or folders, relative to the folder of this file, or pairs.
        certificates: OneOrMany<Either<CertificatePath, CertificatePair>>,
        /// The authority that certificates of routes with `tls = "acme"` are ordered from; a string is `email`.
        acme: Either<Email, Acme>,
        /// The folder for what this process keeps from one start to the next, such as its own certificates.
        state: AbsolutePath,
        /// The zone that this proxy stands in; backends of the same are preferred.
        zone: ZoneName,
        /// Groups of backends that routes lead to.
        upstream: Tables<Upstream>,
        /// What matches, and what becomes of it.
        route: Tables<Route>,
        /// Made-up connections and what must become of them; run by `check` and before every start.
        test: Tables<Test>,
    }
}

shape! {
    /// A named group of addresses to accept on.
    struct Listener {
        /// The name that routes, logs and metrics use.
        name: ListenerName = required,
        /// Addresses to accept on, as in `":443"` or `"[::1]:443"`.
        bind: OneOrMany<ListenAddr> = required,
        /// How long a client may stay silent before its protocol counts as `silent`.
        silent_after: Duration,
        /// The protocol whose servers speak first that clients speak here; a string is `protocol`.
        server_first: Either<ServerFirstWord, ServerFirst>,
        /// Networks of proxies whose connections begin with a PROXY header, which is believed.
        proxy_protocol: OneOrMany<IpNet>,
    }
}

shape! {
    /// A protocol in which clients wait for the server to speak.
    struct ServerFirst {
        /// `ssh`, `mysql`, `smtp`, `imap`, `pop3`, `sieve` or `ftp`.
        protocol: ServerFirstWord = required,
        /// How long a client may say nothing until it is taken for one of this protocol; at once if left out.
        after: Duration,
        /// The name of the server in greetings before TLS; that of this host if left out.
        name: ServerName,
        /// With `mysql`: the version in the greeting before TLS, which clients go by.
        version: MysqlVersion,
    }
}

shape! {
    /// Deadlines and idle limits.
    struct Timeouts {
        /// From accept to the complete hello; no byte renews it.
        hello: Duration,
        /// One attempt to connect to a backend.
        connect: Duration,
        /// From there to its first byte, until another one is tried; by default as long as `connect`.
        answer: WordOr<Off, Duration>,
        /// From accept until TLS that ends here is agreed on.
        handshake: Duration,
        /// A relayed connection without a byte in either direction.
        idle: Duration,
        /// The same once one direction has ended.
        half_closed: Duration,
        /// From the signal to stop until open connections are closed.
        drain: Duration,
    }
}

shape! {
    /// New connections an address.
    struct RateLimit {
        /// The average for each address (IPv4 /32, IPv6 /64).
        per_ip: Rate = required,
        /// How many may come at once; by default the number in `per_ip`.
        burst: Whole<1, { u32::MAX }>,
    }
}

shape! {
    /// Concurrent connections.
    struct ConnectionLimit {
        /// For each address (IPv4 /32, IPv6 /64).
        per_ip: WordOr<Off, Whole<1, { u32::MAX }>>,
        /// For each address, of those whose hello is not complete.
        before_hello: WordOr<Off, Whole<1, { u32::MAX }>>,
        /// In all; `"auto"` derives it from the limit of open files.
        total: WordOr<Auto, Whole<1, { u32::MAX }>>,
    }
}

shape! {
    /// A limit by source address.
    struct Limit {
        /// The name for logs and metrics.
        name: LimitName = required,
        /// What counts as one source: `"ip"` (IPv4 /32, IPv6 /64), `"network"` (/24, /56), `"site"` (/24, /48),
        /// `"all"`, or lengths of prefixes.
        per: Either<PerWord, Prefixes>,
        /// New connections, on average.
        rate: Rate,
        /// How many may come at once; by default the number in `rate`.
        burst: Whole<1, { u32::MAX }>,
        /// Concurrent connections.
        connections: Whole<1, { u32::MAX }>,
        /// Concurrent connections whose hello is not complete.
        before_hello: Whole<1, { u32::MAX }>,
        /// Relayed bytes, both directions together, as in `"10MiB/s"`.
        bandwidth: Bandwidth,
        /// Listeners that it is for; by default all.
        listener: OneOrMany<ListenerName>,
        /// Routes that it is for; it then acts once the route is known.
        route: OneOrMany<RouteName>,
        /// What becomes of a connection that breaks it: `reset`, `close`, `drop`, `delay` or `tarpit`.
        action: LimitWord,
        /// With `delay`: how long a connection is held at most until it conforms.
        delay_max: Duration,
        /// With `tarpit`: how long a connection is held.
        tarpit_for: Duration,
    }
}

shape! {
    /// Lengths of the prefixes that count as one source.
    struct Prefixes {
        /// Of IPv4 addresses; 32 if left out.
        ipv4: Whole<8, 32>,
        /// Of IPv6 addresses; 64 if left out.
        ipv6: Whole<32, 128>,
    }
}

shape! {
    /// Bans addresses that are refused by limits, or send malformed hellos, again and again.
    struct Ban {
        /// After so many times.
        after: Whole<1, 1_000_000> = required,
        /// Within so much time; `"1m"` if left out.
        within: Duration,
        /// For so long; `"10m"` if left out.
        r#for: Duration,
    }
}

shape! {
    /// How names of backends are resolved.
    struct Dns {
        /// Nameservers, an address with or without a port; by default those of `/etc/resolv.conf`.
        servers: OneOrMany<Nameserver>,
        /// Deadline of one query.
        timeout: Duration,
        /// Which addresses are asked for: `both`, `ipv4` or `ipv6`.
        family: DnsFamily,
        /// Answers are kept at least this long, whatever their TTL.
        min_ttl: Duration,
        /// Answers are kept at most this long, whatever their TTL.
        max_ttl: Duration,
        /// The same of answers that there is nothing.
        negative_ttl: Duration,
        /// How long beyond its time the last answer is used while there is no other; by default `"unlimited"`.
        stale_max: WordOr<Unlimited, Duration>,
    }
}

shape! {
    /// Where metrics and health are served.
    struct Admin {
        /// An address and port, or `unix:/path`.
        bind: AdminAddr = required,
        /// Networks that may ask; required for addresses outside loopback.
        allow: OneOrMany<IpNet>,
        /// Where the token is that `/api` asks for over TCP; outside loopback there is no `/api` without one.
        token: Secret,
    }
}

shape! {
    /// Where a secret is: one of three.
    struct Secret {
        /// A variable of the environment.
        env: VariableName,
        /// A file, by its absolute path; a line feed at its end is no part of the secret.
        file: AbsolutePath,
        /// The name of a credential that systemd loads (`LoadCredential=`).
        credential: VariableName,
    }
}

shape! {
    /// Where access-log lines go, and in which form.
    struct AccessLog {
        /// `stdout`, `stderr`, `off`, or an absolute path.
        to: LogTarget,
        /// `json` or `logfmt`.
        format: LogFormat,
        /// Whether a line tells the client's fingerprint (JA4).
        ja4: bool,
    }
}

shape! {
    /// A group of backends.
    struct Upstream {
        /// The name that routes, logs and metrics use.
        name: UpstreamName = required,
        /// Backends: `host:port`, `unix:/path`, either with `tls://` before it for a backend that speaks TLS, or with `http://`,
        /// `https://`, `h2c://` or `h2://` for one that speaks HTTP, or tables of an `address` and what there is to say of it.
        to: OneOrMany<Either<BackendAddr, Backend>> = required,
        /// How a backend is chosen: `round_robin`, `least_connections`, `p2c`, `random`, `first` or `hash`.
        balance: Either<BalanceWord, Balance>,
        /// How long a client stays with its backend after its last connection.
        sticky: Either<WordOr<Off, Duration>, Sticky>,
        /// In how much time a backend that comes, or comes back, gets up to its share.
        slow_start: WordOr<Off, Duration>,
        /// The most connections that a backend has at once.
        max_connections: WordOr<Off, Whole<1, { u32::MAX }>>,
        /// Where connections wait while all backends have as many as they may; a number is `size`.
        queue: Either<WordOr<Off, Whole<1, 65_536>>, Queue>,
        /// When backends that fail are passed over; a number is `failures`.
        eject: Either<WordOr<Off, Whole<1, 1000>>, Eject>,
        /// What becomes of the connections of a backend that goes down: `leave` or `close`.
        on_down: OnDown,
        /// Attempts to connect beyond the first, as a part of all connections.
        retry_budget: WordOr<Off, Percent>,
        /// How backends are checked: `tcp`, `tls`, `http`, `https`, `postgres`, `mysql`, `redis`, `ssh`, `smtp`, or `off`.
        health: Either<HealthWord, Health>,
        /// How TLS is spoken with backends that are written with `tls://`, `https://` or `h2://`.
        backend_tls: BackendTls,
    }
}

shape! {
    /// A backend.
    struct Backend {
        /// Where it is: `host:port`, or `unix:/path`; with `tls://` before it for one that speaks TLS, or a scheme of HTTP.
        address: BackendAddr = required,
        /// Its share beside the others; with 0 it gets no new connections.
        weight: Whole<0, { MAX_WEIGHT }>,
        /// Backends of a higher tier get connections only while none of a lower one is available.
        tier: Whole<1, { MAX_TIER }>,
        /// The zone that it stands in.
        zone: ZoneName,
        /// The most connections that it has at once.
        max_connections: WordOr<Off, Whole<1, { u32::MAX }>>,
    }
}

shape! {
    /// How a backend is chosen.
    struct Balance {
        /// `round_robin`, `least_connections`, `p2c`, `random`, `first` or `hash`.
        by: BalanceWord = required,
        /// With `hash`: by what clients are told apart, `source` or `sni`.
        on: ClientKey,
        /// With `hash`: the most that a backend may have of its fair share, from `"101%"`.
        load: Percent,
    }
}

shape! {
    /// Clients that stay with their backend.
    struct Sticky {
        /// By what they are told apart: `source` or `sni`.
        on: ClientKey,
        /// For how long after the last connection.
        r#for: Duration = required,
    }
}

shape! {
    /// Where connections wait for a backend with room.
    struct Queue {
        /// How many may wait.
        size: Whole<1, 65_536> = required,
        /// How long one may; `"5s"` if left out.
        timeout: Duration,
    }
}

shape! {
    /// When a backend is passed over for what connections to it came to.
    struct Eject {
        /// After so many failures in a row; 5 if left out.
        failures: Whole<1, 1000>,
        /// For how long the first time; `"10s"` if left out. Longer each time after.
        r#for: Duration,
        /// The most that may be passed over, as a part of the group; `"50%"` if left out.
        at_most: Percent,
        /// A connect that takes longer is a failure, too; `"1s"` if left out.
        slow: WordOr<Off, Duration>,
    }
}

shape! {
    /// What matches, and what becomes of it.
    struct Route {
        /// A name for logs and metrics; made from what the route matches if left out.
        name: RouteName,
        /// Server names: a name, `*.suffix`, `~regex`, `*` for any, `none` for a hello without one.
        sni: OneOrMany<SniWord>,
        /// ALPN protocol names, of which the client must offer one.
        alpn: OneOrMany<AlpnName>,
        /// Fingerprints of clients (JA4), of which this one must have one: whole, or a beginning and `*`.
        ja4: OneOrMany<Ja4Pattern>,
        /// Networks, of which one must contain the client's address.
        from: OneOrMany<IpNet>,
        /// Listeners, of which the connection must have come in on one.
        listener: OneOrMany<ListenerName>,
        /// What the first bytes are, or `any` (all but `silent`); with `sni`, what is spoken inside TLS.
        protocol: OneOrMany<ProtocolWord>,
        /// Regular expressions, of which one must match the first bytes of what is no known protocol.
        begins: OneOrMany<Pattern>,
        /// With `sni` and `protocol`: whether TLS begins within that protocol, or is there from the first byte; either if left out.
        starttls: bool,
        /// With `protocol = "postgres"` in clear: the databases that clients may ask for.
        database: OneOrMany<String>,
        /// With `protocol = "postgres"` in clear: the users that clients may be.
        user: OneOrMany<String>,
        /// TLS that ends here, with certificates from `files`, ordered by `acme`, `self-signed` ones, or what a table says; without it streams are passed
        /// through as they are.
        tls: Either<CertificatesFrom, Tls>,
        /// Backends: `host:port`, `unix:/path`, either with `tls://` before it for a backend that speaks TLS, or with `http://`,
        /// `https://`, `h2c://` or `h2://` for one that speaks HTTP, or tables of an `address` and what there is to say of it.
        to: OneOrMany<Either<BackendAddr, Backend>>,
        /// The `[[upstream]]` that it leads to, in place of `to`.
        upstream: UpstreamName,
        /// How a backend is chosen: `round_robin`, `least_connections`, `p2c`, `random`, `first` or `hash`.
        balance: Either<BalanceWord, Balance>,
        /// How long a client stays with its backend after its last connection.
        sticky: Either<WordOr<Off, Duration>, Sticky>,
        /// In how much time a backend that comes, or comes back, gets up to its share.
        slow_start: WordOr<Off, Duration>,
        /// The most connections that a backend has at once.
        max_connections: WordOr<Off, Whole<1, { u32::MAX }>>,
        /// Where connections wait while all backends have as many as they may; a number is `size`.
        queue: Either<WordOr<Off, Whole<1, 65_536>>, Queue>,
        /// When backends that fail are passed over; a number is `failures`.
        eject: Either<WordOr<Off, Whole<1, 1000>>, Eject>,
        /// What becomes of the connections of a backend that goes down: `leave` or `close`.
        on_down: OnDown,
        /// Attempts to connect beyond the first, as a part of all connections.
        retry_budget: WordOr<Off, Percent>,
        /// How backends are checked: `tcp`, `tls`, `http`, `https`, `postgres`, `mysql`, `redis`, `ssh`, `smtp`, or `off`.
        health: Either<HealthWord, Health>,
        /// How TLS is spoken with backends that are written with `tls://`, `https://` or `h2://`.
        backend_tls: BackendTls,
        /// With `to = "sni:…"`: networks that servers may be in although they are not the public's.
        internal: OneOrMany<IpNet>,
        /// Refuse the connection, and how.
        reject: RejectWith,
        /// Send clients of HTTP to `https`, if a route takes the name that they ask for, or to a URL; a string is `to`.
        redirect: Either<RedirectTo, Redirect>,
        /// What becomes of some of the requests of HTTP; what no rule takes is for the route itself.
        rule: Tables<Rule>,
        /// Several backends, or groups of them, that requests are split over, in place of `to`.
        split: OneOrMany<Variant>,
        /// By what a client stays with its variant: `source`, or a cookie or header field.
        sticky_split: Either<SplitWord, StickySplit>,
        /// Files that answer requests; a string is `root`.
        files: Either<CertificatePath, Files>,
        /// An answer that is always the same; a number is `status`.
        answer: Either<AnswerStatus, Answer>,
        /// The host that backends are asked for: `keep` (by default) for the client's, `backend` for their own, or a text with
        /// variables.
        host_header: HostHeader,
        /// What is taken off the beginning of the path before a backend sees it.
        strip: PathPrefix,
        /// What the path becomes where a regular expression matches.
        replace: Replace,
        /// What is put before the path.
        add: PathPrefix,
        /// Whether bodies of requests are taken whole before a backend is asked.
        buffer_requests: bool,
        /// What changes in the header fields of requests.
        request_headers: Headers,
        /// What changes in the header fields of answers.
        response_headers: Headers,
        /// How many requests a client may send; a string is `rate`.
        request_rate: Either<Rate, RequestRate>,
        /// Pages of which other sites may use what is here (CORS); a string is the one of `origins`.
        cors: Either<OriginName, Cors>,
        /// Whether answers tell browsers to be careful: HSTS within TLS, no guessing of types, no frames of other sites, short
        /// referrers.
        security_headers: bool,
        /// Networks of proxies whose word on the client is believed (`Forwarded`, `X-Forwarded-For`).
        trusted_proxies: OneOrMany<IpNet>,
        /// What clients of HTTP may take of time and memory.
        http: Http,
        /// The version of the PROXY header that backends are sent first: `v1` or `v2`.
        proxy_protocol: WordOr<Off, ProxyVersion>,
        /// Connect to backends from the client's own address.
        transparent: bool,
        /// Timeouts of this route; those left out are the global ones.
        timeouts: RouteTimeouts,
    }
}

shape! {
    /// Timeouts of a route.
    struct RouteTimeouts {
        /// One attempt to connect to a backend.
        connect: Duration,
        /// From there to its first byte, until another one is tried; by default as long as `connect`.
        answer: WordOr<Off, Duration>,
        /// A relayed connection without a byte in either direction.
        idle: Duration,
        /// The same once one direction has ended.
        half_closed: Duration,
        /// With HTTP: from the whole request to the head of the backend's answer; `"60s"` if left out.
        response: Duration,
    }
}
