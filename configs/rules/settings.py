"""What every setting of a config must be, one rule each."""

from msm.configs.default import solver_sections
from msm.configs.rules.em import EM
from msm.configs.rules.tune import TUNE
from msm.infra.trackers import NAMES as TRACKERS
from msm.infra.values import (
    Rule,
    choice,
    flag,
    folder_inside,
    integer,
    name,
    name_or_empty,
    number,
    one_or_pair,
    pair,
    registered,
    several,
    text,
)

RESERVED_FOLDERS = ("checkpoints", "checkpoints-meta", "tensorboard", "samples", "em", "tune")

SOLVER = name(registered("solvers.registry", "SOLVERS", "solvers"))

SAMPLER = {  # shared by config.sampling and config.solver
    "num_levels": integer(1),
    "w": integer(1),
    "mask_keep": number(0, 1),
    "mask_order": choice("iid", "complement"),
    "reinject": flag(),
    "weight": choice("count", "population"),
    "step": choice("ddim", "renoise"),
    "order": integer(1, 2),
    "eta": number(0, 1),
}

STRENGTH = {"weight": number(0, 1), "gamma": number(above=0)}
LANGEVIN = {"corrector_steps": integer(1), "snr": number(0)}
PREDICTOR_CORRECTOR = {
    **LANGEVIN,
    "predictor": name(registered("predictor_corrector", "PREDICTORS")),
    "corrector": name(registered("predictor_corrector", "CORRECTORS")),
}

DRAWING = ("method", *SAMPLER, *PREDICTOR_CORRECTOR)  # of config.sampling

SCORE_SOLVERS = {
    "projection": ("weight", PREDICTOR_CORRECTOR),
    "langevin_projection": ("weight", LANGEVIN),
    "baseline": ("gamma", PREDICTOR_CORRECTOR),
    "langevin": ("gamma", LANGEVIN),
}

