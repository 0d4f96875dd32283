"""What all tests share: the CPU as device, and a toy data store that is made once per session."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX is imported; set it yourself to run the tests elsewhere
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its idle threads spin, at the cost of those of XLA

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from msm.builders.demo.heads import BrainReferences, Brains, default_settings
from msm.builders.pictures.store import ImageReferences
from msm.builders.store import prepare_store
from msm.configs.default import get_config
from tests.helpers.pictures import make_store, small_image_config, write_pictures
from tests.helpers.small_runs import quick_compilation

# Nearly all of a test's time is compilation of programs that run for milliseconds.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Quick compilation, shared by the files that train; a file asks for it by `usefixtures`."""
    with quick_compilation(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tools/prepare_demo.py --size 32 --max_slices 6` makes: 4 coils, R=4, 4 ACS lines. Do not change it."""
    store = tmp_path_factory.mktemp("data") / "tiny_store"
    prepare_store(store, Brains(default_settings(32), max_slices=6))
    return store


@pytest.fixture(scope="session")
def nan_reference_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_store` with NaN for every reference image: what never reads references does not notice."""
    store = tmp_path_factory.mktemp("data") / "nan_reference_store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BrainReferences, "_record", lambda self, e: {"image": e.simulated.image * np.complex64(np.nan)})
        prepare_store(store, Brains(default_settings(32), max_slices=6))
    return store


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
    folder = tmp_path_factory.mktemp("data") / "pictures"
    write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def image_store(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `helpers.pictures.source`: 6 train, 2 validation, 3 test pictures with noise. Do not change it."""
    store = tmp_path_factory.mktemp("data") / "image_store"
    make_store(pictures, store)
    return store


@pytest.fixture(scope="session")
def nan_image_store(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`image_store` with NaN for every reference picture: what never reads references does not notice."""
    store = tmp_path_factory.mktemp("data") / "nan_image_store"
    with pytest.MonkeyPatch.context() as patch:
        tensor = tfds.features.Tensor(shape=(32, 32, 3), dtype=np.float32)
        patch.setattr(ImageReferences, "_features", lambda self: {"image": tensor})
        patch.setattr(ImageReferences, "_record", lambda self, p, m: {"image": p.pixels * np.float32(np.nan)})
        make_store(pictures, store)
    return store


@pytest.fixture
def image_config(image_store: Path) -> ConfigDict:
    """A small config for `image_store`; the test may change it."""
    return small_image_config(image_store)
