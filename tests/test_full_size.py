"""The published model at its full size, with random weights in bfloat16, on this machine's processor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blip3o.ar import word_tokenizer

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "experiments/published/pretrain.yaml"
PEAK = 14 * 10**9
PROGRAM = """
import json, resource, sys, time
import torch, yaml
from blip3o.checkpoints import instantiate
from blip3o.pipeline import Blip3oPipeline

config_path, text_tokenizer = sys.argv[1:]
config = yaml.safe_load(open(config_path))["model"]["init_args"]["model"]
config["init_args"]["ar"]["init_args"]["text_tokenizer"] = text_tokenizer
start = time.perf_counter()
torch.set_default_dtype(torch.bfloat16)
model = instantiate(config)
torch.set_default_dtype(torch.float32)
built = time.perf_counter() - start
assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
start = time.perf_counter()
out = Blip3oPipeline(model)("a red circle", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
print(json.dumps({
    "parameters": sum(p.numel() for p in model.parameters()),
    "build_seconds": round(built, 1),
    "generate_seconds": round(time.perf_counter() - start, 1),
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "tokens": out.token_ids.shape[1],
    "size": out.images[0].size,
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_one_image_of_1024_pixels_in_14_gigabytes(tmp_path: Path) -> None:
    words = [*["a", "red", "circle"], *(f"word{index}" for index in range(151_669 - 4 - 3))]
    word_tokenizer(words).save_pretrained(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(CONFIG), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert figures["parameters"] == 3_400_912_387
    assert (figures["tokens"], figures["size"]) == (729, [1024, 1024])
    assert figures["peak_bytes"] < PEAK
