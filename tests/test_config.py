"""Bad configuration stops the start with one line that names key, value and bound."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from router.config import Config, ConfigError, PolicyConfig, load_config, settings
from router.policies import PolicySettings


def load_text(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "warmroute.toml"
    file.write_text(text, "utf-8")
    return load_config(file, {}, {})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[server]\nport = 99999", "server.port=99999: must be int ≥ 0 ≤ 65535"),
        ("[server]\nport = 'a'", "server.port='a': must be int ≥ 0 ≤ 65535"),
        ("[limits]\nbody_timeout_s = 0", "limits.body_timeout_s=0: must be float > 0 ≤ 3600"),
        ("[server]\nprot = 1", "server.prot: no such setting"),
        ("[sever]\nport = 1", "sever: no such setting"),
        ("server = 3", "server=3: must be table"),
        ("[fleet]\nworkers = [1]", "fleet.workers=[1]: must be list of str"),
        ("[fleet]\nworkers = ['gpu:1']", "must begin with http:// or https://"),
        ("[fleet]\nworkers = ['http://a/b']", "must be an origin only"),
        ("[fleet]\nworkers_dns = 'name'", "fleet.workers_dns='name': must be NAME:PORT"),
        ("[server]\ntls_cert = 'a'", "must be given together with server.tls_cert"),
        ("[policy]\nprior = [2.0, 0.1]", "policy.prior=(2.0, 0.1): each must be between 0 and 1"),
        ("[probes]\nejection_s = 100", "must be >= probes.ejection_s=100"),
        ("[admin]\nhost = '0.0.0.0'", "admin.token='': required because admin.host='0.0.0.0' is not loopback"),
    ],
)
def test_a_bad_value_gives_one_line_with_key_value_and_bound(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_text(tmp_path, text)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_policy_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.name='best': must be one of cache_aware, prefix_ring"):
        load_text(tmp_path, "[policy]\nname = 'best'")


def test_a_file_that_is_not_toml_or_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not TOML"):
        load_text(tmp_path, "[[[")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.toml", {}, {})


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "warmroute.toml"
    file.write_text("[server]\nport = 1\nhost = 'file'\ndrain_s = 7", "utf-8")
    environment = {"WARMROUTE_SERVER__PORT": "2", "WARMROUTE_SERVER__HOST": "environment"}
    server = load_config(file, environment, {"server.port": 3, "server.host": None}).server
    assert (server.port, server.host, server.drain_s, server.tls_cert) == (3, "environment", 7.0, "")


def test_environment_takes_lists_by_comma_and_refuses_what_it_does_not_know() -> None:
    config = load_config(None, {"WARMROUTE_FLEET__WORKERS": "http://a:1, http://b:2,", "HOME": "/"}, {})
    assert config.fleet.workers == ["http://a:1", "http://b:2"]
    assert load_config(None, {"WARMROUTE_POLICY__PRIOR": "0.5,0.1"}, {}).policy.prior == (0.5, 0.1)
    assert load_config(None, {"WARMROUTE_POLICY__ALONE": "true"}, {}).policy.alone
    with pytest.raises(ConfigError, match="WARMROUTE_FLEET__WORKER='x': no such setting"):
        load_config(None, {"WARMROUTE_FLEET__WORKER": "x"}, {})


def test_every_setting_has_a_description_and_a_default_within_its_bound() -> None:
    every = list(settings())
    assert all(setting.description.endswith(".") for setting in every)
    assert len({setting.variable for setting in every}) == len(every)
    tree: dict[str, dict[str, object]] = {}
    for setting in every:
        section, name = setting.key.split(".")
        tree.setdefault(section, {})[name] = setting.default
    assert msgspec.convert(tree, Config) == Config()


def test_the_policies_defaults_are_the_configurations() -> None:
    ours, theirs = PolicyConfig(), PolicySettings()
    assert (ours.ring_bound, ours.miss_weight, ours.prior, ours.leave_weight, ours.alone) == (
        theirs.ring_bound,
        theirs.miss_weight,
        theirs.prior,
        theirs.leave_weight,
        theirs.alone,
    )
