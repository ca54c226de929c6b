"""What ``python -m benchmarks.gpu`` has done in processes of their own: ``python -m benchmarks.gpu_checks NAME JOB``.

The job is a line of JSON, and so is the answer: an error or a crash of the device ends that process only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import measure, ours
from nn.backend import gpu_facts, to_numpy
from nn.backend.__main__ import report_cupy, report_numpy
from nn.profile import note_kept, record_layers, time_table, watch_memory
from nn.schedule import make_schedule

PEOPLE = 40  # classes of the networks that are compared
EQUAL_STEPS, PROFILED_STEPS = 5, 5
#: So small that the loss falls by a tenth in those steps: where rounding sends a number near zero to the other side of
#: LeakyReLU's kink, the gradient jumps, and larger steps would soon lead two sound computations apart.
EQUAL_RATE = 3e-5

Job = dict[str, Any]


def environment(job: Job) -> dict[str, Any]:
    """Return what the results depend on, and the lines that ``python -m nn.backend`` prints."""
    if job["side"] == "numpy":
        return {"machine": measure.machine(), "numpy": np.__version__, "report": report_numpy()}
    xp = ours.backend(job["side"])
    facts = {"machine": measure.machine(), "numpy": np.__version__, "gpu": gpu_facts(xp)}
    return facts | {"report": report_numpy() + report_cupy(xp)}


def pytorch(job: Job) -> dict[str, Any]:
    """Return PyTorch's version, empty if it is not there, and whether it can compute where the job wants it.

    On a GPU also the relative errors of a matrix product in float32 and in TF32, which tell whether the switch works.
    """
    try:
        import torch
    except ImportError:
        return {"version": "", "usable": False}
    found = {"version": torch.__version__, "usable": job["side"] == "numpy" or torch.cuda.is_available()}
    if job["side"] != "numpy" and found["usable"]:
        a, b = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 512, 512))).to("cuda")
        for name, allowed in (("float32", False), ("tf32", True)):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            difference = (a.float() @ b.float()).double() - a @ b
            found[f"error_{name}"] = float(difference.abs().max()) / 512**0.5
    return found


def train(job: Job) -> tuple[list[float], dict[str, Any]]:
    """Take a few steps from a fixed start; return their losses and the network's numbers."""
    trainer, x, labels = ours.new_trainer(job, PEOPLE), ours.pictures(job), ours.labels(job, PEOPLE)
    trainer.schedule = make_schedule("constant", EQUAL_RATE, EQUAL_STEPS)
    losses = [float(trainer.step(x, labels)[0]) for _ in range(EQUAL_STEPS)]
    return losses, {name: to_numpy(array) for name, array in trainer.model.state_dict().items()}


def equality(job: Job) -> dict[str, Any]:
    """Train on the CPU and twice on the job's side, always from the same start; return how far apart they come."""
    cpu, _ = train(job | {"side": "numpy"})
    first, state = train(job)
    second, again = train(job)
    return {
        "losses_cpu": cpu,
        "losses": first,
        "differences": [abs(there / here - 1) for here, there in zip(cpu, first, strict=True)],
        "repeated_losses_equal": first == second,
        "repeated_state_equal": all(np.array_equal(state[name], again[name]) for name in state),
    }


def profile(job: Job) -> dict[str, Any]:
    """Return the table of a training step, layer by layer, and the most memory it held."""
    trainer, x, labels = ours.new_trainer(job), ours.pictures(job), ours.labels(job)
    trainer.step(x, labels)  # first calls are slower
    with record_layers(trainer.model) as records:
        for _ in range(PROFILED_STEPS):
            trainer.step(x, labels)
    xp = ours.backend(job["side"])
    with watch_memory(xp) as memory, record_layers(trainer.model, memory) as watched:
        trainer.step(x, labels)
        with trainer.circumstances(x.shape):
            trainer.forward(xp.asarray(x))
        note_kept(trainer.model, watched)
    for record, other in zip(records, watched, strict=True):
        record.bytes_kept, record.working_bytes = other.bytes_kept, other.working_bytes
    return {"lines": time_table(records).splitlines()}


CHECKS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "environment": environment,
    "pytorch": pytorch,
    "equality": equality,
    "profile": profile,
}


def main(name: str, job: str) -> int:
    """Print what a check finds; return the exit status."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not look like an answer
    try:
        found = CHECKS[name](json.loads(job))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found), file=out)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
