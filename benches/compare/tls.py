#!/usr/bin/env python3
"""TLS that ends here, beside nginx and HAProxy: what the proxy's own processes use per handshake, per GB and per idle connection.

    benches/compare/tls.py target/release/portcullis [--runs 5] [--only portcullis,nginx,haproxy]

Needs the Debian packages nginx (with libnginx-mod-stream), haproxy and openssl. Each proxy has one worker on CPU 0 and passes what
comes out of TLS to the same nginx in clear; clients are on CPU 1. Runs are interleaved; figures are medians. Everything is
on loopback, bounded, and ends by itself.
"""
import argparse, json, os, signal, socket, ssl, statistics, subprocess, tempfile, time

from beside import HOST, NAME, Beside, cpu, memory, port, wait


class Bench(Beside):
    def __init__(self, folder, binary):
        super().__init__(folder)
        self.binary = binary
        with open(self.path("www/big"), "wb") as f:
            f.truncate(1 << 30)
        with open(self.path("www/small"), "wb") as f:
            f.write(b"x" * 1000)
        self.behind, self.back = self.backend()

    def proxy(self, which, phase):
        """A fresh one; gives the process and its port."""
        at = port()
        # What nginx needs least of: processor for streams, or memory for those that are idle.
        buffer = "64k" if phase == "bulk" else "16k"
        if which == "portcullis":
            self.write("p.toml", f"""listen = "{HOST}:{at}"
workers = 1
admin = "off"
access_log = "off"
connection_limit = "off"
[[route]]
sni = ["{NAME}", "none"]
tls = {{ certificates = {{ certificate = "cert.pem", key = "key.pem" }} }}
to = "{HOST}:{self.back}"
""")
            words = [self.binary, "run", "--config", self.path("p.toml")]
        elif which == "nginx":
            self.write("n.conf", f"""load_module /usr/lib/nginx/modules/ngx_stream_module.so; daemon off; worker_processes 1; pid {self.path('n.pid')};
error_log stderr crit; events {{ worker_connections 20000; multi_accept on; }}
stream {{ ssl_session_cache off; ssl_session_tickets on; server {{ listen {HOST}:{at} ssl reuseport; ssl_certificate {self.path('cert.pem')};
ssl_certificate_key {self.path('key.pem')}; ssl_protocols TLSv1.2 TLSv1.3; proxy_buffer_size {buffer}; tcp_nodelay on; proxy_pass {HOST}:{self.back}; }} }}""")
            words = ["nginx", "-p", self.folder, "-c", self.path("n.conf")]
        else:
            self.write("h.cfg", f"""global
 nbthread 1
 ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
 mode tcp
 timeout connect 5s
 timeout client 600s
 timeout server 600s
frontend f
 bind {HOST}:{at} ssl crt {self.path('both.pem')}
 default_backend b
backend b
 server s {HOST}:{self.back}
""")
            words = ["haproxy", "-db", "-f", self.path("h.cfg")]
        process = self.start(["taskset", "-c", "0", *words])
        wait((HOST, at))
        time.sleep(0.3)
        return process, at

    def handshakes(self, process, at, resumed, seconds=6):
        """CPU microseconds a handshake: several clients, one after the other each."""
        words = ["taskset", "-c", "1", "openssl", "s_time", "-connect", f"{HOST}:{at}", "-time", str(seconds),
                 *(["-reuse", "-tls1_2"] if resumed else ["-new"])]
        before = cpu(process.pid)
        clients = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(8)]
        count = 0
        for client in clients:
            for line in client.communicate()[0].splitlines():
                if "connections in" in line and "real seconds" in line:
                    count += int(line.split()[0])
        return (cpu(process.pid) - before) * 1e6 / max(count, 1), count

    def bulk(self, process, at):
        """CPU milliseconds a GB."""
        before = cpu(process.pid)
        words = ["taskset", "-c", "1", "curl", "-sko", "/dev/null", "--resolve", f"{NAME}:{at}:{HOST}", "--max-time", "60",
                 f"https://{NAME}:{at}/big", "-w", "%{size_download}"]
        size = int(subprocess.run(words, capture_output=True, text=True).stdout or 0)
        return (cpu(process.pid) - before) * 1e3 / max(size / 1e9, 1e-9)

    def idle(self, process, at, count=2000):
        """Bytes an idle connection."""
        before = memory(process.pid)
        context = ssl.create_default_context(cafile=self.path("cert.pem"))
        held = []
        for _ in range(count):
            stream = context.wrap_socket(socket.create_connection((HOST, at)), server_hostname=NAME)
            stream.sendall(b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n")
            while b"xxx" not in stream.recv(65536):
                pass
            held.append(stream)
        time.sleep(2)
        result = (memory(process.pid) - before) / count
        for stream in held:
            stream.close()
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="portcullis,nginx,haproxy")
    parser.add_argument("--phases", default="full,resumed,bulk,idle")
    args = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory(prefix="tls-bench-", dir="/dev/shm") as folder:
        bench = Bench(folder, os.path.abspath(args.binary))
        try:
            for _ in range(args.runs):
                for which in args.only.split(","):
                    for phase in args.phases.split(","):
                        process, at = bench.proxy(which, phase)
                        try:
                            value = {
                                "full": lambda: bench.handshakes(process, at, False)[0],
                                "resumed": lambda: bench.handshakes(process, at, True)[0],
                                "bulk": lambda: bench.bulk(process, at),
                                "idle": lambda: bench.idle(process, at),
                            }[phase]()
                            figures.setdefault((phase, which), []).append(value)
                            print(json.dumps({"phase": phase, "proxy": which, "value": round(value, 2)}), flush=True)
                        finally:
                            os.killpg(process.pid, signal.SIGKILL)
                            process.wait()
        finally:
            os.killpg(bench.behind.pid, signal.SIGKILL)
    for (phase, which), values in sorted(figures.items()):
        print(f"{phase:8} {which:11} {statistics.median(values):10.1f}  ({min(values):.1f} to {max(values):.1f})")


main()
