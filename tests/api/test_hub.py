"""Publishing and loading through a server on this machine; tampered and hostile repositories are refused."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

import arvid
from arvid.cli import main
from arvid.contracts import UserError
from arvid.sealed import write_sealed_json
from arvid.tensor_files import load_tensors, save_tensors

PROMPT = "a large red square moves left"


class Hub:
    """A stand-in for huggingface.co: repositories as dictionaries of files."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """user/name/path -> content."""
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                repository, _, rest = self.path[1:].partition("/resolve/")
                path = rest.partition("/")[2]
                if path:
                    hub.asked.append(path)
                content = hub.files.get(f"{repository}/{path}")
                self.answer(404 if content is None else 200, content or b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer(200, json.dumps(hub.post(self.path, body)).encode())

            def answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Nothing: the test's output is for the test."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        name = "/".join(path.split("/")[3:5])
        if path.endswith("/repos/create"):
            return {"url": f"{self.url}/user/name"}
        if "/preupload/" in path:
            files = [
                {"uploadMode": "regular", "shouldIgnore": False, **f}
                for f in json.loads(body)["files"]
            ]
            return {
                "files": [
                    {k: v for k, v in f.items() if k not in ("sample", "size")} for f in files
                ]
            }
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[f"{name}/{line['value']['path']}"] = content
            return {"commitUrl": f"{self.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40}
        return {"errors": [], "warnings": []}  # of the card's header


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    with hub.server as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


@pytest.fixture(scope="module")
def repository(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `arvid push --out` writes of a scored run."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    shutil.copytree(trained_run, run)
    arvid.evaluate(run, "sprites-prediction", num_clips=2)
    folder = run.parent / "repository"
    given = ["push", str(run), "user/name", "--license", "mit", "--out", str(folder)]
    assert main(given) == 0
    return folder


def serve(hub: Hub, folder: Path) -> None:
    """Put a repository's files on the stand-in."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        hub.files[f"user/name/{path.relative_to(folder).as_posix()}"] = path.read_bytes()


def list_again(hub: Hub, tmp_path: Path) -> None:
    """Write arvid.json anew, as someone would who changes the weights and knows how arvid.json is made."""
    digest = hashlib.sha256(hub.files["user/name/model.safetensors"]).hexdigest()
    write_sealed_json(
        tmp_path / "arvid.json", {"format": 1, "files": {"model.safetensors": digest}}
    )
    hub.files["user/name/arvid.json"] = (tmp_path / "arvid.json").read_bytes()


def test_a_pushed_run_is_the_run(
    trained_run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(trained_run), "user/name"]) == 0
    assert "/user/name/commit/" in capsys.readouterr().out
    published = arvid.load("hf://user/name")
    assert hub.asked == ["arvid.json", "model.safetensors"]
    clips = published.sample(PROMPT, frames=5)
    assert np.array_equal(clips, arvid.load(trained_run).sample(PROMPT, frames=5))
    assert published.name == "name"
    assert published.module.trained.steps == 3
    again = arvid.load("hf://user/name@main")
    assert hub.asked[2:] == ["arvid.json"]  # the weights are in the cache
    hub.files.clear()
    assert torch.equal(*(next(m.module.paradigm.parameters()) for m in (again, published)))
    assert arvid.load("hf://user/name").path == published.path  # without a connection


def test_the_repository(repository: Path) -> None:
    listed = json.loads((repository / "arvid.json").read_text())["files"]
    written = {p.relative_to(repository).as_posix() for p in repository.rglob("*") if p.is_file()}
    assert written == {*listed, "README.md", "arvid.json"}
    assert {"model.safetensors", "config.yaml"} <= written
    assert not [name for name in written if name.endswith((".ckpt", ".bin", ".pt", ".pkl"))]
    for name, digest in listed.items():
        assert hashlib.sha256((repository / name).read_bytes()).hexdigest() == digest
    with safe_open(repository / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if "optimizer" in name]  # noqa: SIM118
    assert arvid.compare(repository)[0]["row"] == "trained"  # its records are whole
    assert arvid.load(repository).sample(PROMPT, frames=5).shape == (1, 5, 32, 32, 3)
    assert main(["push", str(repository), "user/name", "--out", str(repository)]) == 2  # not empty


def test_the_card_is_made_from_the_record(repository: Path) -> None:
    card = (repository / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    values = yaml.safe_load(header)
    assert values["license"] == "mit"
    assert values["library_name"] == "arvid"
    assert "next_block" in values["tags"]
    listed = json.loads((repository / "arvid.json").read_text())["files"]
    setting = arvid.load(repository).module.description["setting_hash"]
    for part in (
        'arvid.load("hf://user/name")',
        listed["model.safetensors"],
        f"`{setting}`",
        "sprites-prediction-2",
        "PSNR",
        "arvid fit --config config.yaml",
        "| `trainer.max_steps` | `3` |",
        "resolve/main/evaluation/sprites-prediction-2",
    ):
        assert part in body


def test_changed_weights_are_refused(repository: Path, hub: Hub, tmp_path: Path) -> None:
    serve(hub, repository)
    content = bytearray(hub.files["user/name/model.safetensors"])
    content[-1] ^= 1
    hub.files["user/name/model.safetensors"] = bytes(content)
    with pytest.raises(UserError, match="not the published file: its checksum is not sha256"):
        arvid.load("hf://user/name")
    list_again(hub, tmp_path)
    with pytest.raises(UserError, match="is damaged: its checksum does not match its content"):
        arvid.load("hf://user/name")


def test_a_changed_list_is_refused(repository: Path, hub: Hub) -> None:
    serve(hub, repository)
    whole = hub.files["user/name/arvid.json"]
    for content in (whole.replace(b"config.yaml", b"config.yaxl"), b"{}", b"[" * 9999, b""):
        hub.files["user/name/arvid.json"] = content
        with pytest.raises(UserError, match=r"arvid.json is not what `arvid push` has written"):
            arvid.load("hf://user/name")
    assert set(hub.asked) == {"arvid.json"}


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_read(repository: Path, hub: Hub, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "trapped"))
    hub.files["user/name/pytorch_model.bin"] = trap
    with pytest.raises(UserError, match="repository that `arvid push` has written"):
        arvid.load("hf://user/name")
    serve(hub, repository)
    hub.files["user/name/model.safetensors"] = trap
    list_again(hub, tmp_path)
    with pytest.raises(UserError, match="not a generator that can be read"):
        arvid.load("hf://user/name")
    assert not (tmp_path / "trapped").exists()
    assert "pytorch_model.bin" not in hub.asked


def test_a_class_that_the_description_names_is_not_imported(
    repository: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile.py").write_text(
        f"open({str(tmp_path / 'trapped')!r}, 'w')\nclass Net: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    tensors, metadata = load_tensors(repository / "model.safetensors")
    metadata.pop("checksum")
    description = json.loads(metadata["arvid"])
    description["config"]["paradigm"]["class_path"] = "hostile.Net"
    metadata["arvid"] = json.dumps(description)
    save_tensors(tmp_path / "w.safetensors", tensors, metadata)
    hub.files["user/name/model.safetensors"] = (tmp_path / "w.safetensors").read_bytes()
    list_again(hub, tmp_path)
    with pytest.raises(UserError, match=r"hostile\.Net"):
        arvid.load("hf://user/name")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    "name", ["name", "a/b/c", "../x", "user/..", "user/na me", "user/n@../x", ""]
)
def test_names_that_are_none(name: str, hub: Hub) -> None:
    with pytest.raises(UserError, match="is not"):
        arvid.load(f"hf://{name}")
    assert hub.asked == []
