"""Sums that do not depend on where their numbers lie in memory."""

from __future__ import annotations

import os


def settle_sums() -> None:
    """Ask MKL, which multiplies the small matrices of torch's attention on x86 CPUs, for one order of adding up.

    Unasked, the order follows the operands' alignment, and an answer's last bits follow the thread that computed its row. Takes
    effect before the process's first such product; a choice that is made already (the variable `MKL_CBWR`) stands. It costs
    nothing that could be measured (docs/log.md).
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
