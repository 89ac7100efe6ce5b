"""The Kubernetes job: each field is one that the Trainer of Kubeflow knows, and the parts of the job fit together."""

import copy
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from seresnext.recipe.load import load_recipe

ROOT = Path(__file__).parents[1]
JOB = ROOT / "scripts" / "cluster" / "train_job.yaml"
KINDS = {
    "PersistentVolumeClaim": "IoK8sApiCoreV1PersistentVolumeClaim",
    "TrainJob": "TrainerV1alpha1TrainJob",
}
# The runtime sets these variables. Kubeflow's webhook refuses a job with its own values (TorchRunReservedEnvNames).
RESERVED = {f"PET_{name}" for name in ("NNODES", "NPROC_PER_NODE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")}
POD = ("runtimePatches", 0, "trainingRuntimeSpec", "template", "spec", "replicatedJobs", 0, "template", "spec")
POD += ("template", "spec")


def documents() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(JOB.read_text())}


def is_known(document: dict[str, Any]) -> bool:
    """Return whether the model keeps all fields. The models drop unknown fields."""
    from kubeflow_trainer_api import models  # Here, since each process of the tests imports all test modules.

    return getattr(models, KINDS[document["kind"]]).from_dict(document).to_dict() == document


def part(spec: Any, path: tuple[str | int, ...]) -> Any:
    return reduce(lambda value, key: value[key], path, spec)


def folders(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of all objects in a document."""
    if isinstance(value, dict):
        yield path
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from folders(each, (*path, key))


def test_all_fields_are_known():
    found = documents()
    assert found.keys() == KINDS.keys()
    assert all(map(is_known, found.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_field_anywhere_is_found(kind):
    """Control. Maps of free names, such as resources, may have any name."""
    document = documents()[kind]
    paths = [path for path in folders(document) if path[-1:] not in [("requests",), ("limits",)]]
    assert len(paths) > (20 if kind == "TrainJob" else 3)
    for path in paths:
        changed = copy.deepcopy(document)
        part(changed, path)["terminationGracePeriod"] = 1
        assert not is_known(changed), path


def test_the_parts_fit_together():
    found = documents()
    spec = found["TrainJob"]["spec"]
    pod, trainer = part(spec, POD), spec["trainer"]
    assert (spec["runtimeRef"]["kind"], spec["runtimeRef"]["name"]) == ("ClusterTrainingRuntime", "torch-distributed")
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "emptyDir" not in volume]
    assert found["PersistentVolumeClaim"]["metadata"]["name"] in claims
    environment = {variable["name"]: variable["value"] for variable in trainer["env"]}
    assert not environment.keys() & RESERVED
    assert f"/{Path(environment['OUTPUT']).parts[1]}" in mounts
    options = dict(zip(trainer["args"][::2], trainer["args"][1::2], strict=True))
    assert options["--data"] in mounts
    recipe = load_recipe(options["--recipe"]).recipe
    assert recipe.batch.global_size % (trainer["numNodes"] * trainer["numProcPerNode"]) == 0
    gpus = {kind: amounts["nvidia.com/gpu"] for kind, amounts in trainer["resourcesPerNode"].items()}
    assert set(gpus.values()) == {str(trainer["numProcPerNode"])}


def test_a_pod_has_the_program_and_the_time_to_save():
    spec = documents()["TrainJob"]["spec"]
    shell, script = spec["trainer"]["command"]
    assert shell == "bash"
    assert "\nWORKDIR /app\n" in (ROOT / "Dockerfile").read_text()
    (timeout,) = re.findall(r"--shutdown-timeout (\d+)", (ROOT / Path(script).relative_to("/app")).read_text())
    assert part(spec, POD)["terminationGracePeriodSeconds"] > int(timeout)
