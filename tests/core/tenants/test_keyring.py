"""A list of keys is taken whole or refused whole, in one line that names what is wrong and quotes no secret."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.tenants.keyring import AuthRefusal, BadKeys, KeyList, Keyring, joined, parse_entries, parse_keys
from router.core.tenants.tenant import Caller, TenantRules

KEY, OTHER = sha256(b"wr-key"), sha256(b"wr-other")
SECRET = b"a secret of all replicas"
ROW = f'[[keys]]\nid = "one"\ntenant = "acme"\nsha256 = "{KEY.hexdigest()}"\n'
GOOD = f"""
[tenants.acme]
models = ["m", "n"]
sharing_group = "g"
priority = -1
share = 2
max_in_flight = 8
requests_per_minute = 60
prompt_tokens_per_minute = 1_000
completion_tokens_per_minute = 1_000
prompt_tokens_per_day = 10_000
completion_tokens_per_day = 10_000
cached_token_weight = 0.1
sees_decisions = true

{ROW}
"""


def keyring(text: str) -> Keyring:
    return Keyring(parse_keys(text), SECRET)


def caller(text: str, now: float = 0.0) -> Caller:
    found = keyring(text).find(KEY.digest(), now)
    assert isinstance(found, Caller)
    return found


def test_a_key_opens_for_its_tenant_with_all_of_its_rules() -> None:
    rules = caller(GOOD).rules
    assert (rules.tenant, sorted(rules.models), rules.sharing_group) == ("acme", ["m", "n"], "g")
    assert (rules.priority, rules.share, rules.max_in_flight, rules.requests_per_minute) == (-1, 2.0, 8, 60)
    assert (rules.prompt_tokens_per_day, rules.cached_token_weight, rules.sees_decisions) == (10_000, 0.1, True)
    assert rules.may_use("m")
    assert not rules.may_use("x")


def test_a_tenant_without_models_may_use_all() -> None:
    assert caller(f"[tenants.acme]\n{ROW}").rules.may_use("anything")


def test_keys_of_one_tenant_are_one_caller() -> None:
    ring = keyring(GOOD + ROW.replace('"one"', '"two"').replace(KEY.hexdigest(), OTHER.hexdigest()))
    assert ring.find(KEY.digest(), 0.0) is ring.find(OTHER.digest(), 0.0)
    assert len(ring) == 2


def test_what_is_not_listed_is_unknown_and_a_disabled_key_is_disabled() -> None:
    assert keyring(GOOD).find(OTHER.digest(), 0.0) is AuthRefusal.UNKNOWN
    assert keyring(GOOD).find(b"", 0.0) is AuthRefusal.UNKNOWN
    assert keyring(GOOD + "disabled = true").find(KEY.digest(), 0.0) is AuthRefusal.DISABLED
    assert keyring("").find(KEY.digest(), 0.0) is AuthRefusal.UNKNOWN


def test_a_key_expires_at_its_moment_whatever_its_time_zone() -> None:
    ring = keyring(GOOD + "expires = 1970-01-01T02:00:10+02:00")
    assert isinstance(ring.find(KEY.digest(), 9.999), Caller)
    assert ring.find(KEY.digest(), 10.0) is AuthRefusal.EXPIRED


def test_digests_may_be_written_in_capitals() -> None:
    assert caller(GOOD.replace(KEY.hexdigest(), KEY.hexdigest().upper())).rules.tenant == "acme"


TENANT = "[tenants.acme]\n"
NAMES = ("tenants", "keys", "id", "tenant", "sha256", "expires", "disabled", "share", "models", "acme")


def as_toml(value: object) -> str:
    """One line a member at the top, and inline below; None and what TOML cannot say is left bare, as a mistake."""
    if isinstance(value, dict):
        return "\n".join(f"{key} = {_inline(each)}" for key, each in value.items())
    return ""


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else str(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[[[", "is not TOML"),
        ("a = " + "9" * 5000, "is not TOML"),
        ("a = " + "[" * 5000, "is nested too deeply"),
        ("tennants = 1", "tennants: no such table"),
        ("keys = 1", "must have [tenants.NAME] tables and [[keys]] entries"),
        ("[tenants]\nacme = 1", "tenants.acme: must be a table of rules"),
        ('[tenants."a b"]', "tenants.'a b': a name is 1 to 64 letters"),
        ('[tenants.""]', "tenants.'': a name is"),
        (TENANT + "tenant = 'else'", "tenants.acme: must be a table of rules, without a field 'tenant'"),
        (TENANT + "shar = 1", "tenants.acme: Object contains unknown field `shar`"),
        (TENANT + "share = 0", "tenants.acme.share: Expected `float` > 0"),
        (TENANT + "share = nan", "tenants.acme.share: Expected `float` > 0"),
        (TENANT + "max_in_flight = -1", "tenants.acme.max_in_flight: Expected `int` >= 0"),
        (TENANT + "max_in_flight = true", "tenants.acme.max_in_flight: Expected `int`, got `bool`"),
        (TENANT + "requests_per_minute = -1", "tenants.acme.requests_per_minute: Expected `int` >= 1"),
        (TENANT + "prompt_tokens_per_day = 1.5", "tenants.acme.prompt_tokens_per_day: Expected `int"),
        (TENANT + "cached_token_weight = 1.1", "tenants.acme.cached_token_weight: Expected `float` <= 1"),
        (TENANT + "priority = 101", "tenants.acme.priority: Expected `int` <= 100"),
        (TENANT + "models = 'm'", "tenants.acme.models: Expected `array`, got `str`"),
        (TENANT + "models = ['']", "tenants.acme.models[0]: Expected `str` of length >= 1"),
        (TENANT + "sharing_group = 'a b'", "tenants.acme.sharing_group: Expected `str` matching regex"),
        (TENANT + "sees_decisions = 1", "tenants.acme.sees_decisions: Expected `bool`, got `int`"),
        (ROW, "key one: there is no table tenants.acme"),
        (GOOD + ROW, "key one: its id is given twice"),
        (GOOD + ROW.replace("one", "two"), "key two: has the sha256 of one"),
        (GOOD + ROW.replace("one", "two").replace(KEY.hexdigest(), KEY.hexdigest().upper()), "has the sha256 of one"),
        (GOOD + "expiry = 1", "keys entry 1 (one): Object contains unknown field `expiry`"),
        (GOOD + "expires = 2030-01-01", "keys entry 1 (one).expires: Expected `datetime | null`, got `date`"),
        (GOOD + "expires = 2030-01-01T00:00:00", "keys entry 1 (one).expires: Expected `datetime` with a timezone"),
        (GOOD + "disabled = 'no'", "keys entry 1 (one).disabled: Expected `bool`, got `str`"),
        (GOOD.replace('id = "one"', 'id = ""'), "keys entry 1.id: Expected `str` matching regex"),
        (GOOD.replace('id = "one"', ""), "keys entry 1: Object missing required field `id`"),
        (GOOD.replace(KEY.hexdigest(), "wr-plain-key"), "keys entry 1 (one).sha256: Expected `str` matching regex"),
        (GOOD.replace(KEY.hexdigest(), KEY.hexdigest() + "0"), "keys entry 1 (one).sha256: Expected"),
        ("keys = [1]", "keys entry 1: Expected `object`, got `int`"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_entry_and_bound(text: str, line: str) -> None:
    with pytest.raises(BadKeys) as raised:
        parse_keys(text)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "plain-key" not in str(raised.value)
    assert KEY.hexdigest() not in str(raised.value)


def test_keys_without_a_file_have_tenants_with_the_default_limits() -> None:
    ring = Keyring(parse_entries([f"acme:{KEY.hexdigest()}", f"b:{OTHER.hexdigest().upper()}"]), SECRET)
    found = ring.find(KEY.digest(), 0.0)
    assert isinstance(found, Caller)
    assert found.rules == TenantRules(tenant=found.rules.tenant)
    assert found.rules.tenant == "acme"
    assert isinstance(ring.find(OTHER.digest(), 0.0), Caller)


@pytest.mark.parametrize(
    "entry", ["", "acme", "acme:", f":{'0' * 64}", f"a b:{'0' * 64}", f"acme:{'0' * 63}", "acme:wr-x"]
)
def test_an_entry_of_another_form_is_refused_without_being_quoted(entry: str) -> None:
    with pytest.raises(BadKeys, match=r"^entry 2: must be TENANT:SHA256") as raised:
        parse_entries([f"acme:{KEY.hexdigest()}", entry])
    assert "wr-x" not in str(raised.value)


def test_where_a_file_and_the_environment_know_a_tenant_the_files_rules_hold() -> None:
    both = joined(parse_keys(GOOD), parse_entries([f"acme:{OTHER.hexdigest()}"]))
    found = Keyring(both, SECRET).find(OTHER.digest(), 0.0)
    assert isinstance(found, Caller)
    assert found.rules.max_in_flight == 8
    with pytest.raises(BadKeys, match="has the sha256 of one"):
        joined(parse_keys(GOOD), parse_entries([f"acme:{KEY.hexdigest()}"]))


VALUES: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.datetimes() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(st.text() | st.dictionaries(st.sampled_from(NAMES), VALUES).map(as_toml))
def test_whatever_the_file_holds_it_is_taken_or_refused_in_one_line(text: str) -> None:
    complaint = ""
    try:
        parse_keys(text)
    except BadKeys as error:
        complaint = str(error)
    assert "\n" not in complaint


def test_an_empty_list_opens_for_nobody() -> None:
    assert parse_keys("") == KeyList({}, [])
    assert len(keyring("")) == 0
