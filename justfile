# Commands for people; `.ci/run` does not need this file's runner.

# All that CI checks.
ci:
    .ci/run

# The tests, with the servers that they need.
test *args:
    tests/run {{args}}

# Each fuzz target for a while.
fuzz seconds="300":
    fuzz/smoke {{seconds}}

# A mix of everything against one process, for so many minutes: nothing may be left behind.
soak minutes="30":
    PORTCULLIS_SOAK_MINUTES={{minutes}} tests/run --test it soak:: -- --nocapture

# The benches of single functions.
bench:
    cargo bench

# Portcullis beside HAProxy, nginx, Envoy and sozu on this machine (benches/compare.md).
compare *args:
    benches/compare/run {{args}}

# Where TLS ends: Portcullis beside nginx and HAProxy.
compare-tls *args:
    cargo build --release --locked
    benches/compare/tls.py target/release/portcullis {{args}}

# Requests of HTTP beside nginx and HAProxy: processor time a request.
compare-requests *args:
    cargo build --release --locked
    benches/compare/requests.py target/release/portcullis {{args}}
