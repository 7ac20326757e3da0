"""A run on three nodes with disks of their own: images, weights and results are on S3, and nothing else is shared.

Meanwhile a trial, an embedding actor, the driver and a scoring actor are killed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.nodes import DASHBOARD, Nodes, problem, three_nodes
from tests.cluster.strikes import TARGETS, Strikes
from tests.conftest import TINY_CNN, write_images
from tests.s3 import BUCKET

PUT = """
import sys
from pathlib import Path
from pyarrow.fs import FileSystem
s3, root = FileSystem.from_uri("s3://{bucket}?allow_bucket_creation=true")
s3.create_dir(root)
for file in sorted(Path(sys.argv[1]).rglob("*.*")):
    with s3.open_output_stream(root + "/" + str(file.relative_to(sys.argv[1]))) as out:
        out.write(file.read_bytes())
"""
GET = """
import json, sys
import pyarrow.parquet as pq
from raysep.storage.store import Storage
from raysep.integrity import verify
run = Storage(sys.argv[1])
scores = pq.read_table(run.path("scores.parquet"), filesystem=run.fs, use_threads=False).to_pylist()
for row in scores:
    row.pop("seconds")
found = {"scores": scores, "manifest": run.read_json("manifest.json"), "files": run.files()}
found |= {"summary": run.read_json("summary.json"), "wrong": [vars(finding) for finding in verify(run).findings]}
print(json.dumps(found, default=str))
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    if (why := problem()) is not None:
        pytest.skip(why)
    with three_nodes() as started:
        yield started


def config(place: str) -> dict[str, Any]:
    """The same arithmetic wherever it runs: one thread for each process."""
    return {
        "name": "three",
        "data": {"source": {"kind": "image_folder", "path": f"{place}/images"}, "split": {"unseen": ["d", "e"]}},
        "models": [{**TINY_CNN, "pretrained": f"{place}/weights.safetensors"}],
        "finetune": {"steps": 2, "evaluate_at": [2], "batch_size": 8, "seeds": [0, 1, 2]},
        "embed": {"shard_rows": 2, "splits": ["unseen"]},
        "score": {"metrics": ["nmi", "nn1"], "resamples": 20},
        "compute": {"cpus_per_trial": 1, "embed_actors": 3, "cpus_per_embed_actor": 1, "score_actors": 3},
        "baselines": {"untrained": False, "pixels": None},
    }


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_a_run_spreads_over_three_nodes_and_finds_what_one_finds(
    nodes: Nodes, tmp_path: Path, ray_session: None
) -> None:
    import timm
    from safetensors.torch import save_file

    write_images(tmp_path / "images", dict.fromkeys("abcde", 12))
    save_file(timm.create_model("test_resnet").state_dict(), str(tmp_path / "weights.safetensors"))
    placed = nodes.run("python", "-c", PUT.format(bucket=BUCKET), str(tmp_path))
    assert placed.returncode == 0, placed.stderr
    there, run = nodes.disk / "run.yaml", f"s3://{BUCKET}/run"
    text = yaml.safe_dump(config(f"s3://{BUCKET}"))
    assert nodes.run("sh", "-c", f"cat > {there} <<'END'\n{text}\nEND").returncode == 0
    submit = ["raysep", "submit", str(there), "--address", f"http://{nodes.address(0)}:{DASHBOARD}", "--wait"]

    here = nodes.run(*submit, "--run-dir", "runs/x")
    assert here.returncode == 2
    assert "a directory of this machine" in here.stderr

    alone = nodes.run(*submit, "--run-dir", f"{nodes.disk}/run")
    assert alone.returncode == 2, alone.stdout + alone.stderr
    assert f"{nodes.address(1)}: no {nodes.disk}/run" in alone.stdout

    with Strikes(nodes) as strikes:
        lost = nodes.run(*submit, "--run-dir", run)
        assert lost.returncode == 137, lost.stdout + lost.stderr
        kept = nodes.run("raysep", "verify", run)
        assert kept.returncode == 0, kept.stdout + kept.stderr
        done = nodes.run(*submit, "--run-dir", run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 x 1 CPUs and 0 GPUs on 3 node(s)" in done.stdout
    assert strikes.done == list(TARGETS)
    found = json.loads(nodes.run("python", "-c", GET, run).stdout)
    stages = found["manifest"]["stages"]
    everywhere = {nodes.address(node) for node in range(3)}
    # Small as it is, a stage may be over before the last node's process has started; all of them together are not.
    assert {node for stage in stages.values() for node in stage.get("nodes", {})} == everywhere
    assert sum(entry["pieces"] for entry in stages["score"]["nodes"].values()) == 15
    assert sum(entry["pieces"] for entry in stages["finetune"]["nodes"].values()) == 3
    assert found["manifest"]["machines"] == {"1 CPUs": 3}
    assert any(file.startswith("logs/") for file in found["files"])
    assert found["wrong"] == []
    # The call that was killed could not say what it had begun again; nor could it give its lock back.
    assert {(item["stage"], item["why"]) for item in found["summary"]["retried"]} >= {("score", "process")}
    assert not any(file.startswith("lock/") for file in found["files"])

    # The same on one node, from the local disk.
    from raysep import pipeline
    from raysep.config import RunConfig
    from raysep.scoring import table
    from raysep.storage.store import Storage

    local = RunConfig.model_validate({**config(str(tmp_path)), "run_dir": str(tmp_path / "run")})
    compute = {"cpus_per_trial": 1, "embed_actors": 1, "cpus_per_embed_actor": 1, "score_actors": 1}
    local = local.model_copy(update={"compute": local.compute.model_copy(update=compute)})
    pipeline.run(local)
    expected = [{k: v for k, v in row.items() if k != "seconds"} for row in table.read(Storage(local.run_dir))]
    ours = [{k: v for k, v in row.items() if k != "key"} for row in found["scores"]]
    assert ours == [{k: v for k, v in row.items() if k != "key"} for row in json.loads(json.dumps(expected))]
