"""What the settings of config.tune must be; configs/rules/settings.py checks them with all others."""

from msm.infra.values import choice, folder_inside, integer, name, number, registered

RESERVED_FOLDERS = ("checkpoints", "checkpoints-meta", "tensorboard", "samples", "em", "eval")

TUNE = {
    "solver": name(registered("solvers.registry", "SOLVERS", "solvers")),
    "objective": name(registered("evaluation.held_out", "OBJECTIVES")),
    "hide": number(above=0, below=1),
    "block": integer(1),
    "trials": integer(1),
    "split": choice("train", "validation", "test"),
    "max_examples": integer(0),
    "batch_size": integer(1),
    "num_samples": integer(1),
    "folder": folder_inside(RESERVED_FOLDERS),
}
