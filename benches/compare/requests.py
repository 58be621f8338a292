#!/usr/bin/env python3
"""Requests of HTTP in TLS, beside nginx, HAProxy and whatever else is installed: what the proxy's own processes use a request.

    benches/compare/requests.py target/release/portcullis [--runs 3] [--only portcullis,nginx,haproxy] [--requests 40000]

Needs the Debian packages nginx, haproxy, openssl and nghttp2-client (h2load). Envoy, Caddy and sozu take part where
`envoy`, `caddy` and `sozu` are on the path. Each proxy has one worker on CPU 0 and passes requests to the same nginx in
clear, by connections that are kept; clients are on CPU 1: 32 connections, with HTTP/2 four streams each. Runs are
interleaved; figures are medians. Everything is on loopback, bounded, and ends by itself.
"""
import argparse, json, os, re, shutil, signal, statistics, subprocess, sys, tempfile, time

from beside import HOST, NAME, Beside, cpu, memory, port, wait

SIZES = {"1k": 1000, "100k": 100_000}


class Bench(Beside):
    def __init__(self, folder, binary):
        super().__init__(folder)
        self.binary = binary
        for name, size in SIZES.items():
            with open(self.path(f"www/{name}"), "wb") as f:
                f.write(b"x" * size)
        self.behind, self.back = self.backend("keepalive_requests 1000000000; open_file_cache max=10;")

    def portcullis(self, at):
        self.write("p.toml", f"""listen = "{HOST}:{at}"
workers = 1
admin = "off"
access_log = "off"
connection_limit = "off"
[[route]]
sni = ["{NAME}", "none"]
tls = {{ certificates = {{ certificate = "cert.pem", key = "key.pem" }} }}
to = "http://{HOST}:{self.back}"
""")
        return [self.binary, "run", "--config", self.path("p.toml")]

    def nginx(self, at):
        self.write("n.conf", f"""daemon off; worker_processes 1; pid {self.path('n.pid')}; error_log stderr crit;
events {{ worker_connections 20000; multi_accept on; }}
http {{ access_log off; {self.temp_paths()} proxy_max_temp_file_size 0; keepalive_requests 1000000000;
upstream b {{ server {HOST}:{self.back}; keepalive 256; keepalive_requests 1000000000; }}
server {{ listen {HOST}:{at} ssl http2 reuseport; ssl_certificate {self.path('cert.pem')}; ssl_certificate_key {self.path('key.pem')};
ssl_protocols TLSv1.2 TLSv1.3; http2_max_requests 1000000000; location / {{ proxy_pass http://b; proxy_http_version 1.1;
proxy_set_header Connection ""; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
proxy_set_header X-Forwarded-Proto $scheme; }} }} }}""")
        return ["nginx", "-p", self.folder, "-c", self.path("n.conf")]

    def haproxy(self, at):
        self.write("h.cfg", f"""global
 nbthread 1
 ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
 mode http
 option forwardfor
 http-reuse always
 timeout connect 5s
 timeout client 600s
 timeout server 600s
frontend f
 bind {HOST}:{at} ssl crt {self.path('both.pem')} alpn h2,http/1.1
 default_backend b
backend b
 server s {HOST}:{self.back}
""")
        return ["haproxy", "-db", "-f", self.path("h.cfg")]

    def envoy(self, at):
        tls = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
               "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [
                   {"certificate_chain": {"filename": self.path("cert.pem")}, "private_key": {"filename": self.path("key.pem")}}]}}
        manager = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                   "stat_prefix": "x", "codec_type": "AUTO", "use_remote_address": True, "generate_request_id": False,
                   "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                       "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router", "dynamic_stats": False}}],
                   "route_config": {"virtual_hosts": [{"name": "x", "domains": ["*"], "routes": [
                       {"match": {"prefix": "/"}, "route": {"cluster": "b", "timeout": "0s"}}]}]}}
        address = lambda number: {"socket_address": {"address": HOST, "port_value": number}}
        self.write("e.json", json.dumps({"static_resources": {
            "listeners": [{"address": address(at), "filter_chains": [
                {"transport_socket": {"name": "tls", "typed_config": tls},
                 "filters": [{"name": "http", "typed_config": manager}]}]}],
            "clusters": [{"name": "b", "type": "STATIC", "circuit_breakers": {"thresholds": [{"max_requests": 100000}]},
                          "load_assignment": {"cluster_name": "b", "endpoints": [
                              {"lb_endpoints": [{"endpoint": {"address": address(self.back)}}]}]}}]}}))
        return ["envoy", "-c", self.path("e.json"), "--concurrency", "1", "-l", "error"]

    def caddy(self, at):
        self.write("Caddyfile", f"""{{
 admin off
 auto_https off
 storage file_system {self.path('caddy')}
}}
https://{NAME}:{at} {{
 bind {HOST}
 tls {self.path('cert.pem')} {self.path('key.pem')}
 reverse_proxy {HOST}:{self.back} {{
  transport http {{
   keepalive_idle_conns_per_host 256
  }}
 }}
}}
""")
        return ["env", "GOMAXPROCS=1", "caddy", "run", "--adapter", "caddyfile", "--config", self.path("Caddyfile")]

    def proxy(self, which):
        """A fresh one; gives the process and its port."""
        at = port()
        process = self.start(["taskset", "-c", "0", *getattr(self, which)(at)])
        wait((HOST, at))
        time.sleep(0.3)
        return process, at

    def load(self, at, phase, requests):
        """So many requests; gives how many were answered, and the time of each that 99 of 100 kept below, in ms."""
        version, size = phase.split("-")
        words = ["taskset", "-c", "1", "h2load", "-n", str(requests), "-c", "32", "--connect-to", f"{HOST}:{at}", *(
            ["--h1"] if version == "h1" else ["-m", "4"]), f"https://{NAME}:{at}/{size}"]
        told = subprocess.run(words, capture_output=True, text=True, timeout=300).stdout
        done = re.search(r"(\d+) succeeded", told)
        return int(done.group(1)) if done else 0

    def measure(self, which, phase, requests):
        """CPU microseconds a request."""
        process, at = self.proxy(which)
        try:
            self.load(at, phase, 200)
            before = cpu(process.pid)
            done = self.load(at, phase, requests)
            if done < requests * 0.99:
                sys.exit(f"{which} answered {done} of {requests} requests of {phase}")
            return (cpu(process.pid) - before) * 1e6 / done
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="portcullis,nginx,haproxy,envoy,caddy")
    parser.add_argument("--phases", default="h1-1k,h1-100k,h2-1k,h2-100k")
    parser.add_argument("--requests", type=int, default=40_000)
    args = parser.parse_args()
    there = [which for which in args.only.split(",") if which == "portcullis" or shutil.which(which)]
    figures = {}
    with tempfile.TemporaryDirectory(prefix="http-bench-", dir="/dev/shm") as folder:
        bench = Bench(folder, os.path.abspath(args.binary))
        try:
            for _ in range(args.runs):
                for phase in args.phases.split(","):
                    requests = args.requests // (10 if phase.endswith("100k") else 1)
                    for which in there:
                        value = bench.measure(which, phase, requests)
                        figures.setdefault((phase, which), []).append(value)
                        print(json.dumps({"phase": phase, "proxy": which, "value": round(value, 2)}), flush=True)
        finally:
            os.killpg(bench.behind.pid, signal.SIGKILL)
    for (phase, which), values in sorted(figures.items()):
        print(f"{phase:8} {which:11} {statistics.median(values):10.1f} us  ({min(values):.1f} to {max(values):.1f})")


main()
