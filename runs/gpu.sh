#!/usr/bin/env bash
# What the owner of a GPU would check, in parts of under nine minutes each; again, a part goes on where it stopped.
# From a bare checkout: setup installs what is missing, from the wheels in WHEELS if that is given. Results are small
# files in OUT.
#
#   runs/gpu.sh                         all: setup tests bench large, and the speedrun's collect train train train measure
#   runs/gpu.sh setup tests             some of them
#   DEVICE=cpu SMALL=1 runs/gpu.sh      a rehearsal without a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu-results} device=${DEVICE:-cuda}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
small=(${SMALL:+--rounds 3})
mkdir -p "$out"

setup() {
  python -c 'import torch, tyro, av, jaxtyping, pytest, pytest_timeout, gymnasium' 2>/dev/null && return
  if [ -n "${WHEELS:-}" ]; then
    pip install --quiet --no-index --find-links "$WHEELS" tyro einops jaxtyping av starlette uvicorn websockets rich \
      safetensors matplotlib pillow pytest pytest-timeout beartype gymnasium \
      "procgen-mirror; python_version < '3.13'" "procgen-gym; python_version >= '3.13'"
  else
    pip install --quiet '.[coinrun,dev]'
  fi
}

tests() {
  [ "$device" = cuda ] || { echo "without a GPU there is nothing to test here"; return; }
  JAXTYPING_DISABLE=1 python -m pytest -q -m gpu tests 2>&1 | tee "$out/tests.txt"
}

bench() {
  python -m minigenie bench --device "$device" "${small[@]}" --only "${SMALL:+W3s frame, context 1}" \
    --json "$out/bench.json" | tee "$out/bench.txt"
}

large() {  # the memory and the speed of a step of the large recipes, and the reference sizes
  python -m minigenie bench train --device "$device" "${small[@]}" --only "${SMALL:+coinrun lam}" \
    --recipes coinrun speedrun paper --json "$out/recipes.json" | tee "$out/recipes.txt"
  python -m minigenie bench --device "$device" "${small[@]}" --only "W${SMALL:+1s}" --large --compiled \
    --json "$out/large.json" | tee "$out/large.txt"
}

speedrun() {
  [ -z "${SMALL:-}" ] || export RECIPE=tiny FRAMES=4_000 MINUTES=0.3 CLIPS=8 MODE=easy
  OUT=$out/speedrun runs/speedrun.sh "$1"
}

[ $# -gt 0 ] || set -- setup tests bench large collect train train train measure
for part in "$@"; do
  echo "== $part"
  case $part in
    setup | tests | bench | large) "$part" ;;
    collect | train | measure) speedrun "$part" ;;
    *) echo "runs/gpu.sh knows setup, tests, bench, large, collect, train and measure, not $part" >&2; exit 2 ;;
  esac
done
