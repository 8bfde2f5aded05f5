#!/usr/bin/env bash
# From nothing to a measured world: footage, tokenizer, latent actions, dynamics, evaluation. Some 15 minutes on one
# large GPU. Whatever stops it, the same command goes on.
#
#   runs/speedrun.sh                       all: collect train measure
#   runs/speedrun.sh collect               some of them
#   PART_SECONDS=420 runs/speedrun.sh      what can be done in so long; again, until it says that the world is measured
#
# Its actions are the keys that were recorded; ACTIONS=labels learns them from 1,000 of these, latent and found from
# none. SET holds more of train's options. Smaller, to rehearse on a CPU:
#
#   RECIPE=tiny FRAMES=20_000 MINUTES=2 CLIPS=16 MODE=easy runs/speedrun.sh
set -euo pipefail
recipe=${RECIPE:-speedrun} frames=${FRAMES:-1_000_000} minutes=${MINUTES:-9} clips=${CLIPS:-128} mode=${MODE:-hard}
work=${WORK:-speedrun}
actions=${ACTIONS:-true}
read -ra options <<<"${SET:-}"
[ "$actions" != labels ] || options+=(--labels 1_000)

run() {  # a command, until the time is over: it then saves what it has and ends
  local limit=0 code=0
  [ -z "${PART_SECONDS:-}" ] || limit=$((PART_SECONDS > SECONDS ? PART_SECONDS - SECONDS : 1))
  timeout --foreground --kill-after 60 "$limit" python -m minigenie "$@" || code=$?
  [ "$code" != 124 ] || { echo "to be continued: run this again"; exit; }
  return "$code"
}

footage() {
  [ -e "$work/$1/manifest.json" ] || run collect coinrun --policy explore --mode "$mode" --out "$work/$1" "${@:2}"
}

collect() {
  footage train --frames "$frames" --num-envs 64
  footage test --frames 20_000 --split test
}

train() {
  [ -e "$work/world/README.md" ] ||
    run train "$work/train" --recipe "$recipe" --actions "$actions" --max-minutes "$minutes" --out "$work/world" \
      "${options[@]}"
}

measure() {  # report.json, report.html and pictures
  [ -e "$work/world/report.html" ] || run eval "$work/world" "$work/test" --clips "$clips"
  echo "the world is measured"
}

[ $# -gt 0 ] || set -- collect train measure
for part in "$@"; do
  case $part in
    collect | train | measure) "$part" ;;
    *) echo "runs/speedrun.sh knows collect, train and measure, not $part" >&2; exit 2 ;;
  esac
done
