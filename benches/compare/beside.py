"""What benches that run several proxies side by side share: processes, their processor time and their memory."""
import os, socket, subprocess, sys, time

HOST = "127.0.0.1"
TICK = os.sysconf("SC_CLK_TCK")
NAME = "a.test"


def port():
    with socket.socket() as s:
        s.bind((HOST, 0))
        return s.getsockname()[1]


def tree(pid):
    """The process and its descendants."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as f:
                todo += map(int, f.read().split())
    return found


def cpu(pid):
    """User and system time of the process tree, in seconds."""
    total = 0.0
    for one in tree(pid):
        for task in os.listdir(f"/proc/{one}/task"):
            with open(f"/proc/{one}/task/{task}/schedstat") as f:
                total += int(f.read().split()[0]) / 1e9
    return total


def memory(pid):
    """Anonymous memory of the process tree, in bytes."""
    total = 0
    for one in tree(pid):
        with open(f"/proc/{one}/smaps_rollup") as f:
            total += sum(int(l.split()[1]) * 1024 for l in f if l.startswith(("Pss_Anon", "Pss_Shmem")))
    return total


def wait(address):
    for _ in range(200):
        try:
            socket.create_connection(address, 1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nothing listens on {address}")


class Beside:
    """A folder with a certificate, and programs that are started from it."""

    def __init__(self, folder):
        self.folder = folder
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        subprocess.run(["openssl", "req", "-x509", *key, "-nodes", "-days", "30", "-subj", f"/CN={NAME}", "-addext",
                        f"subjectAltName=DNS:{NAME}", "-keyout", self.path("key.pem"), "-out", self.path("cert.pem")],
                       check=True, stderr=subprocess.DEVNULL)
        with open(self.path("both.pem"), "w") as f:
            f.write(open(self.path("cert.pem")).read() + open(self.path("key.pem")).read())
        os.mkdir(self.path("www"))

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w") as f:
            f.write(text)

    def start(self, words):
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=open(self.path("log"), "a"), start_new_session=True)

    def temp_paths(self):
        """Folders of nginx of its own, so that it needs no rights."""
        kinds = {"client_body_temp_path": "b1", "proxy_temp_path": "b2", "fastcgi_temp_path": "b3", "uwsgi_temp_path": "b4",
                 "scgi_temp_path": "b5"}
        return " ".join(f"{key} {self.path(folder)};" for key, folder in kinds.items())

    def backend(self, more=""):
        """nginx that serves `www` in clear."""
        at = port()
        self.write("back.conf", f"""daemon off; master_process off; pid {self.path('back.pid')}; error_log stderr crit; events {{ worker_connections 8000; }}
http {{ access_log off; sendfile on; {self.temp_paths()}
keepalive_timeout 600; {more} server {{ listen {HOST}:{at}; root {self.path('www')}; }} }}""")
        process = self.start(["taskset", "-c", "1", "nginx", "-p", self.folder, "-c", self.path("back.conf")])
        wait((HOST, at))
        return process, at
