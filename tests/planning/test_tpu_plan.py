"""tools/tpu_plan.py: what it reads from compiled programs, its search and tables; compilation where libtpu is there."""

import importlib.util
import json
import math
import subprocess
import sys

import jax
import pytest

from msm.configs import brain64_mri_ve, brain64_msm
from msm.infra.errors import UserError
from msm.planning import ahead, hlo, programs
from msm.tools import tpu_plan
from tests.helpers.paths import ROOT

GIB = 2**30

CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
# As XLA prints programs for TPUs: a loop of five turns around one of three, and one that stops by itself.
PROGRAM = f"""HloModule jit_step, is_scheduled=true, num_partitions=16

%fused_computation (p.0: f32[8,128]) -> f32[8,128] {{
  %p.0 = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  ROOT %tanh.0 = f32[8,128]{{1,0:T(8,128)}} tanh(%p.0), {CYCLES % 7777}
}}

%inner_body (i.0: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %i.0 = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)S(1)}}) parameter(0)
  %fusion.0 = f32[8,128]{{1,0:T(8,128)}} fusion(%i.0), kind=kLoop, calls=%fused_computation, {CYCLES % 100}
  ROOT %tuple.0 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) tuple(%i.0, %fusion.0)
}}

%inner_condition (i.1: (s32[], f32[8,128])) -> pred[] {{
  %limit.1 = s32[]{{:T(128)}} constant(3)
  %i.1 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) parameter(0)
  %count.1 = s32[]{{:T(128)}} get-tuple-element(%i.1), index=0
  ROOT %lt.1 = pred[]{{:T(512)}} compare(%count.1, %limit.1), direction=LT
}}

%outer_body (o.0: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %o.0 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) parameter(0)
  %while.1 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) while(%o.0), condition=%inner_condition, body=%inner_body
  ROOT %copy.1 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) copy(%while.1), {CYCLES % 10}
}}

%outer_condition (o.1: (s32[], f32[8,128])) -> pred[] {{
  %o.1 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) parameter(0)
  %count.2 = s32[]{{:T(128)}} get-tuple-element(%o.1), index=0
  %limit.2 = s32[]{{:T(128)}} constant(5)
  ROOT %lt.2 = pred[]{{:T(512)}} compare(%count.2, %limit.2), direction=LT
}}

%until (u.1: (s32[], f32[8,128])) -> pred[] {{
  %u.1 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) parameter(0)
  ROOT %and.1 = pred[]{{:T(512)}} and(%u.1, %u.1)
}}

ENTRY %main (a: f32[8,128], /*index=1*/b: bf16[4]) -> f32[8,128] {{
  %a = f32[8,128]{{1,0:T(8,128)}} parameter(0), metadata={{op_name="while(1)"}}
  %while.2 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) while(%a), condition=%outer_condition, body=%outer_body
  %while.3 = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) while(%while.2), condition=%until, body=%outer_body
  %all-reduce.1 = (f32[8,128]{{1,0:T(8,128)S(1)}}, /*index=1*/bf16[4]{{0}}) all-reduce(%while.3), to_apply=%add
  %all-reduce-start.1 = f32[4]{{0}} all-reduce-start(%a), to_apply=%add
  %all-reduce-done.1 = f32[4]{{0}} all-reduce-done(%all-reduce-start.1)
  %all-gather-start.1 = (f32[8,128]{{1,0}}, f32[128,128]{{1,0}}) all-gather-start(%a), dimensions={{0}}
  %all-gather-done.1 = f32[128,128]{{1,0}} all-gather-done(%all-gather-start.1)
  ROOT %add.1 = f32[8,128]{{1,0:T(8,128)}} add(%a, %a), {CYCLES % 1}
}}
"""


def test_usage_counts_collectives_and_multiplies_loops_out():
    found = hlo.usage(PROGRAM)
    assert found.collectives == {
        "all-gather": hlo.Traffic(1, 128 * 128 * 4),
        "all-reduce": hlo.Traffic(2, 8 * 128 * 4 + 4 * 2 + 4 * 4),
    }
    turn = 3 * 100 + 10  # of the outer body; what is inside a fusion has its cycles there
    assert found.cycles == 5 * turn + turn + 1
    assert found.unread_loops == 1


def test_operations_that_the_cost_model_does_not_know_are_counted_not_added():
    text = PROGRAM.replace(f"{CYCLES % 1}", CYCLES % (2**63 - 1))
    known, found = hlo.usage(PROGRAM), hlo.usage(text)
    assert (known.unknown, found.unknown) == (0, 1)
    assert found.cycles == known.cycles - 1


