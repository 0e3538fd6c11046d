"""`make gpu-check`: the Metal kernels on an NVIDIA GPU (tests/gpu).

- every test of an op on MPS, with CUDA tensors in the place of MPS tensors
- the bits of thousands of calls against those of simulated MPS
- those calls under compute-sanitizer's four tools, each tensor an allocation of its own
- planted faults, which the tools must report

A table at the end; the exit status is 0 if all of it holds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import torch  # noqa: E402
from mutants.planted import MUTANTS  # noqa: E402

import gpu  # noqa: E402

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # of PyTorch: there are as many processes as cores
SEPARATELY = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PLANTED = {
    "barrier": "racecheck",
    "scratch": "racecheck",
    "first-words": "racecheck",
    "last-element": "memcheck",
}

FAULTY_CALLS = """
import sys
sys.path.insert(0, sys.argv[1])
import gpu, torch
gpu.enable()
import torch_mlxnorm
for dim in (2816, 2817):
    x, w = torch.randn(3, dim, device="cuda"), torch.randn(dim, device="cuda")
    torch_mlxnorm.fused_post_attn_triple_norm(x, x, w, w, w, w)
    torch_mlxnorm.rms_norm(x, w)
torch.cuda.synchronize()
"""


@dataclass(frozen=True)
class Outcome:
    holds: bool
    text: str


def run(
    command: Sequence[object], log: Path, environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Exit status and output, which goes to a file as well."""
    with log.open("w+") as file:
        status = subprocess.run(
            list(map(str, command)),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | ONE_THREAD | (environment or {}),
            cwd=gpu.ROOT,
        ).returncode
    return status, log.read_text(errors="replace")


def digests_of(device: str, options: argparse.Namespace) -> list[object]:
    program = [sys.executable, TESTS / "digests.py", "--device", device]
    return [*program, "--jobs", options.jobs, "--every", options.every]


def check_tests(options: argparse.Namespace) -> Outcome:
    command = [sys.executable, "-m", "pytest", "--gpu", "-q", "-p", "no:cacheprovider", TESTS]
    if options.jobs > 1 and importlib.util.find_spec("xdist"):
        command += ["-n", options.jobs]
    status, output = run([*command, *options.pytest], options.logs / "tests.log")
    return Outcome(status == 0, output.strip().splitlines()[-1].strip("= "))


def check_bits(options: argparse.Namespace) -> Outcome:
    log = options.logs / "bits.log"
    status, output = run(digests_of("cuda", options), log)
    if status != 0:
        return Outcome(False, f"see {log}")
    ours = json.loads(output[output.index("{") :])
    if options.bits is None:
        status, output = run(digests_of("mps", options), options.logs / "simulator.log")
        if status != 0:
            return Outcome(False, "no simulator here: --bits FILE, of digests.py --device mps")
        simulated = json.loads(output[output.index("{") :])
    else:
        simulated = json.loads(options.bits.read_text())
    calls = [(op, case) for op in simulated for case in simulated[op]]
    differ = [(op, case) for op, case in calls if ours[op].get(case) != simulated[op][case]]
    (options.logs / "differ.log").write_text("\n".join(f"{op}: {case}" for op, case in differ))
    return Outcome(not differ and len(calls) > 0, f"{len(differ)} of {len(calls)} calls differ")


def sanitized(tool: str, program: Sequence[object], log: Path, **more: str) -> tuple[int, str]:
    said = subprocess.run(["compute-sanitizer", "--help"], capture_output=True, text=True).stdout
    option = next((o for o in ("--kernel-name", "--kernel-regex") if f"{o} " in said), None)
    ours = [option, "kns=sim_entry"] if option else []  # and not PyTorch's kernels
    command = ["compute-sanitizer", "--tool", tool, "--target-processes", "all", *ours, *program]
    return run(command, log, SEPARATELY | more)


def errors_in(output: str) -> int | None:
    """What compute-sanitizer sums up, of all processes; None if it did not get that far."""
    found = re.findall(r"= (?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", output)
    return sum(map(int, found)) if found else None


def check_sanitizer(tool: str) -> Callable[[argparse.Namespace], Outcome]:
    def check(options: argparse.Namespace) -> Outcome:
        program = digests_of("cuda", options)
        log = options.logs / f"{tool}.log"
        status, output = sanitized(tool, program, log)
        errors = errors_in(output)
        if errors is None:
            return Outcome(False, f"no summary, exit status {status}: see {log}")
        calls = sum(
            map(len, json.loads(output[output.index("{") : output.rindex("}") + 1]).values())
        )
        return Outcome(status == errors == 0, f"{errors} errors in {calls} calls")

    return check


def check_planted(name: str, tool: str) -> Callable[[argparse.Namespace], Outcome]:
    def check(options: argparse.Namespace) -> Outcome:
        (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
        with tempfile.TemporaryDirectory() as folder:
            shaders = Path(shutil.copytree(gpu.ROOT / "shaders", f"{folder}/shaders"))
            path = shaders / Path(mutant.file).relative_to("shaders")
            path.write_text(mutant.planted(path.read_text()))
            program = [sys.executable, "-c", FAULTY_CALLS, TESTS]
            log = options.logs / f"planted-{name}.log"
            _, output = sanitized(tool, program, log, MLXNORM_GPU_SHADERS=str(shaders))
        found = errors_in(output) or 0
        return Outcome(found > 0, f"{found} reports by {tool}: {mutant.what}")

    return check


CHECKS: dict[str, Callable[[argparse.Namespace], Outcome]] = {
    "bits": check_bits,
    **{tool: check_sanitizer(tool) for tool in TOOLS},
    **{f"planted {name}": check_planted(name, tool) for name, tool in PLANTED.items()},
    "tests": check_tests,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one in so many calls")
    parser.add_argument(
        "--bits", type=Path, help="output of digests.py --device mps (--every N), elsewhere"
    )
    parser.add_argument("--logs", type=Path, default=gpu.cache_dir() / "logs")
    parser.add_argument("--pytest", nargs="*", default=[], help="arguments of pytest")
    options = parser.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    try:
        gpu.enable()
    except gpu.MissingTool as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    failed = False
    for name in options.only:
        start = time.monotonic()
        outcome = CHECKS[name](options)
        failed = failed or not outcome.holds
        verdict = "ok" if outcome.holds else "FAILED"
        seconds = time.monotonic() - start
        print(f"{name:22} {verdict:7} {seconds:6.0f} s  {outcome.text}", flush=True)
    kernels = len(list((gpu.cache_dir() / "kernels").glob("*.cubin")))
    print(f"{kernels} kernels compiled, logs in {options.logs}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
