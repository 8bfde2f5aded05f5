#!/usr/bin/env bash
# From nothing to a measured world in one go: footage, tokenizer, latent actions, dynamics, evaluation. Meant for one
# large GPU and 25 minutes, in parts that each end in under nine minutes and go on where the last one stopped, so that
# it also fits a machine that is lent by the piece.
#
#   runs/speedrun.sh                    everything
#   runs/speedrun.sh collect            footage
#   runs/speedrun.sh train              as long as PART_SECONDS lets it; again, until it says the world is done
#   runs/speedrun.sh measure            report.json and report.html into OUT; pictures and small files only
#
# Smaller, to rehearse on a CPU:
#   RECIPE=tiny FRAMES=20_000 MINUTES=2 CLIPS=16 MODE=easy runs/speedrun.sh
set -euo pipefail
recipe=${RECIPE:-speedrun} frames=${FRAMES:-2_000_000} minutes=${MINUTES:-17} clips=${CLIPS:-256} mode=${MODE:-hard}
part_seconds=${PART_SECONDS:-500} work=${WORK:-speedrun} out=${OUT:-speedrun/results}

collect() {
  python -m minigenie collect coinrun --policy explore --mode "$mode" --frames "$frames" --num-envs 64 --out "$work/train"
  python -m minigenie collect coinrun --policy explore --mode "$mode" --split test --frames 20_000 --out "$work/test"
}

train() {
  [ ! -e "$work/world/README.md" ] || { echo "the world is done"; return; }
  # a signal has it save and stop; that is no failure
  timeout --signal TERM --kill-after 60 "$part_seconds" \
    python -m minigenie train "$work/train" --recipe "$recipe" --max-minutes "$minutes" --out "$work/world" || [ $? = 124 ]
  [ -e "$work/world/README.md" ] && echo "the world is done" || echo "to be continued: run this part again"
}

measure() {
  mkdir -p "$out"
  python -m minigenie eval "$work/world" "$work/test" --clips "$clips" --out "$out"
  cp "$work/world/metrics.jsonl" "$work/world/config.json" "$out"
}

for part in "${@:-all}"; do
  case $part in
    collect | train | measure) "$part" ;;
    all) collect; until [ -e "$work/world/README.md" ]; do train; done; measure ;;
    *) echo "runs/speedrun.sh knows collect, train, measure and all, not $part" >&2; exit 2 ;;
  esac
done