def test_collectives_inside_loops_count_at_every_turn():
    text = PROGRAM.replace(
        "  ROOT %tuple.0", "  %reduce-scatter.9 = f32[1,128]{1,0} reduce-scatter(%fusion.0)\n  ROOT %tuple.0"
    )
    assert hlo.usage(text).collectives["reduce-scatter"] == hlo.Traffic(15 + 3, 18 * 512)


@pytest.mark.parametrize(
    "text, size",
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096),
        ("c64[2,3]", 48),
        ("pred[7]", 7),
        ("bf16[]", 2),
        ("(u32[2]{0}, /*index=1*/s8[3,0]{1,0}, f8e4m3fn[5])", 13),
    ],
)
def test_bytes_of_types(text, size):
    assert hlo.num_bytes(text) == size


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.usage("HloModule empty")


def test_refusals_of_the_compiler_are_read():
    first = "RESOURCE_EXHAUSTED: ... required for HLO temporaries (250.12G) exceeds available HBM (15.75G)."
    assert ahead.read_refusal(first) == ahead.TooLarge(int(250.12 * GIB), int(15.75 * GIB))
    second = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.02G of 15.75G hbm. Exceeded by 276.1M."
    assert ahead.read_refusal(second) == ahead.TooLarge(int(16.02 * GIB), int(15.75 * GIB))
    with pytest.raises(RuntimeError, match="another"):
        ahead.read_refusal("INTERNAL: another", RuntimeError("another"))


def search(peak_of, hbm, start, trials=8):
    asked = []

    def peak(batch):
        asked.append(batch)
        return peak_of(batch), peak_of(batch) <= hbm

    return ahead.largest_batch(peak, start, hbm, trials), asked


@pytest.mark.parametrize("start", [1, 4, 37, 200])
def test_search_finds_the_largest_batch_in_few_compilations(start):
    found, asked = search(lambda n: 2000 + 370 * n, 16000, start)  # (16000 - 2000) / 370 = 37.8
    assert found == (37, 38)
    assert len(asked) == len(set(asked)) <= 5


def test_search_ends_where_nothing_fits_and_where_trials_do():
    assert search(lambda n: 20000 + n, 16000, 8)[0] == (0, 1)
    found, asked = search(lambda n: 100 * n**1.3, 16000, 1, trials=3)
    assert len(asked) == 3 and found[0] == max(n for n in asked if 100 * n**1.3 <= 16000)
    found, asked = search(lambda n: 5, 16000, 1, trials=4)
    assert found == (asked[-1], 0)


def test_search_of_the_tool_tells_both_batches():
    def trial_of(batch):
        found = cost(temporary=batch * GIB) if 5.25 + batch <= 16 else ahead.TooLarge(int(5.25 + batch) * GIB, 16 * GIB)
        return tpu_plan.Trial("train", 1, batch, found, False, 1.0)

    told = tpu_plan.find_largest(trial_of, 2, 1, 16 * GIB, 6)
    assert told == "the largest batch per chip seen to fit is 10; 11 does not fit"
    told = tpu_plan.find_largest(trial_of, 4, 4, 16 * GIB, 6)  # optim.accumulate 4
    assert told == "the largest batch per chip seen to fit is 8; 12 does not fit"
    assert "2; none was seen" in tpu_plan.find_largest(trial_of, 2, 1, 16 * GIB, 1)


