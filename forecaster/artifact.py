"""The artifact: a model as a folder on disk, where training and serving meet.

``config.json`` (what the model is), ``weights.safetensors`` (its tensors) and ``manifest.json`` (format version and
SHA-256 of the other two). No pickle. The folder appears whole or not at all; what is damaged or of another format is
refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from forecaster.config import Config
from forecaster.errors import ArtifactError, ConfigError, ForecasterError

__all__ = ["FORMAT_VERSION", "check_place", "fill", "fingerprint", "read", "write"]

FORMAT_VERSION = 10

CONFIG, WEIGHTS, MANIFEST = "config.json", "weights.safetensors", "manifest.json"


def check_place(folder: Path) -> None:
    """Refuse a folder that an artifact cannot be written to: whatever is in it would be replaced.

    Raises
    ------
    ArtifactError
        It is a file, holds other things than an artifact, or this process works in it.
    """
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; an artifact needs a folder of its own")
    if folder.is_dir() and any(folder.iterdir()) and not _holds_artifact(folder):
        raise ArtifactError(f"{folder} holds other files; an artifact needs a folder of its own")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder} is where this process works, which cannot be replaced; name a folder in it")


def _holds_artifact(folder: Path) -> bool:
    """Whether there is nothing but an artifact, whole or damaged."""
    names = {path.name for path in folder.iterdir()}
    return (WEIGHTS in names or {CONFIG, MANIFEST} <= names) and names <= {CONFIG, WEIGHTS, MANIFEST}


def write(folder: Path, config: Config, weights: Mapping[str, Tensor]) -> None:
    """Write an artifact into `folder`, replacing one that is there; written beside it first, then both are moved.

    A mount point cannot be moved: there the manifest goes first and comes last, without which nothing is an artifact.

    Raises
    ------
    ArtifactError
        See `check_place`.
    ForecasterError
        The disk is full, or something else keeps it from being written.
    """
    check_place(folder)
    folder = folder.resolve()  # of a link, what it leads to
    files = _files(config, weights)
    manifest = {"format_version": FORMAT_VERSION, "sha256": {name: _digest(data) for name, data in files.items()}}
    files[MANIFEST] = _json(manifest)
    try:
        _put(folder, files)
    except OSError as error:
        raise ForecasterError(f"cannot write artifact {folder}: {error.strerror or error}") from error


def _put(folder: Path, files: Mapping[str, bytes]) -> None:
    if folder.is_mount():
        (folder / MANIFEST).unlink(missing_ok=True)
        for name in (WEIGHTS, CONFIG, MANIFEST):  # the first tells that what is cut short is ours to replace
            (folder / name).write_bytes(files[name])
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new, old = beside / "new", beside / "old"
    try:
        new.mkdir()
        for name, data in files.items():
            (new / name).write_bytes(data)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(beside, ignore_errors=True)


def read(folder: Path) -> tuple[Config, dict[str, Tensor]]:
    """Read and verify an artifact.

    Raises
    ------
    ArtifactError
        It is missing, damaged, or of another format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        version, digests = manifest["format_version"], manifest["sha256"]
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is not a model artifact: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"artifact {folder} is damaged: {MANIFEST} cannot be read") from None
    if version != FORMAT_VERSION:
        older = isinstance(version, int) and version < FORMAT_VERSION
        raise ArtifactError(
            f"artifact {folder} has format version {version!r}; this code reads {FORMAT_VERSION}"
            f"{'; train the model again' if older else ''}"
        )
    data = {name: _verified(folder, name, digests) for name in (CONFIG, WEIGHTS)}
    try:
        return Config.from_dict(json.loads(data[CONFIG])), safetensors.torch.load(data[WEIGHTS])
    except (ValueError, ConfigError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"artifact {folder} is damaged: {error}") from error


def fill(network: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Load `weights` into `network`.

    Raises
    ------
    ArtifactError
        Names or shapes do not fit the configuration beside them.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(f"artifact {folder} is damaged: its weights do not fit its configuration") from error


def fingerprint(config: Config, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over what an artifact of these would hold."""
    files = _files(config, weights)
    return _digest(b"".join(files[name] for name in sorted(files)))


def _files(config: Config, weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(weights.items())}
    return {CONFIG: _json(config.to_dict()), WEIGHTS: safetensors.torch.save(tensors)}


def _verified(folder: Path, name: str, digests: Any) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except OSError:
        raise ArtifactError(f"artifact {folder} is damaged: {name} is missing") from None
    if not isinstance(digests, dict) or digests.get(name) != _digest(data):
        raise ArtifactError(f"artifact {folder} is damaged: {name} does not match its checksum")
    return data


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
