"""The Kubernetes objects are valid, refer to what there is, and say what the server and its settings understand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
from prometheus_client import CollectorRegistry

from tests.deploy.manifests import (
    KUBERNETES,
    Cluster,
    Object,
    container_of,
    labels_of,
    pod_of,
    ports_of,
    rendered,
)
from tests.deploy.stack import image_environment
from text2image.api.runner_http import draws_for_all
from text2image.core.settings import Settings
from text2image.runner.metrics import RunnerMetrics

OVERLAYS = ("cpu", "gpu", "production", "jobs")
VERSION = "1.37"
# Of custom resources, as much as is used here.
CUSTOM: Object = json.loads(Path(__file__).with_name("schemas.json").read_text())
BY_HAND = set(
    re.findall(r"create secret generic ([\w-]+)", (KUBERNETES.parent / "README.md").read_text())
)
OURS = ("gateway", "runner", "page")
# A model of several gigabytes, from a slow disk or far away.
LONGEST_LOAD_SECONDS = 900
# What BentoML takes to end once nothing is in flight, and more.
ENDING_SECONDS = 30


@pytest.fixture(params=OVERLAYS)
def cluster(request: pytest.FixtureRequest) -> Cluster:
    return rendered(request.param)


def settings_of(cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What a Deployment's process reads of its variables; fails if one does not fit its setting."""
    for variable, value in cluster.environment(name).items():
        monkeypatch.setenv(variable, value)
    return Settings()


def test_every_object_fits_its_schema(cluster: Cluster) -> None:
    for each in cluster.objects:
        if each["kind"] in CUSTOM:
            jsonschema.validate(each, CUSTOM[each["kind"]])
        else:
            kubernetes_validate.validate(each, VERSION, strict=True)


def test_no_two_objects_have_one_name_and_all_share_the_namespace(cluster: Cluster) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in cluster.objects]
    assert len(names) == len(set(names))
    (namespace,) = cluster.names("Namespace")
    placed = {
        each["metadata"].get("namespace") for each in cluster.objects if each["kind"] != "Namespace"
    }
    assert placed == {namespace}


def test_every_selector_finds_pods_and_every_named_port_is_theirs(cluster: Cluster) -> None:
    for deployment in cluster.of("Deployment"):
        assert deployment in cluster.selected(labels_of(deployment["spec"]["selector"]))
    for service in cluster.of("Service"):
        (target,) = cluster.selected(service["spec"]["selector"])
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(ports_of(target))
    for budget in cluster.of("PodDisruptionBudget"):
        assert len(cluster.selected(labels_of(budget["spec"]["selector"]))) == 1
    for monitor in cluster.of("PodMonitor"):
        (target,) = cluster.selected(labels_of(monitor["spec"]["selector"]))
        assert {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]} <= set(
            ports_of(target)
        )
    for policy in cluster.of("NetworkPolicy"):
        targets = cluster.selected(labels_of(policy["spec"]["podSelector"]))
        assert targets
        for rule in policy["spec"].get("ingress", []):
            named = {port["port"] for port in rule["ports"] if isinstance(port["port"], str)}
            assert all(named <= set(ports_of(target)) for target in targets)


