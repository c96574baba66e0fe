"""Which of several servers and clusters has GPUs free, by what they say."""

from __future__ import annotations

import pytest

from remote.hosts.first_free import Look, count_gres, first_free, look_at_cluster
from remote.link.answers import Node


@pytest.mark.parametrize(
    ("text", "kind", "number"),
    [
        ("gpu:2", "gpu", 2),
        ("gpu:a100:4(S:0-1)", "gpu", 4),
        ("gpu:a100:4(IDX:0-3),gpu:v100:2(IDX:0,2)", "gpu", 6),
        ("gpu:a100:4(IDX:0-3),gpu:v100:2(IDX:0,2)", "gpu:v100", 2),
        ("gpu:a100:4,mps:400", "gpu", 4),
        ("gpu:a1000:4", "gpu:a100", 0),
        ("(null)", "gpu", 0),
    ],
)
def test_gpus_in_slurm_s_words(text: str, kind: str, number: int) -> None:
    assert count_gres(text, kind) == number


def test_a_cluster_has_what_one_of_its_nodes_has() -> None:
    nodes = [
        Node("n1", "gpu*", "mixed", "gpu:a100:4", "gpu:a100:3(IDX:0-2)"),
        Node("n2", "gpu*", "idle~", "gpu:a100:2", "gpu:a100:0(IDX:N/A)"),
        Node("n3", "gpu*", "drained", "gpu:a100:8", "gpu:a100:0(IDX:N/A)"),
        Node("n4", "gpu*", "idle*", "gpu:a100:8", "gpu:a100:0(IDX:N/A)"),
        Node("n5", "gpu*", "idle", "gpu:a100:8", "gpu:a100:0(IDX:N/A)", "down"),
    ]
    look = look_at_cluster("login", nodes, "gpu:a100:2")
    assert (look.free, look.usable) == (2, 4)
    assert look.seen == "login: 3 of 6 GPUs idle in Slurm, 2 on one node"
    assert look_at_cluster("login", nodes, "gpu:v100:1").usable == 0


def test_a_queue_that_is_slurm_s_comes_before_one_where_somebody_waits() -> None:
    cluster = Look("cluster", "", free=0, usable=4, waiting=None)
    full, queued = Look("full", "", 0, 2, 0), Look("queued", "", 0, 8, 1)
    free = Look("free", "", 1, 1, 0, memory_mib=1)
    assert first_free([queued, cluster], 1)[0] == cluster
    assert first_free([queued, cluster, full], 1)[0] == full
    assert first_free([queued, cluster, full, free], 1)[0] == free
    assert first_free([queued, cluster, full, free], 3)[0] == cluster
