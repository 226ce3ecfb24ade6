"""The artifact: a folder that is whole and right, or is refused with one clear line."""

from __future__ import annotations

import hashlib
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from forecaster import ArtifactError, Config, Forecaster, ForecasterError
from forecaster.artifact import FORMAT_VERSION
from tests.forecaster.kit import TINY, TINY_LINEAR, config_of, forecaster_of

FILES = ("config.json", "weights.safetensors", "manifest.json")


@pytest.fixture
def folder(tiny_forecaster: Forecaster, tmp_path: Path) -> Path:
    tiny_forecaster.save(tmp_path / "artifact")
    return tmp_path / "artifact"


def forge(folder: Path, **files: bytes) -> None:
    """Replace files and write a manifest that vouches for them."""
    for name, data in files.items():
        (folder / name.replace("_", ".", 1)).write_bytes(data)
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES[:2]}
    (folder / "manifest.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "sha256": digests}))


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


def refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        Forecaster.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_artifact_is_three_files_readable_by_anyone(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in folder.parent.iterdir()] == ["artifact"]


def test_the_configuration_beside_the_weights_is_the_models(folder: Path) -> None:
    assert Config.from_dict(json.loads((folder / "config.json").read_text())) == TINY


def test_saving_what_was_loaded_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    Forecaster.load(folder).save(tmp_path / "again")

    for name in FILES:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_path_may_be_text_and_parents_are_made(tiny_forecaster: Forecaster, tmp_path: Path) -> None:
    tiny_forecaster.save(str(tmp_path / "a" / "b"))

    assert Forecaster.load(str(tmp_path / "a" / "b")).fingerprint() == tiny_forecaster.fingerprint()


def test_saving_over_an_artifact_replaces_it(folder: Path, tiny_linear_forecaster: Forecaster) -> None:
    tiny_linear_forecaster.save(folder)

    assert Forecaster.load(folder).config == TINY_LINEAR


def test_what_fails_while_an_artifact_is_replaced_leaves_the_one_that_was_there(
    folder: Path, tiny_forecaster: Forecaster, tiny_linear_forecaster: Forecaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    move, names = Path.rename, sorted(path.name for path in folder.parent.iterdir())

    def fail(path: Path, target: Path) -> Path:
        if target == folder and path.name == "new":
            raise KeyboardInterrupt
        return move(path, target)

    monkeypatch.setattr(Path, "rename", fail)

    with pytest.raises(KeyboardInterrupt):
        tiny_linear_forecaster.save(folder)

    assert Forecaster.load(folder).fingerprint() == tiny_forecaster.fingerprint()
    assert sorted(path.name for path in folder.parent.iterdir()) == names


def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_the_artifact_that_was_there(
    folder: Path, tiny_forecaster: Forecaster, tiny_linear_forecaster: Forecaster
) -> None:
    names = sorted(path.name for path in folder.parent.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ForecasterError, match=r"^cannot write artifact .*: File too large$"):
            tiny_linear_forecaster.save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert Forecaster.load(folder).fingerprint() == tiny_forecaster.fingerprint()
    assert sorted(path.name for path in folder.parent.iterdir()) == names


def test_a_folder_of_somebody_elses_files_is_left_alone(tiny_forecaster: Forecaster, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")

    with pytest.raises(ArtifactError, match="holds other files"):
        tiny_forecaster.save(tmp_path)

    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("others", [["src"], []])
def test_a_manifest_alone_makes_no_artifact_of_somebody_elses_files(
    tiny_forecaster: Forecaster, tmp_path: Path, others: list[str]
) -> None:
    """Web sites have one, too."""
    for name in ("manifest.json", "config.json"):
        (tmp_path / name).write_text('{"name": "my web site"}')
        for other in others:
            (tmp_path / other).mkdir()

        with pytest.raises(ArtifactError, match="holds other files"):
            tiny_forecaster.save(tmp_path)

        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, *others])
        (tmp_path / name).unlink()
        for other in others:
            (tmp_path / other).rmdir()


def test_a_link_leads_on_to_the_new_artifact(tiny_forecaster: Forecaster, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)

    tiny_forecaster.save(tmp_path / "current")

    assert (tmp_path / "current").readlink() == folder
    assert Forecaster.load(folder).fingerprint() == tiny_forecaster.fingerprint()


def test_the_folder_that_one_works_in_is_not_replaced(
    tiny_forecaster: Forecaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ArtifactError, match="is where this process works"):
        tiny_forecaster.save(".")


def test_into_a_mount_point_the_manifest_comes_last(
    tiny_forecaster: Forecaster, tiny_linear_forecaster: Forecaster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be moved, so what is cut short there is no artifact."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder.resolve())
    write_bytes = Path.write_bytes

    def fail(path: Path, data: bytes) -> int:
        if path.name == "config.json":
            raise OSError("disk full")
        return write_bytes(path, data)

    inode = folder.stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        with pytest.raises(ForecasterError, match="disk full"):
            tiny_linear_forecaster.save(folder)
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        Forecaster.load(folder)
    (folder / "config.json").unlink()  # as if it had been empty before
    tiny_linear_forecaster.save(folder)

    assert Forecaster.load(folder).fingerprint() == tiny_linear_forecaster.fingerprint()
    assert folder.stat().st_ino == inode


def test_an_empty_folder_may_be_used(tiny_forecaster: Forecaster, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    tiny_forecaster.save(tmp_path / "empty")

    assert Forecaster.load(tmp_path / "empty").fingerprint() == tiny_forecaster.fingerprint()


def test_a_file_in_the_place_of_the_folder_is_refused(tiny_forecaster: Forecaster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    with pytest.raises(ArtifactError):
        tiny_forecaster.save(tmp_path / "file")
    with pytest.raises(ArtifactError):
        Forecaster.load(tmp_path / "file")

    assert (tmp_path / "file").read_text() == "mine"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    assert "not a model artifact" in refusal(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(folder: Path, name: str) -> None:
    (folder / name).unlink()

    assert name in refusal(folder)


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
def test_one_changed_byte_anywhere_is_noticed(folder: Path, name: str, share: float) -> None:
    data = bytearray((folder / name).read_bytes())
    data[int(share * len(data))] ^= 1
    (folder / name).write_bytes(data)

    assert f"damaged: {name} does not match its checksum" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_cut_file_is_noticed(folder: Path, name: str, keep: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(keep * len(data))])

    assert "damaged" in refusal(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "null",
        "5",
        "{}",
        '{"format_version": 8}',
        f'{{"format_version": {FORMAT_VERSION}, "sha256": 5}}',
        "\udcff",
    ],
)
def test_a_manifest_that_makes_no_sense_is_noticed(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))

    assert "damaged" in refusal(folder)


@pytest.mark.parametrize("version", [*range(1, FORMAT_VERSION), 99, "2", None, 2.5])
def test_another_format_is_refused_as_such(folder: Path, version: object) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest(folder) | {"format_version": version}))

    assert "format version" in refusal(folder)
    assert f"this code reads {FORMAT_VERSION}" in refusal(folder)
    assert ("train the model again" in refusal(folder)) == (version in range(1, FORMAT_VERSION))


