"""Downloads from a loopback server: cut, wrong, absent, slow, through a proxy."""

import hashlib
import http.server
import random
import re
import threading
import time
import urllib.request
from contextlib import suppress

import pytest
import torch
from conftest import quietly

import depth_map_generator
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


def test_a_script_ends_with_one_line_where_the_host_lacks_the_file(host, collection, tmp_path):
    code, printed = quietly(
        depth_map_generator.main, "--data-dir", collection, "--checkpoint-dir", tmp_path / "c"
    )
    assert code == 2 and "answers 404" in printed and "--depth-model demo" in printed
    assert "Traceback" not in printed