def cost(**changes) -> ahead.Cost:
    usage = hlo.Usage({"all-reduce": hlo.Traffic(2, GIB // 2)}, 3 * 10**9, changes.pop("unread_loops", 0))
    sizes = {"arguments": 4 * GIB, "outputs": 5 * GIB, "aliased": 4 * GIB, "temporary": 2 * GIB, "code": GIB // 4}
    return ahead.Cost(
        **{"flops": 98.5e12, "bytes_accessed": 3.0 * GIB, "optimal_seconds": 0.5, **sizes, "usage": usage, **changes}
    )


TOPOLOGY = ahead.Topology("v5e:4x4", ahead.CHIPS["v5e"], [object()] * 16)


def test_report_of_a_program_that_fits():
    text = tpu_plan.describe(tpu_plan.Trial("solve", 600, 4, cost(unread_loops=1), True, 61.2), TOPOLOGY, 16 * GIB)
    assert "solve: 4 per chip, 64 in all" in text
    assert "98.500 T per chip (one of the loop's 600 turns)" in text
    assert "7.25 GiB of 16.00 GiB per chip: 4.00 GiB arguments, 2.00 GiB temporary, 1.00 GiB results, 0.25" in text
    assert "collectives    all-reduce 2 x (0.50 GiB)" in text
    assert "2.000 s (3,000,000,000 cycles at 1.5 GHz, without communication)" in text
    assert "at best        0.500 s (one of the loop's 600 turns)" in text
    assert "61 s (--quick)" in text
    assert "1 loops of unknown length" in text
    assert "note           all-reduce: devices that share a batch need not do this" in text


def test_a_step_at_half_the_peak_says_so():
    trial = tpu_plan.Trial("train", 1, 4, cost(flops=197e12), False, 1.0)  # 2 s at 197 TFLOP/s would do twice that
    assert tpu_plan.utilisation(trial, TOPOLOGY) == pytest.approx(0.5)
    text = tpu_plan.describe(trial, TOPOLOGY, 16 * GIB)
    assert "50% of the peak" in text and "note" not in text  # a training step averages its gradients
    assert "not given" in tpu_plan.describe(
        tpu_plan.Trial("train", 1, 4, cost(optimal_seconds=-1.0), False, 1.0), TOPOLOGY, 1
    )
    without = cost(usage=hlo.Usage({}, 3 * 10**9, 0))
    assert tpu_plan.collectives(without) == "none"


def test_report_of_a_program_that_does_not_fit():
    trial = tpu_plan.Trial("train", 1, 64, ahead.TooLarge(40 * GIB, 16 * GIB), False, 5.0)
    text = tpu_plan.describe(trial, TOPOLOGY, 16 * GIB)
    assert "train: 64 per chip, 1024 in all: does not fit" in text
    assert "40.00 GiB needed, 16.00 GiB per chip" in text


def test_table_of_the_log():
    config = brain64_msm.get_config()
    config.model.update(dtype="bfloat16", remat=True)
    trials = [
        tpu_plan.Trial("train", 1, 4, cost(), True, 61.2),
        tpu_plan.Trial("train", 1, 9, ahead.TooLarge(1, 2), True, 1),
    ]
    rows = [tpu_plan.record("brain64_msm", config, TOPOLOGY, 16 * GIB, trial) for trial in trials]
    rows = [json.loads(json.dumps(row)) for row in rows]
    lines = tpu_plan.table(rows).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2] == (
        "| brain64_msm | train | v5litepod-16 | bfloat16 | yes | 4 | 7.2 of 16.00 | 98.50 | 3.0 | 2 | 32 |"
    )
    assert "does not fit" in lines[3]
    slower = cost(usage=hlo.Usage({}, 3 * 10**9, 0, 5))
    trial = tpu_plan.Trial("train", 1, 4, slower, True, 61.2)
    assert "XLA knows no cycles of 5 operations" in tpu_plan.describe(trial, TOPOLOGY, 16 * GIB)
    row = tpu_plan.record("brain64_msm", config, TOPOLOGY, 16 * GIB, trial)
    assert tpu_plan.table([row]).endswith("| >2 | <32 |")


def test_slices_have_the_names_of_google_cloud():
    names = {"v4:2x2x4": "v4-32", "v5p:2x2x4": "v5p-32", "v5e:4x4": "v5litepod-16"}
    for name, slice_name in names.items():
        assert ahead.Topology(name, ahead.CHIPS[name.split(":")[0]], [None] * 16).slice_name == slice_name


def test_clock_and_peak_of_a_chip_fit_each_other():
    """A matrix unit of n x n does 2 n^2 operations a cycle: their number must come out whole."""
    for kind, side, units in (("v4", 128, 8), ("v5e", 128, 4), ("v5p", 128, 8), ("v6e", 256, 4)):
        chip = ahead.CHIPS[kind]
        assert chip.peak == pytest.approx(units * 2 * side**2 * chip.clock, rel=5e-3)


def test_unknown_kinds_and_a_missing_compiler_are_told(monkeypatch):
    with pytest.raises(UserError, match=r"unknown kind of TPU; did you mean 'v5e'\?; known are v4:.*4x4x8.*16x16"):
        ahead.get_topology("v5ee:4x4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu is not installed.*pip install -r requirements-tpu\.txt"):
        ahead.get_topology("v5e:4x4")


def test_flags_are_checked_before_anything_is_compiled(tmp_path):
    config = brain64_msm.get_config()
    config.optim.accumulate = 4
    with pytest.raises(UserError, match=r"per_device_batch is 6: it must be a multiple of optim\.accumulate .4."):
        tpu_plan.check_flags(config, ["train"], 6, "")
    tpu_plan.check_flags(config, ["solve"], 6, str(tmp_path / "plans.jsonl"))
    with pytest.raises(UserError, match=r"plans\.jsonl' cannot be written .No such file"):
        tpu_plan.check_flags(config, ["solve"], 6, str(tmp_path / "missing/plans.jsonl"))
    with pytest.raises(UserError, match="unknown program 'trian'; did you mean 'train'"):
        tpu_plan.check_flags(config, ["trian"], 1, "")


def test_mistakes_on_the_command_line_are_one_line():
    command = [sys.executable, "tools/tpu_plan.py", "--config=configs/brain64_msm.py", "--topology=v5e:4x4"]
    command += ["--programs=trian", "--config.model.num_heads=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: model.num_heads is 3") and "Traceback" not in done.stderr


def toy_config():
    config = brain64_msm.get_config()
    config.data.update(image_size=16, num_coils=2)
    config.masks.acs_lines = 4
    config.model.update(num_channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=())
    config.model.update(num_heads=1, patch_size=1)
    config.denoiser.update(sandwich="adjoint")
    config.solver.update(num_levels=3, w=2, reinject=False)
    config.sampling.update(num_levels=3, w=2, reinject=True)
    config.eval.num_samples = 2
    return config


def test_programs_are_the_runs_own():
    config, devices = toy_config(), jax.devices()[:1]
    train = programs.lower("train", config, devices, 2)
    state, batch, key = train.lowered.args_info[0]
    donated = [leaf.donated for leaf in jax.tree.leaves(state)]
    assert all(donated) and len(donated) >= 5  # step, parameters, average, moments: a vector each
    assert not any(leaf.donated for leaf in jax.tree.leaves((batch, key)))
    assert batch.y.shape == (2, 2, 16, 16) and batch.mask.shape == (2, 1, 1, 16) and batch.maps.shape == batch.y.shape
    assert train.turns == 1

    solve = programs.lower("solve", config, devices, 3)
    assert solve.lowered.out_info.shape == (2, 3, 16, 16)
    assert solve.turns == 3  # both masks of a level go through the network in one batch
    drawn = programs.lower("sample", config, devices, 3)
    assert drawn.lowered.out_info.shape == (1, 3, 16, 16)
    assert drawn.turns == 6  # the masks act one after the other


def test_solve_takes_the_measurements_of_the_task():
    config = toy_config()
    config.data.num_coils, config.transform.name, config.data.augment = 0, "identity", ()
    config.masks = type(config)({"name": "random_boxes", "grid": 4, "drop": 6})
    config.task.update(name="sr", factor=4)
    config.solver.consistency = "pseudo_inverse"
    solve = programs.lower("solve", config, jax.devices()[:1], 2)
    assert solve.lowered.args_info[0][2].y.shape == (2, 4, 4, 3)
    assert solve.lowered.out_info.shape == (2, 2, 16, 16, 3)


def test_compilation_for_a_slice_of_tpus():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (pip install -r requirements-tpu.txt): nothing is compiled for TPUs")
    topology = ahead.get_topology("v5e:2x2")
    assert len(topology.devices) == 4
    hbm = ahead.hbm_bytes(topology)
    assert 15 * GIB < hbm <= 16 * GIB
    with pytest.raises(UserError, match="v5e:5x5' is refused by libtpu"):
        ahead.get_topology("v5e:5x5")
    program = programs.lower("train", toy_config(), topology.devices, 2)
    found = ahead.compile_program(program.lowered, quick=True)
    assert isinstance(found, ahead.Cost)
    assert set(found.usage.collectives) == {"all-reduce"}
    state = program.lowered.args_info[0][0]
    params, all_of_it = (sum(math.prod(a.shape) * 4 for a in jax.tree.leaves(t)) for t in (state.params, state))
    assert found.aliased >= all_of_it  # the old state's memory holds the new one
    reduced = found.usage.collectives["all-reduce"].bytes
    assert 0.98 * params < reduced <= params + 4  # and the loss; biases with the same gradient are reduced once
    assert found.flops > 0 and found.usage.cycles > 0 and found.peak < hbm


def test_turns_of_score_samplers_are_their_network_calls():
    config = brain64_mri_ve.get_config("smoke")
    config.data.update(image_size=16)
    config.masks.acs_lines = 4
    config.model.update(channel_mult=(1,), num_res_blocks=1, attention_resolutions=())
    config.eval.solvers, config.sampling.corrector_steps = config.eval.solvers[-1:], 1
    drawn = programs.lower("sample", config, jax.devices()[:1], 2)
    assert drawn.turns == 2 * config.sampling.num_levels  # a corrector and a predictor, or an estimate, at each level
    assert drawn.lowered.out_info.shape == (1, 2, 16, 16)