@pytest.mark.parametrize(
    "text",
    ["no json", "[]", "null", '{"freq": "h"}', '{"freq": "h", "horizon": 0}', '{"freq": "h", "horizon": 6, "x": 1}'],
)
def test_a_vouched_for_configuration_that_makes_no_sense_is_refused(folder: Path, text: str) -> None:
    forge(folder, config_json=text.encode())

    assert "damaged" in refusal(folder)


def test_weights_that_are_no_tensors_are_refused(folder: Path) -> None:
    forge(folder, weights_safetensors=b"not tensors at all")

    assert "damaged" in refusal(folder)


def test_weights_of_another_shape_or_name_are_refused(folder: Path, tmp_path: Path) -> None:
    other = forecaster_of(config_of(hidden_size=9))
    other.save(tmp_path / "other")
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    first = sorted(weights)[0]
    lacking = {name: tensor for name, tensor in weights.items() if name != first}

    for data in (
        (tmp_path / "other" / "weights.safetensors").read_bytes(),
        safetensors.torch.save(lacking),
        safetensors.torch.save(weights | {"more": weights[first].clone()}),
    ):
        forge(folder, weights_safetensors=data)
        assert "weights do not fit" in refusal(folder)


def test_nothing_in_an_artifact_is_a_pickle(folder: Path) -> None:
    for path in folder.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))


def test_equal_models_have_equal_fingerprints_and_others_do_not(folder: Path, tiny_forecaster: Forecaster) -> None:
    assert Forecaster.load(folder).fingerprint() == tiny_forecaster.fingerprint()
    assert forecaster_of(TINY, seed=1).fingerprint() != tiny_forecaster.fingerprint()
    assert Forecaster.create(TINY).fingerprint() != Forecaster.create(config_of("log", (4,), dropout=0.5)).fingerprint()


def test_a_failed_save_leaves_the_old_artifact(
    folder: Path, tiny_linear_forecaster: Forecaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(self: Path, data: bytes) -> int:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(ForecasterError, match="No space"):
        tiny_linear_forecaster.save(folder)
    monkeypatch.undo()

    assert Forecaster.load(folder).config == TINY
    assert [path.name for path in folder.parent.iterdir()] == ["artifact"]


def test_a_loaded_model_forecasts_as_the_saved_one(folder: Path, tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.warm_up([np.arange(1.0, 30.0)], [0])

    np.testing.assert_array_equal(Forecaster.load(folder).forecast(state), tiny_forecaster.forecast(state))
