"""Each alert fires when it should, and not when it need not; each has a page that says what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from grafana.alerts import ALERTS, Alert
from grafana.generate import BOARDS
from grafana.shares import RECORDED
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
    """A day with so many of a thousand tokens cached, and the next; ten requests a minute."""
    return {
        'warmroute_requests_total{job="w",status="200"}': "0+10x3000",
        'warmroute_prompt_tokens_total{job="w"}': "0+1000x3000",
        'warmroute_actual_cached_tokens_total{job="w"}': f"0+{before}x1440 {before * 1440}+{now}x1500",
    }


def shares(hot: int) -> Series:
    """Six workers, of which five have ten requests a minute."""
    return {
        f'warmroute_worker_requests_total{{job="w",worker="{worker}"}}': f"0+{rate}x500"
        for worker, rate in {"a": hot, "b": 10, "c": 10, "d": 10, "e": 10, "f": 10}.items()
    }


def leaving(clients: int) -> Series:
    """Of a hundred a minute."""
    return {
        'warmroute_requests_total{job="w",status="200"}': f"0+{100 - clients}x500",
        'warmroute_requests_total{job="w",status="499"}': f"0+{clients}x500",
    }


def gauge(metric: str, labels: str, value: str) -> Series:
    return {f'warmroute_{metric}{{job="w",{labels}}}': f"{value}x500"}


def retries_left(value: str) -> Series:
    return gauge("retry_budget", 'instance="r1"', value) | gauge("retry_budget_max", 'instance="r1"', "100")


def failing(value: str) -> Series:
    return gauge("requests_total", 'instance="r1",status="502"', value)


W = {"job": "w"}
R1 = {"job": "w", "instance": "r1"}
CASES = {
    "WarmrouteDown": Case(
        {'up{job="warmroute",instance="r1"}': "0x500"},
        {'up{job="warmroute",instance="r1"}': "1x500", 'up{job="other",instance="r1"}': "0x500"},
        "5m",
        {"job": "warmroute", "instance": "r1"},
    ),
    "WarmrouteAbsent": Case(
        gauge("build_info", 'instance="r1"', "1x10 stale _"),
        gauge("build_info", 'instance="r1"', "1x10 stale _") | gauge("build_info", 'instance="r2"', "1"),
        "30m",
        W,
    ),
    "WarmrouteErrorsBurnFast": Case(requests(20), requests(10), "70m", W),
    "WarmrouteErrorsBurnSlow": Case(requests(8), requests(4), "400m", W),
    "WarmrouteSlowFirstTokensBurnFast": Case(streams(800), streams(900), "70m", W),
    "WarmrouteSlowFirstTokensBurnSlow": Case(streams(900), streams(960), "400m", W),
    "WarmrouteClientsLeave": Case(leaving(40), leaving(20), "30m", W),
    "WarmrouteAllWorkersOut": Case(
        gauge("worker_state", 'instance="r1",worker="a",state="up"', "0"),
        gauge("worker_state", 'instance="r1",worker="a",state="up"', "0")
        | gauge("worker_state", 'instance="r1",worker="b",state="up"', "1"),
        "5m",
        R1,
    ),
    "WarmrouteHitRatioFell": Case(hits(600, 300), hits(600, 500), "1600m", W),
    "WarmrouteWorkerTooHot": Case(
        shares(100) | streams(900) | requests(0),
        shares(20) | streams(900) | requests(0),
        "60m",
        W | {"worker": "a"},
    ),
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
    "WarmrouteRetriesSpent": Case(retries_left("0.8") | failing("0+6"), retries_left("3") | failing("0+6"), "20m", R1),
    "WarmrouteStreamsCutOff": Case(
        requests(0) | gauge("resumptions_total", 'outcome="failed"', "0+10"),
        requests(0) | gauge("resumptions_total", 'outcome="exact"', "0+10"),
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
    "WarmrouteSummariesFail": Case(
        gauge("compactions_total", 'result="rejected_empty"', "0+9")
        | gauge("compactions_total", 'result="summarized"', "0+1"),
        gauge("compactions_total", 'result="rejected_empty"', "0+1")
        | gauge("compactions_total", 'result="summarized"', "0+9"),
        "90m",
        W,
    ),
    "WarmrouteTasksFail": Case(
        gauge("background_failures_total", 'instance="r1",task="fleet_sync"', "0+1"),
        gauge("background_failures_total", 'instance="r1",task="fleet_sync"', "1"),
        "30m",
        R1 | {"task": "fleet_sync"},
    ),
}


class Night(NamedTuple):
    """What is not plain of an alert: ``labels`` of the one that fires ``at``; None: it does not."""

    alert: str
    series: Series
    at: str
    labels: dict[str, str] | None


def at_night(of: Series) -> Series:
    """One an hour of what were a thousand a minute, and one more at the end."""
    return {name: "0+0x400 1 1x60" if "200" in name or "count" in name else "0x400 1 1x60" for name in of}


UP = 'instance="r1",worker="a",state="up"'
TWO_NAMESPACES = {
    f'warmroute_requests_total{{namespace="{namespace}",job="w",status="{status}"}}': f"0+{each}x100"
    for namespace, status, each in (("live", "502", 30), ("live", "200", 970), ("trial", "200", 100_000))
}
NIGHTS = {
    "no traffic, no errors": Night("WarmrouteErrorsBurnFast", dict.fromkeys(requests(1), "7x500"), "400m", None),
    "one failure of a quiet night": Night("WarmrouteErrorsBurnFast", at_night(requests(1)), "404m", None),
    "one slow answer of a quiet night": Night(
        "WarmrouteSlowFirstTokensBurnFast",
        {name: "0x400 0x60" if "le=" in name else "0x400 1x60" for name in streams(1)},
        "404m",
        None,
    ),
    "routers that began again": Night(
        "WarmrouteErrorsBurnFast",
        {'warmroute_requests_total{job="w",status="502"}': "500x60 0x60"}
        | gauge("requests_total", 'status="200"', "0+9"),
        "63m",
        None,
    ),
    "everything fails": Night(
        "WarmrouteErrorsBurnFast", {'warmroute_requests_total{job="w",status="503"}': "0+100x100"}, "70m", W
    ),
    "every stream is cut off": Night(
        "WarmrouteErrorsBurnFast",
        {
            'warmroute_requests_total{job="w",status="200"}': "0+100x100",
            'warmroute_resumptions_total{job="w",cause="died",outcome="failed"}': "0+50x100",
        },
        "70m",
        W,
    ),
    "one of two deployments of one name fails": Night(
        "WarmrouteErrorsBurnFast", TWO_NAMESPACES, "70m", W | {"namespace": "live"}
    ),
    "a router that found no worker": Night(
        "WarmrouteAllWorkersOut",
        gauge("build_info", 'instance="r1"', "1")
        | gauge("build_info", 'instance="r2"', "1")
        | gauge("worker_state", 'instance="r2",worker="a",state="up"', "1"),
        "5m",
        R1,
    ),
    "a router that has gone": Night(
        "WarmrouteAllWorkersOut",
        {f'warmroute_build_info{{job="w",{UP}}}': "1x3 stale", f'warmroute_worker_state{{job="w",{UP}}}': "0x3 stale"},
        "9m",
        None,
    ),
    "a job that is not called after what it runs": Night(
        "WarmrouteDown",
        {'up{job="edge",instance="r1"}': "1x9 0x9", 'warmroute_build_info{job="edge",instance="r1"}': "1x9 stale"},
        "15m",
        {"job": "edge", "instance": "r1"},
    ),
    "somebody else's job is down": Night("WarmrouteDown", {'up{job="edge",instance="r1"}': "0x30"}, "15m", None),
    "a pod that has gone": Night(
        "WarmrouteDown",
        {
            'up{job="warmroute",instance="r1"}': "1x9 stale",
            'warmroute_build_info{job="warmroute",instance="r1"}': "1x9 stale",
        },
        "15m",
        None,
    ),
    "never a router": Night("WarmrouteAbsent", {"up": "1x30"}, "15m", {}),
    "one client that leaves in a quiet night": Night(
        "WarmrouteClientsLeave", gauge("requests_total", 'status="499"', "0x20 1x20 2"), "30m", None
    ),
    "few prompts, and other ones than yesterday": Night(
        "WarmrouteHitRatioFell",
        {name: values if "tokens" in name else "0+1x3000" for name, values in hits(600, 300).items()},
        "1600m",
        None,
    ),
    "one conversation at one worker": Night(
        "WarmrouteWorkerTooHot",
        {name: values if "requests" not in name else "0+1x500" for name, values in (streams(900) | requests(0)).items()}
        | {name: "0+1x500" if 'worker="a"' in name else "0x500" for name in shares(1)},
        "60m",
        None,
    ),
    "retries spent, and then nothing": Night(
        "WarmrouteRetriesSpent", retries_left("0.5") | failing("0+6x5 30"), "60m", None
    ),
    "no retries wanted": Night(
        "WarmrouteRetriesSpent",
        gauge("retry_budget", 'instance="r1"', "0") | gauge("retry_budget_max", 'instance="r1"', "0") | failing("0+6"),
        "20m",
        None,
    ),
    "retries come back one by one, and are spent at once": Night(
        "WarmrouteRetriesSpent",
        {
            'warmroute_retry_budget{job="w",instance="r1"}': " ".join(["0.2 0.4 0.6 1.0"] * 20),
            'warmroute_retry_budget_max{job="w",instance="r1"}': "100x80",
        }
        | failing("0+60"),
        "40m",
        R1,
    ),
    "few of very many streams are cut off": Night(
        "WarmrouteStreamsCutOff",
        {'warmroute_requests_total{job="w",status="200"}': "0+60000x100"}
        | gauge("resumptions_total", 'outcome="failed"', "0+3"),
        "60m",
        None,
    ),
    "notes fail, and most histories need none": Night(
        "WarmrouteSummariesFail",
        gauge("compactions_total", 'result="failed"', "0+2") | gauge("compactions_total", 'result="nothing"', "0+20"),
        "90m",
        W,
    ),
}


def promtool(directory: Path, alert: Alert, case: Case) -> subprocess.CompletedProcess[str]:
    return check(directory, alert, case.at, (case.fires, case.labels), (case.quiet, None))


def check(
    directory: Path, alert: Alert, at: str, *nights: tuple[Series, dict[str, str] | None]
) -> subprocess.CompletedProcess[str]:
    """Of each: series, and the labels of the alert that fires."""
    tests: list[dict[str, Any]] = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [
                {
                    "alertname": alert.name,
                    "eval_time": at,
                    "exp_alerts": [{"exp_labels": labels | {"severity": alert.severity}}] if labels is not None else [],
                }
            ],
        }
        for series, labels in nights
    ]
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:  # what they say in words is not what is tested
        for rule in group["rules"]:
            rule.pop("annotations", None)
    (directory / "rules.yaml").write_text(yaml.safe_dump(rules))
    path = directory / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    command = [program("promtool"), "test", "rules", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.system
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert.name))
def test_an_alert_fires_when_it_should_and_not_when_it_need_not(alert: Alert, tmp_path: Path) -> None:
    found = promtool(tmp_path, alert, CASES[alert.name])
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.system
@pytest.mark.parametrize("name", NIGHTS)
def test_an_alert_wakes_nobody_for_nothing_and_is_not_asleep(name: str, tmp_path: Path) -> None:
    night = NIGHTS[name]
    alert = next(alert for alert in ALERTS if alert.name == night.alert)
    found = check(tmp_path, alert, night.at, (night.series, night.labels))
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
def test_a_page_sends_whoever_reads_it_to_panels_lines_and_ports_that_there_are(page: Path) -> None:
    text = " ".join(page.read_text().replace("**", "").split())
    titles = {panel.title for board in BOARDS for panel in board.panels} | {"Targets"}  # Prometheus' own page
    assert set(re.findall(r"\*([^*]+)\*", text)) <= titles
    code = "".join(path.read_text() for path in (ROOT / "router").rglob("*.py"))
    for line in re.findall(r'`"?((?!kubectl)[a-z]+(?: [a-z]+)+)"?`', text):
        assert f'"{line}' in code, line
    for command in re.findall("`(curl [^`]*:8081[^`]*)`", text):
        assert "Authorization: Bearer" in command  # the port asks for a token wherever it is not on loopback


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
