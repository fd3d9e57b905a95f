"""Each alert fires when it should, and not when it need not; each has a page that says what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from grafana.alerts import ALERTS, RECORDED, Alert
from tests.grafana.prometheus import program

ROOT = Path(__file__).parents[2]
RULES = ROOT / "grafana" / "rules" / "warmroute.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks"

Series = dict[str, str]
"""Values in promtool's words: ``a+bxn`` is a, a+b, …, n times more; one a minute."""


class Case(NamedTuple):
    """``labels``: of the alert that fires ``at``; it does not on the ``quiet`` series."""

    fires: Series
    quiet: Series
    at: str
    labels: dict[str, str]


def requests(errors: float) -> Series:
    """A thousand a minute, of which so many end with a 5xx."""
    return {
        'warmroute_requests_total{job="w",status="200"}': f"0+{1000 - errors}x500",
        'warmroute_requests_total{job="w",status="502"}': f"0+{errors}x500",
    }


def streams(soon: float) -> Series:
    """A thousand a minute, of which so many begin in time."""
    return {
        'warmroute_time_to_first_token_seconds_bucket{job="w",le="2.5"}': f"0+{soon}x500",
        'warmroute_time_to_first_token_seconds_count{job="w"}': "0+1000x500",
    }


def hits(before: int, now: int) -> Series:
    """A day with so many of a thousand tokens cached, and the next."""
    return {
        'warmroute_prompt_tokens_total{job="w"}': "0+1000x3000",
        'warmroute_actual_cached_tokens_total{job="w"}': f"0+{before}x1440 {before * 1440}+{now}x1500",
    }


def shares(hot: int) -> Series:
    """Four workers, of which three have ten requests a minute."""
    return {
        f'warmroute_worker_requests_total{{job="w",worker="{worker}"}}': f"0+{rate}x500"
        for worker, rate in {"a": hot, "b": 10, "c": 10, "d": 10, "e": 10, "f": 10}.items()
    }


def gauge(metric: str, labels: str, value: str) -> Series:
    return {f'warmroute_{metric}{{job="w",{labels}}}': f"{value}x500"}


W = {"job": "w"}
R1 = {"job": "w", "instance": "r1"}
CASES = {
    "WarmrouteDown": Case(
        {'up{job="warmroute",instance="r1"}': "0x500"},
        {'up{job="warmroute",instance="r1"}': "1x500", 'up{job="other",instance="r1"}': "0x500"},
        "5m",
        {"job": "warmroute", "instance": "r1"},
    ),
    "WarmrouteErrorsBurnFast": Case(requests(20), requests(10), "70m", W),
    "WarmrouteErrorsBurnSlow": Case(requests(8), requests(4), "400m", W),
    "WarmrouteSlowFirstTokensBurnFast": Case(streams(800), streams(900), "70m", W),
    "WarmrouteSlowFirstTokensBurnSlow": Case(streams(900), streams(960), "400m", W),
    "WarmrouteAllWorkersOut": Case(
        gauge("worker_state", 'instance="r1",worker="a",state="up"', "0"),
        gauge("worker_state", 'instance="r1",worker="a",state="up"', "0")
        | gauge("worker_state", 'instance="r1",worker="b",state="up"', "1"),
        "5m",
        R1,
    ),
    "WarmrouteHitRatioFell": Case(hits(600, 300), hits(600, 500), "1600m", W),
    "WarmrouteWorkerTooHot": Case(shares(100) | streams(900), shares(20) | streams(900), "60m", W | {"worker": "a"}),
    "WarmrouteStoreDown": Case(
        gauge("store_up", 'instance="r1"', "0"), gauge("store_up", 'instance="r1"', "1"), "5m", R1
    ),
    "WarmrouteJournalGrows": Case(
        gauge("write_behind_seconds", 'instance="r1"', "300"),
        gauge("write_behind_seconds", 'instance="r1"', "3")
        | gauge("journal_bytes", 'instance="r1"', "10")
        | gauge("max_journal_bytes", 'instance="r1"', "100"),
        "5m",
        R1,
    ),
    "WarmrouteBudgetNearlySpent": Case(
        gauge("tenant_day_tokens_left", 'tenant="acme",kind="prompt"', "50")
        | gauge("tenant_day_tokens", 'tenant="acme",kind="prompt"', "1000"),
        gauge("tenant_day_tokens_left", 'tenant="acme",kind="prompt"', "500")
        | gauge("tenant_day_tokens", 'tenant="acme",kind="prompt"', "1000"),
        "5m",
        W | {"tenant": "acme", "kind": "prompt"},
    ),
    "WarmrouteRetriesSpent": Case(
        gauge("retry_budget", 'instance="r1"', "0"), gauge("retry_budget", 'instance="r1"', "3"), "5m", R1
    ),
    "WarmrouteStreamsCutOff": Case(
        gauge("resumptions_total", 'outcome="failed"', "0+10"),
        gauge("resumptions_total", 'outcome="exact"', "0+10"),
        "30m",
        W,
    ),
    "WarmrouteSourcesUnreadable": Case(
        gauge("workers_reload_failures_total", 'instance="r1",source="dns"', "0+6"),
        gauge("workers_reload_failures_total", 'instance="r1",source="dns"', "6")
        | gauge("keys_reload_failures_total", 'instance="r1"', "0"),
        "30m",
        R1 | {"source": "dns"},
    ),
    "WarmrouteNotesFail": Case(
        gauge("compactions_total", 'result="rejected_empty"', "0+9")
        | gauge("compactions_total", 'result="told"', "0+1"),
        gauge("compactions_total", 'result="rejected_empty"', "0+1")
        | gauge("compactions_total", 'result="told"', "0+9"),
        "90m",
        W,
    ),
    "WarmrouteTasksFail": Case(
        gauge("background_failures_total", 'instance="r1",task="keeper"', "0+1"),
        gauge("background_failures_total", 'instance="r1",task="keeper"', "1"),
        "30m",
        R1 | {"task": "keeper"},
    ),
}


