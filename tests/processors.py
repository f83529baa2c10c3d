"""Run pytest as on another processor, where the last bits of products differ: no test may depend on them.

    python tests/processors.py haswell --threads 1 -- tests/estimators/test_gmm.py
    python tests/processors.py --all --threads 1 2 -- -n0 tests/fitting

Arguments after ``--`` are passed to pytest; each run ends with a line that says whether it passed. Environment
variables select the kernels of torch, MKL, oneDNN and NumPy's OpenBLAS among those of this processor; ``--all`` leaves
out those that it lacks. MKL heeds its variable on processors of Intel only.
"""

import argparse
import os
import subprocess
import sys
import time

VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PROCESSORS = {
    "native": (),
    "nehalem": ("default", "SSE4_2", "SSE41", "Nehalem"),
    "haswell": ("avx2", "AVX2", "AVX2", "Haswell"),
    "zen": ("avx2", "AVX2", "AVX2", "Zen"),
    "skylakex": ("avx512", "AVX512", "AVX512_CORE", "SkylakeX"),
}
ASK_TORCH = "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"


def environment(processor, threads=None):
    """Return the variables of this process, with those that select a processor and a number of threads."""
    variables = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    variables |= dict(zip(VARIABLES, PROCESSORS[processor], strict=False))
    return variables | (dict.fromkeys(THREADS, str(threads)) if threads else {})


def available():
    """Return the processors whose instructions this one has."""
    asked = subprocess.run(
        [sys.executable, "-c", ASK_TORCH], env=environment("native"), check=True, capture_output=True, text=True
    )
    order = ["default", "avx2", "avx512"]
    has = order[: order.index(asked.stdout.strip()) + 1]
    return [name for name, values in PROCESSORS.items() if not values or values[0] in has]


def main(arguments):
    """Run pytest once for each processor and number of threads; return whether one of them failed."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processors", nargs="*", metavar="processor", help=f"some of {', '.join(PROCESSORS)}")
    parser.add_argument("--all", action="store_true", help="each of them that this machine can stand for")
    parser.add_argument("--threads", nargs="+", type=int, default=[None], help="numbers of threads; default: as set")
    asked = parser.parse_args(arguments[:split])
    unknown = [name for name in asked.processors if name not in PROCESSORS]
    if unknown or not (asked.all or asked.processors):
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else "name a processor, or use --all")
    lines = []
    for processor in available() if asked.all else asked.processors:
        for threads in asked.threads:
            started = time.perf_counter()
            command = [sys.executable, "-m", "pytest", *arguments[split + 1 :]]
            code = subprocess.run(command, env=environment(processor, threads), check=False).returncode
            name = f"{processor}, {threads} thread(s)" if threads else processor
            lines.append(f"{name}: {f'failed ({code})' if code else 'passed'} in {time.perf_counter() - started:.0f} s")
            print(lines[-1], flush=True)
    print("", *lines, sep="\n")
    return any("failed" in line for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
