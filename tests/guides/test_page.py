"""How pages are read: a guide's test is only worth what this is."""

from __future__ import annotations

import subprocess

import pytest

from tests.guides.page import Block, blocks, is_as_shown, outputs, script, with_ports

PAGE = """# Title

```sh
echo one
```

```text
one
```

```console
rm -rf /
```

```text
not what anything printed
```

```toml
# two.toml
x = 1
```

```python
print(open("two.toml").read())
```
"""


def test_what_is_run_is_found_with_what_it_prints() -> None:
    assert blocks(PAGE) == [
        Block("sh", "echo one\n", 3, "one\n"),
        Block("toml", "# two.toml\nx = 1\n", 19),
        Block("python", 'print(open("two.toml").read())\n', 24),
    ]


def test_blocks_are_run_in_order_and_their_outputs_told_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    ran = subprocess.run(
        ["bash", "-c", script(blocks(PAGE))],
        cwd=tmp_path_factory.mktemp("run"),
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert outputs(ran.stdout) == ["one\n", "", "# two.toml\nx = 1\n\n"]


def test_nothing_is_run_behind_a_block_that_fails() -> None:
    ran = subprocess.run(
        ["bash", "-c", script([Block("sh", "false | cat\n", 1), Block("sh", "echo on\n", 2)])],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert ran.returncode == 1
    assert outputs(ran.stdout) == [""]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\n", "a\nb", True),
        ("a\n", "a\nb\n", False),
        ("a … d\n", "a b c d\n", True),
        ("a … d\n", "a b\nc d\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nd\n", True),
        ("a\n…\nd\n", "a\nb\n", False),
        ("1.0\n", "1x0\n", False),
    ],
)
def test_output_is_held_against_what_the_page_shows(shown: str, printed: str, same: bool) -> None:
    assert is_as_shown(shown, printed) is same


def test_ports_are_replaced_and_other_figures_are_not() -> None:
    assert with_ports("http://h:8080/ 18080 0.8080 :8081", {"8080": 1, "8081": 2}) == "http://h:1/ 18080 0.8080 :2"
