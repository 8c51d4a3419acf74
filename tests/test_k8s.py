"""The manifests: valid against KubeRay's schemas and rules, closed by default, true to the code."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CRDS = ROOT.parent / "shared" / "kuberay-crds"
KINDS = {
    "raycluster.yaml": "rayclusters",
    "rayjob.yaml": "rayjobs",
    "rayservice.yaml": "rayservices",
}
CLUSTER_KEYS = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
Tree = dict[str, Any]


def manifest(name: str) -> Tree:
    tree = yaml.safe_load((ROOT / "k8s" / name).read_text())
    assert isinstance(tree, dict)
    return tree


def cluster_spec(tree: Tree) -> Tree:
    spec: Tree = tree["spec"]
    return spec[CLUSTER_KEYS[tree["kind"]]] if tree["kind"] in CLUSTER_KEYS else spec


def pod_templates(tree: Tree) -> list[Tree]:
    spec = cluster_spec(tree)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    templates = [group["template"] for group in groups]
    return templates + [
        value for key, value in tree["spec"].items() if key == "submitterPodTemplate"
    ]


# ---- the schema, and fields that it does not know -----------------------------------------------


def unknown_fields(tree: object, schema: Tree, path: str = "") -> Iterator[str]:
    """Yield the fields that the API server would drop without a word."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(tree, dict):
        properties, further = schema.get("properties", {}), schema.get("additionalProperties")
        for key, value in tree.items():
            place = f"{path}.{key}"
            # The API server's own part of every object; CRDs leave it open.
            if place.startswith(".metadata."):
                continue
            if key in properties:
                yield from unknown_fields(value, properties[key], place)
            elif isinstance(further, dict):
                yield from unknown_fields(value, further, place)
            elif not further:
                yield place
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            yield from unknown_fields(value, schema.get("items", {}), f"{path}[{position}]")


