"""A worker's metrics as it writes them, and what must not pass for them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.upstream.load import BadLoad, parse_load

VLLM = b"""# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 13579.0
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.76374512345e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-0.6B"} 7.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3-0.6B"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen3-0.6B",reason="capacity"} 2.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-0.6B"} 0.25
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="1000",prefix="a\\"b,c=\\"d"} 1.0
"""


def engine(number: int) -> bytes:
    return VLLM.replace(b'engine="0"', b'engine="%d"' % number)


def test_what_vllm_writes_is_read() -> None:
    report = parse_load(VLLM)
    assert (report.running, report.waiting, report.kv_cache_usage) == (7, 3, 0.25)
    assert (report.cache_tokens, report.process_start_time) == (16_000, 1.76374512345e9)


def test_tokens_of_prompts_and_of_answers_are_one_figure_and_none_where_neither_is_exported() -> None:
    counters = b'vllm:prompt_tokens_total{engine="0"} 700.0\nvllm:generation_tokens_total{engine="0"} 50.0\n'
    assert parse_load(VLLM).tokens is None
    assert parse_load(VLLM + counters).tokens == 750
    assert parse_load(VLLM + counters.splitlines()[1] + b"\n").tokens == 50


def test_the_engines_of_one_worker_are_added_up() -> None:
    two = VLLM + b"".join(line + b"\n" for line in engine(1).splitlines() if b'engine="1"' in line)
    report = parse_load(two)
    assert (report.running, report.waiting, report.cache_tokens) == (14, 6, 32_000)
    assert report.process_start_time == 1.76374512345e9


def sleep_states(engine: int, state: str) -> bytes:
    names = ("awake", "weights_offloaded", "discard_all")
    line = 'vllm:engine_sleep_state{engine="%d",model_name="m",sleep_state="%s"} %s\n'
    return "".join(line % (engine, name, "1.0" if name == state else "0.0") for name in names).encode()


@pytest.mark.parametrize(
    ("states", "is_asleep"),
    [
        ((), False),
        (("awake", "awake"), False),
        (("weights_offloaded", "weights_offloaded"), True),
        (("awake", "discard_all"), True),
    ],
)
def test_a_worker_sleeps_when_one_of_its_engines_does(states: tuple[str, ...], is_asleep: bool) -> None:
    text = VLLM + b"".join(sleep_states(number, state) for number, state in enumerate(states))
    assert parse_load(text).is_asleep is is_asleep


def test_what_each_engine_looked_up_is_told_apart() -> None:
    line = b'vllm:prefix_cache_queries_total{engine="%d",model_name="m"} %b\n'
    report = parse_load(VLLM + line % (0, b"100.0") + line % (1, b"7.0"))
    assert list(report.looked_up_tokens.values()) == [100.0, 7.0]


def test_a_cache_size_in_tokens_is_taken_as_it_is() -> None:
    line = b'vllm:cache_config_info{kv_cache_size_tokens="5000",num_gpu_blocks="1000",block_size="16"} 1.0\n'
    assert parse_load(line).cache_tokens == 5000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"# only a comment\n",
        b"other_metric 5\n",
        b'vllm:cache_config_info{block_size="None",num_gpu_blocks="x"} 1.0\n',
        b'vllm:cache_config_info{prefix="a,num_gpu_blocks=\\"9\\"",block_size="16"} 1.0\n',
        b'vllm:cache_config_info{block_size="16", =0bpe="a#uto",engine="0"pu_blocks="1000"} 1.0\n',
    ],
)
def test_what_is_not_said_is_unknown_and_not_zero(text: bytes) -> None:
    report = parse_load(text)
    assert (report.cache_tokens, report.process_start_time) == (None, None)


@pytest.mark.parametrize("value", [b"seven", b"NaN", b"+Inf", b"1e999", b"\xff"])
def test_counts_that_are_no_counts_are_refused(value: bytes) -> None:
    with pytest.raises(BadLoad):
        parse_load(b"vllm:num_requests_running " + value + b"\n")


@given(st.data())
def test_garbage_raises_nothing_but_its_own_error(data: st.DataObject) -> None:
    text = bytearray(VLLM)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=4))
    with contextlib.suppress(BadLoad):
        parse_load(bytes(text))
