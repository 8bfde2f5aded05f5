#!/usr/bin/env bash
# What the owner of a GPU would train and check, in parts of under eight minutes. Each can be run on its own, and again.
# If one fails, the others run all the same; the exit code is 1 then.
#
#   runs/gpu.sh                         all: probe, world three times, tests, bench
#   runs/gpu.sh world                   one of them
#   DEVICE=cpu SMALL=1 runs/gpu.sh      a rehearsal without a GPU
#
#   probe    how fast a step of each stage is with several numbers of clips at a time, of which world takes the fastest,
#            and how fast footage comes
#   world    the speedrun for PART_SECONDS; again, until the world is measured
#   tests    what only a GPU can show
#   bench    steps of `coinrun`, frames of the reference size, thousands of worlds at once
#
# Results are in WORK/results. If OUT is given, what came since the last time is left there in files of 15 MB, few
# enough to be carried away: cat part-* | tar -xJ, those of every time into one folder.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
work=${WORK:-/tmp/minigenie-gpu} device=${DEVICE:-cuda} recipe=${RECIPE:-speedrun}
sizes=(16 256) rounds=3 steps=coinrun frames=W3
export MINUTES=${MINUTES:-9}  # of training: all parts together then fit half an hour
if [ -n "${SMALL:-}" ]; then
  recipe=tiny sizes=(4 32) steps='coinrun lam' frames='W3s frame, context 1'
  export FRAMES=4_000 MINUTES=0.3 CLIPS=8 MODE=easy
fi
export WORK=$work RECIPE=$recipe PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
results=$work/results
mkdir -p "$results" "$work/left"

measure() {  # for so many seconds at most, so that what is slow does not take along what comes after it
  local seconds=$1 name=$2
  shift 2
  timeout --foreground --kill-after 20 "$seconds" python -m minigenie bench "$@" --device "$device" --rounds "$rounds" \
    --json "$results/$name.json" 2>&1 | tee "$results/$name.txt"
}

probe() {
  measure 300 probe train --recipes "$recipe" --parts "${sizes[@]}" || return
  grep -o -- '--set .*' "$results/probe.txt" >"$work/fastest" || return
  PART_SECONDS=120 runs/speedrun.sh collect 2>&1 | tee "$results/collect.txt"
}

world() {
  local code=0
  SET=$(cat "$work/fastest" 2>/dev/null | tr '\n' ' ') PART_SECONDS=${PART_SECONDS:-420} runs/speedrun.sh || code=$?
  [ "$code" = 0 ] || rm -f "$work/fastest"  # it may be memory: the next time with the recipe's own parts
  return "$code"
}

tests() {  # warnings of another torch are no failures
  local only=()
  [ "$device" = cuda ] || only=(--collect-only)
  JAXTYPING_DISABLE=1 timeout --foreground --kill-after 20 450 python -m pytest -q -n 0 -W default -m gpu "${only[@]}" \
    tests/test_gpu.py 2>&1 | tee "$results/tests.txt"
}

bench() {
  local code=0
  measure 200 steps train --recipes coinrun --only "$steps" || code=$?
  measure 250 frames play --large --compiled --only "$frames" || code=$?
  return "$code"
}

leave() {  # a trained model once, since all of them are more than can be carried away at a time
  local model size skip=() done=() room=118000000
  if [ -e "$work/world/config.json" ]; then
    rm -rf "$results/world"
    python -m minigenie export "$work/world" --out "$results/world" --unfinished || return
    cp -r "$work"/world/{samples,pictures,report.html} "$results" 2>/dev/null
  fi
  [ -n "${OUT:-}" ] || return 0
  for model in tokenizer lam dynamics ending; do
    [ -e "$results/world/$model.safetensors" ] || continue
    size=$(($(stat -c %s "$results/world/$model.safetensors") * 3 / 4))  # as xz has it
    if [ -e "$work/left/$model" ] || [ "$size" -gt "$room" ]; then
      skip+=(--exclude "$model.safetensors")
    else
      room=$((room - size))
      [ ! -e "$work/world/$model.safetensors" ] || done+=("$work/left/$model")
    fi
  done
  mkdir -p "$OUT" && rm -f "$OUT"/part-*
  tar -C "$work" "${skip[@]}" -c results | xz -T0 -3 | split -b 15M - "$OUT/part-" || return
  du -b "$OUT"/part-*
  [ ${#done[@]} = 0 ] || touch "${done[@]}"
}

[ $# -gt 0 ] || set -- probe world world world tests bench
for part in "$@"; do
  case $part in
    probe | world | tests | bench) ;;
    *) echo "runs/gpu.sh knows probe, world, tests and bench, not $part" >&2; exit 2 ;;
  esac
done
failed=()
for part in "$@" leave; do
  echo "== $part"
  "$part" || failed+=("$part")
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