def json_schema(schema: Any) -> Any:
    """Say Kubernetes' int-or-string in JSON Schema's words."""
    if isinstance(schema, list):
        return [json_schema(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    return {key: json_schema(value) for key, value in schema.items()}


def crd_schema(plural: str) -> Tree:
    path = CRDS / f"ray.io_{plural}.yaml"
    if not path.exists():
        pytest.skip("KubeRay's schemas are not beside the checkout")
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    assert isinstance(schema, dict)
    return schema


@pytest.mark.parametrize(("name", "plural"), KINDS.items())
def test_a_manifest_is_valid_and_has_no_field_that_kuberay_does_not_know(
    name: str, plural: str
) -> None:
    schema, tree = crd_schema(plural), manifest(name)

    jsonschema.Draft7Validator(json_schema(schema)).validate(tree)

    assert list(unknown_fields(tree, schema)) == []


def test_the_unknown_field_check_sees_a_misspelt_field_but_not_free_form_ones() -> None:
    schema = {
        "properties": {
            "spec": {
                "properties": {
                    "list": {"items": {"properties": {"known": {}}}},
                    "map": {"additionalProperties": {"type": "string"}},
                    "free": {"x-kubernetes-preserve-unknown-fields": True},
                }
            }
        }
    }
    tree = {
        "spec": {
            "list": [{"known": 1}, {"knwon": 1}],
            "map": {"any": "x"},
            "free": {"any": 1},
            "lst": 1,
        }
    }

    assert list(unknown_fields(tree, schema)) == [".spec.list[1].knwon", ".spec.lst"]


# ---- the operator's own rules (KubeRay 1.7, ray-operator/controllers/ray/utils/validation.go) ---


def broken_rules(tree: Tree) -> list[str]:
    """List the operator's rules that a manifest breaks, of those that ours can touch."""
    return [*_cluster_rules(tree), *_job_rules(tree), *_service_rules(tree)]


def _cluster_rules(tree: Tree) -> Iterator[str]:
    name, spec = tree["metadata"]["name"], cluster_spec(tree)
    longest = 53 if tree["kind"] == "RayCluster" else 47
    if len(name) > longest or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "name: DNS-1035, at most 53 characters (RayCluster) or 47"
    if tree["kind"] != "RayCluster" and "upgradeStrategy" in spec:
        yield "upgradeStrategy belongs to a RayCluster of its own"
    autoscaled = spec.get("enableInTreeAutoscaling", False)
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        parameters = group["rayStartParams"]
        if not group["template"]["spec"].get("containers"):
            yield "every group needs a container"
        sized = {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters)
        if sized and group.get("resources"):
            yield "rayStartParams and the group's resources both say how big it is"
        if "labels" in parameters:
            yield "rayStartParams.labels is forbidden"
        for variable in group["template"]["spec"]["containers"][0].get("env", []):
            if variable["name"] in ("RAY_REDIS_ADDRESS", "RAY_USE_TLS"):
                yield f"env {variable['name']} is the operator's"
            if variable["name"] == "RAY_enable_autoscaler_v2" and not autoscaled:
                yield "RAY_enable_autoscaler_v2 without autoscaling"
    for group in spec["workerGroupSpecs"]:
        if not autoscaled and not {"minReplicas", "maxReplicas"} <= set(group):
            yield "without autoscaling minReplicas and maxReplicas must be set"
        elif not 0 <= group["minReplicas"] <= group["maxReplicas"]:
            yield "0 <= minReplicas <= maxReplicas"
        if "idleTimeoutSeconds" in group:
            yield "idleTimeoutSeconds needs autoscaler v2 written out"
    version = tuple(int(part) for part in spec.get("rayVersion", "0").split("."))
    if spec.get("authOptions", {}).get("mode") == "token" and version < (2, 52, 0):
        yield "token authentication needs rayVersion >= 2.52.0"
    if tree["kind"] != "RayCluster" and spec.get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "Kubernetes token authentication is for a RayCluster only"
    for gated in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if gated in spec:
            yield f"{gated} needs a feature gate that is off by default"


def _job_rules(tree: Tree) -> Iterator[str]:
    if tree["kind"] != "RayJob":
        return
    spec = tree["spec"]
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes"
    ttl = spec.get("ttlSecondsAfterFinished", 0)
    if ttl < 0 or (ttl and not shuts_down):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if ("rayClusterSpec" in spec) == ("clusterSelector" in spec):
        yield "exactly one of rayClusterSpec and clusterSelector"
    if spec.get("submissionMode") == "InteractiveMode" and spec.get("backoffLimit"):
        yield "InteractiveMode has no backoffLimit"
    if spec.get("submissionMode") == "SidecarMode" and (
        {"submitterPodTemplate", "submitterConfig"} & set(spec)
    ):
        yield "SidecarMode has no submitter of its own"
    if spec.get("activeDeadlineSeconds", 1) <= 0 or spec.get("backoffLimit", 0) < 0:
        yield "activeDeadlineSeconds > 0, backoffLimit >= 0"
    if "deletionStrategy" in spec and shuts_down:
        yield "deletionStrategy excludes shutdownAfterJobFinishes"


def _service_rules(tree: Tree) -> Iterator[str]:
    if tree["kind"] != "RayService":
        return
    spec = tree["spec"]
    kinds = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
    if spec.get("upgradeStrategy", {}).get("type", "NewCluster") not in kinds:
        yield f"upgradeStrategy.type is one of {kinds}"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds >= 0"
    if "name" in cluster_spec(tree)["headGroupSpec"].get("headService", {}).get("metadata", {}):
        yield "headService.metadata.name is the operator's"


@pytest.mark.parametrize("name", KINDS)
def test_a_manifest_keeps_the_operators_rules(name: str) -> None:
    assert broken_rules(manifest(name)) == []


def _set(*path: str | int, value: object) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        node: Any = tree
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("rayjob.yaml", _set("metadata", "name", value="x" * 48), "name: DNS-1035"),
        ("raycluster.yaml", _set("metadata", "name", value="1st"), "name: DNS-1035"),
        (
            "raycluster.yaml",
            _set("spec", "workerGroupSpecs", 0, "minReplicas", value=3),
            "0 <= minReplicas <= maxReplicas",
        ),
        (
            "raycluster.yaml",
            _set("spec", "headGroupSpec", "resources", value={"CPU": "1"}),
            "rayStartParams and the group's resources",
        ),
        (
            "raycluster.yaml",
            _set("spec", "headGroupSpec", "rayStartParams", "labels", value="a=b"),
            "rayStartParams.labels",
        ),
        ("raycluster.yaml", _set("spec", "rayVersion", value="2.51.0"), "token authentication"),
        ("raycluster.yaml", _set("spec", "networkPolicy", value={}), "networkPolicy needs"),
        ("rayjob.yaml", _set("spec", "shutdownAfterJobFinishes", value=False), "ttlSeconds"),
        ("rayjob.yaml", _set("spec", "clusterSelector", value={"a": "b"}), "exactly one"),
        ("rayjob.yaml", _set("spec", "submissionMode", value="SidecarMode"), "SidecarMode"),
        ("rayservice.yaml", _set("spec", "upgradeStrategy", "type", value="Recreate"), "upgrade"),
        (
            "rayservice.yaml",
            _set("spec", "rayClusterConfig", "upgradeStrategy", value={"type": "None"}),
            "upgradeStrategy belongs",
        ),
    ],
)
def test_a_broken_manifest_is_told_which_rule_it_breaks(
    name: str, change: Callable[[Tree], None], rule: str
) -> None:
    tree = copy.deepcopy(manifest(name))
    change(tree)

    assert [found for found in broken_rules(tree) if found.startswith(rule)]


