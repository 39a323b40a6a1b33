"""What the tests of `moss_audio.conversion` share: sources to convert, sounds, fresh processes, and a stand-in for the Hub."""

import base64
import functools
import hashlib
import json
import threading
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Optional

from safetensors.torch import load_file, save_file

from tests import conftest
from tests.conftest import DATA, waveform


TINY, GOLDEN, QWEN3_TOKENIZER = DATA / "model_tiny", DATA / "golden", DATA / "qwen3-tokenizer"


def write_wav(path: Path, seed: int, samples: int):
    """A clip as a WAV file of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, samples, "NONE", ""))
        file.writeframes((waveform(seed, samples) * 32767).clip(-32768, 32767).astype("<i2").tobytes())


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def change(path: Path, **values: Any):
    """Sets keys of a JSON file; None removes one."""
    content = {**read(path), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def tensors_of(folder: Path) -> dict[str, Any]:
    """All tensors of a folder, read by the library that defines the format."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def shard(folder: Path, count: int, index: bool = True):
    """Splits a folder's only weight file into several."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::count]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    if index:
        content = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")


# Most of what is made here must work where the package is not installed.
run_python = functools.partial(conftest.run_python, blocked=("moss_audio",))


class Hub:
    """A stand-in for the Hub's API: repositories that can be downloaded from, and uploads that it takes or refuses."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self):
        self.downloads: dict[str, Path] = {}  # folders by repository
        self.uploads: dict[str, dict[str, bytes]] = {}  # files by repository
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}  # of Git LFS, by hash
        self.refused: list[str] = []  # parts of paths: each fails once, one after the other
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def handle_one(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.requests.append(f"{self.command} {self.path}")
                hub.answer(self, self.path.partition("?")[0].strip("/"), body)

            do_GET = do_HEAD = do_POST = do_PUT = handle_one

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, cache: Path) -> dict[str, str]:
        """What makes huggingface_hub talk to it."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(cache),
            "HF_TOKEN": "hf_standin",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def answer(self, request: BaseHTTPRequestHandler, path: str, body: bytes):
        if path == "api/validate-yaml":
            return self.send(request, {"errors": [], "warnings": []})
        if self.refused and self.refused[0] in path:
            self.refused.pop(0)
            return self.send(request, {"error": "the stand-in refuses this"}, status=403)
        if path.startswith("objects/"):
            self.objects[path.rpartition("/")[2]] = body
            return self.send(request, {})
        if path == "api/repos/create":
            return self.create(request, json.loads(body))
        if path.startswith("api/models/"):
            return self.api(request, path.removeprefix("api/models/"), body)
        if "/resolve/" in path:
            repository, _, rest = path.partition("/resolve/")
            return self.file(request, repository, rest.partition("/")[2])
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.send(request, {"objects": [self.lfs_object(item) for item in json.loads(body)["objects"]]})
        return self.send(request, {"error": f"the stand-in knows no {path}"}, status=404)

    def create(self, request: BaseHTTPRequestHandler, body: dict[str, Any]):
        repository = "/".join(filter(None, (body.get("organization"), body["name"])))
        self.uploads.setdefault(repository, {})
        self.private[repository] = bool(body.get("private") or body.get("visibility") == "private")
        self.send(request, {"url": f"{self.address}/{repository}", "name": repository})

    def api(self, request: BaseHTTPRequestHandler, path: str, body: bytes):
        repository, rest = "/".join(path.split("/")[:2]), path.split("/")[2:]
        if rest[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            answers = [
                {
                    "path": file["path"],
                    "uploadMode": modes[file["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for file in files
            ]
            return self.send(request, {"files": answers})
        if rest[:1] == ["commit"]:
            for line in body.decode().splitlines():
                self.commit(repository, json.loads(line))
            return self.send(
                request, {"commitUrl": f"{self.address}/{repository}/commit/{self.COMMIT}", "commitOid": self.COMMIT}
            )
        folder = self.downloads.get(repository)
        known = folder is not None or repository in self.uploads
        if not known or rest[:1] == ["revision"] and rest[1] not in ("main", self.COMMIT):
            code = "RevisionNotFound" if known else "RepoNotFound"
            return self.send(request, {"error": "not found"}, status=404, headers={"X-Error-Code": code})
        files = sorted(path.name for path in folder.iterdir()) if folder else sorted(self.uploads[repository])
        if rest[:1] == ["tree"]:
            return self.send(request, [self.entry(folder / name) for name in files])
        siblings = [{"rfilename": name} for name in files]
        return self.send(
            request,
            {
                "_id": "1",
                "id": repository,
                "modelId": repository,
                "sha": self.COMMIT,
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            },
        )

    @staticmethod
    def entry(path: Path) -> dict[str, Any]:
        """A file in the listing of a repository."""
        content = path.read_bytes()
        blob = {"type": "file", "path": path.name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if path.suffix == ".safetensors":
            blob["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return blob

    def commit(self, repository: str, line: dict[str, Any]):
        value = line["value"]
        if line["key"] == "file":
            self.uploads[repository][value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            self.uploads[repository][value["path"]] = self.objects[value["oid"]]

    def lfs_object(self, item: dict[str, Any]) -> dict[str, Any]:
        action = {"href": f"{self.address}/objects/{item['oid']}", "header": {}}
        return {"oid": item["oid"], "size": item["size"], "authenticated": True, "actions": {"upload": action}}

    def file(self, request: BaseHTTPRequestHandler, repository: str, name: str):
        folder = self.downloads.get(repository)
        content = self.uploads.get(repository, {}).get(name) if folder is None else (folder / name).read_bytes()
        if content is None:
            return self.send(request, {"error": "not found"}, status=404, headers={"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": self.COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self.send(request, content, headers=headers)

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler, content: Any, status: int = 200, headers: Optional[dict[str, str]] = None
    ):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