def test_every_reference_is_to_an_object_here_or_a_secret_that_the_guide_has_created(
    cluster: Cluster,
) -> None:
    secrets = set()
    for deployment in cluster.of("Deployment"):
        pod, container = pod_of(deployment), container_of(deployment)
        assert pod["serviceAccountName"] in cluster.names("ServiceAccount")
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in cluster.names("ConfigMap")
            else:
                secrets.add(source["secretRef"]["name"])
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes)
        secrets |= {each["secret"]["secretName"] for each in volumes.values() if "secret" in each}
    for monitor in cluster.of("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if "authorization" in endpoint:
                secrets.add(endpoint["authorization"]["credentials"]["name"])
    assert secrets <= BY_HAND


def test_every_autoscaler_has_a_deployment_of_its_own_whose_count_nobody_else_sets(
    cluster: Cluster,
) -> None:
    autoscalers = cluster.of("HorizontalPodAutoscaler") + cluster.of("ScaledObject")
    targets = [each["spec"]["scaleTargetRef"]["name"] for each in autoscalers]
    assert "gateway" in targets
    assert len(targets) == len(set(targets))
    for target in targets:
        assert "replicas" not in cluster.get("Deployment", target)["spec"]


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_and_its_value_fits(
    cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_of(cluster, name, monkeypatch)
    for variable in cluster.environment(name):
        assert variable.removeprefix("T2I_").lower() in Settings.model_fields, variable


def test_files_that_settings_name_are_mounted_from_secrets(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gateway", "runner"):
        deployment = cluster.get("Deployment", name)
        secret = {each["name"] for each in pod_of(deployment)["volumes"] if "secret" in each}
        mounts = {
            mount["mountPath"]
            for mount in container_of(deployment)["volumeMounts"]
            if mount["name"] in secret
        }
        values = cluster.environment(name).values()
        assert {str(Path(value).parent) for value in values if value.startswith("/etc/")} == mounts


def test_gateways_find_the_runners_and_redis_where_they_listen(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(cluster, "gateway", monkeypatch)
    runners = urlsplit(str(settings.runners))
    host, port = runners.path.strip("/").split(":")
    service = cluster.get("Service", host)
    assert runners.scheme == "dns"
    assert service["spec"]["clusterIP"] == "None", "every address behind it is a runner"
    (target,) = cluster.selected(service["spec"]["selector"])
    listen = cluster.environment(target["metadata"]["name"])["T2I_RUNNER_LISTEN"]
    assert listen == f"0.0.0.0:{port}"
    assert int(port) == ports_of(target)["grpc"]
    for url in (settings.redis_url, settings.cache_redis_url):
        host, port = str(urlsplit(str(url)).hostname), int(urlsplit(str(url)).port or 0)
        assert port in {each["port"] for each in cluster.get("Service", host)["spec"]["ports"]}
    host, port = cluster.environment("page")["T2I_SERVER"].split(":")
    assert int(port) in {each["port"] for each in cluster.get("Service", host)["spec"]["ports"]}


def test_both_ends_of_the_runners_connections_speak_tls_or_neither(cluster: Cluster) -> None:
    ends = [
        {name for name in cluster.environment(end) if name.startswith("T2I_RUNNER_TLS_")}
        for end in ("gateway", "runner")
    ]
    assert ends[0] == ends[1]


def test_a_runners_http_port_draws_for_nobody(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is open to the whole pod network, since probes come from outside the pod."""
    settings = settings_of(cluster, "runner", monkeypatch)
    assert not draws_for_all(settings, image_environment()["HOST"])


def test_all_gateways_share_the_jobs_database_and_its_pictures() -> None:
    cluster = rendered("jobs")
    gateway = cluster.get("Deployment", "gateway")
    sources = [each.get("secretRef", {}).get("name") for each in container_of(gateway)["envFrom"]]
    assert "jobs-url" in sources
    folder = cluster.environment("gateway")["T2I_DATA_DIR"]
    (mount,) = (
        each for each in container_of(gateway)["volumeMounts"] if each["mountPath"] == folder
    )
    (volume,) = (each for each in pod_of(gateway)["volumes"] if each["name"] == mount["name"])
    claim = cluster.get("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    database = cluster.get("Deployment", "jobs-database")
    assert database["spec"]["strategy"]["type"] == "Recreate"
    told = (KUBERNETES.parent / "README.md").read_text()
    ((host, port),) = re.findall(r"T2I_JOBS_URL=postgresql://\S+@([\w-]+):(\d+)/", told)
    assert int(port) in {each["port"] for each in cluster.get("Service", host)["spec"]["ports"]}
    everyone = {None, *cluster.names("Deployment")}
    assert {each for each in everyone if cluster.allows(each, host, int(port))} == {"gateway"}


def test_runners_are_reached_by_gateways_alone_and_so_is_redis(cluster: Cluster) -> None:
    everyone = {None, *cluster.names("Deployment")}
    for target, port in (("runner", 50061), ("limits", 6379), ("pictures", 6379)):
        let_in = {each for each in everyone if cluster.lets_in(each, target, port)}
        allowed = {each for each in everyone if cluster.allows(each, target, port)}
        assert let_in == allowed == {"gateway"}, target
    assert cluster.allows("page", "gateway", 50051)
    assert not cluster.allows("page", "runner", 3000)
    for outside in (("gateway", 3000), ("gateway", 50051), ("page", 8501)):
        assert cluster.allows(None, *outside)


@pytest.mark.parametrize("name", ["gateway", "runner"])
def test_a_pod_is_given_more_time_to_end_than_its_drain_takes(
    cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = cluster.get("Deployment", name)
    before = container_of(deployment)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = settings_of(cluster, name, monkeypatch).drain_timeout
    assert pod_of(deployment)["terminationGracePeriodSeconds"] >= before + drain + ENDING_SECONDS


def test_probes_ask_what_the_server_answers_and_wait_for_a_model_to_load(cluster: Cluster) -> None:
    paths = {"gateway": {"/livez"}, "runner": {"/livez", "/readyz"}, "page": {"/_stcore/health"}}
    for name, known in paths.items():
        container = container_of(cluster.get("Deployment", name))
        probes = [container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]
        ports = ports_of(cluster.get("Deployment", name))
        assert {probe["httpGet"]["path"] for probe in probes if "httpGet" in probe} == known
        assert {probe["httpGet"]["port"] for probe in probes if "httpGet" in probe} <= set(ports)
        assert {probe["grpc"]["port"] for probe in probes if "grpc" in probe} <= set(ports.values())
    startup = container_of(cluster.get("Deployment", "runner"))["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= LONGEST_LOAD_SECONDS


def test_every_pod_is_confined(cluster: Cluster) -> None:
    for deployment in cluster.of("Deployment"):
        pod, container = pod_of(deployment), container_of(deployment)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        confined: dict[str, Any] = container["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True
        assert confined["allowPrivilegeEscalation"] is False
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def test_what_the_image_writes_to_can_be_written(cluster: Cluster) -> None:
    for name in OURS:
        deployment = cluster.get("Deployment", name)
        mounts = {mount["mountPath"] for mount in container_of(deployment)["volumeMounts"]}
        assert {"/tmp", "/cache", "/pictures"} <= mounts
        assert pod_of(deployment)["securityContext"]["fsGroup"] == 1034


@pytest.mark.parametrize("overlay", ["gpu", "production"])
def test_runners_have_a_gpu_each_and_nobody_else_has_one(overlay: str) -> None:
    cluster = rendered(overlay)
    for deployment in cluster.of("Deployment"):
        limits = container_of(deployment)["resources"]["limits"]
        is_runner = deployment["metadata"]["name"] == "runner"
        assert limits.get("nvidia.com/gpu") == ("1" if is_runner else None)
    assert container_of(cluster.get("Deployment", "runner"))["image"].endswith(":cuda")
    assert container_of(cluster.get("Deployment", "gateway"))["image"].endswith(":cpu")


def test_production_wants_keys_keeps_limits_and_saves_pictures_in_a_bucket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(rendered("production"), "gateway", monkeypatch)
    assert settings.keys_file
    assert settings.rate_limit
    assert settings.save_images
    assert rendered("production").environment("gateway")["T2I_OUTPUT_DIR"].startswith("s3://")


def test_runners_are_scaled_by_a_metric_that_they_have() -> None:
    registry = CollectorRegistry()
    RunnerMetrics(0, registry)
    known = {metric.name for metric in registry.collect()}
    (trigger,) = rendered("production").get("ScaledObject", "runner")["spec"]["triggers"]
    assert set(re.findall(r"\btext2image_\w+", trigger["metadata"]["query"])) <= known
