"""The image and the manifests: read, and held against what they promise. Neither is run here."""

from __future__ import annotations

import re

import pytest

from tkfnet_engine.serve import parser

from .running import ROOT

yaml = pytest.importorskip("yaml")
DEPLOY = ROOT / "deploy"
KINDS = {"Deployment": "apps/v1", "Service": "v1", "HorizontalPodAutoscaler": "autoscaling/v2",
         "PodDisruptionBudget": "policy/v1", "NetworkPolicy": "networking.k8s.io/v1"}  # fmt: skip


@pytest.fixture(scope="module")
def objects() -> dict:
    found = {}
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            assert one["kind"] not in found
            found[one["kind"]] = one
    return found


@pytest.fixture(scope="module")
def pod(objects) -> dict:
    return objects["Deployment"]["spec"]["template"]


@pytest.fixture(scope="module")
def container(pod) -> dict:
    (only,) = pod["spec"]["containers"]
    return only


def test_kinds_names_and_labels(objects, pod):
    assert {kind: one["apiVersion"] for kind, one in objects.items()} == KINDS
    label = {"app.kubernetes.io/name": "tkfnet"}
    for one in objects.values():
        assert one["metadata"]["name"] == "tkfnet"
    assert pod["metadata"]["labels"] == label == objects["Service"]["spec"]["selector"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert objects[kind]["spec"]["selector"] == {"matchLabels": label}
    assert objects["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": label}
    assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "tkfnet"


def test_it_has_no_rights(pod, container):
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 1000
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "privileged": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert ":" in container["image"] and not container["image"].endswith(":latest")
    assert not any("hostPath" in volume for volume in spec["volumes"])


def test_resources_and_volumes(pod, container):
    assert set(container["resources"]["limits"]) == set(container["resources"]["requests"]) == {"cpu", "memory"}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {"/engines", "/tmp", "/dev/shm"} and {m["name"] for m in mounts.values()} == set(volumes)
    assert mounts["/engines"]["readOnly"] is True
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert all("sizeLimit" in volumes[name]["emptyDir"] for name in ("shm", "tmp"))


def test_probes(container):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    for name, path in (("startupProbe", "/v2/models/tkfnet_jpeg/ready"), ("livenessProbe", "/v2/health/live"),
                       ("readinessProbe", "/v2/models/tkfnet_jpeg/ready")):  # fmt: skip
        assert container[name]["httpGet"] == {"path": path, "port": "http"}
    # As long as the command itself waits for a start.
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300


def test_it_is_stopped_gently(pod, container):
    args = parser().parse_args(container["args"])
    assert args.engines == ["/engines/tkfnet.tkf"] and args.host == "0.0.0.0"
    (sleep,) = [int(word) for word in container["lifecycle"]["preStop"]["exec"]["command"] if word.isdigit()]
    assert pod["spec"]["terminationGracePeriodSeconds"] >= args.drain_seconds + sleep + 5


def test_who_may_reach_it(objects):
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["egress"] == [] and set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == {8000, 8001, 8002}
    assert {port["port"] for port in objects["Service"]["spec"]["ports"]} == {8000, 8001}


def test_the_image():
    text = (DEPLOY / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    words = [name for name, _ in steps]
    assert set(words) <= {"FROM", "WORKDIR", "COPY", "ENV", "RUN", "USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    bases = [rest.split()[0] for name, rest in steps if name == "FROM"]
    assert all(re.fullmatch(r"python:3\.1[12]-slim-\w+", base) for base in bases)
    last = [rest for name, rest in steps if name == "USER"][-1]
    assert re.fullmatch(r"[1-9]\d{4}:[1-9]\d{4}", last)
    assert words.index("USER") > max(i for i, name in enumerate(words) if name == "RUN")
    # What Triton needs at run time, and nothing that an image keeps from installing.
    run = " ".join(rest for name, rest in steps if name == "RUN")
    assert "nginx-light libnginx-mod-http-js" in run and "rm -rf /var/lib/apt/lists" in run
    assert "--no-install-recommends" in run and "--no-cache-dir" in run and "'numpy<2'" in run
    assert not re.search(r"curl|wget|sudo|chmod 777|ADD ", text)
    entry = dict(steps)["ENTRYPOINT"]
    assert entry == '["/serve/bin/python", "-m", "tkfnet_engine.serve"]' and dict(steps)["STOPSIGNAL"] == "SIGTERM"


def test_the_script_of_nginx_is_packaged():
    """front.js is no module of Python's: setup.py has to name it."""
    assert re.search(r'"tkfnet_engine\.serving": \[.*"(\*|front)\.js"', (ROOT / "setup.py").read_text())
