"""Bad configuration stops the start with one line that names key, value and bound."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from router.config.schema import (
    BUNDLED_MODEL,
    Config,
    ConfigError,
    ModelConfig,
    Setting,
    load_config,
    read_salt_secret,
    settings,
)
from router.policies.cache_aware import CacheAwareParameters


def load_text(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "warmroute.toml"
    file.write_text(text, "utf-8")
    return load_config(file, {}, {})


EVERY = list(settings())
NUMBERS = [setting for setting in EVERY if setting.type in ("int", "float") and setting.key != "policy.seed"]


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
        ("[fleet]\nworkers = 'http://a'", "fleet.workers='http://a': must be list of str"),
        ("[server]\nport = true", "server.port=True: must be int"),
        ("[server]\nport = 80.5", "server.port=80.5: must be int"),
        ("[server]\nport = 2024-01-01", "server.port=datetime.date(2024, 1, 1): must be int"),
        ("[server]\nport = {a = 1}", "server.port={'a': 1}: must be int"),
        ("[server]\nhost = ''", "server.host='': must be str not empty"),
        ("[server]\ninsecure_no_auth = 'maybe'", "server.insecure_no_auth='maybe': must be bool"),
        ("[log]\nlevel = 'loud'", "log.level='loud': must be one of debug, info, warning, error"),
        ("[policy]\nmiss_weight = nan", "policy.miss_weight=nan: must be float ≥ 0 ≤ 100"),
        ("[policy]\ninitial_prefill_rate = inf", "policy.initial_prefill_rate=inf: must be float ≥ 10 ≤ 10000000"),
        ("[policy]\nprior = [0.9]", "policy.prior=[0.9]: must be list of 2 float each ≥ 0 ≤ 1"),
        ("[timeouts]\nanswer_s = inf", "timeouts.answer_s=inf: must be float > 0 ≤ 86400"),
        ("[fleet]\nworkers_dns = 'name'", "fleet.workers_dns='name': must be NAME:PORT"),
        ("[fleet]\nworkers_dns = ':80'", "fleet.workers_dns=':80': must be NAME:PORT"),
        ("[fleet]\nworkers_dns = 'name:²'", "fleet.workers_dns='name:²': must be NAME:PORT"),
        ("[fleet]\nworkers_dns = 'name:65536'", "fleet.workers_dns='name:65536': must be NAME:PORT"),
        ("[server]\ntls_key = 'a'", "must be given together with server.tls_cert"),
        ("[fleet]\nclient_cert = 'a'", "must be given together with fleet.client_cert"),
        ("[limits]\nallowed_media_domains = ['http://a.example']", "must be a host's name"),
        *(
            (f"[server]\ncors_origins = [{origin!r}]", f"server.cors_origins={origin!r}: must be * or an origin")
            for origin in (
                "https://app.example/",
                "https://app.example/chat",
                "app.example",
                "https://App.example",
                "HTTPS://app.example",
                "https://*.app.example",
                "https://app.example:443",
                "http://localhost:80",
                "http://localhost:03000",
                "http://localhost:65536",
                "http://localhost:",
                "https://bücher.example",
                " https://app.example",
                "https://",
                "",
            )
        ),
        *(
            (
                f"[server]\nallowed_hosts = [{host!r}]",
                f"server.allowed_hosts={host!r}: must be a host's name or address",
            )
            for host in ("*", "https://llm.example", "llm.example:8080", "[::1]", "*.llm.example", "llm.example/", "")
        ),
        (
            "[server]\ncors_origins = ['https://ada@app.example']",
            "server.cors_origins='https://***@app.example': must be *",
        ),
        ("[server]\ntls_cert = 'a'", "must be given together with server.tls_cert"),
        ("[policy]\nprior = [2.0, 0.1]", "policy.prior=[2.0, 0.1]: must be list of 2 float each ≥ 0 ≤ 1"),
        ("[models.'a/b-2.5']\ntokeniser = 'worker'", "models.a/b-2.5.tokeniser: no such setting"),
        ("[models.'a/b-2.5']\ntokenizer = 1", "models.a/b-2.5.tokenizer=1: must be str"),
        ("[models]\na = 1", "models.a=1: must be table"),
        ("models = 1", "models=1: must be table"),
        (
            "[models.m]\ntokenizer = 'tiktoken:p50k'",
            "models.m.tokenizer='tiktoken:p50k': must be worker, estimate, tiktoken:",
        ),
        (
            "[tokens]\ntokenizer = '/absent/tokenizer.json'",
            "tokens.tokenizer='/absent/tokenizer.json': must be worker,",
        ),
        ("[probes]\nejection_s = 100", "must be >= probes.ejection_s=100"),
        (
            "[admin]\nhost = '0.0.0.0'",
            "admin.token='': required because admin.host='0.0.0.0' is not loopback, and must hold at least 16 bytes",
        ),
        (
            "[admin]\nhost = '0.0.0.0'\ntoken = 'fifteen letters'",
            "admin.token=***: required because admin.host='0.0.0.0' is not loopback, and must hold at least 16 bytes",
        ),
    ],
)
def test_a_bad_value_gives_one_line_with_key_value_and_bound(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_text(tmp_path, text)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_names_that_browsers_and_requests_may_carry_are_taken(tmp_path: Path) -> None:
    origins = ["*", "null", "https://app.example", "http://localhost:3000", "http://[::1]:8000", "http://127.0.0.1"]
    origins += ["https://a.example:80", "tauri://localhost", "chrome-extension://abcdefghijklmnop", "app://x"]
    hosts = ["llm.example", "LLM.example.", "127.0.0.1", "::1", "llm_1", "localhost"]
    server = load_text(tmp_path, f"[server]\ncors_origins = {origins}\nallowed_hosts = {hosts}").server
    assert (server.cors_origins, server.allowed_hosts) == (origins, hosts)


@pytest.mark.parametrize("setting", EVERY, ids=lambda setting: setting.key)
def test_a_value_of_another_type_is_refused_by_every_setting(setting: Setting) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, {}, {setting.key: {"a": 1}})
    assert str(raised.value).startswith(f"{setting.key}=")
    assert f"must be {setting.type} {setting.bound}".strip() in str(raised.value)


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.key)
def test_every_number_is_bounded_at_both_ends(setting: Setting) -> None:
    for value in (-1, 10**15, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=re.escape(f"{setting.key}={value!r}: must be {setting.type}")):
            load_config(None, {}, {setting.key: value})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_an_admin_port_on_loopback_needs_no_token(host: str) -> None:
    assert load_config(None, {}, {"admin.host": host}).admin.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "127.example.org", "localhost.example.org"])
def test_an_admin_port_anywhere_else_needs_one(host: str) -> None:
    with pytest.raises(ConfigError, match=r"admin\.token='': required because admin\.host="):
        load_config(None, {}, {"admin.host": host})
    assert load_config(None, {}, {"admin.host": host, "admin.token": "t" * 16}).admin.token


def test_no_complaint_quotes_a_secret(tmp_path: Path) -> None:
    secrets = [setting.key for setting in EVERY if setting.is_secret]
    assert secrets == [
        "auth.keys",
        "auth.salt_secret",
        "admin.token",
        "fleet.worker_key",
        "sessions.store",
        "sessions.secret",
        "sessions.encryption_secret",
        "context.summary_api_key",
        "context.recall_index",
        "context.embed_api_key",
        "tracing.headers",
    ]
    for key in secrets:
        with pytest.raises(ConfigError) as raised:
            load_config(None, {}, {key: {"hush-hush": 1}})
        kind = "list of str" if key in ("auth.keys", "tracing.headers") else "str"
        assert str(raised.value) == f"{key}=***: must be {kind}"
    with pytest.raises(ConfigError) as raised:
        load_config(None, {"WARMROUTE_ADMIN__TOKN": "hush-hush"}, {})
    assert "hush-hush" not in str(raised.value)


def test_what_kubernetes_says_of_a_service_with_our_name_is_no_setting() -> None:
    environment = {
        "WARMROUTE_SERVICE_HOST": "10.0.0.1",
        "WARMROUTE_SERVICE_PORT": "8080",
        "WARMROUTE_SERVICE_PORT_HTTP": "8080",
        "WARMROUTE_PORT": "tcp://10.0.0.1:8080",
        "WARMROUTE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "WARMROUTE_PORT_8080_TCP_ADDR": "10.0.0.1",
        "WARMROUTE_ADMIN_SERVICE_HOST": "10.0.0.2",
        "WARMROUTE_ADMIN_PORT_8081_TCP_PROTO": "tcp",
    }
    assert load_config(None, environment, {}) == Config()
    with pytest.raises(ConfigError, match="WARMROUTE_PORT: no such setting"):
        load_config(None, {"WARMROUTE_PORT": "8080"}, {})


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
    policy = load_config(None, {"WARMROUTE_POLICY__PRIOR": "0.5,0.1", "WARMROUTE_POLICY__ALONE": "true"}, {}).policy
    assert msgspec.convert(policy, CacheAwareParameters, from_attributes=True) == CacheAwareParameters(
        prior=(0.5, 0.1), alone=True
    )
    with pytest.raises(ConfigError, match="WARMROUTE_FLEET__WORKER: no such setting"):
        load_config(None, {"WARMROUTE_FLEET__WORKER": "x"}, {})


def test_every_setting_has_a_description_and_a_default_within_its_bound() -> None:
    assert all(setting.description.endswith(".") for setting in EVERY)
    assert len({setting.variable for setting in EVERY}) == len(EVERY)
    tree: dict[str, dict[str, object]] = {}
    for setting in EVERY:
        section, name = setting.key.rsplit(".", 1)
        tree.setdefault(section, {})[name] = setting.default
    assert msgspec.convert(tree.pop("models.NAME"), ModelConfig) == ModelConfig()
    assert msgspec.convert(tree, Config) == Config()


ENTRY = "acme:" + "0a" * 32
SALT = "sixteen bytes or more"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"auth.keys": [ENTRY]}, "auth.salt_secret='': required with API keys"),
        ({"auth.keys_file": "keys.toml"}, "auth.salt_secret='': required with API keys"),
        ({"auth.salt_secret": "x" * 15}, "auth.salt_secret=***: must hold at least 16 bytes"),
        ({"auth.salt_secret_file": "/absent"}, "auth.salt_secret_file='/absent': cannot be read: No such file"),
        ({"auth.salt_secret": SALT, "auth.salt_secret_file": "x"}, "must not be given together with"),
        ({"auth.keys": ["wr-plain-key"], "auth.salt_secret": SALT}, "auth.keys=***: entry 1: must be TENANT:SHA256"),
        (
            {"auth.keys": [ENTRY, ENTRY], "auth.salt_secret": SALT},
            "auth.keys=***: key acme-0a0a0a0a: its id is given twice",
        ),
        (
            {"auth.keys": [ENTRY], "auth.salt_secret": SALT, "server.insecure_no_auth": True},
            "server.insecure_no_auth=True: must not be given together with auth.keys_file or auth.keys",
        ),
    ],
)
def test_keys_without_a_salt_bad_ones_and_keys_that_nobody_is_asked_for_are_refused(
    flags: dict[str, object], line: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, {}, flags)
    assert line in str(raised.value)
    assert "plain-key" not in str(raised.value)


def test_keys_and_salt_come_from_the_environment_too() -> None:
    environment = {"WARMROUTE_AUTH__KEYS": f"{ENTRY},b:{'0b' * 32}", "WARMROUTE_AUTH__SALT_SECRET": SALT}
    auth = load_config(None, environment, {}).auth
    assert auth.keys == [ENTRY, "b:" + "0b" * 32]
    assert read_salt_secret(auth) == SALT.encode()


def test_a_salt_secret_of_a_file_is_the_same_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "salt"
    file.write_text(SALT + "\n", "utf-8")
    assert read_salt_secret(load_config(None, {}, {"auth.salt_secret_file": str(file)}).auth) == SALT.encode()


BUNDLED = {"context.embed_model": BUNDLED_MODEL}
SERVICE = {"context.embed_url": "http://127.0.0.1:1/v1/embeddings"}
OF_FLEET = {"context.embed_model": "bge"}
LENGTH = {"context.embed_dimensions": 768}


@pytest.mark.parametrize("flags", [{}, BUNDLED, {**OF_FLEET, **LENGTH}, {**SERVICE, **OF_FLEET, **LENGTH}])
def test_vectors_are_made_here_by_the_fleet_or_by_a_service(flags: dict[str, object]) -> None:
    load_config(None, {}, flags)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (SERVICE, "context.embed_model='': required with context.embed_url"),
        ({**SERVICE, **OF_FLEET}, "context.embed_dimensions=0: required with context.embed_url"),
        ({**SERVICE, **BUNDLED}, "context.embed_dimensions=0: required with context.embed_url"),
        (OF_FLEET, "context.embed_dimensions=0: required for context.embed_model='bge'; only all-MiniLM-L6-v2-int8"),
    ],
)
def test_who_makes_vectors_elsewhere_must_be_named_with_their_length(flags: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, {}, flags)
    assert str(raised.value).startswith(line)


def test_a_models_own_tokenizer_goes_before_patterns_and_these_before_the_one_for_all(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        """
        [tokens]
        tokenizer = "worker"
        [models."gpt-*"]
        tokenizer = "tiktoken:cl100k_base"
        [models."gpt-oss-*"]
        tokenizer = "tiktoken:o200k_base"
        [models."gpt-oss-20b"]
        tokenizer = "tiktoken:o200k_harmony"
        [models."gpt-5.5/x"]
        [models.tiny]
        tokenizer = "estimate"
        """,
    )
    assert config.tokenizer_of("gpt-oss-20b") == "tiktoken:o200k_harmony"
    assert config.tokenizer_of("gpt-oss-120b") == "tiktoken:cl100k_base"
    assert config.tokenizer_of("gpt-5.5/x") == "tiktoken:cl100k_base"
    assert config.tokenizer_of("other") == "worker"
    assert config.tokenizer_of("tiny") == "estimate"
    assert Config().tokenizer_of("any") == "estimate"


def test_the_environment_names_a_model_as_it_is_written() -> None:
    environment = {"WARMROUTE_MODELS__Qwen/Qwen2.5-7B__TOKENIZER": "worker", "WARMROUTE_TOKENS__TOKENIZER": "estimate"}
    config = load_config(None, environment, {"models.a.b__c.tokenizer": "worker"})
    assert {name: table.tokenizer for name, table in config.models.items()} == {
        "Qwen/Qwen2.5-7B": "worker",
        "a.b__c": "worker",
    }
    with pytest.raises(ConfigError, match="WARMROUTE_MODELS__M__TOKENISER: no such setting"):
        load_config(None, {"WARMROUTE_MODELS__M__TOKENISER": "worker"}, {})


POSTGRES = "postgresql://router:hunter2@db.internal/recall"


@pytest.mark.parametrize(
    "index",
    [
        "sqlite",
        "memory",
        "none",
        POSTGRES,
        POSTGRES.replace("postgresql", "postgres"),
        "postgresql://one:5432,[::1]:5433/recall",
        "postgresql:///recall?host=/run/postgresql",
    ],
)
def test_recall_may_be_indexed_in_a_file_in_memory_in_postgresql_or_nowhere(index: str) -> None:
    context = load_config(None, {}, {"context.recall_index": index}).context
    assert context.recall_in_postgres == ("://" in index)


@pytest.mark.parametrize(
    "index",
    [
        "",
        "file",
        "mysql://router:hunter2@db/recall",
        "sqlite:///recall.db",
        "postgresql://router:hunter2@db:port/recall",
        "postgresql://router:hunter2@[::1/recall",
        "postgresql://router:hunter2@one:5432,two:0/recall",
    ],
)
def test_what_is_no_index_of_recall_is_refused_and_not_quoted(index: str) -> None:
    with pytest.raises(ConfigError, match=r"context\.recall_index=\*\*\*: must be sqlite") as raised:
        load_config(None, {}, {"context.recall_index": index})
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sessions.encryption_secret", "a secret of some length"),
        ("sessions.encryption_secret_file", "/secret"),
        ("sessions.store", "memory://"),
    ],
)
def test_postgresql_indexes_neither_what_is_encrypted_nor_what_ends_with_the_process(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match="must not be PostgreSQL together with sessions") as raised:
        load_config(None, {}, {"context.recall_index": POSTGRES, key: value})
    assert "hunter2" not in str(raised.value)
    assert value not in str(raised.value) or value == "memory://"
