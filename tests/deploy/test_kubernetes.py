"""The manifests for Kubernetes: valid, and in agreement with the settings, queues and metrics that there are."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.catalog_files import load_catalog
from config.settings import Settings, load_settings
from consumers.app import EVENTS_ROLE, SWEEPER_ROLE, all_roles, providers_of
from consumers.metrics import Metrics
from consumers.supervisor import KILL_MARGIN
from consumers.topology import EVENTS, Topology, channel_queue
from domain.vocabulary import Channel, Lane
from tests.conftest import WEBHOOK_SECRET

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
CONSUMERS = (EVENTS_ROLE, "email", "webhook")
VERSIONS = ("1.30", "1.37")
"""Of Kubernetes: the oldest that the manifests are for, and the newest whose schemas the tests have."""
CLOSING = timedelta(seconds=10)
"""That a process may need after `grace` to close its connections."""
ONLY_KEDA_KNOWS = {"ScaledObject", "TriggerAuthentication"}
TRIGGER_METADATA = {  # KEDA's scalers `cpu`, `prometheus` and `rabbitmq`: what each needs, and what it may have
    "cpu": ({"value"}, {"value"}),
    "prometheus": ({"serverAddress", "query", "threshold"}, {"ignoreNullValues", "activationThreshold"}),
    "rabbitmq": ({"queueName", "mode", "value"}, {"protocol", "activationValue"}),
}
Manifest = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------


def documents(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def kustomization(folder: str) -> Manifest:
    [document] = documents(FOLDER / folder / "kustomization.yaml")
    return document


def resources(folder: str) -> list[Manifest]:
    files = [FOLDER / folder / name for name in kustomization(folder)["resources"]]
    return [document for file in files for document in documents(file)]


def merged(value: Any, patch: Any) -> Any:
    """What kustomize makes of a patch: mappings are merged, and so are lists of things that have names."""
    if isinstance(value, dict) and isinstance(patch, dict):
        return value | {key: merged(value.get(key), item) for key, item in patch.items()}
    if isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in [*value, *patch]):
        named = {item["name"]: item for item in value}
        return list(merged(named, {item["name"]: item for item in patch}).values())
    return copy.deepcopy(patch)


def assembled_deployments() -> dict[str, Manifest]:
    """By role, each with what pod.yaml adds."""
    [patch] = documents(FOLDER / "base" / "pod.yaml")
    patch = {"spec": patch["spec"]}
    found = [merged(document, patch) for document in resources("base") if document["kind"] == "Deployment"]
    return {document["metadata"]["labels"]["app.kubernetes.io/component"]: document for document in found}


DEPLOYMENTS = assembled_deployments()
[JOB] = resources("catalog")
WORKLOADS = {**DEPLOYMENTS, "catalog": JOB}
SCALED = {
    document["metadata"]["labels"]["app.kubernetes.io/component"]: document
    for document in resources("keda")
    if document["kind"] == "ScaledObject"
}
BUILT_IN = [
    *DEPLOYMENTS.values(),
    *(document for document in resources("base") if document["kind"] != "Deployment"),
    *resources("network-policy"),
    JOB,
]


def pod_of(workload: Manifest) -> Manifest:
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Manifest) -> Manifest:
    [container] = pod_of(workload)["containers"]
    return dict(container)


def roles_of(role: str) -> list[str]:
    run, option, roles = container_of(DEPLOYMENTS[role])["args"]
    assert (run, option) == ("run", "--roles")
    return str(roles).split(",")


def variables_of(workload: Manifest) -> dict[str, tuple[str, str]]:
    """Where each variable of its environment comes from."""
    sources = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container_of(workload)["env"]}
    return {name: (source["name"], source["key"]) for name, source in sources.items()}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of the ConfigMap, with the variables that the pods have and no others."""
    for name in variables_of(DEPLOYMENTS["email"]):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("WEBHOOK_SECRET", WEBHOOK_SECRET)
    monkeypatch.setenv("NOTIPY_AMQP_URL", "amqp://rabbitmq.example.org")
    monkeypatch.setenv("NOTIPY_MONGO_URL", "mongodb://mongo.example.org")
    return load_settings(FOLDER / "base" / "notipy.yaml")


