#!/usr/bin/env python3
"""Writes to standard output the licences of all crates that are linked into the library.

What only runs in the compiler (procedural macros, build scripts and what they need) and what only tests need is not in it.
A text that several crates share is written once.
"""
import json
import os
import subprocess
import sys

TEXTS = ("licen", "unlicen", "copying", "copyright", "notice")


def said(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def linked(metadata):
    """The packages behind the library, by name and version."""
    packages = {p["id"]: p for p in metadata["packages"]}
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    found, todo = set(), [root]
    while todo:
        for dep in nodes[todo.pop()]["deps"]:
            name = dep["pkg"]
            macro = any("proc-macro" in t["kind"] for t in packages[name]["targets"])
            if name in found or macro or all(k["kind"] is not None for k in dep["dep_kinds"]):
                continue
            found.add(name)
            todo.append(name)
    return sorted((packages[i] for i in found), key=lambda p: (p["name"], p["version"]))


def licence_files(package):
    folder = os.path.dirname(package["manifest_path"])
    names = {name for name in os.listdir(folder) if name.lower().startswith(TEXTS)}
    names = {name for name in names if os.path.isfile(os.path.join(folder, name))}
    if package["license_file"]:
        names.add(package["license_file"])
    for name in sorted(names):
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            yield name, "\n".join(line.rstrip() for line in file.read().strip("\n").splitlines())


def main():
    cargo = os.environ.get("CARGO", "cargo")
    rustc = said(os.environ.get("RUSTC", "rustc"), "-vV").splitlines()
    host = next(line.removeprefix("host: ") for line in rustc if line.startswith("host: "))
    metadata = json.loads(said(cargo, "metadata", "--locked", "--format-version", "1", "--filter-platform", host))
    packages = linked(metadata)
    print("libyinian contains the crates below, and the standard library of Rust, which is MIT OR Apache-2.0:")
    print(f"{rustc[0]}, https://github.com/rust-lang/rust. The numbered texts follow the list;")
    print("the standard library's notices are in RUST-LIBRARY.html, where this Rust came with them.\n")
    numbers = {}
    for package in packages:
        print(f"{package['name']} {package['version']}")
        print(f"  licence: {package['license'] or 'in its files'}")
        print(f"  source: {package['repository'] or package['homepage'] or 'not named'}")
        files = [(name, numbers.setdefault(text, len(numbers) + 1)) for name, text in licence_files(package)]
        if not files and not package["license"]:
            sys.exit(f"{package['name']} {package['version']} has no licence")
        print("  texts: " + (", ".join(f"{name} ({number})" for name, number in files) or "none in its package"))
    for text, number in numbers.items():
        print(f"\n{'=' * 40} text {number}\n\n{text}")


if __name__ == "__main__":
    main()
