"""configs/rules/check.py: what is wrong in a config is told at once, by key, before anything is built."""

import importlib
import pkgutil
import time

import pytest
from ml_collections import ConfigDict

from msm import configs
from msm.configs.default import get_config
from msm.configs.rules import combinations
from msm.configs.rules.check import check, find_problems
from msm.configs.rules.settings import OPTIONAL, SETTINGS
from msm.infra.errors import UserError
from msm.infra.values import registered
from msm.operators.acquisition import Acquisition
from msm.operators.tasks import TASKS, get_task
from msm.operators.transform import get_transform


def flat(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def changed(**values):
    """The default config with some settings changed; '__' stands for '.', types are free."""
    config = get_config()
    with config.unlocked(), config.ignore_type():
        for key, value in values.items():
            config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


def test_default_config_is_sound():
    assert find_problems(get_config()) == []
    check(get_config())


def test_every_setting_has_a_rule_and_every_rule_a_setting():
    assert set(flat(get_config())) | OPTIONAL == set(SETTINGS)


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(configs.__path__) if not m.ispkg])
def test_every_config_file_is_sound(name):
    module = importlib.import_module(f"msm.configs.{name}")
    if not hasattr(module, "get_config"):
        assert name in ("variants", "tasks", "published", "published_score")  # helpers that are no configs
        return
    assert find_problems(module.get_config()) == []
    if name != "default":
        assert find_problems(module.get_config("smoke")) == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("seed", -1, "a whole number from 0 to 4294967295"),
        ("seed", 1.5, "a whole number"),
        ("data.dir", "", "text"),
        ("data.image_size", 0, "at least 1"),
        ("data.image_size", (64, 0), "or a pair of them"),
        ("data.image_size", (64, 64, 2), "or a pair of them"),
        ("data.image_size", "64x64", "or a pair of them"),
        ("data.num_coils", True, "a whole number"),
        ("data.acquisition", "undersample", "did you mean 'undersampled'?"),
        ("data.augment", ("flip", "flip"), "without repeats"),
        ("data.augment", ("flips",), "did you mean 'flip'?"),
        ("data.augment", "flip", "a tuple"),
        ("transform.name", "multicoil_furier", "did you mean 'multicoil_fourier'?"),
        ("masks.name", "cartesian_rondom", "did you mean 'cartesian_random'?"),
        ("masks.acceleration", 0.5, "at least 1"),
        ("masks.acs_lines", -1, "at least 0"),
        ("masks.grid", 0, "at least 1"),
        ("model.name", "amd", "did you mean 'adm'?"),
        ("model.num_channels", 64.0, "a whole number"),
        ("model.channel_mult", (), "at least 1"),
        ("model.channel_mult", (1, 0), "a whole number of at least 1"),
        ("model.num_head_channels", 0, "or -1"),
        ("model.dtype", "float16", "one of float32, bfloat16"),
        ("model.remat", 1, "True or False"),
        ("denoiser.sandwich", "weiner", "did you mean 'wiener'?"),
        ("denoiser.sigma_data", 0.0, "more than 0"),
        ("schedule.sigma_min", float("nan"), "more than 0"),
        ("schedule.sigma_max", float("inf"), "a number"),
        ("schedule.log_sigma_mean", "low", "a finite number"),
        ("schedule.train_stride", 1001, "from 1 to 1000"),
        ("loss.name", "msn", "did you mean 'msm'?"),
        ("loss.min_keep", 0.0, "more than 0"),
        ("optim.learning_rate", "1e-3", "more than 0"),
        ("optim.ema_rate", 1.0, "less than 1"),
        ("optim.decay", "cosin", "did you mean 'cosine'?"),
        ("training.checkpoint_every", 0, "at least 1"),
        ("sampling.mask_keep", 1.5, "at most 1"),
        ("solver.mask_order", None, "one of iid, complement"),
        ("solver.eta", -0.1, "at least 0"),
        ("solver.consistency", "entry", "did you mean 'entries'?"),
        ("task.name", "super_resolution", "one of acquired, box_inpainting"),
        ("task.noise_std", -0.1, "at least 0"),
        ("task.factor", 2.0, "a whole number"),
        ("task.keep", 0.0, "more than 0"),
        ("task.sigma", 0.0, "more than 0"),
        ("eval.split", "tset", "did you mean 'test'?"),
        ("eval.solvers", (), "at least 1"),
        ("eval.solvers", ("msm", "cgsense"), "did you mean 'cg_sense'?"),
        ("eval.folder", "../eval", "inside the workdir"),
        ("eval.folder", "/elsewhere/eval", "inside the workdir"),
        ("eval.folder", "checkpoints/eval", "none of checkpoints"),
        ("eval.checkpoint", None, "text"),
        ("tune.objective", "helt_out", "did you mean 'held_out'?"),
        ("tune.hide", 1.0, "less than 1"),
        ("tune.folder", "eval/tune", "none of checkpoints"),
    ],
)
def test_one_wrong_setting_is_one_line_that_names_it(key, value, told):
    with pytest.raises(UserError) as error:
        check(changed(**{key.replace(".", "__"): value}))
    message = str(error.value)
    assert message.startswith(f"{key} is {value!r}: ")
    assert told in message
    assert "\n" not in message


