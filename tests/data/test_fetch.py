"""Every way a download can go wrong, against a real server on this machine."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from capsrepro.data.fetch import fetch
from capsrepro.data.sources import Source
from capsrepro.errors import CapsreproError

CONTENT = bytes(range(256)) * 1024
DEAD = "http://127.0.0.1:9/toy/file.gz"  # the discard port: nothing listens
HTML = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers the n-th request with the n-th of `answers`, and the last one ever after."""

    daemon_threads = True

    def __init__(self, *answers: Answer) -> None:
        self.answers = answers
        self.requests: list[str] = []
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        answers = self.server.answers
        answers[min(len(self.server.requests), len(answers)) - 1](self)

    def log_message(self, *_: object) -> None:
        pass


def sends(body: bytes, status: int = 200, length: int | None = None, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hangs_after(body: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        sends(body, length=len(CONTENT))(handler)
        handler.server.over.wait(20)

    return answer


def resets(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


GOOD = sends(CONTENT)


@pytest.fixture(autouse=True)
def short_pauses_and_no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("capsrepro.data.fetch.RETRY_PAUSES_S", (0.01, 0.01))


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers = []

    def start(*answers: Answer) -> Server:
        server = Server(*answers)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.over.set()
        server.shutdown()
        server.server_close()


def toy(*mirrors: Server | str, content: bytes = CONTENT) -> Source:
    addresses = [m if isinstance(m, str) else f"{m.base}/toy/file.gz" for m in mirrors]
    sha256 = hashlib.sha256(content).hexdigest()
    return Source("toy", "file.gz", tuple(addresses), sha256, len(content), "CC0", "nobody")


def left_in(root: Path) -> list[str]:
    return sorted(p.name for p in (root / "toy").iterdir())


def test_good_download_is_kept_and_not_repeated(serve, tmp_path):
    server = serve(GOOD)
    path = fetch(toy(server), tmp_path)
    assert path == tmp_path / "toy" / "file.gz"
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o644
    assert fetch(toy(server), tmp_path) == path
    assert len(server.requests) == 1
    assert left_in(tmp_path) == ["file.gz"]


@pytest.mark.fault
def test_wrong_file_in_place_is_fetched_again(serve, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "file.gz").write_bytes(b"rubbish")
    assert fetch(toy(serve(GOOD)), tmp_path).read_bytes() == CONTENT


FAULTS = {
    "missing": (sends(b"gone", 404), "HTTP 404 Not Found"),
    "truncated": (sends(CONTENT[:1000], length=len(CONTENT)), "the connection broke"),
    "reset": (resets, "the connection broke"),
    "short": (sends(CONTENT[:-1]), "sent 262,143 bytes instead of 262,144 with SHA-256 "),
    "long": (sends(CONTENT + b"x"), "sends more than 262,144 bytes"),
    "corrupted": (
        sends(b"x" + CONTENT[1:]),
        "with SHA-256 " + hashlib.sha256(b"x" + CONTENT[1:]).hexdigest(),
    ),
    "html": (sends(HTML), "sent an HTML page in place of the file"),
    "unavailable": (sends(b"", 503), "HTTP 503 Service Unavailable"),
    "hanging": (hangs_after(b""), "nothing came within 0.3 s"),
    "stalling": (hangs_after(CONTENT[:1000]), "nothing came within 0.3 s"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fault
def test_fault_is_named_and_leaves_nothing(fault, serve, tmp_path):
    answer, reason = FAULTS[fault]
    server = serve(answer)
    with pytest.raises(CapsreproError) as caught:
        fetch(toy(server), tmp_path, timeout_s=0.3)
    assert reason in str(caught.value)
    assert left_in(tmp_path) == []
    repeated = fault in ("truncated", "reset", "unavailable")
    assert len(server.requests) == (3 if repeated else 1)


@pytest.mark.parametrize("fault", ["missing", "corrupted", "html", "hanging", "long"])
@pytest.mark.fault
def test_next_mirror_serves_after_a_fault(fault, serve, tmp_path):
    source = toy(serve(FAULTS[fault][0]), serve(GOOD))
    assert fetch(source, tmp_path, timeout_s=0.3).read_bytes() == CONTENT


@pytest.mark.fault
def test_503_twice_then_good(serve, tmp_path):
    server = serve(sends(b"", 503), sends(b"", 503), GOOD)
    assert fetch(toy(server), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 3


@pytest.mark.fault
def test_server_that_calls_the_file_gzip_encoded(serve, tmp_path):
    """Apache's `AddEncoding x-gzip .gz`: the bytes must arrive as they are."""
    server = serve(sends(CONTENT, Content_Encoding="x-gzip"))
    assert fetch(toy(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.fault
def test_message_when_all_mirrors_fail(serve, tmp_path):
    server = serve(sends(b"", 404))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "file.gz").write_bytes(b"rubbish")
    source = toy(server, DEAD)
    with pytest.raises(CapsreproError) as caught:
        fetch(source, tmp_path, mirror=str(tmp_path / "nowhere"))
    address = f"{server.base}/toy/file.gz"
    assert str(caught.value) == (
        f"cannot get toy/file.gz with SHA-256 {source.sha256} ("
        f"the file there now has SHA-256 {hashlib.sha256(b'rubbish').hexdigest()}; "
        f"{tmp_path}/nowhere/toy/file.gz: no such file; "
        f"{address}: HTTP 404 Not Found; {DEAD}: no connection): "
        f"put the file by hand at {tmp_path}/toy/file.gz, or set CAPSREPRO_MIRROR to a folder or "
        "URL that has toy/file.gz, then run the same command again."
    )


@pytest.mark.fault
def test_offline_with_the_file_there(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "file.gz").write_bytes(CONTENT)
    assert fetch(toy(DEAD), tmp_path).read_bytes() == CONTENT


@pytest.mark.fault
def test_offline_without_the_file(tmp_path):
    with pytest.raises(CapsreproError, match=r"no connection.*put the file by hand at"):
        fetch(toy(DEAD), tmp_path)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("form", ["absolute", "relative", "file URL"])
def test_mirror_as_a_folder(form, tmp_path, monkeypatch):
    mirror = tmp_path / "a mirror"
    (mirror / "toy").mkdir(parents=True)
    (mirror / "toy" / "file.gz").write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    spelled = {"absolute": str(mirror), "relative": "a mirror", "file URL": mirror.as_uri()}
    path = fetch(toy(DEAD), tmp_path / "raw", mirror=spelled[form])
    assert path.read_bytes() == CONTENT


@pytest.mark.fault
def test_damaged_file_in_a_mirror_folder(serve, tmp_path):
    (tmp_path / "mirror" / "toy").mkdir(parents=True)
    (tmp_path / "mirror" / "toy" / "file.gz").write_bytes(b"rubbish")
    source = toy(serve(GOOD))
    path = fetch(source, tmp_path / "raw", mirror=str(tmp_path / "mirror"))
    assert path.read_bytes() == CONTENT


def test_mirror_as_a_url(serve, tmp_path):
    server = serve(GOOD)
    fetch(toy(DEAD), tmp_path, mirror=f"{server.base}/data/")
    assert server.requests == ["/data/toy/file.gz"]


def test_two_callers_download_once(serve, tmp_path):
    server = serve(GOOD)
    threads = [threading.Thread(target=fetch, args=(toy(server), tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert left_in(tmp_path) == ["file.gz"]


def test_progress_is_one_plain_line_without_a_terminal(serve, tmp_path, capsys):
    server = serve(GOOD)
    fetch(toy(server), tmp_path, progress=True)
    line = f"toy/file.gz: 262,144 bytes from {server.base}/toy/file.gz\n"
    assert capsys.readouterr() == ("", line)


@pytest.mark.fault
def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "raw").write_bytes(b"")
    with pytest.raises(CapsreproError, match=r"cannot write to .*/raw/toy: "):
        fetch(toy(DEAD), tmp_path / "raw")


FETCH_IN_A_CHILD = """
import resource, sys
from pathlib import Path
from capsrepro.data.fetch import fetch
from capsrepro.data.sources import Source
from capsrepro.errors import CapsreproError
address, sha256, size, root, limit = sys.argv[1:]
if limit != "none":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    fetch(Source("toy", "file.gz", (address,), sha256, int(size), "", ""), Path(root))
except CapsreproError as error:
    sys.exit(str(error))
"""


def in_a_child(source: Source, root: Path, limit: str = "none") -> subprocess.Popen[str]:
    values = [source.mirrors[0], source.sha256, str(source.size_bytes), str(root), limit]
    command = [sys.executable, "-c", FETCH_IN_A_CHILD, *values]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.fault
def test_full_disk(serve, tmp_path):
    with in_a_child(toy(serve(GOOD)), tmp_path, limit="100000") as child:
        _, message = child.communicate(timeout=30)
    assert message == (
        f"cannot write to {tmp_path}/toy: File too large; free space or make it writable, "
        "then run the same command again.\n"
    )
    assert left_in(tmp_path) == []


@pytest.mark.fault
def test_kill_9_during_a_download(serve, tmp_path):
    server = serve(hangs_after(CONTENT[:100_000]), GOOD)
    with in_a_child(toy(server), tmp_path) as child:
        deadline = time.monotonic() + 20
        while not any(p.is_file() and p.stat().st_size for p in tmp_path.glob("toy/.*/*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert not (tmp_path / "toy" / "file.gz").exists()
    assert len(left_in(tmp_path)) == 1
    assert fetch(toy(server), tmp_path).read_bytes() == CONTENT
    assert left_in(tmp_path) == ["file.gz"]
