"""The logged model: what lies in it, what it answers, and that it loads where nothing of this repository is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from forecaster import InputError, Panel
from pipelines.connection import connect
from pipelines.packaging import requirements
from pipelines.tracking import start_run
from tests.pipelines.kit import covered_frame, long_frame, random_forecaster, store_in

# MLflow 3.17 itself uses what pandas 3 advises against, also when it only loads and predicts.
pytestmark = pytest.mark.filterwarnings("ignore:Operation with range is deprecated")

# Runs with the model's folder, a CSV and an output file, and nothing else of ours in reach.
STRANGER = """
import os, sys
sys.path[:] = [entry for entry in sys.path if not os.path.exists(os.path.join(entry, "pipelines", "cli.py"))]
import mlflow, pandas as pd
for name in ("pipelines", "service", "lightning"):
    assert name not in sys.modules
try:
    import pipelines
except ImportError:
    pass
else:
    raise SystemExit("the repository is in reach, so this proves nothing")
model = mlflow.pyfunc.load_model(sys.argv[1])
frame = pd.read_csv(sys.argv[2], parse_dates=["ds"])
model.predict(frame, params={"horizon": 4}).to_csv(sys.argv[3], index=False, float_format="%.17g")
import forecaster
print(forecaster.__file__)
"""


def log(tracking_uri: str, panel: Panel, **changes: object) -> str:
    """Log a model with random weights; returns where it lies."""
    with start_run(connect(tracking_uri), "packaging", tracking_uri=tracking_uri) as run:
        uri = run.log_model(random_forecaster(**changes), panel)
    return str(mlflow.artifacts.download_artifacts(uri))


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, panel: Panel) -> Iterator[tuple[str, str]]:
    """A store with a logged model that is only read; and where it lies."""
    with store_in(tmp_path_factory.mktemp("logged"), empty_database) as tracking_uri:
        yield tracking_uri, log(tracking_uri, panel)


@pytest.fixture
def model_folder(logged: tuple[str, str], tmp_path: Path) -> Iterator[str]:
    """A copy of it, in which whoever imports the library leaves what Python compiles; MLflow looks into its store."""
    tracking_uri, folder = logged
    mlflow.set_tracking_uri(tracking_uri)
    yield str(shutil.copytree(folder, tmp_path / "model"))
    mlflow.set_tracking_uri(None)


def test_the_logged_model_answers_exactly_as_the_forecaster(model_folder: str, panel: Panel) -> None:
    loaded = mlflow.pyfunc.load_model(model_folder)
    expected = random_forecaster().forecast_frame(panel)

    answered = loaded.predict(long_frame())
    short = loaded.predict(long_frame(), params={"horizon": 2, "quantile_levels": [0.25, 0.5]})

    assert list(answered.columns) == ["unique_id", "ds", *(f"0.{k}" for k in range(1, 10))]
    assert answered["unique_id"].tolist() == expected["unique_id"].tolist()
    assert answered["ds"].tolist() == expected["ds"].tolist()
    np.testing.assert_allclose(answered.iloc[:, 2:], expected.iloc[:, 2:], rtol=1e-6)
    assert list(short.columns) == ["unique_id", "ds", "0.25", "0.5"]
    assert len(short) == 2 * len(panel)


def test_the_logged_model_holds_no_pickle_and_its_artifact_lies_where_promised(model_folder: str) -> None:
    files = [str(path.relative_to(model_folder)) for path in Path(model_folder).rglob("*") if path.is_file()]

    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".pyc"))]
    assert {"config.json", "weights.safetensors", "manifest.json"} <= {
        Path(name).name for name in files if name.startswith("artifacts/forecaster/")
    }
    assert "code/forecaster/forecaster.py" in files
    assert "input_example.json" in files
    written = Path(model_folder, "requirements.txt").read_text().split()
    assert written == requirements()
    assert all("==" in line and "+" not in line for line in written)


def test_the_logged_model_has_a_signature_with_defaults(model_folder: str) -> None:
    signature = mlflow.models.get_model_info(model_folder).signature

    assert signature.inputs.input_names() == ["unique_id", "ds", "y"]
    assert signature.outputs.input_names()[:3] == ["unique_id", "ds", "0.1"]
    assert {param.name: param.default for param in signature.params.params}["horizon"] == 6


@pytest.mark.parametrize(
    "told",
    [
        lambda frame: frame.dropna().astype({"y": "int64"}),
        lambda frame: frame.astype({"y": "float32"}),
        lambda frame: frame.convert_dtypes(),
        lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
        lambda frame: frame.astype({"unique_id": "category"}),
        lambda frame: frame.assign(ds=frame["ds"].astype(str)),
    ],
    ids=["whole numbers", "float32", "nullable", "arrow", "categories", "text"],
)
def test_the_logged_model_reads_columns_of_any_type_that_a_panel_is_made_from(
    model_folder: str, told: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    frame = long_frame()
    frame["y"] = frame["y"].round()
    expected = random_forecaster().forecast_frame(Panel.from_frame(frame, "h"))

    answered = mlflow.pyfunc.load_model(model_folder).predict(told(frame))

    assert answered["unique_id"].tolist() == expected["unique_id"].tolist()
    assert answered["ds"].tolist() == expected["ds"].tolist()
    np.testing.assert_allclose(answered.iloc[:, 2:], expected.iloc[:, 2:], rtol=1e-6)


def test_the_logged_model_says_what_it_cannot_read(model_folder: str) -> None:
    loaded = mlflow.pyfunc.load_model(model_folder)
    frame = long_frame()

    with pytest.raises(InputError, match="ds cannot be read as ISO 8601 timestamps: Time data soon"):
        loaded.predict(frame.assign(ds="soon"))
    with pytest.raises(InputError, match="y has type"):
        loaded.predict(frame.assign(y="much"))


def test_timestamps_with_a_zone_travel_as_text(tracking_uri: str) -> None:
    frame = long_frame(steps=60)
    frame["ds"] = frame["ds"].dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")
    panel = Panel.from_frame(frame, "h")
    loaded = mlflow.pyfunc.load_model(log(tracking_uri, panel, time_zone="Europe/Berlin"))

    expected = random_forecaster(time_zone="Europe/Berlin").forecast_frame(panel)
    for ds in ([stamp.isoformat() for stamp in frame["ds"]], frame["ds"], frame["ds"].dt.tz_convert("UTC")):
        answered = loaded.predict(frame.assign(ds=ds))
        assert answered["ds"].tolist() == [stamp.isoformat() for stamp in expected["ds"]]
        np.testing.assert_allclose(answered["0.5"], expected["0.5"], rtol=1e-6)


def test_the_logged_model_takes_covariates_and_what_is_known_of_the_future(tracking_uri: str) -> None:
    covariates = {
        "known": ["price", "open"],
        "static": ["place"],
        "calendar": ["day"],
        "categories": [["open", "false", "true"], ["place", "harbour", "hill"]],
    }
    frame = covered_frame()
    config = random_forecaster(covariates=covariates).config
    panel = Panel.from_frame(frame, "h", config.covariates)
    folder = log(tracking_uri, panel, covariates=covariates)
    loaded = mlflow.pyfunc.load_model(folder)

    expected = random_forecaster(covariates=covariates).forecast_frame(panel)
    texts = frame["open"].map({True: "true", False: "false"})
    for columns in (
        {},
        {"open": texts},
        {"open": texts.astype("category"), "place": frame["place"].astype("category")},
    ):
        answered = loaded.predict(frame.assign(**columns))
        np.testing.assert_allclose(answered.iloc[:, 2:], expected.iloc[:, 2:], rtol=1e-6)
    signature = mlflow.models.get_model_info(folder).signature
    assert signature.inputs.input_names() == ["unique_id", "ds", "y", "price", "open", "place"]
    assert len(loaded.predict(loaded.input_example)) == 6


def test_series_shorter_than_a_future_are_logged_without_an_example(tracking_uri: str) -> None:
    covariates = {"known": ["price"], "calendar": ["day"]}
    short = Panel.from_frame(
        covered_frame().groupby("unique_id").head(4)[["unique_id", "ds", "y", "price"]],
        "h",
        random_forecaster(covariates=covariates).config.covariates,
    )

    assert mlflow.pyfunc.load_model(log(tracking_uri, short, covariates=covariates)).input_example is None


def predict_elsewhere(python: str, model_folder: str, folder: Path, *, flags: tuple[str, ...] = ()) -> pd.DataFrame:
    """Load the model in another process that knows nothing of this repository, and forecast four steps."""
    long_frame().to_csv(folder / "in.csv", index=False)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MLFLOW"))}
    done = subprocess.run(
        [python, *flags, "-c", STRANGER, model_folder, str(folder / "in.csv"), str(folder / "out.csv")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(model_folder), "the library has to come with the model"
    return pd.read_csv(folder / "out.csv")


def test_the_logged_model_brings_its_own_library(model_folder: str, panel: Panel, tmp_path: Path) -> None:
    answered = predict_elsewhere(sys.executable, model_folder, tmp_path, flags=("-I",))

    expected = random_forecaster().forecast_frame(panel, horizon=4)
    np.testing.assert_allclose(answered.iloc[:, 2:], expected.iloc[:, 2:], rtol=1e-6)


@pytest.mark.slow
def test_the_logged_model_loads_in_an_environment_with_only_its_requirements(
    model_folder: str, panel: Panel, tmp_path: Path
) -> None:
    """Needs a package index, and minutes."""
    venv.create(tmp_path / "clean", with_pip=True)
    python = str(tmp_path / "clean" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "-r", f"{model_folder}/requirements.txt"]
    subprocess.run(install, check=True, capture_output=True)

    answered = predict_elsewhere(python, model_folder, tmp_path)

    expected = random_forecaster().forecast_frame(panel, horizon=4)
    np.testing.assert_allclose(answered.iloc[:, 2:], expected.iloc[:, 2:], rtol=1e-6)