IMAGES = {
    "transform__name": "identity",
    "data__num_coils": 0,
    "data__augment": ("mirror",),
    "masks__name": "random_boxes",
    "masks__grid": 4,
    "masks__drop": 6,
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schedule__sigma_min": 20.0}, "schedule.sigma_min is 20.0: it must be less than schedule.sigma_max (20.0)"),
        ({"masks__acs_lines": 65}, "masks.acs_lines is 65: it must be at most data.image_size (64)"),
        ({"data__image_size": (2, 64)}, "data.image_size is 2x64: it must be at least 4"),
        ({"model__patch_size": 32}, "data.image_size is 64: it must be at least 128"),
        ({"model__num_heads": 3}, "model.num_heads is 3: it must divide the 128 channels"),
        ({"model__num_head_channels": 48}, "model.num_head_channels is 48: it must divide the 128 channels"),
        (
            {"model__num_channels": 6, "model__attention_resolutions": (64,), "model__num_heads": 4},
            "model.num_heads is 4: it must divide the 6 channels",
        ),
        ({"data__num_coils": 0}, "data.num_coils is 0: transform.name 'multicoil_fourier' needs at least 1"),
        ({**IMAGES, "data__num_coils": 4}, "data.num_coils is 4: transform.name 'identity' needs 0"),
        ({**IMAGES, "masks__name": "cartesian_random"}, "masks.name is 'cartesian_random': transform.name 'identity'"),
        ({"data__augment": ("flip", "mirror")}, "data.augment has mirror: 'multicoil_fourier' measurements have only"),
        ({**IMAGES, "data__augment": ("phase",)}, "data.augment has phase: 'identity' measurements have only"),
        ({**IMAGES, "masks__grid": 5}, "masks.grid is 5: it must divide data.image_size (64)"),
        ({**IMAGES, "masks__drop": 16}, "masks.drop is 16: it must be less than the 16 blocks"),
        ({"schedule__name": "ddpm", "sampling__num_levels": 201}, "sampling.num_levels is 201: it must be at most 200"),
        ({"schedule__name": "ddpm", "solver__num_levels": 201}, "solver.num_levels is 201: it must be at most 200"),
        ({"solver__start_sigma": 0.001}, "solver.start_sigma is 0.001: it must be more than schedule.sigma_min"),
        ({"task__name": "sr"}, "task.name is 'sr': transform.name 'multicoil_fourier' needs cs_mri or acquired"),
        ({**IMAGES, "task__name": "cs_mri"}, "task.name is 'cs_mri': transform.name 'identity' needs acquired or one"),
        ({**IMAGES, "task__name": "sr", "task__factor": 3}, "task.factor is 3: it must divide data.image_size (64)"),
        (
            {**IMAGES, "task__name": "box_inpainting", "task__box_size": 64},
            "task.box_size is 64: it must be at most 63",
        ),
        ({**IMAGES, "task__name": "motion_blur", "task__length": 65.0}, "task.length is 65.0: it must be at most 64"),
        ({"task__name": "cs_mri", "task__acs_lines": 65}, "task.acs_lines is 65: it must be at most 64"),
        (
            {**IMAGES, "task__name": "colorization", "solver__consistency": "entries"},
            "solver.consistency is 'entries': task.name 'colorization' measures no entries",
        ),
        ({"optim__accumulate": 3}, "training.batch_size is 16: it must be a multiple of 3 = 1 device x"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_one_line(changes, told):
    problems = find_problems(changed(**changes))
    assert len(problems) == 1
    assert problems[0].startswith(told)
    assert "\n" not in problems[0]


def test_an_image_experiment_is_sound():
    assert find_problems(changed(**IMAGES)) == []


def test_random_boxes_ask_for_their_settings():
    changes = {key: value for key, value in IMAGES.items() if key not in ("masks__grid", "masks__drop")}
    (problem,) = find_problems(changed(**changes))
    assert problem.startswith("masks.name is 'random_boxes': it needs masks.grid")


def test_tasks_of_entries_are_those_whose_operator_keeps_entries():
    for task in TASKS.names():
        config = changed(task__name=task, **({} if task in ("acquired", "cs_mri") else IMAGES))
        operator = get_task(config, get_transform(config)).operator
        assert isinstance(operator, Acquisition) == (task in combinations.TASKS_OF_ENTRIES)


def test_batches_must_split_over_devices(monkeypatch):
    monkeypatch.setattr(combinations.jax, "device_count", lambda: 8)
    assert find_problems(changed(training__batch_size=24, eval__batch_size=16)) == []
    problems = find_problems(changed(training__batch_size=20, eval__batch_size=12))
    assert problems == [
        "training.batch_size is 20: it must be a multiple of 8 = 8 devices x optim.accumulate 1, e.g. 24",
        "eval.batch_size is 12: it must be a multiple of the 8 devices, e.g. 16",
    ]
    config = changed(training__batch_size=20, eval__batch_size=12, solver__start_sigma=1e-4)
    told = {mode: [line.split(" is ")[0] for line in find_problems(config, mode)] for mode in ("train", "eval", "tune")}
    always = ["solver.start_sigma"]
    assert told == {"train": [*always, "training.batch_size"], "eval": [*always, "eval.batch_size"], "tune": always}


def test_all_problems_are_told_at_once():
    config = changed(loss__name="mms", model__num_heads=0, optim__learning_rate=-1.0, schedule__sigma_max=1e-4)
    with config.unlocked():
        del config.optim["weight_decay"]
        config.model.num_chanels = 3
    with pytest.raises(UserError) as error:
        check(config)
    lines = str(error.value).splitlines()
    assert [line.split(" is ")[0] for line in lines] == [
        "model.num_heads",
        "loss.name",
        "optim.learning_rate",
        "optim.weight_decay",
        "model.num_chanels",
        "schedule.sigma_min",
    ]
    assert "did you mean 'model.num_channels'?" in lines[4]


def test_a_wrong_setting_is_not_told_twice_through_its_combinations():
    (problem,) = find_problems(changed(data__image_size=-7))
    assert problem.startswith("data.image_size is -7")


def test_names_come_from_the_registries():
    assert {"msm", "cg_sense", "zero_filled"} <= set(registered("solvers.registry", "SOLVERS", "solvers")())
    for path in ("eval.solvers", "model.name", "loss.name", "masks.name", "transform.name", "schedule.name"):
        assert "one of " in SETTINGS[path].says()


def test_checking_takes_less_than_three_seconds():
    begin = time.monotonic()
    find_problems(changed(loss__name="mms"))
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss__name": "dsm"}, "data.acquisition is 'undersampled': loss.name 'dsm' needs 'full', clean data"),
        ({"loss__redraw": True}, "data.acquisition is 'undersampled': loss.redraw needs 'full', clean data"),
        ({"loss__name": "dsm", "loss__redraw": True, "data__acquisition": "full"}, "has no masks to redraw"),
        ({"loss__name": "msm_sure", "data__acquisition": "full"}, "take data.acquisition 'undersampled'"),
        (
            {"loss__name": "msm_sure", "data__acquisition": "full", "loss__redraw": True},
            "its data have no noise; set loss.redraw_noise_std",
        ),
    ],
)
def test_losses_ask_for_the_data_that_they_need(changes, told):
    (problem,) = find_problems(changed(**changes))
    assert told in problem


def test_photographs_show_a_network_what_it_was_trained_on_in_every_variant():
    """Masks of p(S), but whole pictures to the oracle; variants come after, so that they have the last word."""
    for variant in ("", "smoke", "random_inpainting"):
        for name in ("photos64_msm", "photos64_redraw", "photos64_oracle"):
            config = importlib.import_module(f"msm.configs.{name}").get_config(variant)
            keep = 1.0 if name == "photos64_oracle" else 0.0
            assert [config[s].mask_keep for s in ("solver", "sampling", "msm_fast")] == [keep] * 3
            assert (config.solver.num_levels == config.msm_fast.num_levels == 3) == (variant == "smoke")
    published = importlib.import_module("msm.configs.photos64_oracle").get_config("published").solver
    assert (published.num_levels, published.w, published.mask_keep, published.reinject) == (200, 2, 0.0, True)
