"""Downloads from a loopback server: cut, wrong, absent, slow, through a proxy."""

import hashlib
import http.server
import random
import re
import select
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.request
from contextlib import suppress

import pytest
import torch
from conftest import quietly, training_arguments

import depth_map_generator
import gps_orientation_trainer
from geophoto import backbones, depth_weights, downloads

BODY = random.Random(7).randbytes(3 * downloads.CHUNK + 12345)
SHA256 = hashlib.sha256(BODY).hexdigest()
URL = "https://weights.example/some/file.pth"


class Host(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` by path; `server.faults` lists what goes wrong, call by call."""

    def do_GET(self):
        server = self.server
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        server.asked.append((self.path, int(begin[1]) if begin else 0))
        fault = server.faults.pop(0) if server.faults else ""
        body = server.files.get(self.path)
        if body is None or fault.isdigit():
            return self.send_error(int(fault or 404))
        if fault == "slow":
            threading.Event().wait(1.5)
        first = int(begin[1]) if begin and fault != "no resume" else 0
        if first >= len(body):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        last = first + (len(body) - first) // 2 if fault == "cut" else len(body)
        with suppress(OSError):  # nobody waits any more
            self.wfile.write(body[first:last])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def host(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.files, server.asked, server.faults = {"/weights.example/some/file.pth": BODY}, [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.root = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv(downloads.MIRROR, server.root)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first call
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_a_file_comes_whole_and_the_bar_counts_it(host, tmp_path):
    told = []

    def bar(items, **about):
        told.append(about)
        for item in items:
            told.append(len(item))
            yield item

    downloads.fetch(URL, tmp_path / "new" / "file.pth", SHA256, bar)
    assert (tmp_path / "new" / "file.pth").read_bytes() == BODY
    assert told[0] == {"desc": "file.pth", "total": 4, "unit": "MiB"} and sum(told[1:]) == len(BODY)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.pth"]


@pytest.mark.parametrize("faults", [["cut"], ["503"], ["cut", "cut"], ["cut", "no resume"], ["429"],
                                    ["cut", "503"]])  # fmt: skip
def test_a_cut_download_goes_on_where_it_was(host, tmp_path, no_pause, faults):
    host.faults = list(faults)
    downloads.fetch(URL, tmp_path / "file.pth", SHA256)
    assert (tmp_path / "file.pth").read_bytes() == BODY
    assert len(host.asked) == len(faults) + (faults[-1] != "no resume")
    assert (host.asked[-1][1] > 0) == ("cut" in faults)


def test_another_run_goes_on_with_what_a_killed_one_left(host, tmp_path, no_pause):
    host.faults = ["cut"] * 3
    with pytest.raises(OSError, match=r"cut after [\d,]+ of"):
        downloads.fetch(URL, tmp_path / "file.pth", SHA256)
    assert not (tmp_path / "file.pth").exists()
    downloads.fetch(URL, tmp_path / "file.pth", SHA256)
    assert (tmp_path / "file.pth").read_bytes() == BODY
    assert host.asked[-1][1] > len(BODY) * 0.8


@pytest.mark.parametrize(
    ("what", "said", "calls"),
    [("sha256", "has the sha256", 1), ("404", "answers 404", 1), ("slow", "timed out", 3),
     ("500", "answers 500", 3), ("longer", "has the sha256", 1)],
)  # fmt: skip
def test_what_cannot_be_had_says_why_and_leaves_no_file(
    host, tmp_path, no_pause, what, said, calls
):
    wanted = "0" * 64 if what == "sha256" else SHA256
    if what == "longer":  # a partial of something else
        (tmp_path / f"file.pth.{SHA256[:8]}.partial").write_bytes(BODY + b"more")
    elif what != "sha256":
        host.faults = [what] * 3
    begun = time.monotonic()
    with pytest.raises(OSError, match=said):
        downloads.fetch(URL, tmp_path / "file.pth", wanted)
    assert len(host.asked) == calls and time.monotonic() - begun < 10
    assert [path for path in tmp_path.iterdir() if path.suffix == ".pth"] == []


def test_a_proxy_of_the_environment_is_asked(host, tmp_path, monkeypatch):
    monkeypatch.setenv(downloads.MIRROR, "http://nowhere.invalid")
    monkeypatch.setenv("http_proxy", host.root)
    monkeypatch.setenv("no_proxy", "")
    host.files = {"http://nowhere.invalid/weights.example/some/file.pth": BODY}
    downloads.fetch(URL, tmp_path / "file.pth", SHA256)
    assert (tmp_path / "file.pth").read_bytes() == BODY


class Proxy(socketserver.StreamRequestHandler):
    """CONNECT alone (RFC 9110, 9.3.6): passes bytes on to `server.port`, whoever was asked for."""

    def handle(self):
        self.server.asked.append(self.rfile.readline().decode().split(" HTTP")[0])
        while self.rfile.readline().strip():
            pass
        with socket.create_connection(("127.0.0.1", self.server.port)) as host:
            self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            ends = {self.connection: host, host: self.connection}
            with suppress(OSError):
                while True:
                    for end in select.select(list(ends), [], [], 10)[0]:
                        if not (block := end.recv(1 << 16)):
                            return
                        ends[end].sendall(block)


@pytest.fixture
def secure_proxy(host, tmp_path, monkeypatch):
    """The host behind TLS with a certificate of its own, reached through a proxy alone."""
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out",
            certificate, "-days", "2", "-subj", "/CN=weights.example",
            "-addext", "subjectAltName=DNS:weights.example"]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.files, server.asked, server.faults = {"/some/file.pth": BODY}, [], []
    proxy = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads, proxy.asked, proxy.port = True, [], server.server_port
    for one in (server, proxy):
        threading.Thread(target=one.serve_forever, daemon=True).start()
    monkeypatch.delenv(downloads.MIRROR)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(downloads, "TIMEOUT_S", 10)
    yield server, proxy
    for one in (server, proxy):
        one.shutdown()
        one.server_close()


def test_https_goes_through_a_proxy_and_resumes(secure_proxy, tmp_path, no_pause):
    server, proxy = secure_proxy
    server.faults = ["cut"]
    downloads.fetch(URL, tmp_path / "file.pth", SHA256)
    assert (tmp_path / "file.pth").read_bytes() == BODY
    assert proxy.asked == ["CONNECT weights.example:443"] * 2
    assert [path for path, _ in server.asked] == ["/some/file.pth"] * 2 and server.asked[1][1] > 0
    with pytest.raises(OSError, match="has the sha256"):
        downloads.fetch(URL, tmp_path / "other.pth", "0" * 64)
    assert not (tmp_path / "other.pth").exists()


def test_a_certificate_of_somebody_else_is_refused(secure_proxy, tmp_path, no_pause, monkeypatch):
    server, _ = secure_proxy
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        downloads.fetch(URL, tmp_path / "file.pth", SHA256)
    assert server.asked == [] and not (tmp_path / "file.pth").exists()


def test_two_runs_at_once_download_once(host, tmp_path):
    runs = [threading.Thread(target=downloads.fetch, args=(URL, tmp_path / "file.pth", SHA256))
            for _ in range(4)]  # fmt: skip
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert (tmp_path / "file.pth").read_bytes() == BODY and len(host.asked) == 1


def test_the_defaults_are_asked_for_by_their_names(host, tmp_path, monkeypatch):
    """Both defaults through the doors that the scripts use, with files made by a rule."""
    file = tmp_path / "rule.pth"
    torch.save({"conv1.weight": torch.ones(2)}, file)
    body, sha256 = file.read_bytes(), hashlib.sha256(file.read_bytes()).hexdigest()
    host.files = {
        "/" + backbones.RESNET50_URL.removeprefix("https://"): body,
        "/" + depth_weights.weights_url("vits").removeprefix("https://"): body,
    }
    monkeypatch.setattr(backbones, "RESNET50_SHA256", sha256)
    monkeypatch.setitem(depth_weights.KNOWN_SHA256, "vits", sha256)
    got = backbones.downloaded_weights("resnet50", tmp_path / "c")
    assert torch.equal(got["conv1.weight"], torch.ones(2))
    assert depth_weights.find_weights("vits", tmp_path / "c").read_bytes() == body
    assert len(host.asked) == 2


FAULTS = {
    "404": "answers 404",
    "500": "answers 500",
    "slow": "timed out",
    "sha256": "has the sha256",
    "refused": "Connection refused",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("script", ["depth", "training"])
def test_a_script_ends_with_one_line_where_no_weights_can_be_had(
    host, photo_set, tmp_path, no_pause, monkeypatch, script, fault
):
    urls = depth_weights.weights_url("vits"), backbones.RESNET50_URL
    host.files = {"/" + url.removeprefix("https://"): BODY for url in urls}
    host.faults = [fault] * 3 if fault in ("404", "500", "slow") else []
    if fault == "refused":
        monkeypatch.setenv(downloads.MIRROR, "http://127.0.0.1:1")
    folders = photo_set.data, tmp_path / "c"
    main, arguments, remedy = {
        "depth": (depth_map_generator.main, ["--data-dir", folders[0], "--checkpoint-dir",
                                             folders[1]], "--depth-model demo"),
        "training": (gps_orientation_trainer.main,
                     training_arguments(*folders, "--backbone", "resnet50", "--pretrained"),
                     "--backbone tf_efficientnet_lite0"),
    }[script]  # fmt: skip
    code, printed = quietly(main, *arguments)
    last = printed.splitlines()[-1]
    assert code == 2 and "Traceback" not in printed, printed
    assert FAULTS[fault] in last and remedy in last and "weights" in last, printed
    assert len(host.asked) == {"404": 1, "sha256": 1, "refused": 0}.get(fault, 3)
    assert not [file for file in folders[1].rglob("*") if file.suffix == ".pth"]
