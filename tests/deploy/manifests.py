"""Kubernetes objects as kustomize renders them, and what they mean for one another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.harness import ROOT

Object = dict[str, Any]
KUBERNETES = ROOT / "deploy" / "kubernetes"
# kustomize's own code, in the client that pip brings.
KUBECTL = Path(sys.executable).with_name("kubectl")


@lru_cache
def rendered(overlay: str) -> Cluster:
    """What `kubectl apply -k` would send."""
    done = subprocess.run(
        [str(KUBECTL), "kustomize", str(KUBERNETES / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Cluster([each for each in yaml.safe_load_all(done.stdout) if each])


class Cluster:
    """The objects of one overlay."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def of(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def get(self, kind: str, name: str) -> Object:
        """The one object of this kind and name."""
        (found,) = (each for each in self.of(kind) if each["metadata"]["name"] == name)
        return found

    def names(self, kind: str) -> set[str]:
        return {each["metadata"]["name"] for each in self.of(kind)}

    def selected(self, labels: Mapping[str, str]) -> list[Object]:
        """The Deployments whose pods carry all these labels; an empty selector takes all."""
        return [
            each
            for each in self.of("Deployment")
            if labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
        ]

    def environment(self, name: str) -> dict[str, str]:
        """The variables of a Deployment's container, those of its ConfigMaps included."""
        container = container_of(self.get("Deployment", name))
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                variables |= self.get("ConfigMap", source["configMapRef"]["name"])["data"]
        return variables | {each["name"]: each["value"] for each in container.get("env", [])}

    def allows(self, source: str | None, target: str, port: int) -> bool:
        """Whether the policies let a pod (None: one of another namespace) reach a port of another."""
        return self.lets_in(source, target, port) and (
            source is None or self._lets_out(source, target, port)
        )

    def lets_in(self, source: str | None, target: str, port: int) -> bool:
        """The same by the policies of the target alone."""
        return any(
            self._port_matches(rule, target, port)
            and ("from" not in rule or self._among(rule["from"], source))
            for rule in self._rules(target, "Ingress")
        )

    def _lets_out(self, source: str, target: str, port: int) -> bool:
        return any(
            self._port_matches(rule, target, port)
            and ("to" not in rule or self._among(rule["to"], target))
            for rule in self._rules(source, "Egress")
        )

    def _rules(self, name: str, direction: str) -> Iterator[Object]:
        """All rules of one direction that hold for a Deployment's pods; without a policy there is none that forbids."""
        policies = [
            policy["spec"]
            for policy in self.of("NetworkPolicy")
            if direction in policy["spec"]["policyTypes"]
            and self.get("Deployment", name)
            in self.selected(labels_of(policy["spec"]["podSelector"]))
        ]
        if not policies:
            yield {}
        for policy in policies:
            yield from policy.get(direction.lower(), [])

    def _among(self, peers: list[Object], name: str | None) -> bool:
        return name is not None and any(
            "podSelector" in peer
            and "namespaceSelector" not in peer
            and self.get("Deployment", name) in self.selected(labels_of(peer["podSelector"]))
            for peer in peers
        )

    def _port_matches(self, rule: Object, target: str, port: int) -> bool:
        named = ports_of(self.get("Deployment", target))
        return "ports" not in rule or any(
            named.get(each["port"], each["port"]) == port for each in rule["ports"]
        )


def labels_of(selector: Object) -> dict[str, str]:
    return dict(selector.get("matchLabels", {}))


def pod_of(deployment: Object) -> Object:
    pod: Object = deployment["spec"]["template"]["spec"]
    return pod


def container_of(deployment: Object) -> Object:
    (container,) = pod_of(deployment)["containers"]
    return dict(container)


def ports_of(deployment: Object) -> dict[str | int, int]:
    """Numbers of a Deployment's ports by name."""
    return {port["name"]: port["containerPort"] for port in container_of(deployment)["ports"]}