SETTINGS: dict[str, Rule] = {
    "seed": integer(0, 2**32 - 1),
    # data
    "data.dir": text(),
    "data.image_size": one_or_pair(integer(1)),
    "data.num_coils": integer(0),
    "data.acquisition": choice("undersampled", "full"),
    "data.augment": several(name(registered("operators.augment", "AUGMENTATIONS"))),
    # operators
    "transform.name": name(registered("operators.transform", "TRANSFORMS")),
    "masks.name": name(registered("operators.masks", "MASKS")),
    "masks.acceleration": number(1),
    "masks.acs_lines": integer(0),
    "masks.grid": integer(1),
    "masks.drop": integer(0),
    # network
    "model.name": name(registered("models.registry", "MODELS", "models")),
    "model.num_channels": integer(2),
    "model.channel_mult": several(integer(1), at_least=1, repeats=True),
    "model.num_res_blocks": integer(1),
    "model.attention_resolutions": several(integer(1)),
    "model.num_heads": integer(1),
    "model.num_head_channels": integer(1, other=-1),
    "model.patch_size": integer(1),
    "model.dtype": choice("float32", "bfloat16"),
    "model.remat": flag(),
    "model.ncsnpp.embedding": choice("fourier", "positional"),
    "model.ncsnpp.fourier_scale": number(above=0),
    "model.ncsnpp.progressive": choice("output_skip", "residual", "none"),
    "model.ncsnpp.progressive_input": choice("input_skip", "residual", "none"),
    **{f"model.ncsnpp.{key}": flag() for key in ("fir", "skip_rescale", "scale_by_sigma", "centered")},
    # denoiser and schedule
    "denoiser.parametrization": name(registered("models.denoiser", "PARAMETRIZATIONS")),
    "denoiser.sandwich": name(registered("models.denoiser", "SANDWICHES")),
    "denoiser.cg_steps": integer(1),
    "denoiser.sigma_data": number(above=0),
    "schedule.name": name(registered("sde_lib", "SCHEDULES")),
    "schedule.sigma_min": number(above=0),
    "schedule.sigma_max": number(above=0),
    "schedule.rho": number(above=0),
    "schedule.log_sigma_mean": number(),
    "schedule.log_sigma_std": number(above=0),
    "schedule.train_stride": integer(1, 1000),
    "schedule.beta_min": number(above=0),
    "schedule.beta_max": number(above=0),
    # training
    "loss.name": name(registered("losses", "LOSSES")),
    "loss.reduction": choice("observed", "all"),
    "loss.min_keep": number(above=0, high=1),
    "loss.sure_weight": number(0),
    "loss.sure_tau": number(above=0),
    "loss.sure_count": choice("observed", "published"),
    "loss.ambient_keep": number(above=0, high=1),
    "loss.redraw": flag(),
    "loss.redraw_noise_std": number(0),
    "optim.learning_rate": number(above=0),
    "optim.warmup_steps": integer(0),
    "optim.decay": choice("cosine", "constant"),
    "optim.weight_decay": number(0),
    "optim.grad_clip": number(0),
    "optim.ema_rate": number(0, below=1),
    "optim.accumulate": integer(1),
    "training.batch_size": integer(1),
    "training.num_steps": integer(1),
    "training.log_every": integer(1),
    "training.checkpoint_every": integer(1),
    "training.resume_every": integer(1),
    "training.sample_every": integer(1),
    "training.max_skipped": integer(1),
    "training.profile": pair(integer(0), "(start, steps)"),
    "training.picture_solver": SOLVER,
    "training.tracker": choice(*TRACKERS),
    **{f"em.{key}": rule for key, rule in EM.items()},
    # sampling and reconstruction
    **{f"sampling.{key}": rule for key, rule in SAMPLER.items()},
    "sampling.method": name(registered("sampling", "METHODS")),
    **{f"sampling.{key}": rule for key, rule in PREDICTOR_CORRECTOR.items()},
    "sampling.num_images": integer(1),
    "sampling.batch_size": integer(1),
    "sampling.folder": folder_inside(()),
    "sampling.features": text(),
    "sampling.reference_split": choice("validation", "test", "none"),
    "sampling.reference_features": text(empty=True),
    "sampling.check_images": integer(0),
    **{f"solver.{key}": rule for key, rule in SAMPLER.items()},
    "solver.step": choice("ddim", "renoise", "plug_and_play"),
    "solver.start_sigma": number(above=0),
    "solver.consistency": name(registered("solvers.msm", "CONSISTENCY")),
    "solver.conditional": choice("draw", "mean"),
    "solver.variance": name(registered("solvers.msm", "VARIANCES")),
    "solver.symmetry": flag(),
    "solver.cg_steps": integer(1),
    "solver.damping": number(0),
    "solver.finish_sigma": number(0),
    "solver.gamma": number(0),
    "solver.temperature": number(above=0),
    "score_sde.consistency": name(registered("solvers.guidance", "CONSISTENCY")),
    "score_sde.damping": number(0),
    **{
        f"score_sde.{solver}.{key}": rule
        for solver, (strength, rules) in SCORE_SOLVERS.items()
        for key, rule in {"num_levels": integer(1), strength: STRENGTH[strength], **rules}.items()
    },
    "ssdu.share": number(above=0, below=1),
    "ssdu.sigma": number(above=0),
    "ssdu.unrolls": integer(1),
    **{f"baselines.{name}": number(0) for name in ("ridge", "wavelet", "tv")},
    "baselines.fbp_window": name(registered("operators.ct", "WINDOWS")),
    **{f"{name}.{key}": s.rule for name, own in solver_sections().items() for key, s in own.settings.items()},
    # evaluation
    "task.name": name(registered("operators.tasks", "TASKS")),
    "task.seed": integer(0, 2**32 - 1),
    "task.noise_std": number(0),
    "task.masks": name_or_empty(registered("operators.masks", "MASKS")),
    "task.acceleration": number(1),
    "task.acs_lines": integer(0),
    "task.factor": integer(1),
    "task.box_size": integer(1),
    "task.keep": number(above=0, high=1),
    "task.sigma": number(above=0),
    "task.length": number(above=0),
    "task.angle": number(),
    "task.views": integer(1),
    "task.metal": choice("titanium", "iron", "copper", "gold"),
    "task.implants": integer(1),
    "task.photons": number(1, 1e9),
    "task.field": number(above=0),
    "eval.split": choice("train", "validation", "test"),
    "eval.acquisition": choice("undersampled", "full"),
    "eval.solvers": several(SOLVER, at_least=1),
    "eval.num_samples": integer(1),
    "eval.batch_size": integer(1),
    "eval.max_examples": integer(0),
    "eval.metrics": several(name(registered("evaluation.metrics", "SETS")), at_least=1),
    "eval.lpips_network": choice("alexnet", "vgg16"),
    "eval.lpips_weights": text(empty=True),
    "eval.folder": folder_inside(RESERVED_FOLDERS),
    "eval.checkpoint": text(empty=True),
    "eval.tuned": text(empty=True),
    **{f"tune.{key}": rule for key, rule in TUNE.items()},
}

OPTIONAL = {"masks.grid", "masks.drop"}  # only masks of images have them
