"""The documentation and the results."""

import json
import re

from tests.kernels.interpreted.gpu_check.builders import FOLDER


def test_documents_have_the_measurements_and_only_those(check):
    """The tables of the documentation in the checkout are made of its results: empty where nobody measured."""
    import tables

    results = [
        json.loads(line)
        for path in sorted((FOLDER.parent / "results").glob("kernels_*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    for document in tables.DOCUMENTS:
        assert tables.fill(document.read_text(), results) == document.read_text(), document


def test_tables_are_filled_by_gpu_op_and_length(check):
    import tables

    def row(op, shape, direction, **more):
        given = {"device": "NVIDIA H100 80GB HBM3", "date": "2026-01-01", "status": "measured", "bound": "memory"}
        timed = {"seconds": 2e-3, "floor": 1e-3, "flops": 1e12, "peers": {"eager": 8e-3, "compile": 3e-3}}
        return {"op": op, "shape": shape, "direction": direction, **given, **timed, **more}

    peers = {"sdpa flash": 3e-3, "sdpa cudnn": 1e-3}
    rows = [
        row("qk_norm_rope", "L=51736 N=24 K=128", "forward"),
        row("qk_norm_rope", "L=51736 N=24 K=128", "backward", device="Other GPU"),
        row("joint_attention", "L=8192 N=24 K=128", "forward", bound="matrix", peers=peers),
        {"op": "modulated_norm", "status": "failed", "problem": "tensor 0"},
    ]
    readme, docs = (tables.fill(document.read_text(), rows) for document in tables.DOCUMENTS)
    assert "| `qk_norm_rope` | forward | H100 | bf16 | 0.50 | 4.00 | 1.50 |" in readme
    assert "| `qk_norm_rope` | backward | H100 | bf16 | | | |" in readme
    assert "| `modulated_norm` | forward | H100 | bf16 | | | |" in readme
    assert "| `attention`, head dim 128 | forward | H100 | bf16 | 500 Tflop/s | | 0.50 |" in readme
    assert "| `attention`, head dim 64 | forward | H100 | bf16 | | | |" in readme
    assert "| H100 | 128 | 8,192 | forward | 1.03 | 2.00 | 1.50 | 0.50 |" in docs
    assert "| H100 | 128 | 51,736 | forward | 41.1 | | | |" in docs
    assert re.search(r"\| `qk_norm_rope` \|.*\| 0.433 \| 0.50 \| \|", docs)


def test_documents_say_how_to_read_every_group_and_result(modules):
    text = (FOLDER.parents[1] / "docs/kernels.md").read_text()
    section = text.split("## Check on a GPU")[1].split("\n## ")[0]
    source = "".join(path.read_text() for path in FOLDER.glob("*.py"))
    statuses = set(re.findall(r'"status": "([a-z ]+)"', source)) - {"begins"}
    assert {"agrees", "measured", "failed", "skipped", "alternative", "alternative failed"} <= statuses
    for name in ("canary", *modules.gpu_check.GROUPS, *statuses):
        assert f"`{name}`" in section, name
