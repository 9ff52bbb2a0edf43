"""Checkpoints by name: downloads from a local hub, and what becomes of those that fail."""

import hashlib
import http.server
import resource
import shutil
import threading

import pytest
import transformers

import train
from model_t5 import load_checkpoint
from support.errors import InputError
from support.hub import model_width
from tests.test_model_t5 import FLAN, as_bin, assert_same_function, write_peer


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local hub with one model, `org/tiny`, and an empty cache. Sending the file `hub.cut` breaks off half way."""
    files = tmp_path / "files"
    peer = write_peer(files, FLAN, max_shard_size="100KB")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            path = files / self.path.removeprefix("/elsewhere").removeprefix("/org/tiny/resolve/main/")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            if path.suffix == ".safetensors" and not self.path.startswith("/elsewhere"):
                self.send_response(302)  # as the hub does with large files, stating their sum
                self.send_header("Location", "/elsewhere" + self.path)
                self.send_header("X-Linked-ETag", f'"{hashlib.sha256(data + server.extra).hexdigest()}"')
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if path.name == server.cut else data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.cut, server.peer, server.files, server.cache = [], None, peer, files, tmp_path / "cache"
    server.extra = b""  # what is not part of the files, but of the sums that are stated
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("HF_HUB_CACHE", str(server.cache))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_name_is_downloaded_once(hub, form, monkeypatch):
    if form == "bin":
        as_bin(hub.files)
    hub.cut = sorted(path.name for path in hub.files.glob(f"*.{form}"))[1]
    with pytest.raises(InputError, match=hub.cut):
        load_checkpoint("org/tiny")
    assert not list(hub.cache.rglob(hub.cut)) and not list(hub.cache.rglob(".*"))
    hub.cut = None
    model, _ = load_checkpoint("org/tiny")
    assert_same_function(model, hub.peer)
    asked = len(hub.asked)
    load_checkpoint("org/tiny")
    assert len(hub.asked) == asked
    # The layout is the Hugging Face library's own, in both directions; without refs/main any whole snapshot will do.
    how = {"local_files_only": True, "cache_dir": hub.cache}
    peer = transformers.T5ForConditionalGeneration.from_pretrained("org/tiny", **how)
    assert_same_function(model, peer)
    shutil.rmtree(hub.cache / "models--org--tiny" / "refs")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(hub.cache.parent / "home"))
    (hub.cache.parent / "home").mkdir()
    hub.cache.rename(hub.cache.parent / "home" / "hub")
    load_checkpoint("org/tiny")
    assert len(hub.asked) == asked


def test_a_wrong_sum_and_a_full_disk_leave_nothing_behind(hub):
    def whole_files():
        assert not [path for path in hub.cache.rglob(".*") if path.is_file()]
        return {path.name for path in hub.cache.rglob("*") if path.is_file()}

    hub.extra = b"as it was meant to be"
    with pytest.raises(InputError, match=r"model-00001-of-0000.*SHA-256"):
        load_checkpoint("org/tiny")
    hub.extra = b""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (270_000, limits[1]))
    try:
        with pytest.raises(InputError, match="File too large"):
            load_checkpoint("org/tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert whole_files() == {"config.json", "spiece.model", "model.safetensors.index.json"}
    shutil.rmtree(hub.cache)
    hub.cache.write_text("a file, where a directory is needed")
    with pytest.raises(InputError, match="could not be fetched into"):
        load_checkpoint("org/tiny")
    hub.cache.unlink()
    load_checkpoint("org/tiny")


def test_what_the_hub_does_not_have_is_said(hub, monkeypatch):
    with pytest.raises(InputError, match=r"org/other.*config\.json"):
        load_checkpoint("org/other")
    assert not hub.cache.exists()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r":9/org/tiny/resolve/main/tokenizer_config\.json could not be fetched"):
        load_checkpoint("org/tiny")
    for name in ("../files", "a/b/c", "org/..", "~/x"):
        with pytest.raises(InputError, match="no such directory"):
            load_checkpoint(name)
    assert not hub.cache.exists()


def test_a_relative_path_and_a_run_work_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    mini, _ = load_checkpoint("checkpoints/t5-mini")
    peer = write_peer(tmp_path / "runs" / "mine" / "model", FLAN)
    (tmp_path / "runs" / "mine" / "config.json").write_text('{"run": {}}')  # the run's own
    for name in ("runs/mine", "runs/mine/model", tmp_path / "runs" / "mine"):
        assert_same_function(load_checkpoint(name)[0], peer)
    assert mini.config.d_model == model_width("checkpoints/t5-mini") != model_width("runs/mine") == FLAN["d_model"]
    assert train.parse_arguments(["--checkpoint", "runs/mine"]).run.iterations == train.SMALL_MODEL["iterations"]
