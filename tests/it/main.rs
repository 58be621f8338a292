//! Integration tests: the built binary between real clients and real servers, seen from outside.
//!
//! Programs beside the binary are Debian packages (nginx-light, libnginx-mod-stream, haproxy, bind9, prometheus, curl,
//! openssl, python3, strace, systemd, util-linux, iproute2, nftables, ethtool, postgresql, mariadb-server, redis-server,
//! openssh-server, postfix, pebble, testssl.sh, chromium, nghttp2-client, nodejs, python3-aiohttp, python3-grpcio,
//! python3-websockets); a missing one fails the test that needs it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test fails by panicking at the place, and its figures belong in the output"
)]

mod support;

mod acme;
mod admin_api;
mod architecture;
mod backend_tls;
mod balance;
mod census;
mod cli;
mod config_samples;
mod dns;
mod dns_faults;
mod dns_services;
mod failover;
mod failover_families;
mod failover_queue;
mod failover_servers;
mod failover_stalled;
mod failover_storms;
mod faults_exhaustion;
mod faults_hello;
mod faults_limits;
mod faults_logs;
mod faults_loops;
mod faults_memory;
mod faults_mutation;
mod faults_names;
mod faults_slow;
mod faults_tls;
mod faults_tls_ends;
mod forward;
mod guard;
mod guard_bandwidth;
mod guard_bans;
mod guard_limits;
mod guard_lists;
mod health;
mod health_effects;
mod hello_splits;
mod http;
mod http_faults;
mod http_faults_backends;
mod http_faults_heads;
mod http_faults_limits;
mod http_headers;
mod http_real;
mod http_rules;
mod http_two;
mod ja4;
mod lifecycle;
mod mysql_by_name;
mod network;
mod observe;
mod one_port;
mod passthrough;
mod pipe_memory;
mod postgres_by_name;
mod probe;
mod protocols;
mod proxy_headers_out;
mod proxy_protocol;
mod relay;
mod relay_ends;
mod reload;
mod routes;
mod servers;
mod service;
mod soak;
mod starttls;
mod syscalls;
mod terminate;
mod terminate_audit;
mod terminate_certificates;
mod terminate_clients;
mod terminate_sessions;
mod transparent;
mod upgrade;
mod upstream;
mod upstreams_api;
