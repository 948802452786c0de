"""What the pages give to systemd, Kubernetes and KEDA to be copied is well-formed, and says what the program can do."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

import flowrra
from tests.support.pages import ROOT, read_blocks
from tests.support.services import do_without

PAGE = (ROOT / "docs" / "guide" / "deploying.md").read_text()
BLOCKS = [block.text for block in read_blocks(PAGE) if block.language == "yaml"]
MANIFESTS: dict[str, Any] = {found["kind"]: found for text in BLOCKS for found in yaml.safe_load_all(text)}

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
WHOLE: dict[str, Any] = {"type": "integer", "minimum": 0}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}


def obj(**fields: Any) -> dict[str, Any]:
    """An object with these fields and no others, all of them required."""
    return {"type": "object", "additionalProperties": False, "properties": fields, "required": list(fields)}


def each(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": schema}


# The fields that the pages use, as the API of Kubernetes (apps/v1, autoscaling/v2) and KEDA 2 has them.
PROBE = obj(httpGet=obj(path=TEXT, port=TEXT), periodSeconds=WHOLE, timeoutSeconds=WHOLE, failureThreshold=WHOLE)
PROBE["required"] = ["httpGet"]
CONTAINER = obj(
    name=TEXT, image=TEXT, command=each(TEXT), args=each(TEXT),
    env=each(obj(name=TEXT, valueFrom=obj(secretKeyRef=obj(name=TEXT, key=TEXT)))),
    ports=each(obj(name=TEXT, containerPort=WHOLE)), livenessProbe=PROBE, readinessProbe=PROBE,
    resources=obj(requests=TEXTS, limits=TEXTS),
)  # fmt: skip
POD = obj(
    metadata=obj(labels=TEXTS, annotations=TEXTS),
    spec=obj(terminationGracePeriodSeconds=WHOLE, containers=each(CONTAINER)),
)
NAMED = obj(name=TEXT)
TRIGGER = obj(
    type={"const": "prometheus"},
    metricType={"enum": ["Value", "AverageValue"]},
    metadata=obj(serverAddress=TEXT, query=TEXT, threshold={"type": "string", "pattern": r"^\d+$"}),
)
METRIC = obj(
    type={"const": "External"},
    external=obj(
        metric=obj(name=TEXT, selector=obj(matchLabels=TEXTS)), target=obj(type={"enum": ["Value"]}, value=TEXT)
    ),
)
SCHEMAS = {
    "Deployment": obj(
        apiVersion={"const": "apps/v1"}, kind=TEXT, metadata=NAMED,
        spec=obj(
            replicas=WHOLE, selector=obj(matchLabels=TEXTS),
            strategy=obj(rollingUpdate=obj(maxSurge=WHOLE, maxUnavailable=WHOLE)), template=POD,
        ),
    ),
    "ScaledObject": obj(
        apiVersion={"const": "keda.sh/v1alpha1"}, kind=TEXT, metadata=NAMED,
        spec=obj(
            scaleTargetRef=obj(name=TEXT), minReplicaCount=WHOLE, maxReplicaCount=WHOLE, cooldownPeriod=WHOLE,
            triggers=each(TRIGGER),
        ),
    ),
    "HorizontalPodAutoscaler": obj(
        apiVersion={"const": "autoscaling/v2"}, kind=TEXT, metadata=NAMED,
        spec=obj(
            scaleTargetRef=obj(apiVersion=TEXT, kind=TEXT, name=TEXT), minReplicas=WHOLE, maxReplicas=WHOLE,
            metrics=each(METRIC), behavior=obj(scaleDown=obj(stabilizationWindowSeconds=WHOLE)),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_manifest_has_the_fields_of_its_kind(kind: str) -> None:
    assert MANIFESTS.keys() == SCHEMAS.keys()
    errors = jsonschema_rs.iter_errors(SCHEMAS[kind], MANIFESTS[kind])
    assert [f"{error.instance_path}: {error.message}" for error in errors] == []


def test_the_pods_fit_together() -> None:
    spec = MANIFESTS["Deployment"]["spec"]
    pod = spec["template"]
    (container,) = pod["spec"]["containers"]
    assert spec["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (port,) = container["ports"]
    assert {container[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {port["name"]}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    words = [*container["command"], *container["args"]]
    assert words[:3] == ["python", "-m", "flowrra"]
    arguments = flowrra.parsed(flowrra._parser(), words[3:])  # the program takes them
    assert arguments.health == f"0.0.0.0:{port['containerPort']}"
    assert pod["spec"]["terminationGracePeriodSeconds"] > arguments.drain + 20  # when the process ends itself
    from flowrra_extras.commands.health import BLOCKED

    assert container["livenessProbe"]["timeoutSeconds"] > BLOCKED
    for kind, target in (("ScaledObject", "name"), ("HorizontalPodAutoscaler", "name")):
        assert MANIFESTS[kind]["spec"]["scaleTargetRef"][target] == MANIFESTS["Deployment"]["metadata"]["name"]


def test_the_queries_are_of_metrics_that_there_are() -> None:
    source = (ROOT / "flowrra_extras" / "metrics.py").read_text()
    (metric,) = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    queries = [trigger["metadata"]["query"] for trigger in MANIFESTS["ScaledObject"]["spec"]["triggers"]]
    names = {metric["external"]["metric"]["name"], *re.findall(r"flowrra_\w+", " ".join(queries))}
    assert names == {"flowrra_queue_lag_seconds", "flowrra_jobs"}
    assert all(f'"{name}"' in source for name in names)


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        do_without("systemd-analyze is not installed")
    (block,) = [block for block in read_blocks(PAGE) if block.language == "ini"]
    unit = tmp_path / "flowrra.service"
    # It looks whether the program and the folder are there, and whether it knows the user.
    text = block.text.replace("/srv/app/.venv/bin/python", sys.executable).replace("/srv/app", str(tmp_path))
    unit.write_text(text.replace("User=app", "User=root"))
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "flowrra.service" in line]
    assert (done.returncode, ours) == (0, []), done.stderr
    assert "TimeoutStopSec=45" in block.text  # more than --drain
