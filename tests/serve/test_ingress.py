"""Which ingress an environment means, and what is said where nodes differ."""

import pytest

from mtrec.errors import ConfigError
from mtrec.serve.ingress import (
    HAPROXY,
    check_host,
    check_nodes,
    check_port,
    choose,
    chosen,
    side_ports,
)


def test_haproxy_sets_both_variables_and_python_takes_both_away() -> None:
    environment = {"OTHER": "1"}

    choose("haproxy", environment, is_local=True)
    assert chosen(environment) == "haproxy"
    assert set(HAPROXY) < set(environment)
    assert environment["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] == "2"

    choose("python", environment, is_local=True)
    assert chosen(environment) == "python"
    assert not set(HAPROXY) & set(environment)


def test_on_a_cluster_draining_stays_as_ray_has_it() -> None:
    environment: dict[str, str] = {}
    choose("haproxy", environment, is_local=False)

    assert environment == HAPROXY


def test_what_a_user_set_about_draining_stays() -> None:
    environment = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "7"}
    choose("haproxy", environment, is_local=True)

    assert environment["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] == "7"


@pytest.mark.parametrize("alone", sorted(HAPROXY))
def test_one_variable_alone_is_refused_where_nothing_else_is_said(alone: str) -> None:
    environment = {alone: "1"}

    assert chosen(environment) == "mixed"
    with pytest.raises(ConfigError, match="without the other"):
        choose(None, environment, is_local=True)
    choose("haproxy", environment, is_local=True)
    assert chosen(environment) == "haproxy"


def test_nothing_said_leaves_the_environment_alone() -> None:
    environment = dict(HAPROXY)
    choose(None, environment, is_local=True)

    assert environment == HAPROXY


def test_nodes_with_another_ingress_are_named() -> None:
    check_nodes("haproxy", {"a": "haproxy", "b": "haproxy"})
    with pytest.raises(ConfigError, match=r"another on b, c\n.*before Ray starts"):
        check_nodes("haproxy", {"a": "haproxy", "b": "python", "c": "mixed"})


def test_side_ports_are_those_of_the_environment() -> None:
    assert set(side_ports({})) == {9101, 8404}
    assert set(side_ports({"RAY_SERVE_HAPROXY_METRICS_PORT": "19101"})) == {19101, 8404}


def test_replicas_on_other_nodes_must_be_reached() -> None:
    check_host("127.0.0.1", 1)
    check_host("0.0.0.0", 3)
    with pytest.raises(ConfigError, match=r"the other 2 nodes .*\ngive --host 0\.0\.0\.0"):
        check_host("127.0.0.1", 3)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_a_host_that_is_not_this_machine_is_a_configuration_error(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        check_port(host, 8000)