# ---- what we promise about our own manifests ----------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_pod_is_unprivileged_sized_and_seen_by_the_network_policy(name: str) -> None:
    for template in pod_templates(manifest(name)):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        selector = policy()["spec"]["podSelector"]["matchLabels"]
        assert selector.items() <= template["metadata"]["labels"].items()
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", KINDS)
def test_every_cluster_asks_for_a_token_and_is_not_published(name: str) -> None:
    spec = cluster_spec(manifest(name))

    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def policy() -> Tree:
    return manifest("network-policy.yaml")


def test_only_serve_is_open_to_clients_and_metrics_to_prometheus() -> None:
    ours = policy()["spec"]["podSelector"]["matchLabels"]
    for rule in policy()["spec"]["ingress"]:
        labels = rule["from"][0]["podSelector"]["matchLabels"]
        ports = {port["port"] for port in rule.get("ports", [])}
        if labels == ours:
            continue
        ((label, _),) = labels.items()
        operator = label == "app.kubernetes.io/component"
        prometheus = label == "mtrec-metrics"
        assert ports == ({8265, 8000, 52365} if operator else {8080} if prometheus else {8000})


def test_every_pod_of_the_service_takes_requests_in_by_haproxy() -> None:
    from mtrec.serve.ingress import chosen

    for template in pod_templates(manifest("rayservice.yaml")):
        (container,) = template["spec"]["containers"]
        environment = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        assert chosen(environment) == "haproxy"


def test_the_dashboard_draws_metrics_that_replicas_have() -> None:
    dashboard = (ROOT / "k8s" / "grafana-dashboard.json").read_text(encoding="utf-8")
    source = (ROOT / "mtrec" / "serve" / "telemetry.py").read_text(encoding="utf-8")
    drawn = set(re.findall(r"ray_(mtrec_\w+?)(?:_total|_bucket|_sum|_count)?[{ )]", dashboard))
    # Counters end in _total, histograms have buckets, sum and count.
    known = set(re.findall(r'"(mtrec_\w+)"', source))

    assert drawn <= known
    assert known - drawn == set()


def test_no_manifest_holds_a_secret_and_the_server_cannot_start_without_its_key() -> None:
    environment = [
        variable
        for template in pod_templates(manifest("rayservice.yaml"))
        for container in template["spec"]["containers"]
        for variable in container["env"]
        if variable["name"] == "MTREC_API_KEY"
    ]

    assert len(environment) == 2
    assert all("value" not in variable for variable in environment)
    assert all("optional" not in variable["valueFrom"]["secretKeyRef"] for variable in environment)


def test_kustomization_names_files_that_exist_and_all_share_its_namespace() -> None:
    kustomization = manifest("kustomization.yaml")
    namespaces = {manifest(name)["metadata"]["namespace"] for name in KINDS}

    assert all((ROOT / "k8s" / name).is_file() for name in kustomization["resources"])
    assert namespaces == {kustomization["namespace"]}
    assert manifest("namespace.yaml")["metadata"]["name"] == kustomization["namespace"]


def test_no_two_clusters_make_the_same_head_service() -> None:
    """KubeRay calls it `NAME-head-svc` for a RayCluster and for a RayService alike."""
    names = [manifest(name)["metadata"]["name"] for name in KINDS]
    assert len(set(names)) == len(names)
    readme = (ROOT / "k8s" / "README.md").read_text(encoding="utf-8")
    assert f"svc/{manifest('raycluster.yaml')['metadata']['name']}-head-svc" in readme


def test_the_replicas_of_the_service_fit_in_its_workers() -> None:
    tree = manifest("rayservice.yaml")
    arguments = yaml.safe_load(tree["spec"]["serveConfigV2"])["applications"][0]["args"]
    (group,) = cluster_spec(tree)["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cpus = group["replicas"] * int(container["resources"]["limits"]["cpu"])

    assert arguments["max_replicas"] * arguments["num_cpus"] <= cpus


def test_the_service_serves_what_the_job_makes() -> None:
    from mtrec.configfile import load_config

    entrypoint = manifest("rayjob.yaml")["spec"]["entrypoint"].split()
    config = load_config(ROOT / entrypoint[entrypoint.index("--config") + 1])
    serve = yaml.safe_load(manifest("rayservice.yaml")["spec"]["serveConfigV2"])

    assert (ROOT / entrypoint[1]).is_file()
    assert serve["applications"][0]["args"]["bundle"] == f"{config.run.workdir}/bundles"
