"""Measure how fast effects of steering vectors are measured: vectors a minute, and what each part of the work takes.

The bundled model and SAE, 14 prompts x 4 samples x 24 tokens a vector, strengths found by the cross-entropy target. Medians over
batches. The last line is one JSON object.

    python bench/effects.py [--vectors 12] [--rise 0.5]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from statistics import median

import torch

from steersman.evals.effects.facts import EffectSettings
from steersman.evals.effects.measure import Meter
from steersman.evals.effects.vectors import Probes
from steersman.models.load import load_model
from steersman.models.residuals import load_profile
from steersman.sae.library import find_sae
from steersman.settings import Settings


def main() -> None:
    """Time the parts batch by batch, then all of it together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vectors", type=int, default=12, help="measured after a first batch that only warms up")
    parser.add_argument("--rise", type=float, default=None, help="of the cross-entropy, in nats")
    options = parser.parse_args()
    settings = EffectSettings() if options.rise is None else EffectSettings(rise=options.rise)
    model, sae = load_model(), find_sae("default").load()
    meter = Meter(model, sae, load_profile(model, Settings.from_env().cache), settings)
    baseline = torch.zeros(sae.config.d_sae)
    probes = list(Probes(sae, settings.seed).first(options.vectors + meter.batch))
    meter.measure(probes[: meter.batch], baseline)
    probes = probes[meter.batch :]
    vectors = torch.stack([probe.vector.tensor for probe in probes])
    began = time.perf_counter()
    scales = meter.scale.find(vectors)
    scaling_s = (time.perf_counter() - began) / len(probes)
    seconds = []
    for start in range(0, len(probes), meter.batch):
        part = probes[start : start + meter.batch]
        began = time.perf_counter()
        meter.measure(part, baseline)
        seconds.append((time.perf_counter() - began) / len(part))
    each_s = median(seconds)
    tokens = len(settings.prompts) * settings.samples * settings.tokens
    strengths = torch.tensor([scale.strength for scale in scales])
    rows = {
        "seconds a vector": each_s,
        "of which finding its strength": scaling_s,
        "vectors a minute": 60 / each_s,
        "tokens a second": tokens / each_s,
        "median strength (mean residual norms)": float(strengths.median()),
    }
    for name, value in rows.items():
        print(f"{name:<40}{value:>10.2f}")
    summary = {
        "bench": "effects",
        "vectors": len(probes),
        "rows": meter.batch * len(settings.prompts) * settings.samples,
    }
    summary |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine()}
    print(json.dumps(summary | {name: round(value, 3) for name, value in rows.items()}))


if __name__ == "__main__":
    main()