def promtool(directory: Path, alert: Alert, case: Case) -> subprocess.CompletedProcess[str]:
    fires = {"exp_labels": case.labels | {"severity": alert.severity}}
    tests: list[dict[str, Any]] = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{"alertname": alert.name, "eval_time": case.at, "exp_alerts": expected}],
        }
        for series, expected in ((case.fires, [fires]), (case.quiet, []))
    ]
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:  # what they say in words is not what is tested
        for rule in group["rules"]:
            rule.pop("annotations", None)
    (directory / "rules.yaml").write_text(yaml.safe_dump(rules))
    test = directory / "test.yaml"
    test.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    command = [program("promtool"), "test", "rules", str(test)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.system
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert.name))
def test_an_alert_fires_when_it_should_and_not_when_it_need_not(alert: Alert, tmp_path: Path) -> None:
    found = promtool(tmp_path, alert, CASES[alert.name])
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.system
def test_an_alert_whose_metric_was_renamed_does_not_fire(tmp_path: Path) -> None:
    alert = next(alert for alert in ALERTS if alert.name == "WarmrouteStoreDown")
    renamed = {name.replace("store_up", "store_is_up"): values for name, values in CASES[alert.name].fires.items()}
    assert promtool(tmp_path, alert, CASES[alert.name]._replace(fires=renamed)).returncode != 0


@pytest.mark.system
def test_prometheus_takes_the_rules() -> None:
    found = subprocess.run(
        [program("promtool"), "check", "rules", str(RULES)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{len(ALERTS) + len(RECORDED)} rules found" in found.stdout


def test_every_alert_is_tested() -> None:
    assert set(CASES) == {alert.name for alert in ALERTS}


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {alert.page for alert in ALERTS} == {f"docs/runbooks/{page.name}" for page in RUNBOOKS.glob("*.md")}


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda page: str(page.stem))
def test_a_page_names_its_alerts_and_settings_that_there_are(page: Path) -> None:
    text = page.read_text()
    title = text.splitlines()[0]
    for alert in ALERTS:
        assert (alert.name in title) == (Path(alert.page).name == page.name)
    settings = (ROOT / "docs" / "configuration.md").read_text()
    for name in re.findall(r"`([a-z]+\.[a-z_]+)(?: = [^`]*)?`", text):
        assert f"`{name}`" in settings, name
    for part in ("**See.**", "**Do.**", "**Wait?**"):
        assert part in text
    for link in re.findall(r"\]\((\w+\.md)\)", text):
        assert (RUNBOOKS / link).exists()


def test_the_reference_lists_every_alert() -> None:
    listed = re.findall(r"(?m)^\| (Warmroute\w+) \| (\w+) \|", (ROOT / "docs" / "dashboards.md").read_text())
    assert listed == [(alert.name, alert.severity) for alert in ALERTS]
