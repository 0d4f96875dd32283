"""What all tests share: the CPU as device, compiled programs, toy stores and a trained workdir, each made once."""

import os
import shutil
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported; set it yourself to run the tests elsewhere
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its idle threads spin, at the cost of those of XLA
# Nearly all of a test's time is compilation of programs that run for milliseconds: few optimisations, and every program
# once for all processes of all sessions. `make clean` forgets them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from msm.builders.demo.heads import BrainReferences, Brains, default_settings
from msm.builders.pictures.store import ImageReferences
from msm.builders.store import prepare_store
from msm.configs.default import get_config
from tests.helpers.pictures import make_store, small_image_config, write_pictures
from tests.helpers.shared import once
from tests.helpers.small_runs import small_config

PROGRAMS = Path(__file__).parent.parent / ".pytest_cache" / "programs"
MOST_BYTES = 2 * 2**30


def pytest_configure(config: pytest.Config) -> None:
    """Forgets all programs where those of many versions of the code have piled up."""
    if hasattr(config, "workerinput") or not PROGRAMS.is_dir():
        return
    if sum(path.stat().st_size for path in PROGRAMS.iterdir()) > MOST_BYTES:
        shutil.rmtree(PROGRAMS)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tools/prepare_demo.py --size 32 --max_slices 6` makes: 4 coils, R=4, 4 ACS lines. Do not change it."""
    brains = Brains(default_settings(32), max_slices=6)
    return once(tmp_path_factory, "tiny_store", lambda store: prepare_store(store, brains))


@pytest.fixture(scope="session")
def nan_reference_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_store` with NaN for every reference image: what never reads references does not notice."""

    def make(store: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            nan = np.complex64(np.nan)
            patch.setattr(BrainReferences, "_record", lambda self, e: {"image": e.simulated.image * nan})
            prepare_store(store, Brains(default_settings(32), max_slices=6))

    return once(tmp_path_factory, "nan_reference_store", make)


@pytest.fixture(scope="session")
def trained_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of `small_config(tiny_store)`, trained without interruption. Copy it before anything is written."""

    def make(folder: Path) -> None:
        from msm import run_lib

        run_lib.train(small_config(tiny_store), str(folder))

    return once(tmp_path_factory, "trained_run", make)


@pytest.fixture
def tiny_config(tiny_store: Path) -> ConfigDict:
    """The default config with the data settings of `tiny_store` and a batch of 2; the test may change it."""
    config = get_config()
    config.data.dir = str(tiny_store)
    config.data.image_size = 32
    config.masks.acs_lines = 4
    config.training.batch_size = 2
    return config


@pytest.fixture
def store_copy(tiny_store: Path, tiny_config: ConfigDict, tmp_path: Path) -> Path:
    """A copy of `tiny_store` that the test may damage; `tiny_config` points to it."""
    path = tmp_path / "store"
    shutil.copytree(tiny_store, path)
    tiny_config.data.dir = str(path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `write_pictures`: eleven pictures. Do not change it."""
    return once(tmp_path_factory, "pictures", write_pictures)


@pytest.fixture(scope="session")
def image_store(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `helpers.pictures.source`: 6 train, 2 validation, 3 test pictures with noise. Do not change it."""
    return once(tmp_path_factory, "image_store", lambda store: make_store(pictures, store))


@pytest.fixture(scope="session")
def trained_on_pictures(image_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `trained_run`, of `small_image_config(image_store)`."""

    def make(folder: Path) -> None:
        from msm import run_lib

        run_lib.train(small_image_config(image_store), str(folder))

    return once(tmp_path_factory, "trained_on_pictures", make)


@pytest.fixture(scope="session")
def nan_image_store(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`image_store` with NaN for every reference picture: what never reads references does not notice."""

    def make(store: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            tensor = tfds.features.Tensor(shape=(32, 32, 3), dtype=np.float32)
            patch.setattr(ImageReferences, "_features", lambda self: {"image": tensor})
            patch.setattr(ImageReferences, "_record", lambda self, p, m: {"image": p.pixels * np.float32(np.nan)})
            make_store(pictures, store)

    return once(tmp_path_factory, "nan_image_store", make)


@pytest.fixture
def image_config(image_store: Path) -> ConfigDict:
    """A small config for `image_store`; the test may change it."""
    return small_image_config(image_store)
