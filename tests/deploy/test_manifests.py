"""Manifests for clusters: of valid schemas, with flags that exist, batches that divide, one meaning of codes."""

import re

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from msm.configs.rules.settings import SETTINGS
from msm.infra.errors import UserError
from tests.helpers.paths import ROOT

KUBERNETES = "1.34"
DEPLOY = ROOT / "deploy"
TRAIN = DEPLOY / "kubernetes" / "train.yaml"
TPU = DEPLOY / "gke" / "train_tpu.yaml"

# Of jobset.x-k8s.io/v1alpha2, which no package has: the fields that there are, where something else is a mistake.
_NAMES = {"type": "array", "items": {"type": "string"}}
_RULE = {
    "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    "action": {"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    "onJobFailureReasons": {
        "type": "array",
        "items": {
            "enum": [
                *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded"),
                "PodFailurePolicy",
            ]
        },
    },
    "targetReplicatedJobs": _NAMES,
}


def _object(properties: dict, *required: str) -> dict:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


JOBSET = _object(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": _object(
            {
                "network": _object(
                    {
                        "enableDNSHostnames": {"type": "boolean"},
                        "publishNotReadyAddresses": {"type": "boolean"},
                        "subdomain": {"type": "string"},
                    }
                ),
                "failurePolicy": _object(
                    {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "rules": {"type": "array", "items": _object(_RULE, "name", "action")},
                    }
                ),
                "replicatedJobs": {
                    "type": "array",
                    "minItems": 1,
                    "items": _object(
                        {"name": {"type": "string"}, "replicas": {"type": "integer"}, "template": {"type": "object"}},
                        "name", "template",
                    ),
                },
            },
            "replicatedJobs",
        ),
    },
    "apiVersion", "kind", "metadata", "spec",
)  # fmt: skip


def documents(path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def jobs() -> dict[str, dict]:
    """The Jobs of all manifests as objects of their own."""
    (plain,) = [document for document in documents(TRAIN) if document["kind"] == "Job"]
    (jobset,) = documents(TPU)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    metadata = {"name": f"{jobset['metadata']['name']}-{replicated['name']}-0"}
    return {
        "gpu": plain,
        "tpu": {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, **replicated["template"]},
    }


def test_every_object_of_kubernetes_is_valid():
    for document in documents(TRAIN):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert [document["kind"] for document in documents(TRAIN)][-1] == "Job"


def test_the_checker_sees_a_misspelt_field():
    wrong = jobs()["gpu"]
    wrong["spec"]["template"]["spec"]["restartPolici"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_the_jobset_is_valid_and_so_is_its_job():
    (jobset,) = documents(TPU)
    Draft202012Validator(JOBSET).validate(jobset)
    kubernetes_validate.validate(jobs()["tpu"], KUBERNETES, strict=True)
    jobset["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(ValidationError):
        Draft202012Validator(JOBSET).validate(jobset)


def test_pods_find_each_other():
    """JAX takes the coordinator's name from the Job's index and the headless service, which must be the pods' own."""
    service = next(document for document in documents(TRAIN) if document["kind"] == "Service")
    job = jobs()["gpu"]
    assert service["spec"]["clusterIP"] == "None"
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_a_mistake_fails_the_job_and_everything_else_is_tried_again(name):
    spec = jobs()[name]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    rule = spec["podFailurePolicy"]["rules"][0]
    assert rule["action"] == "FailJob" and rule["onExitCodes"] == {"operator": "In", "values": [2]}
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


def commands() -> dict[str, tuple[list[str], int]]:
    """{name: (words of the command, devices of the run)}."""
    found = {}
    for name, job in jobs().items():
        (container,) = job["spec"]["template"]["spec"]["containers"]
        requested = container["resources"]["requests"]
        chips = int(requested.get("google.com/tpu") or requested["nvidia.com/gpu"])
        found[name] = (container["command"], chips * job["spec"]["completions"])
    text = (DEPLOY / "slurm" / "train.sbatch").read_text()
    sizes = {option: int(n) for option, n in re.findall(r"#SBATCH --(nodes|ntasks-per-node|gpus-per-node)=(\d+)", text)}
    assert sizes["ntasks-per-node"] == sizes["gpus-per-node"]  # JAX gives each process of Slurm one GPU
    found["slurm"] = (re.findall(r"--[\w.]+=\S+", text.split("srun")[1]), sizes["nodes"] * sizes["gpus-per-node"])
    return found


@pytest.mark.parametrize("name", ["gpu", "tpu", "slurm"])
def test_commands_have_flags_that_exist_and_batches_that_divide(name):
    words, devices = commands()[name]
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    assert flags["coordinator"] == "auto"
    assert (ROOT / flags["config"]).is_file()
    settings = {key.removeprefix("config."): value for key, value in flags.items() if key.startswith("config.")}
    for key, value in settings.items():
        assert key in SETTINGS
        assert not SETTINGS[key].problem(key, int(value) if value.isdigit() else value), UserError
    assert int(settings["training.batch_size"]) % devices == 0
    assert set(flags) - {f"config.{key}" for key in settings} <= {"config", "mode", "workdir", "cache", "coordinator"}
