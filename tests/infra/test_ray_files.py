"""The cluster files as their readers see them, and promises about security that no schema knows."""

import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from ray.autoscaler._private.aws.config import DEFAULT_AMI_NAME
from ray.autoscaler._private.util import prepare_config, validate_config

from dualtoken.jobs.recipe_arguments import open_recipe
from dualtoken.model.config.base import is_url
from dualtoken.pipelines.config.corpora import UrlsSource
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.resources import Resources
from dualtoken.pipelines.runtime.stages import all_stages

ROOT = Path(__file__).parents[2]
KUBERAY = sorted((ROOT / "infra" / "kuberay").glob("*.yaml"))


@pytest.fixture
def launcher() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


def test_the_launcher_accepts_its_file(launcher: dict[str, Any]) -> None:
    validate_config(launcher)
    prepared = prepare_config(launcher)
    assert prepared["available_node_types"].keys() == {"head", "cpu", "gpu", "gpu8"}
    validate_config(prepared)


def test_every_node_of_the_launcher_wants_the_token(launcher: dict[str, Any]) -> None:
    (head,) = [command for command in launcher["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in launcher["worker_start_ray_commands"] if "ray start" in command]
    assert "RAY_AUTH_MODE=token " in head
    assert "RAY_AUTH_MODE=token " in worker
    assert launcher["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in head
    assert "--num-cpus=0" in head


def test_only_the_head_is_paid_on_demand_and_no_node_has_open_metadata(launcher: dict[str, Any]) -> None:
    for name, node in launcher["available_node_types"].items():
        assert ("InstanceMarketOptions" in node["node_config"]) == (name != "head")
        assert node["node_config"]["MetadataOptions"] == {
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
        }


def test_every_node_of_the_launcher_has_an_image_of_its_own(launcher: dict[str, Any]) -> None:
    assert "18.04" in DEFAULT_AMI_NAME, "Ray's default may be new enough by now for PyTorch's wheel"
    for node in launcher["available_node_types"].values():
        assert node["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/ami/x86_64/")


class NodeKind(NamedTuple):
    cpus: float
    gpus: float
    most: int


def launcher_nodes(launcher: dict[str, Any]) -> list[NodeKind]:
    nodes: list[NodeKind] = []
    for name, node in launcher["available_node_types"].items():
        if name != launcher["head_node_type"]:
            resources = node["resources"]
            nodes.append(NodeKind(resources["CPU"], resources.get("GPU", 0), node["max_workers"]))
    return nodes


def kubernetes_nodes() -> list[NodeKind]:
    (document,) = _documents(ROOT / "infra" / "kuberay" / "raycluster.yaml")
    nodes: list[NodeKind] = []
    for group in _workers(document):
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        gpus = float(requests.get("nvidia.com/gpu", 0))
        nodes.append(NodeKind(float(requests["cpu"]), gpus, group["maxReplicas"]))
    return nodes


def fits(asked: Resources, nodes: list[NodeKind]) -> bool:
    """Tell whether some kind of node takes all workers that start together, as NVLink between them needs."""
    for node in nodes:
        cpus = asked.cpus * max(asked.group_sizes) <= node.cpus
        gpus = asked.gpus * max(asked.group_sizes) <= node.gpus
        if cpus and gpus and node.most > 0:
            return True
    return False


RECIPES = [
    path.stem
    for path in sorted((ROOT / "recipes").glob("*.yaml"))
    if not path.stem.startswith(("evaluation-", "nightly-"))
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_fits_into_the_clusters_as_shipped(recipe: str, launcher: dict[str, Any]) -> None:
    settings = load_recipe(str(ROOT / "recipes" / f"{recipe}.yaml"))
    for stage in all_stages():
        if not stage.runs_on(settings):
            continue
        asked = stage.resources(settings)
        assert fits(asked, launcher_nodes(launcher)), stage.name
        assert fits(asked, kubernetes_nodes()), stage.name


def test_every_cluster_on_kubernetes_has_authentication_and_this_version_of_ray() -> None:
    clusters = {}
    for path in KUBERAY:
        for document in _documents(path):
            # A RayCronJob sends its jobs to a standing one.
            if document["apiVersion"] == "ray.io/v1" and document["kind"] != "RayCronJob":
                clusters[path.name] = _cluster(document)
    assert clusters.keys() == {"raycluster.yaml", "rayjob.yaml"}
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    for cluster in clusters.values():
        assert cluster["authOptions"] == {"mode": "token"}
        assert f"ray=={cluster['rayVersion']}" in pins
        for container in _containers(cluster):
            assert container["securityContext"]["runAsNonRoot"]
            assert "memory" in container["resources"]["limits"]


def test_the_network_policy_shuts_everything_then_opens_the_dashboard_to_two_of_known_names() -> None:
    everything, ray = _documents(ROOT / "infra" / "kuberay" / "networkpolicy.yaml")
    assert everything["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    inside, operator, nightly = ray["spec"]["ingress"]
    assert inside["from"] == [{"podSelector": ray["spec"]["podSelector"]}]
    for outside in (operator, nightly):
        assert outside["ports"] == [{"protocol": "TCP", "port": 8265}]
        (pods,) = outside["from"]
        assert pods["podSelector"]["matchLabels"].keys() == {"app.kubernetes.io/name"}
    assert "namespaceSelector" not in nightly["from"][0]


def test_the_job_on_kubernetes_keeps_its_run_where_pods_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    (document,) = _documents(ROOT / "infra" / "kuberay" / "rayjob.yaml")
    command, run, recipe, *options = shlex.split(document["spec"]["entrypoint"])
    assert (command, run) == ("dualtoken", "run")
    pairs = list(zip(options[::2], options[1::2], strict=True))
    assert set(dict(pairs)) == {"--root", "--set"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    overrides = [value for name, value in pairs if name == "--set"]
    settings = open_recipe(recipe, overrides, dict(pairs)["--root"])
    for corpus in settings.corpora.values():
        assert isinstance(corpus.source, UrlsSource)
        assert is_url(corpus.source.table)
    assert is_url(settings.root)
    gpus = 0
    for group in _workers(document):
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus += int(limits["nvidia.com/gpu"])
    assert settings.cluster.max_workers * settings.cluster.gpus_per_worker <= gpus


def test_the_image_holds_every_package_and_ends_as_nobody_special() -> None:
    lines = (ROOT / "infra" / "Dockerfile").read_text().splitlines()
    copied = set()
    for line in lines:
        if line.startswith("COPY "):
            _, *sources, _ = line.split()
            copied.update(source.rstrip("/") for source in sources)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    linked = {path.readlink().name for path in (ROOT / "dualtoken").iterdir() if path.is_symlink()}
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    assert copied == packages | linked | files | {"pyproject.toml", "constraints.txt"}
    assert [line for line in lines if line.startswith(("USER", "EXPOSE"))] == ["USER 1000"]


def test_nodes_and_images_are_given_the_project_by_name(launcher: dict[str, Any]) -> None:
    mounted = {local for local in launcher["file_mounts"].values() if not local.startswith("~")}
    lines = (ROOT / "infra" / "Dockerfile").read_text().splitlines()
    copied: set[str] = set()
    for line in lines:
        if line.startswith("COPY "):
            copied.update(line.split()[1:-1])
    assert mounted == copied
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    for name in mounted:
        if (ROOT / name).is_file():
            assert f"!{name}" in ignored


def _documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def _cluster(document: dict[str, Any]) -> dict[str, Any]:
    if document["kind"] == "RayCluster":
        return document["spec"]
    return document["spec"]["rayClusterSpec"]


def _workers(document: dict[str, Any]) -> list[dict[str, Any]]:
    return _cluster(document)["workerGroupSpecs"]


def _containers(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield from group["template"]["spec"]["containers"]