# ---------------------------------------------------------------------------------------------------------------
# The manifests by themselves
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", BUILT_IN, ids=lambda found: f"{found['kind']}-{found['metadata']['name']}")
def test_it_is_what_kubernetes_takes(manifest: Manifest, version: str) -> None:
    from kubernetes_validate import validate  # type: ignore[import-untyped]

    assert validate(manifest, version, strict=True) == version


def test_every_file_belongs_to_a_kustomization() -> None:
    for folder in (path.parent for path in FOLDER.rglob("kustomization.yaml")):
        document = kustomization(folder.name)
        patches = {patch["path"] for patch in document.get("patches", []) if "path" in patch}
        generated = {file for maps in document.get("configMapGenerator", []) for file in maps["files"]}
        used = {"kustomization.yaml", *patches, *generated, *document.get("resources", [])}
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert there == {name for name in used if not name.startswith("..")}


def test_no_base_names_a_namespace() -> None:
    assert not [document for document in [*BUILT_IN, *resources("keda")] if "namespace" in document["metadata"]]


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_pod_may_do_nothing_that_it_need_not(name: str) -> None:
    pod, container = pod_of(WORKLOADS[name]), container_of(WORKLOADS[name])
    [uid] = re.findall(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(uid),
        "runAsGroup": int(uid),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_pod_finds_its_settings_where_the_image_looks_for_them(name: str) -> None:
    [config] = re.findall(r"NOTIPY_CONFIG=(\S+)", DOCKERFILE)
    mounts = {mount["name"]: mount["mountPath"] for mount in container_of(WORKLOADS[name])["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_of(WORKLOADS[name])["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert (Path(mounts["settings"]) / "notipy.yaml") == Path(config)
    [generated] = kustomization("base")["configMapGenerator"]
    assert volumes["settings"]["configMap"]["name"] == generated["name"]
    assert generated["files"] == ["notipy.yaml"]


def test_labels_lead_from_deployments_and_budgets_to_the_pods_of_one_role() -> None:
    budgets = [document for document in resources("base") if document["kind"] == "PodDisruptionBudget"]
    assert [budget["metadata"]["name"] for budget in budgets] == [d["metadata"]["name"] for d in DEPLOYMENTS.values()]
    for deployment, budget in zip(DEPLOYMENTS.values(), budgets, strict=True):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert labels == deployment["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        assert budget["spec"]["selector"]["matchLabels"] == labels
    assert len({tuple(d["metadata"]["labels"].items()) for d in DEPLOYMENTS.values()}) == len(DEPLOYMENTS)


# ---------------------------------------------------------------------------------------------------------------
# … and what NotiPy makes of them
# ---------------------------------------------------------------------------------------------------------------


async def test_the_settings_can_be_used(settings: Settings) -> None:
    providers = providers_of(settings)
    assert providers.keys() == set(settings.channels)
    for provider in (each for several in providers.values() for each in several):
        await provider.close()


def test_each_role_of_the_settings_has_a_deployment(settings: Settings) -> None:
    run = [role for deployment in DEPLOYMENTS for role in roles_of(deployment)]
    assert sorted(run) == sorted(all_roles(settings))
    assert all(roles_of(role) == [role] for role in DEPLOYMENTS)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_pod_has_the_variables_that_the_settings_name(name: str) -> None:
    file = (FOLDER / "base" / "notipy.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{([A-Z_]+)\}", json.dumps(yaml.safe_load(file))))
    given = variables_of(WORKLOADS[name])
    assert given.keys() == used | {"NOTIPY_AMQP_URL", "NOTIPY_MONGO_URL"}
    assert given == {variable: ("notipy", variable) for variable in given}
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{variable}`" in told for variable in given)


@pytest.mark.parametrize("role", DEPLOYMENTS)
def test_ports_and_probes_are_those_of_the_health_page(role: str, settings: Settings) -> None:
    container = container_of(DEPLOYMENTS[role])
    assert container["ports"] == [{"name": "metrics", "containerPort": settings.metrics.port}]
    probed = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {get["port"] for get in probed.values()} == {"metrics"}
    assert [get["path"] for get in probed.values()] == ["/healthz", "/healthz", "/readyz"]
    annotations = DEPLOYMENTS[role]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(settings.metrics.port)
    [metrics] = [policy for policy in resources("network-policy") if "ingress" in policy["spec"]]
    assert metrics["spec"]["ingress"][0]["ports"] == [{"port": settings.metrics.port}]


@pytest.mark.parametrize("role", DEPLOYMENTS)
def test_a_pod_is_given_longer_than_grace_to_stop(role: str, settings: Settings) -> None:
    given = timedelta(seconds=pod_of(DEPLOYMENTS[role])["terminationGracePeriodSeconds"])
    assert given >= settings.grace + KILL_MARGIN + CLOSING


def test_two_sweepers_stand_by_for_each_other() -> None:
    assert DEPLOYMENTS[SWEEPER_ROLE]["spec"]["replicas"] == 2
    assert SWEEPER_ROLE not in SCALED


# ---------------------------------------------------------------------------------------------------------------
# Scaling
# ---------------------------------------------------------------------------------------------------------------


def triggers(role: str, kind: str) -> list[Manifest]:
    return [trigger for trigger in SCALED[role]["spec"]["triggers"] if trigger["type"] == kind]


def queues(role: str) -> dict[str, float]:
    """How much of each queue a pod is to have."""
    metadata = [trigger["metadata"] for trigger in triggers(role, "rabbitmq")]
    return {entry["queueName"]: float(entry["value"]) for entry in metadata}


def shown() -> Iterator[tuple[str, Mapping[str, str]]]:
    """Every series of a NotiPy that has dispatched over each channel."""
    metrics = Metrics()
    metrics.standing({}, None)
    for channel in Channel:
        metrics.dispatched(str(channel), str(Lane.NORMAL), 1)
    return ((sample.name, sample.labels) for family in metrics.registry.collect() for sample in family.samples)


@pytest.mark.parametrize("role", CONSUMERS)
def test_keda_scales_what_there_is(role: str) -> None:
    spec, deployment = SCALED[role]["spec"], DEPLOYMENTS[role]
    assert spec["scaleTargetRef"] == {"name": deployment["metadata"]["name"]}
    assert 1 < spec["minReplicaCount"] < spec["maxReplicaCount"]
    assert "cpu" in container_of(deployment)["resources"]["requests"]
    [removal] = kustomization("keda")["patches"]
    assert re.fullmatch(removal["target"]["name"], deployment["metadata"]["name"])


def test_keda_scales_every_consumer_and_nothing_else() -> None:
    assert sorted(SCALED) == sorted(CONSUMERS)
    assert {document["kind"] for document in resources("keda")} == ONLY_KEDA_KNOWS
    [removal] = kustomization("keda")["patches"]
    assert not re.fullmatch(removal["target"]["name"], f"notipy-{SWEEPER_ROLE}")


@pytest.mark.parametrize("role", CONSUMERS)
def test_triggers_say_what_their_scaler_reads(role: str) -> None:
    for trigger in SCALED[role]["spec"]["triggers"]:
        needed, allowed = TRIGGER_METADATA[trigger["type"]]
        assert needed <= trigger["metadata"].keys() <= needed | allowed
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    names = [trigger["name"] for trigger in SCALED[role]["spec"]["triggers"] if "name" in trigger]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("role", CONSUMERS)
def test_keda_asks_the_broker_with_the_url_of_the_pods(role: str) -> None:
    [authentication] = [document for document in resources("keda") if document["kind"] == "TriggerAuthentication"]
    [target] = authentication["spec"]["secretTargetRef"]
    assert target["parameter"] == "host"
    assert (target["name"], target["key"]) == variables_of(DEPLOYMENTS[role])["NOTIPY_AMQP_URL"]
    for trigger in triggers(role, "rabbitmq"):
        assert trigger["authenticationRef"] == {"name": authentication["metadata"]["name"]}


@pytest.mark.parametrize("role", CONSUMERS)
def test_each_queue_of_a_role_is_watched(role: str, settings: Settings) -> None:
    expected = {EVENTS} if role == EVENTS_ROLE else {channel_queue(Channel(role), lane) for lane in Lane}
    declared = {queue.name for queue in Topology(tuple(settings.channels), settings.retry_tiers).queues}
    assert queues(role).keys() == expected
    assert expected <= declared


@pytest.mark.parametrize("role", CONSUMERS[1:])
def test_each_query_selects_a_metric_of_this_channel(role: str) -> None:
    series = list(shown())
    for trigger in triggers(role, "prometheus"):
        [(name, selector)] = re.findall(r"(notipy_\w+)\{(.*?)\}", trigger["metadata"]["query"])
        labels = dict(re.findall(r'(\w+)="(.*?)"', selector))
        assert labels["channel"] == role
        assert [shown for metric, shown in series if metric == name and labels.items() <= shown.items()]


@pytest.mark.parametrize("role", CONSUMERS[1:])
def test_what_one_pod_may_hold_brings_no_other(role: str, settings: Settings) -> None:
    [waiting] = [trigger["metadata"] for trigger in triggers(role, "prometheus") if trigger["name"] == "waiting"]
    in_hand = settings.channels[Channel(role)].concurrency * max(settings.dispatch.together.values())
    assert float(waiting["threshold"]) >= in_hand
    # a message holds a delivery at least: counted as one each, they ask for no more pods than the deliveries do
    for lane in (Lane.NORMAL, Lane.BULK):
        assert queues(role)[channel_queue(Channel(role), lane)] >= float(waiting["threshold"])


# ---------------------------------------------------------------------------------------------------------------
# All together
# ---------------------------------------------------------------------------------------------------------------


def test_a_catalog_is_read_once_from_a_mounted_config_map(tmp_path: Path) -> None:
    """Kubernetes mounts it as links to a hidden folder, which it exchanges as a whole."""
    [generated] = kustomization("example")["configMapGenerator"]
    files = [FOLDER / "example" / name for name in generated["files"]]
    files += (ROOT / "examples" / "catalog").iterdir()
    data = tmp_path / "..2026_01_01_00_00_00.1"
    data.mkdir()
    (tmp_path / "..data").symlink_to(data.name)
    for file in files:
        shutil.copy(file, data)
        (tmp_path / file.name).symlink_to(Path("..data") / file.name)

    catalog = load_catalog([tmp_path])

    assert catalog.faults == []
    assert len(catalog.definitions) == len([file for file in files if file.suffix == ".yaml"])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_builds_the_example() -> None:
    command = ["kubectl", "kustomize", str(FOLDER / "example")]
    built = list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    found = {(document["kind"], document["metadata"]["name"]): document for document in built}

    assert {document["metadata"]["namespace"] for document in built} == {"notipy"}
    assert {name for kind, name in found if kind == "ScaledObject"} == {f"notipy-{role}" for role in CONSUMERS}
    maps = {name for kind, name in found if kind == "ConfigMap"}
    for role, workload in WORKLOADS.items():
        as_built = found[workload["kind"], workload["metadata"]["name"]]
        used = {v["configMap"]["name"] for v in pod_of(as_built)["volumes"] if "configMap" in v}
        assert used <= maps
        assert container_of(as_built)["image"].startswith("registry.example.org/notipy:")
        assert ("replicas" in as_built["spec"]) == (role == SWEEPER_ROLE)
        assert plain(as_built) == plain(workload)


def plain(workload: Manifest) -> Manifest:
    """Without what an overlay is there to change: namespace, image, the names of ConfigMaps, how many there are."""
    template = copy.deepcopy(workload["spec"]["template"])
    for container in template["spec"]["containers"]:
        del container["image"]
    for volume in template["spec"]["volumes"]:
        volume.get("configMap", {}).pop("name", None)
    spec = {key: value for key, value in workload["spec"].items() if key not in {"replicas", "template"}}
    return spec | {"template": template}
