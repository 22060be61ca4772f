"""What a wrapper costs over the C API: runs cost.c and its twins in turn, so that what else the machine does meets all alike.

    tests/bindings/cost.py --library DIR [--rounds 15] [NAME=COMMAND ...]

builds cost.c and cpp_cost.cpp against DIR/libyinian.so and runs them, and each COMMAND, which prints the same lines. Prints
medians, and of each pair with C in the same round the median of the differences.
"""

import argparse
import pathlib
import re
import shlex
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIGURES = {
    "CPU ns per token": r"^CPU ns per token: (\S+)$",
    "of the poller": r"^CPU ns per token of the poller: (\S+)$",
    "wake-up p50 us": r"^wake-up us: p50 (\S+) p99 \S+$",
    "wake-up p99 us": r"^wake-up us: p50 \S+ p99 (\S+)$",
}


def build(library, to):
    """C and C++, as a host would build them."""
    link = [f"-L{to}", "-lyinian", f"-Wl,-rpath,{to}", "-pthread"]
    for name in ("libyinian.so", "libyinian.so.0.1"):
        (to / name).symlink_to((library / "libyinian.so").resolve(strict=True))
    for compiler, source, standard in (("cc", "cost.c", "c11"), ("c++", "cpp_cost.cpp", "c++17")):
        program = to / source.split(".")[0]
        words = [compiler, f"-std={standard}", "-O2", "-Wall", "-Wextra", f"-I{ROOT / 'include'}", "-o", program]
        subprocess.run([*words, ROOT / "tests/bindings" / source, *link], check=True)
    return {"C": [to / "cost"], "C++": [to / "cpp_cost"]}


def measure(command):
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: re.search(pattern, out, re.M) for name, pattern in FIGURES.items()}
    return {name: float(match.group(1)) for name, match in found.items() if match}


def report(rounds):
    names = list(rounds[0])
    print(f"{'':12}" + "".join(f"{figure:>20}" for figure in FIGURES))
    for name in names:
        for label, of in ((name, lambda r, f: r[name][f]), (f"{name} - C", lambda r, f: r[name][f] - r["C"][f])):
            if label == "C - C":
                continue
            figures = [[of(r, f) for r in rounds if f in r[name]] for f in FIGURES]
            print(f"{label:12}" + "".join(f"{statistics.median(all):20.1f}" if all else f"{'-':>20}" for all in figures))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=pathlib.Path, required=True, help="the folder of libyinian.so")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("twins", nargs="*", metavar="NAME=COMMAND")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as to:
        commands = build(options.library, pathlib.Path(to))
        for twin in options.twins:
            name, command = twin.split("=", 1)
            commands[name] = shlex.split(command)
        rounds = []
        for i in range(options.rounds):
            # Each is the first one as often as the others.
            turn = list(commands)[i % len(commands) :] + list(commands)[: i % len(commands)]
            rounds.append({name: measure(commands[name]) for name in turn})
        rounds = [{name: r[name] for name in commands} for r in rounds]
        report(rounds)


if __name__ == "__main__":
    main()
