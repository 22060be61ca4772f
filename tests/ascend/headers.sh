#!/usr/bin/env bash
# Puts the vendor's runtime and HCCL headers into target/ascend/headers/VERSION, where the header check looks for them. They
# come with the wheel torch-npu, 28 MB, of which only these headers are unpacked; they are test inputs and are never part of
# the repository or of what we ship. Another version as argument adds a second check: 2.14.0 has the launch of kernels too.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=${1:-2.6.0.post3}
to=target/ascend/headers/$version
if [[ -e $to/complete ]]; then exit 0; fi
rm -rf "$to"
mkdir -p "$to"
python3 -m pip download --quiet --no-deps --disable-pip-version-check --only-binary=:all: --python-version 3.11 \
  --dest "$to" "torch-npu==$version"
python3 - "$to" <<'PY'
import pathlib, sys, zipfile
to = pathlib.Path(sys.argv[1])
wheel = next(to.glob("*.whl"))
with zipfile.ZipFile(wheel) as files:
    for name in files.namelist():
        if name.startswith("torch_npu/include/third_party/") and name.endswith(".h"):
            target = to / "include" / pathlib.PurePosixPath(name).relative_to("torch_npu/include")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files.read(name))
wheel.unlink()
PY
test -e "$to/include/third_party/acl/inc/acl/acl_rt.h"
touch "$to/complete"
